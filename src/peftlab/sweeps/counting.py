"""Trainable parameters of configs, counted on ``meta`` models: no weights, no network.

Runs as a process of its own, so that checking a sweep imports torch only where counts are asked for; where a process
has imported transformers anyhow, as in a notebook, there is none to be spared, and it counts there::

    python -m peftlab.sweeps.counting < configs.json        a list of counts, each with a reason where it is null
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from typing import Any

from peftlab.config import RunConfig, from_plain, plain
from peftlab.data.base import Splits
from peftlab.errors import PeftlabError, RunError, first_line


@dataclass(frozen=True)
class Count:
    """What became of counting one config."""

    number: int | None
    """Trainable parameters without the head; None if they cannot be counted."""
    reason: str = ""
    """Why not."""
    mistake: bool = False
    """Whether the reason lies in the config, so that the run could not start anywhere."""


def count_all(configs: Sequence[RunConfig]) -> list[Count]:
    """Count each config's model; those that differ in nothing that decides a shape are counted once.

    Raises:
        RunError: if the counting process dies.
    """
    shapes = [shape(config) for config in configs]
    alike = dict(zip(reversed(shapes), reversed(configs), strict=True))  # of each shape its first config
    given = json.dumps([config.plain() for config in alike.values()])
    counts = dict(zip(alike, _counted_here(given) if _imported() else _counted_apart(given), strict=True))
    return [counts[one] for one in shapes]


def parameters_of(config: RunConfig, splits: Splits | None) -> dict[str, int]:
    """Parameters of one config's model, as training counts them (:func:`~peftlab.runs.counted.count_parameters`).

    Without its data nothing is known of a new head: then the head's size is that of two classes.

    Raises:
        PeftlabError: if the method does not fit the model.
        Unknown: if the model cannot be built from what is here.
    """
    from peftlab.peft.base import attach
    from peftlab.runs.counted import count_parameters

    learned = config.data.what_is_learned()
    more: dict[str, Any] = {"head": "own"} if learned.head == "own" else {}
    outputs = 2
    if splits is not None:
        outputs, more["train_texts"] = learned.head_size(splits.label_names), splits.train.texts
    alone = replace(config.backbone, from_run=None)  # an earlier run's weights have the same shapes
    with _without_hub():
        try:
            backbone = alone.build(outputs, seed=0, device="meta", **more)
        except Exception as error:
            raise Unknown(first_line(error)) from error
        try:
            return count_parameters(attach(backbone, config.peft, seed=0, train_head=config.trains_head))
        except PeftlabError:
            raise
        except Exception as error:  # a method that needs values, of a package of its own
            raise Unknown(first_line(error)) from error


class Unknown(Exception):
    """What cannot be counted here; the message says why."""


@contextmanager
def _without_hub() -> Iterator[None]:
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _imported() -> bool:
    return "transformers" in sys.modules


def _counted_here(given: str) -> list[Count]:
    with _without_hub():
        return [_count(one) for one in json.loads(given)]


def _counted_apart(given: str) -> list[Count]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "peftlab.sweeps.counting"],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunError(f"counting parameters failed (exit status {done.returncode}): {last}")
    return [Count(*one) for one in json.loads(done.stdout.splitlines()[-1])]


def shape(config: RunConfig) -> str:
    """What decides how many parameters train: the backbone but for dropout, the method, and whether the head does."""
    backbone = {
        name: value
        for name, value in plain("backbone", config.backbone).items()
        if name not in ("dropout", "attention_dropout", "from_run")
    }
    own = ["own"] if config.data.what_is_learned().head == "own" else []
    return json.dumps([backbone, plain("peft", config.peft), config.trains_head, *own], sort_keys=True)


def _count(given: dict[str, Any]) -> Count:
    from peftlab.peft.base import attach
    from peftlab.training.frozen_blocks import require_frozen_blocks

    given["backbone"]["from_run"] = None  # the earlier run's weights have the same shapes
    given["measure_forgetting"] = False
    try:
        config = from_plain(given)
        own: dict[str, Any] = {"head": "own"} if config.data.what_is_learned().head == "own" else {}
        backbone = config.backbone.build(2, seed=0, device="meta", **own)  # the classes count in the head alone
    except Exception as error:  # a model that cannot be built here is no mistake of the sweep
        return Count(None, first_line(error))
    try:
        adapter = attach(backbone, config.peft, seed=0, train_head=config.trains_head)
        if getattr(config.backbone, "cache_frozen", False):
            require_frozen_blocks(adapter)
    except PeftlabError as error:
        return Count(None, first_line(error), mistake=True)
    except Exception as error:  # a method that needs values, of a package of its own
        return Count(None, first_line(error))
    return Count(adapter.num_parameters())


if __name__ == "__main__":
    print(json.dumps([astuple(_count(given)) for given in json.load(sys.stdin)]))
