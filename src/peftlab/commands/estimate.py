"""``peftlab estimate``: what a run will take, memory and time, before it runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from peftlab.composition import composed, parse
from peftlab.config import RunConfig, check
from peftlab.process import uncollected
from peftlab.training.ranks import Ranks


def main(arguments: Sequence[str]) -> int:
    """Print the memory of each part and of the whole, and the seconds of training and test."""
    parser = argparse.ArgumentParser(
        "peftlab estimate",
        description="Say how much memory and time a run will take: memory from shapes alone, then both from five steps "
        "on this machine. Takes what peftlab train takes; trains nothing and leaves no run.",
    )
    parser.add_argument("overrides", nargs="*", help="as for peftlab train")
    parser.add_argument("-cd", "--config-dir", help="a further folder of configs")
    parser.add_argument("-cn", "--config-name", default="train", help="the primary config")
    parser.add_argument(
        "--shapes", action="store_true", help="from shapes alone: no weights are loaded, nothing is timed"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    given = parser.parse_intermixed_args(list(arguments))
    parse(given.overrides)
    config = check(composed(given.overrides, config_dir=given.config_dir, config_name=given.config_name))
    config.trainer = Ranks.here().settle(config.trainer)
    found = estimated(config, shapes=given.shapes)
    print(json.dumps(found, indent=2) if given.json else "\n".join(_lines(found)))
    return 0


def estimated(config: RunConfig, *, shapes: bool) -> dict[str, Any]:
    """``work``, ``memory`` in MiB and, but for ``shapes``, ``measured``, as plain containers."""
    with uncollected():
        from peftlab.runs.estimate import estimate

    memory, work, measured, process = estimate(config, shapes=shapes)
    return {
        "work": asdict(work),
        "memory": asdict(memory) | {"total": memory.total, "process": process, "on_cpu": memory.on_cpu(process)},
        "measured": None if measured is None else asdict(measured),
    }


def _lines(found: dict[str, Any]) -> list[str]:
    memory, work, measured = found["memory"], found["work"], found["measured"]
    rows, tokens = work["largest"]
    kept = f"and {memory['allocator']:,.0f} MiB that the allocator keeps beside"
    if not memory["allocator"]:  # nobody has asked it
        kept = "but not what an allocator keeps beside"
    lines = [
        f"steps       {work['steps']:,}, the largest of {rows} texts a device of at most {tokens} tokens",
        f"weights     {memory['weights']:,.0f} MiB",
        f"gradients   {memory['gradients']:,.1f} MiB",
        f"optimizer   {memory['optimizer']:,.1f} MiB",
        f"activations {memory['activations']:,.0f} MiB at the largest of a step ({memory['evaluation']:,.0f} of "
        "evaluation)",
        f"together    {memory['total']:,.0f} MiB a device, from shapes",
        f"on a CPU    {memory['on_cpu']:,.0f} MiB: with {memory['process']:,.0f} MiB that the process has without a "
        f"model, {kept}",
    ]
    if measured is None:
        return lines
    total = measured["train_seconds"] + measured["test_seconds"]
    return [
        *lines,
        f"measured    {measured['peak_mib']:,.0f} MiB at the largest of five steps on this {measured['device']}",
        f"time        {measured['step_seconds']:.2f} s a step: training with validation "
        f"{_span(measured['train_seconds'])}, test {_span(measured['test_seconds'])}, together {_span(total)} here",
    ]


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
