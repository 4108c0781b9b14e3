"""Write values.json: what the library ``adapters`` (AdapterHub) computes with bottleneck adapters at three places.

It pins an older transformers, so it has an environment of its own; values.json is kept, and made again by

    python -m venv adapters-env
    adapters-env/bin/pip install adapters torch
    adapters-env/bin/python -m tests.peft.adapters_library.make
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch

from tests.peft.adapters_library.numbers import ACTIVATIONS, ADAPTERS, IDS, KINDS, MASK, WIDTH, filled

VALUES = Path(__file__).with_name("values.json")


def fill(model: torch.nn.Module) -> None:
    """Give every parameter the values of its name."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.tensor(filled(name, parameter.shape)))


def logits(model: torch.nn.Module) -> list[list[float]]:
    """Of the two texts, in float64."""
    with torch.no_grad():
        found = model(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK)).logits
    return [[float(value) for value in row] for row in found]


def main() -> None:
    """Compute and write them."""
    adapters, transformers = (importlib.import_module(name) for name in ("adapters", "transformers"))
    values: dict[str, Any] = {"versions": {one.__name__: one.__version__ for one in (adapters, transformers, torch)}}
    for kind, sizes in KINDS.items():
        for place, fields in ADAPTERS.items():
            for activation in ACTIVATIONS:
                config = transformers.AutoConfig.for_model(kind, **sizes)
                config._attn_implementation = "eager"
                model = transformers.AutoModelForSequenceClassification.from_config(config).double().eval()
                fill(model)
                values.setdefault(f"{kind}, no adapter", logits(model))
                adapters.init(model)
                model.add_adapter(
                    "a",
                    config=adapters.BnConfig(
                        output_adapter=True, reduction_factor=sizes.get("hidden_size", sizes.get("dim")) / WIDTH,
                        non_linearity=activation, **fields,
                    ),
                )  # fmt: skip
                model.set_active_adapters("a")
                model.double().eval()
                fill(model)
                values[f"{kind}, {place}, {activation}"] = logits(model)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in values.items())
    VALUES.write_text(f"{{{lines}}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
