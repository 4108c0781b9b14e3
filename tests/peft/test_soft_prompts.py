"""Prompt tuning, P-tuning and multitask prompts: places, padding, lengths, starts, counts, precision, wrong uses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from peftlab.backbones.soft_prompt import PromptPlacement
from peftlab.backbones.text_classifier import TextClassifierConfig
from peftlab.backbones.transformer import TransformerConfig
from peftlab.errors import BackboneError, PeftlabError
from peftlab.peft.base import PEFTStrategy, attach
from peftlab.peft.multitask_prompt import MultitaskPrompt
from peftlab.peft.p_tuning import PTuning
from peftlab.peft.prompt_tuning import PromptTuning
from peftlab.peft.soft_prompt import PromptAdapter, SoftPrompt
from peftlab.runs.counted import count_parameters
from tests.backbones.tiny_backbones import ARCHITECTURES, batch, shake, tiny, tiny_config
from tests.peft.tiny import batch as id_batch

TEXTS = ["short", "a text that is quite a bit longer than that", ""]
METHODS: dict[str, Callable[..., SoftPrompt]] = {
    "prompt": PromptTuning,
    "mlp": PTuning,
    "lstm": lambda **fields: PTuning(encoder="lstm", hidden=6, **fields),
    "multitask": lambda **fields: MultitaskPrompt(num_tasks=2, task=1, rank=2, **fields),
}


def prompted(backbone: Any, method: SoftPrompt, *, seed: int = 0) -> PromptAdapter:
    """``method`` in ``backbone``."""
    adapter = attach(backbone, method, seed=seed)
    assert isinstance(adapter, PromptAdapter)
    return adapter


def in_shaken(model_type: str, method: SoftPrompt, **more: Any) -> PromptAdapter:
    """``method`` in a backbone with large weights, so that its logits depend on the text."""
    backbone = tiny(model_type, **more)
    shake(backbone)
    return prompted(backbone, method)


@pytest.mark.parametrize("position", ["before", "after_first"])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_padding_changes_nothing_and_the_prompt_matters(model_type: str, position: Any) -> None:
    adapter = in_shaken(model_type, PromptTuning(length=4, position=position, init="random"))
    backbone = adapter.backbone
    ids, mask = batch(backbone, TEXTS)
    together = backbone(ids, mask)
    alone = torch.cat([backbone(*batch(backbone, [text])) for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert (together[0] - together[1]).abs().max() > 1e-3, "the text must matter"
    F.cross_entropy(together, torch.tensor([0, 1, 2])).backward()
    prompt = adapter.vectors.prompt_embeddings
    assert (prompt.grad.abs().amax(dim=1) > 0).all(), "every vector must matter"
    plain = tiny(model_type)
    shake(plain)
    assert (plain(ids, mask) - together).abs().max() > 1e-3


@pytest.mark.parametrize("position", ["before", "after_first"])
@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "electra", "modernbert", "deberta-v2"])
def test_an_encoder_sees_the_vectors_between_those_of_the_words(model_type: str, position: Any) -> None:
    adapter = in_shaken(model_type, PromptTuning(length=4, position=position))
    plain = tiny(model_type)
    shake(plain)
    ids, mask = id_batch(rows=1, length=9)
    words = plain.token_embedding()(ids)
    start = 1 if position == "after_first" else 0
    prompt = adapter.vectors().unsqueeze(0)
    vectors = torch.cat([words[:, :start], prompt, words[:, start:]], dim=1)
    expected = plain.model(inputs_embeds=vectors, attention_mask=torch.ones(1, 13, dtype=torch.long)).logits
    torch.testing.assert_close(adapter.backbone(ids, mask), expected, atol=1e-6, rtol=0)


def test_a_decoder_classifies_from_the_last_token_of_the_text() -> None:
    for model_type, trunk in (("gpt2", "transformer"), ("llama", "model"), ("gemma", "model")):
        adapter = in_shaken(model_type, PromptTuning(length=3))
        plain = tiny(model_type)
        shake(plain)
        ids, mask = id_batch()
        ids = ids * mask  # padding is the id 0
        words = plain.token_embedding()(ids)
        prompt = adapter.vectors().expand(len(ids), -1, -1)
        hidden = plain.model.get_submodule(trunk)(
            inputs_embeds=torch.cat([prompt, words], dim=1), attention_mask=F.pad(mask, (3, 0), value=1)
        ).last_hidden_state
        last = hidden[torch.arange(len(ids)), 3 + mask.sum(dim=1) - 1]
        torch.testing.assert_close(adapter.backbone(ids, mask), plain.model.score(last), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("model_type", "position"),
    [("bert", "after_first"), ("modernbert", "after_first"), ("gpt2", "before"), ("llama", "before"), ("t5", "before")],
)
def test_auto_keeps_the_token_that_an_encoder_classifies_from(model_type: str, position: Any) -> None:
    auto = in_shaken(model_type, PromptTuning(length=4)).backbone
    explicit = in_shaken(model_type, PromptTuning(length=4, position=position)).backbone
    ids, mask = batch(auto, TEXTS)
    assert torch.equal(auto(ids, mask), explicit(ids, mask))


@pytest.mark.parametrize("position", ["before", "after_first"])
def test_mean_pooling_is_over_the_texts_tokens(position: Any) -> None:
    backbone = in_shaken("bert", PromptTuning(length=4, position=position), pooling="mean").backbone
    ids, mask = id_batch()
    prompted = {}
    backbone.model.bert.register_forward_hook(lambda _, __, output: prompted.update(hidden=output.last_hidden_state))
    logits = backbone(ids, mask)
    start = 1 if position == "after_first" else 0
    text = torch.cat([prompted["hidden"][:, :start], prompted["hidden"][:, start + 4 :]], dim=1)  # (B, T, d)
    means = torch.stack([row[: keep.sum()].mean(dim=0) for row, keep in zip(text, mask, strict=True)])
    torch.testing.assert_close(logits, backbone.model.classifier(means))


@pytest.mark.parametrize(("model_type", "limit"), [("bert", 64), ("roberta", 63), ("gpt2", 64)])
def test_prompt_and_text_must_fit_the_positions(model_type: str, limit: int) -> None:
    method = PromptTuning(length=10)
    backbone = in_shaken(model_type, method).backbone
    backbone.check_length(limit - 10, extra_tokens=method.extra_tokens())
    assert backbone(*batch(backbone, ["x" * 100], limit - 10)).shape == (1, 3)
    with pytest.raises(BackboneError) as error:
        backbone.check_length(limit - 9, extra_tokens=method.extra_tokens())
    for part in (f"data.max_length={limit - 9}", "peft.length", f"{limit} positions", f"at most {limit - 10}"):
        assert part in str(error.value)
    with pytest.raises(BackboneError, match=r"Lower peft\.length"):
        backbone.check_length(8, extra_tokens=limit)


def test_the_run_counts_the_prompt_before_it_begins(peftlab: Any, reviews: Any) -> None:
    told = peftlab("train", f"data.path={reviews}", "data=text_files", "backbone=minilm", "peft=prompt_tuning",
                   "peft.length=500", "data.max_length=128", "name=long")  # fmt: skip
    assert told.status == 2
    assert "peft.length" in told.err
    assert "data.max_length=128" in told.err


@pytest.mark.parametrize("variant", METHODS)
@pytest.mark.parametrize("model_type", ["bert", "gpt2", "albert", "t5"])
def test_the_count_is_the_formulas(model_type: str, variant: str) -> None:
    method = METHODS[variant](length=7)
    expected = method.closed_form(tiny(model_type))
    assert count_parameters(prompted(tiny(model_type), method))["trainable_without_head"] == expected
    meta = tiny_config(model_type).build(3, seed=0, device="meta")
    assert count_parameters(prompted(meta, method))["trainable_without_head"] == expected
    assert all(parameter.is_meta for parameter in meta.parameters())


def test_t5_xxl_with_five_tokens_has_20_480_parameters() -> None:
    """Lester et al. 2021: 20,480 parameters a task for T5 XXL and a prompt of 5 tokens."""
    xxl = {"model_type": "t5", "d_model": 4096, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 64, "d_ff": 64}
    backbone = TransformerConfig(architecture=xxl).build(2, seed=0, device="meta")
    counted = count_parameters(prompted(backbone, PromptTuning(length=5)))
    assert counted["trainable_without_head"] == counted["added"] == 20_480


@pytest.mark.parametrize("variant", METHODS)
@pytest.mark.parametrize("more", [{}, {"quantize": "nf4"}, {"quantize": "int8"}, {"dtype": "bfloat16"}], ids=str)
@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_it_trains_and_keeps_the_rest_frozen(model_type: str, more: dict[str, Any], variant: str) -> None:
    backbone = tiny(model_type, **more)
    adapter = prompted(backbone, METHODS[variant](length=5))
    frozen = {n: p.clone() for n, p in backbone.named_parameters() if not p.requires_grad}
    own = dict(adapter.vectors.named_parameters())
    assert {p.dtype for p in own.values()} == {torch.float32}
    ids, mask = id_batch()
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(backbone(ids, mask), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    for name, parameter in own.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad or torch.equal(parameter, frozen[name]), name


@pytest.mark.parametrize("variant", METHODS)
def test_under_autocast(variant: str) -> None:
    backbone = in_shaken("bert", METHODS[variant](length=5)).backbone
    ids, mask = id_batch()
    exact = backbone(ids, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = backbone(ids, mask)
    logits.sum().backward()
    assert (logits - exact).abs().max() < 0.2 * exact.abs().max()


@pytest.mark.parametrize("variant", METHODS)
def test_a_saved_prompt_trains_on_with_the_same_bits(variant: str) -> None:
    def steps(adapter: PromptAdapter, count: int) -> None:
        ids, mask = id_batch()
        optimizer = torch.optim.SGD(adapter.parameters(beside=True), lr=0.1)
        for _ in range(count):
            optimizer.zero_grad()
            F.cross_entropy(adapter.backbone(ids, mask), torch.tensor([0, 1, 2, 0])).backward()
            optimizer.step()

    first = prompted(tiny("bert"), METHODS[variant](length=5))
    second = prompted(tiny("bert"), METHODS[variant](length=5), seed=7)
    steps(first, 2)
    second.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
    steps(first, 2)
    steps(second, 2)
    states = first.state_dict(), second.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("variant", METHODS)
def test_the_start_depends_on_the_seed_alone(variant: str) -> None:
    def start(seed: int) -> list[torch.Tensor]:
        backbone = tiny("bert")
        state = torch.get_rng_state()
        adapter = prompted(backbone, METHODS[variant](length=5), seed=seed)
        assert torch.equal(state, torch.get_rng_state()), "the global generator must not be touched"
        return list(adapter.vectors.parameters())

    one, again, other = start(0), start(0), start(1)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_starts() -> None:
    def start(**fields: Any) -> tuple[torch.Tensor, torch.Tensor]:
        adapter = prompted(tiny("gemma"), PromptTuning(**fields))
        return adapter.vectors().detach(), tiny("gemma").token_embedding()(torch.arange(300))

    random, _ = start(init="random", length=200)
    assert -0.5 <= random.min() < -0.49
    assert 0.49 < random.max() <= 0.5
    words, vocabulary = start(init="vocabulary", length=50)
    matches = (words.unsqueeze(1) == vocabulary.unsqueeze(0)).all(dim=-1)  # (n, vocabulary)
    assert (matches.sum(dim=1) == 1).all()
    chosen = matches.float().argmax(dim=1)
    assert chosen.unique().numel() == 50, "drawn without repetition"
    assert chosen.min() >= 3, "special tokens are no words"
    assert chosen.max() < 259, "nor are ids that the tokenizer never makes"
    text, vocabulary = start(init="text", init_text="abc", length=5)
    letters = [byte + 3 for byte in b"abcab"]
    assert torch.equal(text, vocabulary[letters]), "repeated to the length, without [CLS] and [SEP]"
    cut, _ = start(init="text", init_text="abcdefgh", length=2)
    assert torch.equal(cut, vocabulary[[byte + 3 for byte in b"ab"]])


def test_each_row_can_be_read_with_the_prompt_of_its_task() -> None:
    placement = PromptPlacement(first_id=300, length=2, position="after_first", task=1)
    assert placement.rows(2).tolist() == [[302, 303], [302, 303]]
    ids, mask = torch.tensor([[1, 5, 6], [1, 7, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    found = placement.insert(ids, mask, task_ids=torch.tensor([2, 0]))
    assert [part.tolist() for part in found] == [
        [[1, 304, 305, 5, 6], [1, 300, 301, 7, 0]],
        [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]],
        [[1, 0, 0, 1, 1], [1, 0, 0, 1, 0]],
    ]
    logits = []
    for task in (0, 1):
        adapter = prompted(tiny("bert"), MultitaskPrompt(length=2, num_tasks=2, task=task))
        with torch.no_grad():
            adapter.vectors.prefix_task_cols.mul_(1000)
        logits.append(adapter.backbone(*id_batch()))
    assert not torch.allclose(logits[0], logits[1], atol=1e-5)


def test_the_compact_prompt_of_p_tuning_works_without_its_encoder() -> None:
    ids, mask = id_batch()
    trained = prompted(tiny("bert"), PTuning(length=6, encoder="lstm", dropout=0.5))
    trained.backbone.train()
    compact = trained.inference_prompt()
    assert trained.backbone.training
    assert trained.vectors.training
    assert compact["prompt_embeddings"].shape == (6, 32)
    plain = prompted(tiny("bert"), PromptTuning(length=6))
    plain.load_inference_prompt(compact)
    torch.testing.assert_close(plain.backbone(ids, mask), trained.backbone.eval()(ids, mask))
    with pytest.raises(PeftlabError, match=r"peft=prompt_tuning peft\.length=6"):
        trained.load_inference_prompt(compact)
    with pytest.raises(PeftlabError, match=r"is \(3, 32\), and \(6, 32\)"):
        plain.load_inference_prompt({"prompt_embeddings": torch.zeros(3, 32)})
    with pytest.raises(PeftlabError, match="'prompt_embeddings' is missing"):
        plain.load_inference_prompt({})


def test_the_compact_multitask_prompt_comes_back() -> None:
    method = MultitaskPrompt(length=4, num_tasks=3, rank=2)
    one, other = (prompted(tiny("bert"), method, seed=seed) for seed in (0, 1))
    assert not torch.equal(one.backbone(*id_batch()), other.backbone(*id_batch()))
    other.load_inference_prompt(one.inference_prompt())
    assert torch.equal(one.backbone(*id_batch()), other.backbone(*id_batch()))


@torch.no_grad()  # attention kernels differ with what needs a gradient, and that is frozen in one of the two
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_switched_off_it_is_the_backbone(model_type: str) -> None:
    adapter = in_shaken(model_type, PromptTuning(length=4))
    backbone = adapter.backbone
    plain = tiny(model_type)
    shake(plain)
    ids, mask = batch(backbone, TEXTS)
    before = backbone(ids, mask)
    with adapter.disabled():
        assert torch.equal(backbone(ids, mask), plain(ids, mask))
    assert torch.equal(backbone(ids, mask), before)


@torch.no_grad()  # as above
@pytest.mark.parametrize("variant", METHODS)
@pytest.mark.parametrize("model_type", ["bert", "gpt2", "t5", "albert"])
def test_taken_out_it_leaves_the_backbone(model_type: str, variant: str) -> None:
    """T5's encoder and decoder had an embedding each: they get them back."""
    adapter = in_shaken(model_type, METHODS[variant](length=4))
    backbone, plain = adapter.backbone, tiny(model_type)
    shake(plain)
    ids, mask = batch(backbone, TEXTS)
    assert not torch.equal(backbone(ids, mask), plain(ids, mask))
    adapter.remove()
    assert torch.equal(backbone(ids, mask), plain(ids, mask))
    assert {n: type(m) for n, m in backbone.named_modules()} == {n: type(m) for n, m in plain.named_modules()}
    assert backbone.state_dict().keys() == plain.state_dict().keys()
    assert backbone.task_prompts == 1
    prompted(backbone, PromptTuning(length=3))  # there is room for another one


def test_a_copy_of_the_backbone_is_its_own() -> None:
    adapter = in_shaken("t5", PromptTuning(length=4))
    backbone = adapter.backbone
    ids, mask = batch(backbone, TEXTS)
    twin, theirs = copy.deepcopy((backbone, adapter))
    assert theirs.backbone is twin
    assert torch.equal(twin(ids, mask), backbone(ids, mask))
    with torch.no_grad():
        theirs.vectors.prompt_embeddings.add_(1.0)
    assert not torch.equal(twin(ids, mask), backbone(ids, mask))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PromptTuning(init="text"), "give peft.init_text"),
        (lambda: PromptTuning(init="text", init_text="  "), "give peft.init_text"),
        (lambda: PromptTuning(init_text="words"), "no effect with peft.init=vocabulary"),
        (lambda: PTuning(layers=2), "no effect with peft.encoder=mlp"),
        (lambda: PTuning(dropout=0.1), "needs peft.encoder=lstm"),
        (lambda: PTuning(encoder="lstm", layers=1, dropout=0.1), "peft.layers of 2 or more"),
        (lambda: MultitaskPrompt(num_tasks=2, task=2), "at most 1"),
        (lambda: MultitaskPrompt(init="text"), "give peft.init_text"),
    ],
)
def test_contradictory_fields(make: Callable[[], PEFTStrategy], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_wrong_uses(tmp_path: Any) -> None:
    words = TextClassifierConfig().build(2, seed=0, train_texts=["a b"])
    with pytest.raises(BackboneError, match="cannot take a soft prompt"):
        attach(words, PromptTuning(), seed=0)
    adapter = prompted(tiny("bert"), PromptTuning())
    for act in (adapter.merge, adapter.unmerge):
        with pytest.raises(PeftlabError, match="part of the model's input"):
            act()
    with pytest.raises(BackboneError, match="has a soft prompt already"):
        attach(adapter.backbone, PromptTuning(), seed=0)


def test_a_text_of_unknown_words_is_refused(tmp_path: Any) -> None:
    from tests.backbones.test_transformer import saved

    backbone = TransformerConfig(name_or_path=str(saved(tmp_path, tiny("bert")))).build(2, seed=0)
    with pytest.raises(PeftlabError, match=r"peft.init_text='unheard of' has no word"):
        attach(backbone, PromptTuning(init="text", init_text="unheard of"), seed=0)
    adapter = prompted(backbone, PromptTuning(init="text", init_text="good", length=2))
    word = backbone.token_embedding().weight[3]
    assert torch.equal(adapter.vectors().detach(), word.expand(2, -1))
