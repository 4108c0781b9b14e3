"""Several methods on one backbone: each works as alone, together they are what was asked for, or are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from peftlab.composition import checked
from peftlab.config import from_plain
from peftlab.errors import PeftlabError
from peftlab.peft import base
from peftlab.peft.adapter import Adapter
from peftlab.peft.adapters import Adapters
from peftlab.peft.base import PEFTStrategy, Selection, attach, methods
from peftlab.peft.compose import Compose, ComposedSelection
from peftlab.peft.delta import Delta, NotMergeable
from peftlab.peft.low_rank import LowRank
from peftlab.peft.rank_budget import Prunable, prunable, ranks
from peftlab.peft.skeleton import skeleton
from peftlab.records.identity import run_key
from peftlab.runs.counted import count_parameters
from tests.backbones.tiny_backbones import batch as texts
from tests.conformance.cells import examine
from tests.conftest import TINY, Peftlab, run_folder
from tests.peft.tiny import batch, tiny

KNOWN = dict(methods())

MAM: list[Any] = [{"name": "prefix_tuning", "length": 5}, {"name": "parallel_adapter"}]
LORA_BITFIT: list[Any] = [{"name": "lora", "rank": 4}, "bitfit"]
THREE: list[Any] = [
    {"name": "ia3", "targets": ["key"], "feedforward_targets": []},
    {"name": "lora", "targets": ["query", "value"], "bias": "lora_only", "lr_ratio": 4.0},
    "layernorm",
    {"name": "prompt_tuning", "length": 4},
]
TWO_BUDGETS: list[Any] = [
    {"name": "adalora", "targets": ["query"], "rank": 2, "initial_rank": 4, "interval": 1},
    {"name": "dynamic_dora", "targets": ["ffn_up"], "rank": 1, "initial_rank": 3, "interval": 1},
    {"name": "vera", "targets": ["value"]},
]
MERGEABLE: list[Any] = [
    {"name": "lora", "targets": ["query"], "rank": 2},
    {"name": "lora", "targets": ["ffn_up"], "rank": 3, "alpha": 3.0},
    {"name": "dora", "targets": ["value"]},
    {"name": "ia3", "targets": ["key"]},
]
HF_LORA: dict[str, Any] = {"r": 2, "target_modules": ["query"]}
LOHA: dict[str, Any] = {"name": "hf_peft", "peft_type": "LOHA", "options": {"r": 2, "target_modules": ["value"]}}
SLICES: list[Any] = [
    {"name": "lora", "targets": ["query"]},
    {"name": "ia3", "targets": ["value"], "feedforward_targets": []},
]
WITH_HF_PEFT: list[Any] = [{"name": "lora", "targets": ["query"], "rank": 2}, LOHA, "bitfit"]


@pytest.mark.parametrize(
    ("entries", "kind", "weights"),
    [
        (MAM, "bert", "fp32"),
        (MAM, "llama", "nf4"),
        (LORA_BITFIT, "bert", "fp32"),
        (LORA_BITFIT, "roberta", "nf4"),
        (LORA_BITFIT, "gpt2", "fp32"),
        (["dora", "bitfit"], "gpt2", "fp32"),
        ([*LORA_BITFIT, {"name": "parallel_adapter", "targets": ["ffn"]}], "gpt2", "nf4"),
        ([{"name": "lora", "targets": ["ffn_up"]}, {"name": "parallel_adapter"}, "prefix_tuning"], "roberta", "fp32"),
        (THREE, "bert", "fp32"),
        (THREE, "bert", "nf4"),
        (TWO_BUDGETS, "deberta-v2", "fp32"),
        (TWO_BUDGETS, "llama", "fp32"),
        (MERGEABLE, "bert", "fp32"),
        (MERGEABLE, "llama", "nf4"),
        (["head", "lora"], "modernbert", "fp32"),
        (WITH_HF_PEFT, "bert", "fp32"),
    ],
)
def test_what_holds_for_one_method_holds_for_several(entries: list[Any], kind: str, weights: str) -> None:
    """Identity, counts, gradients, saving, resuming, merging …: every check of the conformance matrix."""
    outcome = examine(lambda: Compose(methods=entries), kind, weights)
    assert outcome.refusal is None
    assert not outcome.failures, "\n".join(outcome.failures)


def together(entries: list[Any], kind: str = "bert", *, seed: int = 0, **more: Any) -> Adapters:
    adapter = attach(tiny(kind, **more), Compose(methods=entries), seed=seed)
    assert isinstance(adapter, Adapters)
    return adapter


TEXTS = ["short", "a text that is longer"]


def shaken(adapter: Adapter, seed: int = 1) -> Adapter:
    """The adapter with other numbers in all that trains, the same under the same names."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(adapter.named_parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return adapter


def short(value: Any) -> str:
    """Methods of a case, by their names."""
    if not isinstance(value, list):
        return str(value)
    return "+".join(entry if isinstance(entry, str) else entry["name"] for entry in value)


def types(backbone: Any) -> dict[str, type]:
    return {name: type(module) for name, module in backbone.named_modules()}


def hooks(backbone: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.modules())


@pytest.mark.parametrize("reverse", [False, True])
def test_lora_and_bitfit_are_what_they_are_done_by_hand(reverse: bool) -> None:
    """Logits and gradients of LoRA attached alone, with the biases set trainable afterwards."""
    adapter = together(LORA_BITFIT[::-1] if reverse else LORA_BITFIT)
    strategy, backbone = adapter.strategy, adapter.backbone
    by_hand = tiny("bert")
    attach(by_hand, KNOWN["lora"](rank=4), seed=0)  # type: ignore[call-arg]
    for name, parameter in by_hand.model.named_parameters():
        if name.endswith("bias"):
            parameter.requires_grad_(True)
    ids, mask = batch()
    ours, theirs = dict(backbone.named_parameters()), dict(by_hand.named_parameters())
    assert {n for n, p in ours.items() if p.requires_grad} == {n for n, p in theirs.items() if p.requires_grad}
    for one, other in ((backbone, ours), (by_hand, theirs)):
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for name in sorted(other):
                if other[name].requires_grad:
                    other[name].normal_(std=0.2, generator=generator)
        one(ids, mask).square().sum().backward()
    assert torch.equal(backbone(ids, mask), by_hand(ids, mask))
    for name, parameter in ours.items():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-6, rtol=0)
    assert strategy.supports.identity_at_start
    assert strategy.supports.mergeable, "BitFit adds nothing that would have to be merged"
    before = backbone(ids, mask)
    adapter.merge()
    torch.testing.assert_close(backbone(ids, mask), before, atol=1e-5, rtol=0)
    adapter.unmerge()
    assert torch.equal(backbone(ids, mask), before)
    nothing = together(["bitfit", {"name": "layernorm", "biases": False}])
    with pytest.raises(PeftlabError, match="there is nothing to merge"):
        nothing.merge()


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_mam_computes_what_the_two_methods_one_after_the_other_compute(kind: str) -> None:
    adapter = together(MAM, kind)
    by_hand = tiny(kind)
    for name, fields in (("prefix_tuning", {"length": 5}), ("parallel_adapter", {})):
        strategy = KNOWN[name](**fields)  # type: ignore[arg-type]
        strategy.build(strategy.select(by_hand), seed=0)
    state = {name: torch.randn(p.shape) * 0.1 for name, p in adapter.named_parameters()}
    for model in (adapter.model, by_hand.model):
        missing = model.load_state_dict(state, strict=False)
        assert not missing.unexpected_keys
    assert torch.equal(adapter.backbone(*batch()), by_hand(*batch()))


@pytest.mark.parametrize("entries", [MAM, THREE, TWO_BUDGETS], ids=["MAM", "three", "budgets"])
def test_each_starts_as_it_does_alone(entries: list[Any]) -> None:
    adapter = together(entries, seed=3)
    found = dict(adapter.named_parameters())
    total, names = 0, []
    for strategy, part in zip(Compose(methods=entries).parts, adapter.parts, strict=True):
        alone = attach(tiny("bert"), strategy, seed=3)
        assert [name for name, _ in alone.named_parameters()] == [name for name, _ in part.named_parameters()]
        for name, parameter in alone.named_parameters():
            assert torch.equal(found[name], parameter), name
            total += parameter.numel()
            names.append(name)
    assert sorted(names) == sorted(found)
    assert total == count_parameters(adapter)["trainable_without_head"]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (["lora", "dora"], ["both change 'bert.encoder.layer.0.attention.self.query'", "(and 3 more)", "targets"]),
        (["lora", "lora"], ["peft.methods[0] (lora) and peft.methods[1] (lora) both change"]),
        (["bitfit", "layernorm"], ["both train 'bert.embeddings.LayerNorm.bias'"]),
        ([{"name": "lora", "bias": "all"}, "bitfit"], ["both train", ".bias'"]),
        (["full", "dora"], ["(full) trains", "(dora) adapts as a frozen weight", "Keep one of the two methods."]),
        (
            ["dora", {"name": "last_layers", "layers": 1}],
            ["(last_layers) trains", "(dora) adapts as a frozen weight", "Take them out of peft.methods[0].targets"],
        ),
        (
            ["prompt_tuning", "p_tuning"],
            ["both change 'bert.embeddings.word_embeddings'. Keep one of the two methods."],
        ),
        (
            [{"name": "lora", "targets": ["query", "embedding"]}, "prompt_tuning"],
            ["both change 'bert.embeddings.word_embeddings'. Take it out of peft.methods[0].targets"],
        ),
        (["prefix_tuning", "p_tuning_v2"], ["both add 'key_value_prefix'"]),
        (
            [{"name": "vera", "targets": ["query"]}, {"name": "vera", "targets": ["value"]}],
            ["both add 'vera_projection'"],
        ),
        (["bitfit", {"name": "lora", "targets": ["qurey"]}], ["peft.methods[1].targets: 'qurey'", "'query'"]),
        ([{"name": "lora", "rank": 64}], ["peft.methods[0].rank=64 is above", "peft.methods[0].rank_pattern"]),
    ],
)
def test_methods_that_get_in_each_others_way_are_refused(entries: list[Any], said: list[str]) -> None:
    backbone = tiny("bert")
    before = types(backbone)
    with pytest.raises(PeftlabError) as error:
        attach(backbone, Compose(methods=entries), seed=0)
    for part in said:
        assert part in str(error.value)
    assert str(error.value).count("peft.methods[0].rank=64") <= 1
    assert "): peft.methods" not in str(error.value), "the place is said once"
    assert types(backbone) == before, "nothing may have been changed"


@pytest.mark.parametrize("more", [{}, {"dtype": "bfloat16"}, {"quantize": "nf4"}], ids=str)
def test_two_methods_on_two_slices_of_a_fused_projection(more: dict[str, Any]) -> None:
    """Each computes on its rows what it computes there alone, and the key's are the frozen layer's own."""
    place, query, value = "transformer.h.0.attn.c_attn", slice(0, 32), slice(64, 96)
    both = together(SLICES, "gpt2", **more)
    shaken(both)
    with torch.no_grad():
        both.model.get_submodule(place).base.bias.normal_()
    own = dict(both.named_parameters())
    layer = both.model.get_submodule(place)
    assert list(layer.deltas) == ["query", "value"]
    x = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(2))
    x = x.to(torch.bfloat16 if "dtype" in more else torch.float32)
    out, plain = layer(x), layer.base(x)
    assert torch.equal(out[..., 32:64], plain[..., 32:64])
    for part, rows, others in zip(both.parts, (query, value), (slice(32, None), slice(0, 64)), strict=True):
        alone = attach(tiny("gpt2", **more), part.strategy, seed=0)
        alone.load_state_dict({name: own.get(name, t) for name, t in alone.state_dict().items()})
        single = alone.model.get_submodule(place)
        with torch.no_grad():
            single.base.bias.copy_(layer.base.bias)
        found = single(x)
        assert torch.equal(out[..., rows], found[..., rows])
        assert torch.equal(found[..., others], plain[..., others]), "alone it leaves the rest"
        assert not torch.allclose(found[..., rows], plain[..., rows], atol=1e-2), "it must matter"
    both.backbone(*batch()).float().square().sum().backward()
    for name, parameter in own.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_methods_on_slices_of_one_layer_merge_together_and_one_by_one() -> None:
    both = together(SLICES, "gpt2")
    shaken(both)
    backbone, ids = both.backbone.eval(), batch()
    weights = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    before = backbone(*ids)
    for merging in (both, *both.parts):
        merging.merge()
        assert any(not torch.equal(weights[name], tensor) for name, tensor in backbone.state_dict().items())
        torch.testing.assert_close(backbone(*ids), before, atol=1e-5, rtol=0)
        merging.unmerge()
        assert all(torch.equal(weights[name], tensor) for name, tensor in backbone.state_dict().items())
        assert torch.equal(backbone(*ids), before)
    updates = {update.name: update for update in both.weight_updates() or ()}
    assert len(updates) == 4, "two blocks with two slices each"
    assert all(update.weight.shape == (32, 32) for update in updates.values())
    one, other = both.parts
    one.merge()
    other.merge()
    one.unmerge()
    torch.testing.assert_close(backbone(*ids), before, atol=1e-5, rtol=0)
    one.remove()
    other.unmerge()
    alone = attach(tiny("gpt2"), other.strategy, seed=0)
    alone.load_state_dict(other.state_dict() | {n: p for n, p in backbone.model.named_parameters() if "score" in n})
    assert torch.equal(backbone(*ids), alone.backbone.eval()(*ids))


def test_a_merged_part_is_taken_out_and_the_other_merges_and_comes_back() -> None:
    """What the first has folded stays in the weight for good, whatever the other does on the same layer."""
    both = together(SLICES, "gpt2")
    shaken(both)
    backbone, ids = both.backbone.eval(), batch()
    before = backbone(*ids)
    one, other = both.parts
    both.merge()
    one.remove()
    torch.testing.assert_close(backbone(*ids), before, atol=1e-5, rtol=0)
    for call in (other.unmerge, other.merge, other.unmerge, other.merge, other.remove):
        call()
        torch.testing.assert_close(backbone(*ids), before, atol=1e-5, rtol=0)
    assert types(backbone) == types(tiny("gpt2"))


def test_slices_merge_without_a_way_back() -> None:
    """As an export does, which has no use for a copy of the weights: the merged model is a plain one."""
    both = together(SLICES, "gpt2")
    shaken(both)
    backbone, ids = both.backbone.eval(), batch()
    before = backbone(*ids)
    both.merge_and_remove()
    torch.testing.assert_close(backbone(*ids), before, atol=1e-5, rtol=0)
    assert types(backbone) == types(tiny("gpt2"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_bias_that_trains_is_merged_with_the_layer(reverse: bool, dtype: str) -> None:
    """IA3 scales the bias with the output; in 16 bits the bias that trains is a float32 copy."""
    entries = ["bitfit", {"name": "ia3", "targets": ["value"], "feedforward_targets": []}]
    adapter = together(entries[::-1] if reverse else entries, dtype=dtype)
    shaken(adapter)
    layer = adapter.model.get_submodule("bert.encoder.layer.0.attention.self.value")
    nothing = torch.zeros(1, 32, dtype=getattr(torch, dtype))
    state = {name: tensor.clone() for name, tensor in adapter.backbone.state_dict().items()}
    before = layer(nothing)
    assert not torch.allclose(before, layer.base(nothing), atol=1e-2)
    adapter.merge()
    torch.testing.assert_close(layer(nothing), before)
    adapter.unmerge()
    assert all(torch.equal(state[name], tensor) for name, tensor in adapter.backbone.state_dict().items())


@pytest.mark.parametrize(
    "others",
    [
        {"name": "ia3", "targets": ["query"], "feedforward_targets": []},
        {"name": "ia3", "targets": ["c_attn"], "feedforward_targets": []},
        {"name": "ia3", "targets": [], "feedforward_targets": ["c_attn"]},
        {"name": "parallel_adapter", "targets": ["value", "query"]},
        {"name": "hf_peft", "peft_type": "LORA", "options": {"target_modules": ["c_attn"]}},
    ],
    ids=lambda entry: f"{entry['name']} {entry.get('targets', '')}",
)
@pytest.mark.parametrize("reverse", [False, True])
def test_a_conflict_on_a_slice_of_a_fused_projection_is_refused(others: dict[str, Any], reverse: bool) -> None:
    entries = [{"name": "lora", "targets": ["query"]}, others]
    with pytest.raises(PeftlabError, match=r"both change 'transformer\.h\.0\.attn\.c_attn'"):
        together(entries[::-1] if reverse else entries, "gpt2")
    together(SLICES, "bert")


def test_a_quantised_backbone_is_refused_if_one_method_refuses_it() -> None:
    with pytest.raises(PeftlabError, match=r"backbone\.quantize=nf4"):
        together([{"name": "last_layers", "layers": 1}, {"name": "prompt_tuning"}], quantize="nf4")
    with pytest.raises(PeftlabError, match=r"peft\.methods\[1\] \(parameters\).*stored in nf4"):
        together(["prompt_tuning", "parameters"], quantize="nf4")


def test_each_method_keeps_its_own_groups() -> None:
    """LoRA+'s faster matrices, and everything once."""
    adapter = together(THREE)
    groups = adapter.param_groups(lr=0.01)
    ours = [id(p) for group in groups for p in group["params"]]
    assert sorted(ours) == sorted(id(p) for p in adapter.backbone.parameters() if p.requires_grad)
    fast = [delta.lora_B for delta in adapter.deltas() if isinstance(delta, LowRank)]
    (of_fast,) = (group for group in groups if group["lr"] == 0.04)
    assert {id(p) for p in of_fast["params"]} == {id(p) for p in fast}
    assert len(fast) == 4


@pytest.mark.parametrize(
    "entries",
    [MAM, THREE, TWO_BUDGETS, MERGEABLE, WITH_HF_PEFT, [LOHA, {**LOHA, "peft_type": "LORA", "options": HF_LORA}]],
    ids=["MAM", "three", "budgets", "mergeable", "beside HF peft", "HF peft twice"],
)
def test_each_part_holds_its_own_and_nothing_of_the_others(entries: list[Any]) -> None:
    """Deltas, tensors of the backbone, modules, frozen state: each is of one part, and all of them together are all."""
    adapter = together(entries)
    assert [part.strategy for part in adapter.parts] == adapter.strategy.parts  # type: ignore[attr-defined]
    assert adapter.methods() == [part.strategy.name for part in adapter.parts]
    for what in (
        lambda one: list(map(id, one.deltas())),
        lambda one: one.own_names(),
        lambda one: list(one.modules()),
        lambda one: [name for name, _ in one.named_parameters()],
        lambda one: list(map(id, one.parameters())),
        lambda one: list(one.frozen_state()),
    ):
        of_parts = [found for part in adapter.parts for found in what(part)]
        assert len(set(of_parts)) == len(of_parts), "of two parts"
        assert sorted(of_parts) == sorted(what(adapter))
    placed = {id(delta) for delta in adapter.deltas()}
    assert placed == {id(module) for module in adapter.backbone.modules() if isinstance(module, Delta)}
    assert sum(part.num_added() for part in adapter.parts) == adapter.num_added()
    head = {name for name, _ in adapter.backbone.head_parameters()}
    assert sum(part.num_parameters() for part in adapter.parts) == adapter.num_parameters()
    assert {name for name, _ in adapter.named_parameters(beside=True)} - dict(adapter.named_parameters()).keys() == head


def test_a_part_knows_the_ranks_of_its_own_deltas_alone() -> None:
    adapter = together(TWO_BUDGETS)
    assert [{delta.rank for delta in prunable(part)} for part in adapter.parts] == [{4}, {3}, set()]
    layers = [{placed.name.rpartition(".")[2] for placed in part.placed()} for part in adapter.parts]
    assert layers == [{"query"}, {"dense"}, {"value"}]
    assert ranks(adapter) == ranks(adapter.parts[0]) | ranks(adapter.parts[1])
    assert sum(isinstance(module, Prunable) for module in adapter.backbone.modules()) == len(prunable(adapter)) == 4


def test_budgets_are_kept_apart() -> None:
    """AdaLoRA's two queries end with 2 · 2 triplets, the other's two layers with 2 · 1 components."""
    adapter = together(TWO_BUDGETS)
    optimizer = torch.optim.AdamW(adapter.param_groups(lr=0.01))
    for step in range(8):
        optimizer.zero_grad()
        loss = adapter.backbone(*batch()).square().mean()
        penalty = adapter.regularization(step + 1, 8)
        assert penalty is not None
        (loss + penalty).backward()
        optimizer.step()
        adapter.on_step(step + 1, 8)
    kept = {4: 0, 3: 0}
    for delta in prunable(adapter):
        kept[delta.rank] += int((delta.diagonal != 0).sum())
    assert kept == {4: 4, 3: 2}
    assert [sum(ranks(part).values()) for part in adapter.parts] == [4, 2, 0]


def test_the_terms_of_the_loss_are_added() -> None:
    adapter = together(TWO_BUDGETS)
    terms = []
    for part in adapter.parts[:2]:
        terms.append(attach(tiny("bert"), part.strategy, seed=0).regularization(1, 8))
    expected = terms[0] + terms[1]  # type: ignore[operator]
    torch.testing.assert_close(adapter.regularization(1, 8), expected)
    assert together(LORA_BITFIT).regularization(1, 8) is None


@pytest.mark.parametrize("where", ["a part", "its last delta"])
def test_a_refused_merge_undoes_what_was_merged(where: str) -> None:
    adapter = together(MERGEABLE)
    backbone = adapter.backbone
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1)
    before = backbone(*batch())
    weights = {name: p.clone() for name, p in backbone.named_parameters()}

    def refuse(*_: object, **__: object) -> None:
        raise (PeftlabError if where == "a part" else NotMergeable)("not this one")

    if where == "a part":
        adapter.parts[-1].merge = refuse  # type: ignore[method-assign]
    else:
        adapter.parts[-1].deltas()[-1].folded = refuse  # type: ignore[assignment,method-assign]
    with pytest.raises(PeftlabError, match="not this one"):
        adapter.merge()
    assert torch.equal(backbone(*batch()), before)
    for name, parameter in backbone.named_parameters():
        assert torch.equal(parameter, weights[name]), name
    with pytest.raises(PeftlabError, match="'prefix_tuning' cannot"):
        together(MAM).merge()


def test_what_it_supports_is_what_all_of_its_methods_support() -> None:
    assert Compose().supports == Compose.supports, "the table of methods shows that of the default"
    merging = Compose(methods=MERGEABLE).supports
    assert (merging.mergeable, merging.identity_at_start, merging.quantized) == (True, True, True)
    mixed = Compose(methods=[*MERGEABLE, "last_layers", "prompt_tuning"]).supports
    assert (mixed.mergeable, mixed.identity_at_start, mixed.quantized) == (False, False, False)
    assert Compose(methods=[{"name": "prompt_tuning", "length": 7}, "lora"]).extra_tokens() == 7


def named(selection: Selection) -> tuple[Any, ...]:
    """What a selection says, by names."""
    targets = [(target.name, target.role, target.output_slice) for target in selection.targets]
    return targets, list(selection.trains), list(selection.slots), selection.when


@pytest.mark.parametrize(
    ("entries", "kind"),
    [
        (MAM, "bert"), (THREE, "bert"), (TWO_BUDGETS, "bert"), (MERGEABLE, "bert"), (LORA_BITFIT, "gpt2"),
        (SLICES, "gpt2"), (WITH_HF_PEFT, "bert"), (["prompt_tuning", "lora", "prefix_tuning"], "llama"),
    ],
)  # fmt: skip
def test_a_method_sees_the_model_as_if_it_were_alone(entries: list[Any], kind: str) -> None:
    """Every part selects on the untouched model; nothing of it is changed before all have selected."""
    events: list[str] = []
    seen: list[tuple[Any, ...]] = []

    def watched(part: PEFTStrategy) -> PEFTStrategy:
        class Watched(type(part)):  # type: ignore[misc]
            def select(self, backbone: Any) -> Selection:
                events.append("select")
                state = backbone.state_dict(keep_vars=True)
                seen.append((types(backbone), {name: id(t) for name, t in state.items()}, hooks(backbone)))
                return super().select(backbone)

            def build(self, selection: Selection, **more: Any) -> Adapter:
                events.append("build")
                return super().build(selection, **more)

        part.__class__ = Watched
        return part

    strategy, backbone = Compose(methods=entries), tiny(kind)
    alone = [named(part.select(tiny(kind))) for part in strategy.parts]
    state = {name: id(t) for name, t in backbone.state_dict(keep_vars=True).items()}
    untouched = types(backbone), state, hooks(backbone)
    strategy.parts = [watched(part) for part in strategy.parts]
    selection = strategy.select(backbone)
    assert isinstance(selection, ComposedSelection)
    assert [named(one) for one in selection.parts] == alone
    assert all(target.module is backbone.model.get_submodule(target.name) for target in selection.targets)
    targets, trains, slots, _ = named(selection)
    assert (targets, trains, slots) == tuple([x for one in alone for x in one[index]] for index in range(3))
    strategy.build(selection, seed=0)
    assert events == ["select"] * len(entries) + ["build"] * len(entries)
    assert seen == [untouched] * len(entries)


# -- the adapter of several methods as one thing -------------------------------------------------------


BIASES_AND_WRAPPERS: list[list[Any]] = [
    ["bitfit", "lora"],
    ["bitfit", {"name": "ia3", "targets": ["key"]}, {"name": "houlsby", "targets": ["attention_output"]}],
    ["bitfit", "dora", "prompt_tuning"],
    ["bitfit", {"name": "parallel_adapter", "targets": ["ffn", "query"]}],
    [{"name": "lora", "targets": ["query"], "bias": "all"}, {"name": "vera", "targets": ["value"]}],
    ["layernorm", "lora", "prompt_tuning"],
    [{"name": "last_layers", "layers": 1}, {"name": "lora", "targets": [r".*layer\.0\.attention.*"]}, "prompt_tuning"],
    ["bitfit", {"name": "lora", "targets": ["query"]}, LOHA],
]


@pytest.mark.parametrize(
    ("entries", "more"),
    [
        *((entries, more) for entries in BIASES_AND_WRAPPERS for more in ({}, {"dtype": "bfloat16"})),
        *((entries, {"quantize": "nf4"}) for entries in BIASES_AND_WRAPPERS[:-2]),
    ],
    ids=short,
)
def test_the_order_of_the_methods_changes_no_name(entries: list[Any], more: dict[str, Any]) -> None:
    """Whichever came first, the layer's delta or its bias that trains: each loads what the other saved."""
    one, other = together(entries, **more), together(entries[::-1], seed=5, **more)
    names = [name for name, _ in one.named_parameters(beside=True)]
    assert names == [name for name, _ in other.named_parameters(beside=True)]
    assert one.tensors().keys() == other.tensors().keys()
    assert not any("base" in name or "parametrizations" in name for name in one.tensors())
    plain = dict(tiny("bert").model.named_parameters())
    assert {name for name in names if "deltas" not in name and name in plain} == {
        *one.own_names(),
        *(name for name, _ in one.backbone.head_parameters()),
    }
    shaken(one)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.backbone.eval()(*batch()), other.backbone.eval()(*batch()))


REMOVABLE: list[tuple[list[Any], str]] = [
    (MAM, "bert"),
    (MAM, "gpt2"),
    (TWO_BUDGETS, "llama"),
    (MERGEABLE, "bert"),
    (SLICES, "gpt2"),
    ([{"name": "lora", "targets": ["key"]}, LOHA, {**LOHA, "peft_type": "LORA", "options": HF_LORA}], "bert"),
    (["head", "lora"], "bert"),
    (["prompt_tuning", {"name": "lora", "targets": ["query", "ffn_up"]}, "parallel_adapter", "prefix_tuning"], "t5"),
    (["lora", "prompt_tuning"], "albert"),
]


@torch.no_grad()  # attention kernels differ with what needs a gradient
@pytest.mark.parametrize(("entries", "kind"), REMOVABLE, ids=short)
def test_switched_off_together_it_is_the_backbone(entries: list[Any], kind: str) -> None:
    adapter, plain = together(entries, kind), tiny(kind)
    backbone, ids = adapter.backbone, texts(adapter.backbone, TEXTS)
    shaken(adapter)
    before, expected = backbone(*ids), plain(*ids)
    trains = [name for name, p in backbone.named_parameters() if p.requires_grad]
    assert not torch.equal(before, expected)
    with adapter.disabled():
        assert torch.equal(backbone(*ids), expected)
        with adapter.disabled():
            assert torch.equal(backbone(*ids), expected)
    assert torch.equal(backbone(*ids), before)
    with pytest.raises(RuntimeError, match="on its way"), adapter.disabled():
        raise RuntimeError("on its way")
    assert torch.equal(backbone(*ids), before)
    assert trains == [name for name, p in backbone.named_parameters() if p.requires_grad]
    if adapter.strategy.supports.mergeable:
        adapter.merge()
        merged = backbone(*ids)
        torch.testing.assert_close(merged, before, atol=1e-5, rtol=0)
        with adapter.disabled():
            assert torch.equal(backbone(*ids), expected)
        assert torch.equal(backbone(*ids), merged)
        adapter.unmerge()
        assert torch.equal(backbone(*ids), before)


@torch.no_grad()  # as above
@pytest.mark.parametrize(("entries", "kind"), REMOVABLE, ids=short)
def test_one_part_is_switched_off_and_the_others_stay(entries: list[Any], kind: str) -> None:
    adapter = together(entries, kind)
    ids = texts(adapter.backbone, TEXTS)
    shaken(adapter)
    before = adapter.backbone(*ids)
    for part in adapter.parts:
        if part.num_added():
            with part.disabled():
                assert not torch.equal(adapter.backbone(*ids), before)
            assert torch.equal(adapter.backbone(*ids), before)


@torch.no_grad()  # as above
@pytest.mark.parametrize(("entries", "kind"), REMOVABLE, ids=short)
def test_taken_out_it_leaves_the_backbone(entries: list[Any], kind: str) -> None:
    adapter, plain = together(entries, kind), tiny(kind)
    backbone, ids = adapter.backbone, texts(adapter.backbone, TEXTS)
    shaken(adapter)
    assert not torch.equal(backbone(*ids), plain(*ids))
    adapter.remove()
    assert types(backbone) == types(plain)
    assert hooks(backbone) == hooks(plain)
    state = plain.state_dict()
    assert backbone.state_dict().keys() == state.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in backbone.state_dict().items())
    assert torch.equal(backbone(*ids), plain(*ids))
    assert not adapter.placed()
    assert not adapter.modules()
    assert not list(adapter.named_parameters())
    again, fresh = attach(backbone, Compose(methods=entries), seed=2), together(entries, kind, seed=2)
    assert [name for name, _ in again.named_parameters()] == [name for name, _ in fresh.named_parameters()]
    assert torch.equal(backbone(*ids), fresh.backbone(*ids))


def test_one_part_is_taken_out_and_the_others_stay() -> None:
    adapter = together([*MERGEABLE, "bitfit", "prompt_tuning"])
    shaken(adapter)
    rest = together([*MERGEABLE[1:], "bitfit", "prompt_tuning"])
    adapter.parts[0].remove()
    state = adapter.state_dict()
    assert state.keys() == rest.state_dict().keys()
    rest.load_state_dict(state)
    assert torch.equal(adapter.backbone(*batch()), rest.backbone(*batch()))


def test_what_trains_of_the_backbone_cannot_be_switched_off() -> None:
    for entries, said in (
        (LORA_BITFIT, r"peft=compose trains the backbone's own '.*bias' \(and 17 more\) beside what it adds"),
        (WITH_HF_PEFT, "beside what it adds"),
        (["prompt_tuning", "bitfit"], "beside what it adds"),
        (["head"], "there is no adapter to switch off"),
        (["head", "bitfit"], "there is no adapter to switch off"),
    ):
        adapter = together(entries)
        shaken(adapter)
        before = adapter.backbone(*batch())
        with pytest.raises(PeftlabError, match=said), adapter.disabled():
            pass
        assert torch.equal(adapter.backbone(*batch()), before), "a refusal leaves all of them on"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_hf_peft_beside_methods_of_peftlab(order: tuple[int, ...]) -> None:
    """LoHa on the values, LoRA on the queries, the biases: everything once, and saved, loaded and merged as one."""
    adapter = together([WITH_HF_PEFT[index] for index in order])
    lora, loha, bitfit = (adapter.parts[order.index(index)] for index in range(3))
    names = [{name for name, _ in part.named_parameters()} for part in (lora, loha, bitfit)]
    assert all(".query.deltas.all.lora_" in name for name in names[0])
    assert all(".value.hada_" in name for name in names[1])
    assert names[2] == {n for n, _ in tiny("bert").model.named_parameters() if n.endswith("bias")} - {"classifier.bias"}
    parameters = [set(map(id, part.parameters())) for part in (lora, loha, bitfit)]
    assert [len(found) for found in parameters] == [4, 8, 18]
    assert len(set.union(*parameters)) == 4 + 8 + 18, "disjoint"
    everything = {id(p) for p in adapter.backbone.parameters() if p.requires_grad}
    grouped = [id(p) for group in adapter.param_groups(0.01) for p in group["params"]]
    assert len(grouped) == len(everything) == 4 + 8 + 18 + 2, "the head's weight and bias as well"
    assert set(grouped) == everything

    backbone, ids = adapter.backbone.eval(), batch()
    optimizer = torch.optim.AdamW(adapter.param_groups(0.02))
    for _ in range(3):
        optimizer.zero_grad()
        backbone(*ids).square().sum().backward()
        optimizer.step()
    before = backbone(*ids)
    other = together(WITH_HF_PEFT, seed=9)
    other.load_state_dict(adapter.state_dict())
    assert torch.equal(other.backbone.eval()(*ids), before)
    weights = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    assert len(list(adapter.weight_updates() or ())) == 4
    adapter.merge()
    torch.testing.assert_close(backbone(*ids), before, atol=1e-5, rtol=0)
    changed = {name for name, tensor in backbone.state_dict().items() if not torch.equal(tensor, weights[name])}
    assert len(changed) == 4, "the weights of two queries and two values"
    adapter.unmerge()
    assert all(torch.equal(weights[name], tensor) for name, tensor in backbone.state_dict().items())
    assert torch.equal(backbone(*ids), before)


@pytest.mark.parametrize("reverse", [False, True])
def test_biases_that_hf_peft_trains_train_beside_its_other_layers(reverse: bool) -> None:
    """HF peft leaves frozen what was frozen, where a second of its methods comes."""
    biases = {**LOHA, "peft_type": "LORA", "options": HF_LORA | {"bias": "all"}}
    adapter = together([LOHA, biases][:: -1 if reverse else 1])
    assert sorted(len(part.parameters()) for part in adapter.parts) == [8, 4 + 18]
    assert sum(len(group["params"]) for group in adapter.param_groups(0.01)) == 8 + 4 + 18 + 2


def test_a_skeleton_has_the_shapes_and_no_values() -> None:
    for kind, quantized in (("bert", None), ("gpt2", "nf4"), ("llama", "int8")):
        real = tiny(kind, quantize=quantized)
        twin = skeleton(real)
        assert {p.device.type for p in (*twin.parameters(), *twin.buffers())} == {"meta"}
        assert {p.device.type for p in real.parameters()} == {"cpu"}
        plain = dict(tiny(kind).named_parameters())
        for name, parameter in twin.named_parameters():
            expected = plain[name].shape
            assert parameter.shape in (expected, expected[::-1]), name  # Conv1D is quantised as a Linear


# -- the config ----------------------------------------------------------------------------------------


SHIPPED = [name for name, cls in KNOWN.items() if cls.__module__.startswith("peftlab.") and name != "compose"]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_name_is_that_of_its_method(name: str) -> None:
    (part,) = Compose(methods=[name]).parts
    assert type(part) is KNOWN[name]
    assert part == KNOWN[name](), "the file in conf/peft says the defaults"


def test_the_config_says_every_field_of_every_method_and_comes_back() -> None:
    config = checked(["peft=compose", "peft.methods=[{name: lora, rank: 4},bitfit]"])
    plain = config.plain()["peft"]["methods"]
    assert plain[0]["rank"] == 4
    assert plain[0]["targets"] == ["query", "value"]
    assert plain[1] == {"name": "bitfit", "targets": None}
    again = from_plain(yaml.safe_load(yaml.safe_dump(config.plain())))
    assert again.plain() == config.plain()
    assert run_key(again) == run_key(config)
    assert isinstance(again.peft, Compose)
    assert [part.name for part in again.peft.parts] == ["lora", "bitfit"]


def test_the_same_methods_are_the_same_run() -> None:
    def key(entries: str) -> str:
        return run_key(checked(["peft=compose", f"peft.methods={entries}"]))

    assert (
        key("[lora,bitfit]")
        == key("[{name: lora},{name: bitfit, targets: null}]")
        == key("[{name: lora, rank: 8},bitfit]")
    )
    assert key("[lora,bitfit]") != key("[{name: lora, rank: 4},bitfit]")


@pytest.mark.parametrize("name", sorted(set(KNOWN) - {"compose", "hf_peft"}))
def test_an_instance_is_written_down_as_what_a_file_says(name: str) -> None:
    given = Compose(methods=[KNOWN[name](), "bitfit"])
    assert given == Compose(methods=[name, "bitfit"])
    assert yaml.safe_load(yaml.safe_dump(given.methods)) == given.methods


@pytest.mark.parametrize("given", [3, None, KNOWN["lora"]])
def test_what_is_no_method_is_refused(given: Any) -> None:
    with pytest.raises(PeftlabError, match=r"peft\.methods\[0\]=.* or it must be an instance of a method"):
        Compose(methods=[given])


def test_a_composition_in_a_composition_is_refused() -> None:
    with pytest.raises(PeftlabError, match="a composition cannot hold another one"):
        Compose(methods=[Compose()])


def test_a_class_is_named_by_its_target() -> None:
    (part,) = Compose(methods=[{"_target_": "peftlab.peft.lora.LoRA", "rank": 2}]).parts
    assert isinstance(part, PEFTStrategy)
    assert (part.name, part.rank) == ("lora", 2)  # type: ignore[attr-defined]


def test_a_method_that_another_package_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(base._REGISTRY, "from_elsewhere", KNOWN["ia3"])
    (part,) = Compose(methods=[{"name": "from_elsewhere", "targets": ["key"]}]).parts
    assert type(part) is KNOWN["ia3"]
    with pytest.raises(PeftlabError, match=r"peft\.methods\[0\]\.name=from_elsewher: .* Did you mean 'from_elsewhere'"):
        Compose(methods=["from_elsewher"])


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ("[{name: lora, rnak: 4}]", ["'peft.methods[0].rnak'", "Did you mean 'rank'?", "alpha_pattern"]),
        ("[bitfit,{name: lora, rank: 0, dropout: 2}]", ["peft.methods[1].rank=0", "peft.methods[1].dropout=2"]),
        ("[{name: lora, targets: []}]", ["peft.methods[0]", "targets is empty"]),
        ("[lroa]", ["peft.methods[0].name=lroa", "Did you mean 'lora'?"]),
        ("[{rank: 4}]", ["peft.methods[0]: neither is given"]),
        ("[{name: lora, _target_: peftlab.peft.lora.LoRA}]", ["peft.methods[0]: both are given"]),
        ("[{_target_: peftlab.peft.lora.LoRa}]", ["peft.methods[0]._target_", "Did you mean 'LoRA'?"]),
        ("[{_target_: peftlab.training.optim.SGD}]", ["must be a peftlab.peft.base.PEFTStrategy"]),
        ("[compose]", ["a composition cannot hold another one"]),
        ("[3]", ["peft.methods[0]=3", "text or it must be a mapping"]),
        ("[{name: [lora]}]", ["peft.methods[0].name=['lora']", "must be text"]),
        ("[bitfit,{_target_: [x]}]", ["peft.methods[1]._target_=['x']", "must be text"]),
        ("[{name: import, path: /nonexist}]", ["check: peft.methods[0].path=/nonexist"]),
        ("[{name: multitask_prompt, source: /nonexist},lora]", ["check: peft.methods[0].source=/nonexist"]),
        ("[bitfit,{name: lora, targets: []}]", ["check: peft.methods[1].targets is empty"]),
        ("[{name: prompt_tuning, init: text}]", ["check: peft.methods[0]"]),
        ("[]", ["peft.methods is empty"]),
    ],
)
def test_mistakes_are_found_before_anything_loads(peftlab: Peftlab, entries: str, said: list[str]) -> None:
    result = peftlab("check", "peft=compose", f"peft.methods={entries}")
    assert result.status == 2
    for part in said:
        assert part in result.err
    assert result.err.count("peft.methods[1].rank=0") <= 1
    assert "peft: peft" not in result.err
    assert "Traceback" not in result.err


def test_a_run_from_the_command_line(peftlab: Peftlab, reviews: Path) -> None:
    """Trained, saved and rebuilt from its folder alone."""
    typed = [f"data.path={reviews}", "peft=compose", "peft.methods=[{name: lora, rank: 2},bitfit]", "name=both"]
    done = peftlab("train", *TINY, *typed, "trainer.max_epochs=1")
    assert done.status == 0, done.err
    again = peftlab("evaluate", run_folder("both"))
    assert again.status == 0, again.err
