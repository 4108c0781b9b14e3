"""A full disk: what fails is named, nothing else is lost, and with room the same command goes on.

``make disk-full`` has more moments.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from benchmarks.disk_full import FILLS, Disk, disk, hashes
from tests.conftest import Peftlab, write_reviews
from tests.runs.small_runs import CLASSIFIER, finished, record_of

RUN = ("train", *CLASSIFIER, "data.path=reviews.jsonl", "name=run", "seed=1")


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """The current folder and the cache are on it."""
    with ExitStack() as stack:
        try:
            one = stack.enter_context(disk())
        except OSError as error:
            pytest.skip(f"{error} (one must be root)")
        patch = stack.enter_context(monkeypatch.context())
        patch.chdir(one.place)
        patch.setenv("PEFTLAB_CACHE", str(one.place / "cache"))
        yield one


@pytest.mark.parametrize("name", ["last.ckpt", "adapter.safetensors", "record.json"])
def test_a_run_goes_on_when_there_is_room(peftlab: Peftlab, small_disk: Disk, name: str) -> None:
    earlier = finished(write_reviews(small_disk.place, rows=120))
    before = hashes(earlier)
    assert peftlab(*RUN, "output_dir=undisturbed").status == 0
    (whole,) = (small_disk.place / "undisturbed" / "run").iterdir()
    filled = small_disk.beside / "said"
    defined: dict[str, Any] = {}
    exec(FILLS, defined)
    defined["fill_when_opened"](rf"/run/.*\.{name}", str(small_disk.place / "ballast"), str(filled))
    failed = peftlab(*RUN)
    assert name in filled.read_text(), "else the disk was never full"
    assert failed.status in (1, 2)
    assert "No space left on device" in failed.err
    assert name in failed.err
    assert "Traceback" not in failed.err
    assert hashes(earlier) == before
    small_disk.make_room()
    assert peftlab(*RUN).status == 0
    run = small_disk.place / "outputs" / "run" / whole.name
    assert record_of(run)["metrics"] == record_of(whole)["metrics"]
    assert (run / "adapter.safetensors").read_bytes() == (whole / "adapter.safetensors").read_bytes()
