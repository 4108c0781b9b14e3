"""Which of the processes that train one run together this one is, and who has started them. Imports no torch.

One rule: torchrun, if it says so; srun, if it runs a step of several tasks; else peftlab starts its own processes. A
batch script, a shell inside an allocation, or a variable that something else has left in the environment starts none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from peftlab.errors import ConfigError
from peftlab.machine import visible_gpus

if TYPE_CHECKING:
    from peftlab.training.config import TrainerConfig

FOLLOWS = "PEFTLAB_RUN_KEY"
"""Environment variable of the processes that peftlab starts itself: the key of the run that they must train, and the
process that starts them."""

RESUMES = "PEFTLAB_RESUMES"
"""The same for the name of the checkpoint that rank 0 goes on from; empty: they begin."""

Starter = Literal["torchrun", "srun", "peftlab"]

_OF_A_STARTER = (
    "RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE",
    "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", FOLLOWS,
    RESUMES,
)  # fmt: skip


@dataclass(frozen=True)
class Ranks:
    """A process among those of its run."""

    starter: Starter = "peftlab"
    rank: int = 0
    """Of all processes, from 0."""
    local_rank: int = 0
    """Of those on its node."""
    world_size: int | None = None
    """So many have been started; None: peftlab starts as many as the config asks for."""
    nodes: int = 1

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> Ranks:
        """This process, from what its starter has put into the environment."""
        if "TORCHELASTIC_RUN_ID" in environment:
            world, local = int(environment["WORLD_SIZE"]), int(environment["LOCAL_WORLD_SIZE"])
            return cls("torchrun", int(environment["RANK"]), int(environment["LOCAL_RANK"]), world, world // local)
        tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
        if tasks.isdigit() and int(tasks) > 1:
            nodes = int(environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES", "1")))
            return cls("srun", int(environment["SLURM_PROCID"]), int(environment["SLURM_LOCALID"]), int(tasks), nodes)
        _, _, leader = environment.get(FOLLOWS, "").partition(" ")
        local = int(environment.get("LOCAL_RANK", "0")) if leader == str(os.getppid()) else 0
        return cls("peftlab", local, local)

    @property
    def met(self) -> bool:
        """Whether the others run already, and have to be told what rank 0 finds."""
        return self.world_size is not None

    def settle(self, trainer: TrainerConfig, *, gpus: int | None = None) -> TrainerConfig:
        """``trainer`` with a number of devices where ``auto`` means several; of one, ``auto`` stays.

        Args:
            trainer: the run's.
            gpus: of a job; None: those of this machine.
        """
        if trainer.devices != "auto":
            return trainer
        if self.world_size is not None:
            count = self.world_size // self.nodes
        elif trainer.accelerator in ("cpu", "mps"):
            count = 1
        else:
            count = len(visible_gpus()) if gpus is None else gpus
        return replace(trainer, devices=count) if count > 1 else trainer

    def require(self, trainer: TrainerConfig) -> None:
        """Refuse a config that asks for other processes than there are.

        Raises:
            ConfigError: saying how many there are, and who has started them.
        """
        devices = 1 if trainer.devices == "auto" else trainer.devices
        if self.world_size is None:
            if trainer.num_nodes > 1:
                raise ConfigError(
                    f"trainer.num_nodes={trainer.num_nodes}: processes on several nodes are started by srun or "
                    f"torchrun: srun --nodes={trainer.num_nodes} --ntasks-per-node={devices} peftlab train …"
                )
        elif (devices, trainer.num_nodes) != (self.world_size // self.nodes, self.nodes):
            raise ConfigError(
                f"{self.starter} has started {self.world_size} processes on {self.nodes} "
                f"node{'s' if self.nodes > 1 else ''}, and the config asks for trainer.devices={devices} on each of "
                f"trainer.num_nodes={trainer.num_nodes}. Set trainer.devices={self.world_size // self.nodes} and "
                f"trainer.num_nodes={self.nodes}, or start one process."
            )


def lead(key: str) -> None:
    """Let the processes that this one starts know that they train the run ``key`` with it."""
    os.environ[FOLLOWS] = f"{key} {os.getpid()}"


def led_to() -> str:
    """The key of the run that this process has been started to train."""
    return os.environ[FOLLOWS].partition(" ")[0]


def lead_from(checkpoint: str) -> None:
    """Let the processes that this one starts know the name of the checkpoint that the run goes on from."""
    os.environ[RESUMES] = checkpoint


def led_from() -> str:
    """What :func:`lead_from` has said in the process that has started this one."""
    return os.environ.get(RESUMES, "")


def world_size(trainer: TrainerConfig) -> int:
    """Processes of a run, on all nodes."""
    return (1 if trainer.devices == "auto" else trainer.devices) * trainer.num_nodes


def of_its_own(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` for a process that belongs to no group of processes, whoever has started this one."""
    return {
        name: value
        for name, value in environment.items()
        if name not in _OF_A_STARTER and not name.startswith("TORCHELASTIC_")
    }
