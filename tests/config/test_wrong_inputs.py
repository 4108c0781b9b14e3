"""Every mistake ends with one message that names the key, what is allowed and the nearest name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from peftlab.shipped import config_folder
from tests.alone import HEAVY, peftlab_alone
from tests.conftest import Peftlab

# (what is typed after `peftlab train`, what the message must say)
WRONG: list[tuple[list[str], list[str]]] = [
    (["peft.rnak=4"], ["peft.rnak", "Did you mean 'rank'?", "alpha, alpha_pattern"]),
    (["optim.lrr=1"], ["optim.lrr", "Did you mean 'lr'?"]),
    (["sede=1"], ["'sede'", "Did you mean 'seed'?"]),
    (["+sede=1"], ["'sede'", "Did you mean 'seed'?", "on the command line"]),
    (["+peft.rnk=1"], ["peft.rnk", "Did you mean 'rank'?"]),
    (["trainer.max_epoch=1"], ["trainer.max_epoch", "Did you mean 'max_epochs'?"]),
    (["peft=lroa"], ["peft=lroa", "Did you mean 'lora'?", "adalora, bitfit"]),
    (["optim=adam"], ["optim=adam", "Did you mean 'adamw'?"]),
    (["logger=wanb"], ["logger=wanb", "Did you mean 'wandb'?"]),
    (["data=imbd"], ["data=imbd", "Did you mean 'imdb'?"]),
    (["exeriment=first_run"], ["exeriment", "Did you mean 'experiment'?"]),
    (["experiment=frist_run"], ["experiment=frist_run", "Did you mean 'first_run'?"]),
    (["peft.rank=0"], ["peft.rank=0", "at least 1"]),
    (["peft.rank=abc"], ["peft.rank='abc'", "whole number"]),
    (["peft.rank=true"], ["peft.rank=True", "not true/false"]),
    (["peft.rank=2.5"], ["peft.rank=2.5", "whole number"]),
    (["peft.dropout=1.5"], ["peft.dropout=1.5", "less than 1"]),
    (["peft.alpha=-1"], ["peft.alpha=-1", "greater than 0"]),
    (["peft.targets=[]"], ["peft.targets is empty"]),
    (["peft.targets=query"], ["peft.targets='query'", "it must be a list"]),
    (["optim.lr=nan"], ["optim.lr=nan", "finite"]),
    (["optim.lr=0"], ["optim.lr=0", "greater than 0"]),
    (["optim=sgd", "optim.nesterov=true"], ["optim.nesterov=true needs optim.momentum"]),
    (["data.val_fraction=1.0"], ["data.val_fraction=1.0", "less than 1"]),
    (["data.limit_train=0"], ["data.limit_train=0", "at least 1"]),
    (["trainer.precision=fp17"], ["trainer.precision='fp17'", "bf16-mixed"]),
    (["trainer.devices=0"], ["trainer.devices=0", "at least 1"]),
    (["trainer.monitor=acuracy"], ["trainer.monitor='acuracy'", "Did you mean 'accuracy'?"]),
    (["seed=-1"], ["seed=-1", "at least 0"]),
    (["optim.lr=.inf"], ["optim.lr='.inf'", "finite"]),
    (["peft.alpha_pattern={query: -1}"], ["train: peft.alpha_pattern.query=-1", "greater than 0", "command line"]),
    (["peft.targets=[query,3]"], ["train: peft.targets[1]=3", "must be text", "command line"]),
    (["name=../../x"], ["name='../../x'", "must begin with a letter or digit"]),
    ([f"name={'x' * 200}"], ["at most 120 characters", "has 200", "shorten"]),
    (
        ["backbone=tiny", "+backbone.architecture.hidden_dropout_prob=nan"],
        ["backbone.architecture.hidden_dropout_prob=nan", "finite", "command line"],
    ),
    (["data=text_files", "data.path=~/reviews.csv"], ["""'data.path="~/reviews.csv"'"""]),
    (["data=text_files", "data.path=données/a.csv"], ["""'data.path="données/a.csv"'""", "beyond ASCII"]),
    (["data=text_files", "data.path=a (3).csv"], ["""'data.path="a (3).csv"'"""]),
    (["data.sep=;"], ["unknown key 'data.sep'", "separator of a csv is found by its header line"]),
    (["foo.bar=(x)"], ["unknown key 'foo'"]),
    (["data=text_files", "data.pat=x;y"], ["unknown key 'data.pat'. Did you mean 'path'?"]),
    (["backbone=hf"], ["backbone.name_or_path has no default: type backbone.name_or_path=<hub id", "hf.yaml"]),
    (["backbone.quantize=int4"], ["backbone.quantize='int4'", "nf4"]),
    (["backbone.name_or_path=x"], ["exactly one of", "backbone.name_or_path"]),
    (["schedule._target_=foo.Bar"], ["schedule._target_=foo.Bar", "PEFTLAB_ALLOW=foo"]),
    (["peft._target_=peftlab.peft.lroa.LoRA"], ["peftlab.peft.lroa", "Did you mean 'lora'?"]),
    (["peft._target_=peftlab.peft.lora.LoRa"], ["no class 'LoRa'", "Did you mean 'LoRA'?"]),
    (["peft._target_=peftlab.training.optim.SGD"], ["must be a peftlab.peft.base.PEFTStrategy"]),
    (["optim.lr=${peft.learning_rate}"], ["optim.lr", "peft.learning_rate", "not found"]),
    (["peft.rank", "4"], ["cannot read 'peft.rank'", "key=value"]),
    (["peft.targets=[query,"], ["cannot read", "quote"]),
    (["data=imdb", "data.source=local"], ["data.path"]),
    (["data=imdb", "data.source=local", "data.path=nowhere"], ["data.path", "nowhere"]),
    (["logger=[csv,wandb]"], ["logger=[csv,wandb] names 2 options", "logger=several 'logger.loggers=[csv,wandb]'"]),
    (["logger=csv,wandb"], ["logger=csv,wandb names 2 options", "logger=several 'logger.loggers=[csv,wandb]'"]),
    (["peft=[lora,dora]"], ["peft=compose 'peft.methods=[lora,dora]'", "train -m peft=lora,dora"]),
    (["+trainer=[cpu,gpu]"], ["trainer=[cpu,gpu] names 2 options", "trainer=cpu;"]),
    (["debug=[fast]"], ["write debug=fast."]),
    (["+peft=dora"], ["write peft=dora, without +"]),
    (["peft.rank=2,4"], ["gives several values", "train -m", "'peft.rank=[2,4]'", "'peft.rank=\"2,4\"'"]),
    (["peft.rank=range(2,5)"], ["gives several values", "train -m"]),
    (["-m", "peft=[lora,dora],ia3"], ["peft=[lora,dora] names 2 options"]),
    (["logger=several", "logger.loggers=[csv,wanb]"], ["logger.loggers[1]=wanb", "Did you mean 'wandb'?"]),
    (["logger=several", "logger.loggers=[{name: wandb, mod: x}]"], ["logger.loggers[0].mod", "Did you mean 'mode'?"]),
    (["logger=several", "logger.loggers=[csv,csv]"], ["names csv more than once"]),
    (["--config-dir", "nowhere"], ["nowhere"]),
    (["--config-name", "trian"], ["trian"]),
]


@pytest.mark.parametrize(("typed", "said"), WRONG, ids=[" ".join(typed) for typed, _ in WRONG])
def test_wrong_input(peftlab: Peftlab, typed: list[str], said: list[str], scratch: Path) -> None:
    result = peftlab("train", *typed)
    assert result.status == 2
    for part in said:
        assert part in result.err
    assert "Traceback" not in result.err
    assert result.err.startswith("peftlab train: ")
    assert not (scratch / "outputs").exists(), "nothing may be left behind"


def test_a_typo_in_a_yaml_file_names_the_file(peftlab: Peftlab, scratch: Path) -> None:
    folder = scratch / "mine" / "peft"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("_target_: peftlab.peft.lora.LoRA\nrnak: 4\n")
    result = peftlab("train", "--config-dir", scratch / "mine", "peft=mine")
    assert result.status == 2
    assert "peft.rnak" in result.err
    assert "Did you mean 'rank'?" in result.err
    assert str(folder / "mine.yaml") in result.err


def test_a_bad_value_in_an_experiment_file_names_the_file(peftlab: Peftlab, scratch: Path) -> None:
    folder = scratch / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\npeft:\n  rank: -3\n")
    result = peftlab("train", "-cd", scratch / "mine", "experiment=mine")
    assert result.status == 2
    assert "peft.rank=-3" in result.err
    assert str(folder / "mine.yaml") in result.err


def test_a_list_of_options_in_a_file_is_refused_too(peftlab: Peftlab, scratch: Path) -> None:
    folder = scratch / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\ndefaults:\n  - override /peft: [lora, dora]\n")
    result = peftlab("train", "-cd", scratch / "mine", "experiment=mine")
    assert result.status == 2
    assert "peft=[lora,dora] names 2 options" in result.err


def test_invalid_yaml_names_file_and_line(peftlab: Peftlab, scratch: Path) -> None:
    folder = scratch / "mine" / "optim"
    folder.mkdir(parents=True)
    (folder / "broken.yaml").write_text("lr: 1\n  weight_decay: : 2\n")
    result = peftlab("train", "--config-dir", scratch / "mine", "optim=broken")
    assert result.status == 2
    assert "broken.yaml, line 2" in result.err


def test_several_bad_values_are_all_named(peftlab: Peftlab) -> None:
    result = peftlab("train", "peft.rank=0", "peft.dropout=2")
    assert "peft.rank=0" in result.err
    assert "peft.dropout=2" in result.err


@pytest.mark.parametrize("arguments", [["trian"], ["methods", "lroa"], ["evaluate", "nowhere"], ["predict", "nowhere"]])
def test_wrong_verbs_and_folders(peftlab: Peftlab, arguments: list[str]) -> None:
    result = peftlab(*arguments)
    assert result.status == 2
    assert arguments[-1] in result.err


def test_debug_shows_the_traceback(peftlab: Peftlab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTLAB_DEBUG", "1")
    assert "Traceback" in peftlab("train", "peft.rank=0").err


def test_a_mistake_is_found_without_importing_what_is_heavier_than_torch() -> None:
    """That is what keeps the answer under the two seconds a person waits gladly."""
    done = peftlab_alone("train", "peft.rank=0")
    assert done.status == 2
    assert done.heavy == ["torch"]
    assert "peft.rank=0" in done.err


@pytest.mark.parametrize("typed", ["optim.lr=0", "data.batch_size=0", "backbone.quantize=int4", "peft=lroa"])
def test_a_mistake_outside_the_method_does_not_even_import_torch(typed: str) -> None:
    done = peftlab_alone("train", typed)
    assert done.status == 2
    assert done.heavy == []


SHIPPED = [
    f"{group}={file.stem}"
    for group in ("data", "backbone", "peft", "optim", "schedule", "logger")
    for file in sorted((config_folder() / group).glob("*.yaml"))
]


def test_no_config_class_imports_what_is_heavier_than_torch() -> None:
    """All of them in one process: whatever is imported once stays."""
    code = (
        "import sys; from peftlab.schema import import_class; from peftlab.shipped import config_folder; import yaml;"
        "texts = [file.read_text() for file in sorted(config_folder().glob('*/*.yaml'))];"
        "targets = [(yaml.safe_load(text) or {}).get('_target_', '') for text in texts];"
        "classes = [import_class(target, 'k') for target in targets if target.startswith('peftlab.')];"
        f"print(len(classes), [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{len(SHIPPED)} ['torch']"


def test_checking_a_config_imports_nothing_heavier_than_torch() -> None:
    for typed in (["peft=hf_peft"], ["data=multitask", "peft=multitask_prompt"], ["peft=compose", "optim=paged_adamw"]):
        done = peftlab_alone("check", *typed, "--no-counts")  # which are counted on the model's shapes
        assert done.status == 0, done.err
        assert set(done.heavy) <= {"torch"}
    assert not {"lightning", "torchmetrics"} & set(peftlab_alone("check", "peft=lora").heavy)  # counting needs neither


def test_a_sweep_is_checked_before_its_first_job(peftlab: Peftlab, scratch: Path) -> None:
    result = peftlab("train", "-m", "peft.rank=1,2,0")
    assert result.status == 2
    assert "job 2 (peft.rank=0)" in result.err
    assert not list(scratch.glob("outputs/*/*/record.json"))
