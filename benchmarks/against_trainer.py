"""Side by side with transformers.Trainer + HF peft: the same reviews, backbone, LoRA and schedule.

    python benchmarks/against_trainer.py [--reviews 640] [--tokens 128] [--repeats 3]

Runs each side in a fresh process, in turns, and prints the ratio of the medians (timings of one machine
on one day; the ratio is what travels) and the test accuracy of both sides on the same held-out reviews.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OVERRIDES = ("trainer.max_epochs=1", "backbone.dropout=0", "optim.lr=2e-3", "data.limit_val=64", "logger=none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reviews", type=int, default=640)
    parser.add_argument("--test", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer", help=argparse.SUPPRESS)  # a JSON list of overrides: run the other side, here
    given = parser.parse_args()
    if given.peer:
        print(json.dumps(peer(json.loads(given.peer))))
        return
    overrides = [
        *OVERRIDES,
        f"data.limit_train={given.reviews}",
        f"data.limit_test={given.test}",
        f"data.max_length={given.tokens}",
    ]
    results: dict[str, list[dict[str, float]]] = {"peftlab": [], "Trainer + peft": []}
    for turn in range(given.repeats):
        results["peftlab"].append(ours(overrides))
        command = [sys.executable, __file__, "--peer", json.dumps(overrides)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        results["Trainer + peft"].append(json.loads(done.stdout.splitlines()[-1]))
        print(f"turn {turn + 1}: " + "; ".join(f"{name} {runs[-1]}" for name, runs in results.items()), flush=True)
    print(f"\n{given.reviews} reviews, at most {given.tokens} tokens, 1 epoch, medians of {given.repeats}")
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in results.items()
    }
    for name, values in medians.items():
        print(f"{name:16s}" + "   ".join(f"{key} {value:.4g}" for key, value in values.items()))
    mine, theirs = medians["peftlab"], medians["Trainer + peft"]
    print(
        f"ratio of training speeds, peftlab / Trainer: {mine['samples_per_second'] / theirs['samples_per_second']:.2f}"
    )


def ours(overrides: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "peftlab", "train", *overrides, f"output_dir={folder}", "name=bench"]
        subprocess.run(command, check=True, capture_output=True)
        (record,) = Path(folder).glob("bench/*/record.json")
        facts = json.loads(record.read_text())
    return {
        "samples_per_second": facts["timing"]["train_samples_per_second"],
        "accuracy": facts["metrics"]["test"]["accuracy"],
        "peak_mib": facts["memory"]["peak_mib"],
    }


def peer(overrides: list[str]) -> dict[str, float]:
    """The same run by transformers.Trainer and HF peft."""
    import peft
    import torch
    import transformers

    from peftlab.composition import checked
    from peftlab.records.environment import peak_memory_mib

    config = checked(overrides)
    splits = config.data.load()
    backbone = config.backbone.build(len(splits.label_names), seed=config.seed)
    model = peft.get_peft_model(
        backbone.model,
        peft.LoraConfig(
            task_type="SEQ_CLS",
            r=config.peft.rank,
            lora_alpha=config.peft.alpha,
            lora_dropout=config.peft.dropout,
            target_modules=["query", "value"],
        ),
    )
    tokenizer = transformers.BertTokenizerFast(
        tokenizer_object=backbone.tokenizer._tokenizer.backend_tokenizer, pad_token="[PAD]"
    )

    def rows(split):
        ids = backbone.tokenizer.encode(split.texts, config.data.max_length)
        return [{"input_ids": row, "labels": label} for row, label in zip(ids, split.labels, strict=True)]

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            per_device_train_batch_size=config.data.batch_size,
            per_device_eval_batch_size=config.data.eval_batch_size,
            num_train_epochs=config.trainer.max_epochs,
            learning_rate=config.optim.lr,
            warmup_steps=0.06,
            max_grad_norm=config.trainer.gradient_clip_norm,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            seed=config.seed,
            use_cpu=True,
        )
        trainer = transformers.Trainer(
            model,
            arguments,
            train_dataset=rows(splits.train),
            data_collator=transformers.DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
        )
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
        accuracy = trainer.evaluate(rows(splits.test))["eval_accuracy"]
    assert torch.is_grad_enabled()
    return {
        "samples_per_second": len(splits.train) * config.trainer.max_epochs / seconds,
        "accuracy": accuracy,
        "peak_mib": peak_memory_mib()["peak_mib"],
    }


if __name__ == "__main__":
    main()
