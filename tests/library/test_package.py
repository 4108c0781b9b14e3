"""What ``import peftlab`` is: light, complete, typed."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import peftlab
from peftlab.peft.base import methods


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_and_listing_is_light() -> None:
    heavy = "[m for m in ('torch', 'transformers', 'lightning', 'pydantic', 'pandas', 'hydra') if m in sys.modules]"
    assert python(f"import sys, peftlab; dir(peftlab); hasattr(peftlab, '__wrapped__'); print({heavy})") == "[]"


def test_attaching_needs_no_trainer() -> None:
    heavy = "[m for m in ('lightning', 'datasets', 'torchmetrics', 'wandb', 'hydra.main') if m in sys.modules]"
    code = (
        "import sys, torch; from peftlab import LoRA, attach\n"
        "net = torch.nn.Sequential(torch.nn.Linear(4, 4))\n"
        f"attach(net, LoRA(targets=['0'], rank=2)).save('saved'); print({heavy})"
    )
    assert python(code) == "[]"


def test_every_method_is_there_by_the_name_of_its_class() -> None:
    for _, cls in methods():
        if cls.__module__.startswith("peftlab."):
            assert getattr(peftlab, cls.__name__) is cls
            assert cls.__name__ in dir(peftlab)


def test_every_public_name_is_there() -> None:
    assert set(peftlab.__all__) < set(dir(peftlab))
    for name in peftlab.__all__:
        assert getattr(peftlab, name).__doc__


def test_what_is_not_there_names_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"peftlab has no 'atach'\. Did you mean 'attach'\?"):
        _ = peftlab.atach
    with pytest.raises(ImportError):
        exec("from peftlab import LoRa")


def test_it_is_typed() -> None:
    """What a type checker is told of each name is what there is at run time."""
    assert files("peftlab").joinpath("py.typed").is_file()
    tree = ast.parse(Path(peftlab.__file__).read_text(encoding="utf-8"))
    (told,) = (node for node in tree.body if isinstance(node, ast.If))
    names = {alias.name: node.module for node in told.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(peftlab.__all__) - {"PeftlabError"} < set(names)
    for name, module in names.items():
        assert getattr(peftlab, name) is getattr(importlib.import_module(str(module)), name)
