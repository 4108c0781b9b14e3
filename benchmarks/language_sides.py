"""One side of a comparison of language models, in a process of its own: told "go" on standard input it trains once.

The sides: ``padded``, ``packed`` and ``mixed`` (batches of unlike lengths, padded) are `peftlab.fit`; ``peer`` is TRL's
SFTTrainer with HF peft, or, where TRL cannot be imported, `transformers.Trainer` with a collator of the same masks. The
peer reads peftlab's token rows, in the batches of ``padded``, from the same backbone; where weights are not quantised
its adapter starts with the same numbers too.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu_sides import Ours, Side, _epoch_clock

LLAMA_NAMES = {
    "query": "q_proj", "key": "k_proj", "value": "v_proj", "attention_output": "o_proj",
    "ffn_up": "up_proj", "ffn_gate": "gate_proj", "ffn_down": "down_proj",
}  # fmt: skip
MORE = {
    "padded": ["data.packing=false", "data.group_by_length=true"],
    "packed": ["data.packing=true", "data.group_by_length=false"],
    "mixed": ["data.packing=false", "data.group_by_length=false"],
    "peer": ["data.packing=false", "data.group_by_length=true"],
}
PEER = "peer"
"""What a peer's name begins with: ``peer-trainer`` is never TRL, ``peer-checkpointing`` has SFTConfig's default."""


def main(side: str, words: list[str]) -> None:
    """Answer each line of standard input by one of JSON."""
    run = side_of(side, words)
    print("READY", flush=True)
    for _ in sys.stdin:
        print("RESULT " + json.dumps(run.once()), flush=True)


def side_of(side: str, words: list[str]) -> Side:
    """What trains ``side``, told ``words``."""
    if side.startswith(PEER):
        trl = find_spec("trl") is not None and not side.endswith("-trainer")
        return Peer([*words, *MORE[PEER]], trl=trl, checkpointing=side.endswith("-checkpointing"))
    return Language([*words, *MORE[side]])


class Language(Ours):
    """`peftlab.fit`, with the loss of each step."""

    def __init__(self, words: list[str]) -> None:
        super().__init__(words)
        from peftlab.data.batching import weight_of
        from peftlab.data.module import TextDataModule
        from peftlab.training.module import TrainingModule

        self.targets = self.places = 0
        self.losses: list[Any] = []
        before, counted = TextDataModule.on_before_batch_transfer, TrainingModule._count

        def transferred(data: Any, batch: Any, number: int) -> Any:
            if data.trainer.training:
                self.targets += weight_of(batch)
                self.places += batch["input_ids"].numel()
            return before(data, batch, number)

        def count(module: Any, split: str, batch: Any, computed: Any) -> None:
            if split == "train":
                self.losses.append(computed["loss"].detach())
            counted(module, split, batch, computed)

        TextDataModule.on_before_batch_transfer = transferred  # type: ignore[method-assign]
        TrainingModule._count = count  # type: ignore[method-assign]

    def once(self) -> dict[str, Any]:
        """Train, test and write everything down."""
        self.targets, self.places, self.losses = 0, 0, []
        found = super().once()
        counts = {"targets": self.targets, "places": self.places}
        return found | counts | {"losses": [float(loss) for loss in self.losses]}


class Peer(Side):
    """SFTTrainer, or Trainer, with HF peft: dynamic padding, all else as it comes."""

    def __init__(self, words: list[str], *, trl: bool, checkpointing: bool = False) -> None:
        super().__init__(words)
        self.trl, self.checkpointing = trl, checkpointing

    def once(self) -> dict[str, Any]:
        """Train."""
        from peftlab.objectives.parts.targets import NONE, targets_of

        began = time.perf_counter()
        model, tokenizer, rows, batches = self._prepared()
        rows = [{"input_ids": row["input_ids"].tolist(), "labels": targets_of(row).tolist()} for row in rows]
        clock = _epoch_clock(self)
        losses: list[Any] = []
        with tempfile.TemporaryDirectory() as folder:
            trainer = self._trainer(folder, model, tokenizer, rows, batches, losses)
            trainer.add_callback(clock)
            self.clear()
            trainer.train()
        epochs = self.config.trainer.max_epochs
        targets = sum(label != NONE for row in rows for label in row["labels"])
        return {
            "seconds": clock.seconds,
            "rows": [len(rows)] * len(clock.seconds),
            "steps": trainer.state.global_step,
            "tokens": sum(len(row["input_ids"]) for row in rows) * epochs,
            "targets": targets * epochs,
            "losses": [float(loss) for loss in losses],
            "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "peak_mib": self.peak(),
            "total_s": time.perf_counter() - began,
            "trainer": type(trainer).__mro__[1].__name__,
        }

    def _prepared(self) -> tuple[Any, Any, Any, Callable[[int], list[list[int]]]]:
        """The model with HF peft's LoRA, its tokenizer, peftlab's token rows, and which make a batch."""
        from peftlab.data.module import TextDataModule

        config = self.config
        backbone = config.backbone.build(0, seed=config.seed, head="own")
        data = TextDataModule(config.data, config.data.load(), backbone.tokenizer, config.seed)
        batches = data.train_dataloader().batch_sampler.batches
        with tempfile.TemporaryDirectory() as folder:
            start = self._written_start(backbone, Path(folder))
            if start is not None:  # the adapter stands in that backbone
                backbone = config.backbone.build(0, seed=config.seed, head="own")
            model = self._wrapped(backbone.model.to("cuda" if self.on_gpu else "cpu"), start)
        return model, _for_transformers(backbone.tokenizer), data.tokenized("train"), batches

    def _written_start(self, backbone: Any, folder: Path) -> Path | None:
        """The adapter that peftlab starts with, in HF peft's format; None where weights are quantised."""
        from peftlab.peft.base import attach
        from peftlab.peft.hf.folder import save_hf_peft

        if self.config.backbone.quantize is not None:
            return None
        adapter = attach(backbone, self.config.peft, seed=self.config.seed, train_head=self.config.trains_head)
        save_hf_peft(adapter, folder)
        return folder

    def _wrapped(self, model: Any, start: Path | None) -> Any:
        import peft

        if start is not None:
            return peft.PeftModel.from_pretrained(model, start, is_trainable=True)
        given = self.config.peft
        model.is_loaded_in_4bit = self.config.backbone.quantize is not None  # as transformers' own loading says it
        lora = peft.LoraConfig(
            task_type="CAUSAL_LM", r=given.rank, lora_alpha=given.alpha, lora_dropout=given.dropout,
            target_modules=[LLAMA_NAMES.get(name, name) for name in given.targets or ("query", "value")],
        )  # fmt: skip
        return peft.get_peft_model(model, lora)

    def _trainer(
        self, folder: str, model: Any, tokenizer: Any, rows: list[Any], batches: Callable[[int], Any], losses: list[Any]
    ) -> Any:
        import datasets
        import transformers

        kind, arguments, more = transformers.Trainer, transformers.TrainingArguments, {}
        given: dict[str, Any] = {"data_collator": _Padding(tokenizer.pad_token_id)}
        if self.trl:
            import trl

            kind, arguments = trl.SFTTrainer, trl.SFTConfig
            more = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
            rows, given = datasets.Dataset.from_list(rows), {"processing_class": tokenizer}
        more |= {"gradient_checkpointing": self.checkpointing}
        written = self._arguments(arguments, folder, more)
        return _in_order(kind, batches, losses)(model, written, train_dataset=rows, **given)

    def _arguments(self, kind: Any, folder: str, more: dict[str, Any]) -> Any:
        config = self.config
        return kind(
            folder, per_device_train_batch_size=config.data.batch_size, num_train_epochs=config.trainer.max_epochs,
            max_steps=config.trainer.max_steps or -1, learning_rate=config.optim.lr, lr_scheduler_type="linear",
            warmup_steps=0, weight_decay=0.0, max_grad_norm=config.trainer.gradient_clip_norm, report_to=[],
            logging_strategy="epoch", save_strategy="no", disable_tqdm=True, bf16=self.on_gpu,
            use_cpu=not self.on_gpu, seed=config.seed, **more,
        )  # fmt: skip


def _for_transformers(tokenizer: Any) -> Any:
    """Its tokenizer; of bytes one that can pad, since the rows are tokens already."""
    import tokenizers
    import transformers

    if hasattr(tokenizer, "_tokenizer"):
        return tokenizer._tokenizer
    vocabulary = {"[PAD]": tokenizer.pad_id, **tokenizer.special_words()}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[PAD]"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")


def _in_order(kind: Any, batches: Callable[[int], Any], losses: list[Any]) -> Any:
    """``kind`` of trainer with peftlab's batches, keeping the loss of each step."""
    import torch

    class Order(torch.utils.data.Sampler[int]):
        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Iterator[int]:
            return iter([row for batch in batches(self.epoch) for row in batch])

        def __len__(self) -> int:
            return sum(map(len, batches(0)))

    class Ordered(kind):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return Order()

        def compute_loss(self, *args: Any, **more: Any) -> Any:
            found = super().compute_loss(*args, **more)
            losses.append((found[0] if isinstance(found, tuple) else found).detach())
            return found

    return Ordered


class _Padding:
    """Pads to the longest row of a batch, as TRL's collator does."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        from peftlab.data.batching import pad
        from peftlab.objectives.parts.targets import NONE

        labels = pad([row["labels"] for row in rows], NONE)["input_ids"]
        return {**pad([row["input_ids"] for row in rows], self.pad_id), "labels": labels}


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
