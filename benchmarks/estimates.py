"""What ``peftlab estimate --shapes`` says of a run's memory on a CPU, beside what the run then takes.

    python benchmarks/estimates.py [--only lora,full] [--out FILE]

Both are processes of their own: the estimate loads no weights; the run trains two steps, validates and tests, and its
record says the largest resident memory of the process (``memory.peak_mib``). Estimated are the process without a model,
weights, gradients, states of the optimizer, activations, and what the allocator keeps beside.
Needs ``pip install 'peftlab[offline]'``. Fails if one is off by more than a fifth.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peftlab.report.render.terminal import console, print_table
from peftlab.report.table import Head, plain_table

CLOSE = 0.2
TEXTS = ("data=imdb_packaged", "backbone=minilm", "data.max_length=256", "data.batch_size=32", "data.limit_train=64")
"""Of the reviews drawn, each batch of 32 has one of 256 tokens or more."""
LLAMA = (
    "{model_type:llama,vocab_size:8192,hidden_size:512,num_hidden_layers:8,intermediate_size:1376,"
    "num_attention_heads:8,max_position_embeddings:512}"
)
LANGUAGE = (
    "data=instructions", "data.train=ROWS", "data.chat_template=none", "data.batch_size=16", "data.max_length=256",
    "backbone=tiny", "~backbone.architecture", f"+backbone.architecture={LLAMA}", "data.limit_train=32",
    "backbone.gradient_checkpointing=false",
)  # fmt: skip
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "lora": ("MiniLM, LoRA", (*TEXTS, "peft=lora")),
    "full": ("MiniLM, full fine-tuning", (*TEXTS, "peft=full", "optim.lr=2e-5")),
    "dora": ("MiniLM, DoRA", (*TEXTS, "peft=dora")),
    "nf4": ("MiniLM, LoRA on 4 bits", (*TEXTS, "peft=lora", "backbone.quantize=nf4")),
    "checkpointing": (
        "MiniLM, LoRA, blocks computed twice",
        (*TEXTS, "peft=lora", "backbone.gradient_checkpointing=true"),
    ),
    "head": (
        "MiniLM, head, the frozen part computed once",
        (*TEXTS, "peft=head", "backbone.cache_frozen=true"),
    ),
    "llama": ("Llama of 8 blocks of 512, LoRA on instructions", (*LANGUAGE, "peft=lora")),
}
SHORT = (
    "trainer.accelerator=cpu", "trainer.max_epochs=1", "trainer.max_steps=2", "data.limit_val=32", "data.limit_test=32",
    "logger=none", "trainer.progress_bar=false",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default=",".join(CASES), help="names, separated by commas")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        rows = write_rows(Path(folder) / "rows.jsonl")
        for name in given.only.split(","):
            title, words = CASES[name]
            words = (*(word.replace("ROWS", str(rows)) for word in words), *SHORT, f"output_dir={folder}/runs")
            found[name] = one(title, words, Path(folder) / name)
            print(json.dumps({name: found[name]}), flush=True)
    heads = [Head(""), *(Head(name, number=True) for name in (*PARTS, "ratio"))]
    lines = [
        [facts["title"], *(f"{facts[name]:,.0f}" for name in PARTS), f"{facts['ratio']:.2f}"]
        for facts in found.values()
    ]
    print_table(console(), plain_table(heads, lines))
    print("MiB; estimated from shapes, measured: the largest resident memory of the run's process")
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if off := [name for name, facts in found.items() if abs(facts["ratio"] - 1) > CLOSE]:
        raise SystemExit(f"off by more than {CLOSE:.0%}: {', '.join(off)}")


PARTS = ("process", "weights", "trains", "activations", "allocator", "estimated", "measured")


def one(title: str, words: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Estimate and train one configuration.

    Args:
        title: of its row.
        words: as for ``peftlab train``.
        folder: for caches, so that nothing is found that an earlier run has computed.
    """
    memory = json.loads(peftlab("estimate", *words, "--shapes", "--json", cache=folder))["memory"]
    peftlab("train", f"name={folder.name}", *words, cache=folder)
    (record,) = folder.parent.glob(f"runs/{folder.name}/*/record.json")
    measured = json.loads(record.read_text(encoding="utf-8"))["memory"]["peak_mib"]
    estimated = memory["on_cpu"]
    return {
        "title": title,
        "process": memory["process"],
        "weights": memory["weights"],
        "trains": memory["gradients"] + memory["optimizer"],
        "activations": memory["activations"],
        "evaluation": memory["evaluation"],
        "allocator": memory["allocator"],
        "estimated": estimated,
        "measured": measured,
        "ratio": estimated / measured,
    }


def peftlab(*words: str, cache: Path) -> str:
    """The output of one command, in a process of its own.

    Raises:
        SystemExit: if it fails, with what it said.
    """
    given = os.environ | {"PEFTLAB_CACHE": str(cache)}
    done = subprocess.run([sys.executable, "-m", "peftlab", *words], capture_output=True, text=True, env=given)
    if done.returncode:
        raise SystemExit(f"peftlab {' '.join(words)}: {done.stderr}")
    return done.stdout


def write_rows(file: Path) -> Path:
    """Instructions of about 250 bytes, which are as many tokens for the tiny tokenizer."""
    dice = random.Random(0)
    with file.open("w", encoding="utf-8") as out:
        for _ in range(600):
            asked, said = ("".join(dice.choices("abcdefgh ", k=length)) for length in (dice.randint(80, 160), 100))
            out.write(json.dumps({"prompt": asked, "response": said}) + "\n")
    return file


if __name__ == "__main__":
    main()
