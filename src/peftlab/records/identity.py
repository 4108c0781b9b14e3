"""A run's identity: the hash of what decides its numbers.

Fields marked as bookkeeping (names, folders, loggers, progress bars) are left out; local files enter by their
content, not by their path; classes by their stable names, and those that are not peftlab's by their code too
(:mod:`peftlab.records.own_code`). How the numbers are computed enters where that was changed on purpose
(:mod:`peftlab.records.identity_tags`).

The key is computed from the *plain* config and from what :func:`recorded` says about it. A record holds both, so that
whoever reads records needs none of the classes (:mod:`peftlab.records.identity_recorded`). Imports no torch itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from peftlab.backbones.config import BackboneConfig
from peftlab.class_names import stable_name
from peftlab.config import GROUPS, RunConfig
from peftlab.data.base import DataSet
from peftlab.data.probe_texts import ProbeTexts
from peftlab.errors import RunError
from peftlab.fields import enters_identity
from peftlab.files import cache_folder, open_regular
from peftlab.reading import read_json
from peftlab.records import identity_tags
from peftlab.records.identity_rules import FIELD as FIELD
from peftlab.records.identity_rules import Rules
from peftlab.records.own_code import FIELD as CODE
from peftlab.records.own_code import code_content
from peftlab.remembered import recall, remember, settled, version_of
from peftlab.training.config import TrainerConfig

KEY_LENGTH = 12

CONTINUES = "continue_from"
"""Of the content of files: the run that is gone on with."""


def run_key(config: RunConfig, tags: Sequence[str] | None = None) -> str:
    """The run's key: 12 hex digits. Same key, same run.

    Args:
        config: the run's.
        tags: the identity tags that a record names, for the key that it must have; None: those that hold today.
    """
    return key_of(semantic(config, tags))


def run_tags(config: RunConfig) -> tuple[str, ...]:
    """The identity tags that hold for a run of ``config`` today."""
    return identity_tags.tags_of(config.plain()) if identity_tags.TAGS else ()


def semantic(config: RunConfig, tags: Sequence[str] | None = None) -> dict[str, Any]:
    """What the key is the hash of, as plain containers; see :func:`run_key`."""
    return semantic_of(config.plain(), recorded(config), run_tags(config) if tags is None else tags)


def recorded(config: RunConfig) -> dict[str, Any]:
    """What a record says beside its config, so that its key can be computed again: plain containers.

    ``bookkeeping``, ``added`` and ``run_folders`` are the :class:`Rules`; ``values`` are fields that enter in another
    form than the config has them; ``content`` are the hashes of the files that the run reads, as they enter the key;
    ``peft_files`` are those of the method. Of classes that are not peftlab's their code is among the content.
    """
    bookkeeping, added, run_folders = list[str](), dict[str, Any](), list[str]()
    values: dict[str, dict[str, Any]] = {}
    for key, node, field in _walked(config):
        if field.metadata.get("bookkeeping"):
            bookkeeping.append(key)
        if field.metadata.get("run_folder"):
            run_folders.append(key)
        if field.metadata.get("added"):
            added[key] = field.default
        group, dot, name = key.partition(".")
        if dot and is_dataclass(value := getattr(node, field.name)):
            values.setdefault(group, {})[name] = _with_classes(value)
    if own := config.data.identity_values():
        values["data"] = values.get("data", {}) | own
    if own := config.peft.identity_values():
        values["peft"] = values.get("peft", {}) | own
    peft_files = config.peft.files()
    found = content(config.data, config.backbone, peft_files, config.continue_from, config.probe)
    if code := code_content(config, [group for group in GROUPS if group not in bookkeeping]):
        found[CODE] = code
    return {
        "bookkeeping": bookkeeping,
        "added": added,
        "run_folders": run_folders,
        "values": values,
        "content": found,
        "peft_files": [str(file) for file in peft_files],
    }


def rules(said: Mapping[str, Any]) -> Rules:
    """The rules in what :func:`recorded` said."""
    return Rules(frozenset(said["bookkeeping"]), said["added"], tuple(said["run_folders"]))


def content(
    data: DataSet,
    backbone: BackboneConfig,
    peft_files: Sequence[Path],
    continues: str | None = None,
    probe: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What files enter a key with: hashes of their content, and of an earlier run its key and backbone.

    Args:
        data: the run's.
        backbone: the run's.
        peft_files: of its method.
        continues: the folder of the run that it goes on with.
        probe: the general texts that it foretells.

    Raises:
        PeftlabError: if one of them is not here.
    """
    found: dict[str, Any] = {
        "data_content": {split: content_sha256(files) for split, files in data.files().items()},
        "backbone_content": content_sha256(backbone.weight_files()),
    }
    if type(data).row_encoder is not DataSet.row_encoder and (templates := backbone.template_files()):
        found["template_content"] = content_sha256(templates)
    if peft_files:
        found["peft_content"] = content_sha256(peft_files)
    if backbone.from_run is not None:
        found["from_run"] = _earlier_run(Path(backbone.from_run).expanduser(), "backbone.from_run")
    if continues is not None:
        found[CONTINUES] = _continued_run(continues)
    if probe is not None:
        texts = ProbeTexts.of(probe)
        found["probe"] = texts.identity(content_sha256([texts.path()]))
    return found


def semantic_of(config: Mapping[str, Any], said: Mapping[str, Any], tags: Sequence[str]) -> dict[str, Any]:
    """What a key is the hash of, from a plain config (``RunConfig.plain()``) and what :func:`recorded` said of it."""
    known = rules(said)
    values: dict[str, Any] = {"class": stable_name(RunConfig)}
    for name, value in config.items():
        if not known.enters(name, value):
            continue
        if name not in GROUPS and name != "trainer":
            values[name] = value
            continue
        values[name] = {"class": stable_name(value["_target_"] if name in GROUPS else TrainerConfig)}
        values[name] |= {
            key: inner for key, inner in value.items() if key != "_target_" and known.enters(f"{name}.{key}", inner)
        }
        values[name] |= said["values"].get(name, {})
    values |= said["content"]
    if tags:  # with none, keys are what they were before there were any
        values["tags"] = sorted(tags)
    return values


def key_of(values: Mapping[str, Any]) -> str:
    """The key of what :func:`semantic_of` returns."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def _walked(config: RunConfig) -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, holder and description of each field of ``config`` and of its groups, but for groups left out."""
    for field in fields(config):
        yield field.name, config, field
        part = getattr(config, field.name)
        if is_dataclass(part) and not field.metadata.get("bookkeeping"):
            yield from ((f"{field.name}.{inner.name}", part, inner) for inner in fields(part))


def _with_classes(node: Any) -> dict[str, Any]:
    """A dataclass inside a group: its fields that enter, and its class."""
    values: dict[str, Any] = {"class": stable_name(type(node))}
    for field in fields(node):
        value = getattr(node, field.name)
        if enters_identity(field, value):
            values[field.name] = _with_classes(value) if is_dataclass(value) else value
    return values


def _continued_run(given: str) -> dict[str, Any]:
    """The run that is gone on with: its key, and what it had learned; the state it ended in follows from both."""
    folder = Path(given).expanduser()
    adapter = folder / "adapter.safetensors"
    if not adapter.is_file():
        raise RunError(
            f"continue_from={given}: this is not the folder of a finished run. Give one that a run has printed, "
            "outputs/<name>/<key>."
        )
    return {"run": _earlier_run(folder, CONTINUES)["run"], "adapter": content_sha256([adapter])}


def _earlier_run(folder: Path, key: str) -> dict[str, Any]:
    """What an earlier run is, beside the content of its adapter: its own key, and the backbone under it."""
    try:
        facts = read_json(folder / "adapter.json")
        return {name: facts[name] for name in ("run", "backbone_fingerprint")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{key}: {folder / 'adapter.json'} is damaged ({error}).") from error


def content_sha256(files: Sequence[Path]) -> str:
    """sha256 of the content of ``files`` in their order; of large ones remembered (:mod:`peftlab.remembered`)."""
    if not files:
        return ""
    if sum(path.stat().st_size for path in files) < SMALL_FILES:
        return _read_sha256(files)
    facts = "".join(f"{version_of(path)}\n" for path in files)
    cached = cache_folder() / "digests" / hashlib.sha256(facts.encode()).hexdigest()
    if (remembered := recall(cached)) is not None:
        return remembered.decode()
    found = _read_sha256(files)
    if all(map(settled, files)) and facts == "".join(f"{version_of(path)}\n" for path in files):
        remember(cached, found.encode())
    return found


SMALL_FILES = 1 << 20
"""Bytes; of less, hashing costs no more than remembering."""


def _read_sha256(files: Sequence[Path]) -> str:
    whole = hashlib.sha256()
    for path in files:
        with os.fdopen(open_regular(path), "rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()
