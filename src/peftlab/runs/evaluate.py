"""Testing a finished run again, and predicting with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from peftlab.allocator import keeping_memory
from peftlab.config import RunConfig
from peftlab.data.base import Splits, Texts
from peftlab.data.module import TextDataModule
from peftlab.data.too_long import within_length
from peftlab.data.truncation import truncating
from peftlab.errors import DataError, RunError
from peftlab.objectives import recorded
from peftlab.objectives.base import objective as known
from peftlab.objectives.causal_lm import CausalLM
from peftlab.objectives.parts.mixture import NAME as MIXTURE
from peftlab.records.folder import RunFolder
from peftlab.runs.assemble import Assembled, lightning_module, reassemble
from peftlab.runs.counted import count_parameters
from peftlab.runs.generating import GENERATED, answered, generated
from peftlab.runs.memory import memory_told
from peftlab.runs.predictions import predictions_table
from peftlab.training.module import TrainingModule
from peftlab.training.selection import monitored
from peftlab.training.trainer import build_trainer

if TYPE_CHECKING:
    import pyarrow

Keep = Callable[[Texts, "pyarrow.Table"], None]
"""Takes tested rows, and their predictions."""


def evaluate(folder: RunFolder, config: RunConfig, *, split: str = "test", keep: Keep | None = None) -> dict[str, Any]:
    """Metrics of the run in ``folder`` on ``split`` of ``config.data``.

    Args:
        folder: the run's.
        config: the run's, perhaps with other data.
        split: train, validation or test.
        keep: is given the rows and what was predicted of each (:mod:`peftlab.records.predictions`).

    Raises:
        DataError: if the data's labels are not the ones that the run was trained on.
        RunError: if the model cannot be rebuilt, or not every row was seen once.
    """
    return evaluate_counted(folder, config, split=split, keep=keep)[0]


@memory_told()
def evaluate_counted(
    folder: RunFolder, config: RunConfig, *, split: str = "test", keep: Keep | None = None
) -> tuple[dict[str, Any], dict[str, int]]:
    """The same, and the parameters of the model that was rebuilt for it, counted as a record has them."""
    splits = config.data.load()
    assembled, facts = reassemble(folder, config)
    parameters = count_parameters(assembled.adapter)  # before a test can repack 8-bit weights
    _require_same_labels(config, splits, facts)
    splits = within_length(config.data, splits, assembled.backbone.tokenizer)
    if config.trainer.monitor not in config.data.what_is_learned().monitors():  # the figure of another objective
        config = replace(config, trainer=replace(config.trainer, monitor=None, label_smoothing=0.0))
    rows = getattr(splits, split)
    module = measured(config, assembled, splits, rows, folder)
    judged = generated(config, assembled, rows)
    if keep is not None:
        keep(rows, predictions_table(module.objective, splits, rows, module.test_outputs, judged))
    metrics = module.test_metrics | ({} if judged is None else judged.figures)
    metrics = config.data.what_is_learned().named(metrics, splits.label_names)
    kind = splits.test_kind if split == "test" else split
    return {"run": str(folder.path), "split": split, "kind": kind, "metrics": metrics}, parameters


def measure(config: RunConfig, assembled: Assembled, splits: Splits, rows: Texts, folder: RunFolder) -> dict[str, Any]:
    """The test metrics of ``assembled`` on ``rows`` of ``splits``; see :func:`measured`."""
    return measured(config, assembled, splits, rows, folder).test_metrics


def measured(config: RunConfig, assembled: Assembled, splits: Splits, rows: Texts, folder: RunFolder) -> TrainingModule:
    """What has tested ``assembled`` on ``rows`` of ``splits``, every one of them once: it has metrics and outputs.

    Raises:
        RunError: if not every row was seen once.
    """
    # The one split three times: the data module tokenises all that it is given.
    tested = Splits(rows, rows, rows, splits.label_names, splits.test_kind, tasks=splits.tasks)
    data = TextDataModule(config.data, tested, assembled.backbone.tokenizer, config.seed)
    module = lightning_module(config, assembled, splits)
    trainer = build_trainer(
        config.trainer,
        monitored(config.trainer, module.objective),
        folder=folder.path,
        checkpoints=folder.checkpoints,
        logger=None,
        rows_per_step=config.data.eval_batch_size,
    )
    with keeping_memory(config.trainer.keep_memory):
        trainer.test(module, data, verbose=False)
    require_all_rows(module.test_metrics["rows"], len(rows))
    return module


def objective_of(facts: dict[str, Any], task: str | None = None) -> str:
    """The objective that adapter.json names, or ``task``'s own; before it named one, there was but one."""
    own = next((one.get("objective") for one in facts.get("tasks", ()) if one["name"] == task), None)
    return str(own or facts.get("objective", recorded.BEFORE["name"]))


def objectives_of_tasks(facts: dict[str, Any]) -> list[str]:
    """The objective of each task, in order; of the one, if there is one task."""
    return [objective_of(facts, one["name"]) for one in facts.get("tasks", ())] or [objective_of(facts)]


def require_all_rows(seen: int, expected: int) -> None:
    """Raise RunError unless a test saw every row, and none twice."""
    if seen != expected:
        raise RunError(f"the test saw {seen} rows of {expected}: the figure would be wrong.")


def _require_same_labels(config: RunConfig, splits: Splits, facts: dict[str, Any]) -> None:
    trained, objectives = facts["label_names"], objectives_of_tasks(facts)
    if _says_tokens(config, objectives):
        return
    if set(config.data.task_objectives()) != set(objectives) or (
        list(splits.label_names) == list(trained) and config.data.task_objectives() != objectives
    ):
        raise DataError(
            f"the run learned {'; '.join(known(one).about for one in objectives)}; this data is for "
            f"{config.data.what_is_learned().about}. Evaluate it on data with data.objective={', '.join(objectives)}."
        )
    if list(splits.label_names) != list(trained):
        raise DataError(
            f"the run was trained on the labels {', '.join(trained)}; this data has {', '.join(splits.label_names)}. "
            "Evaluate it on data with the same labels in the same order (data.labels=[…] for your own files)."
        )


def _says_tokens(config: RunConfig, objectives: Sequence[str]) -> bool:
    """Whether a run of ``objectives`` and the data have no head of labels: tokens are scored, whosever they are."""
    return all(known(one).head == "own" for one in (*objectives, *config.data.task_objectives()))


def predict(
    assembled: Assembled, facts: dict[str, Any], config: RunConfig, texts: Sequence[str], *, task: str | None = None
) -> Iterator[dict[str, Any]]:
    """``text``, and what the run's objective predicts of each text, in order: a label and probabilities, or a value.

    Args:
        assembled: the run's model, rebuilt; it is put on the device that there is, and into eval mode.
        facts: what the run's adapter.json says.
        config: the run's.
        texts: what to predict from.
        task: theirs, for a run on data of several tasks; the labels are that task's.

    Raises:
        RunError: for outputs that are no finite numbers, and for a GPU whose memory is too small (OutOfMemory).
    """
    from peftlab.data.module import predict_batches

    if assembled.backbone.says_next_tokens:
        yield from _answers(assembled, facts, config, texts)
        return
    number, classes = _classes_of(facts, task)
    names, objective = facts["label_names"][classes], known(objective_of(facts, task))
    # several classifications are told apart by the names of their classes
    said = {"task": task} if facts.get("objective") == MIXTURE else {}
    backbone = assembled.backbone.eval()
    device = torch.device("cuda" if torch.cuda.is_available() and config.trainer.accelerator != "cpu" else "cpu")
    backbone.to(device)
    tokenizer = truncating(backbone.tokenizer, config.data.truncation)
    ready: dict[int, dict[str, Any]] = {}
    following = 0
    for rows, batch in predict_batches(
        texts, tokenizer, max_length=config.data.max_length, batch_size=config.data.eval_batch_size
    ):
        with memory_told(), torch.inference_mode():
            inputs = [batch["input_ids"].to(device), batch["attention_mask"].to(device)]
            if number is not None:
                inputs.append(torch.full((len(rows),), number, device=device))
            outputs = backbone(*inputs).float()[:, classes]
        if not outputs[outputs != -math.inf].isfinite().all():  # the classes of other tasks are -inf
            raise RunError(
                f"the model's outputs for text {rows[0] + 1} ff. are no finite numbers: its training diverged, or its "
                "weights are damaged. Nothing can be predicted with it."
            )
        for row, predicted in zip(rows, objective.predictions(outputs, names), strict=True):
            ready[row] = {"text": texts[row], **said, **predicted}
        while following in ready:
            yield ready.pop(following)
            following += 1


def _answers(
    assembled: Assembled, facts: dict[str, Any], config: RunConfig, texts: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """``text`` and ``generated``: what a language model writes behind each text."""
    if objective_of(facts) != CausalLM.name:
        raise RunError(
            "this run chooses between the options of questions, and a text has none. Test it on questions of your own: "
            "peftlab evaluate RUN data.path=FILE --predictions FILE."
        )
    size = config.data.eval_batch_size
    for start in range(0, len(texts), size):
        some = list(texts[start : start + size])
        with memory_told():
            written = answered(config, assembled, some)
        for text, answer in zip(some, written, strict=True):
            yield {"text": text, GENERATED: answer}


def _classes_of(facts: dict[str, Any], task: str | None) -> tuple[int | None, slice]:
    """The number of ``task`` and its classes; all classes, for a run on data of one task."""
    if task is None:
        return None, slice(None)
    number = [known["name"] for known in facts["tasks"]].index(task)
    return number, slice(*facts["tasks"][number]["classes"])
