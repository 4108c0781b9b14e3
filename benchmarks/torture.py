"""Kill runs with SIGKILL at random points, start them again until they are finished, and compare with undisturbed ones.

    python benchmarks/torture.py [--rounds 1] [--seed 0] [--only lora,ddp]

Each case is killed in a step, while a checkpoint is written, in validation, between epochs, and twice in one epoch, in
random order, and in the test. Adapter, metrics, selection and history must be the same to the bit, and no kill may cost
more than the interval between two checkpoints; the exit status says so. A round takes about 15 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peftlab.cli import main as peftlab
from peftlab.runs import train  # noqa: F401  the imports that take seconds, once for all runs
from peftlab.runs.epochs import WritesEpochs
from peftlab.training import checkpoint
from peftlab.training.module import TrainingModule
from peftlab.training.places import place_of, step_checkpoints

THIS = str(Path(__file__).resolve())
INTERVAL = 2
"""Optimizer steps between two checkpoints."""
ROWS, EPOCHS, BATCH = 120, 5, 8
COMMON = (
    "backbone=tiny", "logger=csv", "data=text_files", "data.path=rows.csv", "data.max_length=48",
    "data.eval_batch_size=4", f"data.batch_size={BATCH}", f"trainer.max_epochs={EPOCHS}", "trainer.threads=1",
    "trainer.accelerator=cpu", "trainer.progress_bar=false", "optim.lr=1e-2", "backbone.dropout=0.1",
    f"trainer.checkpoint_every_n_steps={INTERVAL}",
)  # fmt: skip
TWO = ("trainer.devices=2", f"data.batch_size={BATCH // 2}")
CASES: dict[str, tuple[str, ...]] = {
    "lora": ("peft=lora", "peft.dropout=0.2", "schedule=cosine"),
    "dora": ("peft=dora", "peft.dropout=0.1"),
    "prefix": ("peft=prefix_tuning", "peft.length=4"),
    "adalora": ("peft=adalora", "peft.rank=2", "peft.initial_rank=4", "peft.interval=2"),
    "compose": ("peft=compose", "peft.methods=[{name: lora, dropout: 0.1},{name: prefix_tuning}]"),
    "nf4": ("peft=lora", "peft.dropout=0.1", "backbone.quantize=nf4"),
    "accumulation": ("peft=lora", "peft.dropout=0.2", "trainer.accumulate_grad_batches=3"),
    "early stopping": (
        "peft=lora",
        "trainer.early_stopping_patience=1",
        "trainer.monitor=loss",
        "trainer.max_epochs=30",
        "optim.lr=5e-2",
    ),
    "validations": ("peft=lora", "peft.dropout=0.2", "trainer.validate_every_n_steps=3", "trainer.monitor=loss"),
    "stopping inside": (
        "peft=adalora",
        "trainer.validate_every_n_steps=2",
        "trainer.accumulate_grad_batches=3",
        "trainer.early_stopping_patience=2",
        "trainer.monitor=loss",
        "trainer.max_epochs=30",
        "optim.lr=5e-2",
    ),
    "ddp": ("peft=lora", "peft.dropout=0.2", *TWO),
    "ddp validations": ("peft=lora", "peft.dropout=0.2", "trainer.validate_every_n_steps=3", *TWO),
    "fsdp": ("peft=lora", "peft.dropout=0.2", "backbone.quantize=nf4", "trainer.strategy=fsdp", *TWO),
}
KINDS = ("step", "write", "validation", "between", "twice", "twice")
MOST = {"step": 9, "write": 4, "validation": 3, "between": 1, "twice": 2, "end": 1}
"""At which of these events of an attempt a process dies: at most."""


def main() -> int:
    if sys.argv[1:2] == ["--victim"]:
        kind, number, *words = sys.argv[2:]
        return victim(kind, int(number), words)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(CASES))
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    rounds, kills, same = 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_rows(Path("rows.csv"))
        for case in given.only.split(","):
            assert attempt(case, "undisturbed", "", 0) == 0, f"{case} fails undisturbed"
            expected = outcome("undisturbed", case)
            for number in range(given.rounds):
                killed, lost, most = torture(case, f"round{number}", random.Random(f"{given.seed} {case} {number}"))
                equal = outcome(f"round{number}", case) == expected and lost <= most
                rounds, kills, same = rounds + 1, kills + len(killed), same + equal
                said = "the same bits" if equal else "DIFFERENT"
                print(f"{case}: killed in {', '.join(killed)}; lost {lost} batches of {most}: {said}", flush=True)
    print(f"{kills} kills; {same} of {rounds} runs ended as the undisturbed one")
    return 0 if same == rounds else 1


def torture(case: str, place: str, moments: random.Random) -> tuple[list[str], int, int]:
    """Kill a run until all kinds are through, and let it end; the kinds, and the most batches that a kill has cost."""
    kinds = [kind for kind in KINDS if kind != "twice"]
    kinds.insert(moments.randint(0, len(kinds)), "twice")
    plan = [one for kind in moments.sample(kinds, len(kinds)) for one in ([kind, kind] if kind == "twice" else [kind])]
    plan.append("end")
    accumulated = 3 if "trainer.accumulate_grad_batches=3" in CASES[case] else 1
    killed, lost = [], 0
    for kind in plan:
        Path("done").write_text(str(resumes_at(place)))
        status = attempt(case, place, kind, moments.randint(1, MOST[kind]))
        if status == 0:
            break
        assert status == -signal.SIGKILL, f"{case} failed with status {status}: {Path('log').read_text()[-2000:]}"
        killed.append(kind)
        lost = max(lost, int(Path("done").read_text()) - resumes_at(place))
    else:
        assert attempt(case, place, "", 0) == 0, Path("log").read_text()[-2000:]
    return killed, lost, INTERVAL * accumulated


def attempt(case: str, place: str, kind: str, number: int) -> int:
    """Start a run; its exit status, negative for a signal."""
    words = ["train", *COMMON, *CASES[case], f"name={case.replace(' ', '_')}", f"output_dir={place}"]
    if "trainer.devices=2" in CASES[case]:
        command = [sys.executable, THIS, "--victim", kind, str(number), *words]
        with Path("log").open("wb") as log:
            return subprocess.run(command, stdout=log, stderr=log, check=False, timeout=300).returncode
    if (child := os.fork()) == 0:
        with Path("log").open("wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os._exit(victim(kind, number, words))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def victim(kind: str, number: int, words: list[str]) -> int:
    """Run ``words``, and die at event ``number`` of ``kind``; what is done is in the file ``done``."""
    at: dict[str, tuple[Any, str]] = {
        "step": (TrainingModule, "training_step"),
        "twice": (TrainingModule, "training_step"),
        "write": (checkpoint, "_seal"),
        "validation": (TrainingModule, "validation_step"),
        "between": (WritesEpochs, "on_train_epoch_start"),
        "end": (TrainingModule, "on_test_epoch_end"),
    }
    if os.environ.get("LOCAL_RANK", "0") == "0":
        ends = TrainingModule.on_train_batch_end

        def count(self: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            done = self.current_epoch * int(self.trainer.num_training_batches) + batch_idx + 1
            Path("done").write_text(str(done))
            ends(self, outputs, batch, batch_idx)

        TrainingModule.on_train_batch_end = count  # type: ignore[method-assign]
        if kind:
            owner, name = at[kind]
            setattr(owner, name, dying(getattr(owner, name), number + (kind == "between")))
    return peftlab(words)


def dying(method: Callable[..., Any], number: int) -> Callable[..., Any]:
    """``method``, which ends its process when it is called for the ``number``-th time."""
    left = iter(range(number - 1, -1, -1))

    @functools.wraps(method)
    def call(*given: Any, **more: Any) -> Any:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        return method(*given, **more)

    return call


def resumes_at(place: str) -> int:
    """Batches that are done where the run in ``place`` goes on from."""
    (folder,) = [*Path(place).glob("*/*/checkpoints")] or [Path("none")]
    paths = [*step_checkpoints(folder), *folder.glob("last.ckpt")]
    batches = -(-ROWS_TRAINED // BATCH)
    places = [place_of(checkpoint.read_checkpoint(path)) for path in paths]
    return max((one.epoch * batches + one.batches for one in places), default=0)


ROWS_TRAINED = 86
"""Of 120: a fifth is held out as test, and a tenth of the rest as validation."""


def write_rows(path: Path) -> None:
    words = random.Random(1)
    lines = ["text,label"]
    for row in range(ROWS):
        kind = ("bad poor dull", "good great fine")[row % 2].split()
        said = [f"w{words.randrange(99)}" for _ in range(words.randint(1, 9))] + words.choices(kind, k=2)
        lines.append(f"r{row} {' '.join(said)},{('neg', 'pos')[row % 2]}")
    path.write_text("\n".join(lines) + "\n")


def outcome(place: str, case: str) -> tuple[Any, ...]:
    (record,) = Path(place, case.replace(" ", "_")).glob("*/record.json")
    facts = json.loads(record.read_text())
    history = [{key: value for key, value in row.items() if key != "train_seconds"} for row in facts["history"]]
    return (record.parent / "adapter.safetensors").read_bytes(), facts["metrics"], facts["selection"], history


if __name__ == "__main__":
    sys.exit(main())
