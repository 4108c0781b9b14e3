"""Made-up records, and the sweep.json that names them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

METHODS = {"lora": "LoRA", "head": "HeadOnly", "full": "FullFineTuning", "bitfit": "BitFit", "ia3": "IA3"}


def record(
    accuracy: float,
    *,
    key: str,
    seed: int = 0,
    method: str = "lora",
    keys: Mapping[str, Any] | None = None,
    trainable: int = 1000,
    name: str = "t",
    **more: Any,
) -> dict[str, Any]:
    """A finished run's record. ``keys`` are dotted config keys; ``more`` replaces or extends parts of the record."""
    config: dict[str, Any] = {
        "name": name,
        "seed": seed,
        "output_dir": "outputs",
        "force": False,
        "measure_forgetting": False,
        "data": {"_target_": "peftlab.data.text_files.TextFiles", "split_seed": 0, "num_workers": 0, "path": "a.jsonl"},
        "backbone": {"_target_": "peftlab.backbones.transformer.TransformerConfig", "from_run": None},
        "peft": {"_target_": f"peftlab.peft.{method}.{METHODS[method]}"},
        "optim": {"_target_": "peftlab.training.optim.AdamW", "lr": 0.001},
        "schedule": {"_target_": "peftlab.training.optim.Linear"},
        "trainer": {"max_epochs": 3, "progress_bar": True},
        "logger": {"_target_": "peftlab.training.loggers.NoLogger"},
    }
    for dotted, value in (keys or {}).items():
        group, _, inner = dotted.partition(".")
        config[group][inner] = value
    made: dict[str, Any] = {
        "schema_version": 1,
        "status": "finished",
        "name": name,
        "key": key,
        "config": config,
        "argv": ["peftlab", "train"],
        "ended_at": "2026-01-01T00:00:00+00:00",
        "git": {"revision": "abc", "dirty": False},
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "hardware": {
            "platform": "Linux",
            "processor": "cpu",
            "cpu_count": 2,
            "torch_threads": 1,
            "accelerators": [],
        },
        "seeds": {"seed": seed, "order_seed": seed, "split_seed": 0},
        "data": {
            "data_set": "Reviews",
            "source": "local files",
            "train_kind": "official train",
            "test_kind": "official test",
            "rows": {"train": 800, "validation": 100, "test": 400},
            "hash": "d" * 64,
        },
        "backbone": {"architecture": "bert", "from_run": None},
        "parameters": {"total": 10_000, "trainable": trainable, "trainable_without_head": trainable - 100},
        "selection": {"rule": "highest validation/accuracy", "epoch": 2},
        "metrics": {
            "train": {"loss": 0.4, "accuracy": 0.8},
            "validation": {"loss": 0.5, "accuracy": accuracy},
            "test": {"loss": 0.5, "accuracy": accuracy, "macro_f1": accuracy, "rows": 400},
        },
        "forgetting": None,
        "history": [
            {
                "epoch": epoch,
                "train/loss": 0.7 - 0.1 * epoch,
                "validation/accuracy": accuracy - 0.05 * (2 - epoch),
                "validation/loss": 0.6,
            }
            for epoch in range(3)
        ],
        "timing": {"train_seconds": 10.0 + seed, "total_seconds": 20.0},
        "memory": {"peak_mib": 500.0 + trainable / 100},
    }
    for part, values in more.items():
        made[part] = {**made[part], **values} if isinstance(values, dict) and isinstance(made[part], dict) else values
    return made


def write(folder: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """Write each record into ``folder/<key>/record.json``, with a config.yaml beside it."""
    for one in records:
        path = folder / one["key"]
        path.mkdir(parents=True)
        (path / "record.json").write_text(json.dumps(one), encoding="utf-8")
        (path / "config.yaml").write_text("seed: 0\n", encoding="utf-8")
    return folder


def failed(given: Mapping[str, Any], error: str = "RuntimeError: out of memory") -> dict[str, Any]:
    """The record that the same run leaves when it fails."""
    made = copy.deepcopy(dict(given))
    for part in ("data", "backbone", "parameters", "selection", "metrics", "forgetting", "history", "timing", "memory"):
        del made[part]
    return made | {"status": "failed", "error": error}


ACCURACIES = {
    "head": [0.70, 0.71, 0.72],
    "lora": [0.80, 0.83, 0.82],
    "full": [0.81, 0.82, 0.84],
}


def three_methods(folder: Path) -> Path:
    """Nine runs: three methods, three seeds."""
    sizes = {"head": 100, "lora": 1100, "full": 10_000}
    return write(
        folder,
        (
            record(value, key=f"{method}{seed}", seed=seed, method=method, trainable=sizes[method])
            for method, values in ACCURACIES.items()
            for seed, value in enumerate(values)
        ),
    )


def sweep_file(folder: Path, **more: Any) -> dict[str, Any]:
    """A sweep.json of :func:`three_methods`, written into ``folder``; ``more`` replaces parts of it."""
    content: dict[str, Any] = {
        "format": 1,
        "file": "sweeps/made_up.yaml",
        "settings": {},
        "title": "Three methods",
        "source": "a made-up paper",
        "selection": "Chosen on validation.",
        "notes": "A note.",
        "metric": "metrics.test.accuracy",
        "baseline": "head",
        "seeds": [0, 1, 2],
        "columns": [
            {"title": "accuracy", "value": "metrics.test.accuracy", "format": "accuracy"},
            {"title": "trainable", "value": "parameters.trainable", "format": "count"},
        ],
        "cells": [
            {
                "id": method,
                "label": label,
                "row": True,
                "curve": method != "head",
                "group": "",
                "runs": {str(seed): f"{method}{seed}" for seed in range(3)},
                "failed": {},
                "chosen": {},
            }
            for method, label in (("full", "full fine-tuning"), ("head", "head only"), ("lora", "LoRA"))
        ],
    }
    content |= more
    (folder / "sweep.json").write_text(json.dumps(content), encoding="utf-8")
    return content
