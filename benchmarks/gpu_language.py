"""Instructions on one GPU, side by side with TRL's SFTTrainer + HF peft: LoRA on all linear layers of nf4 weights.

    python benchmarks/gpu_language.py [--instructions FILE] [--rows 512] [--rounds 1] [--minutes 1.8] [--tiny]
                                      [--sides packed,padded,peer] [--tokenizer FOLDER] [--out FILE]

A Llama type of 1 billion random parameters in nf4 and bf16, instructions of 20 to 100 generated words (or those of a
csv or jsonl with prompt and response), loss on the responses. Each side is a process of its own
(:mod:`language_sides`): ``padded`` and ``packed`` are peftlab, ``mixed`` is it without grouping by length; ``peer`` is
TRL, ``peer-trainer``, which takes its place where it fails, transformers.Trainer, ``peer-checkpointing`` TRL with the
gradient checkpointing of its defaults. They train in turns; after each a line of JSON has what is known: ``tokens_s``
of the last epoch, losses of the ``first`` and ``last`` step, ``ratio`` of tokens/s to a peer's, and in ``equal``
where a side did other work: ``padded`` and a peer take the same steps, ``packed`` and ``mixed`` the same rows in
another order. ``--tiny`` rehearses everything in small on the CPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu import LLAMA, TINY, Process, packaged_tokenizer, speed

SHOWN = ("peak_mib", "steps", "tokens", "targets", "places", "trainable", "trainer", "total_s")
ROLES = "query,key,value,attention_output,ffn_up,ffn_gate,ffn_down"
TEMPLATE = "{% for m in messages %}{{ m['content'] + '[SEP]' }}{% endfor %}"
"""WordPiece has no end of text; its separator ends what is asked and what is said."""
WORDS = ["time", "person", "year", "way", "day", "thing", "man", "world", "life", "hand", "part", "child", "eye"]


def main() -> None:
    given = _arguments()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = given.instructions or generated(Path(folder) / "instructions.jsonl", given.rows)
        rounds = Rounds(given.sides.split(","), words_of(file, given))
        try:
            for _ in range(given.rounds):
                for side in list(rounds.sides):
                    if time.monotonic() - began < 60 * given.minutes:
                        _say(rounds.turn(side), given.out)
        finally:
            rounds.close()


class Rounds:
    """The sides, each a process, and what they have said."""

    def __init__(self, sides: list[str], words: list[str]) -> None:
        self.words = words
        self.sides = {side: self._side(side) for side in sides}
        self.found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        self.errors: dict[str, str] = {}

    def _side(self, side: str) -> Process:
        return Process(side, self.words, "language_sides.py")

    def turn(self, side: str) -> dict[str, Any]:
        """``side`` trains, and another one in its place if it fails; all that is known then."""
        if side not in self.errors:
            answer = self.sides[side].once()
            if "error" not in answer:
                self.found[side].append(answer)
            else:
                self.errors[side] = answer["error"]
                if side == "peer":
                    self.sides["peer-trainer"], self.found["peer-trainer"] = self._side("peer-trainer"), []
        if side == "peer" and side in self.errors:
            return self.turn("peer-trainer")
        return known(self.found) | ({"errors": self.errors} if self.errors else {})

    def close(self) -> None:
        """End the processes."""
        for process in self.sides.values():
            process.close()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--instructions", type=Path, help="csv or jsonl with the columns prompt and response")
    parser.add_argument("--rows", type=int, default=512, help="training rows")
    parser.add_argument("--sides", default="packed,padded,peer")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1.8, help="no side begins later")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--tokenizer", help="folder; by default the packaged MiniLM's")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def generated(file: Path, rows: int) -> Path:
    """Instructions of 20 to 100 words, a fifth of them the response; enough of them to hold some out."""
    dice = random.Random(0)
    with file.open("w", encoding="utf-8") as out:
        for _ in range(2 * rows + 200):
            words = dice.choices(WORDS, k=dice.randint(20, 100))
            said = len(words) // 5
            row = {"prompt": " ".join(words[said:]), "response": " ".join(words[:said])}
            out.write(json.dumps(row) + "\n")
    return file


def words_of(file: Path, given: argparse.Namespace) -> list[str]:
    """The config of both sides, as one types it."""
    architecture: dict[str, Any] = LLAMA | ((TINY | {"num_key_value_heads": 2}) if given.tiny else {})
    written = ",".join(f"{key}:{value}" for key, value in architecture.items())
    words = [
        "data=instructions", f"data.train={file}", f"data.chat_template={json.dumps(TEMPLATE)}",
        "data.holdout_fraction=0.1", "data.val_fraction=0.1", f"data.limit_train={given.rows}", "data.limit_val=16",
        "data.limit_test=16", "data.max_length=256", "data.batch_size=16", "backbone=tiny", "~backbone.architecture",
        f"+backbone.architecture={{{written}}}", f"backbone.tokenizer={given.tokenizer or packaged_tokenizer()}",
        "backbone.quantize=nf4", "backbone.dtype=bfloat16", "peft=lora", f"peft.targets=[{ROLES}]", "optim.lr=2e-4",
        "schedule.warmup_fraction=0", "logger=none", "trainer=gpu", "trainer.max_epochs=2",
        "trainer.progress_bar=false", "trainer.checkpoint_every_minutes=null",
    ]  # fmt: skip
    if given.tiny:
        words += ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.threads=1"]
    return words


def known(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What the sides have said so far."""
    line: dict[str, Any] = {}
    for side, runs in found.items():
        if not runs:
            continue
        last = runs[-1]
        rows_s = statistics.median(speed(run, last=True) for run in runs)
        a_row = {key: last[key] / sum(last["rows"]) for key in ("tokens", "targets")}
        line[side] = {
            "tokens_s": round(rows_s * a_row["tokens"], 1), "targets_s": round(rows_s * a_row["targets"], 1),
            "rounds": len(runs), "first": round(last["losses"][0], 4), "last": round(last["losses"][-1], 4),
            **{key: last[key] for key in SHOWN if key in last},
        }  # fmt: skip
    peers = [side for side in line if side.startswith("peer")]
    for side, peer in itertools.product(("packed", "padded", "mixed"), peers):
        if side in line:
            pairs = list(zip(found[side], found[peer], strict=False))
            ratios = [speed(a, last=True) / speed(b, last=True) for a, b in pairs]
            line[f"ratio {side} {peer}"] = [
                round(one, 2) for one in (statistics.median(ratios), min(ratios), max(ratios))
            ]
            line[f"equal {side} {peer}"] = _differences(found[side][-1], found[peer][-1], steps=side == "padded")
    for side in ("padded", "mixed"):
        if "packed" in line and side in line:
            line[f"packed over {side}"] = round(line["packed"]["tokens_s"] / line[side]["tokens_s"], 2)
    return line


def _differences(ours: dict[str, Any], theirs: dict[str, Any], *, steps: bool) -> str:
    """Where two sides have done other work, and how far their losses are apart where they took the same steps."""
    keys = ("steps", "tokens", "targets", "trainable")
    other = [f"{key} {ours[key]} and {theirs[key]}" for key in keys if ours[key] != theirs[key]]
    said = "; ".join(other) or "steps, tokens, targets, trainable parameters"
    if not steps:
        return said
    apart = [abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=False)]
    return f"{said}; losses apart by {apart[0]:.1e} at the first step, at most {max(apart):.1e}"


def _say(line: dict[str, Any], out: Path | None) -> None:
    written = json.dumps(line)
    print(written, flush=True)
    if out is not None:
        with out.open("a", encoding="utf-8") as file:
            file.write(written + "\n")


if __name__ == "__main__":
    main()
