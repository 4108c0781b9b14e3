"""``backbone.cache_frozen``: the blocks below what trains computed once; losses and gradients are those without."""

from __future__ import annotations

import json
import shutil
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from peftlab.data.base import Texts
from peftlab.data.batching import padded_states
from peftlab.data.tokens import TokenizedTexts, tokenize
from peftlab.errors import DataError, PeftlabError
from peftlab.peft.base import PEFTStrategy, attach
from peftlab.peft.bitfit import BitFit
from peftlab.peft.head import HeadOnly
from peftlab.peft.last_layers import LastLayers
from peftlab.peft.layernorm import LayerNormTuning
from peftlab.peft.lora import LoRA
from peftlab.peft.prefix_tuning import PrefixTuning
from peftlab.peft.prompt_tuning import PromptTuning
from peftlab.training import trunk_cache
from peftlab.training.frozen_blocks import require_frozen_blocks
from peftlab.training.trunk import FrozenTrunk
from peftlab.training.trunk_cache import TrunkStates, trunk_states
from tests.backbones.tiny_backbones import batch, shake, tiny, tiny_config

TEXTS = ["a fine film", "a dull and much too long film", "so so", "x"]
LABELS = torch.tensor([0, 1, 2, 0])


def built(name: str, method: PEFTStrategy, **more: Any) -> tuple[FrozenTrunk, Any]:
    more = {"dropout": 0.0} | more if name != "llama" else more
    backbone = tiny(name, **more)
    shake(backbone)
    adapter = attach(backbone.train(), method, seed=0)
    return FrozenTrunk(adapter, batch(backbone, TEXTS)), adapter


def step(adapter: Any, given: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Loss and gradients."""
    torch.manual_seed(0)  # DistilBERT's head has a dropout of its own
    loss = torch.nn.functional.cross_entropy(adapter.backbone(*given), LABELS)
    return [loss.detach(), *torch.autograd.grad(loss, adapter.parameters(beside=True))]


UPPER = r".*\.1\..*(query|q_lin|query_proj|c_attn|q_proj|Wqkv|in_proj)"


@pytest.mark.parametrize("name", ["bert", "deberta-v2", "distilbert", "gpt2", "llama", "modernbert", "roberta"])
@pytest.mark.parametrize(("method", "count"), [(HeadOnly(), 2), (LastLayers(layers=1), 1), (LoRA(targets=[UPPER]), 1)])
def test_steps_are_those_without(name: str, method: PEFTStrategy, count: int) -> None:
    trunk, adapter = built(name, method)
    given = batch(adapter.backbone, TEXTS)
    names = list(adapter.backbone.state_dict())
    expected = step(adapter, given)
    assert trunk.count == count
    # kept of each text alone, so that no padding of one batch is in it
    each = [trunk.compute(*batch(adapter.backbone, [text]))[0] for text in TEXTS]
    states = padded_states(each, given[0].shape[1]).clone()
    calls: list[bool] = []
    trunk.blocks[0].register_forward_pre_hook(lambda *_: calls.append(True))
    inside = next(
        module for module in trunk.blocks[0].modules() if isinstance(module, torch.nn.LayerNorm | torch.nn.Linear)
    )
    inside.register_forward_hook(lambda *_: calls.append(False))
    with trunk.given(states):
        found = step(adapter, given)
    assert False not in calls, "the frozen block computes nothing"
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, atol=1e-6, rtol=1e-5)
    assert list(adapter.backbone.state_dict()) == names
    for a, b in zip(expected, step(adapter, given), strict=True):
        assert torch.equal(a, b), "the model is itself again"


@pytest.mark.parametrize(
    ("name", "more", "kept"),
    [("bert", {}, "first"), ("bert", {"pooling": "mean"}, "mean"), ("gpt2", {}, "tokens"),
     ("modernbert", {"architecture": {"model_type": "modernbert", "classifier_pooling": "mean", "hidden_size": 32,
      "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 300}}, "tokens")],
)  # fmt: skip
def test_no_more_is_kept_than_the_head_reads(name: str, more: dict[str, Any], kept: str) -> None:
    trunk, adapter = built(name, HeadOnly(), **more)
    assert trunk.kept == kept
    given = batch(adapter.backbone, TEXTS)
    expected = step(adapter, given)
    with trunk.given(trunk.compute(*given).clone()):
        for a, b in zip(expected, step(adapter, given), strict=True):
            torch.testing.assert_close(b, a, atol=1e-6, rtol=1e-5)


def test_it_is_computed_without_dropout_and_what_lies_above_keeps_its_own() -> None:
    trunk, adapter = built("bert", LastLayers(layers=1), dropout=0.5)
    given = batch(adapter.backbone, TEXTS)
    first, second = trunk.compute(*given).clone(), trunk.compute(*given).clone()
    assert torch.equal(first, second)
    assert adapter.backbone.training
    with trunk.given(first):
        assert not torch.equal(adapter.backbone(*given), adapter.backbone(*given))


@pytest.mark.parametrize(
    ("name", "method", "said"),
    [
        ("bert", LoRA(), r"peft=lora trains 'bert.encoder.layer.0.*', and below it nothing is frozen"),
        ("bert", BitFit(), r"peft=bitfit trains 'bert"),
        ("bert", PromptTuning(length=2), r"peft=prompt_tuning trains '.*prompt"),
        ("bert", PrefixTuning(length=2), r"peft=prefix_tuning trains 'key_value_prefix"),
        ("bert", LoRA(targets=["embedding"]), r"peft=lora trains 'bert.embeddings"),
        ("t5", HeadOnly(), "t5 has no one stack of blocks"),
        ("albert", HeadOnly(), "runs its 2 layers on 1 shared block"),
    ],
)
def test_what_reaches_the_bottom_is_refused(name: str, method: PEFTStrategy, said: str) -> None:
    with pytest.raises(PeftlabError, match=said) as caught:
        built(name, method)
    assert str(caught.value).startswith("backbone.cache_frozen=true: ")
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(PeftlabError) as on_shapes:  # with no weights at all
        require_frozen_blocks(attach(tiny_config(name).build(3, seed=0, device="meta"), method, seed=0))
    assert str(on_shapes.value) == str(caught.value)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "modernbert"])
@pytest.mark.parametrize("method", [HeadOnly(), LastLayers(layers=1), LayerNormTuning(), LoRA(targets=[UPPER])])
def test_shapes_say_what_weights_say(name: str, method: PEFTStrategy) -> None:
    """Of a model on "meta", whose numbers nobody can look at, the same is refused and accepted."""
    said = []
    for device in ("cpu", "meta"):
        adapter = attach(tiny_config(name).build(3, seed=0, device=device), method, seed=0)
        try:
            require_frozen_blocks(adapter)
            said.append("accepted")
        except PeftlabError as error:
            said.append(str(error))
    assert said[0] == said[1]
    assert (said[0] == "accepted") == (not isinstance(method, LayerNormTuning))


# -- on the disk ---------------------------------------------------------------------------------


@pytest.fixture
def rows(scratch: Path) -> TokenizedTexts:
    return tokenize(Texts(TEXTS, [0, 1, 2, 0]), tiny("bert").tokenizer, 16)


class Counting:
    """Ids as states, of a type and kind, and how often they were asked for."""

    def __init__(self, dtype: torch.dtype = torch.float32, kind: str = "tokens") -> None:
        self.calls, self.dtype, self.kind = 0, dtype, kind

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        self.calls += 1
        states = torch.stack([ids, mask], dim=-1).to(self.dtype)
        return {"tokens": states, "first": states[:, :1], "mean": states[:, 0]}[self.kind]


def kept(rows: TokenizedTexts, compute: Any, **key: Any) -> tuple[TrunkStates, list[str]]:
    lines: list[str] = []
    return trunk_states(rows, 0, compute, key=key, said=lines.append), lines


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["tokens", "first", "mean"])
def test_each_row_has_its_own(rows: TokenizedTexts, dtype: torch.dtype, kind: str) -> None:
    states, lines = kept(rows, Counting(dtype, kind), kind=kind, dtype=str(dtype))
    assert "MiB are computed into" in lines[0]
    for row in range(4):
        ids = torch.from_numpy(rows[row]["input_ids"].copy())
        whole = torch.stack([ids, torch.ones_like(ids)], dim=-1).to(dtype)
        expected = {"tokens": whole, "first": whole[:1], "mean": whole[0]}[kind]
        assert states[row].dtype == dtype
        assert torch.equal(states[row], expected)


def test_it_is_computed_once_and_again_for_others_and_where_it_is_damaged(rows: TokenizedTexts) -> None:
    compute = Counting()
    states, _ = kept(rows, compute, backbone="a")
    _, lines = kept(rows, compute, backbone="a")
    assert (compute.calls, lines) == (1, [])
    kept(rows, compute, backbone="b")
    assert compute.calls == 2
    file = states.folder / "states.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    again, _ = kept(rows, compute, backbone="a")
    assert compute.calls == 3
    assert torch.equal(again[1][:, 1], torch.ones(len(again[1])))


def test_one_computes_and_the_other_waits(rows: TokenizedTexts) -> None:
    begun, go_on = threading.Event(), threading.Event()
    slow, fast = Counting(), Counting()

    def compute(ids: Tensor, mask: Tensor) -> Tensor:
        begun.set()
        assert go_on.wait(timeout=30)
        return slow(ids, mask)

    first = threading.Thread(target=kept, args=(rows, compute))
    first.start()
    assert begun.wait(timeout=30)
    lines: list[str] = []

    def said(line: str) -> None:
        lines.append(line)
        go_on.set()

    trunk_states(rows, 0, fast, key={}, said=said)
    first.join(timeout=30)
    assert (slow.calls, fast.calls) == (1, 0)
    assert lines == ["frozen trunk: another process computes it, and this one waits"]


def test_a_disk_without_room(rows: TokenizedTexts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(2**20))
    with pytest.raises(DataError, match=r"needs 0 MiB in .*trunk, and 1 MiB are free there. Set PEFTLAB_CACHE"):
        kept(rows, Counting())
    assert not list((trunk_cache.files.cache_folder() / "trunk").glob("*/states.npy"))


def test_a_run_learns_what_it_learns_without(peftlab: Any, reviews: Path) -> None:
    from tests.conftest import TINY, run_folder

    common = [
        *TINY,
        f"data.path={reviews}",
        "peft=last_layers",
        "peft.layers=1",
        "backbone.dropout=0",
        "trainer.max_epochs=2",
    ]
    assert peftlab("train", *common, "name=plain").status == 0
    cached = peftlab("train", *common, "name=cached", "backbone.cache_frozen=true")
    assert "the first 1 of 2 blocks are computed once, without dropout" in cached.out
    again = peftlab("train", *common, "name=again", "backbone.cache_frozen=true", "seed=0", "force=true")
    assert "are computed into" not in again.out
    facts = [json.loads((run_folder(name) / "record.json").read_text()) for name in ("plain", "cached")]
    for mine, theirs in zip(facts[0]["history"], facts[1]["history"], strict=True):
        for figure in ("train/loss", "validation/loss"):
            assert abs(mine[figure] - theirs[figure]) < 1e-5
    assert facts[0]["key"] != facts[1]["key"]
    assert peftlab("verify", "--rerun-eval", run_folder("cached")).status == 0
