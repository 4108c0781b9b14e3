"""Methods of HF peft by its own configs: training, saving, merging, what is left alone, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from typing import Any

import peft
import pytest
import torch
from torch.nn import functional as F

from peftlab.backbones.quantize import quantize
from peftlab.errors import PeftlabError
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import attach
from peftlab.peft.hf_layers import HFPeftAdapter, tuner_layers
from peftlab.peft.hf_options import option_types, package_folder
from peftlab.peft.hf_peft import HFPeft
from peftlab.peft.surgery import weight_matrix
from peftlab.runs.counted import count_parameters
from tests.alone import peftlab_alone
from tests.conftest import REPOSITORY, TINY, Peftlab, run_folder
from tests.interop.exchange import base_model, logits_of, randomise, texts
from tests.peft.tiny import batch, tiny

TYPES: dict[str, dict[str, Any]] = {
    "OFT": {"oft_block_size": 16, "target_modules": "all-linear"},
    "LOHA": {"r": 2, "target_modules": ["query", "value"]},
    "LOKR": {"r": 2, "target_modules": r".*\.(query|value)"},
    "FOURIERFT": {"n_frequency": 50, "target_modules": ["query", "value"]},
    "HRA": {"r": 2, "target_modules": ["query", "output.dense"]},
    "LORA": {"r": 4, "target_modules": ["query", "value"]},
    "IA3": {"target_modules": ["key", "output.dense"], "feedforward_modules": ["output.dense"]},
    "RANDLORA": {"r": 4, "target_modules": ["query", "value"]},
}


def method(peft_type: str, **more: Any) -> HFPeft:
    return HFPeft(peft_type=peft_type, options=copy.deepcopy(TYPES[peft_type]) | more)


def trained(adapter: Adapter, steps: int = 3) -> Any:
    """The adapter's backbone after some steps."""
    ids, mask = batch()
    optimizer = torch.optim.AdamW(adapter.param_groups(0.02))
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(adapter.backbone(ids, mask), torch.tensor([0, 1, 0, 1])).backward()
        optimizer.step()
    return adapter.backbone.eval()


def attached(backbone: Any, strategy: HFPeft, *, seed: int = 0) -> HFPeftAdapter:
    adapter = attach(backbone, strategy, seed=seed)
    assert isinstance(adapter, HFPeftAdapter)
    return adapter


def logits(backbone: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = backbone.eval()(*batch())
    return result


@pytest.mark.parametrize("peft_type", TYPES)
def test_train_save_reload_merge(peft_type: str) -> None:
    plain = tiny("bert")
    backbone, strategy = tiny("bert"), method(peft_type)
    state = torch.get_rng_state()
    adapter = attach(backbone, strategy, seed=0)
    assert torch.equal(state, torch.get_rng_state())
    head = {name for name, _ in backbone.head_parameters()}
    assert all(backbone.model.get_parameter(name).requires_grad for name in head)
    frozen = {name: p.detach().clone() for name, p in backbone.named_parameters() if not p.requires_grad}
    trained(adapter)
    for name, before in frozen.items():
        assert torch.equal(backbone.get_parameter(name), before), name
    after = logits(backbone)
    assert not torch.allclose(after, logits(plain), atol=1e-4)

    another = attach(tiny("bert"), strategy, seed=7)
    another.load_state_dict({n: t.clone() for n, t in adapter.state_dict().items()})
    assert torch.equal(logits(another.backbone), after)
    assert torch.equal(logits(trained(another)), logits(trained(adapter)))

    after = logits(backbone)
    weights = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with adapter.disabled():
        for (name, one), (_, other) in zip(backbone.head_parameters(), plain.head_parameters(), strict=True):
            other.data.copy_(one.data), name
        torch.testing.assert_close(logits(backbone), logits(plain), atol=1e-6, rtol=0)
    assert {n for n, p in backbone.named_parameters() if p.requires_grad} == {
        n for n, p in another.backbone.named_parameters() if p.requires_grad
    }
    adapter.merge()
    adapter.merge()
    torch.testing.assert_close(logits(backbone), after, atol=2e-5, rtol=0)
    merged = copy.deepcopy(adapter)
    merged.remove()
    assert set(merged.model.state_dict()) == set(plain.model.state_dict())
    torch.testing.assert_close(logits(merged.backbone), after, atol=2e-5, rtol=0)
    with adapter.disabled():
        torch.testing.assert_close(logits(backbone), logits(plain), atol=1e-6, rtol=0)
    torch.testing.assert_close(logits(backbone), after, atol=2e-5, rtol=0)
    adapter.unmerge()
    adapter.unmerge()
    assert torch.equal(logits(backbone), after)
    assert all(torch.equal(weights[name], tensor) for name, tensor in backbone.state_dict().items())

    adapter.remove()
    assert {n: type(m) for n, m in backbone.named_modules()} == {n: type(m) for n, m in plain.named_modules()}
    assert torch.equal(logits(backbone), logits(plain)), "the heads are the same by now"
    assert not list(adapter.named_parameters())


@pytest.mark.parametrize("peft_type", ["OFT", "LOHA", "FOURIERFT", "LORA"])
def test_it_is_hf_peft_s_own_model(peft_type: str) -> None:
    backbone, strategy = tiny("bert"), method(peft_type)
    trained(attach(backbone, strategy, seed=0))
    reference = tiny("bert")
    options = TYPES[peft_type]
    if options["target_modules"] == "all-linear":
        options = options | {"exclude_modules": ["classifier"]}
    config = getattr(peft, {"LOHA": "LoHaConfig", "LORA": "LoraConfig", "FOURIERFT": "FourierFTConfig"}.get(
        peft_type, "OFTConfig"))(**options)  # fmt: skip
    hf = peft.get_peft_model(reference.model, config)  # type: ignore[arg-type]
    peft.set_peft_model_state_dict(hf, peft.get_peft_model_state_dict(
        hf, state_dict={f"base_model.model.{n}": t for n, t in backbone.model.state_dict().items()}))  # fmt: skip
    for (_, one), (_, other) in zip(backbone.head_parameters(), reference.head_parameters(), strict=True):
        other.data.copy_(one.data)
    torch.testing.assert_close(logits(backbone), logits(reference), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("peft_type", "kind"), [*((peft_type, "bert") for peft_type in TYPES), ("LORA", "gpt2")])
def test_updates_are_what_merging_adds(peft_type: str, kind: str) -> None:
    options = {} if kind == "bert" else {"target_modules": ["c_attn"]}
    adapter = attached(tiny(kind), method(peft_type, **options))
    trained(adapter)
    updates = {update.name: update for update in adapter.weight_updates()}
    layers = tuner_layers(adapter.model)
    assert updates.keys() == layers.keys() == adapter.layers.keys()
    before = {name: weight_matrix(layer.base_layer).detach().clone() for name, layer in layers.items()}
    for name in layers:
        torch.testing.assert_close(updates[name].weight, before[name])
    adapter.merge()
    for name, layer in layers.items():
        added = weight_matrix(layer.base_layer).detach() - before[name]
        torch.testing.assert_close(updates[name].update, added, atol=1e-5, rtol=1e-3)


def test_biases_that_hf_peft_trains() -> None:
    """Those of the trunk are the method's, that of the head is the head's; they cannot be switched off."""
    adapter = attached(tiny("bert"), method("LORA", bias="all"))
    biases = {name for name, _ in tiny("bert").model.named_parameters() if name.endswith("bias")}
    assert set(adapter.own_names()) == biases - {"classifier.bias"}
    counted = count_parameters(adapter)
    assert counted["trainable"] == counted["trainable_without_head"] + counted["head"]
    frozen_head = attach(tiny("bert"), method("LORA", bias="all"), seed=0, train_head=False)
    assert frozen_head.tensors().keys() == adapter.tensors().keys() - {"classifier.bias", "classifier.weight"}
    after = logits(trained(adapter))
    with pytest.raises(PeftlabError, match=r"trains the backbone's own '.*bias'"), adapter.disabled():
        pass
    another = attach(tiny("bert"), method("LORA", bias="all"), seed=3)
    another.load_state_dict(adapter.state_dict())
    assert torch.equal(logits(another.backbone), after)
    adapter.merge()
    torch.testing.assert_close(logits(adapter.backbone), after, atol=2e-5, rtol=0)
    adapter.unmerge()
    assert torch.equal(logits(adapter.backbone), after)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_updates_are_seen_on_a_quantised_backbone(kind: str) -> None:
    backbone = tiny("bert", quantize=kind)
    adapter = attached(backbone, method("OFT"))
    after = logits(trained(adapter))
    for update in adapter.weight_updates():
        assert isinstance(update.update, torch.Tensor)
        assert update.update.shape == update.weight.shape
        assert 0 < update.update.norm() < update.weight.norm()
    assert torch.equal(logits(backbone), after), "measuring changes nothing"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"oft_block_size": 7}, "peft.options.oft_block_size=7 does not divide the 32 inputs"),
        ({"oft_block_size": 0, "r": 5}, "peft.options.r=5 does not divide the 32 inputs"),
        ({"oft_block_size": 64}, "peft.options.oft_block_size=64 does not divide the 32 inputs"),
    ],
)
def test_blocks_that_do_not_divide_are_refused(options: dict[str, Any], said: str) -> None:
    """HF peft would silently take another size."""
    strategy = HFPeft(options=options | {"target_modules": "all-linear"})
    asked = [lambda: attach(tiny("bert"), strategy, seed=0)]
    asked += [lambda: strategy.closed_form(tiny("bert"))] if "r" not in options else []  # type: ignore[list-item,return-value]
    for ask in asked:
        with pytest.raises(PeftlabError) as error:
            ask()
        assert said in str(error.value)
        assert ("4 and 8" in str(error.value)) == (options.get("oft_block_size", 7) != 64)


@pytest.mark.parametrize("peft_type", ["OFT", "LOHA", "FOURIERFT", "LORA"])
@pytest.mark.parametrize("kind", ["bert", "llama", "roberta"])
def test_closed_forms(peft_type: str, kind: str) -> None:
    options = TYPES[peft_type] | {"target_modules": "all-linear"}
    backbone, strategy = tiny(kind), HFPeft(peft_type=peft_type, options=options)
    expected = strategy.closed_form(backbone)
    counted = count_parameters(attach(backbone, strategy, seed=0))
    assert counted["trainable_without_head"] == counted["added"] == expected
    assert HFPeft(peft_type=peft_type, options=options | {"exclude_modules": ["x"]}).closed_form(tiny(kind)) is None


def test_without_target_modules_hf_peft_chooses() -> None:
    backbone, strategy = tiny("bert"), HFPeft(options={"oft_block_size": 16})
    assert strategy.closed_form(backbone) is None
    adapter = attached(backbone, strategy)
    assert len(tuner_layers(backbone.model)) == len(adapter.layers) >= 4


def test_seeds() -> None:
    def factors(seed: int) -> torch.Tensor:
        adapter = attach(tiny("bert"), method("LORA"), seed=seed)
        return torch.cat([p.flatten() for n, p in adapter.named_parameters() if "lora_A" in n]).detach()

    assert torch.equal(factors(0), factors(0))
    assert not torch.equal(factors(0), factors(1))


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "deberta-v2", "modernbert", "llama"])
def test_the_head_is_never_wrapped(kind: str) -> None:
    backbone = tiny(kind)
    head = backbone.head_modules()
    attach(backbone, HFPeft(options={"oft_block_size": 16, "target_modules": "all-linear"}), seed=0)
    names = list(tuner_layers(backbone.model))
    assert len(names) >= 8
    assert not any(name == top or name.startswith(f"{top}.") for name in names for top in head)


def test_adapters_are_float32_on_a_bfloat16_backbone() -> None:
    for peft_type in ("OFT", "LOHA", "LORA"):
        backbone = tiny("bert", dtype="bfloat16")
        adapter = attach(backbone, method(peft_type), seed=0)
        assert {p.dtype for n, p in backbone.named_parameters() if p.requires_grad} == {torch.float32}
        assert torch.isfinite(logits(trained(adapter, steps=1))).all()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"peft_type": "LOHAA"}, "Did you mean 'LOHA'?"),
        ({"peft_type": "oft"}, "Did you mean 'OFT'?"),
        ({"peft_type": "PROMPT_TUNING"}, "Use peft=prompt_tuning"),
        ({"peft_type": "ADALORA"}, "Use peft=adalora"),
        ({"peft_type": "VERA"}, "Use peft=vera"),
        ({"options": {"oft_blocksize": 4}}, "Did you mean 'oft_block_size'?"),
        ({"options": {"oft_block_size": "abc"}}, "peft.options.oft_block_size='abc' is not allowed"),
        ({"options": {"oft_block_size": True}}, "has this option as int"),
        ({"peft_type": "LOHA", "options": {"alpha": float("nan")}}, "peft.options.alpha=nan is not allowed"),
        ({"peft_type": "LORA", "options": {"bias": "some"}}, "peft.options.bias='some'"),
        ({"peft_type": "LOHA", "options": {"token_dim": 3}}, "peft.options.token_dim: LOHA of HF peft has no"),
        ({"peft_type": "LOHA"}, "leave it out by '~peft.options.oft_block_size'"),
        ({"options": {"task_type": "SEQ_CLS"}}, "no such option"),
        ({"options": {"modules_to_save": ["classifier"]}}, "backbone.train_head"),
    ],
)
def test_wrong_configs(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=r"peft\.") as error:
        HFPeft(**fields)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"options": {"target_modules": ["query", "valeu"]}}, "Did you mean 'value'?"),
        ({"options": {"target_modules": ["nothing"]}}, "HF peft refuses this"),
        ({"options": {"oft_block_size": 32, "r": 4, "target_modules": ["query"]}}, "HF peft refuses this"),
        ({"peft_type": "POLY", "options": {"target_modules": ["query"]}}, "task of every text"),
        ({"peft_type": "ADAMSS", "options": {"target_modules": ["query"]}}, "at every step"),
        ({"peft_type": "VBLORA", "options": {"target_modules": ["query"]}}, "shares state"),
    ],
)
def test_refusals(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(PeftlabError) as error:
        attach(tiny("bert"), HFPeft(**fields), seed=0)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_quantised_backbones() -> None:
    def nf4() -> Any:
        backbone = tiny("bert")
        quantize(backbone.model, "nf4", keep=backbone.head_modules(), device=torch.device("cpu"))
        backbone.provenance["quantize"] = "nf4"
        return backbone

    adapter = attach(nf4(), method("OFT"), seed=0)
    trained(adapter)
    with pytest.raises(PeftlabError, match=r"round the merged weight"):
        adapter.merge()
    with pytest.raises(PeftlabError, match="no layers of this type for weights in nf4"):
        attach(nf4(), method("LOHA"), seed=0)


def test_options_are_those_of_the_type_alone() -> None:
    """Read from the files, and the same as HF peft's dataclasses have."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    package = package_folder()
    for peft_type, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        read = option_types(package, peft_type.name)
        if peft_type.name in (*TYPES, "BOFT", "SHIRA", "MISS", "LN_TUNING"):
            assert read is not None
        if read is not None:
            assert read.keys() == {one.name for one in dataclasses.fields(cls)}, peft_type


def test_importing_hf_peft_says_nothing() -> None:
    code = (
        "from peftlab.peft.base import attach; from peftlab.peft.hf_peft import HFPeft;"
        "from tests.peft.tiny import tiny;"
        "attach(tiny('bert'), HFPeft(options={'oft_block_size': 8, 'target_modules': ['query']}), seed=0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert "gemm_4bit" not in done.stderr


def test_a_missing_package_costs_one_line() -> None:
    code = (
        "import sys, importlib.util as u; find = u.find_spec; "
        "u.find_spec = lambda name, *a: None if name == 'peft' else find(name, *a); "
        "from peftlab.cli import main; status = main(['check', 'peft=hf_peft']); "
        "assert 'transformers' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "pip install 'peftlab[peft]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_wrong_option_is_found_without_importing_hf_peft() -> None:
    done = peftlab_alone("check", "peft=hf_peft", "+peft.options.oft_blocksize=3")
    assert done.status == 2
    assert "Did you mean 'oft_block_size'?" in done.err
    assert set(done.heavy) <= {"torch"}


def test_a_run(peftlab: Peftlab, reviews: Any) -> None:
    change = ["peft=hf_peft", "peft.options.oft_block_size=16", "trainer.max_epochs=1", f"data.path={reviews}"]
    done = peftlab("train", *TINY, *change, "name=oft")
    assert done.status == 0, done.err
    again = peftlab("evaluate", run_folder("oft"))
    assert again.status == 0
    assert "the same" in again.out
    assert "peft=hf_peft" in peftlab("inspect", run_folder("oft")).out
    onwards = peftlab("train", *TINY, *change, "name=next", f"backbone.from_run={run_folder('oft')}")
    assert onwards.status == 0, onwards.err


def test_tokens_that_train_beside_the_layers_are_the_adapters_own() -> None:
    """HF peft keeps them in a wrapper of another kind; they are saved, merge, switch off and leave as the rest."""
    options = {"r": 4, "target_modules": ["query"], "trainable_token_indices": [7, 50]}
    backbone, plain = base_model("bert"), base_model("bert")
    adapter = attach(backbone, HFPeft(peft_type="LORA", options=options), seed=1, train_head=False)
    ids, mask = texts("bert", "")
    ids = ids.clone()
    ids[:, 1] = 7
    untouched = logits_of(plain.eval(), ids, mask)
    randomise(backbone.eval())
    adapted = logits_of(backbone, ids, mask)
    assert "bert.embeddings.word_embeddings.trainable_tokens_delta.default" in adapter.state_dict()
    assert not torch.equal(adapted, untouched)
    with adapter.disabled():
        assert torch.equal(logits_of(backbone, ids, mask), untouched)
    adapter.merge()
    torch.testing.assert_close(logits_of(backbone, ids, mask), adapted, atol=1e-5, rtol=0)
    adapter.unmerge()
    assert torch.equal(logits_of(backbone, ids, mask), adapted)
    again = base_model("bert")
    other = attach(again.eval(), HFPeft(peft_type="LORA", options=options), seed=2, train_head=False)
    other.load_state_dict(adapter.state_dict())
    assert torch.equal(logits_of(again, ids, mask), adapted)
    adapter.remove()
    assert backbone.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(logits_of(backbone, ids, mask), untouched)


def test_layers_that_the_model_does_not_have_are_refused() -> None:
    options = {"r": 4, "target_modules": ["q_proj"], "layer_replication": [[0, 2], [1, 2]]}
    with pytest.raises(PeftlabError, match=r"'model\.layers\.2\.self_attn\.q_proj', which this llama does not have"):
        attach(base_model("llama"), HFPeft(peft_type="LORA", options=options), seed=0)
