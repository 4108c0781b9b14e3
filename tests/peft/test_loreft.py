"""LoReFT against a plain loop over texts and places; where the places are, whatever pads, packs or generates."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftlab import LoReFT, PeftlabError
from peftlab import attach as attach_to_model
from peftlab.composition import composed
from peftlab.config import check
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import attach
from peftlab.peft.loreft import Intervention, LoReFTAdapter, _first_and_last
from peftlab.training.precision import into_precision
from peftlab.training.trunk import FrozenTrunk
from tests.backbones.tiny_backbones import tiny_config
from tests.library.models import Net, gpt2
from tests.peft.tiny import batch, tiny

BLOCKS = {"bert": "bert.encoder.layer", "gpt2": "transformer.h", "llama": "model.layers"}


def language_model(kind: str = "llama") -> Any:
    return tiny_config(kind).build(0, seed=0, head="own").eval()


def places_of(n: int, first: int, last: int) -> tuple[list[int], list[int]]:
    """The rule of pyreft 0.1.0 (get_intervention_locations), in words of one text: at most a half of it each."""
    first, last = min(first, n // 2), min(last, n // 2)
    return list(range(first)), list(range(n - last, n))


def plainly(model: nn.Module, blocks: str, adapter: Adapter, prompts: Sequence[Sequence[int]], **inputs: Any) -> Tensor:
    """Logits of a clean ``model`` whose blocks are edited place by place, by eq. 3; ``prompts``: places of each row."""
    method = adapter.strategy
    assert isinstance(method, LoReFT)
    state = {name: tensor.double() for name, tensor in adapter.state_dict().items()}
    handles = []
    for index, block in enumerate(model.get_submodule(blocks)):  # type: ignore[arg-type]
        if method.layers is not None and index not in method.layers:
            continue

        def edit(_: Any, __: Any, out: Any, index: int = index) -> Any:
            h = (out[0] if isinstance(out, tuple) else out).clone()
            for row, prompt in enumerate(prompts):
                first, last = places_of(len(prompt), method.first, method.last)
                for name, chosen in (("first", first), ("last", last)):
                    key = f"{blocks}.{index}.loreft.{'both' if method.tied else name}"
                    R, W, b = (state[f"{key}.{leaf}"] for leaf in ("rotation", "source.weight", "source.bias"))
                    for place in chosen:
                        one = h[row, prompt[place]].double()
                        h[row, prompt[place]] = (one + R.T @ (W @ one + b - R @ one)).float()
            return (h, *out[1:]) if isinstance(out, tuple) else h

        handles.append(block.register_forward_hook(edit))
    with torch.no_grad():
        logits: Tensor = model(**inputs).logits
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize(
    "fields", [{"first": 2, "last": 3}, {"first": 3, "last": 9, "tied": False, "layers": [1]}, {"first": 5, "last": 0}]
)
def test_it_computes_the_equation_at_its_places(kind: str, fields: dict[str, Any]) -> None:
    """On texts of 12, 11, 10 and 9 tokens, padded on the right; the second case has fewer than first + last."""
    backbone = tiny(kind)
    adapter = attach(backbone, LoReFT(rank=3, **fields), seed=1)
    assert adapter.num_parameters() == adapter.strategy.closed_form(tiny(kind))
    ids, mask = batch()
    prompts = [list(range(int(length))) for length in mask.sum(dim=1)]
    clean = tiny(kind).model
    expected = plainly(clean, BLOCKS[kind], adapter, prompts, input_ids=ids, attention_mask=mask)
    with torch.no_grad():
        torch.testing.assert_close(backbone(ids, mask), expected, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(expected, clean(input_ids=ids, attention_mask=mask).logits, atol=1e-3)
        with adapter.disabled():
            assert torch.equal(backbone(ids, mask), tiny(kind)(ids, mask))


@pytest.mark.parametrize(("n", "first", "last"), [(1, 2, 2), (2, 3, 0), (3, 0, 5), (5, 2, 3), (7, 5, 5), (9, 4, 1)])
def test_places_of_a_text_wherever_its_padding_is(n: int, first: int, last: int) -> None:
    for padding in (0, 3):
        for mask in (
            torch.tensor([[1] * n + [0] * padding]).bool(),
            torch.tensor([[0] * padding + [1] * n]).bool(),
        ):
            found = _first_and_last(mask, mask.long().cumsum(1) - 1, first, last)
            start = int(mask.long().argmax())
            for one, expected in zip(found, places_of(n, first, last), strict=True):
                assert one[0].nonzero().flatten().tolist() == [start + place for place in expected]


def test_of_a_language_model_the_prompt_ends_where_targets_begin() -> None:
    """The same by ``at``, as training asks, by the labels of a model of transformers, and by a plain loop."""
    backbone = language_model()
    adapter = attach(backbone, LoReFT(rank=3, first=2, last=2), seed=1)
    ids, mask = batch()
    ends = (5, 3, 9, 1)  # tokens of each prompt
    at = torch.stack(
        [
            (torch.arange(12) >= end - 1) & (torch.arange(12) < n - 1)
            for end, n in zip(ends, (12, 11, 10, 9), strict=True)
        ]
    )
    labels = torch.where(F.pad(at[:, :-1], (1, 0)), ids, -100)
    clean = language_model().model
    prompts = [list(range(end)) for end in ends]
    expected = plainly(clean, "model.layers", adapter, prompts, input_ids=ids, attention_mask=mask)
    with torch.no_grad():
        torch.testing.assert_close(backbone(ids, mask, at=at), expected[at], atol=1e-5, rtol=1e-4)
        theirs = copy.deepcopy(clean)
        attach_to_model(theirs, LoReFT(rank=3, first=2, last=2), seed=1)
        logits = theirs(ids, mask, labels=labels).logits
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


def test_packed_texts_have_places_of_their_own() -> None:
    backbone = language_model()
    attach(backbone, LoReFT(rank=3, first=2, last=3), seed=1)
    rows = [torch.arange(7, 16), torch.arange(20, 26), torch.arange(40, 52)]
    ends = (6, 1, 7)
    alone, asked = [], []
    for ids, end in zip(rows, ends, strict=True):
        at = (torch.arange(len(ids)) >= end - 1)[None]
        at[0, -1] = False
        asked.append(at[0])
        alone.append(backbone(ids[None], torch.ones(1, len(ids), dtype=torch.int64), at=at))
    padding = torch.zeros(4, dtype=torch.int64)
    ids = torch.cat([*rows, padding])[None]
    mask = torch.cat([torch.ones(27, dtype=torch.int64), padding])[None]
    positions = torch.cat([*(torch.arange(len(row)) for row in rows), padding])[None]
    together = backbone(ids, mask, at=torch.cat([*asked, padding.bool()])[None], position_ids=positions)
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_generation_edits_the_prompt_alone() -> None:
    """Batched and padded on the left, with a cache and without, through transformers' own generate, and by hand."""
    model = gpt2()
    clean = copy.deepcopy(model)
    adapter = attach_to_model(model, LoReFT(rank=3, first=2, last=2), seed=1)
    assert isinstance(adapter, LoReFTAdapter)
    prompts = [[7, 8, 9, 10, 11, 12], [20, 21], [33, 34, 35]]
    ids = torch.tensor([[0] * (6 - len(prompt)) + prompt for prompt in prompts])
    mask = (ids != 0).long()
    expected = []
    for prompt in prompts:
        row = list(prompt)
        for _ in range(5):
            place = list(range(len(prompt)))
            logits = plainly(clean, "transformer.h", adapter, [place], input_ids=torch.tensor([row]))
            row.append(int(logits[0, -1].argmax()))
        expected.append(row[len(prompt) :])
    how: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    for use_cache in (True, False):
        found = model.generate(input_ids=ids, attention_mask=mask, use_cache=use_cache, **how)
        assert found[:, 6:].tolist() == expected
        twin = copy.deepcopy(model)
        with torch.no_grad():
            twin.lm_head.weight.zero_()
        assert twin.generate(input_ids=ids, attention_mask=mask, use_cache=use_cache, **how)[:, 6:].tolist() != expected
    adapter.remove()
    plain = clean.generate(input_ids=ids, attention_mask=mask, **how)
    assert torch.equal(model.generate(input_ids=ids, attention_mask=mask, **how), plain)
    assert "generate" not in vars(model)


def test_rows_of_r_stay_orthonormal_in_training() -> None:
    backbone = tiny("bert").train()
    adapter = attach(backbone, LoReFT(rank=3, dropout=0.1), seed=1)
    edits = [module for module in backbone.model.modules() if isinstance(module, Intervention)]
    assert all(torch.allclose(edit.R(), edit.rotation, atol=1e-6) for edit in edits)
    before = [edit.rotation.detach().clone() for edit in edits]
    optimizer = torch.optim.AdamW(adapter.param_groups(0.05))
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(backbone(*batch()), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    for edit, was in zip(edits, before, strict=True):
        torch.testing.assert_close(edit.R() @ edit.R().T, torch.eye(3), atol=1e-5, rtol=0)
        assert not torch.allclose(edit.R(), was, atol=1e-2)
        plane, own = edit.R().T @ edit.R(), torch.linalg.pinv(edit.rotation) @ edit.rotation
        torch.testing.assert_close(plane, own, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("bert", {"rank": 33}, "peft.rank=33 is above the width of the model, 32"),
        ("bert", {"layers": [0, 2]}, "peft.layers has 2, and this bert has 2 blocks, 0 to 1"),
        ("t5", {}, "its text has two streams"),
        ("albert", {}, "peft=loreft: albert runs its 2 layers on 1 shared block"),
    ],
)
def test_where_it_cannot_work(kind: str, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(PeftlabError, match=said):
        attach(tiny(kind), LoReFT(**fields), seed=0)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_it_trains_in_other_types(precision: Any) -> None:
    """Where all floats have the type; no QR is there for 16 bits."""
    backbone = tiny("llama", dtype="bfloat16" if precision == "bf16-true" else "float32")
    adapter = attach(backbone, LoReFT(rank=2), seed=0)
    into_precision(backbone, precision)
    F.cross_entropy(backbone(*batch()), torch.tensor([0, 1, 2, 0])).backward()
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


def test_blocks_below_the_lowest_edit_are_frozen() -> None:
    """What ``backbone.cache_frozen`` computes once: never what an edit has made of a text."""
    ids, mask = batch()
    backbone = tiny("bert")
    trunk = FrozenTrunk(attach(backbone, LoReFT(layers=[1]), seed=0), (ids, mask))
    assert (trunk.count, trunk.kept) == (1, "tokens")
    with torch.no_grad(), trunk.given(trunk.compute(ids, mask)):
        found = backbone(ids, mask)
    torch.testing.assert_close(found, backbone(ids, mask), atol=1e-6, rtol=0)
    with pytest.raises(PeftlabError, match=r"trains 'bert\.encoder\.layer\.0\.loreft\.both\S+', and below it nothing"):
        FrozenTrunk(attach(tiny("bert"), LoReFT(), seed=0), (ids, mask))


def test_where_every_token_is_learned_there_is_no_prompt() -> None:
    words = ["backbone=tiny", "backbone.architecture.model_type=llama", "data=text", "data.train=x.jsonl"]
    for peft in (["peft=loreft"], ["peft=compose", "peft.methods=[{name: loreft}]"]):
        with pytest.raises(
            PeftlabError, match="works on prompts, and leaves what a model says alone: here every token"
        ):
            check(composed([*words, *peft]))
        check(composed(["data=instructions", *words[:2], "data.train=x.jsonl", *peft]))


def test_wrong_uses() -> None:
    with pytest.raises(PeftlabError, match=r"peft\.first=0 and peft\.last=0 leave no token"):
        LoReFT(first=0, last=0)
    with pytest.raises(PeftlabError, match="name one layer or more, and each once"):
        LoReFT(layers=[1, 1])
    with pytest.raises(PeftlabError, match="is no transformer that it knows"):
        attach_to_model(Net(), LoReFT())
    backbone = tiny("llama")
    adapter = attach(backbone, LoReFT(), seed=0)
    with pytest.raises(PeftlabError, match="cannot be merged: it edits what the model computes"):
        adapter.merge()
    mask = torch.ones(4, 1, 12, 12)
    with pytest.raises(PeftlabError, match=r"needs an attention_mask of one number a token"):
        backbone.model(input_ids=batch()[0], attention_mask=mask)
