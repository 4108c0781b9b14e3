"""A GPU whose memory is too small: what to do, in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from peftlab.errors import OutOfMemory, first_line


@contextmanager
def memory_told() -> Iterator[None]:
    """Let what runs out of a GPU's memory say how to need less; also a decorator.

    Raises:
        OutOfMemory: instead of torch's error.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"the GPU's memory is too small, or others have their part of it. {first_line(error)[:200]} "
            "Lower data.batch_size (trainer.accumulate_grad_batches then makes a step of several), "
            "data.eval_batch_size or data.max_length; or take trainer.precision=bf16-mixed or backbone.quantize=nf4."
        ) from error
