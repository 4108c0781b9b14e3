"""``backbone.gradient_checkpointing``: of each block its input is kept, and the rest computed once more in backward.

Activations then take the memory of the blocks' inputs and of one block, and a step about a third more time. Chen et al.
2016, Training Deep Nets with Sublinear Memory Cost (arXiv:1604.06174).

Recomputing sees what the forward pass saw: torch's random state is put back, so that dropout draws the same masks, and
a prefix inside attention is that pass's own (:func:`peftlab.backbones.attention.seen_twice`). No input needs to require
a gradient, as it would in torch's older ("reentrant") form, where a frozen embedding leaves all without one.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint

from peftlab.backbones.attention import seen_twice
from peftlab.errors import BackboneError


def use_gradient_checkpointing(model: Any, architecture: str) -> None:
    """Let each block of ``model`` (of ``transformers``) be computed again in backward, while it is in training.

    Raises:
        BackboneError: if its blocks cannot be.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise BackboneError(
            f"backbone.gradient_checkpointing=true: {architecture} cannot compute its blocks a second time. Set it to "
            "false; a smaller data.batch_size with trainer.accumulate_grad_batches needs less memory, too."
        )
    again = partial(checkpoint, use_reentrant=False, context_fn=seen_twice)
    model._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=again)
