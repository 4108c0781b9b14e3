"""LN-tuning: train the normalisation layers alone.

Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning (Zhao et al. 2023,
arXiv:2312.11420); Parameter-Efficient Tuning on Layer Normalization for Pre-trained Language Models (Qi et
al. 2022, arXiv:2211.08682).

    LN(x) = γ · (x - mean) / std + β        γ and β train, all else stays frozen
    RMSNorm(x) = γ · x / rms(x)             (Llama and kin: γ alone)

All normalisation layers of the trunk: those of the blocks, after the embedding, after the last block, and of
queries and keys where there are any (Qwen3). Departure: Zhao et al. train those inside the attention blocks of
a language model that reads images; here they are all trained unless ``targets`` says less. It trains the
backbone's own tensors, so there is nothing to merge.

Trainable: 2 · width a LayerNorm, width an RMSNorm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftlab.errors import PeftlabError
from peftlab.peft.base import Supports
from peftlab.peft.selective import SelectiveTuning, is_norm, matching, own_parameters

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone


@dataclass(kw_only=True)
class LayerNormTuning(SelectiveTuning, name="layernorm"):
    """Train γ and β of the normalisation layers:  γ · (x - mean) / std + β."""

    supports = Supports(adds_nothing=True, hf_peft="LN_TUNING")
    count = "2 · width a LayerNorm, width an RMSNorm"

    biases: bool = True
    """Train β beside γ, where the layers have one."""
    targets: list[str] | None = None
    """Regexes on names of normalisation layers, or ends of names; null: all. Each entry must match."""

    def __post_init__(self) -> None:
        """Raise ValueError for an empty list of targets."""
        if self.targets is not None and not self.targets:
            raise ValueError("peft.targets is empty: null trains all normalisation layers.")

    def chosen(self, backbone: Backbone) -> list[str]:
        """Weights, and biases, of the normalisation layers outside the head."""
        own = own_parameters(backbone)
        norms = {
            name: [f"{name}.{leaf}" for leaf, _ in module.named_parameters(recurse=False) if f"{name}.{leaf}" in own]
            for name, module in backbone.model.named_modules()
            if is_norm(module)
        }
        norms = {name: tensors for name, tensors in norms.items() if tensors}  # some architectures' have no weight
        if not norms:
            raise PeftlabError(
                f"peft=layernorm: this {backbone.architecture} has no normalisation layer with weights outside its "
                "head, so there is nothing to train. Choose another method (peft=lora, peft=bitfit)."
            )
        chosen = set(norms)
        if self.targets is not None:
            kind = "normalisation layers"
            chosen = {name for entry in self.targets for name in matching("peft.targets", entry, norms, kind)}
        tensors = [tensor for name in norms if name in chosen for tensor in norms[name]]
        return [name for name in tensors if self.biases or not name.endswith("bias")]
