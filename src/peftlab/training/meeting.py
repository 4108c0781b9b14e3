"""What rank 0 finds, told to the other processes before anything begins; for those that srun or torchrun has started.

Only rank 0 looks whether a run is finished or in other hands, and from which checkpoint it goes on. Were each rank to
look for itself, they could find differing things, and wait for each other for ever.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from peftlab.errors import PeftlabError, first_line
from peftlab.training.ranks import Ranks

PATIENCE = timedelta(minutes=30)
"""How long ranks that have met wait for each other: rank 0 may have data to read."""
FIRST_MINUTES = "PEFTLAB_MEETING_MINUTES"
"""Environment variable: how long ranks wait for each other's first word. One may import from a slow file system."""
_FIRST, _NAME = timedelta(minutes=5), timedelta(minutes=1)
"""So long where nothing is said; and for the name of rank 0's host to be known, at most."""
AT_THE_END, AFTER_A_FAILURE = timedelta(minutes=5), timedelta(seconds=5)
_DAY = 24 * 60
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
        port += not agent
        self._first = _first_contact(environment)
        try:
            _require_known(host, min(self._first, _NAME))
            store = TCPStore(
                host,
                port,
                ranks.world_size,
                is_master=ranks.rank == 0 and not agent,
                timeout=self._first,
                wait_for_workers=False,
            )
        except (RuntimeError, OSError) as error:
            raise PeftlabError(
                f"rank {ranks.rank} of {ranks.world_size} cannot reach rank 0 at {host}:{port}: {first_line(error)} "
                f"MASTER_ADDR and MASTER_PORT choose another place; {_longer(self._first)}"
            ) from error
        store.set_timeout(PATIENCE)
        attempt = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._watch: threading.Thread | None = None
        self._store: Store = PrefixStore(f"peftlab/{attempt}", store)
        self._store.set(f"here {ranks.rank}", "")

    def tell(self, decision: Decision) -> None:
        """Rank 0: say what was found, and wait until the others agree.

        Raises:
            PeftlabError: if one of them would train another run, or does not come.
        """
        self._store.set("decision", json.dumps(asdict(decision)))
        if not decision.train:
            return
        self._require_all_here()
        for rank in range(1, self._others + 1):
            if (key := self._get(f"key {rank}", f"rank {rank} did not come")) != decision.key:
                self._store.set("go", "no")
                raise PeftlabError(
                    f"rank {rank} has composed the run {key}, and rank 0 {decision.key}: their files, packages or "
                    "environment differ."
                )
        self._store.set("go", "yes")

    def _require_all_here(self) -> None:
        until = time.monotonic() + self._first.total_seconds()
        for rank in range(1, self._others + 1):
            left = timedelta(seconds=max(0.001, until - time.monotonic()))
            try:
                self._store.wait([f"here {rank}"], left)
            except RuntimeError as error:
                raise PeftlabError(
                    f"rank {rank} did not come: it has not begun, has failed, or looks for rank 0 in another place "
                    f"(MASTER_ADDR, MASTER_PORT); {_longer(self._first)}"
                ) from error

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


def _first_contact(environment: Mapping[str, str]) -> timedelta:
    given = environment.get(FIRST_MINUTES)
    if given is None:
        return _FIRST
    try:
        minutes = float(given)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes <= _DAY:
        raise PeftlabError(f"{FIRST_MINUTES}={given}: a number of minutes is needed, above 0 and at most {_DAY}.")
    return timedelta(minutes=minutes)


def _longer(waited: timedelta) -> str:
    return f"{FIRST_MINUTES} waits longer than these {waited.total_seconds() / 60:g} minutes."


def _require_known(host: str, patience: timedelta) -> None:
    """Look the name up for a while: a node that is just starting may not know it yet.

    Raises:
        OSError: if nobody knows ``host``; to a store it would be one that does not answer yet.
    """
    until = time.monotonic() + patience.total_seconds()
    while True:
        try:
            socket.getaddrinfo(host, None)
            return
        except OSError:
            if time.monotonic() >= until:
                raise
            time.sleep(1)


def address(ranks: Ranks, environment: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Host and port of the process group, the same in all ranks; ``MASTER_ADDR`` and ``MASTER_PORT`` come first."""
    host, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT")
    if ranks.starter == "srun":
        names = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "127.0.0.1")
        step = f"{environment.get('SLURM_JOB_ID')}.{environment.get('SLURM_STEP_ID')}"
        host = host or SLURMEnvironment.resolve_root_node_address(names)
        port = port or str(_FIRST_PORT + 2 * (zlib.crc32(step.encode()) % _PORTS))
    return host or "127.0.0.1", int(port or "12910")
