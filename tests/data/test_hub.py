from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.hub_server import FakeHub

SOURCE = Path(__file__).resolve().parents[2] / "src"
LOAD = """
import json, sys
from peftlab.data.imdb import IMDb
from peftlab.errors import DataError
try:
    splits = IMDb(**json.loads(sys.argv[1])).load()
    print(json.dumps(splits.provenance | {"test": splits.test.texts, "labels": splits.test.labels}))
except DataError as error:
    print(json.dumps({"error": str(error)}))
"""
CLASSES = """---
dataset_info:
  features:
  - {{name: text, dtype: string}}
  - name: label
    dtype: {{class_label: {{names: {{'0': {0}, '1': {1}}}}}}}
---
"""


def parquet(rows: int, name: str, columns: tuple[str, str] = ("text", "label")) -> bytes:
    stream = io.BytesIO()
    texts = [f"{name} {i}" for i in range(rows)]
    pq.write_table(pa.table({columns[0]: texts, columns[1]: [i % 2 for i in range(rows)]}), stream)
    return stream.getvalue()


def data_set(name: str = "first", **more: bytes) -> dict[str, bytes]:
    readme = {"README.md": CLASSES.format("neg", "pos").encode()}
    return readme | {"data/train-0.parquet": parquet(20, "train"), "data/test-0.parquet": parquet(6, name)} | more


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        hub.add_dataset("someone/reviews", data_set())
        hub.add_dataset("someone/swapped", data_set(**{"README.md": CLASSES.format("pos", "neg").encode()}))
        hub.add_dataset(
            "someone/columns",
            {"train.parquet": parquet(4, "a", ("sentence", "label"))}
            | {"test.parquet": parquet(4, "a", ("sentence", "label"))},
        )
        hub.add_dataset("someone/trainonly", {"train.parquet": parquet(4, "a")})
        yield hub


@pytest.fixture(scope="module")
def hf_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hf-home")


def load(
    hub: FakeHub, hf_home: Path, cwd: Path | None = None, env: dict[str, str] | None = None, **config: str
) -> dict:  # type: ignore[type-arg]
    environment = hub.environment(hf_home, PYTHONPATH=str(SOURCE), **(env or {}))
    config = {"hub_id": "someone/reviews"} | config
    command = [sys.executable, "-W", "error", "-c", LOAD, json.dumps(config)]
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_hub_then_cache_then_new_commit(tmp_path: Path) -> None:
    """One story, since each step builds on the cache the step before has left."""
    with FakeHub() as hub:
        first = hub.add_dataset("someone/reviews", data_set())
        read = load(hub, tmp_path)
        assert read["source"] == f"hub someone/reviews@{first}"
        assert read["hub_commit"] == first
        assert read["hub_read_from_cache_because"] is None
        assert read["test"] == [f"first {i}" for i in range(6)]
        assert read["labels"] == [0, 1] * 3
        assert set(read["datasets_fingerprints"]) == {"train", "test"}

        hub.requests.clear()
        offline = load(hub, tmp_path, env={"HF_HUB_OFFLINE": "1"})
        assert hub.requests == []
        assert offline["test"] == read["test"]
        assert "HF_HUB_OFFLINE" in offline["hub_read_from_cache_because"]

        second = hub.add_dataset("someone/reviews", data_set("second"))
        assert load(hub, tmp_path)["hub_commit"] == second
        assert load(hub, tmp_path, hub_revision=first)["test"] == read["test"]
    # No server any more: the newest commit unless one is asked for, never another one than asked for.
    assert load(hub, tmp_path)["hub_commit"] == second
    assert load(hub, tmp_path, hub_revision=first)["test"] == read["test"]
    error = load(hub, tmp_path, hub_revision="0" * 40)["error"]
    assert "that commit is not cached" in error
    assert first in error
    assert "only the hub knows its commit" in load(hub, tmp_path, hub_revision="main")["error"]


def test_no_hub_and_no_cache_is_said_at_once_with_three_ways_on(tmp_path: Path) -> None:
    hub = FakeHub()
    hub.close()
    started = time.monotonic()
    error = load(hub, tmp_path)["error"]
    assert time.monotonic() - started < 15
    assert f"The hub at {hub.endpoint} cannot be asked for someone/reviews" in error
    for way in (
        "data.source=local data.path=",
        "data=imdb_packaged",
        "bbc_news",
        "HF_HOME",
        "HF_HUB_OFFLINE=1",
    ):
        assert way in error


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"hub_id": "someone/nothing"}, ["data.hub_id=someone/nothing", "no such data set", "HF_TOKEN"]),
        ({"hub_id": "a b"}, ["data.hub_id=a b is not a repository id"]),
        ({"hub_revision": "mian"}, ["data.hub_revision=mian", "There are: main", "Did you mean 'main'?"]),
        ({"hub_id": "someone/swapped"}, ["the classes are pos, neg", "neg, pos are expected"]),
        ({"hub_id": "someone/columns"}, ["no column 'text'", "label, sentence"]),
        ({"hub_id": "someone/trainonly"}, ["has no test split; there are: train"]),
    ],
)
def test_what_the_hub_does_not_have(hub: FakeHub, hf_home: Path, config: dict[str, str], said: list[str]) -> None:
    error = load(hub, hf_home, **config)["error"]
    for part in said:
        assert part in error


def test_a_local_folder_of_that_name_is_not_taken_for_the_hub(hub: FakeHub, hf_home: Path, tmp_path: Path) -> None:
    (tmp_path / "someone" / "reviews").mkdir(parents=True)
    assert "is also a local path here" in load(hub, hf_home, cwd=tmp_path)["error"]


def test_the_server_serves_models_too(tmp_path: Path) -> None:
    code = (
        "from transformers import AutoConfig, AutoTokenizer\n"
        "print(AutoConfig.from_pretrained('tiny').hidden_size)\n"
        "print(AutoTokenizer.from_pretrained('tiny')('good film')['input_ids'])\n"
    )
    vocab = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film"])
    with FakeHub() as hub:
        hub.add_model(
            "tiny",
            {
                "config.json": json.dumps({"model_type": "bert", "hidden_size": 32}).encode(),
                "vocab.txt": vocab.encode(),
                "tokenizer_config.json": b'{"tokenizer_class": "BertTokenizer"}',
            },
        )
        environment = hub.environment(tmp_path)
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.stdout.split("\n")[:2] == ["32", "[2, 5, 6, 3]"], done.stderr
