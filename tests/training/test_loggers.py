"""Each logger writes where it should, and W&B makes one finished run a job, offline and without an account."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import TINY, Peftlab, run_folder


def train(peftlab: Peftlab, reviews: Path, *more: str) -> Path:
    arguments = [a for a in TINY if not a.startswith("logger")]
    result = peftlab(
        "train",
        *arguments,
        f"data.path={reviews}",
        "name=logged",
        "trainer.max_epochs=2",
        "trainer.log_every_n_steps=1",
        *more,
    )
    assert result.status == 0, result.err
    return run_folder("logged")


def test_csv(peftlab: Peftlab, reviews: Path) -> None:
    (file,) = train(peftlab, reviews, "logger=csv").glob("logs/csv/*/metrics.csv")
    header, *rows = file.read_text().splitlines()
    assert {"train/loss_step", "validation/accuracy", "test/accuracy"} <= set(header.split(","))
    assert len(rows) > 20
    assert "name: logged" in (file.parent / "hparams.yaml").read_text()
    table = [dict(zip(header.split(","), row.split(","), strict=True)) for row in rows]
    steps = [row for row in table if row["train/gradient_norm"]]
    assert len(steps) == len([row for row in table if row["train/loss_step"]])
    assert all(float(row["train/gradient_norm"]) > 0 and float(row["train/memory_mib"]) > 100 for row in steps)
    rates = [float(row["train/lr"]) for row in steps]
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] < rates[len(rates) // 2]
    assert all(float(row["train/samples_per_second"]) > 0 for row in steps)


def test_tensorboard(peftlab: Peftlab, reviews: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train(peftlab, reviews, "logger=tensorboard") / "logs/tensorboard"
    events = EventAccumulator(str(folder))
    events.Reload()
    assert len(events.Scalars("validation/accuracy")) == 2
    assert len(events.Scalars("train/lr")) == len(events.Scalars("train/gradient_norm")) > 2
    assert list(folder.rglob("hparams.yaml"))


@pytest.mark.parametrize("mode", ["auto", "offline"])
def test_wandb_offline(peftlab: Peftlab, reviews: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(Path.cwd()))  # no login here
    folder = train(peftlab, reviews, "logger=wandb", f"logger.mode={mode}")
    (run,) = (folder / "logs/wandb").glob("offline-run-*")
    assert run.name.endswith(folder.name), "the run's id is its key"
    (file,) = run.glob("*.wandb")
    assert file.stat().st_size > 0
    assert wandb.run is None, "finished, so the next job in this process starts its own"


def test_none(peftlab: Peftlab, reviews: Path) -> None:
    assert not (train(peftlab, reviews, "logger=none") / "logs").exists()
