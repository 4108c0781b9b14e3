"""What a record says of its identity, and what is known of records that do not say it. Imports no torch.

Records say which fields of their config are bookkeeping, and with which hashes files entered the key
(:func:`peftlab.records.identity.recorded`). Those of earlier versions do not; of these, the tables here know it. They
are of the past: a field that comes today is marked in its class alone, and the records that have it say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from peftlab.class_names import stable_name
from peftlab.errors import RunError
from peftlab.records.identity_rules import FIELD, Rules
from peftlab.records.own_code import FIELD as CODE

if TYPE_CHECKING:
    from peftlab.backbones.config import BackboneConfig
    from peftlab.data.base import DataSet

_BOOKKEEPING = (
    "name", "output_dir", "force", "logger", "data.num_workers", "backbone.from_run", "trainer.log_every_n_steps",
    "trainer.progress_bar",
)  # fmt: skip
_OF_CLASSES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "peftlab.data.text_files.TextFiles": ("path", "train", "validation", "test"),
        "peftlab.data.imdb.IMDb": ("path",),
        "peftlab.data.ag_news.AGNews": ("path",),
        "peftlab.data.glue.GLUE": ("path",),
        "peftlab.peft.imported.ImportedAdapter": ("path",),
        "peftlab.peft.multitask_prompt.MultitaskPrompt": ("source",),
    }
)
_ADDED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"peftlab.data.text_files.TextFiles": {"second_column": None}}
)
_RUN_FOLDERS = ("backbone.from_run", "peft.source")


def recorded_rules(record: Mapping[str, Any]) -> Rules:
    """Which fields of a record's config enter its key.

    Raises:
        TypeError: if the record does not say it as peftlab writes it.
        KeyError: likewise.
    """
    if FIELD not in record:
        return earlier_rules(record["config"])
    return _kept(
        tuple(record[FIELD]["bookkeeping"]),
        tuple(record[FIELD]["added"].items()),
        tuple(record[FIELD]["run_folders"]),
    )


def earlier_rules(config: Mapping[str, Any]) -> Rules:
    """Those that held when records did not say them; of a class from elsewhere, those of every class of its group."""
    parts = ((name, part.get("_target_")) for name, part in config.items() if isinstance(part, Mapping))
    return _earlier(tuple((name, str(target)) for name, target in parts if target is not None))


@cache
def _kept(bookkeeping: tuple[str, ...], added: tuple[tuple[str, Any], ...], run_folders: tuple[str, ...]) -> Rules:
    """One object for all records that say the same."""
    return Rules(frozenset(bookkeeping), dict(added), run_folders)


@cache
def _earlier(classes: tuple[tuple[str, str], ...]) -> Rules:
    bookkeeping, added = set(_BOOKKEEPING), dict[str, Any]()
    for group, target in classes:
        name = stable_name(target)
        for known, own in _OF_CLASSES.items():
            if stable_name(known) == name:
                bookkeeping |= {f"{group}.{field}" for field in own}
        for known, defaults in _ADDED.items():
            if stable_name(known) == name:
                added |= {f"{group}.{field}": default for field, default in defaults.items()}
    return Rules(frozenset(bookkeeping), added, _RUN_FOLDERS)


def recorded_identity(record: Mapping[str, Any], data: DataSet) -> dict[str, Any]:
    """What a record says of its identity; of an earlier one all but the ``content`` of its files, which it lacks.

    Args:
        record: a run's.
        data: the data set of its config.
    """
    if FIELD in record:
        return dict(record[FIELD])
    known = earlier_rules(record["config"])
    own = data.identity_values()
    return {
        "bookkeeping": sorted(known.bookkeeping),
        "added": known.added,
        "run_folders": list(known.run_folders),
        "values": {"data": own} if own else {},
    }


def content_now(
    config: Mapping[str, Any],
    said: Mapping[str, Any],
    data: DataSet,
    backbone: BackboneConfig,
    moved: Mapping[str, str],
) -> dict[str, Any]:
    """What the files of a recorded run would enter its key with, as they are now; code of one's own as it was.

    Args:
        config: of the record, plain, earlier runs where they are now.
        said: of :func:`recorded_identity`.
        data: the data set of ``config``.
        backbone: the backbone of ``config``.
        moved: folders of earlier runs that were found elsewhere, by where they were.

    Raises:
        PeftlabError: if files are not here.
        OSError: likewise.
    """
    from peftlab.records.identity import content

    if "peft_files" in said:
        files = [_beside(Path(file), moved) for file in said["peft_files"]]
    else:
        files = list(_earlier_peft_files(config["peft"]))
    found = content(data, backbone, files, config.get("continue_from"), config.get("probe"))
    if CODE in (then := said.get("content", {})):
        found[CODE] = then[CODE]  # what is imported is code that runs: whoever verifies imports none
    return found


def _beside(file: Path, moved: Mapping[str, str]) -> Path:
    new = next((new for old, new in moved.items() if Path(old).expanduser() == file.parent), None)
    found = file if new is None else Path(new) / file.name
    if not found.is_file():
        raise RunError(f"{found}, which the method starts from, is not there.")
    return found


def _earlier_peft_files(peft: Mapping[str, Any]) -> Iterator[Path]:
    """What the method started from: the folder of an adapter, or an earlier run."""
    from peftlab.peft.hf.files import adapter_files

    for entry in (peft, *(one for one in peft.get("methods") or () if isinstance(one, dict))):
        name = stable_name(str(entry.get("_target_", "")))
        if entry.get("name") == "import" or name == stable_name("peftlab.peft.imported.ImportedAdapter"):
            yield from adapter_files(entry.get("path"))
        elif entry.get("source") and (
            entry.get("name") == "multitask_prompt"
            or name == stable_name("peftlab.peft.multitask_prompt.MultitaskPrompt")
        ):
            yield _beside(Path(entry["source"]).expanduser() / "adapter.safetensors", {})
