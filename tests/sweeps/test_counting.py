"""Parameters of the cells of a sweep are counted once a shape."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from peftlab.composition import checked
from peftlab.sweeps.counting import count_all

TINY = ("data=text_files", "data.path=x.csv", "backbone=tiny", "peft=lora")


def test_cells_that_differ_in_no_shape_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [(f"seed={seed}", f"optim.lr=1e-{rank}", f"peft.rank={rank}") for seed in range(3) for rank in (1, 2)]
    configs = [checked([*TINY, *more]) for more in words]
    given: list[Any] = []
    run = subprocess.run

    def watched(*arguments: Any, **options: Any) -> Any:
        given.extend(json.loads(options["input"]))
        return run(*arguments, timeout=120, **options)

    monkeypatch.setattr(subprocess, "run", watched)
    found = [one.number for one in count_all(configs)]
    assert len(given) == 2
    # rank · (in + out) of query and value in two layers that are 32 wide
    assert found == [rank * (32 + 32) * 2 * 2 for _ in range(3) for rank in (1, 2)]
