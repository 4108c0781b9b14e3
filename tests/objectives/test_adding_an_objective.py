"""An objective is one file: dropped into a copy of the project, it trains, is checked, reported and predicted with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.copied import command_line
from tests.data.two_tasks import write_topics
from tests.objectives.scores import REGRESSION, write_scores

OBJECTIVE = '''"""Counting: whole numbers from 0, by the Poisson likelihood.

    loss = exp(z) - y z        exp(z) the expected count, y the count
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peftlab.errors import DataError
from peftlab.objectives.base import Figure, Objective

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torchmetrics import Metric

    from peftlab.raw_rows import RawRows


class Counts:
    names = ("log_rate",)

    def read(self, table: RawRows, row: int) -> int:
        text = str(table.labels[row])
        if not text.isdigit():
            raise DataError(f"{table.place(row)}: {text!r} is no count.")
        return int(text)


class Counting(Objective, name="counting"):
    about = "a counting, whose labels are whole numbers from 0"
    figures = (Figure("mean_error", "mean error", "min", 0.0),)
    selects = "mean_error"

    def reader(
        self, train: Sequence[RawRows], names: Sequence[str] | None = None, aliases: Mapping[str, int] | None = None
    ) -> Counts:
        return Counts()

    def labels_in_words(self, labels: Sequence[int], names: Sequence[str]) -> str:
        return f"counts up to {max(labels)}"

    def target(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        import torch

        return torch.tensor([row["label"] for row in rows], dtype=torch.float32)

    def loss(self, outputs: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        from torch.nn import functional as F

        return F.poisson_nll_loss(outputs.squeeze(-1), labels)

    def states(self, names: Sequence[str]) -> dict[str, Metric]:
        from peftlab.objectives.parts.split import Collected

        return {"rows": Collected(2)}

    def update(self, states: nn.ModuleDict, outputs: Tensor, labels: Tensor) -> None:
        states["rows"].update(outputs.squeeze(-1).exp(), labels)

    def compute(self, states: Mapping[str, Tensor]) -> dict[str, Any]:
        rows = states["rows"]
        return {"mean_error": float((rows[:, 0] - rows[:, 1]).abs().mean()), "rows": len(rows)}

    def predictions(self, outputs: Tensor, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        for rate in outputs.squeeze(-1).exp().tolist():
            yield {"expected": rate}

    def prediction_in_words(self, predicted: Mapping[str, Any]) -> str:
        return f"about {predicted['expected']:.2f}"

    def output_in_words(self, names: Sequence[str]) -> tuple[str, str]:
        return "output", "the logarithm of the expected count"

    def hf_config(self, names: Sequence[str]) -> dict[str, Any]:
        return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
'''


@pytest.fixture
def project(scratch: Path) -> Path:
    """A copy of the project with the file in it."""
    copy = scratch / "project"
    for folder in ("src", "conf"):
        shutil.copytree(REPOSITORY / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "src/peftlab/objectives/counting.py").write_text(OBJECTIVE, encoding="utf-8")
    return copy


def test_one_file_is_an_objective(project: Path, scratch: Path) -> None:
    """Its mistakes found early; trained, verified, tested again, predicted with, reported: lower is better there."""

    with command_line(project) as call:
        scores = write_scores(scratch)
        data = [*REGRESSION, f"data.path={scores}", "data.objective=counting", "optim.lr=0.02"]
        assert "Did you mean 'counting'?" in call("train", *data, "data.objective=countin", status=2)
        assert "mean_error" in call("train", *data, "trainer.monitor=accuracy", status=2)
        assert "row 1 (line 2): '" in call("train", *data, status=2)
        scores.write_text(scores.read_text(encoding="utf-8").replace(".25", ""), encoding="utf-8")
        assert "mean error" in call("train", *data, "name=new")
        (run,) = Path("outputs/new").iterdir()
        record = json.loads((run / "record.json").read_text(encoding="utf-8"))
        assert record["objective"] == {
            "name": "counting", "selects": "mean_error", "metrics": {"loss": "min", "mean_error": "min"},
        }  # fmt: skip
        assert record["selection"]["rule"] == "lowest validation/mean_error"
        best = min(record["history"], key=lambda row: row["validation/mean_error"])
        assert record["selection"]["epoch"] == best["epoch"]
        assert "1 as recorded" in call("verify", str(run), "--rerun-eval")
        assert "the same" in call("evaluate", str(run))
        assert call("predict", str(run), "--text", "good good bad").startswith("good good bad\tabout ")
        several = (
            f"data.tasks=[{{task: counts, name: text_files, path: {scores}, objective: counting}},"
            f"{{task: topics, name: text_files, path: {write_topics(scratch)}}}]"
        )
        mixed = [
            *(part for part in REGRESSION if not part.startswith("data")),
            "data=multitask",
            several,
            "optim.lr=0.02",
        ]
        refused = call("train", *mixed, status=2)
        assert "counts/mean_error (the less the better), topics/accuracy (the more the better)" in refused
        assert "Choose one of loss, counts/loss, counts/mean_error, topics/loss, topics/accuracy" in refused
        assert "error" in call("train", *mixed, "trainer.monitor=counts/mean_error", "name=mixed")  # its head is broken
        (both,) = Path("outputs/mixed").iterdir()
        assert "1 as recorded" in call("verify", str(both), "--rerun-eval")
        assert call("predict", str(both), "--task", "counts", "--text", "good good bad").startswith(
            "counts\tgood good bad\tabout "
        )
        errors = several.replace("task: topics", "task: more").replace("}]", ", objective: counting}]")
        errors = errors.replace("topics.jsonl", scores.name)
        call("train", *mixed, errors, "name=errors")
        (low,) = Path("outputs/errors").iterdir()
        assert json.loads((low / "record.json").read_text(encoding="utf-8"))["selection"]["rule"] == (
            "lowest validation/task_mean_error"
        )
        call("report", "outputs/new", "--to", "table")
        report = json.loads(Path("table/report.json").read_text(encoding="utf-8"))
        assert report["best"] == "lowest"
