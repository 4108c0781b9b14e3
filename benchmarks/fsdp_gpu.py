"""FSDP2 beside DDP on one GPU: a random Llama of 1 billion weights, in bf16 and in nf4; that it works, and its memory.

    python benchmarks/fsdp_gpu.py [--out FILE.json] [--size 1b|tiny] [--accelerator gpu|cpu] [--at-once]

With one rank every weight is in one part: what is compared are the numbers, which must be those of DDP, and what
gathering and cutting a layer at a time costs. Each run is a process of its own, and its record is read; ``--at-once``
starts all four together, on a GPU that holds them: their speeds then say nothing, their memory is each one's own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ARCHITECTURES: dict[str, dict[str, Any]] = {
    # As Llama 3.2 1B: 16 layers of 2048, grouped queries; a vocabulary of 32,000 makes 1.04 billion.
    "1b": {
        "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 32000, "max_position_embeddings": 1024,
    },
    "tiny": {
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 512, "max_position_embeddings": 256,
    },
}  # fmt: skip
STORED = {"bf16": ("backbone.dtype=bfloat16",), "nf4": ("backbone.dtype=bfloat16", "backbone.quantize=nf4")}
ROWS = 160


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("fsdp_gpu.json"))
    parser.add_argument("--size", choices=ARCHITECTURES, default="1b")
    parser.add_argument("--accelerator", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--at-once", action="store_true")
    given = parser.parse_args()
    out = given.out.resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_rows(Path("rows.csv"))
        found: dict[str, Any] = {"size": given.size, "accelerator": given.accelerator, "machine": None, "runs": {}}
        runs = list(itertools.product(STORED, ("ddp", "fsdp")))
        with ThreadPoolExecutor(len(runs) if given.at_once else 1) as pool:
            begun = {pool.submit(run, *one, given.size, given.accelerator): " ".join(one) for one in runs}
            for done in as_completed(begun):
                found["runs"][begun[done]] = one = done.result()
                found["machine"] = one.pop("machine", found["machine"])
                out.write_text(json.dumps(found, indent=2) + "\n")  # after each: what is there, is there
                print(json.dumps({begun[done]: one}), flush=True)
        for stored in STORED:
            found["runs"][f"{stored} fsdp"] |= beside_ddp(found["runs"], stored)
            print(json.dumps({stored: beside_ddp(found["runs"], stored)}), flush=True)
    out.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if all(one["works"] and one.get("close_to_ddp", True) for one in found["runs"].values()) else 1


def write_rows(path: Path) -> None:
    generator = random.Random(0)
    words = (["dull", "empty", "awful", "boring"], ["fine", "moving", "great", "superb"])
    lines = ["text,label"]
    for number in range(ROWS):
        text = " ".join(generator.choice(words[number % 2]) for _ in range(generator.randint(12, 24)))
        lines.append(f"{text},{('bad', 'good')[number % 2]}")
    path.write_text("\n".join(lines) + "\n")


def run(stored: str, strategy: str, size: str, accelerator: str) -> dict[str, Any]:
    """Train, test and save; what came out, and what the process needed."""
    architecture = ",".join(f"{key}: {value}" for key, value in ARCHITECTURES[size].items())
    words = [
        "train", "backbone=tiny", f"backbone.architecture={{{architecture}}}", *STORED[stored], "peft=lora",
        "data=text_files", "data.path=rows.csv", "data.max_length=160", "data.batch_size=8", "logger=none",
        "trainer.max_epochs=1", "trainer.precision=bf16-mixed", "trainer.progress_bar=false", "optim.lr=1e-3",
        "backbone.dropout=0", "backbone.attention_dropout=0", "peft.dropout=0", f"trainer.accelerator={accelerator}",
        f"trainer.strategy={strategy}", f"name={stored}_{strategy}",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "peftlab", *words], capture_output=True, text=True, check=False, timeout=280
    )
    records = list(Path("outputs", f"{stored}_{strategy}").glob("*/record.json"))
    record = json.loads(records[0].read_text()) if records else {}
    if done.returncode or record.get("status") != "finished":
        return {"works": False, "status": done.returncode, "said": (done.stdout + done.stderr)[-3000:]}
    test, timing = record["metrics"]["test"], record["timing"]
    return {
        "works": True,
        "weights": record["parameters"]["total"],
        "model_bytes": record["parameters"]["model_bytes"],
        "frozen_unchanged": record["backbone"]["frozen_unchanged"],
        "adapter_sha256": record["files"]["adapter.safetensors"]["sha256"],
        "train_loss": record["history"][-1]["train/loss"],
        "test_loss": test["loss"],
        "test_rows": test["rows"],
        "train_samples_per_second": timing["train_samples_per_second"],
        "total_seconds": timing["total_seconds"],
        "memory": record["memory"],
        "machine": {"hardware": record["hardware"], "versions": record["versions"]},
    }


def beside_ddp(runs: dict[str, dict[str, Any]], stored: str) -> dict[str, Any]:
    """How the sharded run differs from the replicated one."""
    ddp, fsdp = runs[f"{stored} ddp"], runs[f"{stored} fsdp"]
    if not ddp["works"] or not fsdp["works"]:
        return {}
    memory = "peak_gpu_mib" if "peak_gpu_mib" in fsdp["memory"] else "peak_mib"
    differences = {name: abs(fsdp[name] - ddp[name]) for name in ("train_loss", "test_loss")}
    return {
        "same_adapter_as_ddp": fsdp["adapter_sha256"] == ddp["adapter_sha256"],
        "differs_from_ddp": differences,
        "close_to_ddp": max(differences.values()) < 1e-3,
        "memory_beside_ddp": fsdp["memory"][memory] / ddp["memory"][memory],
    }


if __name__ == "__main__":
    sys.exit(main())
