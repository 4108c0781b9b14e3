"""Every shipped sweep reads, plans and composes in all its settings, and its head says how to run it."""

from __future__ import annotations

import itertools
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from peftlab.backbones.transformer import TransformerConfig
from peftlab.composition import checked
from peftlab.peft.base import attach
from peftlab.peft.lora import LoRA
from peftlab.runs.counted import count_parameters
from peftlab.sweeps.declaration import Sweep
from peftlab.sweeps.jobs import Outcome
from peftlab.sweeps.plan import DeclaredPlan, Variant
from peftlab.sweeps.reading import read_sweep
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "sweeps"
FILES = sorted(FOLDER.glob("*.yaml"))
NAMES = [path.stem for path in FILES]


@pytest.fixture(autouse=True)
def _places(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    """Composing reads no data, but some settings ask where it lies."""
    for name in ("PEFTLAB_DATA", "PEFTLAB_GLOVE"):
        monkeypatch.setenv(name, str(scratch))


@cache
def shipped(name: str) -> Sweep:
    return read_sweep(FOLDER / f"{name}.yaml")


@cache
def head(name: str) -> list[str]:
    """The comment at the top of the file, a line each, without the marks."""
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("#").strip() for line in itertools.takewhile(lambda line: line.startswith("#"), lines)]


@cache
def composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    """The checked config, as plain containers."""
    return checked(overrides).plain()


def one_a_cell(plan: DeclaredPlan) -> list[Variant]:
    """The last candidate of each cell, with the first seed."""
    return list({variant.arm.id: variant for variant in plan.corners()}.values())


def words(variant: Variant) -> tuple[str, ...]:
    """What a cell takes from the settings: cells with the same words differ in their own overrides only."""
    return tuple(entry for entry in variant.arm.overrides if entry.startswith("$"))


def test_the_sweeps_there_are() -> None:
    assert set(NAMES) >= {
        "lecture", "rank_alpha", "learning_rates", "seeds", "scaling_rule", "targets", "data_size", "search_lr",
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_its_cells_compose_and_are_different_runs(name: str) -> None:
    plan = DeclaredPlan(shipped(name))
    configs = [plan.composed(variant).plain() for variant in one_a_cell(plan)]
    assert {config["name"] for config in configs} == {name}
    for one, other in itertools.combinations(configs, 2):
        assert one != other


@pytest.mark.parametrize("name", NAMES)
def test_it_composes_in_all_settings(name: str) -> None:
    """Each option once, with one cell of those that take the same from the settings."""
    for setting, given in shipped(name).settings.items():
        for option in list(given)[1:]:
            plan = DeclaredPlan(shipped(name), {setting: option})
            for variant in {words(variant): variant for variant in plan.corners()}.values():
                plan.composed(variant)


@pytest.mark.parametrize("name", NAMES)
def test_its_head_says_what_how_and_at_what_cost(name: str) -> None:
    sweep, lines = shipped(name), head(name)
    assert len(lines[0]) > 40
    commands = [line for line in lines if line.startswith("peftlab sweep ")]
    assert commands
    for line in [*commands, sweep.command]:
        typed = shlex.split(re.split(r"\s{2,}", line)[0])
        assert typed[:3] == ["peftlab", "sweep", f"sweeps/{name}.yaml"]
        given = [word.split("=", 1) for word in typed[3:] if "=" in word]
        DeclaredPlan(sweep, dict(pair for pair in given if pair[0] in sweep.settings))
        for key, value in given:
            assert value in sweep.settings.get(key, {value: ()}), f"{key}={value} is no option"
    assert re.search(r"\d+ minutes|hours?", sweep.cost)
    for stated in re.findall(r"(\d+) jobs", sweep.cost):
        assert int(stated) == DeclaredPlan(sweep).total()
    for text in (sweep.title, sweep.source, sweep.selection):
        assert len(text) > 10
    assert "validation" in sweep.selection


@pytest.mark.parametrize("name", NAMES)
def test_what_is_expected_or_published_has_a_source(name: str) -> None:
    for one in (*shipped(name).expected, *shipped(name).published):
        assert one.source.strip()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_chosen_by_test_data(name: str) -> None:
    assert "test" not in (shipped(name).tune_by or "")  # without it: what the objective selects by, on validation
    for cell in shipped(name).cells:
        search = cell.optuna()
        assert search is None or "test" not in search.metric


def test_rank_alpha_is_the_grid_that_it_says() -> None:
    sweep = shipped("rank_alpha")
    jobs = DeclaredPlan(sweep).ready(Outcome())
    grid = {(r, a, s) for r in (2, 4, 8) for a in (8, 16) for s in (0, 1, 2)}
    assert len(jobs) == len(grid) == 18
    drawn = [composed(job.overrides) for job in jobs]
    assert {(c["peft"]["rank"], c["peft"]["alpha"], c["seed"]) for c in drawn} == grid
    assert sweep.arm(sweep.baseline or "").label == "rank 8, alpha 16"
    ignored = {"rank": 0, "alpha": 0}
    for config in drawn:
        alike = [{**c, "seed": 0, "peft": c["peft"] | ignored} for c in (config, drawn[0])]
        assert alike[0] == alike[1]


def test_targets_have_one_budget() -> None:
    """Rank · (in + out) a matrix: 6 layers of 384 × 384 in MiniLM, and the scale is 2 in every cell."""
    architecture = {
        "model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
        "intermediate_size": 1536,
    }  # fmt: skip
    plan = DeclaredPlan(shipped("targets"))
    for variant in plan.corners():
        peft: Any = checked(plan.overrides(variant, None)).peft
        assert isinstance(peft, LoRA)
        assert peft.alpha / peft.rank == 2
        backbone = TransformerConfig(architecture=architecture).build(2, seed=0, device="meta")
        adapter = attach(backbone, peft, seed=0)
        assert count_parameters(adapter)["trainable_without_head"] == 6 * 8 * (384 + 384), variant.arm.id


def test_the_scales_in_the_notes_of_scaling_rule_are_those_of_its_cells() -> None:
    plan = DeclaredPlan(shipped("scaling_rule"))
    scales: dict[bool, list[str]] = {False: [], True: []}
    for variant in plan.corners():
        peft = plan.composed(variant).plain()["peft"]
        rule = peft["rank"] ** (0.5 if peft["rank_stabilized"] else 1.0)
        scales[peft["rank_stabilized"]].append(f"{peft['alpha'] / rule:.2g}")
    assert scales == {False: ["2", "0.5", "0.12", "0.031"], True: ["2.8", "1.4", "0.71", "0.35"]}
    notes = shipped("scaling_rule").notes
    assert "2, 1/2, 1/8 and 1/32 by the first rule, and 2.8, 1.4, 0.71 and 0.35 by the" in notes


def test_noise_is_the_seeds_alone() -> None:
    plan = DeclaredPlan(shipped("seeds"))
    assert len(plan.sweep.seeds) == 10
    every = [plan.composed(Variant(cell, seed)).plain() for cell in plan.sweep.cells for seed in (0, 9)]
    first = every[0]
    for config in every:
        assert config | {"seed": 0, "data": first["data"]} == first
        differing = {key for key, value in config["data"].items() if value != first["data"][key]}
        assert differing <= {"order_seed", "split_seed"}


# --- W&B sweeps -----------------------------------------------------------------------------------

WANDB = sorted((FOLDER / "wandb").glob("*.yaml"))


def agents_command(config: dict[str, Any], values: dict[str, Any]) -> list[str]:
    """The command that W&B's agent starts for ``values``; the arguments in W&B's own form."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    macros = create_sweep_command_args({"args": {key: {"value": value} for key, value in values.items()}})
    macros |= {"program": [config["program"]], "interpreter": ["python"], "env": ["/usr/bin/env"]}
    filled = []
    for word in config["command"]:
        macro = re.fullmatch(r"\$\{(\w+)\}", word)
        filled += macros[macro[1]] if macro else [word]
    return filled


@pytest.mark.parametrize("path", WANDB, ids=lambda path: path.stem)
def test_a_wandb_sweep_starts_runs_that_compose(path: Path) -> None:
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert f"wandb sweep sweeps/wandb/{path.name}" in path.read_text(encoding="utf-8")
    assert config["method"] == "grid"
    assert config["metric"] == {"name": "validation/accuracy", "goal": "maximize"}
    assert all(set(given) == {"values"} for given in config["parameters"].values())
    grid = [
        dict(zip(config["parameters"], values, strict=True))
        for values in itertools.product(*(given["values"] for given in config["parameters"].values()))
    ]
    theirs = []
    for values in grid:
        program, verb, *overrides = agents_command(config, values)
        assert (program, verb) == ("peftlab", "train")
        theirs.append(composed(tuple(overrides)))
        assert theirs[-1]["logger"]["_target_"].endswith(".WandB")
    # The declared sweep beside it has the same runs, under another name and without W&B.
    ours = [composed(job.overrides) for job in DeclaredPlan(shipped(path.stem)).ready(Outcome())]
    assert len(ours) == len(theirs)
    alike = [[{**c, "name": "", "logger": None} for c in runs] for runs in (ours, theirs)]
    assert all(one in alike[0] for one in alike[1])
