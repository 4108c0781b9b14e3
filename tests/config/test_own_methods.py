"""A method of one's own, beside an installed peftlab: by a folder of configs, and by an entry point alone."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from peftlab.cluster.work import sweep_work
from peftlab.peft.base import _REGISTRY
from peftlab.sweeps.cache import ConfigCache
from peftlab.sweeps.call import Call
from peftlab.sweeps.jobs import Job, Outcome
from tests.conftest import REPOSITORY, TINY, Peftlab

PAGE = (REPOSITORY / "docs" / "how_to" / "method.md").read_text(encoding="utf-8")


def block(title: str) -> str:
    """A block of code of the page, by its title."""
    found = re.search(rf'```\w+ title="{re.escape(title)}"\n(.*?)```', PAGE, flags=re.DOTALL)
    assert found is not None, title
    return found[1]


@pytest.fixture
def module(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The page's module in a folder of its own, and nobody who has allowed it."""
    folder = scratch / "code"
    folder.mkdir()
    (folder / "gated_lora.py").write_text(block("gated_lora.py"), encoding="utf-8")
    monkeypatch.delenv("PEFTLAB_ALLOW")
    yield folder
    _REGISTRY.pop("gated_lora", None)
    sys.modules.pop("gated_lora", None)


@pytest.fixture
def configs(module: Path, scratch: Path) -> str:
    """The page's folder of configs."""
    file = scratch / "configs" / "peft" / "gated_lora.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(block("configs/peft/gated_lora.yaml"), encoding="utf-8")
    return "configs"


SWEEP = {
    "name": "own", "title": "Own", "seeds": [0], "overrides": [*TINY, "data.path=reviews.csv"],
    "cells": [{"id": "gated", "overrides": ["peft=gated_lora"], "grid": {"peft.rank": [2, 4]}}],
}  # fmt: skip


def test_every_verb_takes_a_folder_of_configs(
    peftlab: Peftlab, module: Path, configs: str, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--config-dir FOLDER, where FOLDER/peft/gated_lora.yaml" in peftlab("check", "peft=gated_lora").err
    chosen = ["--config-dir", configs, "peft=gated_lora"]
    assert "PEFTLAB_ALLOW=gated_lora" in peftlab("check", *chosen).err
    monkeypatch.setenv("PEFTLAB_ALLOW", "gated_lora")
    assert "PYTHONPATH=FOLDER" in peftlab("check", *chosen).err
    monkeypatch.syspath_prepend(module)
    checked = peftlab("check", "--config", *chosen, "peft.rank=4", "data=text_files", f"data.path={reviews}")
    assert yaml.safe_load(checked.out)["peft"] == {
        "_target_": "gated_lora.GatedLoRA", "rank": 4, "targets": ["query", "value"]
    }  # fmt: skip
    typed = [line.partition("#")[0].split() for line in PAGE.splitlines() if line.startswith("peftlab ")]
    assert [words[1:] for words in typed if "gated_lora" in " ".join(words)] == [
        ["allow", "gated_lora", "--config-dir", "configs"],  # tests/config/test_allowed.py
        ["check", "peft=gated_lora", "peft.rank=4"],
        ["train", "peft=gated_lora", "peft.rank=4"],
        ["train", *chosen, "peft.rank=4"],
    ], "as the page has it"
    assert "Rank of the update" in peftlab("methods", "gated_lora", "-cd", configs).out
    assert "Rank of the update" in peftlab("explain", "peft=gated_lora", "-cd", configs).out
    assert "peft=gated_lora" in peftlab("explain", "peft", "-cd", configs).out
    assert "gated_lora" not in peftlab("explain", "peft").out
    Path("own.yaml").write_text(yaml.safe_dump(SWEEP | {"overrides": [*TINY, f"data.path={reviews}"]}))
    assert "2 jobs" in peftlab("sweep", "own.yaml", "-cd", configs, "--dry-run").out
    assert peftlab("check", "own.yaml", "-cd", configs, "--no-counts").status == 0
    for verb in ("check", "sweep"):
        assert "--config-dir nowhere: there is no such folder" in peftlab(verb, "own.yaml", "-cd", "nowhere").err
    assert "--config-dir nowhere: there is no such folder" in peftlab("explain", "peft", "-cd", "nowhere").err
    call = Call(Path("own.yaml"), [], configs)
    jobs = call.plan(reading=True).ready(Outcome())
    assert [job.config_dir for job in jobs] == [str(Path(configs).resolve())] * 2, "each job says it on its own line"
    work = sweep_work(call, ["--jobs", "1"])
    assert work.command(Path("/shot"))[-4:] == ["--config-dir", "/shot/config_dir", "--jobs", "1"]
    assert work.files["config_dir"] == Path(configs).resolve()
    assert work.call != sweep_work(Call(Path("own.yaml"), [], str(module.parent)), []).call


def test_a_registered_method_needs_no_file(
    peftlab: Peftlab, module: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (toml,) = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    assert tomllib.loads(toml)["project"]["entry-points"] == {
        "peftlab.methods": {"gated_lora": "my_package.gated_lora"}
    }
    about = module / "gated-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: gated\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text("[peftlab.methods]\ngated_lora = gated_lora\n")
    monkeypatch.syspath_prepend(module)
    assert "gated_lora, head" in peftlab("check", "peft=lroa").err
    words = ["peft=gated_lora", "data=text_files", f"data.path={reviews}"]
    checked = yaml.safe_load(peftlab("check", "--config", *words).out)["peft"]
    assert checked == {"_target_": "gated_lora.GatedLoRA", "rank": 8, "targets": ["query", "value"]}
    assert "Did you mean 'rank'?" in peftlab("check", "peft=gated_lora", "peft.rnak=2").err
    assert "Rank of the update" in peftlab("explain", "peft=gated_lora").out
    job = Job("0", "one", ("peft=gated_lora",))
    with ConfigCache() as cache:
        cache.config(job)
    changed = block("gated_lora.py").replace("rank: PositiveInt = 8", "rank: PositiveInt = 2")
    _REGISTRY.pop("gated_lora")
    sys.modules.pop("gated_lora")
    (module / "gated_lora.py").write_text(changed, encoding="utf-8")
    with ConfigCache() as cache:
        assert cache.config(job).peft.rank == 2, "what a class says is in no file, and not remembered"  # type: ignore[attr-defined]
    (module / "gated_lora.py").write_text("import no_such_package\n")
    _REGISTRY.pop("gated_lora")
    sys.modules.pop("gated_lora")
    said = peftlab("methods").err
    assert "gated registers the method 'gated_lora' (gated_lora), which cannot be imported" in said
    assert "no_such_package" in said
