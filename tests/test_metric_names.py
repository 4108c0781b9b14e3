"""Metrics are called one way: no other module spells their names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from peftlab.metric_names import SPLITS, TRAIN_LOSS, MetricName, TrainLossOfRow
from tests.conftest import REPOSITORY

SOURCE = REPOSITORY / "src"
SPELLED = re.compile(rf"(?:^|\W)(?:metrics\.(?:$|{'|'.join(SPLITS)})|(?:{'|'.join(SPLITS)})/)")
"""``metrics.test`` and ``test/``, in a text that a program uses."""


@pytest.mark.parametrize(
    ("name", "in_record", "in_history", "title"),
    [
        (MetricName("test", "accuracy"), "metrics.test.accuracy", "test/accuracy", "test accuracy"),
        (
            MetricName("validation", "macro_f1"),
            "metrics.validation.macro_f1",
            "validation/macro_f1",
            "validation macro f1",
        ),
        (
            MetricName("validation", "loss", "news"),
            "metrics.validation.tasks.news.loss",
            "validation/news/loss",
            "validation tasks news loss",
        ),
    ],
)
def test_each_spelling_is_read_again(name: MetricName, in_record: str, in_history: str, title: str) -> None:
    assert (name.in_record, name.in_history, name.title) == (in_record, in_history, title)
    assert MetricName.from_record(in_record) == name
    assert MetricName.from_history(in_history) == name


@pytest.mark.parametrize(
    "other", ["", "lr", "epoch", "train_seconds", "metrics", "metrics.test", "selection/epoch", "test/"]
)
def test_what_is_no_metric(other: str) -> None:
    assert MetricName.from_record(other) is None
    assert MetricName.from_history(other) is None


def test_the_row_of_a_history_that_types_know_has_the_train_loss_where_histories_have_it() -> None:
    assert list(TrainLossOfRow.__annotations__) == [TRAIN_LOSS.in_history]


def test_no_other_module_spells_a_name() -> None:
    found = [
        f"{path.relative_to(SOURCE)}:{line}: {text}"
        for path in sorted(SOURCE.rglob("*.py"))
        if path.name != "metric_names.py"
        for line, text in _texts(path)
        if SPELLED.search(text)
    ]
    assert not found


def _texts(path: Path) -> Iterator[tuple[int, str]]:
    """Texts of a module that are no docstrings; a part of one that is filled in is {}."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    about = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else _filled(part) for part in node.values]
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (about | inside):
            yield node.lineno, node.value


def _filled(part: ast.expr) -> str:
    """``{split}`` is taken for a split."""
    value = part.value if isinstance(part, ast.FormattedValue) else part
    return "test" if isinstance(value, ast.Name) and value.id == "split" else "{}"
