"""trainer.measure_before: the untrained model's figures stand in the record, and training ends as without it."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file

from tests.conftest import TINY, Peftlab, run_folder


def test_an_untrained_model_is_a_row_of_the_table(peftlab: Peftlab, reviews: Path) -> None:
    common = [*TINY, f"data.path={reviews}", "peft.dropout=0.2", "trainer.max_epochs=1", "trainer.threads=1"]
    assert peftlab("train", *common, "name=plain").status == 0
    done = peftlab("train", *common, "name=both", "trainer.measure_before=true")
    assert done.status == 0, done.err
    assert "test, before training" in done.out
    plain, both = run_folder("plain"), run_folder("both")
    assert plain.name != both.name, "another run: its record has more"
    weights = load_file(plain / "adapter.safetensors"), load_file(both / "adapter.safetensors")
    assert all((weights[1][name] == tensor).all() for name, tensor in weights[0].items()), "to the bit"
    record = json.loads((both / "record.json").read_text())
    assert record["metrics"]["test"] == json.loads((plain / "record.json").read_text())["metrics"]["test"]
    # what an adapter that was never trained gives, tested by a run that takes no step of any size
    untrained = peftlab("train", *common, "name=untrained", "optim.lr=1e-30", "optim.weight_decay=0")
    assert untrained.status == 0
    zero = json.loads((run_folder("untrained") / "record.json").read_text())["metrics"]["test"]
    before = record["before"]["test"]
    assert before["per_class"] == zero["per_class"]
    assert abs(before["loss"] - zero["loss"]) < 1e-6
    assert before["loss"] != record["metrics"]["test"]["loss"]
    assert "1 as recorded" in peftlab("verify", both).out
    table = peftlab("report", "outputs/both", "--columns", "before.test.accuracy", "--to", "table")
    assert table.status == 0, table.err
    tampered = json.loads((both / "record.json").read_text())
    tampered["before"]["test"]["rows"] += 1
    (both / "record.json").write_text(json.dumps(tampered))
    assert "before.test.rows" in peftlab("verify", both).out
