"""The rooms of the house: imports between them point downward only, and no files of one room import in a circle."""

from __future__ import annotations

from collections.abc import Iterator

import grimp
import pytest

ROOMS = [
    "cli",
    "commands",
    "library",
    "interop tables",
    "audit cluster",
    "sweeps",
    "runs",
    "report",
    "records",
    "completion composition reference",
    "hydra_changes",
    "config",
    "training",
    "data",
    "peft",
    "backbones",
    "objectives",
    "language",
    "shipped",
    "schema",
    "allocator allowed choices class_names dialogues errors fields files interpolations machine metric_names pairs "
    "process outliving raw_rows reading remembered seeding signals terminal trusted version",
]
"""From the top floor down; rooms of one floor may not import each other, but for the ground."""


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """All imports, those inside functions and those for type checkers too."""
    return grimp.build_graph("peftlab", cache_dir=None)


def test_every_room_has_a_floor(graph: grimp.ImportGraph) -> None:
    named = {f"peftlab.{room}" for floor in ROOMS for room in floor.split()}
    assert graph.find_children("peftlab") - {"peftlab.__main__"} == named


def test_imports_between_rooms_point_downward(graph: grimp.ImportGraph) -> None:
    floor_of = {room: number for number, floor in enumerate(ROOMS) for room in floor.split()}
    ground = len(ROOMS) - 1
    upward = []
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            above, below = _room(importer), _room(imported)
            if above == below or above in ("", "__main__"):  # the package's own face, and its entry
                continue
            if below == "" or floor_of[above] > floor_of[below] or floor_of[above] == floor_of[below] != ground:
                upward.append(f"{importer} -> {imported}")
    assert not sorted(upward)


def test_no_files_import_each_other_in_a_circle() -> None:
    """Apart from those for type checkers: a config imports what it builds, which may name the type of the config."""
    graph = grimp.build_graph("peftlab", cache_dir=None, exclude_type_checking_imports=True)
    circles = [found for module in graph.modules for found in _ways_back(graph, module)]
    assert not sorted(circles)


def _room(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]


def _ways_back(graph: grimp.ImportGraph, module: str) -> Iterator[str]:
    for imported in graph.find_modules_directly_imported_by(module):
        if module != "peftlab" and (way := graph.find_shortest_chain(imported, module)):
            yield " -> ".join([module, *way])
