"""One side of a row of :mod:`gpu`, in a process of its own: told "go" on standard input it trains once and answers.

The sides: ``graphs`` is `peftlab.fit` with ``trainer.cuda_graphs``, ``plain`` without, ``compiled`` with
``trainer.compile`` beside; ``peer`` is `transformers.Trainer` with HF peft, as a user writes it; ``bare`` a loop over
one batch with the same model and adapter and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from typing import Any

MORE = {
    "graphs": ["trainer.cuda_graphs=true"],
    "plain": [],
    "compiled": ["trainer.cuda_graphs=true", "trainer.compile=true"],
}
WARM_UP, MEASURED = 10, 40


def main(side: str, words: list[str]) -> None:
    """Answer each line of standard input by one of JSON."""
    run = Bare(words) if side == "bare" else Peer(words) if side == "peer" else Ours([*words, *MORE[side]])
    print("READY", flush=True)
    for _ in sys.stdin:
        print("RESULT " + json.dumps(run.once()), flush=True)


class Side:
    """What the sides share: the config, and the device."""

    def __init__(self, words: list[str]) -> None:
        import torch

        from peftlab.composition import checked

        self.words = words
        self.config = checked(words)
        self.on_gpu = self.config.trainer.accelerator != "cpu" and torch.cuda.is_available()

    def clear(self) -> None:
        """Begin to measure memory anew."""
        import gc

        import torch

        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        """Largest allocation on the GPU, in MiB."""
        import torch

        return torch.cuda.max_memory_allocated() // 2**20 if self.on_gpu else 0

    def wait(self) -> float:
        """The time, when the device has done all."""
        import torch

        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()


class Ours(Side):
    """`peftlab.fit`."""

    def __init__(self, words: list[str]) -> None:
        super().__init__(words)
        from peftlab.data.module import TextDataModule
        from peftlab.training.module import TrainingModule

        self.tokens = self.replayed = 0
        before, end = TextDataModule.on_before_batch_transfer, TrainingModule.on_train_epoch_end

        def count(data: Any, batch: Any, number: int) -> Any:
            if data.trainer.training:
                self.tokens += int(batch["attention_mask"].sum())  # on the host
            return before(data, batch, number)

        def ended(module: Any) -> None:
            self.replayed = 0 if module.graphs is None else module.graphs.replayed
            end(module)

        TextDataModule.on_before_batch_transfer = count  # type: ignore[method-assign]
        TrainingModule.on_train_epoch_end = ended  # type: ignore[method-assign]

    def once(self) -> dict[str, Any]:
        """Train, test and write everything down."""
        from peftlab import fit

        self.clear()
        self.tokens = 0
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            run = fit(*self.words, f"output_dir={folder}", name="bench")
            total = time.perf_counter() - began
            adapter = hashlib.sha256((run.folder / "adapter.safetensors").read_bytes()).hexdigest()
        history = run.record["history"]
        return {
            "seconds": [row["train_seconds"] for row in history],
            "rows": [row["train_rows"] for row in history],
            "steps": history[-1]["step"],
            "tokens": self.tokens,
            "loss": history[-1]["train/loss"],
            "trainable": run.record["parameters"]["trainable"],
            "peak_mib": self.peak(),
            "total_s": total,
            "replayed": self.replayed,
            "adapter": adapter,
        }


class Peer(Side):
    """`transformers.Trainer` with HF peft: dynamic padding, length grouping, bf16, all else as it comes."""

    def once(self) -> dict[str, Any]:
        """Train."""
        import transformers

        began = time.perf_counter()
        splits = self.config.data.load()
        backbone = self.config.backbone.build(len(splits.label_names), seed=self.config.seed)
        model = self._wrapped(backbone)
        rows = self._rows(backbone, splits.train)
        clock = _epoch_clock(self)
        with tempfile.TemporaryDirectory() as folder:
            trainer = transformers.Trainer(
                model, self._arguments(folder), train_dataset=rows, data_collator=_Padding(backbone.tokenizer.pad_id),
                callbacks=[clock],
            )  # fmt: skip
            self.clear()
            trainer.train()
        peak = self.peak()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return {
            "seconds": clock.seconds,
            "rows": [len(rows)] * len(clock.seconds),
            "steps": trainer.state.global_step,
            "tokens": sum(len(row["input_ids"]) for row in rows) * len(clock.seconds),
            "loss": losses[-1] if losses else None,
            "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "peak_mib": peak,
            "total_s": time.perf_counter() - began,
        }

    def _wrapped(self, backbone: Any) -> Any:
        import peft

        given = self.config.peft
        roles = {"query": "q_proj", "value": "v_proj"} if backbone.architecture == "llama" else {}
        model = backbone.model.to("cuda" if self.on_gpu else "cpu")
        model.is_loaded_in_4bit = self.config.backbone.quantize is not None  # as transformers' own loading says it
        return peft.get_peft_model(
            model,
            peft.LoraConfig(
                task_type="SEQ_CLS",
                r=given.rank,
                lora_alpha=given.alpha,
                lora_dropout=given.dropout,
                use_dora=given.name == "dora",
                target_modules=[roles.get(name, name) for name in given.targets],
            ),
        )

    def _rows(self, backbone: Any, split: Any) -> list[dict[str, Any]]:
        ids = backbone.tokenizer.encode(split.texts, self.config.data.max_length)
        return [{"input_ids": row, "labels": label} for row, label in zip(ids, split.labels, strict=True)]

    def _arguments(self, folder: str) -> Any:
        import transformers

        fields = transformers.TrainingArguments.__dataclass_fields__
        grouped: dict[str, Any] = (
            {"group_by_length": True} if "group_by_length" in fields else {"train_sampling_strategy": "group_by_length"}
        )
        return transformers.TrainingArguments(
            folder,
            per_device_train_batch_size=self.config.data.batch_size,
            num_train_epochs=self.config.trainer.max_epochs,
            learning_rate=self.config.optim.lr,
            warmup_steps=0.06,
            max_grad_norm=self.config.trainer.gradient_clip_norm,
            report_to=[],
            logging_strategy="epoch",
            save_strategy="no",
            disable_tqdm=True,
            bf16=self.on_gpu,
            use_cpu=not self.on_gpu,
            seed=self.config.seed,
            **grouped,
        )


class _Padding:
    """Pads to the longest row of a batch, as `DataCollatorWithPadding` does."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        from peftlab.data.batching import pad

        labels = torch.tensor([row["labels"] for row in rows])
        return {**pad([row["input_ids"] for row in rows], self.pad_id), "labels": labels}


def _epoch_clock(side: Side) -> Any:
    import transformers

    class Clock(transformers.TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            self.began = side.wait()

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(side.wait() - self.began)

    return Clock()


class Bare(Side):
    """The same model, adapter and optimizer over one full batch, without a trainer."""

    def once(self) -> dict[str, Any]:
        """Seconds a step, the median."""
        import torch

        from peftlab.peft.base import attach

        config, device = self.config, torch.device("cuda" if self.on_gpu else "cpu")
        backbone = config.backbone.build(2, seed=0)
        adapter = attach(backbone, config.peft, seed=0, train_head=True)
        backbone.to(device).train()
        optimizer = torch.optim.AdamW(adapter.param_groups(lr=1e-3))
        ids = torch.randint(5, 200, (config.data.batch_size, config.data.max_length), device=device)
        mask, labels = torch.ones_like(ids), torch.randint(2, (len(ids),), device=device)
        self.clear()
        times = [self.wait()]
        for step in range(WARM_UP + MEASURED):
            with torch.autocast(device.type, torch.bfloat16, enabled=self.on_gpu):
                loss = torch.nn.functional.cross_entropy(backbone(ids, mask).float(), labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(adapter.parameters(beside=True), 1.0)
            optimizer.step()
            if step >= WARM_UP and (step - WARM_UP) % 10 == 9:
                times.append(self.wait())
        seconds = statistics.median(b - a for a, b in pairwise(times[1:])) / 10
        rows = config.data.batch_size * 10
        return {"seconds": [seconds * 10], "rows": [rows], "peak_mib": self.peak(), "step_ms": 1000 * seconds}


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
