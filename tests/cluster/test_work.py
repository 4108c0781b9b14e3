"""What workers are submitted for: composed and counted before anything is sent."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

import pytest

from peftlab.cluster.command import pool_options
from peftlab.cluster.work import sweep_work, train_work
from peftlab.commands.sweep import _parser
from peftlab.errors import ConfigError
from peftlab.records.folder import RunFolder
from peftlab.sweeps.call import Call
from peftlab.sweeps.slots import PoolOptions
from tests.conftest import TINY

SWEEP = """\
name: small
title: Small
source: none
command: none
cost: none
selection: best
overrides: [backbone=tiny, logger=none, data=text_files, data.path=reviews.jsonl, peft=lora]
seeds: [0, 1]
metric: metrics.test.accuracy
cells:
  - {id: lora, grid: {peft.rank: [2, 4]}}
columns: [{title: accuracy, value: metrics.test.accuracy}]
"""


@pytest.fixture
def file(reviews: Path) -> Path:
    path = Path("small.yaml")
    path.write_text(SWEEP)
    return path


def finish(run: Path) -> None:
    run.mkdir(parents=True)
    RunFolder(run).write_record({"schema_version": 1, "status": "finished", "key": run.name})


def test_a_sweep_is_its_open_runs(file: Path, scratch: Path) -> None:
    work = sweep_work(Call(file, ["optim.lr=1e-3"]), ["--retries", "1"])
    assert work.folder == scratch / "outputs" / "small"
    assert [entry.title for entry in work.runs] == [f"lora_{rank}, seed {seed}" for rank in (2, 4) for seed in (0, 1)]
    assert work.command(Path("/snap")) == ["sweep", "/snap/sweep.yaml", "optim.lr=1e-3", "--retries", "1"]
    assert (work.title, work.total, work.most_workers) == ("small", 4, None)
    finish(work.folder / work.runs[0].run)
    again = sweep_work(Call(file, ["optim.lr=1e-3"]), [])
    assert again.runs == work.runs[1:]
    assert again.call == work.call
    assert sweep_work(Call(file, []), []).call != work.call
    file.write_text(SWEEP.replace("[0, 1]", "[0]"))
    assert sweep_work(Call(file, ["optim.lr=1e-3"]), []).call != work.call


def test_runs_whose_values_are_not_chosen_are_counted(file: Path) -> None:
    file.write_text(SWEEP.replace("grid: {peft.rank: [2, 4]}", "tune: {peft.rank: [2, 4, 8]}"))
    work = sweep_work(Call(file, []), [])
    assert [entry.title for entry in work.runs[:-1]] == [f"lora, seed 0, peft.rank={rank}" for rank in (2, 4, 8)]
    assert (work.runs[-1].run, work.runs[-1].title, work.total) == ("", "1", 4)


def test_a_search_is_one_workers(file: Path) -> None:
    search = "search: {optuna: {trials: 3, space: {optim.lr: {low: 1e-4, high: 1e-2}}}}"
    file.write_text(SWEEP.replace("grid: {peft.rank: [2, 4]}", search))
    assert sweep_work(Call(file, []), []).most_workers == 1


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "trainer.num_nodes=2",
            r"cells 'lora_2', 'lora_4': trainer\.num_nodes=2 .* peftlab submit --set nodes=2 train",
        ),
        ("force=true", r"cells 'lora_2', 'lora_4': force=true would let each worker make every run anew"),
    ],
)
def test_what_a_worker_of_a_sweep_cannot_run_is_refused(file: Path, word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        sweep_work(Call(file, [word]), [])
    with pytest.raises(ConfigError, match=said.replace("cells 'lora_2', 'lora_4'", r"jobs 0 \(seed=0\), 1 \(seed=1\)")):
        train_work(["-m", *TINY, "data.path=reviews.jsonl", "seed=0,1", word])


def test_one_train(reviews: Path, scratch: Path) -> None:
    words = [*TINY, "data.path=reviews.jsonl", "name=mine"]
    work = train_work(words)
    assert (work.folder, work.title, work.most_workers, work.total) == (scratch / "outputs" / "mine", "mine", 1, 1)
    assert work.command(Path("/snap")) == ["train", *words]
    finish(work.folder / work.runs[0].run)
    assert train_work(words).runs == ()


def test_a_train_on_several_nodes(reviews: Path) -> None:
    work = train_work([*TINY, "data.path=reviews.jsonl", "trainer=ddp", "trainer.num_nodes=2", "trainer.devices=3"])
    assert (work.nodes, work.tasks) == (2, 3)


def test_the_jobs_of_m(reviews: Path, scratch: Path) -> None:
    (scratch / "more" / "peft").mkdir(parents=True)
    words = [*TINY, "data.path=reviews.jsonl", "peft.rank=2,4", "seed=0,1", "hydra.launcher.retries=3"]
    work = train_work(["-m", "--config-dir", "more", *words])
    assert [entry.title for entry in work.runs] == [f"peft.rank={r} seed={s}" for r in (2, 4) for s in (0, 1)]
    assert work.command(Path("/snap")) == [
        "train", "-m", "--config-dir", "/snap/config_dir", *words, "hydra.launcher.n_parallel=null",
    ]  # fmt: skip
    assert work.files == {"config_dir": Path("more")}
    assert work.folder.parent == scratch / "outputs"
    names = train_work(["-m", *words[:-1], "name=a,b"])
    assert names.folder == scratch / "outputs"
    with pytest.raises(ConfigError, match="output_dir takes 2 values"):
        train_work(["-m", *words[:-1], "output_dir=a,b"])


def test_a_mistake_names_its_job(reviews: Path) -> None:
    with pytest.raises(ConfigError, match=r"^job 1 \(.*peft\.rank=0.*\): "):
        train_work(["-m", *TINY, "data.path=reviews.jsonl", "peft.rank=2,0"])
    with pytest.raises(ConfigError, match=r"^unknown key 'peft\.rnak'"):
        train_work([*TINY, "data.path=reviews.jsonl", "peft.rnak=2"])


def test_the_options_of_the_pool_are_the_workers() -> None:
    given = _parser().parse_intermixed_args(["f.yaml", "-j", "2", "--minutes-per-job", "1.5"])
    assert pool_options(given) == [
        "--jobs", "2", "--devices-per-job", "1", "--jobs-per-device", "1", "--on-error", "continue", "--retries", "1",
        "--minutes-per-job", "1.5",
    ]  # fmt: skip
    given = vars(_parser().parse_intermixed_args(["f.yaml"]))
    every = {"jobs" if field.name == "n_parallel" else field.name for field in fields(PoolOptions)}
    assert every <= set(given)
    asked = argparse.Namespace(**{**given, **dict.fromkeys(every, 3)})
    assert pool_options(asked).count("3") == len(every), "each of the pool's options reaches the workers"
