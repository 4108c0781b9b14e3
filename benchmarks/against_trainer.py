"""Side by side with transformers.Trainer + HF peft on a CPU: the same reviews, backbone, method, dropout and schedule.

    python benchmarks/against_trainer.py [--rows "LoRA, dropout" … learning] [--reviews N] [--tokens N] [--repeats N]

Runs each side in a fresh process, in turns, and prints for each row the medians and the ratios of the turns (timings of
one machine on one day; the ratio is what travels). In rows with dropout both sides have the model's own, 0.1 of hidden
states and of attention, peftlab's drawn by ``backbone.fast_dropout``; of the last layer peftlab computes what the head
reads (``backbone.skip_unread``, but in the row ``learning``). The other side pads to the longest text of a
batch and groups texts by length, as peftlab does. Steps and trainable parameters must be equal. Six steps learn
nothing: whether both sides learn the same is a row of its own, ``learning``, of several seeds and more and shorter
texts, which fails where test loss or accuracy differ by more than the seeds explain. AG News is read from
``$PEFTLAB_DATA/ag_news`` (parquet: text, label), four times as many texts, and left out where there is none. ``--out``
writes the same as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

OVERRIDES = ("trainer.max_epochs=1", "optim.lr=2e-3", "data.limit_val=64", "logger=none")
DROPOUT = ("backbone.dropout=0.1", "backbone.attention_dropout=0.1")
NONE = ("backbone.dropout=0", "backbone.attention_dropout=0")
NEWS = Path(os.environ.get("PEFTLAB_DATA") or "data") / "ag_news"
AG_NEWS = ("data=text_files", f"data.train={NEWS}/train_subset.parquet", f"data.test={NEWS}/test.parquet")
ROWS = {
    "LoRA, dropout": ("peft=lora", *DROPOUT),
    "LoRA": ("peft=lora", *NONE),
    "DoRA, dropout": ("peft=dora", *DROPOUT),
    "DoRA": ("peft=dora", *NONE),
    "LoRA, AG News": ("peft=lora", *NONE, *AG_NEWS),
    "QLoRA nf4": ("peft=lora", "backbone.quantize=nf4", *NONE),
    "head, 5 epochs": ("peft=head", *NONE, "trainer.max_epochs=5"),
}
LEARNING = "learning"
LEARNED = (
    "peft=lora",
    *NONE,
    "data.limit_train=1024",
    "data.limit_test=1024",
    "data.max_length=64",
    "data.batch_size=16",
)
SEEDS, CONFIDENCE = 4, 0.99
UNREAD = "backbone.skip_unread=true"
OURS = {True: ("backbone.fast_dropout=true", UNREAD), False: (UNREAD,)}
"""What only peftlab is told, with and without dropout."""
NEWS_ROW = "LoRA, AG News"
CACHED = "head, 5 epochs"
"""The row whose frozen part peftlab computes once (``backbone.cache_frozen``), into an empty cache: its seconds count
as training."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, LEARNING], default=[*ROWS, LEARNING])
    parser.add_argument("--reviews", type=int, default=192)
    parser.add_argument("--test", type=int, default=192)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peer", help=argparse.SUPPRESS)  # a JSON list of overrides: run the other side, here
    given = parser.parse_args()
    if given.peer:
        print(json.dumps(peer(json.loads(given.peer))))
        return
    print(f"{given.reviews} reviews, at most {given.tokens} tokens, {given.repeats} turns")
    found = {}
    for name in given.rows:
        if name == NEWS_ROW and not NEWS.is_dir():
            print(f"\n{name}: left out, as there is no {NEWS}")
            continue
        found[name] = learning() if name == LEARNING else row(name, given)
        if given.out is not None:
            given.out.write_text(json.dumps(found, indent=2) + "\n")


def row(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turns; what each has, and the ratios."""
    times = 4 if name == NEWS_ROW else 1  # as many tokens, about
    overrides = [*OVERRIDES, *ROWS[name], f"data.limit_train={times * given.reviews}"]
    overrides += [f"data.limit_test={times * given.test}", f"data.max_length={given.tokens}"]
    mine: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    for _ in range(given.repeats):
        one, other = both_sides(overrides, *OURS["dropout" in name], cached=name == CACHED)
        mine.append(one)
        theirs.append(other)
    print(f"\n{name}")
    medians = []
    for side, runs in (("peftlab", mine), ("Trainer + peft", theirs)):
        medians.append({key: statistics.median(run[key] for run in runs) for key in runs[0]})
        print(f"  {side:16s}" + "   ".join(f"{key} {value:.4g}" for key, value in medians[-1].items()))
    ratios: dict[str, list[float]] = {}
    for key in ("samples_per_second", "evaluated_per_second", "peak_mib"):
        turns = sorted(a[key] / b[key] for a, b in zip(mine, theirs, strict=True))
        ratios[key] = [statistics.median(turns), turns[0], turns[-1]]
        print(f"  ratio of {key}: {ratios[key][0]:.2f} ({turns[0]:.2f} … {turns[-1]:.2f})", flush=True)
    return {"peftlab": mine, "peer": theirs, "ratios": ratios}


def learning() -> dict[str, Any]:
    """Test loss and accuracy of both sides over seeds; the seed draws batches, adapter and head.

    Raises:
        AssertionError: if one differs by more than Welch's t-test gives to chance.
    """
    from scipy import stats

    mine, theirs = [], []
    for seed in range(SEEDS):
        one, other = both_sides([*OVERRIDES, *LEARNED, f"seed={seed}"])
        mine.append(one)
        theirs.append(other)
    print(f"\n{LEARNING}: {mine[0]['steps']} steps, seeds 0 to {SEEDS - 1}")
    differences = {}
    for what in ("loss", "accuracy"):
        both = [[run[what] for run in runs] for runs in (mine, theirs)]
        interval = stats.ttest_ind(*both, equal_var=False).confidence_interval(CONFIDENCE)
        (a, b), spreads = map(statistics.mean, both), list(map(statistics.stdev, both))
        print(
            f"  test {what}: peftlab {a:.4f} ± {spreads[0]:.4f}, Trainer + peft {b:.4f} ± {spreads[1]:.4f}; difference "
            f"{a - b:+.4f}, {CONFIDENCE:.0%} interval {interval.low:+.4f} … {interval.high:+.4f}",
            flush=True,
        )
        assert interval.low <= 0 <= interval.high, f"the two sides do not learn the same: {what}"
        differences[what] = [a - b, float(interval.low), float(interval.high)]
    return {"peftlab": mine, "peer": theirs, "differences": differences}


def both_sides(overrides: list[str], *more: str, cached: bool = False) -> tuple[dict[str, float], dict[str, float]]:
    """A run of ours, told ``more``, and the other side's in a process of its own: the same steps and parameters."""
    mine = ours([*overrides, *more], cached=cached)
    command = [sys.executable, __file__, "--peer", json.dumps(overrides)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    theirs = json.loads(done.stdout.splitlines()[-1])
    for what in ("steps", "trainable"):
        assert mine[what] == theirs[what], (what, mine, theirs)
    return mine, theirs


def ours(overrides: list[str], *, cached: bool = False) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "peftlab", "train", *overrides, f"output_dir={folder}", "name=bench"]
        environment = dict(os.environ)
        if cached:
            command.append("backbone.cache_frozen=true")
            environment["PEFTLAB_CACHE"] = f"{folder}/cache"
        subprocess.run(command, check=True, capture_output=True, env=environment)
        (record,) = Path(folder).glob("bench/*/record.json")
        facts = json.loads(record.read_text())
    timing = facts["timing"]
    seconds = timing["train_seconds"] + timing.get("trunk_seconds", 0.0)
    return {
        "samples_per_second": sum(row["train_rows"] for row in facts["history"]) / seconds,
        "evaluated_per_second": facts["timing"]["evaluation_samples_per_second"],
        "accuracy": facts["metrics"]["test"]["accuracy"],
        "loss": facts["metrics"]["test"]["loss"],
        "peak_mib": facts["memory"]["peak_mib"],
        "steps": facts["history"][-1]["step"],
        "trainable": facts["parameters"]["trainable"],
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
    plain = dataclasses.replace(config.backbone, quantize=None)
    backbone = plain.build(len(splits.label_names), seed=config.seed)
    network = backbone.model if config.backbone.quantize is None else in_4_bits(backbone.model)
    if config.peft.name == "head":
        model = network
        model.base_model.requires_grad_(False)
    else:
        lora = peft.LoraConfig(
            task_type="SEQ_CLS",
            r=config.peft.rank,
            lora_alpha=config.peft.alpha,
            lora_dropout=config.peft.dropout,
            target_modules=["query", "value"],
            use_dora=type(config.peft).__name__ == "DoRA",
        )
        model = peft.get_peft_model(network, lora)
    tokenizer = transformers.BertTokenizerFast(
        tokenizer_object=backbone.tokenizer._tokenizer.backend_tokenizer, pad_token="[PAD]"
    )

    def rows(split):
        ids = backbone.tokenizer.encode(split.texts, config.data.max_length)
        return [
            {"input_ids": row, "labels": label, "length": len(row)}
            for row, label in zip(ids, split.labels, strict=True)
        ]

    grouped = {"train_sampling_strategy": "group_by_length"}
    if "group_by_length" in transformers.TrainingArguments.__dataclass_fields__:  # before transformers 5
        grouped = {"group_by_length": True}
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
            **grouped,
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
        began = time.perf_counter()
        found = trainer.evaluate(rows(splits.test))
        evaluated = len(splits.test) / (time.perf_counter() - began)
    assert torch.is_grad_enabled()
    return {
        "samples_per_second": len(splits.train) * config.trainer.max_epochs / seconds,
        "evaluated_per_second": evaluated,
        "accuracy": found["eval_accuracy"],
        "loss": found["eval_loss"],
        "peak_mib": peak_memory_mib()["peak_mib"],
        "steps": trainer.state.global_step,
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def in_4_bits(model: Any) -> Any:
    """The model as its files are loaded with ``load_in_4bit``, and prepared as HF peft says."""
    import peft
    import transformers

    kind = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["classifier"]
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = type(model).from_pretrained(folder, quantization_config=kind)
    return peft.prepare_model_for_kbit_training(loaded, use_gradient_checkpointing=False)


if __name__ == "__main__":
    main()
