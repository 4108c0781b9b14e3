"""Adapters as files: what is saved comes back, in both formats, and belongs to one model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from peftlab import (
    IA3,
    AdaLoRA,
    BitFit,
    Compose,
    DoRA,
    FullFineTuning,
    HeadOnly,
    HFPeft,
    Houlsby,
    LoRA,
    PeftlabError,
    PrefixTuning,
    PromptTuning,
    VeRA,
    attach,
    load_adapter,
)
from tests.library.models import Net, bert, gpt2, ids, same, shake, states

METHODS: dict[str, Any] = {
    "lora": LoRA(rank=4, targets=["query", "ffn_up"]),
    "dora": DoRA(),
    "adalora": AdaLoRA(),
    "vera": VeRA(),
    "ia3": IA3(),
    "bitfit": BitFit(),
    "head": HeadOnly(),
    "full": FullFineTuning(),
    "houlsby": Houlsby(),
    "prompt": PromptTuning(init="random", length=3),
    "prefix": PrefixTuning(length=3, hidden=8),
    "compose": Compose(methods=[{"name": "lora", "rank": 2}, {"name": "bitfit"}]),
    "hf_peft": HFPeft(peft_type="LOHA", options={"r": 4, "target_modules": ["query"]}),
}


@pytest.mark.parametrize("name", METHODS)
def test_saved_and_loaded(name: str, scratch: Path) -> None:
    model = bert()
    adapter = attach(model, METHODS[name], train=["classifier"])
    shake(adapter)
    expected = model(**ids()).logits
    assert adapter.save(scratch / "saved") == []
    fresh = bert()
    again = load_adapter(fresh, "saved")
    assert torch.equal(fresh(**ids()).logits, expected)
    assert same(again.state_dict(), adapter.state_dict())
    assert again.strategy == adapter.strategy
    assert {n for n, p in fresh.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    again.save(scratch / "twice")
    for file in ("adapter.safetensors", "adapter.json"):
        assert (scratch / "twice" / file).read_bytes() == (scratch / "saved" / file).read_bytes()


def test_a_prompt_that_started_from_words_needs_no_tokenizer_to_be_loaded(scratch: Path) -> None:
    from tests.backbones.tiny_backbones import tiny

    model = bert()
    adapter = attach(model, PromptTuning(length=3), tokenizer=tiny("bert").tokenizer)
    adapter.save("saved")
    fresh = bert()
    load_adapter(fresh, "saved")
    assert torch.equal(fresh(**ids()).logits, model(**ids()).logits)


def test_of_a_model_written_by_hand(scratch: Path) -> None:
    """Statistics of a layer that trains beside it are saved too."""
    model = Net()
    adapter = attach(model, LoRA(targets=["up"]), train=["head", "norm"])
    model.train()
    model(torch.randn(16, 8) * 3 + 1)
    model.eval()
    shake(adapter)
    adapter.save("saved")
    fresh, x = Net(), torch.randn(4, 8)
    load_adapter(fresh, "saved")
    assert torch.equal(fresh(x), model(x))


def test_a_frozen_layer_whose_statistics_have_changed_cannot_be_saved(scratch: Path) -> None:
    model = Net()
    adapter = attach(model, LoRA(targets=["up"]), train=["head"])
    model.train()
    model(torch.randn(16, 8) * 3 + 1)
    said = refused(lambda: adapter.save("saved"))
    assert "'norm.running_mean' has changed since the adapter was attached" in said
    assert "train=['norm']" in said
    assert not Path("saved").exists()


def test_merged_it_is_saved_as_it_is_unmerged(scratch: Path) -> None:
    model = bert()
    adapter = attach(model, LoRA())
    shake(adapter)
    adapter.save("one")
    adapter.merge()
    merged = states(model)
    adapter.save("two")
    assert same(states(model), merged)
    for file in ("adapter.safetensors", "adapter.json"):
        assert Path("one", file).read_bytes() == Path("two", file).read_bytes()


HF_METHODS = ["lora", "dora", "ia3", "vera", "adalora", "prompt", "prefix"]


@pytest.mark.parametrize("name", HF_METHODS)
def test_hf_peft_reads_what_is_saved_in_its_format(name: str, scratch: Path) -> None:
    method = METHODS[name]
    if name == "prompt":
        method = PromptTuning(init="random", length=3, position="before")
    if name == "prefix":
        method = PrefixTuning(length=3, hidden=8, position_shift=True)
    model = bert()
    adapter = attach(model, method, train=["classifier"])
    shake(adapter)
    expected = model(**ids()).logits
    adapter.save("saved", format="hf_peft")
    theirs = peft.PeftModel.from_pretrained(bert(), "saved").eval()
    torch.testing.assert_close(theirs(**ids()).logits, expected, atol=1e-5, rtol=0)
    fresh = bert()
    again = load_adapter(fresh, "saved")
    torch.testing.assert_close(fresh(**ids()).logits, expected, atol=1e-5, rtol=0)
    assert again.beside == ["classifier"]


@pytest.mark.parametrize(
    ("build", "targets", "task", "given"),
    [
        (bert, ["query"], "SEQ_CLS", ids()),
        (lambda: bert("AutoModel"), ["query"], "FEATURE_EXTRACTION", ids()),
        (lambda: bert("AutoModelForTokenClassification"), ["query"], "TOKEN_CLS", ids()),
        (gpt2, ["c_attn"], "CAUSAL_LM", ids()),
        (Net, ["up"], None, {"x": torch.randn(4, 8)}),
    ],
    ids=["classifier", "trunk", "tokens", "causal", "by hand"],
)
def test_the_task_of_hf_peft_is_by_the_class(
    build: Callable[[], Any], targets: list[str], task: str | None, given: dict[str, Any], scratch: Path
) -> None:
    """Without anything beside it; a classifier's head goes along as it is."""
    model = build()
    adapter = attach(model, LoRA(targets=targets))
    shake(adapter)
    adapter.save("saved", format="hf_peft")
    assert json.loads(Path("saved/adapter_config.json").read_text())["task_type"] == task
    theirs = peft.PeftModel.from_pretrained(build(), "saved").eval()
    mine = build()
    load_adapter(mine, "saved")
    for other in (theirs, mine):
        torch.testing.assert_close(out(other(**given)), out(model(**given)), atol=1e-5, rtol=0)


def test_what_hf_peft_has_trained_is_loaded(scratch: Path) -> None:
    theirs = peft.get_peft_model(
        Net(), peft.LoraConfig(r=4, target_modules=["up"], modules_to_save=["head"], init_lora_weights=False)
    )
    with torch.no_grad():
        theirs.base_model.model.head.modules_to_save["default"].weight.add_(1)
    theirs.save_pretrained("saved")
    model, x = Net(), torch.randn(4, 8)
    adapter = load_adapter(model, "saved")
    torch.testing.assert_close(model(x), theirs(x), atol=1e-5, rtol=0)
    assert adapter.beside == ["head"]


def out(said: Any) -> torch.Tensor:
    found: torch.Tensor = said if isinstance(said, torch.Tensor) else said[0]
    return found


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(PeftlabError) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said
    return said


@pytest.fixture
def saved(scratch: Path) -> Path:
    adapter = attach(bert(), LoRA(), train=["classifier"])
    adapter.save(scratch / "saved")
    return scratch / "saved"


def test_another_model_is_refused_and_left_as_it_was(saved: Path) -> None:
    for other in (bert(seed=1), bert(num_labels=3), Net(), bert("AutoModel")):
        clean = states(other)
        said = refused(lambda model=other: load_adapter(model, saved))  # type: ignore[misc]
        assert "is not the model that the adapter in" in said or "does not fit" in said, said
        assert same(states(other), clean)
    already = bert()
    attach(already, LoRA())
    assert "carries an adapter already" in refused(lambda: load_adapter(already, saved))
    assert "must be a torch.nn.Module" in refused(lambda: load_adapter("bert", saved))  # type: ignore[arg-type]


def test_a_head_of_other_classes_leaves_nothing_behind(saved: Path) -> None:
    model = bert(num_labels=5)
    clean = states(model)
    assert "'classifier.weight' is (2, 32) in the file and (5, 32)" in refused(lambda: load_adapter(model, saved))
    assert same(states(model), clean)
    assert all(p.requires_grad for p in model.parameters())
    attach(model, LoRA())


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "adapter.json").write_text("{"), "cannot read"),
        (lambda f: (f / "adapter.json").write_text("{}"), "is not as peftlab writes it"),
        (lambda f: (f / "adapter.safetensors").unlink(), "cannot read"),
        (
            lambda f: (f / "adapter.safetensors").write_bytes(b"x" * 100),
            "is not the file that adapter.json was written",
        ),
    ],
)
def test_damaged_files(saved: Path, damage: Callable[[Path], Any], says: str) -> None:
    damage(saved)
    assert says in refused(lambda: load_adapter(bert(), saved))


def test_what_cannot_be_saved(scratch: Path) -> None:
    adapter = attach(bert(), LoRA())
    assert "must be 'peftlab' or 'hf_peft'" in refused(lambda: adapter.save("x", format="zip"))  # type: ignore[arg-type]
    Path("file").write_text("")
    assert "cannot write" in refused(lambda: adapter.save("file"))
    houlsby = attach(bert(), Houlsby())
    assert "which knows no such method" in refused(lambda: houlsby.save("x", format="hf_peft"))
    assert not Path("x").exists()
