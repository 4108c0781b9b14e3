from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from peftlab.backbones.role_table import ROLES, RolePattern, output_features
from peftlab.backbones.roles import adaptable_modules, find_targets
from peftlab.errors import BackboneError
from tests.backbones.tiny_backbones import ARCHITECTURES, batch, shake, tiny, tiny_config

ATTENTION_AND_FFN = ["query", "key", "value", "attention_output", "ffn_up", "ffn_gate", "ffn_down"]
FIRST_LAYER = {
    "bert": "bert.encoder.layer.0.: attention.self.query attention.self.key attention.self.value "
    "attention.output.dense intermediate.dense - output.dense",
    "roberta": "roberta.encoder.layer.0.: attention.self.query attention.self.key attention.self.value "
    "attention.output.dense intermediate.dense - output.dense",
    "albert": "albert.encoder.albert_layer_groups.0.albert_layers.0.: attention.query attention.key "
    "attention.value "
    "attention.dense ffn - ffn_output",
    "distilbert": "distilbert.transformer.layer.0.: attention.q_lin attention.k_lin attention.v_lin "
    "attention.out_lin "
    "ffn.lin1 - ffn.lin2",
    "deberta-v2": "deberta.encoder.layer.0.: attention.self.query_proj attention.self.key_proj "
    "attention.self.value_proj "
    "attention.output.dense intermediate.dense - output.dense",
    "modernbert": "model.layers.0.: attn.Wqkv attn.Wqkv attn.Wqkv attn.Wo mlp.Wi mlp.Wi mlp.Wo",
    "gpt2": "transformer.h.0.: attn.c_attn attn.c_attn attn.c_attn attn.c_proj mlp.c_fc - mlp.c_proj",
    "llama": "model.layers.0.: self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj "
    "mlp.up_proj "
    "mlp.gate_proj mlp.down_proj",
    "phi3": "model.layers.0.: self_attn.qkv_proj self_attn.qkv_proj self_attn.qkv_proj self_attn.o_proj "
    "mlp.gate_up_proj mlp.gate_up_proj mlp.down_proj",
    "gpt_neox": "gpt_neox.layers.0.: - - - attention.dense mlp.dense_h_to_4h - mlp.dense_4h_to_h",
}


@pytest.mark.parametrize("model_type", FIRST_LAYER)
def test_roles_are_exactly_these_modules(model_type: str) -> None:
    backbone = tiny(model_type)
    prefix, _, names = FIRST_LAYER[model_type].partition(": ")
    layers = 1 if model_type == "albert" else 2  # ALBERT's layers share one set of weights
    for role, name in zip(ATTENTION_AND_FFN, names.split(), strict=True):
        if name == "-":
            with pytest.raises(BackboneError, match=role):
                find_targets(backbone, [role])
            continue
        expected = [prefix.replace("0.", f"{layer}.") + name for layer in range(2)] if layers == 2 else [prefix + name]
        assert [target.name for target in find_targets(backbone, [role])] == expected


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_role_of_every_architecture_is_there(model_type: str) -> None:
    backbone = tiny(model_type)
    gated_only = {"ffn_gate"} if model_type == "t5" else set()  # T5 1.0 has no gate, 1.1 has
    for role, place in ROLES[model_type].items():
        if isinstance(place, RolePattern) and role not in gated_only:
            found = find_targets(backbone, [role])
            assert all(target.role == role for target in found)
            assert (len(found) == 1) == (role == "embedding" or model_type == "albert"), (role, found)
        else:
            with pytest.raises(BackboneError):
                find_targets(backbone, [role])


def test_all_roles_known_are_tested() -> None:
    assert set(ROLES) == {*ARCHITECTURES, "text_classifier"}


def test_gated_t5() -> None:
    architecture = tiny_config("t5").architecture | {"feed_forward_proj": "gated-gelu"}
    backbone = tiny("t5", architecture=architecture)
    ends = {
        role: {t.name.rpartition(".")[2] for t in find_targets(backbone, [role])} for role in ("ffn_up", "ffn_gate")
    }
    assert ends == {"ffn_up": {"wi_1"}, "ffn_gate": {"wi_0"}}


def attention_inputs(backbone: nn.Module, ids: Tensor, mask: Tensor) -> list[tuple[Tensor, ...]]:
    """(query, key, value) that each attention layer receives."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    seen: list[tuple[Tensor, ...]] = []

    def spy(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: object, **kwargs: object) -> object:
        seen.append((query, key, value))
        return sdpa_attention_forward(module, query, key, value, *args, **kwargs)

    AttentionInterface.register("spy_on_sdpa", spy)
    backbone.model.config._attn_implementation = "spy_on_sdpa"
    with torch.no_grad():
        backbone(ids, mask)
    return seen


@pytest.mark.parametrize("model_type", ["gpt2", "modernbert", "phi3", "llama", "bert"])
@pytest.mark.parametrize("role", ["query", "key", "value"])
def test_a_role_reaches_exactly_its_tensor(model_type: str, role: str) -> None:
    """Zeroing the rows of a role makes that input of attention zero, and leaves the others as they were."""
    backbone = tiny(model_type)
    shake(backbone)
    ids, mask = batch(backbone, ["some text"])
    before = attention_inputs(backbone, ids, mask)[0]
    target = find_targets(backbone, [role])[0]
    rows = target.output_slice or slice(None)
    with torch.no_grad():
        weight = target.module.weight
        (weight.T if type(target.module).__name__ == "Conv1D" else weight)[rows] = 0
        if getattr(target.module, "bias", None) is not None:
            target.module.bias[rows] = 0
    after = attention_inputs(backbone, ids, mask)[0]
    for index, name in enumerate(["query", "key", "value"]):
        if name == role:
            assert before[index].abs().max() > 0.01
            assert after[index].abs().max() == 0
        else:
            assert torch.equal(before[index], after[index])


@pytest.mark.parametrize("model_type", ["modernbert", "phi3"])
def test_the_gate_is_the_half_that_is_activated(model_type: str) -> None:
    backbone = tiny(model_type)
    activated: list[Tensor] = []
    activation = next(m for n, m in backbone.model.named_modules() if re.search(r"mlp\.(act|activation_fn)$", n))
    activation.register_forward_hook(lambda module, inputs, output: activated.append(inputs[0]))
    target = find_targets(backbone, ["ffn_gate"])[0]
    projected: list[Tensor] = []
    target.module.register_forward_hook(lambda module, inputs, output: projected.append(output))
    with torch.no_grad():
        backbone(*batch(backbone, ["some text"]))
    assert torch.equal(activated[0], projected[0][..., target.output_slice])


def test_slices_tile_the_projection_even_with_grouped_heads() -> None:
    for model_type, sizes in (("phi3", [32, 16, 16]), ("gpt2", [32, 32, 32]), ("modernbert", [32, 32, 32])):
        targets = find_targets(tiny(model_type), ["value", "query", "key"])
        first = [target for target in targets if target.name == targets[0].name]
        assert [target.role for target in first] == ["query", "key", "value"]
        assert [target.output_slice.stop - target.output_slice.start for target in first] == sizes
        assert first[-1].output_slice.stop == output_features(first[-1].module)


def test_names_endings_and_regexes_in_model_order() -> None:
    backbone = tiny("bert")
    query = [f"bert.encoder.layer.{i}.attention.self.query" for i in range(2)]
    assert [t.name for t in find_targets(backbone, ["self.query"])] == query
    assert [t.name for t in find_targets(backbone, [r".*\.layer\.1\..*query"])] == query[1:]
    assert [t.name for t in find_targets(backbone, [query[0]])] == query[:1]
    both = find_targets(backbone, ["value", "self.query", "query"])
    assert [(t.name.rpartition(".")[2], t.role) for t in both] == [("query", "query"), ("value", "value")] * 2


def test_the_head_is_never_a_target() -> None:
    backbone = tiny("roberta")
    assert not any(name.startswith("classifier") for name in adaptable_modules(backbone))
    assert all("classifier" not in target.name for target in find_targets(backbone, [".*dense"]))
    with pytest.raises(BackboneError, match=r"or is the head"):
        find_targets(backbone, ["out_proj"])


@pytest.mark.parametrize(
    ("model_type", "targets", "message"),
    [
        (
            "bert",
            ["query", "valeu"],
            "'valeu' matches no linear layer.*Did you mean 'value'.*Roles of bert: attention_output",
        ),
        ("bert", ["ffn_gate"], "'ffn_gate' is a role that bert does not have"),
        ("bert", ["q_proj"], r"Module names end in: .*attention\.self\.query"),
        ("bert", ["LayerNorm"], "a LayerNorm, which cannot be a target"),
        ("bert", ["*query"], "not a regular expression"),
        ("bert", [], "peft.targets is empty"),
        ("bert", ["query", ""], r"peft\.targets\[1\] is an empty text, which names nothing\. Roles of bert"),
        (
            "gpt2",
            ["query", "c_attn"],
            "'c_attn' means all of 'transformer.h.0.attn.c_attn' and 'query' means a part",
        ),
        ("gpt_neox", ["query"], r"interleaved.*peft.targets=\['attention.query_key_value'\]"),
        ("deberta", ["value"], r"interleaved.*peft.targets=\['attention.self.in_proj'\]"),
    ],
)
def test_what_cannot_be_meant_is_refused(model_type: str, targets: list[str], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        find_targets(tiny(model_type), targets)


def test_the_way_out_of_a_refusal_works() -> None:
    assert len(find_targets(tiny("gpt_neox"), ["attention.query_key_value"])) == 2
    assert len(find_targets(tiny("deberta"), ["attention.self.in_proj"])) == 2


def test_architecture_without_a_table_takes_names() -> None:
    from peftlab.backbones.transformer import TransformerConfig

    architecture = {"model_type": "mpnet", **ARCHITECTURES["bert"]}
    backbone = TransformerConfig(architecture=architecture, attention="eager").build(2, seed=0)
    assert len(find_targets(backbone, ["attn.q"])) == 2
    with pytest.raises(BackboneError, match=r"mpnet has no role table.*attention.attn.q"):
        find_targets(backbone, ["query"])
