"""LoRA's variants: LoRA+, LoRA-FA, starts of A, PiSSA, biases; and the counts of the papers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from peftlab.backbones.transformer import TransformerConfig
from peftlab.errors import PeftlabError
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import attach
from peftlab.peft.hf import codec
from peftlab.peft.lora import LoRA
from peftlab.peft.low_rank import LowRank
from peftlab.peft.parts import Placed
from peftlab.peft.surgery import weight_matrix
from peftlab.runs.counted import count_parameters
from tests.conftest import TINY, Peftlab, run_folder
from tests.peft.tiny import KINDS, batch, tiny

ALL_KINDS = (*KINDS, "deberta-v2", "modernbert")


def attached(
    kind: str, seed: int = 0, quantize: str | None = None, dtype: str = "float32", **fields: Any
) -> tuple[Any, Adapter]:
    backbone = tiny(kind, quantize=quantize, dtype=dtype)
    return backbone, attach(backbone, LoRA(**fields), seed=seed)


def trained(adapter: Adapter, steps: int = 2) -> None:
    backbone = adapter.backbone
    optimizer = torch.optim.AdamW(adapter.param_groups(0.02))
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(backbone(*batch()), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()


def low_ranks(adapter: Adapter) -> list[LowRank]:
    found = [delta for delta in adapter.deltas() if isinstance(delta, LowRank)]
    assert len(found) == len(adapter.deltas()) > 0
    return found


def require_reload(fields: dict[str, Any], kind: str) -> None:
    """The saved state makes a model of another seed compute the same bits, and train on to the same bits."""
    backbone, adapter = attached(kind, **fields)
    trained(adapter)
    other, again = attached(kind, seed=9, **fields)
    assert not torch.equal(other(*batch()), backbone(*batch()))
    again.load_state_dict({name: tensor.clone() for name, tensor in adapter.state_dict().items()})
    assert torch.equal(other(*batch()), backbone(*batch()))
    trained(adapter)
    trained(again)
    assert torch.equal(other(*batch()), backbone(*batch()))


def test_lora_plus_gives_the_factor_that_starts_from_zero_the_higher_rate() -> None:
    backbone, adapter = attached("bert", targets=["query", "embedding"], rank=2, lr_ratio=16)
    names = {id(p): name for name, p in adapter.named_parameters(beside=True)}
    slow, fast = adapter.param_groups(1e-3)
    assert (slow["lr"], fast["lr"]) == (1e-3, 16e-3)
    found = {names[id(p)] for p in fast["params"]}
    assert found == {"bert.embeddings.word_embeddings.deltas.all.lora_A"} | {
        f"bert.encoder.layer.{layer}.attention.self.query.deltas.all.lora_B" for layer in (0, 1)
    }
    assert names.keys() == {id(p) for p in backbone.parameters() if p.requires_grad}
    assert {names[id(p)] for p in slow["params"]} == set(names.values()) - found
    for delta in low_ranks(adapter):
        start = delta.lora_A if delta.embedding else delta.lora_B
        assert torch.equal(start, torch.zeros_like(start))


def test_without_lora_plus_there_is_one_group_as_ever() -> None:
    backbone, adapter = attached("bert")
    (group,) = adapter.param_groups(1e-3)
    assert group["lr"] == 1e-3
    assert [id(p) for p in group["params"]] == [id(p) for p in backbone.parameters() if p.requires_grad]


def test_lora_fa_trains_b_on_a_fixed_a() -> None:
    _, adapter = attached("bert", rank=4, freeze_A=True)
    before = [delta.lora_A.clone() for delta in low_ranks(adapter)]
    counts = count_parameters(adapter)
    assert counts["trainable_without_head"] == 4 * 4 * 32 == adapter.strategy.closed_form(tiny("bert"))
    assert counts["added"] == 2 * 4 * 4 * 32
    trained(adapter)
    for delta, A in zip(low_ranks(adapter), before, strict=True):
        assert torch.equal(delta.lora_A, A)
        assert A.abs().max() > 0
        assert delta.lora_B.abs().max() > 0
    saved = adapter.state_dict()
    assert sum(name.endswith(".lora_A") for name in saved) == 4
    assert sum(name.endswith(".lora_A") for name in adapter.frozen_state()) == 4
    require_reload({"rank": 4, "freeze_A": True}, "bert")


def test_starts_of_a() -> None:
    A = {
        init: torch.stack([delta.lora_A.detach() for delta in low_ranks(attached("bert", rank=16, init=init)[1])])
        for init in ("kaiming", "gaussian", "orthogonal")
    }
    assert A["kaiming"].abs().max() <= 32**-0.5
    assert A["kaiming"].std().item() == pytest.approx((3 * 32) ** -0.5, rel=0.1)
    assert A["gaussian"].std().item() == pytest.approx(1 / 16, rel=0.1)
    torch.testing.assert_close(A["orthogonal"] @ A["orthogonal"].mT, torch.eye(16).expand(4, 16, 16))
    (embedding,) = low_ranks(attached("bert", rank=16, targets=["embedding"], init="orthogonal")[1])
    torch.testing.assert_close(embedding.lora_B.T @ embedding.lora_B, torch.eye(16))


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", "pissa", "milora", "olora"])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_start_is_the_backbone(kind: str, init: str) -> None:
    backbone, _ = attached(kind, targets=["query", "value", "ffn_down", "embedding"], init=init)
    ids, mask = batch()
    assert torch.equal(backbone(ids, mask), tiny(kind)(ids, mask))


def rows_of(placed: Placed) -> Tensor:
    return weight_matrix(placed.layer.base)[placed.delta.rows or slice(None)]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "modernbert"])
def test_pissa_starts_from_the_best_low_rank_approximation(kind: str) -> None:
    """Of each slice on its own: what is left of W − s · B A are the singular values behind the rank."""
    _, adapter = attached(kind, rank=5, targets=["query", "value", "embedding"], init="pissa")
    assert len(adapter.placed()) == 5
    for placed in adapter.placed():
        delta = placed.delta
        assert isinstance(delta, LowRank)
        W = rows_of(placed)
        rest = W - delta.scale * delta.lora_B @ delta.lora_A
        expected = torch.linalg.svdvals(W)[5:]
        torch.testing.assert_close(torch.linalg.svdvals(rest)[: len(expected)], expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(delta.lora_A.norm(dim=1), delta.lora_B.norm(dim=0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "init"), [("bert", "pissa"), ("gpt2", "pissa"), ("bert", "milora"), ("bert", "olora")]
)
def test_it_is_reloaded_exactly_even_where_its_start_was_another(kind: str, init: str) -> None:
    fields: dict[str, Any] = {"rank": 4, "init": init, "targets": ["query", "value", "embedding"]}
    require_reload(fields, kind)
    backbone, adapter = attached(kind, **fields)
    trained(adapter)
    state = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    other, again = attached(kind, **fields)
    with torch.no_grad():  # a machine whose SVD rounds differently, or gives other signs
        for delta in low_ranks(again):
            for tensor in (delta.lora_A, delta.lora_B, delta.A_start, delta.B_start):
                assert tensor is not None
                tensor.neg_().add_(1e-4)
    again.load_state_dict(state)
    assert torch.equal(other(*batch()), backbone(*batch()))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "modernbert"])
def test_milora_starts_from_the_smallest_singular_values(kind: str) -> None:
    """Of each slice on its own, by numpy: s · B A is Σ σᵢ uᵢ vᵢᵀ over the last five; A and B have equal parts of it."""
    _, adapter = attached(kind, rank=5, alpha=3.0, targets=["query", "value", "embedding"], init="milora")
    for placed in adapter.placed():
        delta = placed.delta
        assert isinstance(delta, LowRank)
        U, S, Vh = np.linalg.svd(rows_of(placed).detach().double().numpy(), full_matrices=False)
        expected = torch.from_numpy((U[:, -5:] * S[-5:]) @ Vh[-5:]).float()
        found = (delta.scale * delta.lora_B @ delta.lora_A).detach()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(delta.lora_A.norm(dim=1), delta.lora_B.norm(dim=0), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "modernbert"])
def test_olora_starts_from_the_first_columns_of_q(kind: str) -> None:
    """By numpy, up to the signs of its QR; A holds the first rows of R whatever the scale."""
    _, adapter = attached(kind, rank=5, alpha=3.0, targets=["query", "value", "embedding"], init="olora")
    for placed in adapter.placed():
        delta = placed.delta
        assert isinstance(delta, LowRank)
        Q, R = np.linalg.qr(rows_of(placed).detach().double().numpy())
        expected = torch.from_numpy(Q[:, :5] @ R[:5]).float()
        torch.testing.assert_close((delta.lora_B @ delta.lora_A).detach(), expected, atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(delta.lora_B.T @ delta.lora_B, torch.eye(5), atol=1e-5, rtol=0)
        torch.testing.assert_close(delta.lora_A.tril(-1), torch.zeros_like(delta.lora_A), atol=1e-5, rtol=0)


def test_pissa_in_bf16_starts_as_the_backbone_to_the_bit() -> None:
    backbone, adapter = attached("bert", dtype="bfloat16", init="pissa")
    assert torch.equal(backbone(*batch()), tiny("bert", dtype="bfloat16")(*batch()))
    starts = [tensor for delta in low_ranks(adapter) for tensor in delta.buffers()]
    assert len(starts) == 2 * 4
    assert {tensor.dtype for tensor in starts} == {torch.float32}


@pytest.mark.parametrize(
    ("kind", "init"), [("bert", "pissa"), ("gpt2", "pissa"), ("gpt2", "milora"), ("gpt2", "olora")]
)
def test_starts_inside_the_weight_merge(kind: str, init: str) -> None:
    backbone, adapter = attached(kind, init=init, targets=["query", "value", "embedding"])
    trained(adapter)
    weights = {n: p.clone() for n, p in backbone.model.named_parameters()}
    with torch.no_grad():
        expected = backbone(*batch())
        adapter.merge()
        torch.testing.assert_close(backbone(*batch()), expected, atol=1e-5, rtol=0)
        assert any(not torch.equal(p, weights[n]) for n, p in backbone.model.named_parameters())
        adapter.unmerge()
        assert torch.equal(backbone(*batch()), expected)
    assert all(torch.equal(p, weights[n]) for n, p in backbone.model.named_parameters())


def test_pissa_on_meta_has_its_shapes() -> None:
    architecture = {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    backbone = TransformerConfig(architecture=architecture).build(2, seed=0, device="meta")
    adapter = attach(backbone, LoRA(init="pissa"), seed=0)
    assert {tensor.device.type for delta in low_ranks(adapter) for tensor in delta.buffers()} == {"meta"}
    shapes = {tuple(tensor.shape) for delta in low_ranks(adapter) for tensor in delta.buffers()}
    assert shapes == {(8, 32), (32, 8)}


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_train(kind: str, bias: str) -> None:
    backbone, adapter = attached(kind, bias=bias)
    original = tiny(kind)
    counted = count_parameters(adapter)["trainable_without_head"]
    assert adapter.strategy.closed_form(original) == counted
    adapted = {placed.name for placed in adapter.placed()}
    head = {name for name, _ in backbone.head_parameters()}
    expected = {
        name
        for name, _ in original.model.named_parameters()
        if name.endswith(".bias") and name not in head and (bias == "all" or name.removesuffix(".bias") in adapted)
    }
    assert set(adapter.own_names()) == expected
    assert {name for name, _ in adapter.named_parameters() if name.endswith("bias")} == expected
    assert len(expected) > (4 if bias == "all" else 1)
    require_reload({"bias": bias}, kind)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("bias", ["all", "lora_only"])
@pytest.mark.parametrize("stored", [{"dtype": "bfloat16"}, {"quantize": "nf4"}], ids=["bf16", "nf4"])
def test_biases_train_in_float32_under_their_own_names(kind: str, bias: str, stored: dict[str, str]) -> None:
    """A step of 1e-5 is lost on a bias of 1 in 16 bits."""
    backbone, adapter = attached(kind, bias=bias, **stored)  # type: ignore[arg-type]
    _, alike = attached(kind, bias=bias)
    saved = adapter.tensors()
    assert saved.keys() == alike.tensors().keys()
    biases = {name: p for name, p in saved.items() if name.endswith("bias")}
    assert {p.dtype for p in biases.values()} == {torch.float32}
    assert adapter.strategy.closed_form(tiny(kind, **stored)) == count_parameters(adapter)["trainable_without_head"]
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
    trained(adapter)
    assert any(not torch.equal(p, before[name]) for name, p in biases.items())
    other, again = attached(kind, seed=9, bias=bias, **stored)
    again.load_state_dict({name: t.clone() for name, t in adapter.state_dict().items()})
    assert torch.equal(other.eval()(*batch()), backbone.eval()(*batch()))
    exported = {key for key in codec.written(adapter).tensors if key.endswith("bias")}
    assert exported == {key for key in codec.written(alike).tensors if key.endswith("bias")}


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("llama", {"bias": "all"}, "peft.bias=all: this backbone has no bias"),
        ("llama", {"bias": "lora_only"}, "peft.bias=lora_only: the adapted layers have no bias"),
        ("bert", {"bias": "lora_only", "targets": ["embedding"]}, "the adapted layers have no bias"),
        ("bert", {"freeze_A": True, "targets": ["query", "embedding"]}, "peft.freeze_A=true"),
        ("bert", {"init": "pissa", "quantize": "nf4"}, "peft.init=pissa"),
        ("bert", {"init": "milora", "quantize": "int8"}, "peft.init=milora"),
        ("bert", {"init": "olora", "quantize": "nf4"}, "peft.init=olora"),
    ],
)
def test_wrong_uses(kind: str, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(PeftlabError) as error:
        attached(kind, **fields)
    assert said in str(error.value)


def test_a_weight_that_two_modules_share_is_not_merged_into() -> None:
    _, adapter = attached("t5", targets=["shared"])
    with pytest.raises(PeftlabError, match="shares its weight"):
        adapter.merge()


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
        assert count_parameters(attach(backbone, strategy, seed=0))["trainable_without_head"] == count


def test_switched_off_it_is_the_backbone_unless_biases_train() -> None:
    backbone, adapter = attached("bert", init="pissa")
    expected = tiny("bert")
    trained(adapter)
    with torch.no_grad():
        for mine, theirs in zip(backbone.head_parameters(), expected.head_parameters(), strict=True):
            mine[1].copy_(theirs[1])
    with adapter.disabled():
        assert torch.equal(backbone(*batch()), expected(*batch()))
    assert not torch.equal(backbone(*batch()), expected(*batch()))
    _, adapter = attached("bert", bias="all")
    own = r"peft=lora trains the backbone's own '\S+\.bias' \(and \d+ more\) .* cannot be switched"
    with pytest.raises(PeftlabError, match=own), adapter.disabled():
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
