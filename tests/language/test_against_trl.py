"""The loss of each of 20 steps against TRL's SFTTrainer with HF peft, on a tiny Llama: benchmarks/against_trl.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftlab.data.module import TextDataModule
from peftlab.training.module import TrainingModule
from tests.conftest import REPOSITORY

pytest.importorskip("trl", reason="needs peftlab[bench]")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # TRL's of transformers
def test_twenty_steps_have_the_losses_of_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in (
        (TextDataModule, "on_before_batch_transfer"),
        (TrainingModule, "on_train_epoch_end"),
        (TrainingModule, "_count"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # the benchmark counts there; undone behind the test
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    from against_trl import CLOSE, apart, exact

    ours, theirs = exact(tmp_path / "rows.jsonl")
    assert apart(ours, theirs) < CLOSE
    assert abs(ours["losses"][-1] - ours["losses"][0]) > 100 * CLOSE  # something was learned
