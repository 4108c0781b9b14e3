"""``peftlab predict RUN``: labels, or values, of texts with a finished run."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from peftlab.commands.task_option import require_task
from peftlab.errors import DataError
from peftlab.library.run import load_run
from peftlab.pairs import SEPARATOR, paired
from peftlab.terminal import printable


def main(arguments: Sequence[str]) -> int:
    """Predict from texts given with ``--text``, in a ``--file``, or a line each on standard input.

    For a run on pairs, a tab stands between the two texts.
    """
    parser = argparse.ArgumentParser(
        "peftlab predict",
        description="Predict a label or a value of each text. For a run on pairs, a tab stands between the two.",
    )
    parser.add_argument("run", metavar="RUN", help="a run folder: outputs/<name>/<key>")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--text", action="append", metavar="TEXT", help="a text (may be given several times)")
    where.add_argument("--file", metavar="FILE", help="a file with a text a line; without either: standard input")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a line: text, then label and probabilities, or value"
    )
    parser.add_argument("--task", metavar="NAME", help="the texts' task, for a run on data of several tasks")
    given = parser.parse_args(list(arguments))
    run = load_run(given.run)
    require_task(run.config, given.run, given.task)
    texts = read_texts(given.text, given.file)
    if run.config.data.has_pairs(given.task):
        texts = as_pairs(texts, "--text" if given.text is not None else given.file or "standard input")
    objective = run.config.data.objective_of(given.task)
    for found in run.predictions(texts, task=given.task):
        found["text"] = found["text"].replace(SEPARATOR, "\t")
        if given.json:
            print(json.dumps(found, ensure_ascii=False), flush=True)
        else:
            task = f"{found['task']}\t" if "task" in found else ""
            line = f"{task}{objective.prediction_in_words(found)}\t{_shortened(found['text'])}"
            print(printable(line), flush=True)
    return 0


def read_texts(texts: list[str] | None, file: str | None) -> list[str]:
    """The texts to label, none of them empty.

    Raises:
        DataError: naming the file and line of what cannot be read or is empty.
    """
    source = "--text"
    if texts is None:
        source = file or "standard input"
        if file is None and sys.stdin.isatty():
            raise DataError("no text given: use --text, --file, or write texts to standard input, a line each.")
        try:
            data = Path(file).read_bytes() if file else sys.stdin.buffer.read()
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror}.") from error
        texts = [_decoded(line, source, number) for number, line in enumerate(data.splitlines(), start=1)]
    if not texts:
        raise DataError(f"{source} holds no text.")
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            raise DataError(f"{source}, {'text' if source == '--text' else 'line'} {number}: the text is empty.")
    return texts


def as_pairs(texts: Sequence[str], source: str) -> list[str]:
    """Rows of two texts with a tab between them, as the model gets them.

    Raises:
        DataError: naming the row that has not exactly two.
    """
    for number, text in enumerate(texts, start=1):
        both = text.split("\t")
        if len(both) != 2 or not all(part.strip() for part in both):
            place = f"{source}, {'text' if source == '--text' else 'line'} {number}"
            raise DataError(
                f"{place}: {_shortened(text)!r} is not two texts with a tab between them, and the run was trained on "
                "pairs of texts."
            )
    return [paired(*text.split("\t")) for text in texts]


def _decoded(line: bytes, source: str, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source}, line {number}: not UTF-8 (byte {line[error.start]:#04x} at position {error.start + 1}). "
            "Convert it to UTF-8."
        ) from error


def _shortened(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
