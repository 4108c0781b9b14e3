"""Starting from an earlier run: what is taken over, what it costs the earlier task, and how mistakes are told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from peftlab.composition import checked
from peftlab.data.batching import pad
from peftlab.records.folder import RunFolder, finished_run
from peftlab.records.identity import run_key
from peftlab.runs.assemble import reassemble
from tests.conftest import TINY, Peftlab
from tests.data.two_tasks import write_topics

CLASSIFIER = (
    "backbone=text_classifier",
    "logger=none",
    "data=text_files",
    "data.batch_size=8",
    "optim=sgd",
    "optim.lr=1",
)
SMALL = ("trainer.max_epochs=2", "trainer.progress_bar=false")


@pytest.fixture
def topics(scratch: Path) -> Path:
    """90 short texts of three topics, in topics.jsonl."""
    return write_topics(scratch, rows=90)


def earlier(peftlab: Peftlab, topics: Path, *more: str) -> Path:
    result = peftlab(
        "train", *CLASSIFIER, *SMALL, f"data.path={topics}", "peft=full", "backbone.freeze=false", "name=before", *more
    )
    assert result.status == 0, result.err
    return only("before")


def only(name: str) -> Path:
    (record,) = Path("outputs").glob(f"{name}/*/record.json")
    return record.parent


def later(peftlab: Peftlab, reviews: Path, start: Path, *more: str) -> tuple[Path, str]:
    result = peftlab(
        "train", *CLASSIFIER, *SMALL, f"data.path={reviews}", f"backbone.from_run={start}", "measure_forgetting=true",
        "name=after", *more,
    )  # fmt: skip
    assert result.status == 0, result.err
    return only("after"), result.out


LORA = ("peft=lora", "peft.targets=[hidden]", "peft.rank=2")


def record_of(folder: Path) -> dict:
    return json.loads((folder / "record.json").read_text())


def test_lora_forgets_nothing_with_the_adapter_off(peftlab: Peftlab, topics: Path, reviews: Path) -> None:
    before = earlier(peftlab, topics)
    after, said = later(peftlab, reviews, before, *LORA)
    assert "456 parameters beside the 12,800 of the weights they adapt: 28.1 times fewer" in " ".join(said.split())
    assert "not its head, which knew other labels (space, sport, trade)" in " ".join(said.split())
    record = record_of(after)
    assert record["parameters"]["trainable_without_head"] == 2 * 100 + 2 * 128 == 456
    assert record["parameters"]["adapted"] == 12_800
    lost = record["forgetting"]
    assert lost["before"] == record_of(before)["metrics"]["test"]["accuracy"] == lost["after_with_adapter_off"]
    assert lost["forgetting_with_adapter_off"] == 0
    # The frozen weights are the earlier run's, to the bit.
    rebuilt, _ = reassemble(RunFolder(after), finished_run(str(after))[1])
    weights = load_file(before / "adapter.safetensors")
    assert torch.equal(rebuilt.backbone.model.embedding.weight, weights["embedding.weight"])
    assert torch.equal(rebuilt.backbone.model.hidden.base.weight, weights["hidden.weight"])
    assert set(load_file(after / "adapter.safetensors")) == {
        "hidden.deltas.all.lora_A", "hidden.deltas.all.lora_B", "output.weight", "output.bias",
    }  # fmt: skip


def test_full_fine_tuning_forgets(peftlab: Peftlab, topics: Path, reviews: Path) -> None:
    """What the record says is what counting by hand gives: the earlier head on the later run's weights."""
    before = earlier(peftlab, topics, "trainer.max_epochs=10")
    assert record_of(before)["metrics"]["test"]["accuracy"] > 0.6
    after, _ = later(
        peftlab, topics_as_reviews(topics), before, "peft=full", "backbone.freeze=false", "trainer.max_epochs=10",
        "trainer.gradient_clip_norm=0", "optim.lr=3",
    )  # fmt: skip
    lost = record_of(after)["forgetting"]
    assert lost["after_with_adapter_off"] is None
    folder, config, _ = finished_run(str(before))
    old, _ = reassemble(folder, config)
    new, _ = reassemble(RunFolder(after), finished_run(str(after))[1])
    new.backbone.model.output = old.backbone.model.output
    test = config.data.load().test
    batch = pad(old.backbone.tokenizer.encode(test.texts, 48), old.backbone.tokenizer.pad_id)
    with torch.inference_mode():
        hits = new.backbone(batch["input_ids"], batch["attention_mask"]).argmax(dim=1) == torch.tensor(test.labels)
    assert lost["after"] == hits.sum().item() / len(test)
    assert lost["forgetting"] == lost["before"] - lost["after"] > 0.1


def topics_as_reviews(topics: Path) -> Path:
    """The same texts with other labels, so that learning them takes the words' old meaning away."""
    path = topics.with_name("reviews_of_topics.jsonl")
    with path.open("w", encoding="utf-8") as file:
        for number, line in enumerate(topics.read_text().splitlines()):
            label = ("bad", "good")[number // 3 % 2]
            file.write(json.dumps({"text": f"{label} {label} {json.loads(line)['text']}", "label": label}) + "\n")
    return path


def test_the_head_is_taken_over_when_the_classes_are_the_same(peftlab: Peftlab, topics: Path) -> None:
    before = earlier(peftlab, topics)
    result = peftlab(
        "train", *CLASSIFIER, *SMALL, f"data.path={topics}", f"backbone.from_run={before}", *LORA, "name=after",
        "optim.lr=1e-12",
    )  # fmt: skip
    assert result.status == 0, result.err
    assert "its head too" in result.out
    assert record_of(only("after"))["metrics"]["test"] == record_of(before)["metrics"]["test"]


def test_an_earlier_adapter_is_merged(peftlab: Peftlab, reviews: Path) -> None:
    """A transformer trained with LoRA, started from by another LoRA: the same logits before the first step."""
    first = peftlab("train", *TINY, *SMALL, f"data.path={reviews}", "peft=lora", "optim.lr=0.01", "name=before")
    assert first.status == 0, first.err
    before = only("before")
    second = peftlab(
        "train", *TINY, *SMALL, f"data.path={reviews}", f"backbone.from_run={before}", "optim.lr=1e-12", "name=after"
    )
    assert second.status == 0, second.err
    old, new = record_of(before)["metrics"]["test"], record_of(only("after"))["metrics"]["test"]
    assert new["accuracy"] == old["accuracy"]
    assert new["loss"] == pytest.approx(old["loss"], abs=1e-6)


def test_identity_is_the_content_of_the_earlier_run(peftlab: Peftlab, topics: Path, reviews: Path) -> None:
    before = earlier(peftlab, topics)
    arguments = [*CLASSIFIER, f"data.path={reviews}", *LORA]
    key = run_key(checked([*arguments, f"backbone.from_run={before}"]))
    moved = before.rename(before.parent / "elsewhere")
    assert run_key(checked([*arguments, f"backbone.from_run={moved}"])) == key
    assert run_key(checked(arguments)) != key
    data = bytearray((moved / "adapter.safetensors").read_bytes())
    data[-1] ^= 1
    (moved / "adapter.safetensors").write_bytes(data)
    assert run_key(checked([*arguments, f"backbone.from_run={moved}"])) != key


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["backbone.from_run=outputs/none"], "this is not the folder of a finished run"),
        (["backbone.from_run={run}", "backbone.hidden_dim=64"], "backbone.hidden_dim=128 (this run: 64)"),
        (["backbone.from_run={run}", "backbone.glove=glove.txt"], "the word vectors come from backbone.from_run"),
        (["measure_forgetting=true"], "needs backbone.from_run"),
        (["backbone=tiny", "backbone.from_run={run}", "peft.targets=[query]"], "has a TextClassifierConfig"),
    ],
)
def test_mistakes(peftlab: Peftlab, topics: Path, reviews: Path, more: list[str], said: str) -> None:
    run = earlier(peftlab, topics)
    result = peftlab(
        "train", *CLASSIFIER, f"data.path={reviews}", *LORA, "name=after", *(m.format(run=run) for m in more)
    )
    assert result.status == 2
    assert said in result.err
    assert "Traceback" not in result.err
    assert not list(Path("outputs").glob("after/*"))


def test_methods_that_cannot_be_merged_cannot_be_started_from(peftlab: Peftlab, reviews: Path) -> None:
    first = peftlab("train", *TINY, *SMALL, f"data.path={reviews}", "peft=prompt_tuning", "name=before")
    assert first.status == 0, first.err
    result = peftlab("train", *TINY, f"data.path={reviews}", f"backbone.from_run={only('before')}", "name=after")
    assert result.status == 2
    assert "'prompt_tuning' cannot be merged" in result.err


LOGITS = """
import sys, torch
from peftlab.records.folder import finished_run
from peftlab.runs.assemble import reassemble
from peftlab.data.batching import pad
folder, config, _ = finished_run(sys.argv[1])
assembled, _ = reassemble(folder, config)
backbone = assembled.backbone.eval()
texts = open(sys.argv[2], encoding="utf-8").read().splitlines()
batch = pad(backbone.tokenizer.encode(texts, 4096), backbone.tokenizer.pad_id)
with torch.inference_mode():
    torch.save(backbone(batch["input_ids"], batch["attention_mask"]), sys.argv[3])
"""


def test_a_new_process_gives_the_same_bits(peftlab: Peftlab, topics: Path, reviews: Path, scratch: Path) -> None:
    """A, B, alpha and the head, loaded into a freshly built model, on 1,000 real reviews."""
    from peftlab.runs import train as training

    before = earlier(peftlab, topics)
    made = []
    build = training.assemble

    def remembering(*arguments, **more):  # type: ignore[no-untyped-def]
        made.append(build(*arguments, **more))
        return made[-1]

    training.assemble = remembering  # type: ignore[assignment]
    try:
        after, _ = later(peftlab, reviews, before, *LORA, "trainer.select=last", "trainer.threads=1")
    finally:
        training.assemble = build
    trained = made[-1].backbone.eval()
    reviews_set = checked(["data=imdb_packaged", "data.limit_test=1000"]).data
    texts = [" ".join(text.split()) for text in reviews_set.load().test.texts]
    (scratch / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    batch = pad(trained.tokenizer.encode(texts, 4096), trained.tokenizer.pad_id)
    with torch.inference_mode():
        expected = trained(batch["input_ids"], batch["attention_mask"])
    subprocess.run([sys.executable, "-c", LOGITS, str(after), "texts.txt", "logits.pt"], check=True)
    found = torch.load("logits.pt", weights_only=True)
    assert found.shape == (1000, 2)
    assert torch.equal(found, expected)
    said = peftlab("predict", str(after), "--text", texts[0], "--json")
    label = ("bad", "good")[int(expected[0].argmax())]
    assert len({tuple(row) for row in expected.tolist()}) > 500  # the reviews are told apart
    assert json.loads(said.out)["label"] == label
    print(f"the same bits on {len(texts):,} reviews")
