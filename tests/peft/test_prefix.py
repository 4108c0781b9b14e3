"""Prefix tuning and P-tuning v2: attention of every architecture, lengths, counts, precision, wrong uses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from peftlab.backbones.attention import attention_modules, key_value_shape
from peftlab.backbones.text_classifier import TextClassifierConfig
from peftlab.errors import BackboneError, PeftlabError
from peftlab.peft.base import attach
from peftlab.peft.key_value_prefix import KeyValuePrefix, PrefixAdapter
from peftlab.peft.p_tuning_v2 import PTuningV2
from peftlab.peft.prefix_tuning import PrefixTuning
from peftlab.runs.counted import count_parameters
from tests.backbones.tiny_backbones import ARCHITECTURES, batch, shake, tiny, tiny_config
from tests.peft.tiny import batch as id_batch

TEXTS = ["short", "a text that is quite a bit longer than that", ""]
TAKES_PREFIX = [name for name in ARCHITECTURES if name not in ("big_bird", "deberta", "xlnet")]
METHODS: dict[str, Callable[..., KeyValuePrefix]] = {
    "direct": PTuningV2,
    "network": lambda **fields: PrefixTuning(hidden=12, **fields),
}


def prefixed(backbone: Any, method: KeyValuePrefix, *, seed: int = 0) -> PrefixAdapter:
    """``method`` in ``backbone``."""
    adapter = attach(backbone, method, seed=seed)
    assert isinstance(adapter, PrefixAdapter)
    return adapter


def both(model_type: str, method: KeyValuePrefix, **more: Any) -> tuple[Any, PrefixAdapter]:
    """A backbone with large weights, so that its logits depend on the text, and ``method`` in another of the same."""
    plain = tiny(model_type, **more)
    shake(plain)
    return plain, prefixed(copy.deepcopy(plain), method)


def attentions(model_type: str) -> tuple[str, ...]:
    return ("eager",) if model_type.startswith("deberta") else ("sdpa", "eager")


CASES = [(model_type, attention) for model_type in TAKES_PREFIX for attention in attentions(model_type)]


@pytest.mark.parametrize(("model_type", "attention"), CASES)
def test_padding_changes_nothing_and_every_layers_prefix_matters(model_type: str, attention: str) -> None:
    plain, adapter = both(model_type, PTuningV2(length=4), attention=attention)
    backbone = adapter.backbone
    ids, mask = batch(backbone, TEXTS)
    together = backbone(ids, mask)
    alone = torch.cat([backbone(*batch(backbone, [text])) for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert (together[0] - together[1]).abs().max() > 1e-3, "the text must matter"
    assert (plain(ids, mask) - together).abs().max() > 1e-3, "the prefix must matter"
    F.cross_entropy(together, torch.tensor([0, 1, 2])).backward()
    gradient = adapter.prefix.embedding.grad
    assert gradient is not None
    assert (gradient.abs() > 0).all(), "every key and value of every layer must matter"


def attended(scores: torch.Tensor, allowed: torch.Tensor, extra: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Softmax over extra scores, never masked, and the allowed ones; then the mean of values (B, H, n + T, d)."""
    scores = torch.cat([extra, scores.masked_fill(~allowed, -torch.inf)], dim=-1)
    return (scores.softmax(dim=-1) @ values).transpose(1, 2)  # (B, T, H, d)


T = 6
STEPS = torch.arange(T)
CAUSAL = STEPS.unsqueeze(1) >= STEPS
MASKS = {
    "all": torch.ones(T, T, dtype=torch.bool).expand(2, 1, T, T),
    "causal": CAUSAL.expand(2, 1, T, T),
    "window": (CAUSAL & (STEPS.unsqueeze(1) - STEPS < 3)).expand(2, 1, T, T),
    "padding": torch.stack([STEPS < T, STEPS < 4])[:, None, None].expand(2, 1, T, T),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "mistral", "modernbert", "gpt_neox", "t5"])
def test_attention_is_the_equation(model_type: str, attention: str, mask: str) -> None:
    adapter = prefixed(tiny(model_type, attention=attention), PTuningV2(length=3))
    backbone = adapter.backbone
    module = next(iter(attention_modules(backbone).values()))
    generator = torch.Generator().manual_seed(0)
    heads, size = key_value_shape(module)
    query = torch.randn(2, 4, T, size, generator=generator)
    key, value = torch.randn(2, 2, heads, T, size, generator=generator)
    bias = torch.randn(1, 4, T, T, generator=generator) if model_type == "t5" else torch.zeros(1, 4, T, T)
    function = ALL_ATTENTION_FUNCTIONS[backbone.model.config._attn_implementation]
    allowed = MASKS[mask]
    given: torch.Tensor | None = allowed
    if attention == "eager":
        given = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    elif mask == "all" or (mask == "causal" and module.is_causal):
        given = None  # what transformers leaves to the function's flag
    rest = {"position_bias": bias} if model_type == "t5" else {}
    causal = {"is_causal": False} if mask == "all" else {}
    found, _ = function(module, query, key, value, given, scaling=0.5, dropout=0.0, **rest, **causal)

    part = adapter.prefix.part(0)
    assert part is not None
    extra_key, extra_value = part
    groups = 4 // heads
    keys, extra_keys = (x.repeat_interleave(groups, dim=-3) for x in (key, extra_key))
    values = torch.cat([extra_value.expand(2, -1, -1, -1), value], dim=2).repeat_interleave(groups, dim=1)
    expected = attended(query @ keys.mT * 0.5 + bias, allowed, query @ extra_keys.mT * 0.5, values)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", ["mistral", "modernbert"])
def test_the_prefix_is_seen_from_beyond_a_window(model_type: str) -> None:
    window = {"mistral": {"sliding_window": 2}, "modernbert": {"local_attention": 2}}[model_type]
    config = tiny_config(model_type)
    assert config.architecture is not None
    config.architecture.update(window)
    backbone = config.build(3, seed=0).eval()
    shake(backbone)
    adapter = prefixed(backbone, PTuningV2(length=2))
    outputs: dict[str, torch.Tensor] = {}
    first = next(iter(attention_modules(backbone).values()))
    first.register_forward_hook(lambda _, __, output: outputs.update(found=output[0]))
    backbone(torch.arange(10, 30).unsqueeze(0), torch.ones(1, 20, dtype=torch.long))
    (gradient,) = torch.autograd.grad(outputs["found"][0, -1].sum(), adapter.prefix.embedding)
    assert (gradient[:, : gradient.shape[1] // 2].abs() > 0).all(), "the last query reads the first layer's prefix"


@pytest.mark.parametrize("length", [64, 63])
@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_a_text_as_long_as_the_positions_still_fits(model_type: str, length: int) -> None:
    method = PTuningV2(length=20)
    backbone = both(model_type, method)[1].backbone
    assert method.extra_tokens() == 0
    backbone.check_length(length, extra_tokens=method.extra_tokens())
    ids, mask = batch(backbone, ["x" * 100], length)
    assert ids.shape == (1, length)
    assert torch.isfinite(backbone(ids, mask)).all()


def test_debertas_attention_is_its_own_beside_the_prefixs_scores() -> None:
    plain, adapter = both("deberta-v2", PTuningV2(length=2))
    module = next(iter(attention_modules(adapter.backbone).values()))
    original = next(iter(attention_modules(plain).values()))
    x = torch.randn(2, T, 32, generator=torch.Generator().manual_seed(0))
    mask = MASKS["padding"]
    relative = {"rel_embeddings": adapter.model.deberta.encoder.get_rel_embedding()}
    context, weights = module(x, mask, output_attentions=True, **relative)
    plain_context, plain_weights = original(x, mask, output_attentions=True, **relative)
    on_prefix, on_text = weights[..., :2], weights[..., 2:]  # (B, H, T, ·)
    share = on_text.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(on_text / share, plain_weights)
    part = adapter.prefix.part(0)
    assert part is not None
    keys, values = part  # (H, n, d_head)
    query = module.query_proj(x).unflatten(-1, (4, 8)).transpose(1, 2)
    key = module.key_proj(x).unflatten(-1, (4, 8)).transpose(1, 2)
    scale = (3 * 8) ** 0.5  # three kinds of scores
    bias = module.disentangled_attention_bias(
        query.flatten(0, 1), key.flatten(0, 1), None, relative["rel_embeddings"], 3
    ).view(2, 4, T, T)
    score = query @ key.mT / scale + bias  # of the text, to which the prefix's scores are compared
    expected = (query @ keys.mT / scale).unsqueeze(-1) - score[..., None, :1]  # (B, H, T, n, 1)
    torch.testing.assert_close(
        on_prefix.log().unsqueeze(-1) - on_text[..., None, :1].log(), expected, atol=1e-4, rtol=0
    )
    by_head = (plain_context.unflatten(-1, (4, 8)).transpose(1, 2) * share + on_prefix @ values).transpose(1, 2)
    torch.testing.assert_close(context, by_head.flatten(2), atol=1e-5, rtol=1e-5)


def test_grouped_heads_have_a_prefix_of_their_own_number() -> None:
    for model_type, expected in (("llama", (2, 8)), ("phi3", (2, 8)), ("bert", (4, 8)), ("t5", (4, 8))):
        shapes = {key_value_shape(module) for module in attention_modules(tiny(model_type)).values()}
        assert shapes == {expected}


@pytest.mark.parametrize("variant", METHODS)
@pytest.mark.parametrize(
    ("model_type", "modules", "dim"), [("bert", 2, 32), ("albert", 1, 32), ("llama", 2, 16), ("t5", 6, 32)]
)
def test_the_count_is_the_formulas(model_type: str, modules: int, dim: int, variant: str) -> None:
    method = METHODS[variant](length=7)
    table = 2 * modules * dim
    expected = 7 * table if variant == "direct" else 7 * dim + (dim + 1) * 12 + (12 + 1) * table
    assert method.closed_form(tiny(model_type)) == expected
    for device in ("cpu", "meta"):
        backbone = tiny_config(model_type).build(3, seed=0, device=device)
        counted = count_parameters(prefixed(backbone, method))
        assert counted["trainable_without_head"] == counted["added"] == expected
        assert {parameter.device.type for parameter in backbone.parameters()} == {device}
    assert prefixed(tiny(model_type), method).inference_prompt()["prompt_embeddings"].shape == (7, table)


@pytest.mark.parametrize("variant", METHODS)
@pytest.mark.parametrize("more", [{}, {"quantize": "nf4"}, {"quantize": "int8"}, {"dtype": "bfloat16"}], ids=str)
@pytest.mark.parametrize("model_type", ["bert", "llama", "gpt2", "t5", "deberta-v2"])
def test_it_trains_and_keeps_the_rest_frozen(model_type: str, more: dict[str, Any], variant: str) -> None:
    backbone = tiny(model_type, **more)
    adapter = prefixed(backbone, METHODS[variant](length=5))
    frozen = {n: p.clone() for n, p in backbone.named_parameters() if not p.requires_grad}
    own = dict(adapter.prefix.named_parameters())
    assert {p.dtype for p in own.values()} == {torch.float32}
    ids, mask = batch(backbone, TEXTS)
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(backbone(ids, mask), torch.tensor([0, 1, 2])).backward()
        optimizer.step()
    for name, parameter in own.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad or torch.equal(parameter, frozen[name]), name


@pytest.mark.parametrize("model_type", ["bert", "llama", "deberta-v2", "t5"])
def test_under_autocast(model_type: str) -> None:
    backbone = both(model_type, PrefixTuning(length=5, hidden=12))[1].backbone
    ids, mask = batch(backbone, TEXTS)
    exact = backbone(ids, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = backbone(ids, mask)
    logits.sum().backward()
    assert (logits - exact).abs().max() < 0.2 * exact.abs().max()


@pytest.mark.parametrize("variant", METHODS)
def test_a_saved_prefix_trains_on_with_the_same_bits(variant: str) -> None:
    def steps(adapter: PrefixAdapter, count: int) -> None:
        ids, mask = id_batch()
        optimizer = torch.optim.SGD(adapter.parameters(beside=True), lr=0.1)
        for step in range(count):
            torch.manual_seed(step)
            optimizer.zero_grad()
            F.cross_entropy(adapter.backbone(ids, mask), torch.tensor([0, 1, 2, 0])).backward()
            optimizer.step()

    method = METHODS[variant](length=5, dropout=0.3)
    first, second = (prefixed(tiny("bert").train(), method, seed=seed) for seed in (0, 7))
    steps(first, 2)
    second.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
    steps(first, 2)
    steps(second, 2)
    one, other = first.state_dict(), second.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_dropout_acts_on_the_prefix_in_training_only() -> None:
    _, adapter = both("bert", PTuningV2(length=5, dropout=0.5), dropout=0.0, attention_dropout=0.0)
    backbone = adapter.backbone
    ids, mask = id_batch()
    assert torch.equal(backbone(ids, mask), backbone(ids, mask))
    backbone.train()
    assert not torch.equal(backbone(ids, mask), backbone(ids, mask))
    assert len(adapter.prefix.parts()) == 4


def test_the_models_attention_dropout_stays() -> None:
    for attention in ("sdpa", "eager"):
        _, adapter = both("bert", PTuningV2(length=5), dropout=0.0, attention_dropout=0.5, attention=attention)
        backbone = adapter.backbone
        ids, mask = id_batch()
        backbone.train()
        assert not torch.equal(backbone(ids, mask), backbone(ids, mask))


@pytest.mark.parametrize("variant", METHODS)
def test_the_start_depends_on_the_seed_alone(variant: str) -> None:
    def start(seed: int) -> list[torch.Tensor]:
        backbone = tiny("bert")
        state = torch.get_rng_state()
        adapter = prefixed(backbone, METHODS[variant](length=5), seed=seed)
        assert torch.equal(state, torch.get_rng_state()), "the global generator must not be touched"
        return list(adapter.prefix.parameters())

    one, again, other = start(0), start(0), start(1)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_compact_prefix_works_without_its_network() -> None:
    ids, mask = id_batch()
    _, trained = both("llama", PrefixTuning(length=6, hidden=12))
    compact = trained.inference_prompt()
    _, direct = both("llama", PrefixTuning(length=6, reparameterize=False))
    direct.load_inference_prompt(compact)
    torch.testing.assert_close(direct.backbone(ids, mask)[0], trained.backbone(ids, mask)[0])
    with pytest.raises(PeftlabError, match=r"peft=prefix_tuning peft\.reparameterize=false"):
        trained.load_inference_prompt(compact)
    with pytest.raises(PeftlabError, match=r"is \(3, 64\), and \(6, 64\)"):
        direct.load_inference_prompt({"prompt_embeddings": torch.zeros(3, 64)})


@pytest.mark.parametrize("model_type", ["bert", "deberta-v2", "t5"])
def test_a_copy_of_the_backbone_is_its_own(model_type: str) -> None:
    _, adapter = both(model_type, PTuningV2(length=4))
    backbone = adapter.backbone
    ids, mask = batch(backbone, TEXTS)
    expected = backbone(ids, mask)
    twin = copy.deepcopy(backbone)
    with torch.no_grad():
        adapter.prefix.embedding.add_(1.0)
    assert torch.equal(twin(ids, mask), expected)
    assert not torch.equal(backbone(ids, mask), expected)


@torch.no_grad()  # attention kernels differ with what needs a gradient, and that is frozen in one of the two
@pytest.mark.parametrize(("model_type", "attention"), CASES)
def test_switched_off_it_is_the_backbone(model_type: str, attention: str) -> None:
    plain, adapter = both(model_type, PTuningV2(length=4), attention=attention)
    backbone = adapter.backbone
    ids, mask = batch(backbone, TEXTS)
    for given in ((ids, mask), (ids[1:2], mask[1:2])):  # without padding transformers leaves out the mask
        before = backbone(*given)
        with adapter.disabled():
            assert torch.equal(backbone(*given), plain(*given))
        assert torch.equal(backbone(*given), before)


@torch.no_grad()  # as above
@pytest.mark.parametrize(
    ("model_type", "attention", "shift"),
    [
        *((model_type, attention, False) for model_type, attention in CASES),
        *((model_type, "sdpa", True) for model_type in ("bert", "roberta", "gpt2", "llama")),
    ],
)
def test_taken_out_it_leaves_the_backbone(model_type: str, attention: str, shift: bool) -> None:
    plain, adapter = both(model_type, PTuningV2(length=4, position_shift=shift), attention=attention)
    backbone = adapter.backbone
    ids, mask = batch(backbone, TEXTS)
    assert not torch.equal(backbone(ids, mask), plain(ids, mask))
    adapter.remove()
    assert torch.equal(backbone(ids, mask), plain(ids, mask))
    assert {n: type(m) for n, m in backbone.named_modules()} == {n: type(m) for n, m in plain.named_modules()}
    assert backbone.model.config._attn_implementation == plain.model.config._attn_implementation
    prefixed(backbone, PTuningV2(length=3))  # there is room for another one


def test_other_backbones_are_left_alone() -> None:
    plain = tiny("bert")
    ids, mask = id_batch()
    before = plain(ids, mask)
    both("bert", PTuningV2())
    assert plain.model.config._attn_implementation == "sdpa"
    assert torch.equal(plain(ids, mask), before)


def test_wrong_uses() -> None:
    with pytest.raises(ValueError, match=r"peft\.hidden=3 is the width of a network"):
        PTuningV2(hidden=3)
    with pytest.raises(BackboneError, match="takes no keys and values beside its own"):
        attach(tiny("deberta"), PTuningV2(), seed=0)
    plain = TextClassifierConfig().build(2, seed=0, train_texts=["a b"])
    with pytest.raises(BackboneError, match=r"text_classifier has no attention .* \(peft=lora\)") as error:
        attach(plain, PTuningV2(), seed=0)
    assert "prompt_tuning" not in str(error.value), "which needs a transformer as well"
    upcast = tiny_config("gpt2", attention="eager")
    assert upcast.architecture is not None
    upcast.architecture["reorder_and_upcast_attn"] = True
    with pytest.raises(BackboneError, match="reorder_and_upcast_attn"):
        attach(upcast.build(3, seed=0), PTuningV2(), seed=0)
    direct, network = prefixed(tiny("bert"), PTuningV2()), prefixed(tiny("bert"), PrefixTuning())
    with pytest.raises(PeftlabError, match="has a prefix already"):
        attach(direct.backbone, PTuningV2(), seed=0)
    for act in (direct.merge, direct.unmerge, network.merge, network.unmerge):
        with pytest.raises(PeftlabError, match="cannot be merged"):
            act()
