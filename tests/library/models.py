"""Models that peftlab has not built: plain ones of transformers, and one written by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def bert(kind: str = "AutoModelForSequenceClassification", seed: int = 0, **settings: Any) -> Any:
    """A random BERT, in eval mode."""
    import transformers

    return _built(kind, transformers.BertConfig(**SMALL, **settings), seed)


def gpt2(kind: str = "AutoModelForCausalLM", seed: int = 0, **settings: Any) -> Any:
    """A random GPT-2, in eval mode."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    for name, value in settings.items():
        setattr(config, name, value)
    return _built(kind, config, seed)


def _built(kind: str, config: Any, seed: int) -> Any:
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return getattr(transformers, kind).from_config(config).eval()


class Net(nn.Module):
    """Written by hand: no config, no roles, a forward of one argument."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.blocks = nn.ModuleList(
                nn.ModuleDict({"up": nn.Linear(8, 16), "down": nn.Linear(16, 8)}) for _ in range(2)
            )
            self.norm = nn.BatchNorm1d(8)
            self.head = nn.Linear(8, 3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """(B, 8) → (B, 3)."""
        for block in self.blocks:
            x = x + block["down"](torch.relu(block["up"](x)))  # type: ignore[index]
        scores: Tensor = self.head(self.norm(x))
        return scores


def ids(rows: int = 4, length: int = 12) -> dict[str, Tensor]:
    """Random ids and a mask with padding on the right, none in the first row."""
    generator = torch.Generator().manual_seed(3)
    input_ids = torch.randint(5, 250, (rows, length), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    for row in range(1, rows):
        attention_mask[row, length - row :] = 0
    return {"input_ids": input_ids.masked_fill(attention_mask == 0, 0), "attention_mask": attention_mask}


def states(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all that the model holds."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether both have the same names and bits."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def shake(adapter: Any, seed: int = 5) -> None:
    """Give everything that trains other values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters(beside=True):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
