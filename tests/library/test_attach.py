"""Adapters in models that peftlab has not built: what they compute, and that nothing else changes."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from peftlab import (
    IA3,
    BitFit,
    Compose,
    DoRA,
    FullFineTuning,
    HeadOnly,
    HFPeft,
    LoRA,
    PeftlabError,
    PrefixTuning,
    PromptTuning,
    attach,
)
from tests.library.models import Net, bert, gpt2, ids, same, shake, states

LABELS = torch.tensor([0, 1, 1, 0])


def test_the_session_of_the_documentation() -> None:
    model = bert()
    adapter = attach(model, LoRA(rank=8, targets=["query", "value"]), seed=0, train=["classifier"])
    optimizer = torch.optim.AdamW(adapter.param_groups(lr=1e-2))
    before = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    losses = []
    for _ in range(8):
        loss = model(**ids(), labels=LABELS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] * 0.9
    assert adapter.num_parameters() == 4 * 8 * (32 + 32)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)
    trained = model(**ids()).logits
    with adapter.disabled():
        assert not torch.allclose(model(**ids()).logits, trained, atol=1e-3)
    adapter.merge()
    torch.testing.assert_close(model(**ids()).logits, trained, atol=1e-5, rtol=0)
    assert "LoRA" in repr(adapter)
    assert "classifier" in repr(adapter)


@pytest.mark.parametrize(
    ("build", "ours", "theirs", "method"),
    [
        (bert, ["query", "value"], ["query", "value"], LoRA),
        (bert, ["query", "ffn_up"], ["query", "intermediate.dense"], DoRA),
        (Net, ["up", r"blocks\.1\.down"], ["up", "blocks.1.down"], LoRA),
        (Net, ["up"], ["up"], DoRA),
    ],
    ids=["bert-lora", "bert-dora", "net-lora", "net-dora"],
)
def test_logits_and_gradients_are_those_of_hf_peft(
    build: Callable[[], Any], ours: list[str], theirs: list[str], method: type[LoRA]
) -> None:
    mine, other = build(), build()
    adapter = attach(mine, method(rank=4, alpha=6.0, targets=ours), seed=1)
    oracle = peft.get_peft_model(
        other, peft.LoraConfig(r=4, lora_alpha=6.0, target_modules=theirs, use_dora=method is DoRA)
    ).eval()
    pairs = []
    found = dict(oracle.named_parameters())
    for name, parameter in adapter.named_parameters():
        layer, _, leaf = name.partition(".deltas.all.")
        leaf = "lora_magnitude_vector.default.weight" if leaf == "magnitude" else f"{leaf}.default.weight"
        pairs.append((parameter, found.pop(f"base_model.model.{layer}.{leaf}")))
    assert not [name for name, parameter in found.items() if parameter.requires_grad]
    shake(adapter)
    with torch.no_grad():
        for parameter, twin in pairs:
            twin.copy_(parameter)
    given: dict[str, Any] = ids() if build is bert else {"x": torch.randn(4, 8)}
    logits, expected = (model(**given) for model in (mine, oracle))
    if build is bert:
        logits, expected = logits.logits, expected.logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    F.cross_entropy(logits, LABELS).backward()
    F.cross_entropy(expected, LABELS).backward()
    for parameter, twin in pairs:
        assert parameter.grad is not None
        assert twin.grad is not None
        assert parameter.grad.abs().max() > 0
        torch.testing.assert_close(parameter.grad, twin.grad, atol=1e-5, rtol=0)


METHODS: list[tuple[str, Any]] = [
    ("lora", LoRA(targets=["query"])),
    ("lora-bias", LoRA(targets=["query"], bias="all")),
    ("ia3", IA3()),
    ("bitfit", BitFit()),
    ("full", FullFineTuning()),
    ("prompt", PromptTuning(init="random", length=3)),
    ("prefix", PrefixTuning(length=3, hidden=8)),
    ("compose", Compose(methods=[{"name": "lora", "rank": 2}, {"name": "prefix_tuning", "length": 3}])),
    ("hf_peft", HFPeft(peft_type="LOHA", options={"r": 4, "target_modules": ["query"]})),
]


@pytest.mark.parametrize("method", [m for _, m in METHODS], ids=[n for n, _ in METHODS])
def test_removed_the_model_is_what_it_was(method: Any) -> None:
    """Names, bits, what trains, and what it computes; another adapter can then be attached."""
    model = bert()
    model.bert.pooler.dense.weight.requires_grad_(False)
    clean, flags = states(model), {n: p.requires_grad for n, p in model.named_parameters()}
    logits = model(**ids()).logits
    for _ in range(2):
        adapter = attach(model, method, train=["classifier"])
        assert {id(p) for p in adapter.parameters(beside=True)} == {
            id(p) for p in model.parameters() if p.requires_grad
        }
        adapter.remove()
        assert same(states(model), clean)
        assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
        assert torch.equal(model(**ids()).logits, logits)


def test_merged_and_removed_a_plain_model_is_left() -> None:
    model = bert()
    names = set(model.state_dict())
    adapter = attach(model, LoRA())
    shake(adapter)
    trained = model(**ids()).logits
    adapter.merge_and_remove()
    assert set(model.state_dict()) == names
    torch.testing.assert_close(model(**ids()).logits, trained, atol=1e-5, rtol=0)
    attach(model, LoRA())


def test_unmerging_brings_the_very_bits_back() -> None:
    model = Net()
    clean = states(model)
    adapter = attach(model, LoRA(targets=["up"]))
    shake(adapter)
    adapter.merge()
    adapter.unmerge()
    adapter.remove()
    assert same(states(model), clean)


def test_the_seed_decides_the_start() -> None:
    starts = [attach(bert(), LoRA(), seed=seed).state_dict() for seed in (0, 0, 1)]
    assert same(starts[0], starts[1])
    assert not same(starts[0], starts[2])


def test_a_module_itself_may_say_what_trains() -> None:
    model = Net()
    adapter = attach(model, LoRA(targets=["up", "down"]), train=[model.head, "norm"])
    assert adapter.beside == ["norm", "head"]
    assert model.head.weight.requires_grad
    assert attach(Net(), HeadOnly(), train="head").num_parameters() == 0
    nested = attach(bert(), LoRA(), train=["bert.pooler", "bert.pooler.dense"])
    assert nested.beside == ["bert.pooler"]


def test_a_copy_of_an_adapted_model_has_its_own_adapter() -> None:
    model = bert()
    adapter = attach(model, LoRA())
    shake(adapter)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(**ids()).logits, model(**ids()).logits)
    with pytest.raises(PeftlabError, match="carries an adapter already"):
        attach(twin, LoRA())


def test_targets_of_known_and_of_unknown_architectures() -> None:
    roles = {name for name, _ in attach(gpt2(), LoRA(targets=["query"])).named_parameters()}
    assert "transformer.h.0.attn.c_attn.deltas.query.lora_A" in roles
    names = {name for name, _ in attach(Net(), LoRA(targets=[r"blocks\.0\..*"])).named_parameters()}
    assert {name.partition(".deltas")[0] for name in names} == {"blocks.0.up", "blocks.0.down"}


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(PeftlabError) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said
    return said


NET_MODULES = "Net has no role table, so name its modules"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: LoRA(rank=-3), "peft.rank=-3 is not allowed: it must be at least 1."),
        (lambda: LoRA(rank=2.5), "peft.rank=2.5 is not allowed: it must be a whole number."),
        (lambda: LoRA(rnk=8), "unknown key 'peft.rnk'. Did you mean 'rank'?"),
        (lambda: LoRA(8), "LoRA(8): the fields of a method are given by their names"),
        (
            lambda: LoRA(init="zeros"),
            "it must be one of 'kaiming', 'gaussian', 'orthogonal', 'pissa', 'milora', 'olora' or 'lora_ga'",
        ),
        (lambda: LoRA(targets=[]), "peft.targets is empty"),
        (lambda: PromptTuning(init="text"), "peft.init=text needs words to start from"),
        (lambda: attach("bert", LoRA()), "a model must be a torch.nn.Module, not str"),
        (lambda: attach(bert(), "lora"), "attach takes a method with its fields, as LoRA(rank=8), not 'lora'"),
        (lambda: attach(bert(), LoRA), "not the class LoRA"),
        (lambda: attach(bert(), LoRA(), seed=-1), "seed=-1 is not allowed"),
        (lambda: attach(bert(), LoRA(), seed=True), "seed=True is not allowed"),
        (lambda: attach(bert(), LoRA(targets=["querry"])), "Did you mean 'query'?"),
        (lambda: attach(bert(), LoRA(rank=99)), "is above what"),
        (lambda: attach(Net(), LoRA()), NET_MODULES),
        (lambda: attach(Net(), LoRA(targets=["norm"])), "a BatchNorm1d, which cannot be a target"),
        (lambda: attach(Net(), LoRA(targets=["("])), "is not a regular expression"),
        (lambda: attach(Net(), LoRA(targets=["head"]), train=["head"]), "(or is the head)"),
        (lambda: attach(Net(), LoRA(targets=["up"]), train=["haed"]), "no module 'haed'. Did you mean 'head'?"),
        (lambda: attach(Net(), LoRA(targets=["up"]), train=[nn.Linear(1, 1)]), "this Linear is no module of the model"),
        (lambda: attach(Net(), LoRA(targets=["up"]), train=[3]), "not int (3)"),
        (lambda: attach(Net(), LoRA(targets=["up"]), train=[""]), "that is FullFineTuning()"),
        (lambda: attach(bert(), LoRA(), train=["dropout"]), "has no parameters to train"),
        (lambda: attach(bert(), HeadOnly()), "name what is to train"),
        (lambda: attach(Net(), PromptTuning(init="random")), "cannot enter the forward of Net"),
        (lambda: attach(Net(), PrefixTuning()), "Net has no attention that keys and values could be put into"),
        (lambda: attach(bert(), PromptTuning()), "give it, attach(model, …, tokenizer=tokenizer)"),
        (lambda: attach(bert(), PromptTuning(init="text", init_text="a film")), "tokenizer=tokenizer"),
        (lambda: attach(bert(), PromptTuning(), tokenizer="bert"), "tokenizer= must be a tokenizer of transformers"),
        (lambda: attach(Net(), BitFit()).merge(), "there is nothing to merge"),
        (lambda: attach(bert(), PrefixTuning()).merge(), "cannot be merged"),
        (lambda: attach(bert(), BitFit()).disabled().__enter__(), "there is no adapter to switch off"),
        (lambda: attach(bert(), LoRA(bias="all")).disabled().__enter__(), "trains the backbone's own"),
    ],
)
def test_what_cannot_be_is_one_line(call: Callable[[], Any], says: str) -> None:
    assert says in refused(call)


@pytest.mark.parametrize(
    "method", [LoRA(targets=["querry"]), LoRA(rank=99), PromptTuning(), PromptTuning(init="text", init_text="x")]
)
def test_refused_the_model_is_what_it_was(method: Any) -> None:
    model = bert()
    clean, flags = states(model), {n: p.requires_grad for n, p in model.named_parameters()}
    refused(lambda: attach(model, method))
    assert same(states(model), clean)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    attach(model, LoRA())


def test_a_build_that_fails_half_way_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from peftlab.peft.adapter import Adapter

    model, real, calls = bert(), Adapter.put, []

    def failing(self: Adapter, *given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise PeftlabError("no more")
        return real(self, *given, **named)

    monkeypatch.setattr(Adapter, "put", failing)
    clean = states(model)
    refused(lambda: attach(model, LoRA()))
    assert same(states(model), clean)
    assert all(p.requires_grad for p in model.parameters())


def test_a_second_adapter_is_refused_with_the_way_out() -> None:
    model = bert()
    adapter = attach(model, BitFit())  # which leaves no trace in the names of modules
    said = refused(lambda: attach(model, LoRA()))
    assert "carries an adapter already, of bitfit: take it out with adapter.remove()" in said
    outer = nn.ModuleDict({"encoder": model})
    assert "'encoder' in this model carries an adapter already" in refused(
        lambda: attach(outer, LoRA(targets=["query"]))
    )
    adapter.remove()
    attach(model, LoRA())
    theirs = peft.get_peft_model(bert(), peft.LoraConfig(target_modules=["query"]))
    assert "HF peft" in refused(lambda: attach(theirs, LoRA()))


def test_from_a_thread() -> None:
    found: list[Any] = []

    def work() -> None:
        adapter = attach(bert(), LoRA(), train=["classifier"])
        adapter.model(**ids(), labels=LABELS).loss.backward()
        found.append(adapter.num_parameters())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [4 * 8 * 64]
