"""A run folder alone is enough to test again and to predict."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path

import pytest

from peftlab.commands.predict import line
from tests.conftest import TINY, Peftlab, Result, run_folder
from tests.runs.small_runs import edit


@pytest.fixture
def run(peftlab: Peftlab, reviews: Path) -> Path:
    arguments = (*TINY, f"data.path={reviews}", "name=t", "trainer.max_epochs=2", "optim.lr=1e-2")
    result = peftlab("train", *arguments)
    assert result.status == 0, result.err
    return run_folder("t")


def test_evaluate_gives_the_records_figures(peftlab: Peftlab, run: Path) -> None:
    result = peftlab("evaluate", run)
    assert result.status == 0, result.err
    assert "the same" in result.out
    found = json.loads(peftlab("evaluate", run, "--json").out)
    expected = json.loads((run / "record.json").read_text())["metrics"]["test"]
    assert found["metrics"] == expected


def test_a_moved_folder_still_works(peftlab: Peftlab, run: Path, scratch: Path) -> None:
    moved = scratch / "elsewhere"
    shutil.move(run, moved)
    assert "the same" in peftlab("evaluate", moved).out


def test_evaluate_on_other_data(peftlab: Peftlab, run: Path, scratch: Path) -> None:
    other = scratch / "other.csv"
    other.write_text("body,label\n" + "".join(f"superb film {i},good\nawful film {i},bad\n" for i in range(20)))
    changed = ("data.path=other.csv", "data.text_column=body", "data.holdout_fraction=0.5")
    result = peftlab("evaluate", run, *changed, "--json")
    assert result.status == 0, result.err
    assert json.loads(result.out)["metrics"]["rows"] == 20
    whole = peftlab("evaluate", run, "data=text_files", "data.path=other.csv", "data.text_column=body", "--json")
    assert json.loads(whole.out)["metrics"]["rows"] == 8
    assert json.loads(peftlab("evaluate", run, "--split", "validation", "--json").out)["metrics"]["rows"] == 10


def test_evaluate_refuses(peftlab: Peftlab, run: Path, scratch: Path) -> None:
    (scratch / "three.csv").write_text("text,label\n" + "".join(f"some text {i},{'abc'[i % 3]}\n" for i in range(60)))

    def refused(said: str, *arguments: str) -> None:
        result = peftlab("evaluate", *arguments)
        assert result.status == 2
        assert said in result.err

    refused("the model is the run's own", run, "peft.rank=3")
    refused("trained on the labels bad, good", run, "data.path=three.csv")
    refused("the model is the run's own", run, "trainer.devices=2")
    refused("data.nonsense", run, "data.nonsense=3")
    refused("data.eval_batch_size=0", run, "data.eval_batch_size=0")
    refused("there is no run folder", "outputs/t/nothing")
    refused("Runs there are", "outputs")
    (run / "adapter.safetensors").write_bytes(b"nonsense")
    refused("adapter.safetensors", run)
    (run / "record.json").write_text("{")
    refused("is damaged", run)
    (run / "record.json").write_text('{"schema_version": 99}')
    refused("schema version 99", run)


def test_a_changed_backbone_is_noticed(peftlab: Peftlab, run: Path) -> None:
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("intermediate_size: 64", "intermediate_size: 65"))
    digest = hashlib.sha256((run / "config.yaml").read_bytes()).hexdigest()
    edit(run, lambda record: record["files"]["config.yaml"].update(sha256=digest))
    result = peftlab("evaluate", run)
    assert result.status == 2
    assert "is not the one" in result.err


def lines(result: Result) -> list[dict]:  # type: ignore[type-arg]
    assert result.status == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()]


def test_predict(peftlab: Peftlab, run: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["superb and funny", "awful acting, boring and long", "I loved it"]
    found = lines(peftlab("predict", run, *(part for text in texts for part in ("--text", text)), "--json"))
    assert [one["text"] for one in found] == texts
    for one in found:
        assert set(one) == {"text", "label", "probabilities"}
        assert sum(one["probabilities"].values()) == pytest.approx(1.0, abs=1e-6)
        assert one["label"] == max(one["probabilities"], key=one["probabilities"].get)
    (scratch / "texts.txt").write_text("\n".join(texts) + "\n")
    assert [o["label"] for o in lines(peftlab("predict", run, "--file", "texts.txt", "--json"))] == [
        o["label"] for o in found
    ]
    shown = peftlab("predict", run, "--text", texts[0])
    text, label, share = shown.out.rstrip("\n").split("\t")
    assert (text, label) == (texts[0], found[0]["label"])
    assert float(share) == pytest.approx(max(found[0]["probabilities"].values()), abs=5e-5)
    for known, said in (([], text * 20), (["17"], "short")):
        on_terminal = line(known, said, "positive\t0.9876", 80)
        assert len(on_terminal) <= 80
        assert on_terminal.endswith("  positive  0.9876")

    class Piped:
        buffer = io.BytesIO("\n".join(texts).encode())

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr("sys.stdin", Piped())
    assert [o["text"] for o in lines(peftlab("predict", run, "--json"))] == texts


def test_predict_refuses(peftlab: Peftlab, run: Path, scratch: Path) -> None:
    (scratch / "latin.txt").write_bytes("gut\nsch\xf6n\n".encode("latin-1"))
    (scratch / "gap.txt").write_text("one\n\nthree\n")
    (scratch / "none.txt").write_text("")
    for arguments, said in (
        (["--file", "latin.txt"], "latin.txt, line 2: not UTF-8"),
        (["--file", "gap.txt"], "gap.txt, line 2: the text is empty"),
        (["--file", "none.txt"], "holds no text"),
        (["--file", "nowhere.txt"], "cannot read nowhere.txt"),
        (["--text", " "], "the text is empty"),
    ):
        result = peftlab("predict", run, *arguments)
        assert result.status == 2
        assert said in result.err
        assert result.out == ""
