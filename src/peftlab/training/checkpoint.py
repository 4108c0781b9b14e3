"""Checkpoints that are whole or not there, that know their own checksum, and that name no folder."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import IO, Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.callbacks import Checkpoint

from peftlab.errors import RunError, first_line
from peftlab.files import open_regular, replacing
from peftlab.objectives.base import Figure
from peftlab.training.config import TrainerConfig
from peftlab.training.places import place_in_words, remove_older
from peftlab.training.selection import best_row

_MARK = b"peftlab sha256 "
_COMMENT = len(_MARK) + 64
"""Bytes of the comment that ends the zip archive: the mark, and the sha256, in digits, of all bytes before them."""

WAY_OUT = "Copy it anew from where it is whole, or start the run from the beginning with force=true."


class DamagedCheckpoint(RunError):
    """A checkpoint that nothing can be resumed from."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the old checkpoint and then replaces it.

    Lightning writes to the machine's folder for temporary files first; where that is another disk, its last move is
    a copy, and a process killed during it leaves half a checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None) -> None:
        """Save ``checkpoint`` as ``path``, with its checksum.

        Raises:
            RunError: if it cannot be written; the old checkpoint is then as it was.
        """
        target = Path(path)
        try:
            with replacing(target) as file:
                torch.save(checkpoint, file)
                _seal(file)
        except (OSError, RuntimeError) as error:  # torch's zip writer reports a full disk as RuntimeError
            raise RunError(
                f"cannot write {target}: {first_line(error)}. The run resumes from the last checkpoint "
                "that is whole; free some space or choose another output_dir."
            ) from error

    def load_checkpoint(self, path: _PATH, *_: Any, **__: Any) -> dict[str, Any]:
        """The checkpoint ``path``, for Lightning to go on from."""
        return read_checkpoint(Path(path))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What the checkpoint ``path`` holds, on the CPU, without what earlier versions kept of the folder it was in.

    Raises:
        DamagedCheckpoint: if it is missing, damaged, or none of peftlab's; it says the way out.
        RunError: if it may not be read.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: open_regular(Path(name), flags)) as file:
            _require_whole(file)
            content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        history = content["history"]
        assert "place" in content or history[-1]["epoch"] >= 0
        assert "state_dict" in content
    except FileNotFoundError as error:
        raise DamagedCheckpoint(f"{path} is missing, though the run has begun. {WAY_OUT}") from error
    except PermissionError as error:
        raise RunError(f"cannot read {path}: {error.strerror}.") from error
    except Exception as error:  # a damaged file can fail in any of torch's, zipfile's and pickle's ways
        raise DamagedCheckpoint(f"{path} is damaged ({first_line(error)}). {WAY_OUT}") from error
    if isinstance(callbacks := content.get("callbacks"), dict):
        ours = {
            key: state for key, state in callbacks.items() if not key.startswith(("ModelCheckpoint", "EarlyStopping"))
        }
        content["callbacks"] = ours
    return content


def require_best(checkpoint: dict[str, Any], path: Path, history: Any, monitor: Figure, *, ended: bool) -> None:
    """Refuse a ``best.ckpt`` that is not of the row that ``history`` says.

    Args:
        checkpoint: its content.
        path: its own.
        history: of ``last.ckpt``.
        monitor: the figure that chooses.
        ended: whether training has ended. A run that goes on from an earlier checkpoint may have a best one of steps
            that it then repeats.

    Raises:
        DamagedCheckpoint: naming both places.
    """
    found, wanted = checkpoint["history"][-1], best_row(history, monitor)
    if found["step"] != wanted["step"] and (ended or found["step"] <= history[-1]["step"]):
        raise DamagedCheckpoint(
            f"{path} holds the weights of {place_in_words(found)}, and by the run's history the best are those of "
            f"{place_in_words(wanted)}. {WAY_OUT}"
        )


def _seal(file: IO[bytes]) -> None:
    """Give the zip archive that ``file`` holds a comment with the checksum of everything before it."""
    end = file.seek(0, 2)
    file.seek(end - 2)
    assert file.read(2) == b"\0\0", "torch writes archives without a comment"
    file.seek(end - 2)
    file.write(_COMMENT.to_bytes(2, "little") + _MARK)
    file.flush()
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    file.seek(0, 2)
    file.write(digest.encode())


def _require_whole(file: IO[bytes]) -> None:
    """Compare the checksum; of a checkpoint of an earlier version, which has none, those of the archive's parts.

    Raises:
        ValueError: if they differ.
        zipfile.BadZipFile: if it is no archive.
    """
    end = file.seek(0, 2)
    if end == 0:
        raise ValueError("it is empty")
    file.seek(max(0, end - _COMMENT))
    comment = file.read()
    file.seek(0)
    if comment.startswith(_MARK):
        whole = hashlib.sha256()
        left = end - 64
        while left and (part := file.read(min(left, 1 << 20))):
            whole.update(part)
            left -= len(part)
        if whole.hexdigest().encode() != comment[len(_MARK) :]:
            raise ValueError("it has other content than its checksum says")
    else:
        with zipfile.ZipFile(file) as archive:
            if (name := archive.testzip()) is not None:
                raise ValueError(f"its part {name} has other content than its checksum says")
    file.seek(0)


class KeepsCheckpoints(Checkpoint):
    """``best.ckpt`` by the selection rule, then ``last.ckpt``.

    Which row is the best the history says, which travels in the checkpoint: nothing that is resumed from names the
    folder, which may have been moved meanwhile.
    """

    def __init__(self, folder: Path, config: TrainerConfig, monitor: Figure) -> None:
        self._folder, self._config, self._monitor = folder, config, monitor

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write them. This comes after the module's own end of the epoch, which adds the row to its history."""
        self.keep_best(trainer, pl_module)
        trainer.save_checkpoint(self._folder / "last.ckpt")
        if trainer.is_global_zero:
            remove_older(self._folder, keep=1)

    def keep_best(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write ``best.ckpt`` if the last row of the history is the best."""
        history: Any = pl_module.history
        if self._config.select == "best" and best_row(history, self._monitor) is history[-1]:
            trainer.save_checkpoint(self._folder / "best.ckpt")
