"""Multitask Prompt Tuning Enables Parameter-Efficient Transfer Learning (Wang et al. 2023, arXiv:2303.02861).

    P_k = P* ∘ (U_k V_k)        P* (n, d), U_k (n, r), V_k (r, d)        (paper, eq. 1, with rank 1 there)

A prompt (:mod:`peftlab.peft.soft_prompt`) that several tasks share, P*, multiplied element by element by a
low-rank matrix of each task. A run reads its texts with the prompt of ``task``; a batch of several tasks gets
each row's own through :meth:`peftlab.backbones.soft_prompt.PromptPlacement.rows`.

Departures from the paper: any rank; no distillation of single-task teachers, and no groups of learning rates.
U_k and V_k start from N(0, 0.02²), as in HF peft, so that the prompt starts near zero.

Trainable: n·d + tasks · r · (n + d).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peftlab.fields import NonNegativeInt, PositiveInt
from peftlab.interop.hf_format import HFAdapter, HFFolder
from peftlab.interop.hf_prompt import prompt_length
from peftlab.peft.base import Supports
from peftlab.peft.soft_prompt import InitialisedSoftPrompt, prompt_module

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone


@dataclass(kw_only=True)
class MultitaskPrompt(InitialisedSoftPrompt, name="multitask_prompt"):
    """A shared prompt times a low-rank matrix of each task."""

    supports = Supports(identity_at_start=False, hf_peft="MULTITASK_PROMPT_TUNING")
    count = "n·d + tasks·rank·(n + d)"

    num_tasks: PositiveInt = 1
    """Tasks that share the prompt."""
    rank: PositiveInt = 1
    """Rank r of a task's matrix."""
    task: NonNegativeInt = 0
    """The task of this run's texts, counted from 0."""

    def __post_init__(self) -> None:
        """Raise ValueError for a task that there is not."""
        super().__post_init__()
        if self.task >= self.num_tasks:
            raise ValueError(
                f"peft.task={self.task} is not among the peft.num_tasks={self.num_tasks} tasks, counted from 0. "
                f"Set it to at most {self.num_tasks - 1}."
            )

    def chosen_task(self) -> int:
        """The run's task."""
        return self.task

    def vectors(self, backbone: Backbone, generator: torch.Generator) -> TaskPrompts:
        """P* and the matrices of the tasks."""
        return TaskPrompts(self.initial_vectors(backbone, generator), self.num_tasks, self.rank, generator)

    def trainable(self, dim: int) -> int:
        """The shared prompt and the tasks' matrices."""
        return self.length * dim + self.num_tasks * self.rank * (self.length + dim)

    def inference_prompt(self, backbone: Backbone) -> dict[str, Tensor]:
        """All three parts, which together are compact already."""
        return {name: tensor.detach().clone() for name, tensor in prompt_module(backbone).named_parameters()}

    def to_hf(self, backbone: Backbone) -> HFAdapter:
        """All three parts; the task is an argument of peft's models."""
        adapter = super().to_hf(backbone)
        adapter.notes.append(
            f"Give the model `task_ids` with every batch: this run's texts are task {self.task} of {self.num_tasks} "
            f"(`task_ids=torch.full((len(input_ids),), {self.task})`)."
        )
        return adapter

    def hf_options(self, backbone: Backbone) -> dict[str, Any]:
        """The tasks and their rank."""
        return {"num_tasks": self.num_tasks, "num_ranks": self.rank, "prompt_tuning_init": "RANDOM"}

    @classmethod
    def from_hf(cls, folder: HFFolder) -> dict[str, Any] | None:
        """MULTITASK_PROMPT_TUNING, with its first task."""
        if folder.peft_type != "MULTITASK_PROMPT_TUNING":
            return None
        return {
            "length": prompt_length(folder),
            "position": "before",
            "init": "random",
            "num_tasks": folder.option("num_tasks", 1),
            "rank": folder.option("num_ranks", 1),
        }


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
