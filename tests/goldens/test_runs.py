"""Run folders of earlier days can be read, checked, used, and gone on with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from torch import Tensor

from tests.conformance.cells import known_methods
from tests.conftest import Peftlab
from tests.goldens import cells, changed, runs
from tests.goldens.machine import machine, random_numbers
from tests.goldens.names import present_name

GOLDEN: dict[str, Any] = json.loads(runs.GOLDENS.read_text(encoding="utf-8"))
CASES: dict[str, Any] = GOLDEN["cases"]

PROBABILITIES, VALUES = 1e-5, 1e-6
"""Tolerances on another machine: of what is predicted, and of what is trained (relative to 1 and more)."""

TOLERANCES = {"bitfit_bf16": 1e-2, "lora_pissa": 1e-4}
"""Of both, in cases that magnify rounding: a backbone in bfloat16, and a singular value decomposition."""


def same_machine() -> bool:
    return machine() | {"threads": 1} == GOLDEN["machine"]  # the runs set their threads themselves


@pytest.fixture
def data(scratch: Path) -> Path:
    """A folder with what the runs were trained on and started from, but no runs."""
    runs.write_data(scratch)
    shutil.copytree(runs.RUNS / "adapter", "adapter")
    return scratch


def finished(case: str) -> Path:
    """Put the finished run of a case, and the one it started from, below outputs; its folder."""
    for name in {case, runs.NEEDS.get(case, case)}:
        shutil.copytree(runs.RUNS / "finished" / name, Path("outputs") / name)
    return runs.run_of(case)


def method_of(run: Path) -> str:
    method: str = json.loads((runs.RUNS / "finished" / run.parent.name / run.name / "adapter.json").read_text())[
        "method"
    ]
    return method


NEW_KEYS = changed.TAGS | changed.ROUNDED
UNCHANGED = [case for case in CASES if method_of(runs.run_of(case, str(runs.RUNS / "finished"))) not in NEW_KEYS]
"""Cases whose configs compute today what they did."""


@pytest.fixture
def model(data: Path) -> Path:
    """The same folder, where the backbones of the runs can be built: they are random ones."""
    if random_numbers() != GOLDEN["random_numbers"]:
        pytest.skip("this processor draws other random numbers: the runs' random backbones cannot be built here")
    return data


# -- finished ------------------------------------------------------------------------------------------


def test_every_method_has_a_run() -> None:
    """Those that there were: a method that is added later has no earlier runs."""
    assert {method_of(runs.run_of(case, str(runs.RUNS / "finished"))) for case in CASES} <= set(known_methods())
    assert set(CASES) == set(runs.CASES)


def test_the_runs_are_as_recorded(peftlab: Peftlab, data: Path) -> None:
    shutil.copytree(runs.RUNS / "finished", "outputs")
    result = peftlab("verify", "outputs", "--data", "--json")
    told = json.loads(result.out)
    assert result.status == 0, [one for one in told["runs"] if one["differences"]]
    assert told["ok"] == len(CASES)
    assert told["differs"] == told["unfinished"] == told["diverged"] == 0


def test_a_report_shows_them(peftlab: Peftlab, data: Path) -> None:
    shutil.copytree(runs.RUNS / "finished", "outputs")
    result = peftlab("report", "outputs", "--to", "report", "--format", "csv,md")
    assert result.status == 0, result.err
    table = Path("report/report.csv").read_text(encoding="utf-8")
    assert [case for case in CASES if runs.run_of(case).name not in table] == []


@pytest.mark.parametrize("case", UNCHANGED)
def test_a_finished_run_is_found(peftlab: Peftlab, data: Path, case: str) -> None:
    run = finished(case)
    result = peftlab("train", *changed.with_defaults_of_then(CASES[case]["arguments"]))
    assert result.status == 0, result.err
    assert f"{run} is finished already" in result.out


@pytest.mark.parametrize("case", [case for case in CASES if case not in UNCHANGED])
def test_a_run_from_before_a_change_says_so(peftlab: Peftlab, data: Path, case: str) -> None:
    run = finished(case)
    result = peftlab("verify", run)
    assert result.status == 0, result.out
    assert f"computed before {NEW_KEYS[method_of(run)]}; since then:" in result.out


@pytest.mark.parametrize("case", CASES)
def test_a_finished_run_predicts_what_it_did(peftlab: Peftlab, model: Path, case: str) -> None:
    run = finished(case)
    result = peftlab("predict", *runs.predict_arguments(case, run))
    assert result.status == 0, result.err
    now, then = runs.predicted(result.out), CASES[case]["predictions"]
    if same_machine():
        assert now == then
        return
    allowed = TOLERANCES.get(case, PROBABILITIES)
    for one, other in zip(now, then, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=allowed)


@pytest.mark.parametrize(("case", "form"), [(case, form) for case in CASES for form in CASES[case]["exports"]])
def test_a_finished_run_is_exported_as_it_was(peftlab: Peftlab, model: Path, case: str, form: str) -> None:
    run = finished(case)
    result = peftlab("export", run, "--to", "exported", *runs.EXPORTS[form], *runs.task_arguments(case))
    assert result.status == 0, result.err
    now, then = runs.exported(Path("exported")), CASES[case]["exports"][form]
    assert now["config"] == then["config"]
    assert sorted(now["tensors"]) == sorted(then["tensors"])
    allowed = None if same_machine() else TOLERANCES.get(case, VALUES)
    for name, golden in then["tensors"].items():
        assert not apart(now["tensors"][name], golden, allowed), name


# -- killed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", UNCHANGED)
def test_a_killed_run_ends_as_if_it_had_not_been(peftlab: Peftlab, model: Path, case: str) -> None:
    if case in runs.NEEDS:
        finished(runs.NEEDS[case])
    shutil.copytree(runs.RUNS / "killed" / case, Path("outputs") / case)
    runs.place(Path("outputs"), runs.SOMEWHERE, str(model.resolve()))
    words = changed.with_defaults_of_then(CASES[case]["arguments"])
    result = peftlab("train", *words, "trainer.keep_checkpoints=true")
    assert result.status == 0, result.err
    assert "resuming from" in result.out
    assert "epoch 1/2" not in result.out
    run = runs.run_of(case)
    golden = runs.RUNS / "finished" / case / run.name
    method, allowed = method_of(run), None if same_machine() else TOLERANCES.get(case, VALUES)
    last = "checkpoints/last.ckpt"
    for what, now, then in (
        ("adapter", *(safetensors.torch.load_file(one / "adapter.safetensors") for one in (run, golden))),
        ("last epoch", runs.trained(run / last), runs.trained(golden / last)),
    ):
        _require_same(what, now, {present_name(method, name): tensor for name, tensor in then.items()}, allowed)
    _require_same("optimizer", runs.optimizer_states(run / last), runs.optimizer_states(golden / last), allowed)
    record, recorded = (json.loads((one / "record.json").read_text(encoding="utf-8")) for one in (run, golden))
    for name in ("metrics", "selection", "forgetting"):
        _require_same_figures(record[name], recorded[name], allowed, name)
    _require_same_figures(runs.history_of(record["history"]), runs.history_of(recorded["history"]), allowed, "history")
    assert record["parameters"]["trainable"] == recorded["parameters"]["trainable"]


def _require_same(what: str, now: dict[str, Tensor], then: dict[str, Tensor], allowed: float | None) -> None:
    assert sorted(now) == sorted(then), what
    wrong = [name for name in then if apart(cells.digest(now[name]), cells.digest(then[name]), allowed)]
    assert not wrong, f"{what}: other values in {', '.join(wrong)}"


def apart(now: list[Any], then: list[Any], allowed: float | None) -> bool:
    """Whether two digests are of different tensors; ``allowed``: difference of figures, None for no byte at all."""
    if now[:2] != then[:2]:
        return True
    return now[2] != then[2] and (allowed is None or cells.largest_difference(now, then) > allowed)


def _require_same_figures(now: Any, then: Any, allowed: float | None, where: str) -> None:
    if allowed is None or not isinstance(then, (dict, list, float)):
        assert now == then, where
    elif isinstance(then, float):
        assert np.isclose(now, then, rtol=allowed, atol=allowed), where
    else:
        pairs: Iterable[Any] = then if isinstance(then, dict) else range(len(then))
        assert len(now) == len(then), where
        for key in pairs:
            _require_same_figures(now[key], then[key], allowed, f"{where}.{key}")


# -- a sweep -------------------------------------------------------------------------------------------


def test_a_finished_sweep_runs_nothing_and_makes_the_same_table(peftlab: Peftlab, data: Path) -> None:
    shutil.copy(runs.RUNS / "sweep/small.yaml", ".")
    shutil.copytree(runs.RUNS / "sweep/small", "outputs/small")
    table, contents = Path("outputs/small/table.csv"), Path("outputs/small/sweep.json")
    before, cells_before = table.read_text(encoding="utf-8"), json.loads(contents.read_text(encoding="utf-8"))["cells"]
    assert "4 jobs, 4 of them finished" in peftlab("sweep", "small.yaml", "--dry-run").out
    table.unlink()
    result = peftlab("sweep", "small.yaml", "--jobs", "1")
    assert result.status == 0, result.err
    assert table.read_text(encoding="utf-8") == before
    assert json.loads(contents.read_text(encoding="utf-8"))["cells"] == cells_before
    assert peftlab("verify", "outputs", "--json").status == 0
    result = peftlab("report", "outputs/small", "--format", "md,csv")
    assert result.status == 0, result.err
    shown = Path("outputs/small/report/report.md").read_text(encoding="utf-8")
    assert "LoRA" in shown
    assert "everything" in shown
