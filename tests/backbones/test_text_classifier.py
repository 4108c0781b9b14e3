from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from peftlab.backbones.roles import find_targets
from peftlab.backbones.text_classifier import TextClassifierConfig
from peftlab.backbones.text_classifier_backbone import TextClassifierBackbone
from peftlab.errors import BackboneError
from tests.backbones.tiny_backbones import batch

TEXTS = ["a good film", "a bad film , really", "good good"]


def build(num_labels: int = 2, seed: int = 0, **fields: Any) -> TextClassifierBackbone:
    return TextClassifierConfig(**fields).build(num_labels, seed=seed, train_texts=TEXTS)


def test_parameters_and_names() -> None:
    backbone = build(num_labels=4)
    shapes = {name: tuple(p.shape) for name, p in backbone.model.named_parameters()}
    assert shapes == {
        "embedding.weight": (8, 100),  # <pad> <unk> good a film , bad really
        "hidden.weight": (128, 100),
        "hidden.bias": (128,),
        "output.weight": (4, 128),
        "output.bias": (4,),
    }
    assert backbone.provenance["parameters"] == 800 + 12928 + 516
    assert [name for name, _ in backbone.head_parameters()] == ["output.weight", "output.bias"]
    assert backbone.always_frozen() == ["embedding.weight"]
    assert build(freeze=False).always_frozen() == []


def test_logits_are_those_of_the_mean_over_real_tokens() -> None:
    backbone = build()
    ids, mask = batch(backbone, TEXTS)
    model = backbone.model
    means = torch.stack([model.embedding.weight[row[keep.bool()]].mean(0) for row, keep in zip(ids, mask, strict=True)])
    expected = model.output(torch.relu(model.hidden(means)))
    torch.testing.assert_close(backbone(ids, mask), expected)
    # Whatever stands in the padding, and however much of it there is:
    garbage = torch.where(mask.bool(), ids, 3)
    torch.testing.assert_close(backbone(garbage, mask), expected)
    torch.testing.assert_close(backbone(ids[:1, :3], mask[:1, :3]), expected[:1])


def test_same_seed_same_weights_and_global_state_untouched() -> None:
    state = torch.get_rng_state()
    first, again, other = build(seed=1), build(seed=1), build(seed=2)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.model.hidden.weight, again.model.hidden.weight)
    assert not torch.equal(first.model.hidden.weight, other.model.hidden.weight)


def test_rebuilt_from_the_run_folder(tmp_path: Path) -> None:
    first = build()
    for name, content in first.files().items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    again = TextClassifierConfig().build(2, seed=0, run_folder=tmp_path)
    assert again.tokenizer.fingerprint == first.tokenizer.fingerprint
    assert torch.equal(again.model.embedding.weight, first.model.embedding.weight)


def test_meta_counts_a_full_vocabulary() -> None:
    backbone = TextClassifierConfig().build(2, seed=0, device="meta")
    assert backbone.model.embedding.weight.shape == (20002, 100)
    assert backbone.model.embedding.weight.is_meta


def test_texts_are_needed() -> None:
    with pytest.raises(BackboneError, match="train_texts"):
        TextClassifierConfig().build(2, seed=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name_or_path": "roberta-base"}, "backbone.name_or_path=null"),
        ({"quantize": "nf4"}, "backbone.quantize=null"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        TextClassifierConfig(**fields)


def test_roles() -> None:
    backbone = build()
    assert [(t.name, t.role) for t in find_targets(backbone, ["hidden", "embedding"])] == [
        ("embedding", "embedding"),
        ("hidden", "hidden"),
    ]
    with pytest.raises(BackboneError, match=r"'query' is a role that text_classifier does not have.*embedding, hidden"):
        find_targets(backbone, ["query"])


def test_glove_vectors_of_known_words(tmp_path: Path) -> None:
    path = tmp_path / "glove.txt"
    path.write_text("film 1 2 3\nunseen 9 9 9\ngood -1 0.5 2e-1\n. . . 7 7 7\nfilm 5 5 5\n", encoding="utf-8")
    config = TextClassifierConfig(embedding_dim=3, glove=str(path))
    backbone = config.build(2, seed=0, train_texts=TEXTS)
    rows = {word: backbone.model.embedding.weight[i] for i, word in enumerate(backbone.tokenizer.vocabulary)}
    assert rows["film"].tolist() == [1, 2, 3]
    torch.testing.assert_close(rows["good"], torch.tensor([-1, 0.5, 0.2]))
    assert torch.equal(
        rows["bad"], build(embedding_dim=3).model.embedding.weight[backbone.tokenizer.vocabulary.index("bad")]
    )
    assert rows["<pad>"].tolist() == [0, 0, 0]
    assert backbone.provenance["glove"] == {"file": "glove.txt", "found": 2, "words": 6}
    assert config.weight_files() == [path]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"film 1 2 3\ngood 1 2\n", "line 2 has 2 numbers.*embedding_dim is 3"),
        (b"film 1 2 3 4\n", "line 1 has 4 numbers"),
        (b"film 1 2 3\ngood 1 x 3\n", "line 2 has 'x'"),
        (b"film 1 nan 3\n", "line 1 has 'nan'"),
        (b"film 1 2 3\ngo\xffod 1 2 3\n", "line 2 is not UTF-8"),
        (b"nobody 1 2 3\n", "none of the 6 words"),
    ],
)
def test_bad_glove_files_name_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "glove.txt"
    path.write_bytes(content)
    with pytest.raises(BackboneError, match=message) as caught:
        build(embedding_dim=3, glove=str(path))
    assert str(path) in str(caught.value)


def test_missing_glove_file(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"backbone.glove: .*none.txt cannot be read"):
        build(glove=str(tmp_path / "none.txt"))
