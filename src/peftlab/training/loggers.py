"""Where per-step values go: CSV, TensorBoard, Weights & Biases or nowhere.

The run's own record is the truth; these are mirrors of it. Each library is imported only when chosen.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from peftlab.errors import ConfigError
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
        """Lightning's TensorBoard logger.

        Raises:
            ConfigError: if TensorBoard is not installed.
        """
        from lightning.pytorch.loggers import TensorBoardLogger

        try:
            logger = TensorBoardLogger(save_dir=folder, name="tensorboard", version="", default_hp_metric=False)
        except ModuleNotFoundError as error:
            raise ConfigError("logger=tensorboard needs TensorBoard: pip install 'peftlab[tensorboard]'.") from error
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
        """Lightning's W&B logger around a run of its own."""
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        folder.mkdir(parents=True, exist_ok=True)
        mode, named = chosen_mode(self.mode), names(config, key, folder.parent)
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
                print(f"W&B wrote offline; to send it: wandb sync {shlex.quote(str(place))}")
        wandb.teardown()
