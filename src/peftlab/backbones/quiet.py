"""Keep transformers and bitsandbytes from logging and drawing bars about what this package checks itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No warnings and no progress bars of transformers inside; its settings are put back afterwards."""
    import transformers.utils.logging

    theirs: Any = transformers.utils.logging  # its functions carry no types
    verbosity, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(verbosity)
        if bars:
            theirs.enable_progress_bar()


def quiet_bitsandbytes() -> None:
    """No warnings of bitsandbytes, which HF peft imports too; called before either is."""
    for chatty in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
        # One asks for an optional kernel at import; the other warns at every int8 product of float32 inputs.
        logging.getLogger(chatty).setLevel(logging.ERROR)
