"""One task of a model of several, as a model of its own: its block of the head, and its prompt if it has one."""

from __future__ import annotations

from typing import Any

from torch import nn

from peftlab.backbones.base import Backbone
from peftlab.errors import PeftlabError
from peftlab.objectives.parts.task import Task
from peftlab.runs.assemble import Assembled
from peftlab.runs.evaluate import objective_of


def narrow_to_task(assembled: Assembled, facts: dict[str, Any], name: str) -> dict[str, Any]:
    """Leave of ``assembled`` what reads and predicts from the texts of one task; it computes that task's outputs.

    Args:
        assembled: is changed by it.
        facts: adapter.json of a run on data of several tasks.
        name: one of its tasks.

    Returns:
        ``facts`` of the task alone, its classes without the task's name.

    Raises:
        PeftlabError: if the head does not end in a linear layer.
    """
    names = [task["name"] for task in facts["tasks"]]
    number = names.index(name)
    task = Task(name, *facts["tasks"][number]["classes"])
    layer = _last_layer(assembled.backbone, len(facts["label_names"]))
    layer.weight = nn.Parameter(layer.weight.detach()[task.first : task.stop].clone())
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[task.first : task.stop].clone())
    layer.out_features = len(task.classes)
    model: Any = assembled.backbone.model
    if hasattr(model, "config"):
        model.config.num_labels = model.num_labels = len(task.classes)
    assembled.adapter.keep_task(number)
    labels = [label.removeprefix(f"{name}/") for label in facts["label_names"][task.first : task.stop]]
    peft = facts["peft"] | ({"num_tasks": 1} if "num_tasks" in facts["peft"] else {})
    alone = {"label_names": labels, "peft": peft, "objective": objective_of(facts, name)}
    return {key: value for key, value in facts.items() if key != "tasks"} | alone


def record_of_task(record: dict[str, Any], name: str) -> dict[str, Any]:
    """The run's record with the figures and the texts of one task."""
    data = record["data"]["tasks"][name]
    metrics = {split: values | values["tasks"][name] for split, values in record["metrics"].items()}
    return record | {"metrics": metrics, "data": record["data"] | data | {"data_set": data.get("data_set", name)}}


def _last_layer(backbone: Backbone, classes: int) -> nn.Linear:
    layers = [module for name in backbone.head_modules() for module in backbone.model.get_submodule(name).modules()]
    last = [module for module in layers if type(module) is nn.Linear and module.out_features == classes]
    if not last:
        raise PeftlabError(
            f"one task of this run cannot be exported: the head of {backbone.architecture} does not end in a plain "
            "linear layer, so there is no block of it to take."
        )
    return last[-1]
