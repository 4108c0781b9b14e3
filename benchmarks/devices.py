"""Two and three processes, with the model whole in each (DDP) or its frozen weights cut (FSDP2), beside one process.

    python benchmarks/devices.py [--only lora,dora] [--out FILE.json]

Each method trains 20 optimizer steps on 12 rows a step, of 73 that do not divide; the loss of every step, over all its
rows, and the weights at the end are compared with those of one process, without dropout. Then 25,000 and 24,999 rows
are tested. Prints tables in Markdown; the exit status says whether all is within 1e-6 (SGD) and 1e-5 (AdamW). Minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

METHODS: dict[str, tuple[str, ...]] = {
    "lora": ("peft=lora",),
    "dora": ("peft=dora",),
    "adapter (pfeiffer)": ("peft=pfeiffer",),
    "prefix": ("peft=prefix_tuning", "peft.length=4"),
    "prompt": ("peft=prompt_tuning", "peft.length=4"),
    "adalora": ("peft=adalora", "peft.rank=2", "peft.initial_rank=4", "peft.interval=2"),
    "qlora (nf4)": ("peft=lora", "backbone.quantize=nf4"),
    "dynamic_dora": ("peft=dynamic_dora", "peft.rank=2", "peft.initial_rank=4", "peft.interval=2"),
    "houlsby": ("peft=houlsby",),
    "parallel_adapter": ("peft=parallel_adapter",),
    "ia3": ("peft=ia3",),
    "vera": ("peft=vera",),
    "p_tuning_v2": ("peft=p_tuning_v2", "peft.length=4"),
    "compose (lora + bitfit)": ("peft=compose", "peft.methods=[{name: lora, rank: 4}, bitfit]"),
    "bitfit": ("peft=bitfit",),
    "layernorm": ("peft=layernorm",),
    "hf_peft (OFT)": ("peft=hf_peft",),
    "head": ("peft=head",),
    "lora (global batch)": ("peft=lora", "data.global_batch_size=12", "data.batch_size=3"),
}
OPTIMIZERS = {"sgd": ("optim=sgd", "optim.lr=0.1"), "adamw": ("optim=adamw", "optim.lr=1e-3")}
WITHIN = {"sgd": 1e-6, "adamw": 1e-5}
PLACES = ((1, "auto"), (2, "ddp"), (2, "fsdp"), (3, "ddp"), (3, "fsdp"))
ROWS_A_STEP, STEPS = 12, 20
TESTED = (25_000, 24_999)
TRAINED_ON = 94
"""Rows, of which 73 are left for training: the last of an epoch's 7 steps has one."""
COMMON = (
    "backbone=tiny", "backbone.dropout=0", "backbone.attention_dropout=0", "logger=none", "data=text_files",
    "data.val_fraction=0.03", "data.eval_batch_size=32", "schedule=constant", "trainer.max_epochs=4",
    f"trainer.max_steps={STEPS}", "trainer.accelerator=cpu", "trainer.threads=1", "trainer.progress_bar=false",
)  # fmt: skip


def main() -> int:
    if sys.argv[1:2] == ["--rank"]:
        return rank(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default=",".join(METHODS))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_rows(Path("rows.csv"), TRAINED_ON)
        for rows in TESTED:
            write_rows(Path(f"test_{rows}.csv"), rows)
        found = {place: started(*place, given.only) for place in PLACES}
    said = [line for optimizer in OPTIMIZERS for line in training_table(found, optimizer)] + test_table(found)
    print("\n".join(said))
    if given.out:
        given.out.write_text(json.dumps({f"{count} {how}": one for (count, how), one in found.items()}) + "\n")
    return 1 if any("**" in line for line in said) else 0


def started(count: int, strategy: str, only: str) -> dict[str, Any]:
    """What so many processes come to, by ``METHOD OPTIMIZER`` and number of test rows."""
    out = Path(f"{count}_{strategy}.json").resolve()
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}",
        str(Path(__file__).resolve()), "--rank", strategy, str(out), only,
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=1800, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        raise SystemExit(f"{count} processes, {strategy}: {(done.stdout + done.stderr)[-4000:]}")
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def rank(strategy: str, out: str, only: str) -> int:
    """One of the processes: all trainings and tests, one behind the other."""
    world = int(os.environ["WORLD_SIZE"])
    words = [*COMMON, f"trainer.devices={world}", f"trainer.strategy={strategy}"]
    found: dict[str, Any] = {}
    with silent():
        for method in only.split(","):
            for name, optimizer in OPTIMIZERS.items():
                more = ["data.path=rows.csv", "data.max_length=32", f"data.batch_size={ROWS_A_STEP // world}"]
                found[f"{method} {name}"] = trained([*words, *more, *without_dropout(METHODS[method]), *optimizer])
        for rows in TESTED:
            more = ["data.train=rows.csv", f"data.test=test_{rows}.csv", "data.max_length=10", "peft=lora"]
            found[str(rows)] = tested([*words, *more])
    if os.environ["RANK"] == "0":
        Path(out).write_text(json.dumps(found))
    return 0


@contextlib.contextmanager
def silent() -> Iterator[None]:
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def without_dropout(words: tuple[str, ...]) -> list[str]:
    from peftlab.composition import composed

    has = "dropout" in composed([words[0]]).peft
    return [*words, "peft.dropout=0"] if has else list(words)


def write_rows(path: Path, rows: int) -> None:
    generator = random.Random(7)
    words = (("dull", "empty", "awful", "boring"), ("fine", "moving", "great", "superb"))
    lines = ["text,label"]
    for number in range(rows):
        text = " ".join(generator.choice(words[number % 2]) for _ in range(generator.randint(2, 6)))
        lines.append(f"{number} {text},{('bad', 'good')[number % 2]}")
    path.write_text("\n".join(lines) + "\n")


class Losses(Callback):
    """Of each step, over the rows of all its batches in all processes."""

    def __init__(self) -> None:
        self.found: list[float] = []
        self._of_step: list[float] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        batches = trainer.accumulate_grad_batches
        # each is weighted by its rows beside those of the step's first batch, and divided by the batches
        mean: Any = trainer.strategy.reduce(outputs["loss"].clone() * batches, reduce_op="mean")
        self._of_step.append(float(mean))
        if len(self._of_step) == batches:
            loader: Any = trainer.train_dataloader
            sizes = loader.batch_sampler.sizes(trainer.current_epoch)[batch_idx + 1 - batches : batch_idx + 1]
            self.found.append(sum(self._of_step) * sizes[0] / sum(sizes))
            self._of_step = []


class Parts:
    """A run's parts, as :mod:`peftlab.runs.train` puts them together, without its folder and record."""

    def __init__(self, words: list[str]) -> None:
        from peftlab.composition import composed
        from peftlab.config import check
        from peftlab.data.module import TextDataModule
        from peftlab.runs.assemble import assemble, lightning_module
        from peftlab.runs.batches import batches_a_step
        from peftlab.training.ranks import Ranks
        from peftlab.training.selection import monitored
        from peftlab.training.trainer import build_trainer

        config = check(composed(words))
        self.splits = config.data.load()
        self.assembled = assemble(config, self.splits)
        self.module = lightning_module(config, self.assembled, self.splits)
        self.data = TextDataModule(config.data, self.splits, self.assembled.backbone.tokenizer, config.seed)
        alone = config.trainer.devices == 1
        self.trainer = build_trainer(
            replace(config.trainer, accumulate_grad_batches=batches_a_step(config)),
            monitored(config.trainer, self.module.objective),
            folder=Path("run"),
            checkpoints=Path("run"),
            logger=None,
            rows_per_step=1,
            ranks=Ranks() if alone else Ranks.here(),
            adapter=self.assembled.adapter,
        )


def trained(words: list[str]) -> dict[str, Any]:
    from peftlab.training.sharding import ShardedStrategy

    parts, losses = Parts(words), Losses()
    assert len(parts.splits.train) % ROWS_A_STEP == 1
    parts.trainer.callbacks.append(losses)  # type: ignore[attr-defined]
    parts.trainer.fit(parts.module, parts.data)
    strategy = parts.trainer.strategy
    assert not isinstance(strategy, ShardedStrategy) or strategy.unchanged(), "frozen weights have changed"
    tensors = parts.assembled.adapter.state_dict()
    return {"losses": losses.found, "weights": {name: tensor.flatten().tolist() for name, tensor in tensors.items()}}


def tested(words: list[str]) -> dict[str, Any]:
    parts = Parts(words)
    parts.trainer.test(parts.module, parts.data, verbose=False)
    figures, outputs = parts.module.test_metrics, parts.module.test_outputs
    rows = {name: figures[name] for name in ("rows", "accuracy", "loss")}
    return rows | {"outputs": outputs.flatten().tolist()} if os.environ["RANK"] == "0" else rows


def training_table(found: dict[tuple[int, str], dict[str, Any]], optimizer: str) -> list[str]:
    """A row a method: the largest difference of a step's loss, and of a weight, from one process."""
    heads = [f"{how.upper()} {count}" for count, how in PLACES[1:]]
    within = WITHIN[optimizer]
    lines = [f"\n{optimizer}: largest difference of a step's loss / of a weight (losses within {within:g})\n"]
    lines += [f"| method | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for key, one in found[PLACES[0]].items():
        if key.endswith(f" {optimizer}"):
            cells = [compared(one, found[place][key], within) for place in PLACES[1:]]
            lines.append(f"| {key.removesuffix(f' {optimizer}')} | {' | '.join(cells)} |")
    return lines


def compared(one: dict[str, Any], other: dict[str, Any], within: float) -> str:
    assert len(one["losses"]) == len(other["losses"]) == STEPS
    assert one["weights"].keys() == other["weights"].keys()
    loss = largest(one["losses"], other["losses"])
    weight = max(largest(values, other["weights"][name]) for name, values in one["weights"].items())
    said = f"{loss:.1e} / {weight:.1e}"
    if kept(one) != kept(other):
        said += " (keep other components)"
    return said if loss <= within else f"**{said}**"


def largest(mine: list[float], theirs: list[float]) -> float:
    difference = (torch.tensor(mine, dtype=torch.float64) - torch.tensor(theirs, dtype=torch.float64)).abs()
    return float(difference.max()) if len(mine) else 0.0


def kept(one: dict[str, Any]) -> dict[str, list[bool]]:
    """Which components of a method with a budget are not zero."""
    return {name: [v != 0 for v in values] for name, values in one["weights"].items() if name.endswith("diagonal")}


def test_table(found: dict[tuple[int, str], dict[str, Any]]) -> list[str]:
    """A row a number of test rows: how many were counted, and the largest difference of an output."""
    lines = ["\nTest rows counted, and the largest difference of an output\n"]
    lines += [f"| rows | {' | '.join(f'{how.upper()} {count}' for count, how in PLACES)} |"]
    lines += [f"| ---: |{' ---: |' * len(PLACES)}"]
    for rows in TESTED:
        one, cells = found[PLACES[0]][str(rows)], []
        for place in PLACES:
            other = found[place][str(rows)]
            difference = largest(one["outputs"], other["outputs"])
            right = other["rows"] == rows and other["accuracy"] == one["accuracy"] and difference < 1e-6
            cell = f"{other['rows']:,}: {difference:.1e}"
            cells.append(cell if right else f"**{cell}**")
        lines.append(f"| {rows:,} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
