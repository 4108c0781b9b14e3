"""``peftlab allow``: said once, for one folder, by the person; nothing that lies in a folder says it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from peftlab import allowed
from peftlab.audit.reproduce import environment
from peftlab.cli import COMMANDS
from peftlab.completion import candidates
from peftlab.errors import ConfigError, RunError
from peftlab.library.fitting import fit
from peftlab.library.run import load_run
from peftlab.peft.base import _REGISTRY
from peftlab.schema import import_class
from peftlab.trusted import NotTrusted
from tests.conftest import TINY, Peftlab, run_folder

MODULE = '''"""LoRA of my own."""
from dataclasses import dataclass
from pathlib import Path
Path("IMPORTED").touch()
from peftlab.peft.lora import LoRA

@dataclass(kw_only=True)
class MyLoRA(LoRA, name="my_lora"):
    """Mine."""
    rank: int = 3
'''


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The person's, elsewhere; and nothing is allowed by the environment."""
    found = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(found))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("PEFTLAB_ALLOW")
    return found


@pytest.fixture
def project(scratch: Path, home: Path) -> Iterator[Path]:
    """A folder with a module and a folder of configs."""
    Path("my_lora.py").write_text(MODULE)
    Path("configs/peft").mkdir(parents=True)
    Path("configs/peft/mine.yaml").write_text("# Mine.\n_target_: my_lora.MyLoRA\nrank: 3\n")
    before = sys.meta_path[:]
    yield scratch
    sys.meta_path[:] = before
    sys.modules.pop("my_lora", None)
    _REGISTRY.pop("my_lora", None)


def imported() -> bool:
    """Whether the module's code has run."""
    return Path("IMPORTED").exists()


def test_it_is_said_once(peftlab: Peftlab, project: Path, home: Path, reviews: Path) -> None:
    words = [*TINY, f"data.path={reviews}", "trainer.max_epochs=1", "peft=mine"]
    assert "peftlab allow my_lora" in peftlab("check", "-cd", "configs", *words).err
    several = peftlab("check", "-cd", "configs", "-m", *words, "seed=0,1")
    assert several.err.count("peftlab allow my_lora") == 1, "of two jobs that have it"
    told = peftlab("allow", "my_lora", "--config-dir", "configs")
    assert told.status == 0
    assert not imported(), "allowing is not importing"
    assert f"may import my_lora, {project / 'my_lora.py'}" in told.out
    assert "--config-dir configs, where none is given" in told.out
    assert json.loads((home / ".config/peftlab/allowed.json").read_text()) == {
        str(project): {"modules": ["my_lora"], "config_dir": "configs"}
    }
    checked = peftlab("check", "--config", *words)
    assert yaml.safe_load(checked.out)["peft"]["_target_"] == "my_lora.MyLoRA"
    assert "peftlab check: --config-dir configs, as you have allowed in this folder (peftlab allow)" in checked.err
    with pytest.MonkeyPatch.context() as patch:  # the second of two that srun has started
        for name, value in (("STEP_NUM_TASKS", "2"), ("PROCID", "1"), ("LOCALID", "1")):
            patch.setenv(f"SLURM_{name}", value)
        assert "as you have allowed" not in peftlab("methods", "my_lora").err
    assert "LoRA of my own" in peftlab("methods", "my_lora").out
    assert candidates(["train", "peft=mi"], COMMANDS) == ["peft=mine"]
    assert candidates(["train", "peft=mine", "peft."], COMMANDS) == ["peft.rank="]
    assert peftlab("train", *words, "name=typed").status == 0
    argv = json.loads((run_folder("typed") / "record.json").read_text())["argv"]
    assert argv[2:4] == ["--config-dir", "configs"], "the record says it"
    assert fit(*words, name="called").key == run_folder("typed").name
    assert peftlab("allow", "--forget").status == 0
    assert "unknown option peft=mine" in peftlab("check", *words).err
    assert fit(*words, config_dir="configs", name="called").key == run_folder("typed").name


def test_a_run_of_a_module_that_is_not_allowed(peftlab: Peftlab, project: Path, reviews: Path) -> None:
    peftlab("allow", "my_lora", "-cd", "configs")
    peftlab("train", *TINY, f"data.path={reviews}", "trainer.max_epochs=1", "peft=mine", "name=t")
    peftlab("allow", "--forget")
    sys.modules.pop("my_lora")
    with pytest.raises(RunError) as caught:
        load_run(run_folder("t"))
    said = str(caught.value)
    for part in ("the run in", "my_lora.MyLoRA", "peftlab allow my_lora", "PEFTLAB_ALLOW=my_lora", "import my_lora"):
        assert part in said
    assert len(caught.traceback) == 2, "this test and load_run: no frame of ours below it"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("place", [".config/peftlab/allowed.json", "peftlab/allowed.json", "allowed.json"])
def test_nothing_in_a_folder_allows_anything(project: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """As a bundle, a clone or an archive could bring along; nor does a relative XDG_CONFIG_HOME lead there."""
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    Path(place).write_text(json.dumps({str(project): {"modules": ["my_lora"], "config_dir": "configs"}}))
    for given in (".", ".config", ""):
        monkeypatch.setenv("XDG_CONFIG_HOME", given)
        assert allowed.here() == allowed.Allowed()
        with pytest.raises(NotTrusted):
            import_class("my_lora.MyLoRA", "peft._target_")
    assert not imported()


def test_it_holds_in_one_folder_and_for_one_module(
    peftlab: Peftlab, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("other.py").write_text(MODULE)
    peftlab("allow", "my_lora", "-cd", "configs")
    with pytest.raises(NotTrusted):
        import_class("other.MyLoRA", "peft._target_")
    for folder in (project / "configs", project.parent):
        monkeypatch.chdir(folder)
        assert allowed.here() == allowed.Allowed(), "neither below nor above"
        with pytest.raises(NotTrusted):
            import_class("my_lora.MyLoRA", "peft._target_")
    monkeypatch.chdir(project)
    assert not imported()
    Path("link").symlink_to(project)
    monkeypatch.chdir("link")
    assert import_class("my_lora.MyLoRA", "peft._target_").__name__ == "MyLoRA", "the folder by another name"
    with pytest.raises(ModuleNotFoundError):
        __import__("other")


def test_another_folder_is_not_added(peftlab: Peftlab, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peftlab("allow", "-cd", "configs")
    Path("mine/peft").mkdir(parents=True)
    for words in (["check", "-cd", "x"], ["check", "--config-dir=x"], ["runs", "outputs"], ["verify", "x"], []):
        assert allowed.with_config_dir(words) == (words, None)
    added = ["--config-dir", "configs"]
    assert allowed.with_config_dir(["train", "-m", "a=1"]) == (["train", *added, "-m", "a=1"], "configs")
    submitted = ["submit", "--set", "a=1", "train", "b=1"]
    assert allowed.with_config_dir(submitted) == ([*submitted[:4], *added, "b=1"], "configs")
    monkeypatch.setenv(allowed.AS_TYPED, "1")
    assert allowed.with_config_dir(["train", "a=1"]) == (["train", "a=1"], None)
    assert environment()[allowed.AS_TYPED] == "1", "what is reproduced is what was typed then"


def test_what_cannot_be_allowed(peftlab: Peftlab, project: Path, home: Path) -> None:
    assert "Nothing is allowed" in peftlab("allow").out
    for words, parts in {
        ("nowhere",): ["there is no module 'nowhere'", "nowhere.py", "Call this in the folder that has it"],
        ("my_lora.py",): ["is no name of a module", "Did you mean 'my_lora'?"],
        ("a/b",): ["is no name of a module"],
        ("subprocess",): ["is no module of yours"],
        ("peftlab.cli",): ["is no module of yours"],
        ("my_lora", "-cd", "x"): ["--config-dir x: there is no such folder"],
        ("my_lora", "--forget"): ["give it alone"],
    }.items():
        result = peftlab("allow", *words)
        assert result.status == 2
        assert all(part in result.err for part in parts), result.err
    assert not (home / ".config").exists(), "nothing was noted"


@pytest.mark.parametrize("text", ["{", "[]", '{"/a": 1}', '{"/a": {"modules": "os", "config_dir": null}}'])
def test_a_damaged_file_is_named(peftlab: Peftlab, project: Path, home: Path, text: str) -> None:
    file = home / ".config/peftlab/allowed.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        allowed.here()
    assert str(file) in str(caught.value)
    assert "Remove it" in str(caught.value)
    assert peftlab("allow").status == 2
    assert peftlab("check").status == 2
    assert "train" in candidates(["tr"], COMMANDS), "completing says nothing of it"
    assert "peft=lora" in candidates(["train", "peft=lor"], COMMANDS)
