"""An output whose reader may leave: ``peftlab sweep FILE | head`` ends what is shown, and not the sweep."""

from __future__ import annotations

import os
from typing import Any, TextIO


class Outliving:
    """Writes to a stream until the reader of its pipe has gone; what is written later goes nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As a stream's; never raises BrokenPipeError."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._go_nowhere()
            return len(text)

    def flush(self) -> None:
        """As a stream's; never raises BrokenPipeError."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._go_nowhere()

    def _go_nowhere(self) -> None:
        """What is still in the buffer, too: else it would be tried again as the process ends."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
