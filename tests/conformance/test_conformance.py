"""Every method of the registry, with its defaults, on every architecture and two sorts of weights."""

from __future__ import annotations

import pytest
import torch

from tests.conformance.cells import (
    KINDS,
    LANGUAGE_MODELS,
    TEXTS,
    WEIGHTS,
    batch,
    examine,
    judged,
    known_methods,
    untouched,
)
from tests.conformance.expectations import BACKBONE_LIMITS, REFUSALS, UNREAD, expected_refusal, without_head

METHODS = known_methods()


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_cell(method: str, kind: str, weights: str) -> None:
    cls = METHODS[method]
    outcome = judged(examine(cls, kind, weights), cls, kind, weights, expected_refusal(method, kind, weights))
    assert not outcome.failures, f"{method} on {kind}, {weights}:\n  " + "\n  ".join(outcome.failures)


TAKEN = [(kind, weights) for weights in WEIGHTS for kind in LANGUAGE_MODELS]


@pytest.mark.parametrize(("number", "method"), list(enumerate(METHODS)))
def test_a_language_model(number: int, method: str) -> None:
    """Each method on one of them, in turn; `make conformance` has them all."""
    kind, weights = TAKEN[number % len(TAKEN)]
    cls = METHODS[method]
    outcome = judged(examine(cls, kind, weights), cls, kind, weights, expected_refusal(method, kind, weights))
    assert not outcome.failures, f"{method} on {kind}, {weights}:\n  " + "\n  ".join(outcome.failures)


def test_the_expected_refusals_are_of_methods_and_kinds_that_exist() -> None:
    for method, kind, weights in REFUSALS:
        assert method in METHODS
        assert kind in (*KINDS, *map(without_head, LANGUAGE_MODELS), "lm", "*")
        assert weights in (*WEIGHTS, "*")


@pytest.mark.parametrize(("check", "kind", "weights"), BACKBONE_LIMITS)
def test_a_backbone_that_is_excused_still_fails_untouched(check: str, kind: str, weights: str) -> None:
    """When this fails the backbone has been mended: take its entry away."""
    assert check in ("autocast", "bf16_backbone")
    backbone = untouched(kind, weights, "float32" if check == "autocast" else "bfloat16")
    with (
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=check == "autocast"),
        pytest.raises(RuntimeError, match=BACKBONE_LIMITS[check, kind, weights]),
    ):
        backbone(*batch(backbone, TEXTS[0]))


@pytest.mark.parametrize("kind", UNREAD)
def test_parameters_that_are_excused_still_get_no_gradient(kind: str) -> None:
    """When this fails the backbone has been mended: take its entry away."""
    backbone = untouched(kind, "fp32").requires_grad_(True).train()
    backbone(*batch(backbone, TEXTS[0])).sum().backward()
    without = {name for name, parameter in backbone.named_parameters() if parameter.grad is None}
    assert without == {name for name, _ in backbone.named_parameters() if UNREAD[kind] in name} != set()
