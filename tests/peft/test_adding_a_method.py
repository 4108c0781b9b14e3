"""A method is two files: dropped into a copy of the project, they are all that its code, tests and tables need.

The method has what few have: a frozen random tensor that must be saved, an update that merges, a term of the loss.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, TINY
from tests.copied import command_line

METHOD = '''"""Random features: a scaled random update, as the two files of a new method have it.

    h = W x + l ⊙ (R x)        R (out, in) random and frozen, l (out) trains from zero

Departures: none, as there is no paper. Trainable: out a target.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftlab.backbones.roles import find_targets
from peftlab.fields import NonNegativeFloat
from peftlab.peft.adapter import Adapter
from peftlab.peft.delta import Delta
from peftlab.peft.base import PEFTStrategy, Selection, Supports
from peftlab.peft.surgery import adapter_generator, random_stream, require_linear, target_features

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone


@dataclass(kw_only=True)
class RandomFeatures(PEFTStrategy, name="random_features"):
    """A learned scale on a frozen random map beside each layer:  h = W x + l ⊙ (R x)."""

    supports = Supports(mergeable=True)
    count = "out a target"

    targets: list[str] = field(default_factory=lambda: ["query", "value"])
    """Roles, or regexes on module names."""
    decay: NonNegativeFloat = 0.01
    """Weight of the term that keeps l small."""

    def select(self, backbone: Backbone) -> Selection:
        """The targets."""
        targets = find_targets(backbone, self.targets)
        require_linear(targets)
        return Selection(backbone, targets=targets)

    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> Adapter:
        """Put a random map and its scale on every target."""
        adapter = Adapter(self, selection.backbone)
        for target in selection.targets:
            adapter.put(target, RandomDelta(*target_features(target), adapter_generator(seed, random_stream(target))))
        return adapter

    def closed_form(self, backbone: Backbone) -> int:
        """Σ out."""
        return sum(target_features(target)[1] for target in self.select(backbone).targets)

    def regularization(self, adapter: Adapter, step: int, total: int) -> Tensor | None:
        """decay · Σ l²."""
        return self.decay * sum(delta.scale.square().sum() for delta in adapter.deltas())


class RandomDelta(Delta):
    """h = W x + l ⊙ (R x)."""

    R: Tensor

    def __init__(self, in_features: int, out_features: int, generator: torch.Generator) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(out_features))
        self.register_buffer("R", torch.randn(out_features, in_features, generator=generator))

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        """``out`` (…, out) and the update of it."""
        return out + (F.linear(x.to(self.R.dtype), self.R) * self.scale).to(out.dtype)

    def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W + l ⊙ R."""
        return weight + (self.scale.unsqueeze(1) * self.R).to(weight.dtype), bias
'''
YAML = """# A learned scale on a frozen random map.   peftlab train peft=random_features
_target_: peftlab.peft.random_features.RandomFeatures
targets: [query, value]
decay: 0.01
"""


@pytest.fixture
def project(scratch: Path) -> Path:
    """A copy of the project with the two files in it."""
    copy = scratch / "project"
    for folder in ("src", "conf", "tests", "sweeps", "docs"):
        ignored = shutil.ignore_patterns("__pycache__", "goldens")
        shutil.copytree(REPOSITORY / folder, copy / folder, ignore=ignored)
    for name in ("README.md", "pyproject.toml", "ARCHITECTURE.md", "CHANGELOG.md", "RESULTS.md", "Makefile"):
        shutil.copy(REPOSITORY / name, copy / name)
    (copy / "src/peftlab/peft/random_features.py").write_text(METHOD, encoding="utf-8")
    (copy / "conf/peft/random_features.yaml").write_text(YAML, encoding="utf-8")
    return copy


def test_two_files_are_a_method_for_the_command_line(project: Path, reviews: Path) -> None:
    """Listed, explained, its mistakes found early; trained, verified, inspected, merged and exported."""

    with command_line(project) as call:
        assert "peft.decay=-1" in call("train", "peft=random_features", "peft.decay=-1", status=2)
        assert "random_features" in call("methods")
        assert "| random_features | A learned scale on a frozen random map" in call("methods", "--markdown")
        assert "decay: NonNegativeFloat = 0.01" in call("methods", "random_features")
        call("train", *TINY, f"data.path={reviews}", "peft=random_features", "trainer.max_epochs=1", "name=new")
        (run,) = Path("outputs/new").iterdir()
        record = json.loads((run / "record.json").read_text(encoding="utf-8"))
        counts = record["parameters"]
        assert counts["trainable_without_head"] == counts["added"] == 2 * 2 * 32
        assert counts["stored"] == counts["trainable"] + 2 * 2 * 32 * 32, "R is stored, and does not train"
        assert "1 as recorded" in call("verify", str(run), "--rerun-eval")
        assert "query" in call("inspect", str(run))
        call("export", str(run), "--to", "plain", "--merged")
        assert Path("plain/model.safetensors").is_file()


def test_two_files_are_a_method_for_the_tests(project: Path) -> None:
    """Conformance, the protocol, sizes of records, YAML files, compositions and the README's table take it as it is."""
    rooms = [
        "tests/conformance/test_conformance.py", "tests/peft/test_protocol.py", "tests/audit/test_sizes.py",
        "tests/config/test_yaml_files.py", "tests/peft/test_compose.py", "tests/test_readme.py",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", *rooms, "-k", "random_features or capability_table"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        | {"PYTHONPATH": str(project / "src")},
    )
    last = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 0, done.stdout[-3000:]
    passed = int(last.split(" passed")[0].split()[-1])
    # 14 backbones; training, words, two kinds of backbone switched off; one record; a file; a name; the table
    assert passed >= 14 + 4 + 1 + 1 + 1 + 1, last
