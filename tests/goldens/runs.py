"""Run folders as they were written, in the folder ``runs``: finished, killed, and of a sweep.

    finished/<case>/<key>    what ``peftlab train`` has left, without pictures, logs and best.ckpt
    killed/<case>/<key>      the same run, killed as its second epoch began
    adapter                  an adapter of HF peft, exported from one of them
    sweep                    small.yaml, and in small what ``peftlab sweep small.yaml`` has left
    goldens.json             the command lines, and what the finished ones predict and export

Lightning writes the absolute path of the folder into its checkpoints. In the goldens it begins with :data:`SOMEWHERE`,
and :func:`place` puts the folder in which a test works there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from torch import Tensor

from peftlab.cli import main
from peftlab.records.folder import RunFolder
from tests.conftest import write_reviews
from tests.data.two_tasks import entries, write_topics
from tests.goldens.cells import digest
from tests.goldens.machine import machine, random_numbers

RUNS = Path(__file__).with_name("runs")
GOLDENS = RUNS / "goldens.json"
SOMEWHERE = "/somewhere"

ROWS = 60
TEXTS = ("a fine film", "dull and boring, great story", "what?")

_DATA = ("data=text_files", "data.path=reviews.jsonl", "data.max_length=32", "data.batch_size=8")
_TINY = (
    "backbone=tiny", "backbone.architecture.hidden_size=16", "backbone.architecture.intermediate_size=32",
    "backbone.architecture.max_position_embeddings=64", "backbone.dropout=0.1",
)  # fmt: skip
_GPT2 = (
    "backbone=tiny", "~backbone.architecture",
    "+backbone.architecture={model_type: gpt2, n_embd: 16, n_layer: 2, n_head: 4, n_positions: 64, vocab_size: 259}",
)  # fmt: skip
_TRAINING = (
    "logger=none", "optim=adamw", "optim.lr=1e-3", "optim.eps=1e-4", "trainer.max_epochs=2", "trainer.monitor=loss",
    "trainer.threads=1", "trainer.accelerator=cpu", "trainer.progress_bar=false",
)  # fmt: skip
"""A large eps, as AdamW makes full steps of the rounding noise of a gradient that is zero by mathematics."""

_TASKS = ("data=multitask", entries(Path("reviews.jsonl"), Path("topics.jsonl")), "data.max_length=32",
          "data.batch_size=8", "data.epoch_rows=48")  # fmt: skip
_BUDGET = ("peft.initial_rank=6", "peft.rank=4", "peft.interval=2")

METHODS: dict[str, tuple[str, ...]] = {
    "adalora": ("peft=adalora", *_BUDGET),
    "bitfit": ("peft=bitfit",),
    "compose": ("peft=compose", "peft.methods=[lora, bitfit]"),
    "compose_mam": (
        "peft=compose",
        "peft.methods=[{name: prefix_tuning, length: 3, hidden: 8}, {name: parallel_adapter, bottleneck: 2, "
        "reduction_factor: null, learned_scale: true}]",
    ),
    "dora": ("peft=dora", "peft.dropout=0.1"),
    "dynamic_dora": ("peft=dynamic_dora", *_BUDGET),
    "full": ("peft=full",),
    "head": ("peft=head",),
    "hf_peft": ("peft=hf_peft", "peft.options.oft_block_size=8"),
    "houlsby": ("peft=houlsby", "peft.reduction_factor=4"),
    "ia3": ("peft=ia3",),
    "import": ("peft=import", "peft.path=adapter"),
    "last_layers": ("peft=last_layers", "peft.layers=1"),
    "layernorm": ("peft=layernorm",),
    "lora": ("peft=lora", "peft.rank=4", "peft.dropout=0.1"),
    "lora_bias": ("peft=lora", "peft.rank=4", "peft.bias=lora_only"),
    "lora_freeze_A": ("peft=lora", "peft.rank=4", "peft.freeze_A=true"),
    "lora_pissa": ("peft=lora", "peft.rank=4", "peft.init=pissa"),
    "lora_plus": ("peft=lora", "peft.rank=4", "peft.lr_ratio=4", "peft.targets=[query, embedding]"),
    "multitask_prompt": ("peft=multitask_prompt", "peft.length=4", "peft.position=before"),
    "p_tuning": ("peft=p_tuning", "peft.length=4", "peft.position=before"),
    "p_tuning_v2": ("peft=p_tuning_v2", "peft.length=4"),
    "parallel_adapter": ("peft=parallel_adapter", "peft.reduction_factor=4"),
    "parameters": ("peft=parameters",),
    "pfeiffer": ("peft=pfeiffer", "peft.reduction_factor=4"),
    "prefix_tuning": ("peft=prefix_tuning", "peft.length=4", "peft.hidden=16", "peft.position_shift=true"),
    "prompt_tuning": ("peft=prompt_tuning", "peft.length=4", "peft.position=before"),
    "vera": ("peft=vera", "peft.rank=16"),
}

CASES: dict[str, tuple[str, ...]] = {
    **{name: (*_DATA, *_TINY, *_TRAINING, *method) for name, method in METHODS.items()},
    "lora_gpt2": (*_DATA, *_GPT2, *_TRAINING, "peft=lora", "peft.rank=4"),
    "lora_nf4": (
        *_DATA, *_TINY, "backbone.architecture.hidden_size=32", *_TRAINING, "peft=lora", "peft.rank=4",
        "backbone.quantize=nf4",
    ),
    "bitfit_bf16": (*_DATA, *_TINY, *_TRAINING, "peft=bitfit", "backbone.dtype=bfloat16"),
    "multitask": (*_TASKS, *_TINY, *_TRAINING, "peft=multitask_prompt", "peft.length=4"),
    "transfer": (
        *_DATA, *_TINY, *_TRAINING, "peft=multitask_prompt", "peft.length=4", "peft.source={run of multitask}",
    ),
    "text_classifier": (
        *_DATA, *_TRAINING, "backbone=text_classifier", "backbone.embedding_dim=8", "backbone.hidden_dim=8",
        "peft=lora", "peft.rank=2", "peft.targets=[hidden]",
    ),
    "from_run": (
        "data=text_files", "data.path=topics.jsonl", "data.max_length=32", "data.batch_size=8", *_TINY, *_TRAINING,
        "peft=lora", "peft.rank=2", "backbone.from_run={run of lora}", "measure_forgetting=true",
    ),
}  # fmt: skip
"""Overrides of each run; its name is the case's."""

NEEDS = {"from_run": "lora", "transfer": "multitask"}
"""Cases that start from the finished run of another."""

TASK_OF = {"multitask": "topics"}
"""Whose texts are labelled, where there are several tasks."""

SWEEP: dict[str, Any] = {
    "name": "small",
    "title": "A small sweep",
    "source": "a golden",
    "command": "peftlab sweep small.yaml",
    "cost": "seconds",
    "selection": "Best on validation.",
    "overrides": [*CASES["text_classifier"][:-3], "trainer.max_epochs=1"],
    "seeds": [0, 1],
    "metric": "metrics.test.accuracy",
    "cells": [
        {"id": "lora", "label": "LoRA", "overrides": ["peft=lora", "peft.rank=2", "peft.targets=[hidden]"]},
        {"id": "full", "label": "everything", "overrides": ["peft=full"]},
    ],
    "columns": [
        {"title": "accuracy", "value": "metrics.test.accuracy"},
        {"title": "trainable", "value": "parameters.trainable_without_head", "format": "count"},
    ],
}


def write_data(folder: Path) -> None:
    """The texts that the runs were trained on."""
    write_reviews(folder, rows=ROWS)
    write_topics(folder)


def write_sweep(folder: Path) -> None:
    """The declared sweep, small.yaml."""
    (folder / "small.yaml").write_text(yaml.safe_dump(SWEEP, sort_keys=False), encoding="utf-8")


def arguments(case: str, run_of: Callable[[str], Path]) -> list[str]:
    """What follows ``peftlab train``.

    Args:
        case: which run.
        run_of: of a finished case its folder, relative to the current one.
    """
    given = [*CASES[case], f"name={case}"]
    if case in NEEDS:
        needed = NEEDS[case]
        given = [override.replace(f"{{run of {needed}}}", str(run_of(needed))) for override in given]
    return given


def predicted(out: str) -> list[dict[str, Any]]:
    """What ``peftlab predict --json`` has printed."""
    return [json.loads(line) for line in out.splitlines()]


def predict_arguments(case: str, run: Path) -> list[str]:
    """What follows ``peftlab predict``."""
    texts = [word for text in TEXTS for word in ("--text", text)]
    return [str(run), *texts, "--json", *task_arguments(case)]


def task_arguments(case: str) -> list[str]:
    return ["--task", TASK_OF[case]] if case in TASK_OF else []


def exported(folder: Path) -> dict[str, Any]:
    """What an exported folder holds: its config, and every tensor by its name in the file."""
    (weights,) = folder.glob("*model.safetensors")
    config = json.loads((folder / ("adapter_config.json" if "adapter" in weights.name else "config.json")).read_text())
    tensors = safetensors.torch.load_file(weights)
    return {"config": config, "tensors": {name: digest(tensor) for name, tensor in sorted(tensors.items())}}


EXPORTS = {"adapter": (), "merged": ("--merged",)}
"""Ways to export: what they are called, options."""


# -- checkpoints: their tensors, and the paths in them ------------------------------------------------


def place(folder: Path, old: str, new: str) -> None:
    """Write every checkpoint below ``folder`` anew, with paths that begin with ``old`` beginning with ``new``."""
    for path in folder.rglob("*.ckpt"):
        content = torch.load(path, map_location="cpu", weights_only=True)
        torch.save(_replaced(content, old, new), path)


def _replaced(value: Any, old: str, new: str) -> Any:
    if isinstance(value, str):
        return new + value.removeprefix(old) if value.startswith(old) else value
    if isinstance(value, dict):
        return type(value)((_replaced(k, old, new), _replaced(v, old, new)) for k, v in value.items())
    if isinstance(value, list):
        return [_replaced(one, old, new) for one in value]
    return value


def trained(checkpoint: Path) -> dict[str, Tensor]:
    """The tensors that training changed, by their names in the adapter file."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    return {name.removeprefix("backbone."): tensor for name, tensor in content["state_dict"].items()}


def optimizer_states(checkpoint: Path) -> dict[str, Tensor]:
    """The optimizer's tensors, by the index of their parameter."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    (optimizer,) = content["optimizer_states"]
    return {
        f"{index} {name}": tensor
        for index, state in optimizer["state"].items()
        for name, tensor in state.items()
        if isinstance(tensor, Tensor)
    }


def history_of(values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The epochs of a record or a checkpoint without what a clock has measured."""
    return [{name: value for name, value in row.items() if name != "train_seconds"} for row in values]


# -- making them ---------------------------------------------------------------------------------------


def make() -> None:
    """Write the folder ``runs``; the current one is scratch."""
    here = Path.cwd().resolve()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    import peft  # noqa: F401  once, and not in every child

    write_data(here)
    write_sweep(here)
    Path("killed").mkdir()
    goldens: dict[str, Any] = {"machine": machine(), "random_numbers": random_numbers(), "cases": {}}
    for case in sorted(CASES, key=lambda name: (name == "import", name in NEEDS, name)):
        goldens["cases"][case] = _made(case)
        if case == "lora":
            _require(_in_child("export", str(run_of("lora")), "--to", "adapter"), "adapter")
            (Path("adapter") / "README.md").unlink()  # says where the run lay
    _require(_in_child("sweep", "small.yaml", "--jobs", "1"), "sweep")
    shutil.rmtree(RUNS, ignore_errors=True)
    for source, target in (("outputs/small", "sweep/small"), ("killed", "killed"), ("adapter", "adapter")):
        _keep(Path(source), RUNS / target, checkpoints=source == "killed")
    for case in CASES:
        _keep(Path("outputs") / case, RUNS / "finished" / case)
    shutil.copy("small.yaml", RUNS / "sweep/small.yaml")
    place(RUNS, str(here), SOMEWHERE)
    for record in RUNS.rglob("record.json"):  # the kernel's name is nobody's business
        folder = RunFolder(record.parent)
        content = folder.read_record()
        assert content is not None
        folder.write_record(content | {"hardware": content["hardware"] | {"platform": "Linux"}})
    goldens["cases"] = dict(sorted(goldens["cases"].items()))
    GOLDENS.write_text(_a_line_a_case(goldens), encoding="utf-8")
    for file in RUNS.rglob("*"):
        assert file.is_dir() or str(here).encode() not in file.read_bytes(), f"{file} names this folder"
    print(f"{RUNS}: {len(CASES)} runs, {sum(f.stat().st_size for f in RUNS.rglob('*') if f.is_file()):,} bytes")


def _a_line_a_case(goldens: dict[str, Any]) -> str:
    cases = ",\n".join(f"{json.dumps(case)}: {json.dumps(one)}" for case, one in goldens["cases"].items())
    head = ",\n".join(f"{json.dumps(name)}: {json.dumps(one)}" for name, one in goldens.items() if name != "cases")
    return f'{{{head},\n"cases": {{\n{cases}\n}}}}\n'


def run_of(case: str, below: str = "outputs") -> Path:
    """The folder of a case's only run."""
    (run,) = (path for path in (Path(below) / case).iterdir() if path.is_dir())
    return run


def _made(case: str) -> dict[str, Any]:
    given = arguments(case, run_of)
    assert _in_child("train", *given, kill=True)[0] == -signal.SIGKILL
    shutil.move(Path("outputs") / case, Path("killed") / case)
    _require(_in_child("train", *given), case)
    out = _require(_in_child("predict", *predict_arguments(case, run_of(case))), case)
    golden: dict[str, Any] = {"arguments": given, "predictions": predicted(out), "exports": {}}
    for name, options in EXPORTS.items():
        to = f"exported/{name}/{case}"
        status, _ = _in_child("export", str(run_of(case)), "--to", to, *options, *task_arguments(case))
        if status == 0:
            golden["exports"][name] = exported(Path(to))
    print(f"{case}: {run_of(case).name}, exports {list(golden['exports'])}", flush=True)
    return golden


def _in_child(*call: str, kill: bool = False) -> tuple[int, str]:
    """Exit status and output of ``peftlab`` in a process of its own, which has imported everything already."""
    out = Path("out.txt")
    child = os.fork()
    if child == 0:
        status = 70
        try:
            if kill:
                _kill_as_the_second_epoch_begins()
            with redirect_stdout(StringIO()) as printed:
                status = main(call)
            out.write_text(printed.getvalue(), encoding="utf-8")
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), out.read_text(encoding="utf-8") if out.exists() else ""


def _kill_as_the_second_epoch_begins() -> None:
    from peftlab.training.module import TrainingModule

    begin = TrainingModule.on_train_epoch_start

    def begin_or_die(module: TrainingModule) -> None:
        if module.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        begin(module)

    TrainingModule.on_train_epoch_start = begin_or_die  # type: ignore[method-assign]


def _require(done: tuple[int, str], what: str) -> str:
    status, out = done
    assert status == 0, f"{what}: exit status {status}\n{out}"
    return out


def _keep(source: Path, target: Path, *, checkpoints: bool = False) -> None:
    """Copy what a golden keeps; ``checkpoints``: best.ckpt too, which a killed run goes on with."""

    def left_out(folder: str, names: Sequence[str]) -> set[str]:
        left = {name for name in names if name.endswith((".png", ".lock")) or name in ("logs", ".logs")}
        return left if checkpoints else left | ({"best.ckpt"} & {*names})

    shutil.copytree(source, target, ignore=left_out)
