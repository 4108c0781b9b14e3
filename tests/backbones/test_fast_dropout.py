"""Dropout by bytes and attention in blocks: the plain formula's numbers, the rate, independence, the step's seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftlab.backbones import fast_dropout
from peftlab.backbones.fast_dropout import ByteDropout, blockwise, keep_mask, kept, plain
from peftlab.backbones.transformer import TransformerConfig
from peftlab.peft.base import attach
from peftlab.peft.prefix_tuning import PrefixTuning

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 259,
}


def masks() -> dict[str, Tensor | None]:
    """Of what scores (3, 4, 10, 12) may see."""
    padding = torch.ones(3, 1, 1, 12, dtype=torch.bool)
    padding[1, ..., 7:] = False
    causal = torch.ones(10, 12, dtype=torch.bool).tril()
    return {
        "none": None,
        "padding": padding,
        "expanded": padding.expand(3, 1, 10, 12),
        "of one row for all": padding[1:2],
        "causal": causal,
        "both": padding & causal,
        "float, a head each": torch.randn(1, 4, 10, 12, generator=torch.Generator().manual_seed(3)),
    }


@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("block", [1, 2, 3, 4])
def test_blocks_compute_what_the_formula_says(monkeypatch: pytest.MonkeyPatch, name: str, block: int) -> None:
    monkeypatch.setattr(fast_dropout, "BLOCK", block * 10 * 12 * 8)
    torch.manual_seed(0)
    # as models have them: heads are slices of a token's vector
    q, k, v = (torch.randn(3, n, 4, 5, dtype=torch.float64).transpose(1, 2).requires_grad_() for n in (10, 12, 12))
    keep, outer = torch.rand(3, 4, 10, 12) < 0.7, torch.randn(3, 10, 4, 5, dtype=torch.float64)
    expected = plain(q, k, v, masks()[name], keep, 1 / 0.7, 0.4)
    found = blockwise(q, k, v, masks()[name], keep, 1 / 0.7, 0.4)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
    wanted = torch.autograd.grad(expected, (q, k, v), outer)
    for a, b in zip(torch.autograd.grad(found, (q, k, v), outer), wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)


def test_without_dropped_weights_it_is_torchs_attention() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 9, 8) for _ in range(3))
    expected = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    every, causal = torch.ones(2, 3, 9, 9, dtype=torch.bool), torch.ones(9, 9, dtype=torch.bool).tril()
    found = blockwise(q, k, v, causal, every, 1.0, 8**-0.5)
    torch.testing.assert_close(found, expected)


def test_frozen_keys_get_no_gradient_and_the_others_theirs() -> None:
    """As below the lowest layer that trains."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 9, 8, requires_grad=True) for _ in range(3))
    keep = keep_mask((2, 3, 9, 9), 0.3)
    expected = torch.autograd.grad(blockwise(q, k, v, None, keep, 1.4, 0.3).square().sum(), (q, v))
    found = torch.autograd.grad(blockwise(q, k.detach(), v, None, keep, 1.4, 0.3).square().sum(), (q, v))
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.999])
def test_the_rate_and_the_expectation(p: float) -> None:
    torch.manual_seed(0)
    n = 2_000_000
    x = torch.ones(n, requires_grad=True)
    out = ByteDropout(p)(x)
    share = kept(p) / 256
    assert abs(share - (1 - p)) <= 1 / 512 + 1e-9 or kept(p) == 1
    spread = 5 * (share * (1 - share) / n) ** 0.5
    assert abs((out > 0).double().mean().item() - share) < spread
    assert abs(out.double().mean().item() - 1) < spread / share
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(gradient, out.detach())  # of ones: the same elements, scaled alike


def test_an_element_times_its_factor_to_the_bit() -> None:
    x, keep = torch.randn(3, 1000), keep_mask((3, 1000), 0.3)
    expected = keep.float() * 1.4 * x  # zeros with the sign of x among them
    found = fast_dropout._times(keep, 1.4, x)
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


def test_draws_are_those_of_any_version() -> None:
    """A run is made again to the bit with another numpy; its own stream of SFC64 is promised to stay."""
    torch.manual_seed(0)
    drawn = [[0, 0, 1, 1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 1, 1, 1, 1, 0]]
    assert keep_mask((2, 9), 0.5).int().tolist() == drawn
    assert keep_mask((0, 9), 0.5).shape == (0, 9)
    assert keep_mask((9,), 0.0).all()


def test_draws_are_independent_and_the_seeds() -> None:
    torch.manual_seed(5)
    first, second = keep_mask((64, 4096), 0.1), keep_mask((64, 4096), 0.1)
    torch.manual_seed(5)
    assert torch.equal(keep_mask((64, 4096), 0.1), first)
    share = kept(0.1) / 256
    variance, n = share * (1 - share), first.numel()
    centred = first.double() - share
    for other in (second.double() - share, centred.roll(1), centred.roll(8), centred.roll(4096)):
        assert abs((centred * other).mean().item()) < 5 * variance / n**0.5  # no correlation
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("model_type", "prefix"), [("bert", False), ("llama", False), ("bert", True)])
def test_a_model_takes_it_in_training_and_is_itself_otherwise(
    monkeypatch: pytest.MonkeyPatch, model_type: str, prefix: bool
) -> None:
    architecture = {**SIZES, "model_type": model_type}
    more: dict[str, Any] = {"num_key_value_heads": 2} if model_type == "llama" else {}
    rate = {"attention_dropout": 0.2} if model_type == "llama" else {"dropout": 0.2}

    def built(**how: Any) -> Any:
        backbone = TransformerConfig(architecture=architecture | more, **rate, **how).build(2, seed=0)  # type: ignore[arg-type]
        if prefix:
            attach(backbone, PrefixTuning(length=3), seed=0, train_head=True)
        return backbone

    usual, fast = built(), built(fast_dropout=True)
    assert list(usual.state_dict()) == list(fast.state_dict())
    ids = torch.randint(5, 250, (3, 16), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids).index_put_((torch.tensor(1), torch.arange(9, 16)), torch.tensor(0))
    with torch.no_grad():
        assert torch.equal(usual.eval()(ids, mask), fast.eval()(ids, mask))
    calls: list[int] = []

    def keep_all(shape: tuple[int, ...], p: float) -> Tensor:
        calls.append(len(shape))
        return torch.ones(shape, dtype=torch.bool)

    # What is kept is scaled: with all of it kept and no scaling, training computes what evaluation does.
    monkeypatch.setattr(fast_dropout, "keep_mask", keep_all)
    monkeypatch.setattr(fast_dropout, "kept", lambda p: 256)
    torch.testing.assert_close(fast.train()(ids, mask), usual.eval()(ids, mask), atol=1e-5, rtol=1e-5)
    assert calls.count(4) == 2  # each layer's attention
    monkeypatch.undo()
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(fast(ids, mask).detach())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_it_leaves_other_types_to_torch() -> None:
    torch.manual_seed(0)
    found = ByteDropout(0.5)(torch.ones(64, dtype=torch.float64))
    torch.manual_seed(0)
    assert torch.equal(found, nn.Dropout(0.5)(torch.ones(64, dtype=torch.float64)))
