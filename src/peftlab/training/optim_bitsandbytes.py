"""Optimizers of bitsandbytes that save memory: AdamW with 8-bit states, and with paged states.

AdamW keeps two running means a parameter, 8 bytes in float32. In 8 bits (Dettmers et al. 2021, arXiv:2110.02861) they
take 2 bytes and a scale a block of 256; the update itself is computed in float32. Small tensors keep 32-bit states.
Paged states (QLoRA, Dettmers et al. 2023, arXiv:2305.14314, section 3) lie in memory that a GPU's driver moves to the
host when the GPU has none left. On a CPU there is nothing to page, and bitsandbytes would take plain states
instead: that is refused here.

Departure: the paper advises 32-bit states and a norm of their own for embeddings; peftlab leaves embeddings as they
are, and most methods do not train them.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftlab.errors import PeftlabError
from peftlab.fields import PositiveFloat, PositiveInt, Probability
from peftlab.training.config import OptimizerConfig
from peftlab.training.optim import decay_matrices_only

if TYPE_CHECKING:
    import torch


@dataclass(kw_only=True)
class BitsAndBytesAdamW(OptimizerConfig):
    """What the three share. Biases and norms are not decayed."""

    beta1: Probability = 0.9
    """How much of the gradients' mean each step keeps."""
    beta2: Probability = 0.999
    """How much of the mean of the gradients' squares each step keeps."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the mean of the gradients' squares, so that nothing is divided by zero."""

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer over ``groups``.

        Raises:
            PeftlabError: if bitsandbytes is missing, or cannot do this on the device or in the type of the parameters.
        """
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # asks for an optional kernel
        try:
            import bitsandbytes.optim
        except ImportError as error:
            raise PeftlabError(
                f"this optimizer needs bitsandbytes ({error}). Run: pip install bitsandbytes, or set optim=adamw."
            ) from error
        self.check(groups)
        optimizer: torch.optim.Optimizer = self.choose(bitsandbytes.optim)(
            decay_matrices_only(groups, self.weight_decay),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            **self.further(),
        )
        return optimizer

    @abstractmethod
    def choose(self, optimizers: Any) -> Any:
        """The class, of the module ``bitsandbytes.optim``."""

    def further(self) -> dict[str, Any]:
        """Arguments beside those of every AdamW."""
        return {}

    def check(self, groups: list[dict[str, Any]]) -> None:
        """Raise PeftlabError for parameters that bitsandbytes has no code for."""
        double = [p for group in groups for p in group["params"] if p.element_size() > 4]
        if double:
            raise PeftlabError(
                f"bitsandbytes has no optimizer for {double[0].dtype}. Set trainer.precision=32-true, or optim=adamw."
            )


@dataclass(kw_only=True)
class AdamW8bit(BitsAndBytesAdamW):
    """AdamW whose states are stored in 8 bits, block by block; works on CPUs too."""

    min_8bit_size: PositiveInt = 4096
    """Tensors with fewer elements keep 32-bit states."""

    def choose(self, optimizers: Any) -> Any:
        """Without paging."""
        return optimizers.AdamW8bit

    def further(self) -> dict[str, Any]:
        """From which size on."""
        return {"min_8bit_size": self.min_8bit_size}


@dataclass(kw_only=True)
class PagedAdamW(BitsAndBytesAdamW):
    """AdamW whose 32-bit states a GPU's driver may move to the host; GPUs only."""

    def choose(self, optimizers: Any) -> Any:
        """With paging."""
        return optimizers.PagedAdamW32bit

    def check(self, groups: list[dict[str, Any]]) -> None:
        """As always; and every parameter must be on a GPU."""
        super().check(groups)
        _require_gpu(groups, "optim=adamw")


@dataclass(kw_only=True)
class PagedAdamW8bit(AdamW8bit):
    """AdamW with paged 8-bit states, QLoRA's advice for the largest models; GPUs only."""

    def choose(self, optimizers: Any) -> Any:
        """With paging."""
        return optimizers.PagedAdamW8bit

    def check(self, groups: list[dict[str, Any]]) -> None:
        """As always; and every parameter must be on a GPU."""
        super().check(groups)
        _require_gpu(groups, "optim=adamw_8bit")


def _require_gpu(groups: list[dict[str, Any]], instead: str) -> None:
    devices = {p.device.type for group in groups for p in group["params"]}
    if wrong := devices - {"cuda", "xpu"}:
        raise PeftlabError(
            f"paged optimizers move their states between a GPU and its host, and these parameters are on "
            f"'{min(wrong)}': there is nothing to page. Set {instead}, which computes the same, or train on a GPU "
            "(trainer.accelerator=gpu)."
        )
