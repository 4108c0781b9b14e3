"""Tables of parameter counts: each row's method is put into its backbone on ``meta``, and counted.

No weights are loaded or made, so that a model of 175 billion parameters costs a second. A row where there is nothing
to build (bits a parameter) is plain arithmetic, ``formula``.
"""

from __future__ import annotations

import ast
import operator
import re
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from peftlab.errors import ConfigError, PeftlabError, listed, nearest
from peftlab.fields import NonNegativeFloat, PositiveFloat
from peftlab.schema import check_keys, validate
from peftlab.tables.declared import Computed

Part = Literal["trunk", "lm_head", "trainable"]
Status = Literal["match", "differs"]


@dataclass(kw_only=True)
class Percent:
    """A share of some parts of the model, in percent."""

    value: NonNegativeFloat
    """What it must be, to four decimals."""
    of: list[Part]
    """trunk: the backbone without its head; lm_head: an output layer over the vocabulary, not tied to the
    embeddings, which a classifier does not have; trainable: what the method adds."""


@dataclass(kw_only=True)
class CountedRow:
    """One declared row."""

    table: str
    row: str
    published: str
    """The figure as it is printed: 0.3M, 0.83%, 20,480, 0.373 bit; ``about`` may stand before it."""
    recomputed: int | float
    """What the count must be."""
    status: Status
    source: str
    backbone: str | None = None
    peft: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    with_head: bool = False
    """Count the classification head too."""
    formula: str | None = None
    percent: Percent | None = None
    rounded_to: PositiveFloat | None = None
    """What the published figure is rounded to; null: its last digit."""
    remark: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError unless there is exactly one way to count."""
        if (self.formula is None) == (self.backbone is None) or (self.backbone is None) != (self.peft is None):
            raise ValueError(f"row '{self.row}' needs either backbone and peft, or formula.")
        if self.formula is not None and (self.percent is not None or self.fields or self.with_head):
            raise ValueError(f"row '{self.row}': percent, fields and with_head belong to a backbone, not to a formula.")


@dataclass(kw_only=True)
class CountsTable:
    """The whole file."""

    kind: str
    title: str
    sources: dict[str, str]
    backbones: dict[str, dict[str, Any]]
    rows: list[CountedRow]


@dataclass(frozen=True)
class Count:
    """What came out for one row."""

    number: int | float
    percent: float | None


def compute(content: dict[str, Any], where: str) -> Computed:
    """Count every row of the table in ``content``.

    Args:
        content: what the YAML file holds.
        where: its path, for messages.

    Raises:
        PeftlabError: naming the row that cannot be counted.
    """
    started = time.perf_counter()
    try:
        table = validate(content, CountsTable, "")
        for number, row in enumerate(content["rows"], start=1):
            check_keys(row, CountedRow, f"rows, number {number}")
            check_keys(row.get("percent") or {}, Percent, f"rows, number {number}, percent")
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    counts = []
    for row in table.rows:
        try:
            counts.append(count(row, table))
        except PeftlabError as error:
            raise ConfigError(f"{where}, row '{row.row}' of {row.table}: {error}") from error
    statuses = [agreement(row, found) for row, found in zip(table.rows, counts, strict=True)]
    failures = [
        failure
        for row, found, status in zip(table.rows, counts, statuses, strict=True)
        if (failure := _failure(row, found, status))
    ]
    records = [_record(row, found, status) for row, found, status in zip(table.rows, counts, statuses, strict=True)]
    remarks = list(dict.fromkeys(row.remark for row in table.rows if row.remark))
    used = [name for name in table.sources if any(row.source == name for row in table.rows)]
    differing = statuses.count("differs")
    return Computed(
        title=table.title,
        columns=["table", "row", "config", "published", "recomputed", "percent", "status", "source"],
        numbers={"published", "recomputed", "percent"},
        rows=[_cells(row, record, remarks) for row, record in zip(table.rows, records, strict=True)],
        records=records,
        notes=[f"{marked(number)} {remark}" for number, remark in enumerate(remarks)]
        + [f"source {name}: {table.sources[name]}" for name in used],
        failures=failures,
        summary=f"{len(counts)} rows: {len(counts) - differing} match, {differing} differ from what is published; "
        f"{len(failures)} not as declared; {time.perf_counter() - started:.1f} s",
    )


def count(row: CountedRow, table: CountsTable) -> Count:
    """Count one row by building it."""
    if row.source not in table.sources:
        raise ConfigError(f"source '{row.source}' is not in sources: {listed(table.sources)}.")
    if row.formula is not None:
        return Count(arithmetic(row.formula), None)
    from peftlab.backbones.config import BackboneConfig
    from peftlab.config import validate_group
    from peftlab.peft.base import attach, methods
    from peftlab.runs.counted import count_model, count_parameters

    assert row.backbone is not None
    assert row.peft is not None
    if row.backbone not in table.backbones:
        close = nearest(row.backbone, table.backbones)
        raise ConfigError(
            f"backbone '{row.backbone}' is not in backbones.{close} There are: {listed(table.backbones)}."
        )
    known = dict(methods())
    if row.peft not in known:
        raise ConfigError(f"there is no method '{row.peft}'.{nearest(row.peft, known)} There are: {listed(known)}.")
    config = validate_group("backbone", table.backbones[row.backbone], BackboneConfig)
    backbone = config.build(2, seed=0, device="meta")
    before = count_model(backbone)
    embedding = sum(p.numel() for p in backbone.token_embedding().parameters()) if _needs(row, "lm_head") else 0
    adapter = attach(backbone, validate(row.fields, known[row.peft], "peft"), seed=0)
    number = count_parameters(adapter)["trainable"] if row.with_head else adapter.num_parameters()
    if row.percent is None:
        return Count(number, None)
    parts = {"trunk": before["total"] - before["head"], "lm_head": embedding, "trainable": number}
    return Count(number, 100 * number / sum(parts[part] for part in row.percent.of))


def _needs(row: CountedRow, part: Part) -> bool:
    return row.percent is not None and part in row.percent.of


_OPERATORS: dict[type[ast.operator], Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def arithmetic(formula: str) -> float:
    """The value of ``formula``: numbers, + - * / and brackets.

    Raises:
        ConfigError: if it is anything else.
    """

    def value(node: ast.expr) -> float:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            result: float = _OPERATORS[type(node.op)](value(node.left), value(node.right))
            return result
        raise ConfigError(f"formula '{formula}' may hold numbers, + - * / and brackets only.")

    try:
        return value(ast.parse(formula, mode="eval").body)
    except (SyntaxError, ZeroDivisionError) as error:
        raise ConfigError(f"formula '{formula}' cannot be computed: {error}.") from error


_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "%": 1.0, "bit": 1.0, "GB": 1e9}
_FIGURE = re.compile(r"(?:about )?(?P<digits>[\d,]+(?:\.(?P<decimals>\d+))?) ?(?P<unit>K|M|B|%|bit|GB|)")


def published_figure(text: str) -> tuple[float, float]:
    """The value of a printed figure, and the worth of one in its last digit: ``0.83%`` is (0.83, 0.01).

    Raises:
        ConfigError: if it is written in another way.
    """
    match = _FIGURE.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"published: '{text}' cannot be read; write it as 0.3M, 0.83%, 20,480, 0.373 bit, 41 GB or about 450."
        )
    unit = _UNITS[match["unit"]]
    return float(match["digits"].replace(",", "")) * unit, unit / 10 ** len(match["decimals"] or "")


def agreement(row: CountedRow, found: Count) -> Status:
    """Whether what was counted rounds to what is published."""
    return rounds_to(found.number if found.percent is None else found.percent, row.published, row.rounded_to)


def rounds_to(number: float, published: str, rounded_to: float | None = None) -> Status:
    """Whether ``number`` rounds to the figure ``published``, to its last digit unless ``rounded_to`` says otherwise."""
    figure, step = published_figure(published)
    return "match" if abs(number - figure) <= (rounded_to or step) / 2 * (1 + 1e-9) else "differs"


def _failure(row: CountedRow, found: Count, status: Status) -> str | None:
    """What is not as declared, in words."""
    wrong = []
    if found.number != row.recomputed:
        wrong.append(f"recomputed is {found.number:,}, declared {row.recomputed:,}")
    if row.percent is not None and found.percent is not None and round(found.percent, 4) != row.percent.value:
        wrong.append(f"percent is {found.percent:.4f}, declared {row.percent.value:.4f}")
    if status != row.status:
        wrong.append(f"status is {status}, declared {row.status}")
    return f"{row.table}, {row.row}: {'; '.join(wrong)}" if wrong else None


def _record(row: CountedRow, found: Count, status: Status) -> dict[str, Any]:
    return {
        "table": row.table,
        "row": row.row,
        "backbone": row.backbone,
        "config": _config_in_words(row),
        "published": row.published,
        "recomputed": found.number,
        "percent": found.percent,
        "declared": row.recomputed,
        "status": status,
        "as_declared": _failure(row, found, status) is None,
        "source": row.source,
        "remark": row.remark,
    }


def _config_in_words(row: CountedRow) -> str:
    if row.formula is not None:
        return row.formula
    fields = [f"{name}={_in_words(value)}" for name, value in row.fields.items() if value is not None]
    return " ".join([str(row.peft), *fields, *(["and the head"] if row.with_head else [])])


def _in_words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


_MARKS = "¹²³⁴⁵⁶⁷⁸⁹"


def marked(number: int) -> str:
    """The mark of remark ``number``, from 0."""
    return _MARKS[number] if number < len(_MARKS) else f"({number + 1})"


def _cells(row: CountedRow, record: dict[str, Any], remarks: list[str]) -> list[str]:
    number = f"{record['recomputed']:,}" if isinstance(record["recomputed"], int) else f"{record['recomputed']:.6g}"
    percent = "" if record["percent"] is None else f"{record['percent']:.4f}%"
    status = record["status"] if record["as_declared"] else f"{record['status']} (!)"
    name = f"{row.row} {marked(remarks.index(row.remark))}" if row.remark else row.row
    return [row.table, name, record["config"], row.published, number, percent, status, row.source]
