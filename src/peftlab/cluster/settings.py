"""What a cluster file says: where workers run, and what each of them has. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from peftlab.errors import ConfigError, listed
from peftlab.fields import NonNegativeInt, PositiveInt
from peftlab.reading import Unreadable, parse_yaml, read_yaml
from peftlab.schema import validate
from peftlab.sweeps.reading import UniqueKeys

SHIPPED = Path(__file__).parent / "default.yaml"
"""What holds where no file is given."""

Word = Annotated[str, Field(min_length=1, pattern=r"^[^\s|]+$")]
"""A name without spaces, as Slurm has them."""
Line = Annotated[str, Field(min_length=1, pattern=r"^[^\n]+$")]

_OURS = (
    "array", "chdir", "comment", "error", "job-name", "no-requeue", "open-mode", "output", "parsable", "requeue",
    "signal", "test-only", "wait", "wrap",
)  # fmt: skip
"""Options of sbatch that submitting sets itself."""
_SHORT = {"-a": "array", "-D": "chdir", "-e": "error", "-J": "job-name", "-o": "output", "-W": "wait"}


@dataclass(kw_only=True)
class Cluster:
    """A cluster, and the worker that is submitted to it."""

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    workers: PositiveInt = 4
    """At most so many at a time."""
    gpus: NonNegativeInt | Word = 0
    """Of each worker: a number, or type and number as ``a100:2``."""
    cpus: PositiveInt = 1
    """Of each worker."""
    memory: Word | None = None
    """Of each worker on each node, as ``16G``."""
    nodes: PositiveInt = 1
    """Of each worker; more than one for one run that spans them."""
    time: Word | None = None
    """How long a turn of a worker may take; null: the partition's own limit."""
    lead_seconds: PositiveInt = 120
    """So long before the end of a turn its jobs are asked to end."""
    setup: list[Line] = field(default_factory=list)
    """Lines of bash before the worker."""
    container: Line | None = None
    """Words of bash before the worker's command."""
    python: Word | None = None
    """The workers' Python; null: this one, or ``python`` in a container."""
    sbatch: list[Line] = field(default_factory=list)
    """More options of sbatch."""

    def __post_init__(self) -> None:
        _require_gpus(self.gpus)
        if self.memory is not None and not re.fullmatch(r"\d+[KMGT]?", self.memory):
            raise ValueError(f"memory={self.memory} is not allowed: it must be a size, as 16G.")
        seconds = None if self.time is None else seconds_of(self.time)
        if seconds is not None and seconds < 2 * self.lead_seconds:
            raise ValueError(
                f"lead_seconds={self.lead_seconds} is not allowed: with time={self.time} it may be at most "
                f"{seconds // 2}, so that a worker works for half of its time."
            )
        for option in self.sbatch:
            _require_foreign(option)

    @property
    def gpu_count(self) -> int:
        """GPUs of each worker on each node."""
        return int(str(self.gpus).rpartition(":")[2])

    def options(self) -> list[str]:
        """What sbatch is told of a worker, an entry an option."""
        given = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "nodes": self.nodes,
            "cpus-per-task": self.cpus,
            "mem": self.memory,
            "time": self.time,
            "gres": f"gpu:{self.gpus}" if self.gpu_count else None,
        }
        return [*(f"--{name}={value}" for name, value in given.items() if value is not None), *self.sbatch]


def read_cluster(path: Path | None, changes: Sequence[str] = ()) -> Cluster:
    """The cluster that ``path`` describes, the shipped default if it is None, with ``key=value`` from the command line.

    Raises:
        ConfigError: naming the file, or ``--set``, and the key that does not fit.
    """
    file = path or SHIPPED
    try:
        values = read_yaml(file, _Loader)
    except (OSError, Unreadable) as error:
        raise ConfigError(f"cannot read the cluster file '{file}': {error}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file} describes no cluster: it needs lines such as 'partition: gpu' and 'workers: 4'.")
    cluster = _checked(values, str(file))
    if not changes:
        return cluster
    given = dict(_change(text) for text in changes)
    return _checked({**values, **given}, f"--set {' '.join(changes)}")


def _checked(values: dict[str, Any], where: str) -> Cluster:
    values = dict(values)
    for name in ("time", "memory"):  # 120 is a time, and 4000 a size
        if isinstance(values.get(name), int) and not isinstance(values[name], bool):
            values[name] = str(values[name])
    try:
        return validate({str(name): value for name, value in values.items()}, Cluster, "")
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _change(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text}: write key=value, as --set time=2:00:00.")
    try:
        return key.strip(), parse_yaml(value.encode(), _Loader)
    except (Unreadable, yaml.YAMLError) as error:
        raise ConfigError(f"--set {text}: not valid YAML: {' '.join(str(error).split())}.") from error


class _Loader(UniqueKeys):
    """Plain YAML, but for ``2:00:00``, which YAML 1.1 reads as the number 7200 to the base of 60."""


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    return node.value if ":" in node.value else loader.construct_yaml_int(node)


def _decimal(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    return node.value if ":" in node.value else loader.construct_yaml_float(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _decimal)


def seconds_of(time: str) -> int:
    """Seconds of a time as Slurm writes it: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Raises:
        ValueError: saying how times are written.
    """
    found = re.fullmatch(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})", time)
    parts = [int(part) for part in found["rest"].split(":")] if found else []
    if not found:
        seconds = 0
    elif found["days"] is not None:
        hours, minutes, rest = [*parts, 0, 0][:3]
        seconds = ((int(found["days"]) * 24 + hours) * 60 + minutes) * 60 + rest
    else:
        hours, minutes, rest = {1: [0, *parts, 0], 2: [0, *parts], 3: parts}[len(parts)]
        seconds = (hours * 60 + minutes) * 60 + rest
    if seconds == 0:
        raise ValueError(
            f"time={time} is not allowed: it must be minutes (120), hours:minutes:seconds (2:00:00) or "
            "days-hours:minutes:seconds (1-12:00:00)."
        )
    return seconds


def _require_gpus(gpus: int | str) -> None:
    if not re.fullmatch(r"(?:[A-Za-z][\w.-]*:)?\d+", str(gpus)):
        raise ValueError(f"gpus={gpus} is not allowed: it must be a number, or type and number as a100:2.")


def _require_foreign(option: str) -> None:
    name = option.partition("=")[0]
    name = _SHORT.get(name[:2], name) if not name.startswith("--") else name[2:]
    if not option.startswith("-"):
        raise ValueError(f"sbatch: '{option}' is no option: write --name=value, as --constraint=a100.")
    if name in _OURS:
        raise ValueError(f"sbatch: {option} cannot be given: submitting sets {listed(f'--{one}' for one in _OURS)}.")
