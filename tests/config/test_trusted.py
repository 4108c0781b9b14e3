"""Which modules ``_target_`` may name, and that no other is imported on the word of a file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from peftlab import trusted
from peftlab.errors import ConfigError
from peftlab.schema import import_class
from tests.conftest import REPOSITORY, Peftlab
from tests.runs.small_runs import CLASSIFIER, finished

MODULE = """
from dataclasses import dataclass
from pathlib import Path
Path("IMPORTED").touch()
from peftlab.data.text_files import TextFiles
@dataclass(kw_only=True)
class Mine(TextFiles):
    mark: int = 0
"""


@pytest.fixture
def package(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``my_texts.inside``, which can be imported and tells that it was."""
    monkeypatch.delenv(trusted.ALLOW, raising=False)
    monkeypatch.syspath_prepend(str(scratch))
    (scratch / "my_texts").mkdir()
    (scratch / "my_texts/__init__.py").write_text("from pathlib import Path\nPath('IMPORTED').touch()\n")
    (scratch / "my_texts/inside.py").write_text(MODULE)
    yield scratch
    for name in ("my_texts", "my_texts.inside"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "target", ["my_texts.inside.Mine", "my_texts.Mine", "lib2to3.__main__.X", "this.X", "peftlab.sweeps.server.X"]
)
def test_a_module_that_nobody_vouches_for_is_not_imported(package: Path, target: str) -> None:
    module = target.rpartition(".")[0]
    with pytest.raises(ConfigError) as caught:
        import_class(target, "data._target_")
    assert f"data._target_={target}: '{module}'" in str(caught.value)
    assert "PEFTLAB_ALLOW=" in str(caught.value)
    assert not Path("IMPORTED").exists()
    assert module not in sys.modules


@pytest.mark.parametrize("given", ["my_texts", "my_texts.inside", "other, my_texts ,"])
def test_the_person_who_runs_may_allow_it(package: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("PEFTLAB_ALLOW", given)
    assert import_class("my_texts.inside.Mine", "data._target_").__name__ == "Mine"


@pytest.mark.parametrize("given", ["my_text", "my_texts.other", "*", "", "inside"])
def test_another_name_allows_nothing(package: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("PEFTLAB_ALLOW", given)
    with pytest.raises(ConfigError):
        import_class("my_texts.inside.Mine", "data._target_")
    assert not Path("IMPORTED").exists()


def test_what_the_program_has_imported_itself_is_its_own(package: Path) -> None:
    import my_texts.inside  # type: ignore[import-not-found]

    assert import_class("my_texts.inside.Mine", "data._target_") is my_texts.inside.Mine


@pytest.mark.parametrize("group", trusted.ENTRY_POINTS)
def test_an_installed_package_names_its_modules(package: Path, monkeypatch: pytest.MonkeyPatch, group: str) -> None:
    info = package / "my_texts-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-texts\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{group}]\nmine = my_texts.inside\n")
    assert import_class("my_texts.inside.Mine", "data._target_").__name__ == "Mine"


def test_every_shipped_config_is_of_the_rooms_that_are_trusted() -> None:
    files = [file for file in (REPOSITORY / "conf").rglob("*.yaml") if "hydra" not in file.parts]
    assert len(files) > 30
    for file in files:
        target = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("_target_", "")
        assert not target or target.startswith(trusted._OWN), file


def test_own_data_on_the_command_line(package: Path, reviews: Path) -> None:
    """The documented way: a YAML file in a folder of one's own, and the variable."""
    values = yaml.safe_load((REPOSITORY / "conf/data/text_files.yaml").read_text())
    (package / "mine/data").mkdir(parents=True)
    (package / "mine/data/mine.yaml").write_text(
        yaml.safe_dump(values | {"_target_": "my_texts.inside.Mine", "mark": 1})
    )
    command = [sys.executable, "-P", "-m", "peftlab", "check", "--config-dir", "mine", *CLASSIFIER]
    command = [word for word in command if word != "data=text_files"] + ["data=mine", f"data.path={reviews}"]
    environment = {"PYTHONPATH": f"{package}:{REPOSITORY / 'src'}", "PATH": "/usr/bin:/bin", "HOME": str(package)}
    refused = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert refused.returncode == 2
    assert "PEFTLAB_ALLOW=my_texts" in refused.stderr
    allowed = subprocess.run(
        command, capture_output=True, text=True, env=environment | {"PEFTLAB_ALLOW": "my_texts"}, check=False
    )
    assert allowed.returncode == 0, allowed.stderr


@pytest.mark.parametrize("words", [("verify",), ("predict", "--text", "x"), ("evaluate",), ("reproduce", "--print")])
def test_no_record_makes_anything_run_it(
    peftlab: Peftlab, package: Path, reviews: Path, words: tuple[str, ...]
) -> None:
    from peftlab.records.integrity import record_checksum

    run = finished(reviews)
    record = json.loads((run / "record.json").read_text())
    record["config"]["data"]["_target_"] = "my_texts.inside.Mine"
    record["argv"].append("data._target_=my_texts.inside.Mine")
    record["checksum"] = record_checksum(record)
    (run / "record.json").write_text(json.dumps(record))
    (run / "config.yaml").write_text(yaml.safe_dump(record["config"]))
    result = peftlab(words[0], run, *words[1:])
    assert result.status in (1, 2)
    assert not Path("IMPORTED").exists()
