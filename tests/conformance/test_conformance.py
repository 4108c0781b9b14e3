"""Every method of the registry, with its defaults, on seven architectures and two sorts of weights."""

from __future__ import annotations

import pytest
import torch

from tests.conformance.cells import KINDS, TEXTS, WEIGHTS, batch, examine, judged, known_methods, untouched
from tests.conformance.expectations import BACKBONE_LIMITS, REFUSALS, expected_refusal

METHODS = known_methods()


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_cell(method: str, kind: str, weights: str) -> None:
    cls = METHODS[method]
    outcome = judged(examine(cls, kind, weights), cls, kind, weights, expected_refusal(method, kind, weights))
    assert not outcome.failures, f"{method} on {kind}, {weights}:\n  " + "\n  ".join(outcome.failures)


def test_the_expected_refusals_are_of_methods_and_kinds_that_exist() -> None:
    for method, kind, weights in REFUSALS:
        assert method in METHODS
        assert kind in (*KINDS, "*")
        assert weights in (*WEIGHTS, "*")


@pytest.mark.parametrize(("check", "kind", "weights"), BACKBONE_LIMITS)
def test_a_backbone_that_is_excused_still_fails_untouched(check: str, kind: str, weights: str) -> None:
    """When this fails the backbone has been mended: take its entry away."""
    assert check == "autocast"
    backbone = untouched(kind, weights)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(RuntimeError, match=BACKBONE_LIMITS[check, kind, weights]),
    ):
        backbone(*batch(backbone, TEXTS[0]))
