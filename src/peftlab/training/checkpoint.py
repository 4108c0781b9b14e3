"""Checkpoints that are whole or not there."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH

from peftlab.errors import RunError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the old checkpoint and then replaces it.

    Lightning writes to the machine's folder for temporary files first; where that is another disk, its last move is
    a copy, and a process killed during it leaves half a checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None) -> None:
        """Save ``checkpoint`` as ``path``.

        Raises:
            RunError: if it cannot be written; the old checkpoint is then as it was.
        """
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
                temporary = Path(file.name)
                try:
                    torch.save(checkpoint, file)
                    file.flush()
                    temporary.replace(target)
                except BaseException:
                    temporary.unlink(missing_ok=True)
                    raise
        except (OSError, RuntimeError) as error:  # torch's zip writer reports a full disk as RuntimeError
            raise RunError(
                f"cannot write {target}: {str(error).splitlines()[0]}. The run resumes from the last checkpoint "
                "that is whole; free some space or choose another output_dir."
            ) from error
