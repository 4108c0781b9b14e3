"""Each check of the matrix fails for a method that breaks what it is about, and for nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from peftlab.backbones.base import Backbone
from peftlab.errors import PeftlabError
from peftlab.peft.base import PEFTStrategy, Supports
from peftlab.peft.surgery import adapter_generator
from tests.conformance.cells import Outcome, examine, judged


class Scaled(nn.Module):
    """The embedding layer's output, scaled per dimension and shifted by a random direction."""

    def __init__(self, base: nn.Module, scale: nn.Parameter) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.on = True

    def forward(self, *arguments: Any, **named: Any) -> Tensor:
        out: Tensor = self.base(*arguments, **named)
        return out * self.scale.to(out.dtype) if self.on else out


@dataclass(kw_only=True)
class Sound(PEFTStrategy):
    """A method without fault: one factor a dimension behind BERT's embeddings. It is in no registry."""

    name: ClassVar[str] = "sound"

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        weight = backbone.model.bert.embeddings.word_embeddings.weight
        adapter_generator(seed, "sound")
        scale = nn.Parameter(torch.ones(32, device=weight.device))
        backbone.model.bert.embeddings = Scaled(backbone.model.bert.embeddings, scale)

    def closed_form(self, backbone: Backbone) -> int | None:
        return 32


def layer(module: nn.Module) -> Scaled:
    (found,) = (m for m in module.modules() if isinstance(m, Scaled))
    return found


class NotTheBackboneAtStart(Sound):
    def inject(self, backbone: Backbone, *, seed: int) -> None:
        super().inject(backbone, seed=seed)
        layer(backbone).scale.data += 0.01


class TheBackboneThoughNotDeclared(Sound):
    supports = Supports(identity_at_start=False)


class DrawsGlobally(Sound):
    def inject(self, backbone: Backbone, *, seed: int) -> None:
        super().inject(backbone, seed=seed)
        torch.rand(1)


class CountsWrong(Sound):
    def closed_form(self, backbone: Backbone) -> int:
        return 31


class StaysOnTheCPU(Sound):
    def inject(self, backbone: Backbone, *, seed: int) -> None:
        super().inject(backbone, seed=seed)
        layer(backbone).scale = nn.Parameter(torch.ones(32))


class HalfPrecision(Sound):
    def inject(self, backbone: Backbone, *, seed: int) -> None:
        super().inject(backbone, seed=seed)
        weight = backbone.model.bert.embeddings.base.word_embeddings.weight
        layer(backbone).scale.data = layer(backbone).scale.data.to(weight.dtype)


class ChangesAFrozenWeight(Sound):
    def on_train_step(self, backbone: Backbone, step: int, total_steps: int) -> None:
        layer(backbone).base.LayerNorm.weight.data[0] += 1e-7


class HasADeadParameter(Sound):
    def inject(self, backbone: Backbone, *, seed: int) -> None:
        super().inject(backbone, seed=seed)
        layer(backbone).unused = nn.Parameter(torch.zeros(8, device=layer(backbone).scale.device))

    def closed_form(self, backbone: Backbone) -> int:
        return 40


class HasAZeroGradient(HasADeadParameter):
    def regularization(self, backbone: Backbone) -> Tensor:
        return layer(backbone).unused.sum() * 0.0


class ForgetsARandomTensor(Sound):
    """A frozen random direction, drawn from the seed, that the adapter file does not hold."""

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        super().inject(backbone, seed=seed)
        direction = torch.randn(32, generator=adapter_generator(seed, "direction"))
        scaled = layer(backbone)
        scaled.direction = direction.to(scaled.scale.device)
        scaled.register_forward_hook(lambda module, _, out: out + (module.scale - 1).mean() * module.direction)


class ForgetsAState(Sound):
    """A moving average that steers training and that the adapter file does not hold."""

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        super().inject(backbone, seed=seed)
        layer(backbone).average = 1.0

    def on_train_step(self, backbone: Backbone, step: int, total_steps: int) -> None:
        layer(backbone).average *= 0.5

    def regularization(self, backbone: Backbone) -> Tensor:
        return layer(backbone).scale.square().sum() * layer(backbone).average


class MergesWrong(Sound):
    supports = Supports(mergeable=True)

    def merge(self, backbone: Backbone) -> None:
        layer(backbone).on = False

    def unmerge(self, backbone: Backbone) -> None:
        layer(backbone).on = True


class UnmergesWrong(Sound):
    supports = Supports(mergeable=True)

    def merge(self, backbone: Backbone) -> None:
        pass

    def unmerge(self, backbone: Backbone) -> None:
        layer(backbone).on = False


class MergesUndeclared(MergesWrong):
    supports = Supports()


class SeesPadding(Sound):
    def inject(self, backbone: Backbone, *, seed: int) -> None:
        super().inject(backbone, seed=seed)
        layer(backbone).register_forward_hook(lambda module, _, out: out + (module.scale - 1).mean() * out.shape[1])


class NotANumberIn16Bits(Sound):
    def inject(self, backbone: Backbone, *, seed: int) -> None:
        super().inject(backbone, seed=seed)
        layer(backbone).register_forward_hook(
            lambda _, __, out: out + (torch.nan if out.dtype == torch.bfloat16 else 0.0)
        )


class NotANumberUnderAutocast(Sound):
    def inject(self, backbone: Backbone, *, seed: int) -> None:
        super().inject(backbone, seed=seed)
        layer(backbone).register_forward_hook(
            lambda _, __, out: out + (torch.nan if torch.is_autocast_enabled("cpu") else 0.0)
        )


BROKEN: list[tuple[type[Sound], set[str]]] = [
    (Sound, set()),
    (NotTheBackboneAtStart, {"identity_at_start"}),
    (TheBackboneThoughNotDeclared, {"identity_at_start"}),
    (DrawsGlobally, {"global_random_state"}),
    (CountsWrong, {"closed_form"}),
    (StaysOnTheCPU, {"on_meta"}),
    (HalfPrecision, {"adapters_in_fp32"}),
    (ChangesAFrozenWeight, {"frozen_tensors", "save_and_load", "resume"}),
    (HasADeadParameter, {"gradients"}),
    (HasAZeroGradient, {"gradients"}),
    (ForgetsARandomTensor, {"save_and_load", "resume", "bf16_backbone"}),
    (ForgetsAState, {"resume"}),
    (MergesWrong, {"merging"}),
    (UnmergesWrong, {"merging"}),
    (MergesUndeclared, {"merging"}),
    (SeesPadding, {"padding"}),
    (NotANumberIn16Bits, {"bf16_backbone"}),
    (NotANumberUnderAutocast, {"autocast"}),
]


@pytest.mark.parametrize(("method", "failing"), BROKEN, ids=[method.__name__ for method, _ in BROKEN])
def test_a_fault_is_found_by_its_check(method: type[Sound], failing: set[str]) -> None:
    outcome = examine(method, "bert", "fp32")
    assert outcome.refusal is None
    assert set(outcome.failed_checks) == failing, outcome.failures


class Refuses(Sound):
    supports = Supports(quantized=False)

    def inject(self, backbone: Backbone, *, seed: int) -> None:
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
