"""``peftlab check``: compose and check one config, every job of ``-m``, or a declared sweep; read data, run nothing."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from peftlab.commands.check_screen import alike_lines, facts, tag_lines
from peftlab.composition import composed, jobs_of, parse
from peftlab.config import RunConfig, check
from peftlab.data.base import Splits
from peftlab.data.in_words import found_in_words
from peftlab.errors import ConfigError, counted, listed
from peftlab.records.continuing import parent_of
from peftlab.records.find import known_folder
from peftlab.records.folder import RunFolder
from peftlab.sweeps.faults import Faults, titles
from peftlab.sweeps.readable import read_here, require_readable
from peftlab.sweeps.soundness import Soundness
from peftlab.terminal import say
from peftlab.training.ranks import Ranks


def main(arguments: Sequence[str]) -> int:
    """Print what was chosen and set, with key and folder; with ``-m`` a line a job; of a sweep's file a line a cell."""
    parser = argparse.ArgumentParser(
        "peftlab check",
        description="Compose and check a config (key=value …), the jobs of -m, or a declared sweep (FILE.yaml and what "
        "follows it in peftlab sweep). Data that is in files here is read; nothing runs.",
    )
    parser.add_argument("overrides", nargs="*", help="as for peftlab train, or FILE.yaml … as for peftlab sweep")
    parser.add_argument("-m", "--multirun", action="store_true", help="values separated by commas make jobs")
    parser.add_argument("-cd", "--config-dir", help="a further folder of configs")
    parser.add_argument("-cn", "--config-name", default="train", help="the primary config")
    parser.add_argument("--config", action="store_true", help="of one config: print the whole of it, as YAML")
    parser.add_argument(
        "--no-counts",
        action="store_true",
        help="build no models on shapes, to count parameters or to try them, which takes some seconds",
    )
    for flag in ("--on", "--cluster", "--set"):
        parser.add_argument(flag, action="append", help=argparse.SUPPRESS)
    given = parser.parse_intermixed_args(list(arguments))
    file = next((Path(word) for word in given.overrides if re.fullmatch(r"[^=]+\.ya?ml", word)), None)
    if given.on or given.cluster or given.set:
        what = "submit --dry-run train …" if file is None else f"sweep {file} --on slurm --dry-run"
        raise ConfigError(f"check asks for no cluster. What would be submitted, and its checks: peftlab {what}")
    if file is not None:
        return _check_file(file, [word for word in given.overrides if word != str(file)], given)
    if folders := [word for word in given.overrides if "=" not in word and Path(word).is_dir()]:
        files = listed(str(path) for path in Path(folders[0]).glob("*.yaml"))
        raise ConfigError(f"{folders[0]} is a folder. Give one sweep's file; there are: {files}.")
    parse(given.overrides)
    if given.config and given.multirun:
        raise ConfigError("--config prints one config: leave -m out, and give one value for each key.")
    if given.multirun:
        return _check_sweep(given)
    return _check_one(given)


def _check_one(given: argparse.Namespace) -> int:
    written = composed(given.overrides, config_dir=given.config_dir, config_name=given.config_name)
    config = check(written)
    config.trainer = Ranks.here().settle(config.trainer)
    folder = known_folder(config)
    if (state := _state(folder)) == "new" and getattr(config.backbone, "cache_frozen", False):
        _require_sound(config)
    splits = read_here(config)
    data = found_in_words(config.data, splits)  # as training: what cannot be used is said in its words
    parent = None if state == "finished" else parent_of(config, folder)
    goes_on = None if parent is None else f"{parent.given} after its {counted(parent.epochs, 'epoch')}"
    if given.config:
        print(yaml.safe_dump(config.plain(), sort_keys=False, allow_unicode=True), end="")
        for number, line in enumerate(data):
            print(f"# {'      ' if number else 'data: '}{line}")
        print(f"# key {folder.key}, folder {folder.path}: {state}")
        if goes_on is not None:
            print(f"# goes on with {goes_on}")
        print("".join(f"# {line}\n" for line in tag_lines(config)), end="")
        return 0
    said = [*facts(written, config_dir=given.config_dir, config_name=given.config_name)]
    said += [("", "every other key is as these options have it; --config prints all")]
    said += [("" if number else "data", line.strip()) for number, line in enumerate(data)]
    said += [("goes on with", goes_on)] if goes_on is not None else []
    said += [] if given.no_counts else [("trainable", _trainable(config, splits, folder))]
    from peftlab.report.render.terminal import console, print_facts

    said += [("key", folder.key), ("state", state)]
    print_facts(console(), said)
    beside = max(len(name) for name, _ in said)
    print(f"{'folder':{beside}}  {folder.path}")  # whole, to be copied
    return 0


def _trainable(config: RunConfig, splits: Splits | None, folder: RunFolder) -> str:
    """As training says it; of a model that is not here, that this is not known."""
    from peftlab.runs.summary import trainable_in_words
    from peftlab.sweeps.counting import Unknown, parameters_of

    record = folder.read_record()
    if record is not None and (known := record.get("parameters")):
        return trainable_in_words(known)
    try:
        found = parameters_of(config, splits)
    except Unknown as error:
        return f"not known before the model is here ({error})"
    if splits is None and config.data.what_is_learned().head == "new":
        return f"{found['trainable_without_head']:,} without the head, whose size the data decides"
    return trainable_in_words(found)


def _require_sound(config: RunConfig) -> None:
    """Whether something is frozen below what trains is seen on the shapes of the model, which imports torch."""
    from peftlab.sweeps.soundness import fault_of

    if (fault := fault_of(config.plain())) is not None:
        said, kind = fault
        raise kind(said)


def _check_file(file: Path, overrides: Sequence[str], given: argparse.Namespace) -> int:
    if given.multirun or given.config_name != "train" or given.config:
        raise ConfigError(f"{file} declares its jobs itself: -m, --config and --config-name do not go with it.")
    from peftlab.report.render.terminal import console, print_table
    from peftlab.sweeps.call import Call
    from peftlab.sweeps.overview import overview

    found = overview(Call(file, overrides, given.config_dir), counts=not given.no_counts)
    say(found.title)
    print_table(console(), found.table)
    for note in found.notes:
        say(note)
    if found.mistakes:
        raise ConfigError(f"{counted(len(found.mistakes), 'cell')} cannot be built: {' '.join(found.mistakes)}")
    return 0


def _check_sweep(given: argparse.Namespace) -> int:
    jobs = jobs_of(given.overrides, config_dir=given.config_dir, config_name=given.config_name)
    named: list[tuple[str, RunConfig]] = []
    listed_jobs: list[tuple[list[str], RunConfig, RunFolder]] = []
    faults = Faults("job", len(jobs))
    for number, (overrides, title) in enumerate(zip(jobs, titles(jobs), strict=True)):
        name = f"{number} ({title})"
        with faults.noting(name):
            config = check(composed(overrides, config_dir=given.config_dir, config_name=given.config_name))
            folder = known_folder(config)
            named.append((name, config))
            listed_jobs.append((overrides, config, folder))
            print(f"{number:4d}  {folder.key}  {_state(folder):12s}  {title}")
    faults.require_none()
    data = require_readable(named, "job") if given.no_counts else Soundness().require(named, "job")
    different = len({folder.path for _, _, folder in listed_jobs})
    for line in [*data, *alike_lines(listed_jobs)]:
        say(line)
    print(f"{counted(len(jobs), 'job')}, {counted(different, 'different run')}")
    return 0


def _state(folder: RunFolder) -> str:
    record = folder.read_record()
    if record is not None:
        return str(record["status"])
    return "unfinished" if folder.checkpoints.exists() else "new"
