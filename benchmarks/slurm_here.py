"""A Slurm of two nodes on this machine alone, for what has to be tried on a real one; needs root and its packages."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("slurm-wlm", "munge")
CONF = """\
ClusterName=here
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool-%n
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd-%n.log
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd-%n.pid
SwitchType=switch/none
MpiDefault=none
KillWait=30
JobRequeue=1
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 CoresPerSocket=8 RealMemory=20000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 CoresPerSocket=8 RealMemory=20000
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=60 State=UP
"""


def why_not() -> str | None:
    """Why no Slurm can be started here; None if it can."""
    if os.geteuid() != 0:
        return "starting Slurm's daemons needs root"
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(name) is None]
    return f"{', '.join(missing)} not installed (apt-get install {' '.join(PACKAGES)})" if missing else None


@dataclass
class Slurm:
    """The daemons that were started, and where they keep what they know."""

    place: Path

    @property
    def environment(self) -> dict[str, str]:
        """What Slurm's programs have to be told."""
        return {"SLURM_CONF": str(self.place / "slurm.conf")}

    def start(self, *daemons: str) -> None:
        """Start ``slurmctld``, ``n1`` or ``n2``."""
        conf = str(self.place / "slurm.conf")
        for name in daemons:
            command = ["slurmctld", "-f", conf] if name == "slurmctld" else ["slurmd", "-f", conf, "-N", name]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def stop(self, *daemons: str) -> None:
        """End them by their own pid files, and wait until they are gone."""
        for name in daemons:
            file = self.place / (f"{name}.pid" if name == "slurmctld" else f"slurmd-{name}.pid")
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
                pid = int(file.read_text())
                os.kill(pid, signal.SIGTERM)
                _until(lambda pid=pid: not _runs(pid), f"{name} ends", 30)  # type: ignore[misc]

    def ask(self, *command: str) -> str:
        """What one of Slurm's programs answers."""
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | self.environment, timeout=60)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def ready(self) -> bool:
        """Whether both nodes can take jobs."""
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            states = self.ask("sinfo", "--noheader", "--Node", "--format=%T").split()
            return len(states) == 2 and all(state in ("idle", "mixed", "allocated") for state in states)
        return False


@contextmanager
def slurm(place: Path) -> Iterator[Slurm]:
    """Start it, with everything it keeps in ``place``; end it afterwards."""
    _start_munge()
    for name in ("state", "spool-n1", "spool-n2"):
        (place / name).mkdir(parents=True)
    host = socket.gethostname().partition(".")[0]
    (place / "slurm.conf").write_text(CONF.format(place=place, host=host, ports=_free_ports(3)))
    here = Slurm(place)
    try:
        here.start("slurmctld", "n1", "n2")
        _until(here.ready, "both nodes can take jobs", 60)
        yield here
    finally:
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            here.ask("scancel", "--user=root")
            time.sleep(2)
        here.stop("slurmctld", "n1", "n2")


def _start_munge() -> None:
    if subprocess.run(["munge", "-n"], capture_output=True).returncode == 0:
        return
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    subprocess.run(["su", "-s", "/bin/sh", "munge", "-c", "/usr/sbin/munged"], check=True)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _until(condition: object, what: str, seconds: float) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"waited {seconds:.0f} s in vain until {what}")
        time.sleep(0.2)
