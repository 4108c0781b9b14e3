"""The batch script of a worker: bash that a reader can follow, and start by hand. Imports no torch."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from peftlab.allowed import AS_TYPED
from peftlab.cluster.settings import Cluster
from peftlab.signals import RESUMABLE
from peftlab.sweeps.beside import WORKER
from peftlab.sweeps.pool import GRACE, GRACE_SECONDS

TO_LEAVE = 15.0
"""Of the seconds before its end, those that a worker needs for itself when its jobs have ended."""

_SCRIPT = r"""#!/bin/bash
# One worker of {title}: it runs jobs until all are done or at work in other workers.
# Submitted with: {submitted}
say() {{ echo "=== $(date '+%F %T') worker $worker on $(hostname): $*"; }}
worker=${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}_${{SLURM_ARRAY_TASK_ID:-0}}
say "turn $(( ${{SLURM_RESTART_COUNT:-0}} + 1 )) begins"

cd -- {cwd} || exit 1
{setup}export {worker}="$worker" {grace_name}={grace}
export PYTHONPATH={code}"${{PYTHONPATH:+:$PYTHONPATH}}" PYTHONSAFEPATH=1 {as_typed}=1

# Asked to end, the worker ends its jobs with checkpoints. USR1 says that its time is nearly over: it goes on in another
# turn. TERM says that it was cancelled, or must make room: whether there is another turn Slurm itself knows then.
again=
trap 'again=yes; kill -{ask} "$child" 2> /dev/null' USR1
trap 'kill -{ask} "$child" 2> /dev/null' TERM

{command} &
child=$!
wait "$child"; status=$?
while [ "$status" -gt 128 ] && kill -0 "$child" 2> /dev/null; do wait "$child"; status=$?; done
wait "$child" 2> /dev/null; last=$?  # what it ended with, if that was in the moment of a signal
[ "$last" = 127 ] || status=$last

say "ended with exit status $status"
case "$again$status" in
  yes{resumable}|yes143|yes138)  # killed by the signal: it was still starting
    if scontrol requeue "$worker"; then sleep 120; else say "cannot be queued again: submit it anew"; fi ;;
esac
exit "$status"
"""


def worker_script(
    *,
    title: str,
    cluster: Cluster,
    command: Sequence[str],
    code: Path,
    cwd: Path,
    submitted: Sequence[str],
    python: str,
) -> str:
    """The text of the script.

    Args:
        title: what people call the work.
        cluster: setup lines and container.
        command: peftlab's words.
        code: the folder of the snapshot that goes first on the path.
        cwd: where the worker runs.
        submitted: sbatch and its options, to be read.
        python: the worker's.
    """
    words = shlex.join([python, "-m", "peftlab", *command])
    # When one process ends, the others have a minute to write their checkpoint.
    srun = "srun --kill-on-bad-exit=0 --wait=60 " if cluster.nodes > 1 else ""
    container = f"{cluster.container} " if cluster.container else ""
    return _SCRIPT.format(
        title=title,
        submitted=shlex.join(submitted),
        cwd=shlex.quote(str(cwd)),
        setup="".join(f"{line}\n" for line in cluster.setup),
        worker=WORKER,
        as_typed=AS_TYPED,
        grace_name=GRACE,
        grace=max(GRACE_SECONDS, cluster.lead_seconds - TO_LEAVE),
        code=shlex.quote(str(code)),
        command=f"{srun}{container}{words}",
        ask="USR1" if srun else "TERM",  # srun passes on the first, and kills its step at the second
        resumable=RESUMABLE,
    )
