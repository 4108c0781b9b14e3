"""What a column of a table can be, each place in a record with what stands there. Imports no torch."""

from __future__ import annotations

from peftlab.metric_names import record_part
from peftlab.objectives.base import figure_called
from peftlab.sweeps.record_paths import LEAVES

MEANINGS: dict[str, str] = {
    "parameters.total": "parameters of the model, adapter and head included",
    "parameters.trainable": "those that train, with the head where it trains",
    "parameters.trainable_without_head": "those that train, but for the head: as papers on PEFT mostly count",
    "parameters.head": "those of the head",
    "parameters.added": "those that the backbone has not",
    "parameters.adapted": "weights of the adapted layers: what full fine-tuning of them would train",
    "parameters.stored": "numbers in the adapter file",
    "parameters.adapter_bytes": "their bytes",
    "parameters.model_bytes": "bytes of the whole model",
    "timing.train_seconds": "training, without validation; of all attempts of a run that was resumed",
    "timing.train_samples_per_second": "training rows a second",
    "timing.test_seconds": "the test",
    "timing.evaluation_samples_per_second": "test rows a second",
    "timing.start_to_first_step_seconds": "from the start of the work to the end of the first step",
    "timing.total_seconds": "the whole run",
    "timing.threads": "of each process, of a run on CPUs",
    "timing.gpu_hours": "of training, over all GPUs and attempts; of a run on GPUs",
    "timing.cpu_hours": "of training, over all threads, processes and attempts (core-hours); of a run on CPUs",
    "timing.latency_seconds": "a text alone, with the adapter as it is (trainer.measure_latency=true)",
    "timing.latency_merged_seconds": "a text alone, with the adapter merged into the weights",
    "memory.peak_mib": "most memory of the process (resident), in MiB",
    "memory.peak_gpu_mib": "most memory that torch had on the GPU, in MiB",
    "forgetting.rows": "test rows of the earlier run's task (measure_forgetting=true)",
    "forgetting.before_recorded": "the earlier run's selecting figure on them, as its record says",
    "forgetting.before": "the same, measured again",
    "forgetting.after": "the same, after this run's training",
    "forgetting.forgetting": "what was lost",
    "forgetting.after_with_adapter_off": "after, with this run's adapter off",
    "forgetting.forgetting_with_adapter_off": "what was lost with it off",
    "probe.forgetting": "what was trained adds so much to the loss of general texts (probe={file: FILE})",
    "probe.texts": "how many texts",
    "probe.max_length": "tokens of each at most",
}
_TEST = record_part("test")
FIGURES = {
    "tasks": f"of each task: {_TEST}.tasks.<task>.<figure>",
    "per_class": f"of each class: {_TEST}.per_class.<figure>.<class>",
    "rows": "how many rows the test has",
    "tokens": "tokens that are foretold",
}


def column_meanings() -> dict[str, str]:
    """Place in a record → what stands there, of every number that all records of a kind can have.

    The figures of validation and of training are those of the test, but for some; see :data:`LEAVES`.
    """
    found: dict[str, str] = {}
    for place, names in LEAVES.items():
        for name in names:
            path = f"{place}.{name}"
            if path in MEANINGS:
                found[path] = MEANINGS[path]
            elif path not in LEAVES:
                figure = figure_called(name)
                found[path] = FIGURES.get(name) or (figure.title if figure is not None else "")
    return found
