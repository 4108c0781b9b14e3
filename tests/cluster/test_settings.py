"""The cluster file: what it may say, and what is said of mistakes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from peftlab.cluster.settings import SHIPPED, Cluster, read_cluster, seconds_of
from peftlab.errors import ConfigError


def test_the_shipped_file_says_every_field() -> None:
    assert set(yaml.safe_load(SHIPPED.read_text())) == {field.name for field in dataclasses.fields(Cluster)}
    assert read_cluster(None).time == "4:00:00"


def test_every_option_reaches_sbatch(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "partition: gpu\naccount: me\nqos: low\nworkers: 8\ngpus: a100:2\ncpus: 8\nmemory: 32G\nnodes: 2\n"
        "time: 1-2:00:00\nsbatch: [--constraint=big]\n"
    )
    cluster = read_cluster(file, ["account=you"])
    assert cluster.options() == [
        "--partition=gpu", "--account=you", "--qos=low", "--nodes=2", "--cpus-per-task=8", "--mem=32G",
        "--time=1-2:00:00", "--gres=gpu:a100:2", "--constraint=big",
    ]  # fmt: skip
    assert read_cluster(None, ["gpus=0", "time=90"]).options()[-1] == "--time=90"


@pytest.mark.parametrize(
    ("time", "seconds"),
    # sbatch(1): "minutes", "minutes:seconds", "hours:minutes:seconds", "days-hours", "days-hours:minutes", "days-…"
    [("120", 7200), ("1:30", 90), ("2:00:00", 7200), ("1-0", 86400), ("1-2:30", 95400), ("1-2:30:05", 95405)],
)
def test_times_are_slurms(time: str, seconds: int) -> None:
    """YAML 1.1 reads 1:30 as 90 and 2:00:00 as 7200: sbatch would take those for minutes."""
    assert seconds_of(time) == seconds
    assert read_cluster(None, [f"time={time}", "lead_seconds=20"]).options()[-1] == f"--time={time}"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("workers: 0", "workers=0 is not allowed: it must be at least 1"),
        ("workers: many", "workers='many' is not allowed: it must be a whole number"),
        ("partitoin: gpu", "unknown key 'partitoin'. Did you mean 'partition'?"),
        ("time: soon", "time=soon is not allowed: it must be minutes (120), hours:minutes:seconds"),
        ("time: 0:00:00", "time=0:00:00 is not allowed"),
        ("time: 2", "lead_seconds=120 is not allowed: with time=2 it may be at most 60"),
        ("memory: lots", "memory=lots is not allowed: it must be a size, as 16G"),
        ("gpus: -1", "gpus=-1 is not allowed"),
        ("gpus: true", "gpus="),
        ("partition: a b", "partition='a b' is not allowed"),
        ("sbatch: [--comment=x]", "sbatch: --comment=x cannot be given: submitting sets --array"),
        ("sbatch: [-a 0-3]", "sbatch: -a 0-3 cannot be given"),
        ("sbatch: [constraint=x]", "sbatch: 'constraint=x' is no option"),
        ("workers: 1\nworkers: 2", "the key 'workers' stands twice"),
        ("[1, 2", "not valid YAML"),
        ("gpu", "describes no cluster"),
    ],
)
def test_a_mistake_is_named_with_its_file(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(line)
    with pytest.raises(ConfigError) as caught:
        read_cluster(file)
    assert str(caught.value).startswith(str(file)) or str(file) in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize("change", ["time", "=3", "time=[1", "tiem=3", "workers=0"])
def test_a_mistake_of_the_command_line_is_named_so(change: str) -> None:
    with pytest.raises(ConfigError, match=r"^--set "):
        read_cluster(None, [change])


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"cannot read the cluster file 'no\.yaml'"):
        read_cluster(Path("no.yaml"))
