"""One cell of the matrix: a method with its defaults on one tiny architecture, and what must hold there.

Each check is a function of a :class:`Trial` that raises :class:`Broken`. :func:`examine` runs them all and
collects what they say, so that one cell reports everything that is wrong with it at once.
"""

from __future__ import annotations

import copy
import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from peftlab.backbones.base import Backbone
from peftlab.backbones.language_model import LanguageModelBackbone
from peftlab.backbones.quantize import quantize
from peftlab.backbones.roles import find_targets
from peftlab.errors import PeftlabError
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import PEFTStrategy, attach, methods
from peftlab.peft.names import clean_name
from peftlab.records.folder import RunFolder
from peftlab.runs.adapter_file import adapter_bytes, load_adapter, save_adapter
from peftlab.seeding import derive_seed
from tests.backbones.tiny_backbones import batch, shake, tiny, tiny_config
from tests.conformance.expectations import LACKING, UNREAD, backbone_cannot, without_head

ENCODERS = ("bert", "distilbert", "roberta", "deberta-v2", "modernbert", "big_bird", "xlnet")
DECODERS = ("gpt2", "llama", "gemma")
ENCODER_DECODERS = ("t5",)
KINDS = (*ENCODERS, *DECODERS, *ENCODER_DECODERS)
LANGUAGE_MODELS = ("gpt2-lm", "llama-lm", "qwen2-lm", "mistral-lm", "gemma-lm")
"""Decoders with the head that they were pre-trained with: of GPT-2 and Gemma it is the embedding too (tied)."""
WEIGHTS = ("fp32", "nf4")

STEPS = 4
NEW_TOKENS = 6
LEARNING_RATE = 0.01
TEXTS = (  # two batches, so that no step repeats the one before it; lengths differ, so that there is padding
    ("a fine and moving film", "dull", "great acting, no story", "so-so"),
    ("I hated it", "wonderful story, 10/10", "boring", "the best of 1999"),
)
LABELS = torch.tensor([0, 1, 2, 0])

Make = Callable[[], PEFTStrategy]


def known_methods() -> dict[str, type[PEFTStrategy]]:
    """The registry, without what other tests may have put into it."""
    return {name: cls for name, cls in methods() if not cls.__module__.startswith("tests.")}


class Broken(AssertionError):
    """Something that the protocol promises does not hold."""


def require(holds: bool, message: str) -> None:
    if not holds:
        raise Broken(message)


# -- backbones -----------------------------------------------------------------------------------------


def _built(kind: str, **more: Any) -> Backbone:
    if kind in LANGUAGE_MODELS:
        return tiny_config(without_head(kind), **more).build(0, seed=0, head="own").eval()
    return tiny(kind, **more)


@cache
def _template(kind: str, weights: str, dtype: str) -> Backbone:
    backbone = _built(kind)
    shake(backbone)
    if dtype != "float32":
        values = backbone.state_dict()
        backbone = _built(kind, dtype=dtype)
        backbone.load_state_dict(values)
    if weights == "nf4":  # as the backbone's config does it; the weights had to be enlarged before
        quantize(backbone.model, "nf4", keep=backbone.head_modules(), device=torch.device("cpu"))
        backbone.provenance["quantize"] = "nf4"
    return backbone


@cache
def _meta_template(kind: str) -> Backbone:
    config = tiny_config(without_head(kind))
    return config.build(3, seed=0, device="meta", head="own" if kind in LANGUAGE_MODELS else "new")


def untouched(kind: str, weights: str, dtype: str = "float32") -> Backbone:
    """A backbone that nothing was injected into; always the same weights."""
    return copy.deepcopy(_template(kind, weights, dtype))


@cache
def _ids(kind: str, number: int) -> tuple[Tensor, Tensor]:
    return batch(_template(kind, "fp32", "float32"), TEXTS[number])


def logits_of(backbone: Backbone, ids: Tensor, mask: Tensor) -> Tensor:
    """Of a language model those of the token behind each text."""
    backbone.eval()
    last = {"at": mask.cumsum(1).eq(mask.sum(1, keepdim=True)) & mask.bool()} if backbone.says_next_tokens else {}
    with torch.no_grad():
        logits: Tensor = backbone(ids, mask, **last)
    return logits


@cache
def _untouched_logits(kind: str, weights: str) -> Tensor:
    return logits_of(untouched(kind, weights), *_ids(kind, 0))


# -- training ------------------------------------------------------------------------------------------


@dataclass
class Training:
    """A model in training, as :class:`peftlab.training.module.TrainingModule` trains it."""

    adapter: Adapter
    kind: str
    optimizer: torch.optim.Optimizer = field(init=False)
    largest_gradient: dict[str, float] = field(default_factory=dict)
    """Largest entry, over all steps, of each gradient that there was."""

    def __post_init__(self) -> None:
        self.backbone = self.adapter.backbone
        self.optimizer = torch.optim.AdamW(self.adapter.param_groups(LEARNING_RATE))

    def run(self, steps: range) -> None:
        for step in steps:
            torch.manual_seed(derive_seed(0, "dropout", step))
            self.optimizer.zero_grad()
            loss = self.loss(step)
            require(bool(torch.isfinite(loss)), f"the loss of step {step} is {loss.item()}")
            loss.backward()
            self._note_gradients()
            self.optimizer.step()
            self.adapter.on_step(step + 1, STEPS)

    def loss(self, step: int) -> Tensor:
        self.backbone.train()
        ids, mask = _ids(self.kind, step % len(TEXTS))
        if self.backbone.says_next_tokens:
            # a prompt of two tokens: what edits prompts edits at most a half of one from either side
            asked = F.pad(mask[:, 1:], (0, 1)).bool() & (mask.cumsum(1) > 1)
            loss = F.cross_entropy(self.backbone(ids, mask, at=asked).float(), ids[:, 1:][asked[:, :-1]])
        else:
            loss = F.cross_entropy(self.backbone(ids, mask).float(), LABELS)
        penalty = self.adapter.regularization(step + 1, STEPS)
        return loss if penalty is None else loss + penalty

    def _note_gradients(self) -> None:
        for name, parameter in self.backbone.named_parameters():
            if parameter.requires_grad and parameter.grad is not None:
                gradient = parameter.grad
                require(bool(torch.isfinite(gradient).all()), f"the gradient of '{name}' is not finite")
                known = self.largest_gradient.get(name, 0.0)
                self.largest_gradient[name] = max(known, float(gradient.abs().max()))

    def saved(self) -> bytes:
        """The adapter as a safetensors file."""
        return adapter_bytes(self.adapter)

    def optimizer_file(self) -> bytes:
        file = io.BytesIO()
        torch.save(self.optimizer.state_dict(), file)
        return file.getvalue()


def attached(make: Make, backbone: Backbone, seed: int) -> Adapter:
    return attach(backbone, make(), seed=seed, train_head=not backbone.says_next_tokens)


# -- a trial -------------------------------------------------------------------------------------------


class Trial:
    """A method trained in one cell, with what was seen on the way; raises PeftlabError where it is refused."""

    def __init__(self, make: Make, kind: str, weights: str) -> None:
        self.make, self.kind, self.weights = make, kind, weights
        self.original = _template(kind, weights, "float32")
        """Nothing was put into it; to be looked at only."""
        backbone = untouched(kind, weights)
        random_state = torch.get_rng_state()
        self.adapter = attached(make, backbone, seed=0)
        self.random_state_kept = torch.equal(random_state, torch.get_rng_state())
        self.backbone = backbone
        self.ids, self.mask = _ids(kind, 0)
        self.logits_at_start = logits_of(backbone, self.ids, self.mask)
        self.frozen_at_start = self._frozen()
        self.training = Training(self.adapter, kind)

    def train(self) -> None:
        """Train, and keep what a run that is killed half-way would have kept."""
        self.training.run(range(STEPS // 2))
        self.half_way = self.training.saved(), self.training.optimizer_file()
        self.training.run(range(STEPS // 2, STEPS))
        self.logits = logits_of(self.backbone, self.ids, self.mask)
        self.scale = float(self.logits.abs().max())

    @property
    def strategy(self) -> PEFTStrategy:
        return self.adapter.strategy

    def another(self, dtype: str = "float32") -> Adapter:
        """The same method on a further model, drawn from another seed, not trained."""
        return attached(self.make, untouched(self.kind, self.weights, dtype), seed=99)

    @cached_property
    def reloaded(self) -> Adapter:
        """A further model after it loaded the adapter file of the trained one."""
        adapter = self.another()
        self.logits_before_loading = logits_of(adapter.backbone, self.ids, self.mask)
        with tempfile.TemporaryDirectory() as folder:
            save_adapter(RunFolder(Path(folder)), self.adapter, {})
            load_adapter(RunFolder(Path(folder)), adapter)
        return adapter

    @cached_property
    def in_bf16(self) -> Adapter:
        """The method on the same weights in bfloat16, not trained."""
        return self.another("bfloat16")

    def _frozen(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self._frozen_now().items()}

    def _frozen_now(self) -> dict[str, Tensor]:
        """What must not change: all that does not train, but for what a method remembers of its steps."""
        running = set(map(id, self.adapter.running_state()))
        return {
            name: tensor
            for name, tensor in self.backbone.state_dict(keep_vars=True).items()
            if isinstance(tensor, Tensor) and not tensor.requires_grad and id(tensor) not in running
        }

    def key_biases(self) -> set[str]:
        """Biases whose gradient is zero by mathematics: they add the same number to all scores of a query,
        which the softmax takes away again."""
        try:
            keys = find_targets(self.original, ["key"])
        except PeftlabError:  # an attention without such a layer
            return set()
        return {f"{target.name}.bias" for target in keys if target.output_slice is None}


# -- the checks ----------------------------------------------------------------------------------------


def identity_at_start(trial: Trial) -> None:
    """The model starts as the backbone, or, where the method says so, it does not."""
    before = _untouched_logits(trial.kind, trial.weights)
    difference, scale = _largest_difference(trial.logits_at_start, before), float(before.abs().max())
    if trial.strategy.supports.identity_at_start:
        require(
            difference <= 1e-6 * scale, f"logits differ by {difference:.1e} from the backbone's (scale {scale:.2g})"
        )
    else:
        require(difference > 1e-6 * scale, "supports.identity_at_start is False, yet the logits are the backbone's")


def global_random_state(trial: Trial) -> None:
    """Adapters draw from generators of their own."""
    require(trial.random_state_kept, "build drew from the global random state")


def closed_form(trial: Trial) -> None:
    """The formula of the paper, on an untouched backbone, gives what trains."""
    expected = trial.strategy.closed_form(trial.original)
    counted = trial.adapter.num_parameters()
    if expected is None:
        built_in = type(trial.strategy).__module__.startswith("peftlab.")
        require(not built_in, f"closed_form gives None; {counted} elements train")
        return
    require(expected == counted, f"closed_form gives {expected}, but {counted} elements train")


def on_meta(trial: Trial) -> None:
    """A model without values can be adapted, to count its parameters before its weights are fetched."""
    if trial.weights != "fp32":  # "meta" models are never quantised
        return
    backbone = copy.deepcopy(_meta_template(trial.kind))
    adapter = attached(trial.make, backbone, seed=0)
    strays = {str(p.device) for p in backbone.parameters()} - {"meta"}
    require(not strays, f"parameters on {', '.join(strays)} beside a backbone on meta")
    counted, expected = adapter.num_parameters(), trial.adapter.num_parameters()
    require(counted == expected, f"{counted} elements train on meta, {expected} on the CPU")


def adapters_in_fp32(trial: Trial) -> None:
    """What a method adds is float32, whatever the backbone's type."""
    own = set(trial.in_bf16.own_names())
    added = {name: p for name, p in trial.in_bf16.named_parameters() if name not in own}
    wrong = sorted(name for name, p in added.items() if p.dtype != torch.float32)
    require(not wrong, f"{_some(wrong)}: {added[wrong[0]].dtype if wrong else ''} on a bfloat16 backbone")


def frozen_tensors(trial: Trial) -> None:
    """Training and evaluation change nothing that does not train."""
    now = trial._frozen_now()
    require(now.keys() == trial.frozen_at_start.keys(), "training changed which tensors are frozen")
    changed = [name for name, tensor in trial.frozen_at_start.items() if not torch.equal(now[name], tensor)]
    require(not changed, f"changed though frozen: {_some(changed)}")


def gradients(trial: Trial) -> None:
    """Every trainable parameter got a gradient that is not zero in one of the steps."""
    seen, key_biases = trial.training.largest_gradient, trial.key_biases()
    trainable = [name for name, p in trial.backbone.named_parameters() if p.requires_grad]
    unread = UNREAD.get(trial.kind)
    trainable = [name for name in trainable if unread is None or unread not in name]
    without = [name for name in trainable if name not in seen]
    require(not without, f"no gradient in {STEPS} steps: {_some(without)}")
    model = trial.backbone.model
    zero = [
        name
        for name in trainable
        if seen[name] <= 1e-12 and clean_name(model, name.removeprefix("model.")) not in key_biases
    ]
    require(not zero, f"gradient zero in all {STEPS} steps: {_some(zero)}")


def save_and_load(trial: Trial) -> None:
    """The adapter file makes a model that started from another seed compute the same bits."""
    backbone = trial.reloaded.backbone
    require(not torch.equal(trial.logits_before_loading, trial.logits), "training changed no logit")
    after = logits_of(backbone, trial.ids, trial.mask)
    difference = _largest_difference(after, trial.logits)
    require(torch.equal(after, trial.logits), f"logits after loading differ by {difference:.1e}")


def resume(trial: Trial) -> None:
    """A run that is killed half-way and started again ends with the bits of one that was not."""
    file, optimizer_file = trial.half_way
    adapter = trial.another()
    adapter.load_state_dict(safetensors.torch.load(file))
    training = Training(adapter, trial.kind)
    training.optimizer.load_state_dict(torch.load(io.BytesIO(optimizer_file), weights_only=True))
    training.run(range(STEPS // 2, STEPS))
    expected, found = trial.adapter.state_dict(), adapter.state_dict()
    require(expected.keys() == found.keys(), f"other tensors: {_some(expected.keys() ^ found.keys())}")
    differing = [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])]
    require(not differing, f"{len(differing)} of {len(expected)} tensors differ after resuming: {_some(differing)}")


def merging(trial: Trial) -> None:
    """Merged weights compute the same, and unmerging puts the very bits back; or merging is refused with a reason."""
    adapter = trial.reloaded
    if not adapter.strategy.supports.mergeable:
        for call in (adapter.merge, adapter.unmerge):
            require(_refusal(call) is not None, f"{call.__name__} works though supports.mergeable is False")
        return
    if trial.weights == "nf4":
        reason = _refusal(adapter.merge)
        if reason is not None:
            require("backbone.quantize" in reason, f"the refusal to merge does not name backbone.quantize: {reason}")
            untouched_by_refusal = logits_of(adapter.backbone, trial.ids, trial.mask)
            require(torch.equal(untouched_by_refusal, trial.logits), "a refused merge changed the model")
            return
    else:
        adapter.merge()
    merged = _largest_difference(logits_of(adapter.backbone, trial.ids, trial.mask), trial.logits)
    require(merged <= 1e-4 * trial.scale, f"merged logits differ by {merged:.1e} (scale {trial.scale:.2g})")
    adapter.unmerge()
    logits = logits_of(adapter.backbone, trial.ids, trial.mask)
    restored = _largest_difference(logits, trial.logits)
    require(torch.equal(logits, trial.logits), f"unmerged logits differ by {restored:.1e}")


def removal(trial: Trial) -> None:
    """Switched off it changes nothing and comes back; taken out, it leaves the backbone's own modules and tensors."""
    adapter = trial.another()
    adapter.load_state_dict(trial.adapter.state_dict())
    off = None
    if not adapter.own_names() and adapter.num_added():
        with adapter.disabled():
            off = logits_of(adapter.backbone, trial.ids, trial.mask)
        require(not torch.equal(off, trial.logits), "disabled() changed no logit")
        again = logits_of(adapter.backbone, trial.ids, trial.mask)
        require(torch.equal(again, trial.logits), "after disabled() the logits are others")
    adapter.remove()
    if off is not None:
        out = logits_of(adapter.backbone, trial.ids, trial.mask)
        require(torch.equal(out, off), "taken out it computes other logits than switched off")
    own = {clean_name(trial.original, name): tensor for name, tensor in trial.original.state_dict().items()}
    left = {clean_name(adapter.backbone, name): tensor for name, tensor in adapter.backbone.state_dict().items()}
    require(own.keys() == left.keys(), f"left or lost by remove(): {_some(own.keys() ^ left.keys())}")
    trained = {f"model.{name}" for name in adapter.own_names()}
    trained |= {f"model.{name}" for name, _ in trial.original.head_parameters()}
    pointers = {own[name].data_ptr() for name in trained}
    trained |= {n for n, t in own.items() if isinstance(t, Tensor) and t.data_ptr() in pointers}  # tied: other names
    changed = [
        name
        for name, tensor in own.items()
        if isinstance(tensor, Tensor) and name not in trained and not torch.equal(tensor, left[name])
    ]
    require(not changed, f"changed by an adapter that was taken out: {_some(changed)}")


def padding(trial: Trial) -> None:
    """A text alone and the same text in a padded batch have the same logits."""
    for row in (1, 3):  # two short ones
        length = int(trial.mask[row].sum())
        require(length < trial.mask.shape[1], "the row has no padding")
        alone = logits_of(trial.backbone, trial.ids[row : row + 1, :length], trial.mask[row : row + 1, :length])
        difference = _largest_difference(alone[0], trial.logits[row])
        require(
            difference <= 1e-5 * max(1.0, trial.scale), f"row {row} alone differs by {difference:.1e} from in the batch"
        )


def generation(trial: Trial) -> None:
    """A language model writes in a batch, with its cache and without, what one call a token gives each text alone."""
    if not isinstance(trial.backbone, LanguageModelBackbone):
        return
    trial.backbone.eval()
    texts = [ids[: int(mask.sum())].tolist() for ids, mask in zip(trial.ids, trial.mask, strict=True)]
    prompts = [ids[:length] for ids, length in zip(texts, (9, 4, 12, 1), strict=True)]
    expected = [_slowly(trial.backbone, prompt) for prompt in prompts]
    for use_cache in (True, False):
        how: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "stop_ids": [], "use_cache": use_cache}
        found = trial.backbone.written(prompts, **how)
        differing = [number for number, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b]
        require(not differing, f"{'with' if use_cache else 'without'} a cache other tokens for prompts {differing}")


@torch.no_grad()
def _slowly(backbone: Backbone, prompt: list[int]) -> list[int]:
    """What is written is asked for as in training: every place from the prompt's last on."""
    ids = list(prompt)
    for _ in range(NEW_TOKENS):
        row = torch.tensor([ids])
        asked = torch.arange(len(ids))[None] >= len(prompt) - 1
        ids.append(int(backbone(row, torch.ones_like(row), at=asked)[-1].argmax()))
    return ids[len(prompt) :]


def bf16_backbone(trial: Trial) -> None:
    """On a backbone in bfloat16 it computes about the same, and trains.

    About: a tenth of the largest logit, or twice what the backbone alone differs by.
    """
    if backbone_cannot("bf16_backbone", trial.kind, trial.weights) is not None:
        return
    adapter = trial.in_bf16
    adapter.load_state_dict(trial.adapter.state_dict())
    difference = _largest_difference(logits_of(adapter.backbone, trial.ids, trial.mask), trial.logits)
    plain = _untouched_logits(trial.kind, trial.weights)
    own = logits_of(untouched(trial.kind, trial.weights, "bfloat16"), trial.ids, trial.mask)
    allowed = max(0.1, 2 * _largest_difference(own, plain) / float(plain.abs().max())) * trial.scale
    require(difference <= allowed, f"logits differ by {difference:.2g} from fp32's (allowed are {allowed:.2g})")
    Training(adapter, trial.kind).run(range(1))


def autocast(trial: Trial) -> None:
    """Under autocast to bfloat16 it computes about the same, and trains."""
    reason = backbone_cannot("autocast", trial.kind, trial.weights)
    if reason is not None:
        return
    adapter = trial.reloaded
    with torch.autocast("cpu", dtype=torch.bfloat16):
        difference = _largest_difference(logits_of(adapter.backbone, trial.ids, trial.mask), trial.logits)
        training = Training(adapter, trial.kind)
        loss = training.loss(0)
    require(difference <= 0.1 * trial.scale, f"logits differ by {difference:.2g} from fp32's (scale {trial.scale:.2g})")
    require(bool(torch.isfinite(loss)), f"the loss is {loss.item()}")
    loss.backward()
    training._note_gradients()


AT_START: Sequence[Callable[[Trial], None]] = (
    identity_at_start,
    global_random_state,
    closed_form,
    on_meta,
    adapters_in_fp32,
)
TRAINED: Sequence[Callable[[Trial], None]] = (
    frozen_tensors,
    gradients,
    save_and_load,
    resume,
    padding,
    generation,
    bf16_backbone,
    autocast,
    merging,
    removal,
)


# -- a cell --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What came out of a cell: nothing wrong, a refusal, or a list of what does not hold."""

    failures: tuple[str, ...] = ()
    """``check: what is wrong``."""
    refusal: str | None = None

    @property
    def failed_checks(self) -> list[str]:
        return [failure.partition(":")[0] for failure in self.failures]


def examine(make: Make, kind: str, weights: str) -> Outcome:
    """Run every check of one cell."""
    try:
        trial = Trial(make, kind, weights)
    except PeftlabError as error:
        return Outcome(refusal=str(error))
    except Exception as error:
        return Outcome(failures=(f"inject: {_described(error)}",))
    failures = _run(AT_START, trial)
    try:
        trial.train()
    except Exception as error:
        return Outcome(failures=(*failures, f"training: {_described(error)}"))
    return Outcome(failures=(*failures, *_run(TRAINED, trial)))


def judged(outcome: Outcome, strategy: Any, kind: str, weights: str, words: str | None) -> Outcome:
    """The outcome against what was expected: a refusal is a failure, unless declared or listed, and so is its absence.

    Args:
        outcome: what :func:`examine` found.
        strategy: the method's class, which declares what it supports.
        kind: the architecture.
        weights: ``fp32`` or ``nf4``.
        words: what a refusal listed in ``expectations.py`` must say; None: none is listed.
    """
    supports = strategy.supports
    declared = [
        f"supports.{name} is False"
        for name, holds in (
            ("quantized", supports.quantized or weights == "fp32"),
            ("encoder", supports.encoder or kind not in ENCODERS),
            ("decoder", supports.decoder or kind not in (*DECODERS, *LANGUAGE_MODELS)),
        )
        if not holds
    ]
    if outcome.refusal is None:
        if declared:
            return Outcome((*outcome.failures, f"refusal: {declared[0]}, yet the method is not refused"))
        if words is not None:
            return Outcome((*outcome.failures, f"refusal: expected ('{words}'), but it did not come"))
        return outcome
    if words is not None and words not in outcome.refusal:
        return Outcome((f"refusal: '{words}' expected, said was: {outcome.refusal}",))
    lacking = any(reason in outcome.refusal for reason in LACKING.get(kind, ()))
    if words is None and not declared and not lacking:
        return Outcome((f"refusal: not expected: {outcome.refusal}",))
    return outcome


def _run(checks: Sequence[Callable[[Trial], None]], trial: Trial) -> list[str]:
    failures = []
    for check in checks:
        try:
            check(trial)
        except Broken as error:
            failures.append(f"{check.__name__}: {error}")
        except Exception as error:
            failures.append(f"{check.__name__}: {_described(error)}")
    return failures


def _described(error: Exception) -> str:
    if isinstance(error, Broken):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _refusal(call: Callable[[], None]) -> str | None:
    try:
        call()
    except PeftlabError as error:
        return str(error)
    return None


def _largest_difference(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max())


def _some(names: Any) -> str:
    ordered = sorted(names)
    rest = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + rest
