"""Every method trains to the values it trained to before, and gives the optimizer its parameters in the same order."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peftlab.records.identity_tags import TAGS
from tests.goldens import cells, changed
from tests.goldens.machine import machine
from tests.goldens.names import present_name

GOLDEN = cells.read()
MAKE = {name: (make, kind, weights) for name, _, make, kind, weights in cells.all_cells()}

TOLERANCE = 1e-6
"""Of norms and products where other kernels add in another order."""

TOLERANCES: dict[str, float] = {
    "lora init=pissa": 1e-4,  # starts from a singular value decomposition, whose vectors of close values are loose
    "lora lr_ratio=16": 2e-5,  # steps sixteen times as long
    "lora embedding lr_ratio": 1e-5,  # four times as long
    "multitask_prompt": 1e-5,  # a product of two trained factors, with large gradients
}
"""Of those cells (by how their names start) that magnify rounding.

Largest differences with the kernels of torch, MKL and oneDNN for the oldest processors (ATEN_CPU_CAPABILITY=default,
MKL_CBWR=COMPATIBLE, ONEDNN_MAX_CPU_ISA=SSE41): 2.6e-5, 3.7e-6, 1.3e-6 and 0.9e-6; of all other cells 0.7e-6.
"""


def tolerance(cell: str) -> float:
    return next((allowed for start, allowed in TOLERANCES.items() if cell.startswith(start)), TOLERANCE)


def differences(golden: dict[str, Any], trained: cells.Trained, allowed: float | None) -> list[str]:
    """What is other than in the golden.

    Args:
        golden: one cell's.
        trained: what it came to now.
        allowed: largest difference of figures; None: every byte must be the same.
    """
    expected = {present_name(golden["method"], name): one for name, one in golden["tensors"].items()}
    wrong = [f"no tensor '{name}'" for name in sorted(expected.keys() - trained.tensors.keys())]
    wrong += [f"a tensor '{name}' that was not there" for name in sorted(trained.tensors.keys() - expected.keys())]
    for name in sorted(expected.keys() & trained.tensors.keys()):
        now, then = cells.digest(trained.tensors[name]), expected[name]
        if now[:2] != then[:2]:
            wrong.append(f"'{name}' is {now[0]} {now[1]}, it was {then[0]} {then[1]}")
        elif now[2] != then[2] and (allowed is None or cells.largest_difference(now, then) > allowed):
            wrong.append(f"'{name}' has other values: {cells.largest_difference(now, then):.1e} apart")
    groups = [[rate, shapes] for rate, shapes in trained.groups]
    if groups != golden["groups"]:
        wrong.append(f"the optimizer's groups are\n    {groups}\n  and were\n    {golden['groups']}")
    return wrong


@pytest.mark.parametrize("cell", [cell for cell, one in GOLDEN["cells"].items() if one["method"] not in changed.TAGS])
def test_cell(cell: str) -> None:
    trained = cells.trained_state(*MAKE[cell])
    rounded = GOLDEN["cells"][cell]["method"] in changed.ROUNDED
    allowed = None if machine() == GOLDEN["machine"] and not rounded else tolerance(cell)
    wrong = differences(GOLDEN["cells"][cell], trained, allowed)
    assert not wrong, f"{cell}:\n  " + "\n  ".join(wrong)


@pytest.mark.parametrize("method", changed.TAGS)
def test_what_was_changed_on_purpose_trains_to_other_values(method: str) -> None:
    """Else its tag would have to go."""
    assert changed.TAGS[method] in [tag.name for tag in TAGS]
    cell = next(cell for cell, one in GOLDEN["cells"].items() if one["method"] == method)
    wrong = differences(GOLDEN["cells"][cell], cells.trained_state(*MAKE[cell]), tolerance(cell))
    assert any("has other values" in one for one in wrong)


def test_a_difference_is_seen() -> None:
    """Of values, names and order; minus zero is zero."""
    trained = cells.Trained({"a": torch.tensor([0.0, 1.0]), "b": torch.ones(2, 3)}, [(0.1, [[2], [2, 3]])])
    tensors = {name: cells.digest(tensor) for name, tensor in trained.tensors.items()}
    golden = {"method": "m", "tensors": tensors, "groups": [[0.1, [[2], [2, 3]]]]}

    def told(allowed: float | None = None, *, a: Any = None, groups: Any = None, **more: torch.Tensor) -> str:
        other = trained.tensors | ({} if a is None else {"a": torch.as_tensor(a)}) | more
        return "; ".join(differences(golden, cells.Trained(other, groups or trained.groups), allowed))

    assert told() == told(a=[-0.0, 1.0]) == told(1e-6, a=[0.0, 1.0 + 1e-7]) == ""
    assert "'a' has other values" in told(a=[0.0, 1.0 + 1e-6])
    assert "'a' has other values" in told(1e-6, a=[0.0, 1.0001])
    assert "'a' has other values" in told(1e-6, a=[1.0, 0.0]), "the same norm"
    assert "'a' is float64" in told(a=torch.tensor([0.0, 1.0]).double())
    assert "a tensor 'c'" in told(c=torch.ones(1))
    assert "the optimizer's groups" in told(groups=[(0.1, [[2, 3], [2]])])
