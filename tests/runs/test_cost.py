"""What a run took, as columns: GPU-hours or core-hours of training, and seconds a text as it is and merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from peftlab.composition import checked
from peftlab.data.module import TextDataModule
from peftlab.errors import ConfigError
from peftlab.records.folder import RunFolder
from peftlab.report.columns import cell_of, column_of
from peftlab.runs.assemble import assemble, lightning_module
from peftlab.runs.latency import TEXTS, WARM_UP, latency
from peftlab.runs.record import device_hours
from peftlab.sweeps.choice import value_of
from peftlab.sweeps.record_paths import NOT_IN_EVERY_RECORD, check_record_path
from peftlab.training.module import TrainingModule
from tests.conftest import TINY, Peftlab
from tests.runs.small_runs import CLASSIFIER, finished, record_of, train


def test_hours_are_of_devices_on_gpus_and_of_cores_on_cpus() -> None:
    on_gpus = device_hours(1800.0, processes=4, threads=8, on_gpu=True)
    assert on_gpus == {"gpu_hours": 2.0, "cpu_hours": None, "hours_of": "training, on 4 GPUs"}
    on_cpu = device_hours(1800.0, processes=1, threads=3, on_gpu=False)
    said = "training, in 1 process of 3 threads"
    assert on_cpu == {"gpu_hours": None, "cpu_hours": 1.5, "hours_of": said, "threads": 3}


def test_columns_of_costs(reviews: Path) -> None:
    record = record_of(finished(reviews))
    for path in NOT_IN_EVERY_RECORD:
        check_record_path(path)
        column = column_of(path)
        assert column.lower_is_better({}) is (path != "timing.threads")
        assert column.format == "number"
    assert column_of("timing.gpu_hours").title == "GPU-hours of training"
    assert column_of("timing.cpu_hours").title == "CPU core-hours of training"
    seconds = sum(row["train_seconds"] for row in record["history"])
    assert value_of(record, "timing.cpu_hours") == pytest.approx(seconds / 3600)  # one process of one thread
    assert value_of(record, "timing.gpu_hours") is None
    assert value_of(record, "timing.latency_seconds") is None, "it was not asked for"
    assert value_of({"timing": {}}, "timing.cpu_hours") is None, "an earlier version's"
    assert cell_of([], column_of("timing.cpu_hours"), complete=1, expected=1).text == "–"
    with pytest.raises(ConfigError, match="there is no 'cpu_hour'"):
        check_record_path("timing.cpu_hour")


@pytest.mark.parametrize("method", ["lora", "dora", "head"])
def test_latency_of_single_texts(reviews: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    config = checked([*TINY, f"data.path={reviews}", f"peft={method}"])
    splits = config.data.load()
    assembled = assemble(config, splits)
    module = lightning_module(config, assembled, splits).train()
    data = TextDataModule(config.data, splits, assembled.backbone.tokenizer, config.seed)
    for parameter in assembled.adapter.parameters(beside=True):
        parameter.data.add_(0.1)  # a merged weight is another one
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    drawn = torch.get_rng_state()
    seen: list[tuple[bool, tuple[int, ...]]] = []
    plain = TrainingModule.computed

    def watched(self: Any, batch: Any, **more: Any) -> Any:
        assert not self.training
        merged = any(getattr(layer, "merged", None) for layer in self.backbone.modules())
        seen.append((merged, tuple(batch["input_ids"].shape)))
        return plain(self, batch, **more)

    monkeypatch.setattr(TrainingModule, "computed", watched)
    found = latency(config, module, assembled.adapter, data)
    texts = min(TEXTS, len(splits.test))
    each = texts + min(WARM_UP, texts)
    assert [merged for merged, _ in seen] == [False] * each + [True] * (each if method != "head" else 0)
    assert {rows for _, (rows, _) in seen} == {1}
    assert found["latency_seconds"] > 0
    if method == "head":
        assert found["latency_merged_seconds"] is None
        assert "nothing to merge" in found["latency_merged_reason"]
    else:
        assert found["latency_merged_seconds"] > 0
    assert module.training
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_it_is_measured_where_it_is_asked_for_and_changes_no_number(peftlab: Peftlab, reviews: Path) -> None:
    plain = finished(reviews)
    words = (*CLASSIFIER, f"data.path={reviews}", "name=t", "trainer.measure_latency=true")
    again = peftlab("train", *words)
    assert again.status == 0, again.err
    assert "Its latency was not measured" in again.out
    assert "latency_seconds" not in record_of(plain)["timing"]
    asked = train(peftlab, reviews, "trainer.measure_latency=true", "force=true", name="asked")
    assert asked.name == plain.name, "it is no part of the key"
    timing = record_of(asked)["timing"]
    assert timing["latency_seconds"] > 0
    assert timing["latency_merged_seconds"] > 0
    assert (asked / "adapter.safetensors").read_bytes() == (plain / "adapter.safetensors").read_bytes()
    assert peftlab("verify", str(asked)).status == 0
    record = json.loads((asked / "record.json").read_text())
    record["timing"]["cpu_hours"] *= 2
    RunFolder(asked).write_record(record)
    wrong = peftlab("verify", str(asked))
    assert "timing.cpu_hours" in wrong.out + wrong.err
    assert wrong.status != 0
