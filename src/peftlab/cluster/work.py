"""What workers are submitted for: a declared sweep, the jobs of ``train -m``, or one run. Imports no torch."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peftlab.composition import jobs_of, parse
from peftlab.config import RunConfig
from peftlab.errors import ConfigError
from peftlab.records.divergence import ENDED
from peftlab.records.find import known_folder
from peftlab.records.folder import RunFolder
from peftlab.sweeps import roster
from peftlab.sweeps.cache import ConfigCache
from peftlab.sweeps.call import Call
from peftlab.sweeps.faults import Faults, checked_jobs, job_name, titles
from peftlab.sweeps.finished import finished
from peftlab.sweeps.jobs import Job
from peftlab.sweeps.plan import Variant
from peftlab.sweeps.preflight import check_all, lines, require_sound
from peftlab.sweeps.readable import require_readable
from peftlab.sweeps.soundness import Soundness

_LAUNCHER = {"n_parallel": "null", "retries": "1"}
"""How the jobs of ``-m`` run in a worker, where nothing is said: as a declared sweep's do."""


@dataclass(frozen=True)
class Work:
    """What workers share."""

    title: str
    """Names the jobs in the queue."""
    folder: Path
    """Where it is seen how it stands, ``<output_dir>/<name>``."""
    call: str
    """The same for the same files and words."""
    command: Callable[[Path], list[str]]
    """What a worker runs, given the folder of the snapshot: words behind ``peftlab``."""
    total: int
    runs: tuple[roster.Entry, ...]
    """Those to make."""
    files: dict[str, Path] = field(default_factory=dict)
    """Name in the snapshot → file or folder that the command needs."""
    most_workers: int | None = None
    """So many can share it; None: as many as there are runs."""
    nodes: int = 1
    """Nodes that one run needs."""
    tasks: int = 1
    """Processes of it on each, where srun starts them."""


def sweep_work(call: Call, options: Sequence[str]) -> Work:
    """A declared sweep.

    Args:
        call: its file and what was typed behind it.
        options: of ``peftlab sweep``, for the workers.

    Raises:
        ConfigError: naming the cell that cannot run on a cluster.
        PeftlabError: naming the cell that does not compose.
    """
    plan = call.plan(reading=True)
    try:
        checked = check_all(plan)
        faults = Faults("cell", len(plan.sweep.cells))
        for one in checked:
            with faults.noting(f"'{one.variant.arm.id}'"):
                _require_fits(one.config)
        faults.require_none()
        require_sound(plan, checked)
        outcome = finished(plan)
        open_jobs = [line.variant for line in lines(plan, outcome) if line.state == "to run"]
        keys = [None if _to_be_chosen(variant) else plan.key(variant, outcome) for variant in open_jobs]
    finally:
        plan.close()
    named = [roster.Entry(key, variant.title) for key, variant in zip(keys, open_jobs, strict=True) if key]
    coming = roster.Entry("", str(keys.count(None)))
    return Work(
        title=call.sweep.name,
        folder=plan.folder.absolute(),
        call=_digest("sweep", call.file.read_text(encoding="utf-8"), *call.overrides, *filter(None, [call.config_dir])),
        command=lambda snapshot: [
            "sweep",
            str(snapshot / "sweep.yaml"),
            *call.overrides,
            *_where(call.config_dir, snapshot),
            *options,
        ],
        total=plan.total(),
        runs=(*named, *([coming] if keys.count(None) else [])),
        files={"sweep.yaml": call.file} | _folder(call.config_dir),
        most_workers=1 if any(arm.search for arm in plan.sweep.cells) else None,
    )


def train_work(arguments: Sequence[str]) -> Work:
    """What ``peftlab train`` with these ``arguments`` does, a single run or the jobs of ``-m``.

    Raises:
        PeftlabError: naming the job that does not compose, or cannot run on a cluster.
    """
    parser = argparse.ArgumentParser("peftlab submit train", add_help=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-cd", "--config-dir")
    parser.add_argument("-cn", "--config-name", default="train")
    given = parser.parse_intermixed_args(list(arguments))
    parse(given.overrides)
    configs = _configs(given)
    todo = _to_make(configs)
    folders = {Path(config.output_dir, config.name) for config in configs.values()}
    outputs = {folder.parent for folder in folders}
    if len(outputs) > 1:
        raise ConfigError(f"output_dir takes {len(outputs)} values: submit the jobs of each folder by themselves.")
    one = next(iter(configs.values()))
    words = list(given.overrides)
    if given.multirun:
        words += [f"hydra.launcher.{name}={value}" for name, value in _LAUNCHER.items() if not _says(words, name)]

    def command(snapshot: Path) -> list[str]:
        where = _where(given.config_dir, snapshot)
        where += [] if given.config_name == "train" else ["--config-name", given.config_name]
        return ["train", *(["-m"] if given.multirun else []), *where, *words]

    return Work(
        title=one.name,
        folder=(folders.pop() if len(folders) == 1 else outputs.pop()).absolute(),
        call=_digest("train", *arguments),
        command=command,
        total=len(configs),
        runs=tuple(todo),
        files=_folder(given.config_dir),
        most_workers=None if given.multirun else 1,
        nodes=one.trainer.num_nodes,
        tasks=one.trainer.devices if isinstance(one.trainer.devices, int) and one.trainer.num_nodes > 1 else 1,
    )


def _where(config_dir: str | None, snapshot: Path) -> list[str]:
    """How a worker is told of the further folder of configs, which the snapshot holds."""
    return [] if config_dir is None else ["--config-dir", str(snapshot / "config_dir")]


def _folder(config_dir: str | None) -> dict[str, Path]:
    return {} if config_dir is None else {"config_dir": Path(config_dir)}


def _to_be_chosen(variant: Variant) -> bool:
    return not variant.parameters and bool(variant.arm.tune or variant.arm.search)


def _configs(given: argparse.Namespace) -> dict[str, RunConfig]:
    """Title → checked config of each job."""
    jobs = [list(given.overrides)]
    if given.multirun:
        jobs = jobs_of(given.overrides, config_dir=given.config_dir, config_name=given.config_name)
    kept = [tuple(o for o in overrides if not o.startswith(("hydra/", "hydra."))) for overrides in jobs]
    config_dir = None if given.config_dir is None else str(Path(given.config_dir).resolve())
    listed = [
        Job(str(number), title, overrides, config_dir, given.config_name)
        for number, (title, overrides) in enumerate(zip(titles(kept), kept, strict=True))
    ]
    with ConfigCache() as cache:
        if not given.multirun:
            config = cache.config(listed[0])
            RunFolder.of(config)
            _require_fits(config, alone=True)
            require_readable([(config.name, config)], "job")
            return {config.name: config}
        configs = checked_jobs(cache, listed, lambda _, config: _require_fits(config))
    named = [(job_name(job), config) for job, config in zip(listed, configs, strict=True)]
    Soundness().require(named, "job")
    return {job.title: config for job, config in zip(listed, configs, strict=True)}


def _to_make(configs: dict[str, RunConfig]) -> list[roster.Entry]:
    found: dict[str, roster.Entry] = {}
    for title, config in configs.items():
        folder = known_folder(config)
        record = folder.read_record()
        if config.force or record is None or record["status"] not in ENDED:
            found.setdefault(folder.key, roster.Entry(folder.key, title))
    return list(found.values())


def _require_fits(config: RunConfig, *, alone: bool = False) -> None:
    """Refuse what a worker cannot run."""
    if config.trainer.num_nodes > 1 and not alone:
        raise ConfigError(
            f"trainer.num_nodes={config.trainer.num_nodes} is more than a worker of a sweep has. Submit it by "
            f"itself: peftlab submit --set nodes={config.trainer.num_nodes} train …"
        )
    if config.force and not alone:
        raise ConfigError(
            "force=true would let each worker make every run anew. Remove the folders of the runs instead."
        )


def _says(words: Sequence[str], name: str) -> bool:
    return any(word.lstrip("+").startswith(f"hydra.launcher.{name}=") for word in words)


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
