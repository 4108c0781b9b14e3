"""Each check of the matrix fails for a method that breaks what it is about, and for nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from peftlab.backbones.base import Backbone
from peftlab.backbones.roles import find_targets
from peftlab.errors import PeftlabError
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import PEFTStrategy, Selection, Supports
from peftlab.peft.delta import Delta
from peftlab.peft.surgery import adapter_generator, target_features
from tests.conformance.cells import AT_START, TRAINED, Outcome, examine, judged


class Scaling(nn.Module):
    """A factor a dimension on what the embedding layer returns."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(32, device=device))
        self.on = True

    def forward(self, out: Tensor) -> Tensor:
        return out * self.scale.to(out.dtype) if self.on else out


class ScalingAdapter(Adapter):
    """A module of its own, and the hook that lets BERT's embeddings go through it."""

    module: type[Scaling] = Scaling

    def __init__(self, strategy: PEFTStrategy, backbone: Backbone, seed: int) -> None:
        super().__init__(strategy, backbone)
        self.embeddings: Any = backbone.model.get_submodule("bert.embeddings")
        self.scaling = self.module(self.embeddings.word_embeddings.weight.device)
        adapter_generator(seed, "sound")
        self.add("scaling", self.scaling)
        self.hold(self.embeddings.register_forward_hook(lambda _, __, out: self.scaling(out)))

    @contextmanager
    def disabled(self) -> Iterator[None]:
        self.scaling.on = False
        try:
            yield
        finally:
            self.scaling.on = True


@dataclass(kw_only=True)
class Sound(PEFTStrategy):
    """A method without fault: one factor a dimension behind BERT's embeddings. It is in no registry."""

    name: ClassVar[str] = "sound"
    adapter: ClassVar[type[ScalingAdapter]] = ScalingAdapter

    def select(self, backbone: Backbone) -> Selection:
        return Selection(backbone, slots=["scaling"])

    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> ScalingAdapter:
        return self.adapter(self, selection.backbone, seed)

    def closed_form(self, backbone: Backbone) -> int | None:
        return 32


class NotTheBackboneAtStart(Sound):
    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> ScalingAdapter:
        adapter = super().build(selection, seed=seed)
        adapter.scaling.scale.data += 0.01
        return adapter


class TheBackboneThoughNotDeclared(Sound):
    supports = Supports(identity_at_start=False)


class DrawsGlobally(Sound):
    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> ScalingAdapter:
        torch.rand(1)
        return super().build(selection, seed=seed)


class CountsWrong(Sound):
    def closed_form(self, backbone: Backbone) -> int:
        return 31


class StaysOnTheCPU(Sound):
    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> ScalingAdapter:
        adapter = super().build(selection, seed=seed)
        adapter.scaling.scale = nn.Parameter(torch.ones(32))
        return adapter


class HalfPrecision(Sound):
    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> ScalingAdapter:
        adapter = super().build(selection, seed=seed)
        adapter.scaling.to(adapter.embeddings.word_embeddings.weight.dtype)
        return adapter


class TrainsWhatItDoesNotOwn(Sound):
    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> ScalingAdapter:
        adapter = super().build(selection, seed=seed)
        adapter.embeddings.LayerNorm.weight.requires_grad_(True)
        return adapter


class ChangesAFrozenWeight(Sound):
    """In a row that no text of the tests reaches: nothing but the weight itself tells of it."""

    def on_step(self, adapter: Adapter, step: int, total: int) -> None:
        assert isinstance(adapter, ScalingAdapter)
        adapter.embeddings.position_embeddings.weight.data[-1, 0] += 1e-6


class ChangesAFrozenWeightThatMatters(Sound):
    def on_step(self, adapter: Adapter, step: int, total: int) -> None:
        assert isinstance(adapter, ScalingAdapter)
        adapter.embeddings.LayerNorm.weight.data[0] += 1e-7


class HasADeadParameter(Sound):
    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> ScalingAdapter:
        adapter = super().build(selection, seed=seed)
        adapter.scaling.unused = nn.Parameter(torch.zeros(8, device=adapter.scaling.scale.device))
        return adapter

    def closed_form(self, backbone: Backbone) -> int:
        return 40


class HasAZeroGradient(HasADeadParameter):
    def regularization(self, adapter: Adapter, step: int, total: int) -> Tensor:
        assert isinstance(adapter, ScalingAdapter)
        unused: Tensor = adapter.scaling.unused
        return unused.sum() * 0.0


class SavesARandomTensor(Sound):
    """A frozen random direction, drawn from the seed: a buffer, which is in the adapter file by itself."""

    saved: ClassVar[bool] = True

    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> ScalingAdapter:
        adapter = super().build(selection, seed=seed)
        direction = torch.randn(32, generator=adapter_generator(seed, "direction")).to(adapter.scaling.scale.device)
        adapter.scaling.register_buffer("direction", direction, persistent=self.saved)

        def shifted(module: Any, _inputs: Any, out: Tensor) -> Tensor:
            return out + ((module.scale - 1).mean() * module.direction).to(out.dtype) if module.on else out

        adapter.scaling.register_forward_hook(shifted)
        return adapter


class ForgetsARandomTensor(SavesARandomTensor):
    saved = False


class Remembering(Scaling):
    """Computes with a copy of the scale, which it takes anew behind training alone."""

    copy: Tensor | None = None

    def forward(self, out: Tensor) -> Tensor:
        if self.training:
            self.copy = None
            return super().forward(out)
        if self.copy is None:
            self.copy = self.scale.detach().clone()
        return out * self.copy.to(out.dtype) if self.on else out


class DoesNotSeeWhatIsLoaded(Sound):
    class adapter(ScalingAdapter):
        module = Remembering


class ForgetsAState(Sound):
    """A moving average that steers training and that the adapter file does not hold."""

    class adapter(ScalingAdapter):
        average = 1.0

    def on_step(self, adapter: Any, step: int, total: int) -> None:
        adapter.average *= 0.5

    def regularization(self, adapter: Any, step: int, total: int) -> Tensor:
        penalty: Tensor = adapter.scaling.scale.square().sum() * adapter.average
        return penalty


class SeesPadding(Sound):
    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> ScalingAdapter:
        adapter = super().build(selection, seed=seed)

        def shifted(module: Any, _inputs: Any, out: Tensor) -> Tensor:
            return out + (module.scale - 1).mean() * out.shape[1] if module.on else out

        adapter.scaling.register_forward_hook(shifted)
        return adapter


class NotANumberIn16Bits(Sound):
    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> ScalingAdapter:
        adapter = super().build(selection, seed=seed)
        adapter.scaling.register_forward_hook(
            lambda _, __, out: out + (torch.nan if out.dtype == torch.bfloat16 else 0.0)
        )
        return adapter


class NotANumberUnderAutocast(Sound):
    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> ScalingAdapter:
        adapter = super().build(selection, seed=seed)
        adapter.scaling.register_forward_hook(
            lambda _, __, out: out + (torch.nan if torch.is_autocast_enabled("cpu") else 0.0)
        )
        return adapter


# -- merging -------------------------------------------------------------------------------------------


class MergesWrong(Sound):
    supports = Supports(mergeable=True)

    class adapter(ScalingAdapter):
        def merge(self) -> None:
            self.scaling.on = False

        def unmerge(self) -> None:
            self.scaling.on = True


class UnmergesWrong(Sound):
    supports = Supports(mergeable=True)

    class adapter(ScalingAdapter):
        def merge(self) -> None:
            pass

        def unmerge(self) -> None:
            self.scaling.on = False


class MergesUndeclared(MergesWrong):
    supports = Supports()


class MergesButSaysNot(Sound):
    """It can be merged, and to be unmerged it refuses."""

    class adapter(ScalingAdapter):
        def merge(self) -> None:
            pass


class ScaledOutput(Delta):
    """h = l ⊙ (W x + b)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        return out * self.scale.to(out.dtype)

    def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight * self.scale.unsqueeze(1), None if bias is None else bias * self.scale


@dataclass(kw_only=True)
class SoundDelta(PEFTStrategy):
    """A method without fault that merges: a factor on every output of the values. It is in no registry."""

    name: ClassVar[str] = "sound"
    supports = Supports(mergeable=True)
    delta: ClassVar[type[ScaledOutput]] = ScaledOutput
    adapter: ClassVar[type[Adapter]] = Adapter

    def select(self, backbone: Backbone) -> Selection:
        return Selection(backbone, targets=find_targets(backbone, ["value"]))

    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> Adapter:
        adapter = self.adapter(self, selection.backbone)
        for target in selection.targets:
            adapter.put(target, self.delta(target_features(target)[1]))
        return adapter

    def closed_form(self, backbone: Backbone) -> int | None:
        return sum(target_features(target)[1] for target in self.select(backbone).targets)


class FoldsTheWeightAlone(SoundDelta):
    class delta(ScaledOutput):
        def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
            return super().folded(weight, None)[0], bias


class FoldsInPlace(SoundDelta):
    """It writes into the weight that it is shown, so that the original is lost."""

    class delta(ScaledOutput):
        def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
            weight *= self.scale.unsqueeze(1)
            return weight, None if bias is None else bias * self.scale


class UnmergesWithinRounding(SoundDelta):
    """It divides by what it has multiplied with, which gives nearly the same."""

    class adapter(Adapter):
        def unmerge(self) -> None:
            changed = {name: p.detach().clone() for name, p in self.model.named_parameters() if ".base." in name}
            super().unmerge()
            for placed in self.placed():
                scale = placed.delta.scale.detach()
                base: Any = placed.layer.base
                base.weight.data = changed[f"{placed.name}.base.weight"] / scale.unsqueeze(1)
                base.bias.data = changed[f"{placed.name}.base.bias"] / scale


# -- switching off, taking out -------------------------------------------------------------------------


class IsNotSwitchedOff(Sound):
    class adapter(ScalingAdapter):
        @contextmanager
        def disabled(self) -> Iterator[None]:
            yield


class DoesNotComeBack(Sound):
    class adapter(ScalingAdapter):
        @contextmanager
        def disabled(self) -> Iterator[None]:
            self.scaling.on = False
            yield


class LeavesItsModule(Sound):
    class adapter(ScalingAdapter):
        def remove(self) -> None:
            for handle in self._handles:
                handle.remove()


class LeavesItsLayers(SoundDelta):
    class adapter(Adapter):
        def remove(self) -> None:
            self._placed = []


class TakesMoreAlong(Sound):
    class adapter(ScalingAdapter):
        def remove(self) -> None:
            super().remove()
            del self.embeddings.position_embeddings


class LeavesAChangedWeight(SoundDelta):
    class adapter(Adapter):
        def remove(self) -> None:
            self.merge()
            super().remove()


# -- writing -------------------------------------------------------------------------------------------


class SeesTheCache(SoundDelta):
    """It computes otherwise where a layer is given one place alone, as it is with a cache."""

    class delta(ScaledOutput):
        def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
            return super().forward(x, -out if x.shape[1] == 1 else out, base)


BROKEN: list[tuple[type[PEFTStrategy], set[str]]] = [
    (Sound, set()),
    (SoundDelta, set()),
    (SavesARandomTensor, set()),
    (NotTheBackboneAtStart, {"identity_at_start"}),
    (TheBackboneThoughNotDeclared, {"identity_at_start"}),
    (DrawsGlobally, {"global_random_state"}),
    (CountsWrong, {"closed_form"}),
    (StaysOnTheCPU, {"on_meta"}),
    (HalfPrecision, {"adapters_in_fp32"}),
    (TrainsWhatItDoesNotOwn, {"inject"}),
    (ChangesAFrozenWeight, {"frozen_tensors"}),
    (ChangesAFrozenWeightThatMatters, {"frozen_tensors", "save_and_load", "resume", "removal"}),
    (HasADeadParameter, {"gradients"}),
    (HasAZeroGradient, {"gradients"}),
    (ForgetsARandomTensor, {"save_and_load", "resume", "removal"}),
    (DoesNotSeeWhatIsLoaded, {"save_and_load"}),
    (ForgetsAState, {"resume"}),
    (SeesPadding, {"padding"}),
    (NotANumberIn16Bits, {"bf16_backbone"}),
    (NotANumberUnderAutocast, {"autocast"}),
    (MergesWrong, {"merging"}),
    (UnmergesWrong, {"merging"}),
    (MergesUndeclared, {"merging"}),
    (MergesButSaysNot, {"merging"}),
    (FoldsTheWeightAlone, {"merging"}),
    (FoldsInPlace, {"merging"}),
    (UnmergesWithinRounding, {"merging"}),
    (IsNotSwitchedOff, {"removal"}),
    (DoesNotComeBack, {"removal"}),
    (LeavesItsModule, {"removal"}),
    (LeavesItsLayers, {"removal"}),
    (TakesMoreAlong, {"removal"}),
    (LeavesAChangedWeight, {"removal"}),
    (SeesTheCache, {"generation"}),
]
KINDS: dict[type[PEFTStrategy], str] = {SeesTheCache: "llama-lm"}
"""Where a fault shows on no BERT."""


def test_every_check_has_a_method_that_breaks_it_alone() -> None:
    alone = {min(failing) for _, failing in BROKEN if len(failing) == 1}
    assert {check.__name__ for check in (*AT_START, *TRAINED)} <= alone


@pytest.mark.parametrize(("method", "failing"), BROKEN, ids=[method.__name__ for method, _ in BROKEN])
def test_a_fault_is_found_by_its_check(method: type[PEFTStrategy], failing: set[str]) -> None:
    outcome = examine(method, KINDS.get(method, "bert"), "fp32")
    assert outcome.refusal is None
    assert set(outcome.failed_checks) == failing, outcome.failures


class Refuses(Sound):
    supports = Supports(quantized=False)

    def select(self, backbone: Backbone) -> Selection:
        raise PeftlabError("this backbone has no such thing")


@pytest.mark.parametrize(
    ("method", "weights", "words", "failing"),
    [
        (Refuses, "fp32", None, ["refusal"]),
        (Refuses, "fp32", "no such thing", []),
        (Refuses, "fp32", "another reason", ["refusal"]),
        (Refuses, "nf4", None, []),
        (Sound, "fp32", "no such thing", ["refusal"]),
        (Sound, "fp32", None, []),
    ],
)
def test_a_refusal_must_be_expected_and_must_come(
    method: type[Sound], weights: str, words: str | None, failing: list[str]
) -> None:
    outcome = judged(examine(method, "bert", weights), method, "bert", weights, words)
    assert outcome.failed_checks == failing, outcome.failures


def test_what_is_declared_unsupported_must_be_refused() -> None:
    class NoDecoders(Sound):
        supports = Supports(decoder=False)

    assert judged(Outcome(), NoDecoders, "gpt2", "fp32", None).failed_checks == ["refusal"]
    assert judged(Outcome(), NoDecoders, "bert", "fp32", None).failed_checks == []
