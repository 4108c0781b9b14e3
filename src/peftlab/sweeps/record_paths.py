"""Where numbers stand in a record, to check a sweep's columns before anything runs. Imports no torch."""

from __future__ import annotations

from peftlab.errors import ConfigError, nearest
from peftlab.metric_names import RECORD_PART, SPLITS, record_part
from peftlab.objectives.base import TASK_MEANS, objectives

PARTS = (
    RECORD_PART,
    "before",
    "parameters",
    "timing",
    "memory",
    "forgetting",
    "probe",
    "selection",
    "data",
    "backbone",
)
"""The parts of a record that hold numbers."""
_MEANS = tuple(figure.name for figure in TASK_MEANS.values())
_OF_EVERY_SPLIT = (*dict.fromkeys(n for one in objectives().values() for n in one.every_epoch()), *_MEANS, "tasks")
_DETAILS = tuple(name for one in objectives().values() for name in one.details)
_OF_THE_TEST = tuple(f.name for one in objectives().values() for f in one.figures if not f.each_epoch)
_PROBED = ("loss", "perplexity", "token_accuracy", "tokens")
LEAVES: dict[str, tuple[str, ...]] = {
    record_part("train"): _OF_EVERY_SPLIT,
    record_part("validation"): (*_OF_EVERY_SPLIT, *_DETAILS),
    record_part("test"): (*_OF_EVERY_SPLIT, *_DETAILS, *_OF_THE_TEST, "rows"),
    "parameters": (
        "total", "trainable", "trainable_without_head", "head", "added", "adapted", "stored", "adapter_bytes",
        "model_bytes",
    ),
    "timing": (
        "train_seconds", "train_samples_per_second", "test_seconds", "evaluation_samples_per_second",
        "start_to_first_step_seconds", "total_seconds", "threads", "gpu_hours", "cpu_hours",
        "latency_seconds", "latency_merged_seconds",
    ),
    "memory": ("peak_mib", "peak_gpu_mib"),
    "forgetting": (
        "rows", "before_recorded", "before", "after", "forgetting", "after_with_adapter_off",
        "forgetting_with_adapter_off",
    ),
    "probe": ("forgetting", "trained", "untrained", "texts", "max_length"),
    "probe.trained": _PROBED,
    "probe.untrained": _PROBED,
}  # fmt: skip
"""What stands directly below some places. The names below ``tasks`` and ``per_class``, and what ``data``, ``backbone``
and ``selection`` hold, depend on the run."""
NOT_IN_EVERY_RECORD = (
    "timing.threads", "timing.gpu_hours", "timing.cpu_hours", "timing.latency_seconds", "timing.latency_merged_seconds",
    "memory.peak_gpu_mib",
)  # fmt: skip
"""Those of a run that was not asked for them, ran on no GPU or was made before there were any, have none."""
_NAMED_BY_THE_DATA = ("tasks", *_DETAILS)


def check_record_path(path: str) -> None:
    """Look whether records can have a number at ``path`` (``metrics.test.loss``).

    Raises:
        ConfigError: saying which part of it there is not, and what there is.
    """
    part, _, rest = path.partition(".")
    _require(part, PARTS, path, "")
    place = part
    if part == "probe" and (which := rest.partition("."))[0] in ("trained", "untrained"):
        place, rest = f"{part}.{which[0]}", which[2]
    if part == "before":  # trainer.measure_before: of the test alone
        split, _, rest = rest.partition(".")
        _require(split, ("test",), path, " under before")
        place = record_part("test")
    if part == RECORD_PART:
        split, _, rest = rest.partition(".")
        _require(split, SPLITS, path, " under metrics")
        place = record_part(split)
    if place not in LEAVES:
        return
    leaf, _, below = rest.partition(".")
    _require(leaf, LEAVES[place], path, f" under {place}")
    if below and leaf not in _NAMED_BY_THE_DATA:
        raise ConfigError(f"no record has a value at '{path}': '{place}.{leaf}' is a number, with nothing below it.")


def _require(name: str, known: list[str] | tuple[str, ...], path: str, where: str) -> None:
    if name not in known:
        raise ConfigError(
            f"no record has a value at '{path}': there is no '{name}'{where}.{nearest(name, known)} "
            f"There are: {', '.join(known)}."
        )
