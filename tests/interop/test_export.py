"""``peftlab export`` and ``peft=import`` on whole runs: what they write, what they refuse, and that nothing is left."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError
from transformers import AutoModel, AutoModelForSequenceClassification

from peftlab.backbones.transformer_backbone import TransformerBackbone
from peftlab.errors import PeftlabError
from peftlab.interop.hf_model import save_model
from peftlab.interop.whole_folder import whole_folder
from peftlab.objectives.base import objective
from peftlab.records.folder import finished_run
from peftlab.runs.assemble import reassemble
from tests.backbones.tiny_backbones import tiny
from tests.conftest import TINY, Peftlab, run_folder
from tests.peft.tiny import batch

SHORT = ("trainer.max_epochs=1", "data.limit_train=32", "optim.lr=1e-2")


@pytest.fixture
def train(peftlab: Peftlab, reviews: Path) -> Any:
    """Train a run of a second and return its folder."""

    def call(name: str, *overrides: str) -> Path:
        result = peftlab("train", *TINY, *SHORT, f"name={name}", f"data.path={reviews}", *overrides)
        assert result.status == 0, result.err
        return run_folder(name)

    return call


def model_of(run: Path) -> TransformerBackbone:
    folder, config, _ = finished_run(str(run))
    backbone = reassemble(folder, config)[0].backbone.eval()
    assert isinstance(backbone, TransformerBackbone)
    return backbone


def same_logits(run: Path, other: Any) -> None:
    ids, mask = batch()
    with torch.no_grad():
        mine = model_of(run)(ids, mask)
        theirs = other(input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(theirs if isinstance(theirs, torch.Tensor) else theirs.logits, mine, atol=1e-5, rtol=0)


def test_from_a_run_to_peft_and_back(train: Any, peftlab: Peftlab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # the Auto class would look for a tokenizer on the hub
    run = train("first", "peft=lora", "peft.rank=2")
    result = peftlab("export", str(run), "--to", "adapter", "--base", "base")
    assert (result.status, result.err) == (0, "")
    assert "LORA" in result.out
    assert sorted(p.name for p in Path("adapter").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(Path("base").resolve())
    assert config["task_type"] == "SEQ_CLS"
    card = Path("adapter/README.md").read_text()
    record = json.loads((run / "record.json").read_text())
    assert f"{record['metrics']['test']['accuracy']:.4f}" in card
    assert "bad, good" in card
    base = AutoModelForSequenceClassification.from_pretrained("base")
    assert base.config.id2label == {0: "bad", 1: "good"}
    same_logits(run, peft.PeftModel.from_pretrained(base, "adapter").eval())
    same_logits(run, peft.AutoPeftModelForSequenceClassification.from_pretrained("adapter").eval())

    again = train("second", "peft=import", "peft.path=adapter", "trainer.max_epochs=2")
    record = json.loads((again / "record.json").read_text())
    imported = record["backbone"]["imported_adapter"]
    assert (imported["method"], imported["head"], imported["peft_type"]) == ("lora", "taken over", "LORA")
    assert record["parameters"]["trainable"] == json.loads((run / "record.json").read_text())["parameters"]["trainable"]
    assert peftlab("evaluate", str(again)).status == 0
    assert peftlab("export", str(again), "--to", "further").status == 0
    same_logits(
        again, peft.PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained("base"), "further")
    )


def test_an_imported_run_starts_where_the_folder_ends_and_is_its_own_run(train: Any, peftlab: Peftlab) -> None:
    run = train("first", "peft=lora", "peft.rank=2")
    assert peftlab("export", str(run), "--to", "adapter").status == 0
    shutil.copytree("adapter", "elsewhere")
    # At a learning rate that moves nothing the run ends as the folder began.
    still = train("still", "peft=import", "peft.path=adapter", "optim.lr=1e-30", "optim.weight_decay=0")
    ids, mask = batch()
    with torch.no_grad():
        torch.testing.assert_close(model_of(still)(ids, mask), model_of(run)(ids, mask), atol=1e-6, rtol=0)
    moved = peftlab(
        "train", *TINY, *SHORT, "name=still", "data.path=reviews.jsonl", "peft=import", "peft.path=elsewhere",
        "optim.lr=1e-30", "optim.weight_decay=0",
    )  # fmt: skip
    assert "is finished already" in moved.out, "the same content in another place is the same run"
    weights = Path("elsewhere/adapter_model.safetensors")
    tensors = safetensors.torch.load_file(weights)
    safetensors.torch.save_file({name: tensor + 1 for name, tensor in tensors.items()}, weights)
    changed = peftlab(
        "check", *TINY, *SHORT, "name=still", "data.path=reviews.jsonl", "peft=import", "peft.path=elsewhere",
        "optim.lr=1e-30", "optim.weight_decay=0",
    )  # fmt: skip
    assert changed.status == 0
    assert still.name not in changed.out, "another content is another run"


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "vera", "layernorm", "full", "head"])
def test_merged(method: str, train: Any, peftlab: Peftlab) -> None:
    run = train("merged", f"peft={method}")
    result = peftlab("export", str(run), "--to", "model", "--merged")
    assert (result.status, result.err) == (0, "")
    model, info = AutoModelForSequenceClassification.from_pretrained("model", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert model.config.label2id == {"bad": 0, "good": 1}
    same_logits(run, model.eval())
    card = Path("model/README.md").read_text()
    assert "transformers" in card
    assert "ByteTokenizer" in card
    assert not any(word in card for word in ("AutoTokenizer", "--base")), "there is no tokenizer, and no base"


GPT2 = (
    "backbone.architecture.model_type=gpt2", "+backbone.architecture.n_layer=2", "+backbone.architecture.n_head=2",
    "+backbone.architecture.n_embd=32", "+backbone.architecture.n_positions=64",
    *(f"~backbone.architecture.{name}" for name in ("hidden_size", "intermediate_size", "max_position_embeddings")),
    *(f"~backbone.architecture.{name}" for name in ("num_attention_heads", "num_hidden_layers")),
)  # fmt: skip
MERGED_FROM_4_BITS = {
    "lora": ("peft=lora",),
    "dora of a fused projection": ("peft=dora", *GPT2),
    "vera": ("peft=vera",),
    "biases": ("peft=bitfit",),
    "two methods": ("peft=compose", "peft.methods=[{name: lora, rank: 2}, bitfit]"),
    "fp4": ("peft=ia3", "backbone.quantize=fp4"),
}


@pytest.mark.parametrize("name", MERGED_FROM_4_BITS)
def test_a_merged_model_from_4_bits_computes_what_the_run_computes(name: str, train: Any, peftlab: Peftlab) -> None:
    run = train("merged", "backbone.quantize=nf4", *MERGED_FROM_4_BITS[name])
    result = peftlab("export", str(run), "--to", "model", "--merged")
    assert (result.status, result.err) == (0, "")
    assert "rounded to" in result.out
    assert "rounded to" in Path("model/README.md").read_text()
    model, info = AutoModelForSequenceClassification.from_pretrained("model", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    same_logits(run, model.eval())


def test_merged_from_8_bits_differs_by_the_activations(train: Any, peftlab: Peftlab) -> None:
    run = train("merged", "backbone.quantize=int8", "peft=lora")
    result = peftlab("export", str(run), "--to", "model", "--merged")
    assert (result.status, result.err) == (0, "")
    assert "activations were rounded" in result.out
    ids, mask = batch()
    with torch.no_grad():
        mine = model_of(run)(ids, mask)
        theirs = AutoModelForSequenceClassification.from_pretrained("model").eval()(ids, attention_mask=mask).logits
    assert 0 < (mine - theirs).abs().max() < 0.02 * mine.abs().max()


def test_tensors_that_train_in_float32_beside_16_bits_are_written_too(train: Any, peftlab: Peftlab) -> None:
    run = train("merged", "backbone.dtype=bfloat16", "peft=compose", "peft.methods=[{name: lora, rank: 2}, layernorm]")
    assert peftlab("export", str(run), "--to", "model", "--merged").status == 0
    model = AutoModelForSequenceClassification.from_pretrained("model", dtype="bfloat16").eval()
    trained = model_of(run)
    for name, parameter in model.named_parameters():
        if "LayerNorm" in name:
            owner, _, leaf = name.rpartition(".")
            assert torch.equal(parameter, getattr(trained.model.get_submodule(owner), leaf)), name
    again = train("again", "backbone.dtype=bfloat16", "peft=lora", f"backbone.from_run={run}")
    assert peftlab("evaluate", str(again)).status == 0


def test_a_head_on_the_mean_goes_beside_the_trunk(train: Any, peftlab: Peftlab) -> None:
    run = train(
        "mean",
        "backbone.pooling=mean",
        "peft=lora",
        "peft.targets=[query, ffn_down]",
        "peft.rank_pattern={ffn_down: 2}",
    )
    for arguments in (["--to", "adapter"], ["--to", "adapter", "--merged"]):
        result = peftlab("export", str(run), *arguments)
        assert result.status == 2
        assert "backbone.pooling=mean" in result.err
        assert "--trunk-only" in result.err
        assert not Path("adapter").exists()
    assert peftlab("export", str(run), "--to", "adapter", "--trunk-only", "--base", "base").status == 0
    trunk = peft.PeftModel.from_pretrained(AutoModel.from_pretrained("base"), "adapter").eval()
    assert type(trunk).__name__ == "PeftModelForFeatureExtraction"
    assert any("lora_B" in name and p.abs().max() > 0 for name, p in trunk.named_parameters())
    code = Path("adapter/README.md").read_text().partition("```python\n")[2].partition("```")[0]
    ids, mask = batch()
    found: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        exec(code.replace("FOLDER", "adapter"), found)
        torch.testing.assert_close(found["logits"], model_of(run)(ids, mask), atol=1e-5, rtol=0)


def test_a_run_from_an_earlier_run_needs_its_base(train: Any, peftlab: Peftlab) -> None:
    first = train("first", "peft=lora")
    second = train("second", "peft=lora", f"backbone.from_run={first}", "seed=0")
    result = peftlab("export", str(second), "--to", "adapter")
    assert result.status == 2
    assert "--base" in result.err
    assert peftlab("export", str(second), "--to", "adapter", "--base", "base").status == 0
    base = AutoModelForSequenceClassification.from_pretrained("base")
    same_logits(second, peft.PeftModel.from_pretrained(base, "adapter").eval())


REFUSED = {
    "bitfit": (("peft=bitfit",), (), "peft=bitfit cannot be written in the format of HF peft"),
    "prefix": (("peft=prefix_tuning", "peft.length=4"), (), "peft.position_shift=true"),
    "prompt": (("peft=prompt_tuning", "peft.length=4"), (), "peft.position=before"),
    "merged prompt": (("peft=prompt_tuning", "peft.length=4"), ("--merged",), "cannot be merged"),
    "merged hf_peft, quantised": (
        ("peft=hf_peft", "peft.options={target_modules: [query], oft_block_size: 8}", "backbone.quantize=nf4"),
        ("--merged",),
        "HF peft's layer for weights in 4 or 8 bits",
    ),
    "not a transformer": (("backbone=text_classifier", "peft=full"), (), "neither transformers nor HF peft can build"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_and_nothing_is_left(name: str, train: Any, peftlab: Peftlab) -> None:
    overrides, arguments, words = REFUSED[name]
    run = train("refused", *overrides)
    before = set(Path().iterdir())
    result = peftlab("export", str(run), "--to", "there", *arguments)
    assert result.status == 2
    assert words in result.err
    assert result.err.count("\n") == 1
    assert set(Path().iterdir()) == before


def test_a_folder_that_is_taken_is_refused_before_anything_is_read(peftlab: Peftlab) -> None:
    Path("taken").mkdir()
    Path("taken/mine.txt").write_text("mine")
    Path("file").write_text("mine")
    for target in ("taken", "file"):
        result = peftlab("export", "no-such-run", "--to", target)
        assert result.status == 2
        assert "would be overwritten" in result.err
    assert Path("taken/mine.txt").read_text() == "mine"
    result = peftlab("export", "no-such-run", "--to", "new")
    assert "there is no run folder 'no-such-run'" in result.err
    for arguments in (["--merged", "--base", "b"], ["--base", "new"], ["--base", "new/inner"]):
        assert peftlab("export", "no-such-run", "--to", "new", *arguments).status == 2


def _interrupted(target: Path, error: BaseException) -> None:
    with whole_folder(target, "--to") as folder:
        (folder / "half").write_text("half")
        raise error


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(PeftlabError, match=r"cannot write --to .*: No space left on device") as caught:
        _interrupted(target, OSError(28, os.strerror(28)))
    assert "\n" not in str(caught.value)
    with pytest.raises(KeyboardInterrupt):
        _interrupted(target, KeyboardInterrupt())
    assert not list(tmp_path.iterdir())
    target.mkdir()  # an empty folder may be filled
    with whole_folder(target, "--to") as folder:
        (folder / "whole").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (target / "whole").read_text() == "whole"
    assert target.stat().st_mode & 0o777 == 0o777 & ~_umask()


def test_a_failure_takes_the_parents_along_that_it_made(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    target = tmp_path / "old" / "new" / "newer" / "target"
    with pytest.raises(PeftlabError, match=r"No space left.*Nothing was left there\. Free some space"):
        _interrupted(target, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(PeftlabError, match=r"denied\. Nothing was left there\. Choose another folder\.$"):
        _interrupted(target, OSError(errno.EACCES, os.strerror(errno.EACCES)))
    assert list(tmp_path.rglob("*")) == [tmp_path / "old"]
    with pytest.raises(PeftlabError, match=r"cannot write --to /proc/foo: [^,]*\. Choose another folder\.$"):
        _interrupted(Path("/proc/foo"), KeyboardInterrupt())
    with whole_folder(target, "--to") as folder:
        (folder / "whole").write_text("whole")
    assert (target / "whole").is_file()


def test_a_model_is_for_those_whom_the_umask_lets_read(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "model", "--to") as folder:
        save_model(tiny("bert", num_labels=2), folder, objective("classification").hf_config(["bad", "good"]))
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert "model.safetensors" in modes
    assert set(modes.values()) == {0o666 & ~_umask()}


def test_a_full_disk_while_a_model_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny("bert")

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError('Error while serializing: I/O error: Os { code: 28, kind: StorageFull, message: "…" }')

    monkeypatch.setattr(backbone.model, "save_pretrained", full)
    with pytest.raises(PeftlabError, match=r"Nothing was left there\. Free some space"):
        save_model(backbone, tmp_path, objective("classification").hf_config(["a", "b", "c"]))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_place_that_cannot_be_written_is_one_line(peftlab: Peftlab, train: Any) -> None:
    run = train("run", "peft=lora")
    Path("file").write_text("")
    result = peftlab("export", str(run), "--to", "file/adapter")
    assert result.status == 2
    assert "cannot write" in result.err
    assert result.err.count("\n") == 1
