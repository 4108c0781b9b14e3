"""For those who write a sweep's file: one to begin with, and the JSON schema that an editor reads. Imports no torch."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from peftlab.metric_names import MetricName
from peftlab.objectives.base import LOSS
from peftlab.reference import field_docs
from peftlab.report.columns import Column
from peftlab.sweeps.declaration import Arm, Expected, Published, Range, Search, Sweep

PARTS: tuple[type, ...] = (Sweep, Arm, Column, Search, Range, Expected, Published)
"""What a file is made of."""
NAMES = {"start": "from"}
"""Field → the key in a file, where that is a word of Python's own."""

_BEGINNING = """\
# {name}: what it asks, in a line.
#
#   peftlab check {name}.yaml                  composes every job, says what would run and what it costs
#   peftlab sweep {name}.yaml                  runs what is missing; killed at any time, the same command goes on
#   peftlab sweep {name}.yaml seeds=0,1        fewer seeds
#   peftlab report outputs/{name}              statistics, LaTeX, figures, one HTML page
name: {name}
seeds: [0, 1, 2]                     # a run of each cell for each; the table has mean and standard deviation over them

# For all cells: what you would type behind `peftlab train`. `peftlab explain` says what there is.
overrides: [data=imdb_packaged, data.max_length=64, data.limit_train=500, data.limit_val=200, data.limit_test=500,
            data.batch_size=8, backbone=minilm, backbone.pooling=mean, trainer.max_epochs=2, logger=none]

baseline: head                       # the others are compared with it

cells:
  - {{id: head, label: head only, overrides: [peft=head]}}
  - {{id: lora, label: "LoRA, rank {{peft.rank}}", overrides: [peft=lora], grid: {{peft.rank: [2, 8]}}}}

# Values may be chosen, on validation with the first seed, above the cells for all of them or in one cell:
tune: {{optim.lr: [1e-3, 3e-3]}}

# The table has what selects on test, trainable parameters, seconds of training. Other columns are places in the record:
# columns:
#   - {{title: test loss, value: {loss}}}
#   - {{title: trainable, value: parameters.trainable, format: count}}
"""


def beginning(name: str) -> str:
    """A file that runs as it is: two cells on packaged reviews."""
    return _BEGINNING.format(name=name, loss=MetricName("test", LOSS.name).in_record)


def keys_in_files(part: type) -> dict[str, str]:
    """Key of a part of a file → what it means."""
    return {NAMES.get(name, name): meaning for name, meaning in field_docs(part).items()}


def file_schema() -> dict[str, Any]:
    """The JSON schema of a sweep's file."""
    schema: dict[str, Any] = TypeAdapter(Sweep).json_schema()
    parts = {"Sweep": schema, **schema["$defs"]}
    for part in PARTS:
        of_part, meanings = parts[part.__name__], field_docs(part)
        of_part["additionalProperties"] = False
        of_part["description"] = (part.__doc__ or "").strip().partition("\n")[0].replace("``", "")
        for name in list(of_part["properties"]):
            one = of_part["properties"].pop(name)
            of_part["properties"][NAMES.get(name, name)] = one | {"description": meanings[name].replace("``", "")}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "A sweep of peftlab"}
