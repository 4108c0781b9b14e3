from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from peftlab.backbones.roles import find_targets
from peftlab.backbones.transformer import TransformerConfig
from peftlab.errors import BackboneError
from tests.backbones.tiny_backbones import ARCHITECTURES, batch, shake, tiny, tiny_config

TEXTS = ["short", "a text that is quite a bit longer than that", ""]
HEADS = {
    "bert": ["classifier"],
    "roberta": ["classifier"],
    "distilbert": ["pre_classifier", "classifier"],
    "deberta-v2": ["pooler", "classifier"],
    "modernbert": ["head", "classifier"],
    "gpt2": ["score"],
    "llama": ["score"],
    "t5": ["classification_head"],
}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_logits_do_not_depend_on_padding(model_type: str) -> None:
    backbone = tiny(model_type)
    shake(backbone)
    ids, mask = batch(backbone, TEXTS)
    with torch.no_grad():
        together = backbone(ids, mask)
        alone = torch.cat([backbone(*batch(backbone, [text])) for text in TEXTS])
    assert together.shape == (3, 3)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert (together[0] - together[1]).abs().max() > 1e-3, "the text must matter"


@pytest.mark.parametrize("model_type", HEADS)
def test_head(model_type: str) -> None:
    backbone = tiny(model_type)
    assert backbone.head_modules() == HEADS[model_type]
    assert backbone.head_parameters()
    meta = tiny_config(model_type).build(3, seed=0, device="meta")
    assert meta.head_modules() == backbone.head_modules()
    assert all(parameter.is_meta for parameter in meta.parameters())


def saved(tmp_path: Path, backbone: Any, *, drop: str | None = None) -> Path:
    from safetensors.torch import save_file

    weights = {n: p.clone() for n, p in backbone.model.state_dict().items() if drop is None or drop not in n}
    backbone.model.config.save_pretrained(tmp_path)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(tmp_path)
    return tmp_path


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "[SEP]": 2, "good": 3}, "[UNK]"))
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]"
    ).save_pretrained(folder)


@pytest.mark.parametrize("model_type", HEADS)
def test_a_folder_gives_its_trunk_and_a_head_from_the_seed(tmp_path: Path, model_type: str) -> None:
    first = tiny(model_type, seed=1)
    head = tuple(f"{name}." for name in first.head_modules())
    from safetensors.torch import save_file

    first.model.config.save_pretrained(tmp_path)
    trunk = {n: p.clone() for n, p in first.model.state_dict().items() if not n.startswith(head)}
    save_file(trunk, tmp_path / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(tmp_path)
    config = TransformerConfig(name_or_path=str(tmp_path), attention=tiny_config(model_type).attention)
    state = torch.get_rng_state()
    loaded, again, other = config.build(5, seed=2), config.build(5, seed=2), config.build(5, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    assert loaded.head_modules() == first.head_modules()
    assert loaded.training
    assert all(module.training for module in loaded.modules())
    own, same, different = (dict(b.model.named_parameters()) for b in (loaded, again, other))
    for name, tensor in trunk.items():
        if name in own:
            assert torch.equal(own[name], tensor), name
    drawn = [name for name, _ in loaded.head_parameters()]
    assert sorted(loaded.provenance["new_weights"]) == sorted(drawn)
    assert all(torch.equal(own[name], same[name]) for name in drawn)
    assert any(not torch.equal(own[name], different[name]) for name in drawn)
    assert loaded.provenance["parameters"] == sum(p.numel() for p in loaded.model.parameters())
    meta = config.build(5, seed=0, device="meta")
    assert {n: p.shape for n, p in meta.model.named_parameters()} == {n: p.shape for n, p in own.items()}


def test_random_weights_are_of_the_seed_alone() -> None:
    torch.manual_seed(11)
    first = tiny("bert", seed=4)
    torch.manual_seed(22)
    state = torch.get_rng_state()
    again = tiny("bert", seed=4)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.model.classifier.weight, tiny("bert", seed=5).model.classifier.weight)


def test_a_classifier_for_other_classes_is_drawn_anew(tmp_path: Path) -> None:
    folder = saved(tmp_path, tiny("bert", 3, seed=1))
    same = TransformerConfig(name_or_path=str(folder)).build(3, seed=9)
    assert same.provenance["new_weights"] == []
    other = TransformerConfig(name_or_path=str(folder)).build(2, seed=9)
    assert other.provenance["new_weights"] == ["classifier.bias", "classifier.weight"]


def test_a_pooler_that_the_checkpoint_lacks_is_trained(tmp_path: Path) -> None:
    folder = saved(tmp_path, tiny("bert"), drop="pooler")
    backbone = TransformerConfig(name_or_path=str(folder)).build(3, seed=0)
    assert backbone.head_modules() == ["bert.pooler", "classifier"]
    assert backbone.provenance["new_weights"] == ["bert.pooler.dense.bias", "bert.pooler.dense.weight"]


def test_missing_trunk_weights_are_an_error(tmp_path: Path) -> None:
    folder = saved(tmp_path, tiny("bert"), drop="layer.1.attention.self.query")
    with pytest.raises(
        BackboneError, match=r"lacks 2 of the model's weights: bert.encoder.layer.1.attention.self.query"
    ):
        TransformerConfig(name_or_path=str(folder)).build(3, seed=0)


def test_misshapen_trunk_weights_are_an_error(tmp_path: Path) -> None:
    folder = saved(tmp_path, tiny("bert"))
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"intermediate_size": 64', '"intermediate_size": 32'))
    with pytest.raises(BackboneError, match=r"lacks 6 of the model's weights: .*intermediate.dense"):
        TransformerConfig(name_or_path=str(folder)).build(3, seed=0)


def test_weight_files_of_a_folder(tmp_path: Path) -> None:
    folder = saved(tmp_path, tiny("bert"))
    names = {path.name for path in TransformerConfig(name_or_path=str(folder)).weight_files()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert tiny_config("bert").weight_files() == []


def test_roberta_base_counts_without_weights() -> None:
    architecture = {
        "model_type": "roberta",
        "vocab_size": 50265,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
    }
    backbone = TransformerConfig(architecture=architecture).build(2, seed=0, device="meta")
    assert sum(p.numel() for p in backbone.parameters()) == backbone.provenance["parameters"] == 124_647_170
    assert sum(p.numel() for _, p in backbone.head_parameters()) == 592_130
    targets = find_targets(backbone, ["query", "value"])
    assert sum(8 * (t.module.in_features + t.module.out_features) for t in targets) == 294_912


@pytest.mark.parametrize(
    ("model_type", "limit"), [("bert", 64), ("roberta", 63), ("gpt2", 64), ("llama", 64), ("distilbert", 64)]
)
def test_the_longest_input_is_the_limit(model_type: str, limit: int) -> None:
    backbone = tiny(model_type)
    backbone.check_length(limit)
    with pytest.raises(BackboneError, match=f"data.max_length={limit + 1} .* at most {limit}"):
        backbone.check_length(limit + 1)
    assert backbone(*batch(backbone, ["x" * 100], limit)).shape == (1, 3)


def test_t5_has_no_limit() -> None:
    tiny("t5").check_length(100_000)


@pytest.mark.parametrize(
    ("model_type", "names"),
    [
        ("bert", ["hidden_dropout_prob", "attention_probs_dropout_prob"]),
        ("distilbert", ["dropout", "attention_dropout"]),
        ("gpt2", ["resid_pdrop", "embd_pdrop", "attn_pdrop"]),
        ("modernbert", ["embedding_dropout", "mlp_dropout", "attention_dropout"]),
        ("llama", ["attention_dropout"]),
        ("t5", ["dropout_rate"]),
    ],
)
def test_dropout_reaches_the_layers(model_type: str, names: list[str]) -> None:
    config = tiny(model_type, dropout=0.25).model.config
    assert [getattr(config, name) for name in names] == [0.25] * len(names)


def test_attention_dropout_is_set_apart() -> None:
    backbone = tiny("bert", dropout=0.3, attention_dropout=0.0)
    assert backbone.model.config.hidden_dropout_prob == 0.3
    rates = {n: m.p for n, m in backbone.model.named_modules() if n.endswith("dropout")}
    assert {rate for name, rate in rates.items() if name.endswith("attention.self.dropout")} == {0.0}
    assert {rate for name, rate in rates.items() if not name.endswith("attention.self.dropout")} == {0.3}
    kept = tiny("bert", attention_dropout=0.0).model.config
    assert (kept.hidden_dropout_prob, kept.attention_probs_dropout_prob) == (0.1, 0.0)
    with pytest.raises(BackboneError, match=r"backbone.attention_dropout=0.1: t5 has no such"):
        tiny("t5", attention_dropout=0.1)


@pytest.mark.parametrize("model_type", HEADS)
def test_low_precision_trunk_with_a_float32_head(model_type: str) -> None:
    backbone = tiny(model_type, dtype="bfloat16")
    assert all(p.dtype == torch.float32 for _, p in backbone.head_parameters())
    first = next(iter(find_targets(backbone, [".*"])))
    assert first.module.weight.dtype == torch.bfloat16
    logits = backbone(*batch(backbone, TEXTS))
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert all(p.grad is not None for _, p in backbone.head_parameters())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give exactly one of .* got none of them"),
        ({"name_or_path": "a/b", "package": "c"}, "got name_or_path and package"),
        (
            {"architecture": {"model_type": "bert"}, "sha256": "00"},
            "backbone.sha256=00 belongs to backbone.package",
        ),
        ({"package": "a", "revision": "main"}, "backbone.revision=main belongs to backbone.name_or_path"),
        ({"architecture": {"hidden_size": 3}}, "must name its model_type"),
    ],
)
def test_contradictory_fields_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        TransformerConfig(**fields)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"model_type": "brt"}, "no sequence classifier of model type 'brt'. Did you mean 'bert'"),
        (
            {"model_type": "bert", "hiden_size": 32},
            "backbone.architecture.hiden_size: .* Did you mean 'hidden_size'",
        ),
        ({"model_type": "bert", "hidden_size": 33}, "bert"),
        ({"model_type": "bert", "vocab_size": 100}, "259 tokens, but the model embeds 100"),
    ],
)
def test_impossible_architectures_are_refused(architecture: dict[str, Any], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        TransformerConfig(architecture=architecture).build(2, seed=0)


def test_attention_that_the_architecture_lacks() -> None:
    with pytest.raises(BackboneError, match=r"backbone.attention=sdpa: deberta-v2 .* backbone.attention=eager"):
        tiny("deberta-v2", attention="sdpa")


def test_mean_pooling_is_the_mean_over_the_tokens_of_each_text() -> None:
    backbone = tiny_config("bert", pooling="mean").build(3, seed=0).eval()
    ids, mask = batch(backbone, TEXTS)
    hidden = backbone.model.bert(input_ids=ids, attention_mask=mask).last_hidden_state
    means = torch.stack([row[: keep.sum()].mean(dim=0) for row, keep in zip(hidden, mask, strict=True)])
    torch.testing.assert_close(backbone(ids, mask), backbone.model.classifier(means))


def test_mean_pooling_needs_a_linear_head() -> None:
    with pytest.raises(BackboneError, match="one linear layer; roberta has classifier"):
        tiny_config("roberta", pooling="mean").build(3, seed=0)


@pytest.mark.whole
def test_a_model_on_meta_before_changes_no_weight_that_is_drawn_after() -> None:
    """Counting builds models on meta, and a process that has counted may train: as jobs of a sweep's server do."""
    build = "check(composed(['backbone=tiny'])).backbone.build(2, seed=0{})"
    code = (
        "import torch; from peftlab.composition import check, composed\n{}\n"
        f"print([float(p.sum()) for p in {build.format('')}.parameters()])"
    )
    first = build.format(", device=torch.device('meta')")
    said = [
        subprocess.run([sys.executable, "-c", code.format(before)], capture_output=True, text=True, check=True).stdout
        for before in ("", first)
    ]
    assert said[0] == said[1]
    assert len(set(json.loads(said[0]))) > 5
