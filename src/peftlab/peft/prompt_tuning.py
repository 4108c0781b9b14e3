"""Prompt tuning: The Power of Scale for Parameter-Efficient Prompt Tuning (Lester et al. 2021, arXiv:2104.08691).

    Pr(y | [P ; X])        P (n, d) trains, X = E(x) and the model stay frozen        (paper, section 2)

The n vectors stand among the text's token embeddings (:mod:`peftlab.peft.soft_prompt` tells where, and how a
model reads them). They start from random numbers in [-0.5, 0.5], from the embeddings of tokens of the
vocabulary, or from those of words that are given.

Departures from the paper: ``vocabulary`` draws from all tokens that stand for text, where the authors draw from
the 5,000 most common ones (a tokenizer does not say which these are); the classification head trains as well,
where the authors' T5 writes the label as text. As the authors found, a prompt wants a far larger learning rate
than LoRA (0.3 with Adafactor; 1e-2 and less with AdamW), and more epochs.

Trainable: n · d, d the dimension of the token embeddings (T5-XXL with 5 tokens: 20,480).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftlab.peft.base import Supports
from peftlab.peft.soft_prompt import InitialisedSoftPrompt, PromptVectors

if TYPE_CHECKING:
    import torch

    from peftlab.backbones.base import Backbone


@dataclass(kw_only=True)
class PromptTuning(InitialisedSoftPrompt, name="prompt_tuning"):
    """Trained vectors among the text's token embeddings."""

    supports = Supports(identity_at_start=False, hf_peft="PROMPT_TUNING")
    count = "n · d"

    def vectors(self, backbone: Backbone, generator: torch.Generator) -> PromptVectors:
        """The prompt itself."""
        return PromptVectors(self.initial_vectors(backbone, generator))

    def trainable(self, dim: int) -> int:
        """The paper's n · d."""
        return self.length * dim
