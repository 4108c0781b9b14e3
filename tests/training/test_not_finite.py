"""A loss or gradient that is no finite number: training stops and the record says where, or the step is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from peftlab import fit
from peftlab.config import from_plain
from peftlab.errors import Diverged, RunError
from peftlab.records.divergence import diverged, without_bare_words
from peftlab.records.folder import RunFolder, finished_run
from peftlab.records.identity import run_key
from peftlab.report.columns import Column
from peftlab.sweeps.declaration import Arm
from peftlab.sweeps.table import cell, values_of
from peftlab.training.module import TrainingModule
from tests.conftest import Peftlab
from tests.runs.small_runs import CLASSIFIER, edit, finished, record_of
from tests.sweeps.made_up import declare

COMMAND = ("train", *CLASSIFIER, "data.path=reviews.jsonl", "name=n")


def no_constant(word: str) -> None:
    raise AssertionError(f"bare {word}")


def poison(patch: pytest.MonkeyPatch, batches: set[tuple[int, int]], *, what: str = "loss") -> list[set[str]]:
    """Make the loss, or the gradient alone, of batches (epoch, number) NaN; the texts' rows of each are returned."""
    step, seen = TrainingModule.training_step, []

    def training_step(self: TrainingModule, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = step(self, batch, batch_idx)
        if (self.current_epoch, batch_idx) in batches:
            seen.append({tuple(row) for row in batch["input_ids"].tolist()})
            if what == "loss":
                return loss * float("nan")
            loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    patch.setattr(TrainingModule, "training_step", training_step)
    return seen  # type: ignore[return-value]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_it_stops_at_once_and_says_where(
    peftlab: Peftlab, reviews: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    from peftlab.training import finite

    added = finite.FiniteSteps.add
    if what == "loss":  # what the step returns is what is added to: the poison comes behind it
        monkeypatch.setattr(finite.FiniteSteps, "add", lambda self, loss: added(self, loss * float("nan")))
    else:
        poison(monkeypatch, {(1, 3)}, what=what)
    result = peftlab(*COMMAND, "schedule=constant", "schedule.warmup_fraction=0")
    assert result.status == 1
    (run,) = Path("outputs/n").glob("*")
    record = json.loads((run / "record.json").read_text(), parse_constant=no_constant)
    assert record["status"] == "diverged"
    at = record["diverged"]
    expected = (0, 0, 0) if what == "loss" else (1, at["step"], 1)
    assert (at["epoch"], at["step"], len(record["history"])) == expected
    assert at["what"] == what
    assert at["lr"] == 0.5
    assert len(set(at["rows"])) == len(at["rows"]) == 8
    assert f"diverged: the {what} is no finite number in step {at['step'] + 1}" in result.out
    assert f"rows {at['rows'][0]}, " in result.out
    again = peftlab(*COMMAND, "schedule=constant", "schedule.warmup_fraction=0")
    assert again.status == 1
    assert "force=true runs it again" in again.out
    assert "epoch 1/" not in again.out
    verdict = peftlab("verify", run)
    assert verdict.status == 0
    assert verdict.out.startswith("diverged")
    for words in (("predict", run, "--text", "x"), ("inspect", run), ("export", run, "--to", "e"), ("evaluate", run)):
        refused = peftlab(*words)
        assert refused.status == 2
        assert "diverged" in refused.err
    assert peftlab("report", "outputs", "--to", "r", "--format", "csv,md").status in (0, 2)


@pytest.mark.parametrize("at", [(0, 3), (1, 5)], ids=["between", "last step of an epoch"])
def test_a_later_look_says_what_one_at_once_says(
    peftlab: Peftlab, reviews: Path, monkeypatch: pytest.MonkeyPatch, at: tuple[int, int]
) -> None:
    """As on a GPU: the numbers of a step are seen when the next has been launched, before anything is kept."""
    from peftlab.training import finite

    poison(monkeypatch, {at}, what="gradient")
    assert peftlab(*COMMAND, "output_dir=once").status == 1
    monkeypatch.setattr(finite.FiniteSteps, "looks_later", lambda self, device: True)
    monkeypatch.setattr(finite._Look, "travelling", lambda self: self)
    assert peftlab(*COMMAND, "output_dir=later", "trainer.checkpoint_every_n_steps=1").status == 1
    (once,), (later,) = (list(Path(folder).glob("n/*")) for folder in ("once", "later"))
    expected, found = record_of(once), record_of(later)
    assert found["diverged"] == expected["diverged"]
    assert (found["diverged"]["epoch"], len(found["history"])) == (at[0], at[0])
    for file in (later / "checkpoints").glob("*.ckpt"):  # nothing that came of that step
        state = torch.load(file, weights_only=True)["state_dict"]
        assert all(tensor.isfinite().all() for tensor in state.values())


def test_the_rows_are_those_of_the_batch(peftlab: Peftlab, reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peftlab.data.module import TextDataModule

    tokens: dict[int, tuple[int, ...]] = {}
    loader = TextDataModule.train_dataloader

    def remember(self: TextDataModule) -> Any:
        rows = self.tokenized("train")
        tokens.update({number + 1: tuple(rows[number]["input_ids"].tolist()) for number in range(len(rows))})
        return loader(self)

    monkeypatch.setattr(TextDataModule, "train_dataloader", remember)
    seen = poison(monkeypatch, {(1, 2)}, what="gradient")
    peftlab(*COMMAND)
    (run,) = Path("outputs/n").glob("*")
    named = [tokens[row] for row in record_of(run)["diverged"]["rows"]]
    (batch,) = seen
    padded = {row[: len(one)] for row in batch for one in named if row[: len(one)] == one}  # type: ignore[index]
    assert padded == set(named)


def test_a_rate_that_is_far_too_high(peftlab: Peftlab, reviews: Path) -> None:
    words = [word for word in COMMAND if not word.startswith(("optim.lr", "peft"))]
    result = peftlab(*words, "peft=full", "optim.lr=1e30", "trainer.gradient_clip_norm=0")
    assert result.status == 1
    assert "diverged: the" in result.out
    (run,) = Path("outputs/n").glob("*")
    json.loads((run / "record.json").read_text(), parse_constant=no_constant)


def test_skipping_leaves_out_the_step_and_nothing_else(
    peftlab: Peftlab, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parameters after the step are those before it: neither momentum nor weight decay moves them."""
    poison(monkeypatch, {(0, 1), (2, 4)}, what="gradient")
    before: dict[int, list[torch.Tensor]] = {}
    step = TrainingModule.optimizer_step

    def optimizer_step(self: TrainingModule, epoch: int, number: int, optimizer: Any, closure: Any = None) -> None:
        kept = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
        step(self, epoch, number, optimizer, closure)
        now = [p.detach() for group in optimizer.param_groups for p in group["params"]]
        if all(torch.equal(one, other) for one, other in zip(kept, now, strict=True)):
            before[epoch * 100 + number] = kept

    monkeypatch.setattr(TrainingModule, "optimizer_step", optimizer_step)
    result = peftlab(*COMMAND, "trainer.on_nan=skip", "optim.weight_decay=0.1", "optim.momentum=0.9")
    assert result.status == 0, result.err
    assert sorted(before) == [1, 204]
    assert result.out.count("1 steps were skipped") == 2
    (run,) = Path("outputs/n").glob("*")
    assert record_of(run)["status"] == "finished"
    assert peftlab("verify", run).status == 0


def test_the_default_leaves_keys_and_numbers_as_they_were(peftlab: Peftlab, reviews: Path) -> None:
    run = finished(reviews)
    plain = record_of(run)["config"]
    assert plain["trainer"].pop("on_nan") == "stop"
    config = from_plain(plain)
    assert run_key(config) == run.name
    config.trainer.on_nan = "skip"
    assert run_key(config) != run.name


def test_records_of_earlier_versions_that_diverged_are_read(peftlab: Peftlab, reviews: Path) -> None:
    """They are called finished, with bare NaN for figures."""
    run = finished(reviews)
    nan = float("nan")

    def as_it_was(record: Any) -> None:
        for row in record["history"]:
            row |= {"train/loss": nan, "validation/loss": nan}
        for split in ("train", "validation", "test"):
            record["metrics"][split]["loss"] = nan

    edit(run, as_it_was)
    assert diverged(RunFolder(run).read_record() or {})
    with pytest.raises(RunError, match="diverged"):
        finished_run(str(run))
    assert "is finished already" in peftlab("train", *CLASSIFIER, "data.path=reviews.jsonl", "name=t").out


def test_a_program_gets_an_error(reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, {(0, 2)}, what="gradient")
    with pytest.raises(Diverged, match="in step 3") as caught:
        fit(*CLASSIFIER, f"data.path={reviews}", name="n")
    assert caught.value.facts["step"] == 2


def test_json_has_no_bare_words() -> None:
    values = {"a": float("nan"), "b": [1.5, float("inf"), (float("-inf"), 2)], "c": {"d": 1e300}}
    assert without_bare_words(values) == {"a": None, "b": [1.5, None, [None, 2]], "c": {"d": 1e300}}


# -- tables of sweeps ----------------------------------------------------------------------------------


def records(*losses: float) -> dict[tuple[str, int], Any]:
    return {
        ("c", seed): {
            "status": "finished",
            "history": [{"train/loss": loss}],
            "metrics": {"test": {"accuracy": 0.5 + seed / 10}},
        }
        for seed, loss in enumerate(losses)
    }


class _Sweep:
    seeds = (0, 1, 2, 3, 4)


ARM, COLUMN = Arm(id="c", label="c"), Column(title="accuracy", value="metrics.test.accuracy")


def test_a_diverged_run_is_counted_and_not_averaged() -> None:
    nan = float("nan")
    found = records(0.1, nan, 0.1, nan, 0.1)
    assert values_of(_Sweep, ARM, COLUMN, found) == [0.5, 0.7, 0.9]  # type: ignore[arg-type]
    assert cell(_Sweep, ARM, COLUMN, found).text == "0.7000 ± 0.2000 (diverged 2 of 5)"  # type: ignore[arg-type]
    kept = {at: one for at, one in records(*[0.1] * 5).items() if at[1] not in (1, 4)}
    stopped = {("c", 1): "diverged: …", ("other", 2): "diverged: …"}
    shown = cell(_Sweep, ARM, COLUMN, kept, stopped).text  # type: ignore[arg-type]
    assert shown.endswith("(3/5 seeds) (diverged 1 of 5)")
    every = {("c", seed): "diverged" for seed in range(5)}
    assert cell(_Sweep, ARM, COLUMN, {}, every).text == "diverged 5 of 5"  # type: ignore[arg-type]


def test_a_sweep_goes_on(peftlab: Peftlab, reviews: Path) -> None:
    """One cell diverges: no failure, not run again, and the table says so."""
    declare(
        name="s",
        seeds=[0, 1],
        overrides=[*CLASSIFIER, f"data.path={reviews}"],
        cells=[{"id": "good", "label": "good"}, {"id": "wild", "label": "wild", "overrides": ["optim.lr=1e30"]}],
        columns=[{"title": "accuracy", "value": "metrics.test.accuracy"}],
    )
    for attempt in range(2):
        result = peftlab("sweep", "sweep.yaml", "--jobs", "1")
        assert result.status == 0, result.out + result.err
        table = Path("outputs/s/table.md").read_text()
        (wild,) = [line for line in table.splitlines() if line.startswith("| wild")]
        assert "diverged 2 of 2" in wild
        assert "Training “wild” diverged with seed 0, 1" in table
        if attempt:
            assert "4 of 4 jobs are finished already" in result.out
    assert peftlab("verify", "outputs").status == 0
    manifest = json.loads(Path("outputs/s/sweep.json").read_text(), parse_constant=no_constant)
    assert set(manifest["cells"][1]["failed"]) == {"0", "1"}
    assert "diverged" in manifest["cells"][1]["failed"]["0"]
