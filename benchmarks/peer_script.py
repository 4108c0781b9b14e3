"""What a user would write: one LoRA run of transformers.Trainer and HF peft over labelled lines, as a script.

    python benchmarks/peer_script.py FOLDER --model FOLDER [--rank 8] [--seed 0] [--tokens 256] [--stop-at-first-step]

FOLDER holds train.jsonl, validation.jsonl and test.jsonl (text, label). Dynamic padding, texts of alike length
together, the model's own dropout, validation after each epoch. The last line is JSON: test accuracy and seconds of
training, validation included.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time

import datasets
import numpy as np
import peft
import transformers


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--model", required=True)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--stop-at-first-step", action="store_true")
    given = parser.parse_args()
    datasets.disable_progress_bars()
    transformers.set_seed(given.seed)

    files = {split: f"{given.folder}/{split}.jsonl" for split in ("train", "validation", "test")}
    data = datasets.load_dataset("json", data_files=files)
    tokenizer = transformers.AutoTokenizer.from_pretrained(given.model)
    data = data.map(lambda rows: tokenizer(rows["text"], truncation=True, max_length=given.tokens), batched=True)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(given.model, num_labels=2)
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=given.rank, lora_alpha=16, lora_dropout=0.1,
                           target_modules=["query", "value"])  # fmt: skip
    model = peft.get_peft_model(model, lora)
    with tempfile.TemporaryDirectory() as output:
        arguments = transformers.TrainingArguments(
            output, num_train_epochs=1, per_device_train_batch_size=32, per_device_eval_batch_size=16,
            learning_rate=2e-3, warmup_steps=0.06, report_to=[], disable_tqdm=True, use_cpu=True, seed=given.seed,
            save_strategy="no", eval_strategy="epoch", train_sampling_strategy="group_by_length",
        )  # fmt: skip
        trainer = transformers.Trainer(
            model, arguments, train_dataset=data["train"], eval_dataset=data["validation"],
            processing_class=tokenizer,
            compute_metrics=lambda found: {"accuracy": float(np.mean(found.predictions.argmax(-1) == found.label_ids))},
            callbacks=[Stop()] if given.stop_at_first_step else [],
        )  # fmt: skip
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
        accuracy = trainer.evaluate(data["test"])["eval_accuracy"]
    print(json.dumps({"accuracy": accuracy, "train_seconds": seconds}))


class Stop(transformers.TrainerCallback):
    """Says when the first step is done, and ends the process."""

    def on_step_end(self, *_: object, **__: object) -> None:
        print(f"FIRST {time.time()}", flush=True)
        os._exit(0)


if __name__ == "__main__":
    main()
