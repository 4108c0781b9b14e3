"""Running a record again: the command that gives it, what is other here, and whether the result has the same bits.

The command is the one that the record names, if that still composes to the run's key; else the record's resolved config
is written to a file of its own, which needs neither this checkout's YAML files nor the environment of that time.
"""

from __future__ import annotations

import argparse
import copy
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from peftlab.allowed import AS_TYPED
from peftlab.audit.pinned import moving, pinned, pins
from peftlab.composition import composed, override_keys, override_values
from peftlab.config import GROUPS, RunConfig, check, from_plain
from peftlab.errors import ConfigError, PeftlabError, RunError, listed
from peftlab.files import write_atomically
from peftlab.hydra_changes import SELECTORS
from peftlab.records import identity_tags
from peftlab.records.find import look_beside, set_value
from peftlab.records.folder import RunFolder, parsed_record
from peftlab.records.identity import KEY_LENGTH, run_key, run_tags
from peftlab.records.integrity import broken_integrity
from peftlab.training.ranks import of_its_own

_OWN = ("name", "output_dir", "force", "logger")
"""What reproducing decides itself: the run must not be mixed with the one it is compared with."""

_OF_A_RUN = frozenset({*RunConfig.__dataclass_fields__, *SELECTORS})
"""First parts of the keys that a record's command may set. What is Hydra's own (``hydra.callbacks``) runs code."""

_KEY = re.compile(rf"[0-9a-f]{{{KEY_LENGTH}}}")

_AS_TRAIN_YAML = {
    "defaults": [
        "_self_",
        {"override hydra/help": "peftlab"},
        {"override hydra/launcher": "process"},
        {"override hydra/hydra_logging": "none"},
        {"override hydra/job_logging": "none"},
    ],
    "hydra": {"run": {"dir": "."}, "output_subdir": None},
}


@dataclass
class Reproduction:
    """What will run, and where."""

    original: RunFolder
    record: dict[str, Any]
    arguments: list[str]
    """Of ``peftlab train``."""
    config_file: tuple[Path, str] | None
    """The file to write before, and its text; None where the record's own command will do."""
    config: RunConfig
    """What they compose to; its classes are for reading only."""
    folder: RunFolder
    """Where the new run leaves its record."""
    notes: list[str]
    """What is to be said before it runs."""

    @property
    def command(self) -> str:
        """For a shell."""
        return shlex.join(["peftlab", "train", *self.arguments])


def read_finished(given: str) -> tuple[RunFolder, dict[str, Any]]:
    """The folder and the record that ``given`` (a run folder, or a record.json anywhere) stands for.

    Raises:
        RunError: if there is no record of a finished run.
    """
    path = Path(given).expanduser()
    if path.is_file() and path.suffix != ".json":
        raise RunError(f"'{given}' is no record. Give a run folder, or its record.json.")
    folder = RunFolder(path.parent if path.is_file() else path)
    record = parsed_record(path) if path.is_file() else folder.read_record(checked=False)
    if record is None:
        raise RunError(f"there is no record.json in '{given}'. Give the folder of a finished run, or its record.json.")
    if record.get("status") != "finished":
        raise RunError(f"the run in '{given}' is {record.get('status')}: there is no result to compare with.")
    lacking = [name for name in _NEEDED if name not in record]
    if lacking:
        raise RunError(f"the record in '{given}' lacks {listed(lacking)}: it is not as peftlab writes it.")
    if not isinstance(record["key"], str) or _KEY.fullmatch(record["key"]) is None:
        raise RunError(f"the record in '{given}' is not as peftlab writes it: its key must be {KEY_LENGTH} hex digits.")
    if not isinstance(record["argv"], list) or not all(isinstance(word, str) for word in record["argv"]):
        raise RunError(f"the record in '{given}' is not as peftlab writes it: its argv must be a list of words.")
    try:
        identity_tags.recorded_tags(record)
    except TypeError as error:
        raise RunError(f"the record in '{given}' is not as peftlab writes it: its {error}.") from error
    return folder, record


_NEEDED = ("key", "name", "config", "argv", "versions", "hardware", "git", "metrics", "history", "files", "data")


def prepare(given: str, to: Path, places: Sequence[str]) -> Reproduction:
    """Find the command that runs the record in ``given`` again.

    Args:
        given: a run folder or a record.json.
        to: the output_dir of the new run.
        places: overrides of fields that only say where things lie: ``data.path=…``.

    Raises:
        ConfigError: if an override changes what the run is, or the record's config is not accepted here.
        RunError: if the new run would replace the old one.
    """
    original, record = read_finished(given)
    try:
        config = from_plain(record["config"])
    except ConfigError as error:
        raise ConfigError(
            f"this peftlab does not accept the config of run {record['key']}, which peftlab "
            f"{record['versions'].get('peftlab')} has run: {error}"
        ) from error
    if reason := config.data.unavailable():
        raise RunError(
            f"run {record['key']} cannot be reproduced: {reason} fit(…, data=…) with the same rows is that run."
        )
    require_places(config, places)
    beside = look_beside(config, original)
    for key, before, now_at in (
        ("backbone.from_run", config.backbone.from_run, beside.backbone.from_run),
        ("continue_from", config.continue_from, beside.continue_from),
    ):
        if before != now_at and not any(place.startswith(f"{key}=") for place in places):
            places = [*places, f"{key}={_quoted(str(now_at))}"]
    notes = []
    if problem := broken_integrity(record):
        notes.append(f"Take care: the record {problem}. Whether its figures are those of the run cannot be known.")
    to_pin = pins(record)
    found = _from_argv(record, places, to)
    config_file = None
    if found is None or not all(pin.override for pin in to_pin):
        config_file, arguments = _from_config(pinned(record["config"], to_pin), record["key"], places, to)
        now = _with_places(record["config"], places)
        if found is None:
            notes.append("The record's own command does not give this run here; its resolved config does.")
    else:
        arguments, now = found
        arguments += [str(pin.override) for pin in to_pin]
    tags = identity_tags.recorded_tags(record)
    try:
        key, today = run_key(now, tags), run_key(now)
    except PeftlabError as error:
        raise type(error)(f"{error}\n{_HOW_TO_FIND}") from error
    if key != record["key"]:
        notes.append(
            f"What is read here gives the key {key}, not {record['key']}: the content of a file (data, weights, an "
            "earlier run, code of yours) has changed, or this peftlab has fields that the record does not know, or "
            "spells a value otherwise (trainer.precision in full)."
        )
    notes += _about_tags(identity_tags.difference(tags, run_tags(now)), record, today)
    if to_pin:
        now = from_plain(pinned(now.plain(), to_pin))
        lines = [f"  {pin.line()}" for pin in to_pin]
        notes += ["What lies on the hub is read at the commits of the record:", *lines]
        notes.append(f"Hence the new run has the key {run_key(now)}: a config that says a commit is another one.")
    if (line := moving(record)) is not None:
        notes.append(line)
    folder = RunFolder.of(replace(now, output_dir=str(to)))
    if folder.path.resolve() == original.path.resolve():
        raise RunError(f"{folder.path} is the run itself: choose another folder with --to.")
    if (folder.path / "record.json").exists():
        arguments.append("force=true")  # reproduced before: the point is to run again
    processes = record["config"]["trainer"]["num_nodes"]
    if processes != 1:
        notes.append(f"The run used {processes} nodes: start the command with your cluster's launcher (srun).")
    return Reproduction(original, record, arguments, config_file, now, folder, notes)


def _about_tags(standing: identity_tags.Standing, record: dict[str, Any], today: str) -> list[str]:
    """What is computed otherwise here than when ``record`` was written, and that its key is another one for that."""
    lines = [f"The run was {line}." for line in standing.lines()]
    if lines:
        lines.append(
            f"Hence the new run has the key {today}, not {record['key']}: same config, but computed otherwise. Its "
            "results may differ from the record's for that alone."
        )
    return lines


_HOW_TO_FIND = "If it lies elsewhere on this machine, say where: peftlab reproduce RECORD data.path=…"


def require_places(config: RunConfig, overrides: Sequence[str]) -> None:
    """Raise ConfigError for an override of anything but a field that is not part of a run's identity."""
    allowed = sorted(
        f"{group}.{name}"
        for group in (*GROUPS, "trainer")
        if group not in _OWN
        for name, field in vars(type(getattr(config, group)))["__dataclass_fields__"].items()
        if field.metadata.get("bookkeeping")
    )
    allowed.insert(0, "continue_from")
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or key not in allowed:
            raise ConfigError(
                f"reproduce cannot change '{key}': it runs what the record says. It can be told where things lie on "
                f"this machine: {', '.join(allowed)}."
            )


def _from_argv(record: dict[str, Any], places: Sequence[str], to: Path) -> tuple[list[str], RunConfig] | None:
    """The record's own arguments and what they compose to here, if that is the run of the record; else None."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-cd", "--config-dir")
    parser.add_argument("-cn", "--config-name", default="train")
    try:
        given, unknown = parser.parse_known_intermixed_args(record["argv"][2:])
    except argparse.ArgumentError:
        return None
    if unknown or record["argv"][:2] != ["peftlab", "train"]:
        return None
    flags = ["--config-dir", given.config_dir] if given.config_dir else []
    flags += ["--config-name", given.config_name] if given.config_name != "train" else []
    try:
        keys = override_keys(given.overrides)
        if any(key.replace("/", ".").split(".")[0] not in _OF_A_RUN for key in keys):
            return None
        kept = [o for o, key in zip(given.overrides, keys, strict=True) if key.split(".")[0] not in _OWN[1:]]
        overrides = [*kept, *places, "logger=none", f"output_dir={_quoted(str(to))}"]
        whole = composed(overrides, config_dir=given.config_dir, config_name=given.config_name)
        if _beside_the_run(whole) != _beside_the_run(composed(["logger=none"])):
            return None
        config = check(whole)
        if run_key(config, identity_tags.recorded_tags(record)) != record["key"] or config.name != record["name"]:
            return None
    except (PeftlabError, OSError):
        return None  # files of the checkout, the environment or the paths are others now
    return [*flags, *overrides], config


def _beside_the_run(whole: DictConfig) -> Any:
    """What Hydra itself would do with a config: callbacks, launchers, logging, variables that it sets for the job."""
    hydra = OmegaConf.to_container(whole.hydra, resolve=False)
    assert isinstance(hydra, dict)
    job = {name: value for name, value in hydra.pop("job").items() if name in ("chdir", "env_set", "env_copy")}
    return job, {name: value for name, value in hydra.items() if name not in ("overrides", "runtime")}


def _from_config(
    config: dict[str, Any], key: str, places: Sequence[str], to: Path
) -> tuple[tuple[Path, str], list[str]]:
    """The file that holds the resolved ``config`` of run ``key`` (path and text), and the arguments that use it."""
    values = {name: value for name, value in config.items() if name not in _OWN[1:]}
    values["logger"] = {"_target_": "peftlab.training.loggers.NoLogger"}
    values |= {"output_dir": str(to), "force": False}
    text = f"# The resolved config of run {key}, to run it again.\n" + yaml.safe_dump(
        _AS_TRAIN_YAML | _uninterpolated(values), sort_keys=False, allow_unicode=True
    )
    folder = to / "configs"
    path = folder / f"{key}.yaml"
    return (path, text), ["--config-dir", str(folder.absolute()), "--config-name", path.stem, *places]


def _uninterpolated(value: Any) -> Any:
    """Text that holds ``${`` as OmegaConf must be given it to mean itself."""
    if isinstance(value, dict):
        return {name: _uninterpolated(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_uninterpolated(inner) for inner in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value


def _with_places(config: dict[str, Any], places: Sequence[str]) -> RunConfig:
    values = copy.deepcopy(config)
    for key, value in override_values(places).items():
        set_value(values, key, value)
    return from_plain(values)


def _quoted(value: str) -> str:
    """A value as Hydra's override grammar reads it back unchanged."""
    if value and all(c.isalnum() or c in "/._-+@" for c in value):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def write_config_file(reproduction: Reproduction) -> None:
    """Write the config file that the command names, if it names one."""
    if reproduction.config_file is not None:
        path, text = reproduction.config_file
        write_atomically(path, text)


def environment() -> dict[str, str]:
    """For the process that runs again: this one's, without what would make it a rank of another run."""
    # The folder it runs in adds no configs, and of modules those alone that a person has allowed there.
    apart = {"PYTHONSAFEPATH": "1", AS_TYPED: "1"}
    return of_its_own(os.environ) | apart
