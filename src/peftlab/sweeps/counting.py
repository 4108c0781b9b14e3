"""Trainable parameters of configs, counted on ``meta`` models: no weights, no network.

Runs as a process of its own, so that checking a sweep imports torch only where counts are asked for::

    python -m peftlab.sweeps.counting < configs.json        a list of counts; null with a reason where there is none
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from peftlab.config import RunConfig, from_plain
from peftlab.errors import RunError

Count = tuple[int | None, str]
"""Trainable parameters without the head, or None and why they cannot be counted."""


def count_all(configs: Sequence[RunConfig]) -> list[Count]:
    """Count each config's model.

    Raises:
        RunError: if the counting process dies.
    """
    done = subprocess.run(
        [sys.executable, "-m", "peftlab.sweeps.counting"],
        input=json.dumps([config.plain() for config in configs]),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunError(f"counting parameters failed (exit status {done.returncode}): {last}")
    return [(number, reason) for number, reason in json.loads(done.stdout.splitlines()[-1])]


def _count(plain: dict[str, Any]) -> Count:
    from peftlab.peft.base import apply
    from peftlab.runs.assemble import count_parameters

    plain["backbone"]["from_run"] = None  # the earlier run's weights have the same shapes
    plain["measure_forgetting"] = False
    try:
        config = from_plain(plain, real=True)
        backbone = config.backbone.build(2, seed=0, device="meta")  # the classes count in the head alone
        apply(config.peft, backbone, seed=0, train_head=config.backbone.train_head)
        return count_parameters(backbone)["trainable_without_head"], ""
    except Exception as error:  # a model that cannot be built here is no mistake of the sweep
        return None, str(error).splitlines()[0] if str(error) else type(error).__name__


if __name__ == "__main__":
    print(json.dumps([_count(plain) for plain in json.load(sys.stdin)]))
