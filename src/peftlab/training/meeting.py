"""What rank 0 finds, told to the other processes before anything begins; for those that srun or torchrun has started.

Only rank 0 looks whether a run is finished or in other hands, and from which checkpoint it goes on. Were each rank to
look for itself, they could find differing things, and wait for each other for ever.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from peftlab.errors import PeftlabError
from peftlab.training.ranks import Ranks

PATIENCE = timedelta(minutes=30)
"""How long ranks wait for each other: one may have to import from a slow file system."""
AT_THE_END, AFTER_A_FAILURE = timedelta(minutes=5), timedelta(seconds=5)
_FIRST_PORT, _PORTS = 20_000, 10_000
"""Slurm's steps choose a pair of ports by their numbers: one to meet at, and the next for the process group."""


@dataclass(frozen=True)
class Decision:
    """What rank 0 has found."""

    train: bool
    key: str = ""
    folder: str = ""
    """Where the run is made."""
    resume: str = ""
    """The name of the checkpoint there that it goes on from; empty: it begins."""
    status: int = 0
    """If nothing is to be trained: what all processes exit with."""


class Meeting:
    """Rank 0 tells; the others hear, say what they would have trained, and end if rank 0 ends before them."""

    def __init__(self, ranks: Ranks, environment: Mapping[str, str] = os.environ) -> None:
        assert ranks.world_size is not None
        self.ranks = ranks
        self._others = ranks.world_size - 1
        agent = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's own process holds the store
        host, port = address(ranks, environment)
        try:
            store = TCPStore(
                host,
                port if agent else port + 1,
                ranks.world_size,
                is_master=ranks.rank == 0 and not agent,
                timeout=PATIENCE,
                wait_for_workers=False,
            )
        except RuntimeError as error:
            raise PeftlabError(
                f"rank {ranks.rank} of {ranks.world_size} cannot reach rank 0 at {host}:{port + (not agent)}: "
                f"{str(error).splitlines()[0]} MASTER_ADDR and MASTER_PORT choose another place."
            ) from error
        attempt = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._watch: threading.Thread | None = None
        self._store: Store = PrefixStore(f"peftlab/{attempt}", store)

    def tell(self, decision: Decision) -> None:
        """Rank 0: say what was found, and wait until the others agree.

        Raises:
            PeftlabError: if one of them would train another run, or does not come.
        """
        self._store.set("decision", json.dumps(asdict(decision)))
        if not decision.train:
            return
        for rank in range(1, self._others + 1):
            if (key := self._get(f"key {rank}", f"rank {rank} did not come")) != decision.key:
                self._store.set("go", "no")
                raise PeftlabError(
                    f"rank {rank} has composed the run {key}, and rank 0 {decision.key}: their files, packages or "
                    "environment differ."
                )
        self._store.set("go", "yes")

    def hear(self, key: str) -> Decision:
        """Another rank: what rank 0 has found; ``key`` is the run that this one has composed.

        Raises:
            PeftlabError: if rank 0 is gone.
        """
        decision = Decision(**json.loads(self._get("decision", "rank 0 ended before it said what to do")))
        if not decision.train:
            return decision
        self._store.set(f"key {self.ranks.rank}", key)
        if self._get("go", "rank 0 ended before all had come") != "yes":
            return Decision(train=False, status=2)
        self._watch = threading.Thread(target=self._end_with_rank_0, daemon=True, name="rank 0 watch")
        self._watch.start()
        return decision

    def leave(self) -> None:
        """Another rank: its part is done, or there was none."""
        with contextlib.suppress(RuntimeError):  # rank 0 waits no longer
            self._store.set(self._end_of(self.ranks.rank), "0")
        if self._watch is not None:  # a thread inside the store would not survive the end of the interpreter
            self._watch.join(PATIENCE.total_seconds())
        with contextlib.suppress(RuntimeError):  # last, as rank 0 and its store may be gone in the next moment
            self._store.set(f"done {self.ranks.rank}", "")

    def end(self, status: int) -> None:
        """Rank 0: it ends with this status when the others have done their part; if it failed, they end at once."""
        for rank in range(1, self._others + 1):
            with contextlib.suppress(RuntimeError):
                self._store.set(self._end_of(rank), str(status))
        for rank in range(1, self._others + 1):
            with contextlib.suppress(RuntimeError):
                self._store.wait([f"done {rank}"], AT_THE_END if status == 0 else AFTER_A_FAILURE)

    def _end_with_rank_0(self) -> None:
        name = self._end_of(self.ranks.rank)
        while True:
            try:
                self._store.wait([name], PATIENCE)
                status = self._read_end()
            except RuntimeError as error:
                if "timeout" in str(error).lower():
                    continue
                status = 1  # its process is gone
            if status:
                os._exit(status)
            return

    def _read_end(self) -> int:
        return int(self._store.get(self._end_of(self.ranks.rank)))

    @staticmethod
    def _end_of(rank: int) -> str:
        return f"end {rank}"

    def _get(self, name: str, otherwise: str) -> str:
        try:
            found: Any = self._store.get(name)
        except RuntimeError as error:
            raise PeftlabError(f"{otherwise} ({str(error).splitlines()[0]}).") from error
        return str(found, "utf-8")


def address(ranks: Ranks, environment: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Host and port of the process group, the same in all ranks; ``MASTER_ADDR`` and ``MASTER_PORT`` come first."""
    host, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT")
    if ranks.starter == "srun":
        names = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "127.0.0.1")
        step = f"{environment.get('SLURM_JOB_ID')}.{environment.get('SLURM_STEP_ID')}"
        host = host or SLURMEnvironment.resolve_root_node_address(names)
        port = port or str(_FIRST_PORT + 2 * (zlib.crc32(step.encode()) % _PORTS))
    return host or "127.0.0.1", int(port or "12910")
