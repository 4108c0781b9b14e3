"""``trainer.precision``: which type a model's floats have, and what a machine cannot do.

With ``…-true`` all floats of the model have the type, whatever the backbone was loaded in. Lightning converts them
when training begins; the model is built so already, since what is counted, hashed, saved, merged and predicted with
must be what trains. The ``…-mixed`` values leave the weights alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from peftlab.errors import ConfigError
from peftlab.peft.names import into_type
from peftlab.training.config import OptimizerConfig, Precision, TrainerConfig

_TRUE = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
"""``32-true`` is not here: it leaves a backbone in the type that ``backbone.dtype`` says."""


def into_precision(model: nn.Module, precision: Precision) -> None:
    """Give all floats of ``model`` the type that ``trainer.precision`` asks for; parameters stay the same objects."""
    if (dtype := _TRUE.get(precision)) is None:
        return
    into_type(model, dtype)
    module: Any
    for module in model.modules():
        if hasattr(module, "compute_dtype"):  # bitsandbytes casts the bias of a 4-bit layer to it, in place
            module.compute_dtype = dtype


def require_precision(config: TrainerConfig, optimizer: OptimizerConfig) -> None:
    """Refuse what would be computed in another precision than asked for, or not at all.

    Raises:
        ConfigError: for 16-mixed on a CPU, where Lightning takes bf16-mixed; and for an optimizer whose ``eps`` is 0 in
            the type of the weights: its first step divides 0 by 0.
    """
    if config.precision == "16-mixed" and not _has_gpu(config):
        raise ConfigError(
            f"trainer.precision={config.precision} needs a GPU: on a CPU it would be computed in bf16-mixed. "
            "Set trainer.precision=bf16-mixed, or run on a machine with a GPU."
        )
    dtype, eps = _TRUE.get(config.precision), getattr(optimizer, "eps", None)
    if dtype is not None and eps is not None and not torch.tensor(eps, dtype=dtype):
        smallest = torch.finfo(dtype).smallest_normal
        raise ConfigError(
            f"trainer.precision={config.precision}: optim.eps={eps:g} is 0 in 16 bits, and the first step would "
            f"divide 0 by 0. Set optim.eps to at least {smallest:.0e} (1e-4 is usual), or trainer.precision=bf16-true."
        )


def _has_gpu(config: TrainerConfig) -> bool:
    return config.accelerator != "cpu" and (torch.cuda.is_available() or torch.backends.mps.is_available())
