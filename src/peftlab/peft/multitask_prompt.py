"""Multitask Prompt Tuning Enables Parameter-Efficient Transfer Learning (Wang et al. 2023, arXiv:2303.02861).

    P_k = P* ∘ (U_k V_k)        P* (n, d), U_k (n, r), V_k (r, d)        (paper, eq. 1, with rank 1 there)

A prompt (:mod:`peftlab.peft.soft_prompt`) that several tasks share, P*, multiplied element by element by a
low-rank matrix of each task. With data of several tasks (``data=multitask``) each row of a batch is read with its own
task's prompt: the paper's source training. With the usual data of one task all rows are read with that of ``task``.

Transfer (paper, section 3.3): ``source`` names the run folder of a source training, and ``source_init`` what is taken
from it: the shared prompt alone, or also task matrices, those of one source task or U and V averaged over the source
tasks (as HF peft's AVERAGE_SOURCE_TASKS; at ranks above 1 the mean of the factors is not that of their products).
Every task of the new run starts from them, and all of it goes on to train. The head is new, as its classes are.

Departures from the paper: any rank; no distillation of single-task teachers, and no groups of learning rates.
U_k and V_k start from N(0, 0.02²), as in HF peft, so that the prompt starts near zero.

Trainable: n·d + tasks · r · (n + d).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from peftlab.errors import ConfigError, PeftlabError, listed, nearest
from peftlab.fields import NonNegativeInt, PositiveInt, run_folder
from peftlab.peft.base import Supports
from peftlab.peft.soft_prompt import InitialisedSoftPrompt, PromptAdapter
from peftlab.reading import read_json

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone

SHARED, COLS, ROWS = "prompt_embeddings", "prefix_task_cols", "prefix_task_rows"
"""Names of P*, U and V inside their module, as in HF peft's files."""


@dataclass(kw_only=True)
class MultitaskPrompt(InitialisedSoftPrompt, name="multitask_prompt"):
    """A shared prompt times a low-rank matrix of each task."""

    supports = Supports(identity_at_start=False, hf_peft="MULTITASK_PROMPT_TUNING")
    count = "n·d + tasks·rank·(n + d)"

    num_tasks: PositiveInt | None = None
    """Tasks that share the prompt; null: as many as the data has."""
    rank: PositiveInt = 1
    """Rank r of a task's matrix."""
    task: NonNegativeInt = 0
    """The task of this run's texts, counted from 0, where the data is of one task."""
    source: str | None = run_folder()
    """Run folder of a source training to start from; it enters the run's identity by its adapter's content."""
    source_init: Literal["shared_and_average", "shared", "exact"] = "shared_and_average"
    """What is taken from source: the shared prompt and the mean of its tasks' matrices, the shared prompt alone, or
    the shared prompt and the matrices of source_task."""
    source_task: str | NonNegativeInt | None = None
    """With source_init=exact: the source's task, by its name or counted from 0."""

    def __post_init__(self) -> None:
        """Raise ValueError for a task that there is not, and for fields that contradict each other."""
        super().__post_init__()
        if self.task >= self.task_count() and self.num_tasks is not None:
            raise ValueError(
                f"peft.task={self.task} is not among the peft.num_tasks={self.num_tasks} tasks, counted from 0. "
                f"Set it to at most {self.num_tasks - 1}."
            )
        if self.source is None and (self.source_init != "shared_and_average" or self.source_task is not None):
            raise ValueError(
                f"peft.source_init={self.source_init} and peft.source_task={self.source_task} say what to take from an "
                "earlier run: give peft.source=<run folder> too."
            )
        if (self.source_init == "exact") != (self.source_task is not None):
            raise ValueError(
                f"peft.source_task={self.source_task} with peft.source_init={self.source_init}: the name of a task "
                "goes with peft.source_init=exact, and only with that."
            )
        if self.source is not None and self.init != "vocabulary":
            raise ValueError(
                f"peft.init={self.init} has no effect: the shared prompt starts from peft.source={self.source}. "
                "Leave peft.init=vocabulary."
            )

    def files(self) -> list[Path]:
        """The adapter of ``source``.

        Raises:
            ConfigError: if there is no finished run.
        """
        if self.source is None:
            return []
        folder = Path(self.source).expanduser()
        missing = [
            name for name in ("record.json", "adapter.json", "adapter.safetensors") if not (folder / name).is_file()
        ]
        if missing:
            raise ConfigError(
                f"peft.source={self.source}: not the folder of a finished run, it has no {missing[0]}. Give "
                "outputs/<name>/<key> of a run with peft=multitask_prompt."
            )
        return [folder / "adapter.safetensors"]

    def fit_tasks(self, tasks: int) -> None:
        """A task of its own for each of the data's; data of one task may be one of several.

        Raises:
            ConfigError: if there are more tasks in the data, and their number is another.
        """
        if tasks > 1 and self.num_tasks not in (None, tasks):
            raise ConfigError(
                f"peft.num_tasks={self.num_tasks}, but the data has {tasks} tasks (data.tasks). Set "
                "peft.num_tasks=null, which counts them."
            )
        if tasks > 1 and self.task != 0:
            raise ConfigError(
                f"peft.task={self.task} has no effect with data of {tasks} tasks, where each row has its own task's "
                "prompt. Leave peft.task=0."
            )
        if self.num_tasks is None:
            if self.task >= tasks:
                raise ConfigError(
                    f"peft.task={self.task}: the data has one task. Say how many tasks share the prompt "
                    f"(peft.num_tasks={self.task + 1} or more), or leave peft.task=0."
                )
            self.num_tasks = tasks

    def task_count(self) -> int:
        """The tasks that share the prompt."""
        return self.num_tasks or 1

    def chosen_task(self) -> int:
        """The run's task."""
        return self.task

    def vectors(self, backbone: Backbone, generator: torch.Generator) -> TaskPrompts:
        """P* and the matrices of the tasks."""
        return TaskPrompts(self.initial_vectors(backbone, generator), self.task_count(), self.rank, generator)

    def adapter(self, backbone: Backbone, vectors: nn.Module) -> TaskPromptAdapter:
        """The adapter of the prompts of all tasks."""
        return TaskPromptAdapter(self, backbone, vectors)

    def trainable(self, dim: int) -> int:
        """The shared prompt and the tasks' matrices."""
        return self.length * dim + self.task_count() * self.rank * (self.length + dim)

    def inference_prompt(self, vectors: nn.Module) -> dict[str, Tensor]:
        """All three parts, which together are compact already."""
        return {name: tensor.detach().clone() for name, tensor in vectors.named_parameters()}


class TaskPromptAdapter(PromptAdapter):
    """The prompts of several tasks in a model."""

    @property
    def method(self) -> MultitaskPrompt:
        """The method, with its fields."""
        assert isinstance(self.strategy, MultitaskPrompt)
        return self.strategy

    def load_source(self, fingerprint: str) -> None:
        """Start from ``peft.source`` as ``source_init`` says; note it in ``backbone.provenance["prompt_source"]``.

        Raises:
            PeftlabError: if the run in ``source`` has another method or backbone, or its prompt has other sizes.
        """
        method = self.method
        if method.source is None:
            return
        facts, tensors = _read_source(method.source)
        if facts["backbone_fingerprint"] != fingerprint:
            raise PeftlabError(
                f"peft.source={method.source}: its prompt was trained in other weights than this run's backbone "
                f"({facts['backbone'].get('_target_')}). Choose the backbone of that run."
            )
        start = {SHARED: tensors[SHARED]}
        tasks = [task["name"] for task in facts.get("tasks", [])] or list(map(str, range(len(tensors[COLS]))))
        if method.source_init == "shared_and_average":
            start |= {name: tensors[name].mean(dim=0, keepdim=True) for name in (COLS, ROWS)}
        elif method.source_init == "exact":
            number = _number_of_source_task(method, tasks)
            start |= {name: tensors[name][number : number + 1] for name in (COLS, ROWS)}
        own = dict(self.vectors.named_parameters())
        for name, tensor in start.items():
            if name != SHARED:
                start[name] = tensor.expand(len(own[name]), -1, -1)
            if start[name].shape != own[name].shape:
                raise PeftlabError(_about_sizes(str(method.source), tensors, own))
        with torch.no_grad():
            for name, tensor in start.items():
                own[name].copy_(tensor)
        self.backbone.provenance["prompt_source"] = {
            "path": method.source,
            "run": facts["run"],
            "tasks": tasks,
            "init": method.source_init,
            "task": method.source_task,
        }

    def keep_task(self, task: int) -> None:
        """Leave the matrices of ``task``; of a single prompt, all."""
        if self.backbone.task_prompts == 1:
            return
        for name in (COLS, ROWS):
            kept = getattr(self.vectors, name).detach()[task : task + 1].clone()
            setattr(self.vectors, name, nn.Parameter(kept))
        self.backbone.task_prompts = 1
        self.strategy = replace(self.method, num_tasks=1, task=0)


def _number_of_source_task(method: MultitaskPrompt, tasks: list[str]) -> int:
    wanted = method.source_task
    if isinstance(wanted, int) and wanted < len(tasks):
        return wanted
    if wanted in tasks:
        return tasks.index(str(wanted))
    raise PeftlabError(
        f"peft.source_task={wanted}: the run in peft.source={method.source} has no such task."
        f"{nearest(str(wanted), tasks)} It has: {listed(tasks)}."
    )


def _about_sizes(source: str, theirs: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    def sizes(tensors: Mapping[str, Tensor]) -> str:
        (length, width), rank = tensors[SHARED].shape, tensors[COLS].shape[2]
        return f"length {length}, rank {rank}, {width} dimensions"

    return (
        f"peft.source={source} has a prompt of {sizes(theirs)}, and this run one of {sizes(own)}. Set peft.length and "
        "peft.rank as there (with peft.source_init=shared the rank may differ)."
    )


def _read_source(given: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What ``adapter.json`` of a run says, and P*, U and V.

    Raises:
        PeftlabError: if a file is missing or damaged, or the run had another method.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(given).expanduser()
    try:
        facts: dict[str, Any] = read_json(folder / "adapter.json")
        method = facts["method"]
        tensors = load_file(folder / "adapter.safetensors")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise PeftlabError(f"peft.source={given}: its adapter cannot be read ({error}).") from error
    found = {name: tensors[key] for name in (SHARED, COLS, ROWS) for key in tensors if key.endswith(f".vectors.{name}")}
    if len(found) != 3:
        raise PeftlabError(
            f"peft.source={given} is a run with peft={method}, which has no prompt that tasks share. Give one with "
            "peft=multitask_prompt."
        )
    return facts, found


class TaskPrompts(nn.Module):
    """The prompts of all tasks."""

    def __init__(self, start: Tensor, num_tasks: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        length, dim = start.shape
        cols = torch.randn(num_tasks, length, rank, generator=generator) * 0.02
        rows = torch.randn(num_tasks, rank, dim, generator=generator) * 0.02
        self.prompt_embeddings = nn.Parameter(start)  # P* (n, d)
        self.prefix_task_cols = nn.Parameter(cols)  # U (tasks, n, r)
        self.prefix_task_rows = nn.Parameter(rows)  # V (tasks, r, d)

    def forward(self) -> Tensor:
        """(tasks · n, d): the tasks' prompts behind each other."""
        prompts = self.prompt_embeddings * (self.prefix_task_cols @ self.prefix_task_rows)  # (tasks, n, d)
        return prompts.flatten(0, 1)
