"""A data set that misbehaves on demand, and notes in ``events.txt`` which process loads it for which run."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from peftlab.data.base import Splits
from peftlab.data.text_files import TextFiles
from peftlab.errors import DataError


@dataclass(kw_only=True)
class OddData(TextFiles):
    """The reviews, after whatever ``act`` says."""

    mark: int = 0
    """Makes another run."""
    act: str = ""
    once: bool = False
    """Only the first process to come acts."""
    ranks: list[int] | None = None
    """The ranks that act; null: all."""

    def load(self) -> Splits:
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        devices, threads = os.environ.get("CUDA_VISIBLE_DEVICES", "-"), os.environ.get("OMP_NUM_THREADS", "-")
        with Path("events.txt").open("a") as file:
            file.write(f"mark {self.mark} rank {rank} pid {os.getpid()} gpus {devices} threads {threads}\n")
        if (self.ranks is None or rank in self.ranks) and not (self.once and self._has_acted()):
            self._act()
        return super().load()

    def _has_acted(self) -> bool:
        try:
            Path(f"acted_{self.mark}").touch(exist_ok=False)
        except FileExistsError:
            return True
        return False

    def _act(self) -> None:
        match self.act:
            case "crash":
                raise RuntimeError("the disk has melted")
            case "refuse":
                raise DataError("these rows are not for you")
            case "no_memory":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "wait":
                while not (Path("go").exists() or Path(f"go_{self.mark}").exists()):
                    time.sleep(0.05)
            case "kill the parent":
                os.kill(os.getppid(), signal.SIGKILL)
                while True:
                    time.sleep(1)
