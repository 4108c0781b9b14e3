"""Runs from Python: the same runs as from the command line, and what one can do with them."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest
import torch
import yaml

from peftlab import (
    BitFit,
    Compose,
    LoRA,
    PeftlabError,
    PromptTuning,
    attach,
    find_runs,
    fit,
    load_adapter,
    load_run,
)
from tests.conftest import Peftlab, run_folder, write_reviews
from tests.library.models import bert

SMALL = ("backbone=tiny", "logger=none", "data.max_length=48", "data.batch_size=8", "trainer.max_epochs=2")
ON_FILE = (*SMALL, "data=text_files", "data.path=reviews.jsonl")


def frame(folder: Path, rows: int = 80) -> pandas.DataFrame:
    lines = write_reviews(folder, rows).read_text(encoding="utf-8").splitlines()
    return pandas.DataFrame([json.loads(line) for line in lines])


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(PeftlabError) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_a_run_is_the_run_of_the_command_line(peftlab: Peftlab, reviews: Path) -> None:
    """One key, one folder; whoever comes second finds it, and the numbers have the same bits."""
    run = fit(*ON_FILE, "peft.rank=2", name="t", seed=3)
    assert run.folder == run_folder("t")
    skipped = peftlab("train", *ON_FILE, "peft.rank=2", "name=t", "seed=3")
    assert "is finished already" in skipped.out
    renamed = peftlab("train", *ON_FILE, "peft.rank=2", "name=u", "seed=3")
    assert f"{run.folder} is finished already" in renamed.out
    assert fit(*ON_FILE, "peft.rank=2", name="u", seed=3).folder == run.folder
    typed = peftlab("train", *ON_FILE, "peft.rank=2", "name=u", "seed=3", "force=true")
    assert typed.status == 0, typed.err
    other = load_run(run_folder("u"))
    assert other.key == run.key
    assert other.record["metrics"] == run.record["metrics"]
    assert replace(other.config, name="t", force=False) == load_run(run.folder).config
    assert run.record["argv"] == ["peftlab", "train", *ON_FILE, "peft.rank=2", 'name="t"', "seed=3"]


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (LoRA(rank=2, targets=["query", "key"]), ("peft=lora", "peft.rank=2", "peft.targets=[query,key]")),
        (PromptTuning, ("peft=prompt_tuning",)),
        (BitFit(), ("peft=bitfit",)),
        (Compose(methods=[LoRA(rank=2), "bitfit"]),
         ("peft=compose", "peft.methods=[{name: lora, rank: 2}, bitfit]")),
    ],
    ids=["lora", "a class", "bitfit", "compose"],
)  # fmt: skip
def test_a_method_is_the_run_of_its_words(reviews: Path, method: Any, words: tuple[str, ...]) -> None:
    run = fit(*ON_FILE, peft=method, name="given", seed=3)
    typed = fit(*ON_FILE, *words, name="typed", seed=3)
    assert run.key == typed.key
    assert (run.folder / "adapter.safetensors").read_bytes() == (typed.folder / "adapter.safetensors").read_bytes()
    assert run.record["metrics"] == typed.record["metrics"]
    assert load_run(run.folder).config == replace(typed.config, name="given")
    assert run.record["argv"][0] == "fit"
    assert any(word.startswith("peft=") for word in run.record["argv"])


def test_a_method_of_ones_own_is_the_run_of_its_file(
    peftlab: Peftlab, reviews: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scratch / "own_method.py").write_text(
        "from dataclasses import dataclass\nfrom peftlab import LoRA\n\n\n"
        '@dataclass(kw_only=True)\nclass MyLoRA(LoRA, name="my_lora"):\n    """Mine."""\n\n    rank: int = 3\n',
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(scratch))
    from own_method import MyLoRA  # type: ignore[import-not-found]

    folder = scratch / "mine" / "peft"
    folder.mkdir(parents=True)
    fields = {name: value for name, value in asdict(MyLoRA()).items() if name != "rank"}
    text = yaml.safe_dump({"_target_": "own_method.MyLoRA", "rank": 3, **fields})
    (folder / "my_lora.yaml").write_text(text, encoding="utf-8")
    typed = peftlab("train", "--config-dir", str(folder.parent), *ON_FILE, "peft=my_lora", "name=typed")
    assert typed.status == 0, typed.err
    for method in (MyLoRA, MyLoRA()):
        assert fit(*ON_FILE, peft=method, name="given").key == run_folder("typed").name
    assert fit(*ON_FILE, peft=MyLoRA(rank=2), name="other").key != run_folder("typed").name


def test_a_method_that_cannot_be_given(reviews: Path) -> None:
    class Local(LoRA):
        """Nobody finds it again."""

    assert "given twice: as LoRA(…), and by peft.rank=4" in refused(lambda: fit(*ON_FILE, "peft.rank=4", peft=LoRA()))
    assert "Put it at the top of a module" in refused(lambda: fit(*ON_FILE, peft=Local))
    assert "is no method: give one as LoRA(rank=4)" in refused(lambda: fit(*ON_FILE, peft=3))
    assert "dorra" in refused(lambda: fit(*ON_FILE, peft="dorra"))


def test_what_a_run_offers(reviews: Path) -> None:
    run = fit(*ON_FILE, name="t")
    assert list(run.metrics.index) == [1, 2] or list(run.metrics.index) == [0, 1]
    assert run.metrics["validation/accuracy"].iloc[-1] == run.record["history"][-1]["validation/accuracy"]
    found = run.predict(["a fine and moving film", "awful acting"])
    assert [row["text"] for row in found] == ["a fine and moving film", "awful acting"]
    assert set(found[0]["probabilities"]) == {"bad", "good"}
    again = load_run(run.folder)
    assert again.predict(["a fine and moving film"])[0]["probabilities"] == pytest.approx(found[0]["probabilities"])
    assert again.adapter() is again.adapter()
    assert again.adapter().model is again.model().model
    assert "lora" in repr(run)
    assert again.adapter().num_parameters() == run.record["parameters"]["trainable_without_head"]


def test_predicting_is_that_of_the_command_line(peftlab: Peftlab, reviews: Path) -> None:
    run = fit(*ON_FILE, name="t")
    said = peftlab("predict", str(run.folder), "--text", "a fine film", "--json")
    assert json.loads(said.out) == run.predict(["a fine film"])[0]


def test_an_adapter_of_a_run_goes_into_a_model_of_transformers(reviews: Path, scratch: Path) -> None:
    """By the run's folder, and by the files that its adapter saves."""
    run = fit(*ON_FILE, "backbone.architecture.vocab_size=300", name="t")
    whole = run.model()
    ids = torch.tensor(whole.tokenizer.encode(["a fine film", "awful one!!"], 48))
    expected = whole(ids, torch.ones_like(ids))
    fresh = run.config.backbone.build(2, seed=run.config.seed).model.eval()  # random weights: no checkpoint has them
    adapter = load_adapter(fresh, run.folder)
    assert torch.equal(fresh(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, expected)
    assert adapter.beside == run.adapter().beside
    adapter.remove()
    run.adapter().save(scratch / "saved")
    load_adapter(fresh, scratch / "saved")
    assert torch.equal(fresh(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, expected)
    other = run.config.backbone.build(2, seed=run.config.seed + 1).model
    assert "frozen weights have another fingerprint" in refused(lambda: load_adapter(other, run.folder))
    assert "is the folder of a run" in refused(lambda: run.adapter().save(run.folder))


@pytest.mark.parametrize("kind", ["DataFrame", "Dataset", "DatasetDict", "lists", "dict"])
def test_rows_in_memory(scratch: Path, kind: str) -> None:
    rows = frame(scratch)
    data: Any = {
        "DataFrame": lambda: rows,
        "Dataset": lambda: datasets.Dataset.from_pandas(rows),
        "DatasetDict": lambda: datasets.DatasetDict(
            train=datasets.Dataset.from_pandas(rows[:60]), test=datasets.Dataset.from_pandas(rows[60:])
        ),
        "lists": lambda: (list(rows["text"]), list(rows["label"])),
        "dict": lambda: {"train": rows[:50], "validation": rows[50:60], "test": rows[60:]},
    }[kind]()
    run = fit(*SMALL, data=data, name="t")
    sizes = run.record["data"]["rows"]
    assert sum(sizes.values()) == 80
    assert run.record["data"]["label_names"] == ["bad", "good"]
    assert run.record["data"]["source"] == f"given from Python ({kind})"
    if kind in ("DatasetDict", "dict"):
        assert sizes["test"] == 20
    assert run.record["argv"][0] == "fit"
    assert rows["text"][0] not in (run.folder / "config.yaml").read_text()
    assert load_run(run.folder).predict(["superb and funny"])[0]["label"] in ("bad", "good")


def test_rows_are_known_by_their_content(scratch: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = frame(scratch)
    first = fit(*SMALL, data=rows, name="t")
    capfd.readouterr()
    again = fit(*SMALL, data=(list(rows["text"]), list(rows["label"])), name="t")
    assert again.key == first.key
    assert "is finished already" in capfd.readouterr().out
    assert fit(*SMALL, data=rows[:70], name="t").key != first.key
    other = rows.rename(columns={"text": "t", "label": "l"})
    renamed = fit(*SMALL, "data.text_column=t", "data.label_column=l", data=other, name="t")
    assert renamed.record["metrics"] == first.record["metrics"]


def test_class_names_of_a_dataset(scratch: Path) -> None:
    rows = frame(scratch)
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["good", "bad"]))
    run = fit(*SMALL, data=datasets.Dataset.from_pandas(rows, features=features), name="t")
    assert run.record["data"]["label_names"] == ["good", "bad"]


def test_a_run_on_rows_in_memory_cannot_be_reproduced(peftlab: Peftlab, scratch: Path) -> None:
    run = fit(*SMALL, data=frame(scratch), name="t")
    folder = str(run.folder)
    del run
    said = peftlab("reproduce", folder)
    assert said.status == 2
    assert "cannot be reproduced: the texts of this run were given from Python (DataFrame)" in said.err
    said = peftlab("evaluate", folder)
    assert said.status == 2
    assert "Give them again: fit(…, data=…)" in said.err
    said = peftlab("verify", folder)
    assert said.status == 0, said.err


def test_pairs(scratch: Path) -> None:
    rows = frame(scratch)
    rows["other"] = "and so on"
    run = fit(*SMALL, "data.second_column=other", data=rows, name="t")
    assert run.predict([("a fine film", "and so on")])[0]["label"] in ("bad", "good")
    assert "text 0 (counted from 0): the run was trained on pairs" in refused(lambda: run.predict(["a fine film"]))


def test_finding_runs(reviews: Path) -> None:
    runs = [fit(*ON_FILE, f"peft.rank={rank}", name="t", seed=seed) for rank, seed in ((1, 0), (1, 1), (2, 0))]
    found = find_runs("outputs/t")
    assert len(found) == 3
    assert set(found["key"]) == {run.key for run in runs}
    config = [name for name in found.columns if name.split(".")[0] in ("seed", "peft", "data", "trainer", "optim")]
    assert config == ["seed", "peft.rank"]
    row = found.set_index("key").loc[runs[2].key]
    assert row["peft.rank"] == 2
    assert row["test/accuracy"] == runs[2].record["metrics"]["test"]["accuracy"]
    assert row["status"] == "finished"
    assert load_run(row["folder"]).key == runs[2].key
    assert found.groupby("peft.rank")["test/accuracy"].count().to_dict() == {1: 2, 2: 1}
    (runs[0].folder / "record.json").write_text("{")
    with_damage = find_runs()
    assert sorted(with_damage["status"]) == ["finished", "finished", "unreadable"]
    assert "is damaged" in with_damage.set_index("key").loc[runs[0].key, "error"]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: fit("peft=lroa"), "unknown option peft=lroa. Did you mean 'lora'?"),
        (lambda: fit("peft.rank=0"), "peft.rank=0 is not allowed: it must be at least 1. (on the command line"),
        (lambda: fit("peft.rnk=4"), "unknown key 'peft.rnk'. Did you mean 'rank'?"),
        (lambda: fit("rank 4"), "cannot read 'rank 4'"),
        (lambda: fit(LoRA()), "fit takes overrides as texts"),
        (lambda: fit(sede=3), "fit has no keyword 'sede'. Did you mean 'seed'?"),
        (lambda: fit(seed=-3), "seed=-3 is not allowed"),
        (lambda: fit(backbone=LoRA()), "the name of a group's file is wanted here"),
        (lambda: fit(data="imdb"), "a data set by name is a word: fit('data=imdb')"),
        (lambda: fit("data=imdb", data=(["a"], ["b"])), "data= is given twice"),
        (lambda: fit("data.path=x", data=(["a", "b"], ["c", "d"])), "name files, and data= gives the rows"),
        (lambda: fit(data=["a", "b", "c"]), "lists are given as a pair, data=(texts, labels)"),
        (lambda: fit(data=(["a"], ["b", "c"])), "1 texts and 2 labels"),
        (lambda: fit(data=([], [])), "data=lists has no rows"),
        (
            lambda: fit(data=(["a", ""], ["b", "c"])),
            "data=lists, row 1 (counted from 0): the text (column 'text') is empty",
        ),
        (
            lambda: fit(data=(["a", 7], ["b", "c"])),
            "data=lists, row 1 (counted from 0): the text (column 'text') is not a string",
        ),
        (
            lambda: fit(data=(["a", "b"], ["c", None])),
            "data=lists, row 1 (counted from 0): the label (column 'label') is missing",
        ),
        (lambda: fit(data=(["a", "b"], ["c", "c"])), "only 1 label"),
        (lambda: fit(data=7), "data=int: texts are given as a pandas DataFrame"),
        (lambda: fit(data=pandas.DataFrame({"txt": ["a"], "label": ["b"]})), "no column 'text'. Did you mean 'txt'?"),
        (lambda: fit(data=pandas.DataFrame({"text": ["a", None], "label": ["b", "c"]})), "row 1 (its index): the text"),
        (lambda: fit(data={"trian": ([], [])}), "a split 'trian', which is none of train, validation, test."),
        (lambda: fit(data={"test": (["a"], ["b"])}), "no split 'train'"),
        (lambda: fit("trainer.devices=2"), "fit trains on one device: trainer.devices=2"),
        (lambda: fit("trainer.strategy=ddp"), "fit trains on one device"),
        (lambda: load_run("outputs/none"), "there is no run folder 'outputs/none'"),
        (lambda: find_runs("outputs/none"), "there is no folder 'outputs/none'"),
        (lambda: load_adapter(bert(), "none"), "there is no folder 'none'"),
        (lambda: load_adapter(bert(), "."), "'.' holds no adapter"),
    ],
)
def test_what_cannot_be_is_one_line(call: Callable[[], Any], says: str) -> None:
    assert says in refused(call)
    assert not list(Path().glob("outputs/*"))


def test_what_cannot_be_predicted(reviews: Path) -> None:
    run = fit(*ON_FILE, name="t")
    assert "text 1 (counted from 0): the text is empty" in refused(lambda: run.predict(["a", " "]))
    assert "text 0 (counted from 0) is no text but int (3)" in refused(lambda: run.predict([3]))  # type: ignore[list-item]
    assert "this run has one task" in refused(lambda: run.predict(["a"], task="x"))
    for table in (pandas.DataFrame({"text": ["a"]}), {"text": ["a"]}):
        assert "run.predict(list(table['text']))" in refused(lambda given=table: run.predict(given))  # type: ignore[misc]


def test_twice_in_one_process_and_from_a_thread(reviews: Path) -> None:
    """With the same bits as in the main thread, and nothing left behind in the process."""
    before = signal.getsignal(signal.SIGINT), list(sys.argv)
    first = fit(*ON_FILE, name="t")
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(fit(*ON_FILE, name="u")))
    thread.start()
    thread.join()
    assert found[0].record["metrics"] == first.record["metrics"]
    assert found[0].record["timing"]["total_seconds"] < first.record["timing"]["total_seconds"] + 60
    assert (signal.getsignal(signal.SIGINT), list(sys.argv)) == before
    attach(bert(), LoRA())


def test_a_hydra_application_keeps_its_own(reviews: Path) -> None:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    (reviews.parent / "conf").mkdir()
    (reviews.parent / "conf/mine.yaml").write_text("a: 1\n")
    with initialize_config_dir(str(reviews.parent / "conf"), version_base="1.3"):
        fit(*ON_FILE, name="t")
        assert GlobalHydra.instance().is_initialized()
        assert compose("mine").a == 1
