"""``fit``: what ``peftlab train`` does, called from Python."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from peftlab.allowed import here
from peftlab.composition import composed, override_values
from peftlab.config import GROUPS, RunConfig, check, from_plain, plain, resolved
from peftlab.data.given import GivenRows, GivenTexts, given_rows
from peftlab.errors import ConfigError, Diverged, listed, nearest
from peftlab.library.run import Run
from peftlab.peft.base import PEFTStrategy
from peftlab.records.divergence import STATUS, in_words
from peftlab.records.find import known_folder
from peftlab.records.folder import RunFolder

_COMPOSING = threading.Lock()
"""Hydra keeps what it composes in the process."""


def fit(
    *overrides: str,
    data: Any = None,
    peft: Any = None,
    config_dir: str | PathLike[str] | None = None,
    **keys: Any,
) -> Run:
    """Train what ``peftlab train`` trains with the same words, or find that it is finished.

    The run has the key, the folder and the record that it has from the command line. Started again, as a notebook's
    cell is, it is found; interrupted, it resumes.

    Args:
        overrides: as on the command line: ``"peft=dora"``, ``"peft.rank=4"``, ``"experiment=first_run"``.
        data: rows in memory instead of a data set by name: a pandas DataFrame, a ``datasets.Dataset``, lists
            ``(texts, labels)``, or a ``DatasetDict`` or dict of these by split. A split that is not given is held out
            of train. The run is known by their content. ``"data.text_column=…"`` and the like name the columns.
        peft: a method with its fields, ``LoRA(rank=4)``, one's own too, or its class; or its name. The run is the one
            that the method's words or file give.
        config_dir: a further folder of configs, as ``--config-dir``; None: the one that ``peftlab allow`` has noted for
            the current folder, if any.
        keys: top-level keys: ``seed=1``, ``name="first"``, ``output_dir="outputs"``, ``force=True``.

    Returns:
        the finished run.

    Raises:
        ConfigError: for a word that does not fit, as on the command line; or several devices.
        DataError: naming the row that cannot be used.
        Diverged: if the loss or the gradient of a step is no finite number.
    """
    began = time.time()
    if isinstance(peft, str):
        keys, peft = {"peft": peft, **keys}, None
    words, method = [*_strings(overrides), *_from_keys(keys)], _method(peft)
    folder_of_configs = here().config_dir if config_dir is None else str(config_dir)
    config, rows = _config(words, data, method, folder_of_configs)
    _require_one_device(config)
    from peftlab.runs.finished import finished_record
    from peftlab.runs.train import train

    with _signals_as_they_were():
        if (record := finished_record(config, folder := known_folder(config))) is None:
            folder = RunFolder.of(config)
            record = train(config, argv=_argv(words, rows, method, folder_of_configs), began=began)
    if record["status"] == STATUS:
        raise Diverged(record[STATUS], f"{folder.path}: {in_words(record)}.")
    run = Run(folder, config, record)
    run._holds = rows
    return run


def _strings(overrides: tuple[Any, ...]) -> list[str]:
    for override in overrides:
        if not isinstance(override, str):
            raise ConfigError(
                f"fit takes overrides as texts, fit('peft=lora', 'peft.rank=4'), not {override!r}; rows are "
                "given as data=."
            )
    return list(overrides)


def _method(given: Any) -> PEFTStrategy | None:
    """The method that is meant by an instance, or by a class whose fields all have defaults.

    Raises:
        ConfigError: if it is none, or stands where no other process finds it.
    """
    if given is None:
        return None
    method = given
    if isinstance(given, type) and issubclass(given, PEFTStrategy):
        try:
            method = given()
        except TypeError as error:
            raise ConfigError(
                f"peft={given.__name__}: {error}. Give it with its fields, peft={given.__name__}(…)."
            ) from None
    if not isinstance(method, PEFTStrategy):
        raise ConfigError(f"peft={given!r} is no method: give one as LoRA(rank=4), its class, or its name, 'lora'.")
    cls = type(method)
    if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
        raise ConfigError(
            f"peft={cls.__name__}: a record names the class, and no other process would find it in "
            f"{cls.__module__}.{cls.__qualname__}. Put it at the top of a module of its own that can be imported."
        )
    return method


def _from_keys(keys: dict[str, Any]) -> list[str]:
    """Keywords as overrides; values are quoted as Hydra wants them."""
    allowed = [name for name in RunConfig.__dataclass_fields__ if name not in GROUPS and name != "trainer"]
    allowed += [group for group in GROUPS if group != "data"] + ["trainer", "experiment", "debug"]
    found = []
    for name, value in keys.items():
        if name not in allowed:
            raise ConfigError(
                f"fit has no keyword '{name}'.{nearest(name, allowed)} It has: {listed(allowed)}; other keys are "
                "given as texts, 'a.b=value'."
            )
        if not isinstance(value, str | int | float | bool | None):
            raise ConfigError(
                f"fit(…, {name}={value!r}): a number, a text, or the name of a group's file is wanted here; fields of "
                f"a group are given as '{name}.field=value'."
            )
        found.append(f"{name}={json.dumps(value, ensure_ascii=False) if name not in (*GROUPS, 'trainer') else value}")
    return found


def _config(
    words: list[str], data: Any, method: PEFTStrategy | None = None, config_dir: str | None = None
) -> tuple[RunConfig, GivenRows | None]:
    if method is not None and (twice := [word for word in words if re.match(r"[+~]*peft[.=]", word)]):
        raise ConfigError(
            f"peft= is given twice: as {type(method).__name__}(…), and by {twice[0]}. Leave one of them out."
        )
    with _COMPOSING, _hydra_as_it_was():
        if data is None and method is None:
            return check(composed(words, config_dir=config_dir)), None
        if data is None:
            return from_plain(_with(method, resolved(composed(words, config_dir=config_dir)))), None
        if isinstance(data, str):
            raise ConfigError(f"data={data!r} is rows in memory; a data set by name is a word: fit('data={data}').")
        if any(word.lstrip("+~").startswith("data=") for word in words):
            raise ConfigError("data= is given twice: as rows, and by name. Leave one of them out.")
        told = override_values(words)
        columns = {
            name: told[key]
            for name in ("text_column", "label_column", "second_column")
            if (key := f"data.{name}") in told
        }
        rows = given_rows(data, **columns)
        values = resolved(composed(["data=text_files", *words], config_dir=config_dir))
    values["data"] |= {
        "_target_": f"{GivenTexts.__module__}.{GivenTexts.__qualname__}",
        "content": rows.content,
        "kind": rows.kind,
    }
    if values["data"]["labels"] is None:
        values["data"]["labels"] = rows.labels
    return from_plain(_with(method, values)), rows


def _with(method: PEFTStrategy | None, values: dict[str, Any]) -> dict[str, Any]:
    """The ``values`` of a run, with ``method`` in place of the one that was composed."""
    return values if method is None else values | {"peft": plain("peft", method)}


@contextmanager
def _hydra_as_it_was() -> Iterator[None]:
    """A program that is a Hydra application itself keeps its own."""
    hydra, config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    try:
        yield
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = hydra, config


def _require_one_device(config: RunConfig) -> None:
    trainer = config.trainer
    if trainer.devices not in (1, "auto") or trainer.num_nodes > 1 or trainer.strategy != "auto":
        raise ConfigError(
            f"fit trains on one device: trainer.devices={trainer.devices}, trainer.num_nodes={trainer.num_nodes}, "
            f"trainer.strategy={trainer.strategy} starts further processes, each by running this program again from "
            "its command line, which a notebook has not. Use `peftlab train` with the same words."
        )
    if trainer.devices == "auto" and _several_gpus():
        raise ConfigError(
            "fit trains on one device, and trainer.devices=auto is all of this machine's GPUs. Set trainer.devices=1, "
            "or use `peftlab train` with the same words."
        )


def _several_gpus() -> bool:
    import torch

    return torch.cuda.device_count() > 1


@contextmanager
def _signals_as_they_were() -> Iterator[None]:
    """Interrupted, Lightning lets the process ignore Ctrl-C from then on: a notebook goes on to live."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    finally:
        if main and before is not None:
            signal.signal(signal.SIGINT, before)


def _argv(words: list[str], rows: GivenRows | None, method: PEFTStrategy | None, config_dir: str | None) -> list[str]:
    """What the record says was typed; rows in memory, or a method, cannot be typed."""
    words = words if config_dir is None else ["--config-dir", config_dir, *words]
    given = [] if method is None else [f"peft={method!r}"]
    given += [] if rows is None else [f"data=<{rows.kind}>"]
    return ["fit", *words, *given] if given else ["peftlab", "train", *words]
