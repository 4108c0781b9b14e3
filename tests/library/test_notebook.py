"""In the kernel of a notebook: a bar of its kind, and a cell that is run again."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from lightning.pytorch.callbacks import TQDMProgressBar

from peftlab import fit
from peftlab.training import trainer
from tests.library.test_fit import ON_FILE


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """What peftlab sees of a kernel: a shell that has one."""
    ipython = ModuleType("IPython")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    ipython.version_info = (9, 0, 0, "")  # type: ignore[attr-defined]  # matplotlib asks for it, once in a process
    monkeypatch.setitem(sys.modules, "IPython", ipython)


def test_a_cell_runs_twice(notebook: None, reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = trainer.L.Trainer

    def noted(*given: object, **named: object) -> object:
        made.append(real(*given, **named))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(trainer.L, "Trainer", noted)
    runs = [fit(*ON_FILE, "trainer.max_epochs=1", name="t") for _ in range(2)]
    assert runs[0].key == runs[1].key
    assert len(made) == 1
    assert isinstance(made[0].progress_bar_callback, TQDMProgressBar)  # type: ignore[attr-defined]


def test_elsewhere_there_is_none(reviews: Path) -> None:
    assert not trainer.in_notebook()
