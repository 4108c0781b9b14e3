"""One task of a run on several, exported: HF peft and transformers compute what ``peftlab predict --task`` says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from peftlab.backbones.tokenizers import ByteTokenizer
from tests.conftest import Peftlab
from tests.data.two_tasks import overrides, write_topics

TEXT = "the probe left the market and won"


@pytest.mark.parametrize("task", ["reviews", "topics"])
@pytest.mark.parametrize(
    "method",
    [
        ["peft=multitask_prompt", "peft.length=4", "peft.position=before", "optim.lr=0.1"],
        ["peft=lora", "optim.lr=0.05"],
        ["peft=lora", "optim.lr=0.05", "--merged"],
    ],
    ids=["multitask_prompt", "lora", "merged"],
)
def test_a_task_alone(peftlab: Peftlab, scratch: Path, reviews: Path, method: list[str], task: str) -> None:
    common = overrides(reviews, write_topics(scratch))
    merged = "--merged" in method
    fields = [part for part in method if part != "--merged"]
    trained = peftlab("train", *common, *fields, "name=t", "trainer.max_epochs=1")
    assert trained.status == 0, trained.err
    [record] = Path("outputs").glob("t/*/record.json")
    options = ["--merged"] if merged else ["--base", "base"]
    written = peftlab("export", record.parent, "--task", task, "--to", "there", *options)
    assert written.status == 0, written.err
    model: Any = AutoModelForSequenceClassification.from_pretrained("there" if merged else "base")
    if not merged:
        model = peft.PeftModel.from_pretrained(model, "there")
    ids = torch.tensor(ByteTokenizer().encode([TEXT], 48))
    named = {"task_ids": torch.zeros(1, dtype=torch.long)} if "multitask_prompt" in fields[0] else {}
    with torch.no_grad():
        logits = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), **named).logits
    found = json.loads(peftlab("predict", record.parent, "--task", task, "--text", TEXT, "--json").out)
    probabilities = torch.tensor(list(found["probabilities"].values()))
    torch.testing.assert_close(logits.softmax(dim=-1)[0], probabilities, atol=1e-5, rtol=0)
    assert (probabilities - 1 / len(probabilities)).abs().max() > 1e-3, "training must matter"
    labels = json.loads(Path("there" if merged else "base", "config.json").read_text())["id2label"]
    assert [f"{task}/{label}" for label in labels.values()] == list(found["probabilities"])
    figures = json.loads(record.read_text())["metrics"]["test"]["tasks"][task]
    assert (
        f"| test accuracy | {figures['accuracy']:.4f} ({figures['rows']} texts) |"
        in Path("there/README.md").read_text()
    )
