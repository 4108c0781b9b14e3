"""peftlab: a laboratory for parameter-efficient fine-tuning.

From Python: adapters in a model of one's own, and runs of the command line's kind.

    from peftlab import LoRA, attach, load_adapter          # every method is a class here
    adapter = attach(model, LoRA(rank=8, targets=["query", "value"]), seed=0, train=["classifier"])

    from peftlab import fit, load_run, find_runs
    run = fit("data=imdb_packaged", "peft=dora", seed=1)

Importing this package imports nothing heavy: each name is loaded when it is first asked for. Mistakes are
:class:`PeftlabError`, a ``ValueError`` whose message says what was given, what is allowed and what to do.
"""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.errors import PeftlabError, nearest
from peftlab.version import __version__ as __version__

if TYPE_CHECKING:
    from peftlab.library.attaching import attach, load_adapter
    from peftlab.library.finding import find_runs
    from peftlab.library.fitting import fit
    from peftlab.library.run import Run, load_run
    from peftlab.peft.adalora import AdaLoRA as AdaLoRA
    from peftlab.peft.adapter import Adapter
    from peftlab.peft.bitfit import BitFit as BitFit
    from peftlab.peft.compose import Compose as Compose
    from peftlab.peft.dora import DoRA as DoRA
    from peftlab.peft.dynamic_dora import DynamicDoRA as DynamicDoRA
    from peftlab.peft.full import FullFineTuning as FullFineTuning
    from peftlab.peft.head import HeadOnly as HeadOnly
    from peftlab.peft.hf_peft import HFPeft as HFPeft
    from peftlab.peft.houlsby import Houlsby as Houlsby
    from peftlab.peft.ia3 import IA3 as IA3
    from peftlab.peft.imported import ImportedAdapter as ImportedAdapter
    from peftlab.peft.last_layers import LastLayers as LastLayers
    from peftlab.peft.layernorm import LayerNormTuning as LayerNormTuning
    from peftlab.peft.lora import LoRA as LoRA
    from peftlab.peft.loreft import LoReFT as LoReFT
    from peftlab.peft.multitask_prompt import MultitaskPrompt as MultitaskPrompt
    from peftlab.peft.p_tuning import PTuning as PTuning
    from peftlab.peft.p_tuning_v2 import PTuningV2 as PTuningV2
    from peftlab.peft.parallel_adapter import ParallelAdapter as ParallelAdapter
    from peftlab.peft.parameters import NamedParameters as NamedParameters
    from peftlab.peft.pfeiffer import Pfeiffer as Pfeiffer
    from peftlab.peft.prefix_tuning import PrefixTuning as PrefixTuning
    from peftlab.peft.prompt_tuning import PromptTuning as PromptTuning
    from peftlab.peft.vera import VeRA as VeRA

__all__ = ["Adapter", "PeftlabError", "Run", "attach", "find_runs", "fit", "load_adapter", "load_run"]

_PLACES = {
    "Adapter": "peftlab.peft.adapter",
    "Run": "peftlab.library.run",
    "attach": "peftlab.library.attaching",
    "find_runs": "peftlab.library.finding",
    "fit": "peftlab.library.fitting",
    "load_adapter": "peftlab.library.attaching",
    "load_run": "peftlab.library.run",
}
"""Public names, the classes of methods apart → the module that has each."""

_METHOD = re.compile(r"^class (\w+)\([^)]*\bname=\"\w+\"[^)]*\):", re.MULTILINE)
"""A class that registers as a PEFT method (:mod:`peftlab.peft.base`)."""


@cache
def _methods() -> dict[str, str]:
    """Class of each method → its module; read from the files, so that naming one imports no other."""
    folder = Path(__file__).parent / "peft"
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))}
    return {
        name: f"peftlab.peft.{stem}" for stem, text in texts.items() if stem != "base" for name in _METHOD.findall(text)
    }


def _of_other_packages() -> dict[str, type]:
    """Classes of the methods that other packages have registered."""
    from importlib.metadata import entry_points  # a tenth of a second

    if not entry_points(group="peftlab.methods"):
        return {}
    from peftlab.peft.base import methods

    return {cls.__name__: cls for _, cls in methods() if not cls.__module__.startswith("peftlab.")}


def __getattr__(name: str) -> Any:
    if place := _PLACES.get(name) or _methods().get(name):
        return getattr(importlib.import_module(place), name)
    if name[:1].isupper() and name in (others := _of_other_packages()):
        return others[name]
    known = [*_PLACES, *_methods()]
    raise AttributeError(f"peftlab has no '{name}'.{nearest(name, known)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES, *_methods(), *_of_other_packages()})
