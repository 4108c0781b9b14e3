"""Settings of a random model that its file does not list, files in --config-dir that harm, and jobs of ``check -m``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from peftlab import hydra_changes
from peftlab.composition import checked, composed, jobs_of, run_as_hydra_application
from peftlab.config import RunConfig
from peftlab.errors import ConfigError, PeftlabError
from peftlab.sweeps.cache import ConfigCache
from peftlab.sweeps.jobs import Job

TINY = ("data=text_files", "data.path=x.csv", "backbone=tiny")
SIZES = {
    "vocab_size": 259,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2}


@pytest.fixture(autouse=True)
def data(scratch: Path) -> None:
    (scratch / "x.csv").write_text("text,label\na,x\nb,y\n")


def whole(*overrides: str) -> RunConfig:
    return checked([*TINY, *overrides])


def from_template(*overrides: str) -> RunConfig:
    with ConfigCache() as cache:
        return cache.config(Job("a", "a", [*TINY, *overrides]))


@pytest.mark.parametrize("composing", [whole, from_template])
@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("{model_type: gpt2, n_embd: 32, n_layer: 2, n_head: 2}", GPT2),
        ("{model_type: roberta}", SIZES | {"model_type": "roberta"}),
        ("{hidden_size: 64}", SIZES | {"model_type": "bert", "hidden_size": 64}),
    ],
)
def test_a_mapping_stands_for_the_whole_or_changes_it(composing, override: str, expected: dict[str, object]) -> None:  # type: ignore[no-untyped-def]
    assert vars(composing(f"backbone.architecture={override}").backbone)["architecture"] == expected


@pytest.mark.parametrize("composing", [whole, from_template])
def test_any_setting_of_the_model_type(composing) -> None:  # type: ignore[no-untyped-def]
    found = composing("backbone.architecture.type_vocab_size=1").backbone.architecture
    assert found == SIZES | {"model_type": "bert", "type_vocab_size": 1}
    with pytest.raises(PeftlabError, match=r"architecture\.hiden_size: bert has no such setting. Did you mean 'hidden"):
        composing("backbone.architecture.hiden_size=64")


def test_other_keys_are_as_strict_as_before() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'backbone\.dtyp'"):
        whole("backbone.dtyp=float32")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "said"),
    [(BOMB, "aliases repeat"), ("zz: " + "[" * 5000, "brackets within")],
)
def test_a_file_that_harms_is_refused_in_a_folder_of_configs(content: str, said: str, scratch: Path) -> None:
    file = scratch / "mine/data/mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    with pytest.raises(ConfigError, match=said) as refused:
        composed(["data=mine"], config_dir=str(scratch / "mine"))
    assert "mine.yaml" in str(refused.value)


def test_jobs_are_those_of_train() -> None:
    assert jobs_of(["peft=glob(dor*)", "seed=range(0,2)"]) == [["peft=dora", "seed=0"], ["peft=dora", "seed=1"]]
    with pytest.raises(ConfigError, match=r"interval\(…\) has no list of values"):
        jobs_of(["optim.lr=interval(1e-4,1e-2)"])


HALF = "\\ud83d"


@pytest.mark.parametrize("row", [f'"text": "a {HALF}", "label": "x"', f'"text": "a", "label": "x{HALF}"'])
def test_half_a_character_in_a_row(row: str, scratch: Path) -> None:
    (scratch / "rows.jsonl").write_text('{"text": "b", "label": "y"}\n{' + row + "}\n")
    config = checked(["data=text_files", "data.path=rows.jsonl", "backbone=tiny"])
    with pytest.raises(PeftlabError, match=r"row 2 \(line 2\): the (text|label) .* holds \\ud83d, one half of a char"):
        config.data.load()


def test_half_a_character_in_a_config(scratch: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.labels\[1\] is not allowed: it holds \\ud83d"):
        whole('data.labels=["x","y\ud83d"]')


def test_half_a_character_on_the_command_line(peftlab) -> None:  # type: ignore[no-untyped-def]
    result = peftlab("predict", "outputs/a/b", "--text", "caf\udce9")
    assert result.status == 2
    assert result.err == (
        "peftlab: 'caf\\udce9' is no UTF-8, and could not be written into a record or a table. Give words and names "
        "of files in UTF-8.\n"
    )


def run_as(*words: str) -> list[Any]:
    """What an application is given, and what Hydra says of it."""
    found: list[Any] = []

    def task(config: DictConfig) -> None:
        found.extend(OmegaConf.to_container(part, resolve=False) for part in (config, HydraConfig.get()))

    run_as_hydra_application([*TINY, *words], task)
    return found


def test_an_application_composes_once_what_hydra_composes(monkeypatch: pytest.MonkeyPatch) -> None:
    composing = ConfigLoaderImpl._load_configuration_impl
    times: list[int] = []

    def counted(self: ConfigLoaderImpl, *arguments: Any, **more: Any) -> DictConfig:
        times.append(1)
        return composing(self, *arguments, **more)

    monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", counted)
    words = ("peft.rank=4", "hydra.verbose=false")
    once = run_as(*words)
    assert len(times) == 1
    monkeypatch.setattr(Hydra, "get_mode", hydra_changes._plainly_tell_mode)
    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", hydra_changes._plainly_configure)
    monkeypatch.setattr(hydra_changes, "_read", hydra_changes._plainly_read)
    assert run_as(*words) == once
    assert len(times) == 3


def test_a_file_that_was_changed_is_read_again_and_what_was_composed_is_ones_own(scratch: Path) -> None:
    (scratch / "mine/peft").mkdir(parents=True)
    file = scratch / "mine/peft/own.yaml"
    before = hydra_changes._parsed.cache_info().hits
    for rank in (3, 4, 3):
        file.write_text(f"defaults: [lora]\nrank: {rank}\ntargets: [query]\n")
        found = composed([*TINY, "peft=own"], config_dir="mine")
        assert found.peft.rank == rank
        found.peft.rank = 99
        found.peft.targets.append("more")
    assert hydra_changes._parsed.cache_info().hits > before, "the other files"
    assert "more" not in composed([*TINY, "peft=own"], config_dir="mine").peft.targets
