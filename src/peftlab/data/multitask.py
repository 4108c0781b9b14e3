"""Several data sets at once, each a task with classes, or a number, of its own.

Every task is loaded and split as it would be alone, so a task's validation and test rows are those of its own data
set. Classes are called ``task/label``; a task owns a block of them, so that a row's label says its task. How the model
keeps the tasks apart is told in :mod:`peftlab.objectives.parts.blocks`.

Tasks may have different objectives: an entry says its own (``objective: regression``; published data sets know it),
else it is ``data.objective``. Unless all are classifications each row is labelled by its task and what the task's
objective has made of its cell; losses and figures are then those of :mod:`peftlab.objectives.parts.mixture`.

``mixing`` says how many of an epoch's rows are a task's: with n_k training rows of task k, in proportion to

    proportional  n_k        square_root  √n_k        uniform  1

Rows are drawn as :class:`~peftlab.data.batching.MixtureBatchSampler` says: without repetition within a pass over the
task, small tasks again and again, large ones in turn. Validation and test are every row of every task, once.

``max_length``, batch sizes, ``truncation``, ``order_seed``, ``group_by_length``, ``pad_to_multiple_of`` and
``num_workers`` are the mixture's own. ``limit_train``, ``limit_val``, ``limit_test``, ``val_fraction`` and
``split_seed`` hold for each task separately (``data.limit_train=300`` is 300 rows of every task); an entry of
``tasks`` may say its own.

Imports no torch.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from peftlab.class_names import stable_name
from peftlab.data.base import DataSet, Splits, Texts
from peftlab.data.splits import largest_remainder
from peftlab.errors import ConfigError, DataError, listed, nearest
from peftlab.fields import PositiveInt, enters_identity
from peftlab.objectives.base import Learned, Objective, objective
from peftlab.objectives.parts.mixture import Mixture
from peftlab.objectives.parts.task import Task, TaskLabel
from peftlab.shipped import config_folder

OF_THE_MIXTURE = (
    "max_length", "truncation", "batch_size", "eval_batch_size", "order_seed", "group_by_length",
    "pad_to_multiple_of", "num_workers",
)  # fmt: skip
"""Fields that an entry cannot say, as batches hold rows of all tasks."""
OF_EACH_TASK = ("limit_train", "limit_val", "limit_test", "val_fraction", "split_seed", "objective")
"""Fields of the mixture that hold for each task that does not say its own."""
_TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_DATA_KEY = re.compile(r"\bdata\.(\w+)")


@dataclass(kw_only=True)
class Multitask(DataSet):
    """A mixture of data sets, each a task with labels, validation and test of its own."""

    tasks: list[str | dict[str, Any]] = field(default_factory=lambda: ["imdb_packaged", "bbc_news"])
    """The tasks in their order: each the name of a file of conf/data, or a mapping of ``name`` (such a file) or
    ``_target_``, that data set's fields, and ``task``, what the task is called (else as the file)."""
    mixing: Literal["proportional", "square_root", "uniform"] = "proportional"
    """A task's share of an epoch's rows: in proportion to its training rows, to their root, or the same for all."""
    epoch_rows: PositiveInt | None = None
    """Rows an epoch; null: as many as all tasks have training rows together."""

    def __post_init__(self) -> None:
        """Check every entry, and write down all that it says."""
        if not self.tasks:
            raise ValueError("data.tasks is empty: name at least one, for example [imdb_packaged, bbc_news].")
        parts = [self._part(_as_entry(entry), f"data.tasks[{index}]") for index, entry in enumerate(self.tasks)]
        # Written down in one way, whichever way it was said: the same mixture has one key.
        kinds = {part.objective for part in parts}
        self.objective = kinds.pop() if len(kinds) == 1 else "classification"
        self.tasks = [
            self._checked(_as_entry(entry), part, f"data.tasks[{index}]")
            for index, (entry, part) in enumerate(zip(self.tasks, parts, strict=True))
        ]
        names = self.task_names()
        for index, name in enumerate(names):
            if name in names[:index]:
                raise ValueError(
                    f"data.tasks[{index}] is called '{name}', and so is data.tasks[{names.index(name)}]. Give one of "
                    f"them another name: {{task: another_name, name: …}}."
                )
        for name in ("limit_train", "limit_val", "limit_test"):
            if getattr(self, name) is not None and all(name in entry for _, entry in self._entries()):
                raise ValueError(
                    f"data.{name}={getattr(self, name)} has no effect: every entry of data.tasks says its own "
                    f"{name}. Leave data.{name}=null."
                )

    def task_names(self) -> list[str]:
        """What the tasks are called."""
        return [entry["task"] for _, entry in self._entries()]

    def what_is_learned(self) -> Learned:
        """Classifications make one together; anything else is a mixture."""
        tasks = {entry["task"]: objective(entry.get("objective", self.objective)) for _, entry in self._entries()}
        kinds = {one.name for one in tasks.values()}
        return objective("classification") if kinds == {"classification"} else Mixture(tasks)

    def objective_of(self, task: str | None = None) -> Objective:
        """The objective of ``task``; without one, of the tasks that say no own."""
        own = next((entry.get("objective") for _, entry in self._entries() if entry["task"] == task), None)
        return objective(own or self.objective)

    def has_pairs(self, task: str | None = None) -> bool:
        """See :meth:`DataSet.has_pairs`."""
        parts = zip(self.task_names(), self.parts(), strict=True)
        return any(part.has_pairs() for name, (_, part) in parts if task in (None, name))

    def columns(self, task: str | None = None) -> tuple[str, str | None]:
        """See :meth:`DataSet.columns`."""
        return next((part.columns() for name, part in self.parts() if name == task), super().columns(task))

    def parts(self) -> list[tuple[str, DataSet]]:
        """Key and data set of each task."""
        return [(key, self._part(entry, key)) for key, entry in self._entries()]

    def files(self) -> dict[str, list[Path]]:
        """The local files of all tasks: ``task/split`` to files."""
        found: dict[str, list[Path]] = {}
        for name, (key, part) in zip(self.task_names(), self.parts(), strict=True):
            with _task_in_errors(self, part, key, name):
                found |= {f"{name}/{split}": files for split, files in part.files().items()}
        return found

    def identity_values(self) -> dict[str, Any]:
        """The tasks without their files' paths, which enter by content."""
        return {
            "tasks": [
                {"task": name, "class": stable_name(type(part))}
                | {
                    f.name: getattr(part, f.name)
                    for f in dataclasses.fields(part)
                    if enters_identity(f, getattr(part, f.name)) and f.name not in OF_THE_MIXTURE
                }
                for name, (_, part) in zip(self.task_names(), self.parts(), strict=True)
            ]
        }

    def rows_an_epoch(self, sizes: Sequence[int]) -> list[int]:
        """Training rows that an epoch takes of each task, of tasks with ``sizes`` of them; none is left without.

        Raises:
            DataError: if ``epoch_rows`` leaves a task without a row.
        """
        # Integers, so that nothing rounds astray: roots to 12 places.
        roots = [math.isqrt(size * 10**24) for size in sizes]
        chosen = {"proportional": sizes, "square_root": roots, "uniform": [1] * len(sizes)}[self.mixing]
        weights = dict(enumerate(chosen))
        total = sum(sizes) if self.epoch_rows is None else self.epoch_rows
        shares = largest_remainder(weights, total)
        left_out = [name for task, name in enumerate(self.task_names()) if shares[task] == 0]
        if left_out:
            raise DataError(
                f"{total} rows an epoch with data.mixing={self.mixing} leave none for {listed(left_out)}. Give more "
                "(data.epoch_rows), or another mixing (data.mixing=uniform)."
            )
        return [shares[task] for task in range(len(sizes))]

    def load(self) -> Splits:
        """Load every task, and put their rows behind each other, with the classes of all."""
        names, loaded = self.task_names(), []
        for name, (key, part) in zip(names, self.parts(), strict=True):
            with _task_in_errors(self, part, key, name):
                splits = part.load()
                if part.objective == "classification" and len(splits.label_names) < 2:
                    raise DataError(
                        f"only {len(splits.label_names)} class ({listed(splits.label_names)}): at least 2 are needed."
                    )
                loaded.append(splits)
        tasks: list[Task] = []
        for name, splits in zip(names, loaded, strict=True):
            first = tasks[-1].stop if tasks else 0
            tasks.append(Task(name, first, first + len(splits.label_names), self.objective_of(name).name))
        epoch = self.rows_an_epoch([len(splits.train) for splits in loaded])
        train, validation, test = (
            _joined([getattr(splits, split) for splits in loaded], tasks) for split in ("train", "validation", "test")
        )
        return Splits(
            train=train,
            validation=validation,
            test=test,
            label_names=tuple(
                f"{t.name}/{label}" for t, s in zip(tasks, loaded, strict=True) for label in s.label_names
            ),
            train_kind="; ".join(f"{t.name}: {s.train_kind}" for t, s in zip(tasks, loaded, strict=True)),
            test_kind="; ".join(f"{t.name}: {s.test_kind}" for t, s in zip(tasks, loaded, strict=True)),
            provenance={
                "source": "several data sets",
                "data_set": ", ".join(names),
                "rows": {"train": len(train), "validation": len(validation), "test": len(test)},
                "split_seed": self.split_seed,
                "mixing": self.mixing,
                "rows_an_epoch": dict(zip(names, epoch, strict=True)),
                "tasks": {
                    name: s.provenance
                    | {"train_kind": s.train_kind, "test_kind": s.test_kind, "label_names": list(s.label_names)}
                    | ({"objective": self.objective_of(name).name} if self.what_is_learned().tasks() else {})
                    for name, s in zip(names, loaded, strict=True)
                },
            },
            tasks=tuple(tasks),
        )

    def load_here(self) -> Splits | None:
        """See :meth:`DataSet.load_here`; tasks whose texts are here are read also where another's are not."""
        parts = [(name, key, part) for name, (key, part) in zip(self.task_names(), self.parts(), strict=True)]
        if all(part.is_here() for _, _, part in parts):
            return self.load()
        for name, key, part in parts:
            with _task_in_errors(self, part, key, name):
                part.load_here()
        return None

    def _entries(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for index, entry in enumerate(self.tasks):
            assert isinstance(entry, dict), "__post_init__ made mappings of them"
            yield f"data.tasks[{index}]", entry

    def _part(self, entry: dict[str, Any], key: str) -> DataSet:
        """The data set of an entry, with what the mixture says for it."""
        from peftlab.schema import check_keys, import_class, validate

        target, preset = _meant(entry, key)
        cls = import_class(target, f"{key}._target_")
        if not issubclass(cls, DataSet):
            raise ConfigError(f"{key}._target_={target}: it must be a peftlab.data.base.DataSet, which this is not.")
        if issubclass(cls, Multitask):
            raise ConfigError(f"{key}: a mixture cannot hold another one. List all tasks in data.tasks.")
        given = {name: value for name, value in entry.items() if name not in ("name", "_target_", "task")}
        if shared := sorted(set(given) & set(OF_THE_MIXTURE)):
            raise ConfigError(
                f"{key}.{shared[0]}: batches hold rows of all tasks, so this is said once for all of them. Set "
                f"data.{shared[0]}."
            )
        check_keys(given, cls, key)
        ours = {name: getattr(self, name) for name in (*OF_THE_MIXTURE, *OF_EACH_TASK)}
        return validate(preset | ours | given, cls, key)

    def _checked(self, given: dict[str, Any], part: DataSet, key: str) -> dict[str, Any]:
        """The entry ``given`` with all fields of its data set, but for those that it has from the mixture."""
        if (learned := part.objective_of()).head != "new":
            raise ConfigError(
                f"{key} is {learned.about}: tasks share one model as blocks of a new head, and this has none. Leave it "
                "out, and train it alone."
            )
        name = given.get("task", given.get("name"))
        if not isinstance(name, str) or not _TASK_NAME.fullmatch(name):
            raise ConfigError(
                f"{key}.task={name}: say what the task is called, in letters, digits, '_' and '-', for example "
                "{task: reviews, …}: its classes and figures are called by it."
            )
        chosen: dict[str, Any] = {name: given[name] for name in ("name", "_target_") if name in given}
        if "_target_" in chosen:
            chosen["_target_"] = stable_name(chosen["_target_"])
        fields = {
            name: value
            for name, value in dataclasses.asdict(part).items()
            if name not in (*OF_THE_MIXTURE, *OF_EACH_TASK) or (name in OF_EACH_TASK and value != getattr(self, name))
        }
        return {"task": name, **chosen, **fields}


def _as_entry(entry: str | dict[str, Any]) -> dict[str, Any]:
    return {"name": entry} if isinstance(entry, str) else dict(entry)


def _meant(entry: dict[str, Any], key: str) -> tuple[str, dict[str, Any]]:
    """The class that an entry means, and what the file of its name sets.

    Raises:
        ConfigError: naming ``key``, if it does not say one data set.
    """
    import yaml

    name, target = entry.get("name"), entry.get("_target_")
    if (name is None) == (target is None):
        raise ConfigError(
            f"{key}: {'neither name nor _target_ is' if name is None else 'both name and _target_ are'} given. Name a "
            "file of conf/data or a class, for example {name: imdb_packaged, limit_train: 1000}."
        )
    if target is not None:
        return str(target), {}
    files = {file.stem: file for file in (config_folder() / "data").glob("*.yaml") if file.stem != "multitask"}
    if name not in files:
        raise ConfigError(
            f"{key}.name={name}: there is no such data set.{nearest(str(name), files)} There are: {listed(files)}; "
            "your own class goes by its _target_."
        )
    preset: dict[str, Any] = yaml.safe_load(files[str(name)].read_text(encoding="utf-8"))
    return preset.pop("_target_"), preset


def _joined(parts: list[Texts], tasks: list[Task]) -> Texts:
    """The rows of all tasks; classes are counted through all of them, other labels say their task beside them."""
    classes = all(task.objective == "classification" for task in tasks)
    return Texts.joined(
        [
            Texts(part.texts, [task.first + label if classes else TaskLabel(number, label) for label in part.labels])
            for number, (task, part) in enumerate(zip(tasks, parts, strict=True))
        ]
    )


@contextmanager
def _task_in_errors(mixture: Multitask, part: DataSet, key: str, name: str) -> Iterator[None]:
    """Inside, a DataError says which entry it is about, and names that entry's keys."""

    def key_of(found: re.Match[str]) -> str:
        field_name = found[1]
        of_mixture = field_name in (*OF_THE_MIXTURE, *OF_EACH_TASK)
        same = of_mixture and getattr(part, field_name) == getattr(mixture, field_name)
        return found[0] if same else f"{key}.{field_name}"

    try:
        yield
    except DataError as error:
        raise DataError(f"{key} ({name}): {_DATA_KEY.sub(key_of, str(error))}") from error
