"""``peftlab predict RUN``: labels, or values, of texts with a finished run."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from peftlab.commands.prediction_files import Rows, is_table, read_rows, require_writable, write_rows
from peftlab.commands.task_option import require_task
from peftlab.data.readers import SUFFIXES
from peftlab.errors import ConfigError, DataError
from peftlab.library.run import Run, load_run
from peftlab.pairs import SEPARATOR, paired
from peftlab.terminal import columns_of, printable


def main(arguments: Sequence[str]) -> int:
    """Predict from texts given with ``--text``, in a ``--file``, or a line each on standard input.

    For a run on pairs, a tab stands between the two texts, or they have a column each.
    """
    given = _parser().parse_args(list(arguments))
    path = None if given.output is None else require_writable(given.output, "--output")
    run = load_run(given.run)
    require_task(run.config, given.run, given.task)
    rows = _rows(given, run)
    predictions = (
        rows.with_id(number) | found | {"text": found["text"].replace(SEPARATOR, "\t")}
        for number, found in enumerate(run.predictions(rows.texts, task=given.task))
    )
    if path is not None:
        count = write_rows(path, predictions)
        print(f"{path}: {count:,} rows")
        return 0
    objective, width = run.config.data.objective_of(given.task), columns_of(sys.stdout)
    for found in predictions:
        if given.json:
            print(json.dumps(found, ensure_ascii=False, default=str), flush=True)
        else:
            known = [str(found[name]) for name in (rows.id_column, "task") if name in found]
            print(line(known, str(found["text"]), objective.prediction_in_words(found), width), flush=True)
    return 0


def line(known: Sequence[str], text: str, predicted: str, width: int | None) -> str:
    """A prediction: what is known of the row, its text, shortened, and what was predicted.

    Args:
        known: id and task, where there are any.
        text: the row's.
        predicted: parts with a tab between.
        width: of the terminal, on which a short prediction stands in one line and below those above; None: there is
            none, and tabs stand between the parts.
    """
    if width is None:
        return printable("\t".join([*known, _shortened(text), predicted]))
    before, behind = "".join(f"{word}  " for word in known), predicted.replace("\t", "  ")
    room = max(width - len(before) - BESIDE, LEAST)
    shown = _shortened(" ".join(text.split()), room).ljust(room)
    return printable(f"{before}{shown}  {behind}")


BESIDE, LEAST = 28, 24
"""Signs that a label with its probability has beside the text, and those that a text has in any case."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "peftlab predict",
        description="Predict a label or a value of each text. For a run on pairs, a tab stands between the two; a "
        "table has a column for each.",
    )
    parser.add_argument("run", metavar="RUN", help="a run folder: outputs/<name>/<key>")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--text", action="append", metavar="TEXT", help="a text (may be given several times)")
    where.add_argument(
        "--file", metavar="FILE", help="csv, tsv, jsonl or parquet, read by the run's columns; any other file has a "
        "text a line; without either: standard input",
    )  # fmt: skip
    parser.add_argument("--text-column", metavar="NAME", help="of a table, where it is not the run's own")
    parser.add_argument("--second-column", metavar="NAME", help="the same of second texts, for a run on pairs")
    parser.add_argument("--id-column", metavar="NAME", help="kept beside each prediction (by itself: id, idx)")
    parser.add_argument("--output", metavar="FILE", help="write a row a text: csv, tsv, jsonl or parquet")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a line: text, then label and all probabilities, or value"
    )
    parser.add_argument("--task", metavar="NAME", help="the texts' task, for a run on data of several tasks")
    return parser


def _rows(given: argparse.Namespace, run: Run) -> Rows:
    """The texts that are meant, and their ids."""
    data = run.config.data
    if is_table(given.file):
        text, second = data.columns(given.task)
        if given.second_column is not None and second is None:
            raise ConfigError(
                f"--second-column {given.second_column}: the run was trained on single texts. Leave it out."
            )
        return read_rows(
            given.file,
            given.text_column or text,
            second and (given.second_column or second),
            given.id_column,
            own=(text, second),
        )
    for option, value in (("text", given.text_column), ("second", given.second_column), ("id", given.id_column)):
        if value is not None:
            raise ConfigError(f"--{option}-column {value} goes with --file and a table: {', '.join(SUFFIXES)}.")
    texts = read_texts(given.text, given.file)
    if data.has_pairs(given.task):
        texts = as_pairs(texts, "--text" if given.text is not None else given.file or "standard input")
    return Rows(texts)


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
