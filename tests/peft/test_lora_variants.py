"""LoRA's variants: LoRA+, LoRA-FA, starts of A, PiSSA, biases; and the counts of the papers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from peftlab.backbones.transformer import TransformerConfig
from peftlab.errors import PeftlabError
from peftlab.peft.base import apply
from peftlab.peft.lora import LoRA, LoRALayer
from peftlab.peft.low_rank import LowRankUpdate, layers_of
from peftlab.peft.surgery import weight_matrix
from peftlab.runs.assemble import count_parameters
from tests.conftest import TINY, Peftlab, run_folder
from tests.peft.tiny import KINDS, batch, tiny

ALL_KINDS = (*KINDS, "deberta-v2", "modernbert")


def injected(kind: str, seed: int = 0, quantize: str | None = None, dtype: str = "float32", **fields: Any) -> Any:
    backbone = tiny(kind, quantize=quantize, dtype=dtype)
    strategy = LoRA(**fields)
    apply(strategy, backbone, seed=seed)
    return backbone, strategy


def trained(backbone: Any, strategy: LoRA, steps: int = 2) -> Any:
    optimizer = torch.optim.AdamW(strategy.param_groups(backbone, 0.02))
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(backbone(*batch()), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    return backbone


def updates(backbone: Any) -> list[LowRankUpdate]:
    return [update for _, layer in layers_of(backbone, LoRALayer) for update in layer.all_updates()]


def require_reload(fields: dict[str, Any], kind: str) -> None:
    """The saved state makes a model of another seed compute the same bits, and train on to the same bits."""
    backbone, strategy = injected(kind, **fields)
    trained(backbone, strategy)
    other, again = injected(kind, seed=9, **fields)
    assert not torch.equal(other(*batch()), backbone(*batch()))
    again.load_adapter_state(other, {name: tensor.clone() for name, tensor in strategy.adapter_state(backbone).items()})
    assert torch.equal(other(*batch()), backbone(*batch()))
    trained(backbone, strategy)
    trained(other, again)
    assert torch.equal(other(*batch()), backbone(*batch()))


def test_lora_plus_gives_the_factor_that_starts_from_zero_the_higher_rate() -> None:
    backbone, strategy = injected("bert", targets=["query", "embedding"], rank=2, lr_ratio=16)
    names = {id(p): name for name, p in backbone.named_parameters()}
    slow, fast = strategy.param_groups(backbone, 1e-3)
    assert (slow["lr"], fast["lr"]) == (1e-3, 16e-3)
    found = {names[id(p)] for p in fast["params"]}
    assert found == {"model.bert.embeddings.word_embeddings.updates.all.A"} | {
        f"model.bert.encoder.layer.{layer}.attention.self.query.updates.all.B" for layer in (0, 1)
    }
    trainable = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert {names[id(p)] for p in slow["params"]} == trainable - found
    for update in updates(backbone):
        start = update.A if update.embedding else update.B
        assert torch.equal(start, torch.zeros_like(start))


def test_without_lora_plus_there_is_one_group_as_ever() -> None:
    backbone, strategy = injected("bert")
    (group,) = strategy.param_groups(backbone, 1e-3)
    assert group["lr"] == 1e-3
    assert [id(p) for p in group["params"]] == [id(p) for p in backbone.parameters() if p.requires_grad]


def test_lora_fa_trains_b_on_a_fixed_a() -> None:
    backbone, strategy = injected("bert", rank=4, freeze_A=True)
    before = [update.A.clone() for update in updates(backbone)]
    assert count_parameters(backbone)["trainable_without_head"] == 4 * 4 * 32 == strategy.closed_form(tiny("bert"))
    trained(backbone, strategy)
    for update, A in zip(updates(backbone), before, strict=True):
        assert torch.equal(update.A, A)
        assert A.abs().max() > 0
        assert update.B.abs().max() > 0
    saved = strategy.adapter_state(backbone)
    assert sum(name.endswith(".A") for name in saved) == 4
    require_reload({"rank": 4, "freeze_A": True}, "bert")


def test_starts_of_a() -> None:
    A = {
        init: torch.stack([update.A.detach() for update in updates(injected("bert", rank=16, init=init)[0])])
        for init in ("kaiming", "gaussian", "orthogonal")
    }
    assert A["kaiming"].abs().max() <= 32**-0.5
    assert A["kaiming"].std().item() == pytest.approx((3 * 32) ** -0.5, rel=0.1)
    assert A["gaussian"].std().item() == pytest.approx(1 / 16, rel=0.1)
    torch.testing.assert_close(A["orthogonal"] @ A["orthogonal"].mT, torch.eye(16).expand(4, 16, 16))
    (embedding,) = updates(injected("bert", rank=16, targets=["embedding"], init="orthogonal")[0])
    torch.testing.assert_close(embedding.B.T @ embedding.B, torch.eye(16))


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", "pissa"])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_start_is_the_backbone(kind: str, init: str) -> None:
    backbone, _ = injected(kind, targets=["query", "value", "ffn_down", "embedding"], init=init)
    ids, mask = batch()
    assert torch.equal(backbone(ids, mask), tiny(kind)(ids, mask))


def rows_of(layer: LoRALayer, update: LowRankUpdate) -> Tensor:
    return weight_matrix(layer.base)[update.output_slice or slice(None)]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "modernbert"])
def test_pissa_starts_from_the_best_low_rank_approximation(kind: str) -> None:
    """Of each slice on its own: what is left of W − s · B A are the singular values behind the rank."""
    backbone, _ = injected(kind, rank=5, targets=["query", "value", "embedding"], init="pissa")
    for _, layer in layers_of(backbone, LoRALayer):
        for update in layer.all_updates():
            W = rows_of(layer, update)
            rest = W - update.scale * update.B @ update.A
            expected = torch.linalg.svdvals(W)[5:]
            torch.testing.assert_close(torch.linalg.svdvals(rest)[: len(expected)], expected, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(update.A.norm(dim=1), update.B.norm(dim=0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_pissa_is_reloaded_exactly_even_where_its_start_was_another(kind: str) -> None:
    fields = {"rank": 4, "init": "pissa", "targets": ["query", "value", "embedding"]}
    require_reload(fields, kind)
    backbone, strategy = injected(kind, **fields)
    trained(backbone, strategy)
    state = {name: tensor.clone() for name, tensor in strategy.adapter_state(backbone).items()}
    other, again = injected(kind, **fields)
    with torch.no_grad():  # a machine whose SVD rounds differently, or gives other signs
        for update in updates(other):
            for tensor in (update.A, update.B, update.A_start, update.B_start):
                tensor.neg_().add_(1e-4)
    again.load_adapter_state(other, state)
    assert torch.equal(other(*batch()), backbone(*batch()))


def test_pissa_in_bf16_starts_as_the_backbone_to_the_bit() -> None:
    backbone, _ = injected("bert", dtype="bfloat16", init="pissa")
    assert torch.equal(backbone(*batch()), tiny("bert", dtype="bfloat16")(*batch()))
    assert {update.A_start.dtype for update in updates(backbone)} == {torch.float32}


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_pissa_merges(kind: str) -> None:
    backbone, strategy = injected(kind, init="pissa", targets=["query", "value", "embedding"])
    trained(backbone, strategy)
    with torch.no_grad():
        expected = backbone(*batch())
        strategy.merge(backbone)
        torch.testing.assert_close(backbone(*batch()), expected, atol=1e-5, rtol=0)
        strategy.unmerge(backbone)
        torch.testing.assert_close(backbone(*batch()), expected, atol=1e-5, rtol=0)


def test_pissa_on_meta_has_its_shapes() -> None:
    architecture = {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    backbone = TransformerConfig(architecture=architecture).build(2, seed=0, device="meta")
    apply(LoRA(init="pissa"), backbone, seed=0)
    assert {tensor.device.type for update in updates(backbone) for tensor in update.buffers()} == {"meta"}


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_train(kind: str, bias: str) -> None:
    backbone, strategy = injected(kind, bias=bias)
    original = tiny(kind)
    counted = count_parameters(backbone)["trainable_without_head"]
    assert strategy.closed_form(original) == counted
    adapted = {name for name, _ in layers_of(backbone, LoRALayer)}
    head = {name for name, _ in backbone.head_parameters()}
    expected = {
        name
        for name, _ in original.model.named_parameters()
        if name.endswith(".bias") and name not in head and (bias == "all" or name.removesuffix(".bias") in adapted)
    }
    trainable = {
        name.replace(".base.", ".")
        for name, p in backbone.model.named_parameters()
        if p.requires_grad and name.endswith("bias") and name not in head
    }
    assert trainable == expected
    assert len(expected) > (4 if bias == "all" else 1)
    require_reload({"bias": bias}, kind)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("bias", ["all", "lora_only"])
@pytest.mark.parametrize("stored", [{"dtype": "bfloat16"}, {"quantize": "nf4"}], ids=["bf16", "nf4"])
def test_biases_train_in_float32_under_their_own_names(kind: str, bias: str, stored: dict[str, str]) -> None:
    """A step of 1e-5 is lost on a bias of 1 in 16 bits."""
    backbone, strategy = injected(kind, bias=bias, **stored)
    plain, alike = injected(kind, bias=bias)
    saved = strategy.adapter_tensors(backbone)
    assert saved.keys() == alike.adapter_tensors(plain).keys()
    biases = {name: p for name, p in saved.items() if name.endswith("bias")}
    assert {p.dtype for p in biases.values()} == {torch.float32}
    assert strategy.closed_form(tiny(kind, **stored)) == count_parameters(backbone)["trainable_without_head"]
    before = {name: p.detach().clone() for name, p in biases.items()}
    for p in biases.values():
        p.data.fill_(1.0)
    optimizer = torch.optim.SGD(biases.values(), lr=1e-5)
    for p in biases.values():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all((p < 1).all() for p in biases.values())
    for name, p in biases.items():
        p.data.copy_(before[name])
    trained(backbone, strategy)
    assert any(not torch.equal(p, before[name]) for name, p in biases.items())
    other, again = injected(kind, seed=9, bias=bias, **stored)
    again.load_adapter_state(other, {name: t.clone() for name, t in strategy.adapter_state(backbone).items()})
    assert torch.equal(other.eval()(*batch()), backbone.eval()(*batch()))
    exported = {key for key in strategy.to_hf(backbone).tensors if key.endswith("bias")}
    assert exported == {key for key in alike.to_hf(plain).tensors if key.endswith("bias")}


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("llama", {"bias": "all"}, "peft.bias=all: this backbone has no bias"),
        ("llama", {"bias": "lora_only"}, "peft.bias=lora_only: the adapted layers have no bias"),
        ("bert", {"bias": "lora_only", "targets": ["embedding"]}, "the adapted layers have no bias"),
        ("bert", {"freeze_A": True, "targets": ["query", "embedding"]}, "peft.freeze_A=true"),
        ("bert", {"init": "pissa", "quantize": "nf4"}, "peft.init=pissa"),
    ],
)
def test_wrong_uses(kind: str, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(PeftlabError) as error:
        injected(kind, **fields)
    assert said in str(error.value)


def test_a_weight_that_two_modules_share_is_not_merged_into() -> None:
    backbone, strategy = injected("t5", targets=["shared"])
    with pytest.raises(PeftlabError, match="shares its weight"):
        strategy.merge(backbone)


ROBERTA_BASE = {"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
ROBERTA_LARGE = ROBERTA_BASE | {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
}  # fmt: skip
DEBERTA_XXL = {
    "model_type": "deberta-v2", "hidden_size": 1536, "num_hidden_layers": 48, "num_attention_heads": 24,
    "intermediate_size": 6144,
}  # fmt: skip
DEBERTA_BASE = {
    "model_type": "deberta-v2", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072,
}  # fmt: skip
GPT2_MEDIUM = {"model_type": "gpt2", "n_embd": 1024, "n_layer": 24, "n_head": 16}
GPT2_LARGE = {"model_type": "gpt2", "n_embd": 1280, "n_layer": 36, "n_head": 20}
LLAMA_7B = {"model_type": "llama"}
SIX = ["query", "key", "value", "attention_output", "ffn_up", "ffn_down"]


@pytest.mark.parametrize(
    ("architecture", "fields", "count"),
    [
        (ROBERTA_BASE, {"rank": 8}, 294_912),
        (ROBERTA_LARGE, {"rank": 8}, 786_432),
        (DEBERTA_XXL, {"rank": 16}, 4_718_592),
        (GPT2_MEDIUM, {"rank": 4}, 393_216),
        (GPT2_LARGE, {"rank": 4}, 737_280),
        (DEBERTA_BASE, {"rank": 8, "targets": SIX}, 1_327_104),
        (LLAMA_7B, {"rank": 32, "targets": ["query", "key", "value", "ffn_up", "ffn_down"]}, 56_098_816),
        (LLAMA_7B, {"rank": 64, "targets": [*SIX, "ffn_gate"]}, 159_907_840),
    ],
    ids=["roberta-base", "roberta-large", "deberta-xxl", "gpt2-m", "gpt2-l", "deberta-base", "llama-7b", "qlora-7b"],
)
def test_published_counts(architecture: dict[str, Any], fields: dict[str, Any], count: int) -> None:
    backbone = TransformerConfig(architecture=architecture, attention="eager").build(2, seed=0, device="meta")
    strategy = LoRA(**fields)
    assert strategy.closed_form(backbone) == count
    if count < 1_000_000:
        apply(strategy, backbone, seed=0)
        assert count_parameters(backbone)["trainable_without_head"] == count


def test_switched_off_it_is_the_backbone_unless_biases_train() -> None:
    backbone, strategy = injected("bert", init="pissa")
    expected = tiny("bert")
    trained(backbone, strategy)
    with torch.no_grad():
        for mine, theirs in zip(backbone.head_parameters(), expected.head_parameters(), strict=True):
            mine[1].copy_(theirs[1])
    with strategy.switched_off(backbone):
        assert torch.equal(backbone(*batch()), expected(*batch()))
    assert not torch.equal(backbone(*batch()), expected(*batch()))
    backbone, strategy = injected("bert", bias="all")
    with pytest.raises(PeftlabError, match=r"peft\.bias=all"), strategy.switched_off(backbone):
        pass


@pytest.mark.parametrize(
    "fields",
    [
        ("peft.init=pissa", "peft.lr_ratio=4"),
        ("peft.freeze_A=true", "peft.init=orthogonal", "peft.bias=all"),
        ("peft.init=gaussian", "peft.bias=lora_only", "peft.targets=[query,embedding]", "peft.rank=4"),
    ],
    ids=" ".join,
)
def test_a_run_and_its_evaluation_agree(peftlab: Peftlab, reviews: Path, fields: tuple[str, ...]) -> None:
    done = peftlab("train", *TINY, f"data.path={reviews}", "trainer.max_epochs=2", "optim.lr=0.01", *fields)
    assert done.status == 0, done.err
    record = json.loads((run_folder() / "record.json").read_text())
    again = peftlab("evaluate", run_folder(), "--json")
    assert again.status == 0, again.err
    assert json.loads(again.out)["metrics"] == record["metrics"]["test"]
