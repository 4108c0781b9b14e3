"""Trainable parameters of configs, counted on ``meta`` models: no weights, no network.

Runs as a process of its own, so that checking a sweep imports torch only where counts are asked for::

    python -m peftlab.sweeps.counting < configs.json        a list of counts, each with a reason where it is null
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

from peftlab.config import RunConfig, from_plain
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
    """Count each config's model.

    Raises:
        RunError: if the counting process dies.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-m", "peftlab.sweeps.counting"],
        input=json.dumps([config.plain() for config in configs]),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunError(f"counting parameters failed (exit status {done.returncode}): {last}")
    return [Count(*one) for one in json.loads(done.stdout.splitlines()[-1])]


def _count(plain: dict[str, Any]) -> Count:
    from peftlab.peft.base import attach

    plain["backbone"]["from_run"] = None  # the earlier run's weights have the same shapes
    plain["measure_forgetting"] = False
    try:
        config = from_plain(plain)
        backbone = config.backbone.build(2, seed=0, device="meta")  # the classes count in the head alone
    except Exception as error:  # a model that cannot be built here is no mistake of the sweep
        return Count(None, first_line(error))
    try:
        adapter = attach(backbone, config.peft, seed=0, train_head=config.trains_head)
    except PeftlabError as error:
        return Count(None, first_line(error), mistake=True)
    except Exception as error:  # a method that needs values, of a package of its own
        return Count(None, first_line(error))
    return Count(adapter.num_parameters())


if __name__ == "__main__":
    print(json.dumps([astuple(_count(plain)) for plain in json.load(sys.stdin)]))
