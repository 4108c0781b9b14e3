"""P-tuning: GPT Understands, Too (Liu et al. 2021, arXiv:2103.10385).

    P = MLP(LSTM(H))       H (n, d), bidirectional LSTM        (paper, eq. 5)        encoder=lstm
    P = MLP(H)                                                                       encoder=mlp

A prompt (:mod:`peftlab.peft.soft_prompt`) whose vectors P come out of a small network over trained vectors H,
so that they depend on each other. ``mlp``: Linear, ReLU, Linear, ReLU, Linear; ``lstm``: a bidirectional LSTM,
then Linear, ReLU, Linear. After training only P (n, d) is needed; the network is saved with it, so that
training can go on.

Departures from the paper: the prompt stands in one piece, not between the words of a template; each direction
of the LSTM has ``hidden`` units, as in HF peft (the authors' code: half of them); the start is torch's usual
one, with H from N(0, 1). The classification head trains, where the paper predicts label words.

Trainable, with h = hidden:  n·d + (d+1)·h + (h+1)·h + (h+1)·d  (mlp);
n·d + LSTM + (2h+1)·2h + (2h+1)·d, the LSTM with 8h·(d + h + 2) in its first layer and 8h·(3h + 2) in others (lstm).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from peftlab.errors import PeftlabError
from peftlab.fields import PositiveInt, Probability
from peftlab.peft.base import Supports
from peftlab.peft.soft_prompt import SoftPrompt, embedding_weight, fresh_linear

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone


@dataclass(kw_only=True)
class PTuning(SoftPrompt, name="p_tuning"):
    """Prompt vectors that come out of a small trained network."""

    supports = Supports(identity_at_start=False, hf_peft="P_TUNING")
    count = "n·d + encoder; n·d remain after training"

    encoder: Literal["mlp", "lstm"] = "mlp"
    """The network that makes the prompt: three linear layers, or a bidirectional LSTM and two linear layers."""
    hidden: PositiveInt | None = None
    """Width h of the network; null: the token embeddings' dimension."""
    layers: PositiveInt | None = None
    """Layers of the LSTM; null: 2."""
    dropout: Probability = 0.0
    """Dropout between the LSTM's layers."""

    def __post_init__(self) -> None:
        """Raise ValueError for fields that the chosen encoder does not have."""
        if self.encoder == "mlp" and self.layers is not None:
            raise ValueError(
                f"peft.layers={self.layers} has no effect with peft.encoder=mlp, which has three linear layers. "
                "Set peft.layers=null, or peft.encoder=lstm."
            )
        if self.dropout and (self.encoder == "mlp" or self.layers == 1):
            raise ValueError(
                f"peft.dropout={self.dropout} acts between the layers of an LSTM: it needs peft.encoder=lstm with "
                "peft.layers of 2 or more. Set peft.dropout=0."
            )

    def vectors(self, backbone: Backbone, generator: torch.Generator) -> PromptEncoder:
        """H and the network over it."""
        dim = embedding_weight(backbone).shape[1]
        hidden = self.hidden or dim
        lstm = _fresh_lstm(dim, hidden, self.layers or 2, self.dropout, generator) if self.encoder == "lstm" else None
        return PromptEncoder(self.length, dim, hidden, lstm, generator)

    def trainable(self, dim: int) -> int:
        """H, the LSTM if there is one, and the linear layers."""
        h = self.hidden or dim
        if self.encoder == "mlp":
            return self.length * dim + (dim + 1) * h + (h + 1) * h + (h + 1) * dim
        # four gates in two directions, each with a matrix on its input, one on its state and two biases
        lstm = 8 * h * (dim + h + 2) + ((self.layers or 2) - 1) * 8 * h * (3 * h + 2)
        return self.length * dim + lstm + (2 * h + 1) * 2 * h + (2 * h + 1) * dim

    def load_inference_prompt(self, vectors: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Refused: the network cannot be found from what it returned."""
        raise PeftlabError(
            "the vectors that a P-tuning encoder returned do not say what the encoder was. Use them, and train them "
            f"on, with peft=prompt_tuning peft.length={self.length} (the same prompt without an encoder)."
        )


class PromptEncoder(nn.Module):
    """H (n, d), through an LSTM if there is one, then through linear layers."""

    def __init__(self, length: int, dim: int, hidden: int, lstm: nn.LSTM | None, generator: torch.Generator) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(length, dim, generator=generator))  # H (n, d)
        self.lstm = lstm
        widths = [dim, hidden, hidden, dim] if lstm is None else [2 * hidden, 2 * hidden, dim]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [fresh_linear(before, after, generator), nn.ReLU()]
        self.mlp = nn.Sequential(*layers[:-1])

    def forward(self) -> Tensor:
        """P (n, d)."""
        states = self.embedding
        if self.lstm is not None:
            states, _ = self.lstm(states)  # (n, 2h)
        prompt: Tensor = self.mlp(states)
        return prompt


def _fresh_lstm(dim: int, hidden: int, layers: int, dropout: float, generator: torch.Generator) -> nn.LSTM:
    """A bidirectional LSTM with torch's usual start, uniform(± 1/√hidden), drawn from ``generator`` alone."""
    lstm = nn.LSTM(
        dim, hidden, layers, dropout=dropout, bidirectional=True, device="meta", dtype=torch.float32
    ).to_empty(device="cpu")
    for parameter in lstm.parameters():
        nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5, generator=generator)
    return lstm
