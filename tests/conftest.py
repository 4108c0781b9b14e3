"""Shared fixtures: a scratch folder and cache for each test, a small learnable data set, the command line."""

from __future__ import annotations

import gc
import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.pictures import draw_each_kind_once

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # each worker is a process already; threads would fight over the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parents[1]

draw_each_kind_once()


WHOLE = (
    "goldens", "conformance", "interop", "test_readme", "test_wheel",
    # processes, servers and real packages: ten seconds a file and more, together most of what the rest takes
    "sweeps/test_launcher", "sweeps/test_pool", "sweeps/test_shipped", "sweeps/test_cache", "sweeps/test_declaration",
    "sweeps/test_search", "sweeps/test_plan", "sweeps/test_beside", "sweeps/test_interrupts", "sweeps/test_counting",
    "tables", "config/test_listed_values", "config/test_wrong_inputs", "config/test_yaml_files", "config/test_trusted",
    "peft/test_hf_peft", "peft/test_compose", "peft/test_product", "peft/test_prefix", "peft/test_soft_prompts",
    "peft/test_adalora_against", "peft/test_adapter", "peft/test_rank_budget", "library/test_generate",
    "cluster/test_work", "report/test_report", "data/test_multitask", "test_allocator",
    "training/test_compiled",
    "training/test_wandb_sync", "training/test_graphs", "library/test_fit", "library/test_examples", "data/test_hub",
    "data/test_glue", "audit/test_sizes", "backbones/test_backbone_sources", "records/test_identity_recorded",
)  # fmt: skip
"""Beginnings of paths below tests/ that ``make test-fast`` leaves out."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what ``make test-fast`` leaves out."""
    for item in items:
        calls = set(getattr(item, "fixturenames", ())) & {"peftlab", "project"}
        place = item.path.relative_to(REPOSITORY / "tests").as_posix()
        if calls or place.startswith(WHOLE) or item.get_closest_marker("slow"):
            item.add_marker("whole")


def pytest_collection_finish() -> None:
    """What was imported stays: looking through it for garbage takes a tenth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test works in an empty folder with a cache of its own."""
    monkeypatch.setenv("PEFTLAB_CACHE", str(tmp_path / ".cache"))
    monkeypatch.delenv("PEFTLAB_DEBUG", raising=False)
    monkeypatch.setenv("PEFTLAB_ALLOW", "tests")  # config classes of the tests' own
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """``trainer.threads`` of a run inside a test is for its process: the next test has the machine's number again."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@dataclass
class Result:
    """What one call of the command line did."""

    status: int
    out: str
    err: str


Peftlab = Callable[..., Result]


@pytest.fixture
def peftlab(capfd: pytest.CaptureFixture[str]) -> Peftlab:
    """Call ``peftlab COMMAND …`` in this process."""
    from peftlab.cli import main

    def call(*arguments: str) -> Result:
        capfd.readouterr()
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as error:  # argparse and Hydra leave in this way
            status = int(error.code or 0)
        captured = capfd.readouterr()
        return Result(status, captured.out, captured.err)

    return call


GOOD = ["a fine and moving film", "great acting", "wonderful story", "I loved it", "superb and funny"]
BAD = ["a dull and empty film", "awful acting", "terrible story", "I hated it", "boring and long"]


@pytest.fixture
def reviews(scratch: Path) -> Path:
    """120 short labelled texts, easy to learn, of differing lengths, in reviews.jsonl."""
    return write_reviews(scratch, rows=120)


def write_reviews(folder: Path, rows: int) -> Path:
    """reviews.jsonl with so many texts."""
    generator = random.Random(7)
    path = folder / "reviews.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            label = number % 2
            words = " ".join(generator.choice((BAD, GOOD)[label]) for _ in range(generator.randint(1, 4)))
            file.write(json.dumps({"text": f"{words} {number}", "label": ("bad", "good")[label]}) + "\n")
    return path


TINY = ("backbone=tiny", "logger=none", "data=text_files", "data.max_length=48", "data.batch_size=8")
"""A run of a second: a random two-layer BERT on bytes."""


def run_folder(name: str = "*") -> Path:
    """The one run folder below outputs/<name>."""
    (record,) = Path("outputs").glob(f"{name}/*/record.json")
    return record.parent
