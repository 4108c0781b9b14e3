"""What a method has put into a model is one thing: it owns its tensors, merges, is switched off and taken out."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from peftlab.errors import PeftlabError
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import attach, methods
from peftlab.peft.compose import Compose
from peftlab.peft.delta import AdaptedLayer, Delta, NotMergeable
from peftlab.peft.names import clean_name, live_parameter, located
from tests.backbones.tiny_backbones import batch as words
from tests.conftest import REPOSITORY
from tests.peft.tiny import batch, tiny

KNOWN = dict(methods())
ALL = sorted(set(KNOWN) - {"import"})  # that one needs a folder: tests/interop


def attached(name: str, kind: str = "bert", *, seed: int = 0, **fields: Any) -> Adapter:
    return attach(tiny(kind), KNOWN[name](**fields), seed=seed)


def shaken(adapter: Adapter, scale: float = 0.3) -> Adapter:
    """The adapter with other numbers in all that trains."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return adapter


@pytest.mark.parametrize("name", ALL)
def test_it_owns_what_trains_and_nothing_else(name: str) -> None:
    adapter = attached(name)
    owned = {id(parameter) for parameter in adapter.parameters(beside=True)}
    assert owned == {id(p) for p in adapter.backbone.parameters() if p.requires_grad}
    head = {id(p) for _, p in adapter.backbone.head_parameters()}
    assert {id(p) for p in adapter.parameters()} == owned - head
    assert adapter.num_parameters() == KNOWN[name]().closed_form(tiny("bert"))


@pytest.mark.parametrize("name", ALL)
def test_parameters_may_be_replaced_under_it(name: str) -> None:
    """Sharding puts other parameter objects into the modules: nothing may hold on to those that were there."""
    adapter = attached(name)
    shapes = [(n, p.shape) for n, p in adapter.named_parameters(beside=True)]
    replaced: dict[int, nn.Parameter] = {}
    for module in list(adapter.model.modules()):
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            new = replaced.setdefault(id(parameter), nn.Parameter(parameter.detach() + 1, parameter.requires_grad))
            setattr(module, leaf, new)
    assert [(n, p.shape) for n, p in adapter.named_parameters(beside=True)] == shapes
    new = set(map(id, replaced.values()))
    assert all(id(p) in new for group in adapter.param_groups(0.1) for p in group["params"])
    state = {key: tensor + 1 if tensor.is_floating_point() else tensor for key, tensor in adapter.state_dict().items()}
    adapter.load_state_dict(state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in adapter.tensors().items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("name", [name for name in ALL if KNOWN[name].supports.mergeable])
def test_unmerging_puts_the_very_bits_back(name: str, kind: str, dtype: str) -> None:
    """However far it was trained, in whatever type, and however often it is merged."""
    if name == "hf_peft" and kind == "gpt2":
        pytest.skip("OFT has no layer for Conv1D")
    adapter = shaken(attach(tiny(kind, dtype=dtype), KNOWN[name](), seed=0))
    before = {key: tensor.clone() for key, tensor in adapter.backbone.state_dict().items()}
    logits = adapter.backbone(*batch())
    for _ in range(2):
        adapter.merge()
        adapter.merge()  # nothing: it is there already
        merged = adapter.backbone.state_dict()
        assert any(not torch.equal(merged[key], tensor) for key, tensor in before.items())
        adapter.unmerge()
        adapter.unmerge()
        after = adapter.backbone.state_dict()
        assert [key for key, tensor in before.items() if not torch.equal(after[key], tensor)] == []
    assert torch.equal(adapter.backbone(*batch()), logits)


@pytest.mark.parametrize("name", [name for name in ALL if KNOWN[name].supports.mergeable])
def test_switched_off_while_it_is_merged(name: str) -> None:
    """Inside, the model is the backbone; behind it the adapter is merged again."""
    adapter = shaken(attached(name))
    adapter.merge()
    merged = adapter.backbone(*batch())
    plain = tiny("bert")
    with torch.no_grad():
        with adapter.disabled():
            torch.testing.assert_close(adapter.backbone(*batch()), plain(*batch()), atol=1e-6, rtol=0)
        assert torch.equal(adapter.backbone(*batch()), merged)
        assert not torch.allclose(merged, plain(*batch()))


@pytest.mark.parametrize("name", [name for name in ALL if KNOWN[name].supports.mergeable])
def test_merged_for_good_it_is_a_plain_model(name: str) -> None:
    """The same weights as merged, and nothing else left."""
    adapter, other = shaken(attached(name)), shaken(attached(name))
    adapter.merge_and_remove()
    other.merge()
    assert {n: type(m) for n, m in adapter.backbone.named_modules()} == {
        n: type(m) for n, m in tiny("bert").named_modules()
    }
    assert torch.equal(adapter.backbone(*batch()), other.backbone(*batch()))


@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "vera"])
def test_a_tied_weight_is_not_merged_into(name: str) -> None:
    """The other layer would change with it."""
    backbone = tiny("bert")
    attention: Any = backbone.model.get_submodule("bert.encoder.layer.0.attention.self")
    attention.value.weight = attention.query.weight
    fields = {"feedforward_targets": []} if name == "ia3" else {}
    adapter = shaken(attach(backbone, KNOWN[name](targets=["query"], **fields), seed=0))
    logits = backbone(*batch())
    with pytest.raises(PeftlabError, match=r"query' shares its weight with .*value'"):
        adapter.merge()
    assert torch.equal(backbone(*batch()), logits)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_taken_out_it_leaves_the_backbone(name: str, kind: str) -> None:
    clean = dict(tiny(kind).named_modules())
    try:
        adapter = attached(name, kind)
    except PeftlabError:
        pytest.skip("the method refuses this backbone")
    adapter.remove()
    left = dict(adapter.backbone.named_modules())
    assert left.keys() == clean.keys()
    assert [name for name, module in left.items() if type(module) is not type(clean[name])] == []
    plain = tiny(kind)
    texts = words(plain, ["a fine film", "dull"])
    with torch.no_grad():
        assert torch.equal(adapter.backbone(*texts), plain(*texts))


def test_a_merged_adapter_that_is_taken_out_leaves_its_update() -> None:
    adapter = shaken(attached("dora"))
    adapter.merge()
    merged = adapter.backbone(*batch())
    adapter.remove()
    assert not any(isinstance(module, AdaptedLayer) for module in adapter.backbone.modules())
    assert torch.equal(adapter.backbone(*batch()), merged)


def test_tensors_have_the_names_of_the_clean_model() -> None:
    """Whatever stands around a layer: a bias that trains is called the same beside an adapter as alone."""
    alone = attached("bitfit")
    entries: list[Any] = [{"name": "lora", "targets": ["query"]}, "bitfit", {"name": "prompt_tuning", "length": 2}]
    for order in (entries, entries[::-1]):
        together = attach(tiny("bert", dtype="bfloat16"), Compose(methods=order), seed=0)
        names = set(together.state_dict())
        assert set(alone.state_dict()) <= names
        added = names - set(alone.state_dict())
        assert "bert.encoder.layer.0.attention.self.query.deltas.all.lora_A" in added
        assert "bert.embeddings.word_embeddings.vectors.prompt_embeddings" in added
        assert len(added) == 2 * 2 + 1
        bias = "bert.encoder.layer.1.attention.self.query.bias"
        live = live_parameter(together.model, bias)
        assert live.dtype == torch.float32, "a copy that trains"
        owner, leaf = located(together.model, bias)
        assert isinstance(owner, nn.Linear)
        assert leaf == "bias"
        (live_name,) = (name for name, parameter in together.model.named_parameters() if parameter is live)
        assert live_name != bias
        assert clean_name(together.model, live_name) == bias


def test_a_child_of_the_backbone_may_be_called_base() -> None:
    """What stands around a layer is known by its class, not by the name of a child."""
    model = nn.Module()
    model.base = nn.Module()
    model.base.base = nn.Linear(2, 2)
    assert clean_name(model, "base.base.weight") == "base.base.weight"
    owner, leaf = located(model, "base.base.weight")
    assert owner is model.base.base
    assert leaf == "weight"


def test_deltas_on_disjoint_rows_read_what_the_layer_returns() -> None:
    class Doubles(Delta):
        def forward(self, x: torch.Tensor, out: torch.Tensor, base: nn.Module) -> torch.Tensor:
            return out * 2

        def folded(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
            return weight * 2, None if bias is None else bias * 2

    base = nn.Linear(3, 6)
    layer = AdaptedLayer(base)
    for key, rows in {"first": slice(0, 2), "last": slice(4, 6)}.items():
        layer.deltas[key] = Doubles()
        layer.deltas[key].rows = rows
    x = torch.randn(4, 3)
    expected = base(x) * torch.tensor([2.0, 2.0, 1.0, 1.0, 2.0, 2.0])
    assert torch.equal(layer(x), expected)
    weight = base.weight.detach().clone()
    layer.fold(frozenset({"first", "last"}))
    torch.testing.assert_close(layer(x), expected)
    layer.fold(frozenset({"last"}))
    torch.testing.assert_close(layer(x), expected)
    assert torch.equal(base.weight[:2], weight[:2])
    with layer.without(frozenset({"last"})):
        assert torch.equal(base.weight, weight)
        assert torch.equal(layer(x), base(x) * torch.tensor([2.0, 2.0, 1.0, 1.0, 1.0, 1.0]))
    assert torch.equal(base.weight[4:], weight[4:] * 2)


def test_a_delta_that_cannot_be_folded_leaves_everything_as_it_was() -> None:
    adapter = shaken(attached("lora"))
    last = adapter.deltas()[-1]

    def refuses(*_: object) -> None:
        raise NotMergeable("of a reason")

    last.folded = refuses  # type: ignore[method-assign, assignment]
    before = {key: tensor.clone() for key, tensor in adapter.backbone.state_dict().items()}
    with pytest.raises(PeftlabError, match="'lora' cannot be merged into the backbone's weights: of a reason"):
        adapter.merge()
    assert [k for k, t in adapter.backbone.state_dict().items() if not torch.equal(t, before[k])] == []


ALLOWED = {
    "adapter": {"Adapter"},
    "base": {"PEFTStrategy", "attach", "methods", "method_elsewhere"},
    "gradients": {"TrainingLosses"},  # what a method that starts from data is given
    "hf.codec": None,
    "hf.files": None,
    "hf.folder": None,
    "hf.format": None,
    "hf.prefix": {"require_in_window"},
    "imported": {"ImportedAdapter"},  # the one that an adapter of HF peft is loaded by
    "last_layers": {"transformer_blocks"},  # which blocks a clean model has
    "legacy": None,
    "lora": {"LoRA"},  # the one in which a table counts QLoRA's bytes
    "names": {"adapted_by", "into_type", "live_parameter", "located"},
    "saving": None,
    "surgery": {"dequantize", "is_conv1d", "replace_module", "weight_matrix"},
    "weight_update": None,
}
"""What other rooms may use of this one: module → names, None for all."""


def test_other_rooms_hold_adapters_and_do_not_look_for_what_is_in_them() -> None:
    """They never name a delta, a wrapper or a method's module, so they cannot search a model for one."""
    source = REPOSITORY / "src/peftlab"
    wrong = []
    for path in source.rglob("*.py"):
        if path.is_relative_to(source / "peft") or path == source / "__init__.py":  # which names the classes of methods
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("peftlab.peft"):
                continue
            inner = str(node.module).removeprefix("peftlab.peft").removeprefix(".")
            for alias in node.names:
                module, name = (inner, alias.name) if inner else (alias.name, None)
                names = ALLOWED.get(module, set())
                if names is not None and name not in names:
                    wrong.append(f"{path.relative_to(source)}: {node.module}.{alias.name}")
    assert wrong == []
    assert Path(source / "peft/adapter.py").is_file()
