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
from peftlab.peft.base import PEFTStrategy, apply, methods
from peftlab.peft.compose import Compose
from peftlab.peft.low_rank import LowRankUpdate
from peftlab.peft.rank_budget import PrunableUpdate
from peftlab.peft.shared_model import inject_all, seen_by, skeleton
from peftlab.runs.assemble import count_parameters
from peftlab.runs.identity import run_key
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
    ],
)
def test_what_holds_for_one_method_holds_for_several(entries: list[Any], kind: str, weights: str) -> None:
    """Identity, counts, gradients, saving, resuming, merging …: every check of the conformance matrix."""
    outcome = examine(lambda: Compose(methods=entries), kind, weights)
    assert outcome.refusal is None
    assert not outcome.failures, "\n".join(outcome.failures)


def together(entries: list[Any], kind: str = "bert", *, seed: int = 0, **more: Any) -> tuple[Compose, Any]:
    strategy, backbone = Compose(methods=entries), tiny(kind, **more)
    apply(strategy, backbone, seed=seed)
    return strategy, backbone


def trainable(backbone: Any) -> dict[str, torch.Tensor]:
    head = {name for name, _ in backbone.head_parameters()}
    return {n: p for n, p in backbone.model.named_parameters() if p.requires_grad and n not in head}


@pytest.mark.parametrize("reverse", [False, True])
def test_lora_and_bitfit_are_what_they_are_done_by_hand(reverse: bool) -> None:
    """Logits and gradients of LoRA injected alone, with the biases set trainable afterwards."""
    strategy, backbone = together(LORA_BITFIT[::-1] if reverse else LORA_BITFIT)
    by_hand = tiny("bert")
    apply(KNOWN["lora"](rank=4), by_hand, seed=0)  # type: ignore[call-arg]
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
    strategy.merge(backbone)
    torch.testing.assert_close(backbone(ids, mask), before, atol=1e-5, rtol=0)
    strategy.unmerge(backbone)
    torch.testing.assert_close(backbone(ids, mask), before, atol=1e-5, rtol=0)
    nothing, plain = together(["bitfit", {"name": "layernorm", "biases": False}])
    with pytest.raises(PeftlabError, match="there is nothing to merge"):
        nothing.merge(plain)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_mam_computes_what_the_two_methods_one_after_the_other_compute(kind: str) -> None:
    _, backbone = together(MAM, kind)
    by_hand = tiny(kind)
    for name, fields in (("prefix_tuning", {"length": 5}), ("parallel_adapter", {})):
        KNOWN[name](**fields).inject(by_hand, seed=0)  # type: ignore[arg-type]
    state = {name: torch.randn(p.shape) * 0.1 for name, p in trainable(backbone).items()}
    for model in (backbone.model, by_hand.model):
        missing = model.load_state_dict(state, strict=False)
        assert not missing.unexpected_keys
    assert torch.equal(backbone(*batch()), by_hand(*batch()))


@pytest.mark.parametrize("entries", [MAM, THREE, TWO_BUDGETS], ids=["MAM", "three", "budgets"])
def test_each_starts_as_it_does_alone(entries: list[Any]) -> None:
    _, backbone = together(entries, seed=3)
    found = trainable(backbone)
    total = 0
    for part in Compose(methods=entries).parts:
        alone = tiny("bert")
        apply(part, alone, seed=3)
        for name, parameter in trainable(alone).items():
            same = [p for n, p in found.items() if n.replace(".base.", ".") == name.replace(".base.", ".")]
            assert len(same) == 1, name
            assert torch.equal(same[0], parameter), name
            total += parameter.numel()
    assert total == count_parameters(backbone)["trainable_without_head"]


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
    before = {name: type(module) for name, module in backbone.named_modules()}
    with pytest.raises(PeftlabError) as error:
        apply(Compose(methods=entries), backbone, seed=0)
    for part in said:
        assert part in str(error.value)
    assert str(error.value).count("peft.methods[0].rank=64") <= 1
    assert "): peft.methods" not in str(error.value), "the place is said once"
    assert {name: type(module) for name, module in backbone.named_modules()} == before, "nothing may have been changed"


def test_a_conflict_on_a_slice_of_a_fused_projection_is_refused() -> None:
    entries = [{"name": "lora", "targets": ["query"]}, {"name": "ia3", "targets": ["value"]}]
    with pytest.raises(PeftlabError, match=r"both change 'transformer\.h\.0\.attn\.c_attn'"):
        together(entries, "gpt2")
    together(entries, "bert")


def test_a_quantised_backbone_is_refused_if_one_method_refuses_it() -> None:
    with pytest.raises(PeftlabError, match=r"backbone\.quantize=nf4"):
        together([{"name": "last_layers", "layers": 1}, {"name": "prompt_tuning"}], quantize="nf4")
    with pytest.raises(PeftlabError, match=r"peft\.methods\[1\] \(parameters\).*stored in nf4"):
        together(["prompt_tuning", "parameters"], quantize="nf4")


def test_each_method_keeps_its_own_groups() -> None:
    """LoRA+'s faster matrices, and everything once."""
    strategy, backbone = together(THREE)
    groups = strategy.param_groups(backbone, lr=0.01)
    ours = [id(p) for group in groups for p in group["params"]]
    assert sorted(ours) == sorted(id(p) for p in backbone.parameters() if p.requires_grad)
    fast = [m.B for m in backbone.modules() if isinstance(m, LowRankUpdate)]
    (of_fast,) = (group for group in groups if group["lr"] == 0.04)
    assert {id(p) for p in of_fast["params"]} == {id(p) for p in fast}
    assert len(fast) == 4


def test_each_method_sees_its_own_modules() -> None:
    _, backbone = together(TWO_BUDGETS)
    everything = len(list(backbone.named_modules())), len(list(backbone.named_parameters()))
    for index, wanted in enumerate((4, 3)):
        with seen_by(index, backbone):
            assert {m.rank for m in backbone.modules() if isinstance(m, PrunableUpdate)} == {wanted}
            assert {m.rank for m in backbone.model.modules() if isinstance(m, PrunableUpdate)} == {wanted}
    assert (len(list(backbone.named_modules())), len(list(backbone.named_parameters()))) == everything
    assert "named_modules" not in vars(backbone.model)
    with pytest.raises(PeftlabError, match="nothing was injected"), seen_by(0, tiny("bert")):
        pass


def test_budgets_are_kept_apart() -> None:
    """AdaLoRA's two queries end with 2 · 2 triplets, the other's two layers with 2 · 1 components."""
    strategy, backbone = together(TWO_BUDGETS)
    optimizer = torch.optim.AdamW(strategy.param_groups(backbone, lr=0.01))
    for step in range(8):
        optimizer.zero_grad()
        loss = backbone(*batch()).square().mean()
        penalty = strategy.regularization(backbone)
        assert penalty is not None
        (loss + penalty).backward()
        optimizer.step()
        strategy.on_train_step(backbone, step + 1, 8)
    kept = {4: 0, 3: 0}
    for module in backbone.modules():
        if isinstance(module, PrunableUpdate):
            kept[module.rank] += int((module.diagonal != 0).sum())
    assert kept == {4: 4, 3: 2}


def test_the_terms_of_the_loss_are_added() -> None:
    strategy, backbone = together(TWO_BUDGETS)
    terms = []
    for index in (0, 1):
        alone = tiny("bert")
        part = strategy.parts[index]
        apply(part, alone, seed=0)
        terms.append(part.regularization(alone))
    expected = terms[0] + terms[1]  # type: ignore[operator]
    torch.testing.assert_close(strategy.regularization(backbone), expected)
    assert together(LORA_BITFIT)[0].regularization(backbone) is None


def test_a_refused_merge_undoes_what_was_merged() -> None:
    strategy, backbone = together(MERGEABLE)
    with torch.no_grad():
        for parameter in trainable(backbone).values():
            parameter.add_(0.1)
    before = backbone(*batch())
    weights = {name: p.clone() for name, p in backbone.named_parameters()}

    def refuse(*_: object) -> None:
        raise PeftlabError("not this one")

    strategy.parts[0].merge = refuse  # type: ignore[method-assign]
    with pytest.raises(PeftlabError, match="not this one"):
        strategy.merge(backbone)
    torch.testing.assert_close(backbone(*batch()), before, atol=1e-5, rtol=0)
    for name, parameter in backbone.named_parameters():
        torch.testing.assert_close(parameter, weights[name], atol=1e-6, rtol=0)
    mam, other = together(MAM)
    with pytest.raises(PeftlabError, match="'prefix_tuning' cannot"):
        mam.merge(other)


def test_what_it_supports_is_what_all_of_its_methods_support() -> None:
    assert Compose().supports == Compose.supports, "the table of methods shows that of the default"
    merging = Compose(methods=MERGEABLE).supports
    assert (merging.mergeable, merging.identity_at_start, merging.quantized) == (True, True, True)
    mixed = Compose(methods=[*MERGEABLE, "last_layers", "prompt_tuning"]).supports
    assert (mixed.mergeable, mixed.identity_at_start, mixed.quantized) == (False, False, False)
    assert Compose(methods=[{"name": "prompt_tuning", "length": 7}, "lora"]).extra_tokens() == 7


def test_a_method_sees_the_model_as_if_it_were_alone() -> None:
    """While it is injected, it finds the modules it would find alone, and its own; nothing of the others."""
    seen: dict[str, list[str]] = {}
    values: dict[str, torch.Tensor] = {}

    class Looks(KNOWN["lora"]):  # type: ignore[misc]
        def inject(self, backbone: Any, *, seed: int) -> None:
            seen["before"] = sorted(dict(backbone.named_modules()))
            seen["parameters"] = sorted(dict(backbone.named_parameters()))
            values["query"] = backbone.model.get_parameter("bert.encoder.layer.1.attention.self.query.weight")
            super().inject(backbone, seed=seed)
            seen["after"] = sorted(dict(backbone.named_modules()))

    alone, strategy = tiny("bert"), Looks(targets=["ffn_up"])
    apply(strategy, alone, seed=0)
    seen_alone = dict(seen)
    backbone = tiny("bert")
    others = Compose(methods=[{"name": "lora", "targets": ["query"]}, {"name": "lora", "targets": ["ffn_down"]}]).parts
    inject_all([("first", others[0]), ("second", others[1]), ("third", strategy)], backbone, seed=0)
    assert seen == seen_alone
    assert torch.equal(values["query"], alone.model.get_parameter("bert.encoder.layer.1.attention.self.query.weight"))
    assert not any("updates" in name for name in seen["before"])
    assert any("updates" in name for name in seen["after"])
    assert len(trainable(backbone)) == 3 * 2 * 2


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
    again = from_plain(yaml.safe_load(yaml.safe_dump(config.plain())), real=True)
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
