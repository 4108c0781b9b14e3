"""Every shipped YAML composes, says all fields of its dataclass, and shows the command that uses it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from peftlab.backbones.transformer import TransformerConfig
from peftlab.composition import checked
from peftlab.config import GROUPS
from peftlab.records.identity import run_key
from peftlab.schema import import_class
from peftlab.shipped import config_folder
from peftlab.training.config import TrainerConfig
from tests.conftest import Peftlab

FILES = sorted(path.relative_to(config_folder()) for path in config_folder().glob("*/*.yaml"))
REQUIRED = {
    "text_files": ["data.path=reviews.jsonl"],
    "instructions": ["data.path=reviews.jsonl"],
    "text": ["data.path=reviews.jsonl"],
    "qlora": ["data.path=reviews.jsonl"],
    "trec_instructions": ["data.path=reviews.jsonl"],
    "rte_instructions": ["data.path=reviews.jsonl"],
    "llama": ["backbone.name_or_path=some/llama"],
    "hub": ["data.id=some/reviews"],
    "hf": ["backbone.name_or_path=some/bert"],
}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_it_composes(path: Path, reviews: Path) -> None:
    config = checked([f"{path.parent}={path.stem}", *REQUIRED.get(path.stem, [])])
    assert config.name


@pytest.mark.parametrize("path", [p for p in FILES if str(p.parent) in GROUPS], ids=str)
def test_it_says_every_field(path: Path) -> None:
    content = yaml.safe_load((config_folder() / path).read_text())
    cls = import_class(content["_target_"], str(path))
    assert issubclass(cls, GROUPS[str(path.parent)])
    assert set(content) - {"_target_"} == {field.name for field in dataclasses.fields(cls)}


def test_the_trainer_file_says_every_field_with_its_default() -> None:
    content = yaml.safe_load((config_folder() / "trainer/default.yaml").read_text())
    assert content == dataclasses.asdict(TrainerConfig())


@pytest.mark.parametrize("path", FILES, ids=str)
def test_it_shows_the_command_that_uses_it(path: Path) -> None:
    text = (config_folder() / path).read_text()
    assert text.startswith("#")
    assert f"{path.parent}={path.stem}" in text


def test_train_yaml_is_short() -> None:
    assert len((config_folder() / "train.yaml").read_text().splitlines()) <= 30


def test_hydra_flags_work(peftlab: Peftlab) -> None:
    shown = peftlab("train", "peft.rank=3", "--cfg", "job")
    assert shown.status == 0
    assert yaml.safe_load(shown.out)["peft"]["rank"] == 3
    explained = peftlab("train", "--help")
    assert explained.status == 0
    for word in ("the PEFT method", "peft: adalora, bitfit", "rank: 8"):
        assert word in explained.out


def test_check_prints_key_and_folder(peftlab: Peftlab) -> None:
    result = peftlab("check", "--config", "peft.rank=3")
    assert result.status == 0
    values = yaml.safe_load(result.out)
    assert values["peft"]["rank"] == 3
    assert "outputs/imdb_packaged-minilm-lora/" in result.out
    said = " ".join(peftlab("check", "peft.rank=3", "optim=sgd", "optim.lr=0.1").out.split())
    assert "data=imdb_packaged backbone=minilm peft=lora optim=sgd schedule=linear trainer=default logger=csv " in said
    assert "peft.rank=3 (not 8)" in said
    assert "max_length" not in said
    both = peftlab("check", "--config", "-m", "peft.rank=1,2")
    assert (both.status, "leave -m out" in both.err) == (2, True)
    sweep = peftlab("check", "-m", "peft.rank=1,2", "seed=0,1,1")
    assert sweep.out.splitlines()[-2:] == [
        "the same run: jobs 1 = 2, 4 = 5. They say the same: give each value once.",
        "6 jobs, 4 different runs",
    ]
    loggers = peftlab("check", "-m", "logger=csv,tensorboard", "trainer.precision=32,32-true", "--no-counts").out
    assert "the same run: jobs 0 = 1 = 2 = 3. The values of logger and trainer.precision mean the same" in loggers
    why = peftlab("check", "-m", "logger=csv,tensorboard", "peft.rank=1,2", "--no-counts").out.splitlines()[-2]
    assert why.startswith("the same run: jobs 0 = 2, 1 = 3. logger is no part of a run's key")
    assert why.endswith("logger=several 'logger.loggers=[csv,tensorboard]'.")


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        (["backbone=hf", "backbone.name_or_path=meta-llama/Llama-3.2-1B"], "imdb_packaged-Llama-3.2-1B-lora"),
        (["backbone=hf", "backbone.name_or_path='my models/ein Modell (3)/'"], "imdb_packaged-ein-Modell-3-lora"),
        (["backbone=hf", "backbone.name_or_path=..."], "imdb_packaged-hf-lora"),
        (["backbone=bert_base", "backbone.name_or_path=some/bert"], "imdb_packaged-bert_base-lora"),
        (["backbone=hf", "backbone.name_or_path=some/bert", "name=mine"], "mine"),
    ],
)
def test_any_model_files_its_runs_under_its_own_name(typed: list[str], name: str) -> None:
    assert checked(typed).name == name


def test_a_preset_keeps_nothing_that_is_not_its_models() -> None:
    """MiniLM trains without attention dropout; another model in its place as its own config says."""
    other = ["backbone.package=null", "backbone.package_folder=null", "backbone.sha256=null"]
    assert _attention_dropout() == 0.0
    assert _attention_dropout(*other, "backbone.name_or_path=sentence-transformers/all-MiniLM-L6-v2") == 0.0
    assert _attention_dropout(*other, "backbone.name_or_path=mine") is None
    assert _attention_dropout(*other, "backbone.name_or_path=mine", "backbone.attention_dropout=0.2") == 0.2


def _attention_dropout(*typed: str) -> float | None:
    backbone = checked(typed).backbone
    assert isinstance(backbone, TransformerConfig)
    return backbone.attention_dropout


def test_a_model_is_the_same_run_by_its_preset_and_by_its_id() -> None:
    common = ["data=hub", "data.id=some/reviews"]
    by_id = [*common, "backbone=hf", "backbone.name_or_path=google-bert/bert-base-uncased"]
    assert run_key(checked(by_id)) == run_key(checked([*common, "backbone=bert_base"]))
