"""Where per-step values go: CSV, TensorBoard, Weights & Biases, several of them or nowhere.

The run's own record is the truth; these are mirrors of it. Each library is imported only when chosen.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from peftlab.class_names import stable_name
from peftlab.errors import ConfigError, first_line, listed, nearest
from peftlab.schema import import_class, validate
from peftlab.terminal import say
from peftlab.training.config import LoggerConfig
from peftlab.training.wandb_runs import chosen_mode, names

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


@dataclass(kw_only=True)
class NoLogger(LoggerConfig):
    """No per-step values."""

    def build(self, *, name: str, key: str, folder: Path, config: dict[str, Any]) -> Logger | None:
        """None."""
        return None


@dataclass(kw_only=True)
class CSV(LoggerConfig):
    """One CSV file of per-step values an attempt, under ``logs/csv``."""

    def build(self, *, name: str, key: str, folder: Path, config: dict[str, Any]) -> Logger:
        """Lightning's CSV logger; a resumed run writes ``version_1`` beside ``version_0``."""
        from lightning.pytorch.loggers import CSVLogger

        logger = CSVLogger(save_dir=folder, name="csv")
        logger.log_hyperparams(config)
        return logger


@dataclass(kw_only=True)
class TensorBoard(LoggerConfig):
    """Event files under ``logs/tensorboard``."""

    def build(self, *, name: str, key: str, folder: Path, config: dict[str, Any]) -> Logger:
        """Lightning's TensorBoard logger, with the config as what the HPARAMS tab shows of the run.

        Raises:
            ConfigError: if TensorBoard is not installed.
        """
        try:
            import tensorboard  # noqa: F401
        except ModuleNotFoundError as error:
            raise ConfigError("logger=tensorboard needs TensorBoard: pip install 'peftlab[tensorboard]'.") from error
        from peftlab.training.tensorboard_hparams import LoggerWithHparams

        logger = LoggerWithHparams(folder, key, config)
        logger.log_hyperparams(config)
        return logger


@dataclass(kw_only=True)
class WandB(LoggerConfig):
    """One Weights & Biases run a job: its id is the run's key, its group the experiment's name."""

    project: str = "peftlab"
    """The project of W&B that runs go to."""
    entity: str | None = None
    """The user or team that owns it; null: the account's own."""
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online where there is an account (WANDB_API_KEY or a login), else offline."""
    tags: list[str] = field(default_factory=list)
    """Further labels of the run in W&B."""

    def build(self, *, name: str, key: str, folder: Path, config: dict[str, Any]) -> Logger:
        """Lightning's W&B logger around a run of its own.

        Raises:
            ConfigError: with what W&B says, if it does not let this run begin.
        """
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        folder.mkdir(parents=True, exist_ok=True)
        mode, named = chosen_mode(self.mode), names(config, key, folder.parent)
        try:
            run = wandb.init(
                project=self.project,
                entity=self.entity,
                group=named.group,
                job_type=named.job_type,
                name=named.name,
                id=key,
                resume="allow" if mode == "online" else None,
                dir=str(folder.resolve()),  # W&B's own process may have another working directory
                config=config,
                tags=self.tags,
                mode=mode,
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:  # no key, a refused one, no such team, no answer
            raise ConfigError(
                f"logger=wandb logger.mode={self.mode}: W&B says: {first_line(error)} Log in (`wandb login`, or "
                "WANDB_API_KEY), or write to this folder and send it later: logger.mode=offline."
            ) from error
        return WandbLogger(experiment=run)

    def finish(self) -> None:
        """End the W&B run, as failed if an exception is under way, and W&B's own process with it.

        Without the first the next job in this process would write into this run; without the second W&B's process
        would live on, and a job that was forked from this process would share it.
        """
        import wandb

        if wandb.run is not None:
            offline, place = wandb.run.settings._offline, Path(wandb.run.dir).parent
            wandb.finish(exit_code=0 if sys.exc_info()[0] is None else 1)
            if offline:
                say(f"W&B wrote offline; to send it:\n  wandb sync {shlex.quote(str(place))}")
        wandb.teardown()


@dataclass(kw_only=True)
class Several(LoggerConfig):
    """Several loggers at once, each as if it were alone."""

    loggers: list[str | dict[str, Any]] = field(default_factory=lambda: ["csv", "tensorboard"])
    """Which, each a name or a mapping of ``name`` (or ``_target_``) and its keys:
    [csv, {name: wandb, project: mine}]."""

    def __post_init__(self) -> None:
        """Check the keys of every logger, and write them all down."""
        if not self.loggers:
            raise ValueError("logger.loggers is empty: name at least one, as [csv, tensorboard], or use logger=none.")
        entries = [_entry(given, f"logger.loggers[{number}]") for number, given in enumerate(self.loggers)]
        names = [str(entry.get("name", entry.get("_target_"))) for entry in entries]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"logger.loggers names {', '.join(twice)} more than once: they would write the same files."
            )
        self.loggers = [*entries]
        self._parts = [_made(entry, f"logger.loggers[{number}]") for number, entry in enumerate(entries)]

    def build(self, *, name: str, key: str, folder: Path, config: dict[str, Any]) -> list[Logger]:
        """The loggers of all; where one cannot be built, those before it are ended."""
        built: list[Logger] = []
        try:
            for part in self._parts:
                one = part.build(name=name, key=key, folder=folder, config=config)
                built += one if isinstance(one, list) else [] if one is None else [one]
        except Exception:
            self.finish()
            raise
        return built

    def finish(self) -> None:
        """End each."""
        for part in self._parts:
            part.finish()


NAMED: dict[str, type[LoggerConfig]] = {"csv": CSV, "tensorboard": TensorBoard, "wandb": WandB}
"""What ``logger.loggers`` may name, and what is said of a run's loggers."""


def _entry(given: str | dict[str, Any], key: str) -> dict[str, Any]:
    """One entry with all keys of its logger, checked.

    Raises:
        ConfigError: naming ``key``.
    """
    entry = {"name": given} if isinstance(given, str) else dict(given)
    made = _made(entry, key)
    return {name: entry[name] for name in ("name", "_target_") if name in entry} | asdict(made)


def _made(entry: Mapping[str, Any], key: str) -> LoggerConfig:
    name, target = entry.get("name"), entry.get("_target_")
    if (name is None) == (target is None):
        given = "neither is given" if name is None else "both are given"
        raise ConfigError(f"{key}: {given}, name or _target_. Write for example {{name: wandb, project: mine}}.")
    if target is None and name not in NAMED:
        raise ConfigError(f"{key}={name}: there is no such logger.{nearest(str(name), NAMED)} Name {listed(NAMED)}.")
    cls = import_class(str(target), f"{key}._target_") if name is None else NAMED[str(name)]
    if not issubclass(cls, LoggerConfig) or issubclass(cls, Several):
        raise ConfigError(f"{key}: it must be one logger, {listed(NAMED)}, and is {cls.__name__}.")
    return validate({word: value for word, value in entry.items() if word not in ("name", "_target_")}, cls, key)


def kinds(logger: Mapping[str, Any]) -> list[str]:
    """Names of the loggers that the group ``logger`` of a plain config, or of a record's, has; of others the class."""
    if isinstance(several := logger.get("loggers"), list):
        entries = [{"name": one} if isinstance(one, str) else one for one in several]
        return [kind for one in entries for kind in ([str(one["name"])] if "name" in one else kinds(one))]
    target = str(logger.get("_target_", ""))
    if target in ("", stable_name(NoLogger)):
        return []
    return [next((name for name, cls in NAMED.items() if stable_name(cls) == target), target.rpartition(".")[2])]
