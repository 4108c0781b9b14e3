"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al. 2021, arXiv:2106.09685).

    h = W x + s · B A x        (paper, eq. 3)
    s = alpha / rank
    s = alpha / √rank          rank-stabilised (arXiv:2312.03732)

W (out, in) stays frozen; A (rank, in) and B (out, rank) train. A starts at random and B from zero: the model
starts as the backbone. For an embedding A (rank, vocabulary) starts from zero and B (dim, rank) at random. A role
that is a slice of a fused projection (the query third of GPT-2's ``c_attn``) is adapted on its own, with the
slice's own output size.

Variants:

- ``lr_ratio``: LoRA+ (Hayou, Ghosh & Yu 2024, arXiv:2402.12354). The factor that starts from zero learns
  lr_ratio times as fast as the rest: B of a linear layer, A of an embedding. Departure: the authors' code gives
  both factors of an embedding one further learning rate.
- ``freeze_A``: LoRA-FA (Zhang et al. 2023, arXiv:2308.03303). A keeps its random start, only B trains.
- ``init``: how the random factor starts. ``kaiming``: uniform, a = √5, as the LoRA authors' code has it;
  ``gaussian``: N(0, 1/rank²) (an embedding's: N(0, 1) with either); ``orthogonal``: orthonormal rows of A (columns
  of an embedding's B).
- Starts inside the weight: A₀ and B₀ are a part of W, and the frozen part is the rest, W − s · B₀ A₀. With
  W = U S Vᵀ, singular values from the largest on,
  ``init: pissa``: the first ones, A₀ = √(S/s) Vᵀ and B₀ = U √(S/s), cut to the rank (PiSSA: Meng, Wang & Zhang
  2024, arXiv:2404.02948);
  ``init: milora``: the last ones, in the same way (MiLoRA: Wang et al. 2024, arXiv:2406.09044);
  ``init: olora``: with W = Q R, the first columns of Q are B₀ and the first rows of R are A₀ (OLoRA: Büyükakyüz
  2024, arXiv:2406.01775, algorithm 1). They are not divided by s: s · B₀ A₀ is what is taken out of W.
  ``init: lora_ga``: with ∂L/∂W = U S Vᵀ over the first ``gradient_batches`` training batches, A₀ holds the first
  singular vectors of Vᵀ and B₀ the next ones of U, behind the rank, both times out^¼ / √``gamma``, so that the first
  step moves s · B A as full fine-tuning would move W (LoRA-GA: Wang, Yu & Li 2024, arXiv:2407.05000, algorithm 1 with
  its stable scale; the paper has ``rank_stabilized: true``). The batches are the run's first ones, in the order of its
  seed; a run that goes on, and an adapter that is loaded, have A₀ and B₀ from the file. Departures: the exact SVD
  (the authors' code has a random one), the model as in evaluation while the gradients are taken, the head with its
  start.
  Departure, of all of them: the rest is not written into the weight but computed, W x − s · B₀ A₀ x. The
  products are the same; the model starts as the backbone to the bit, in 16 bits too, and an adapter file is exact
  on a machine whose SVD rounds differently. The price is one more low-rank product a layer.
- ``bias``: biases of the backbone that train as well, in float32 whatever the backbone's type.

Trainable: rank · (in + out) a target; with freeze_A rank · out; and the biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from peftlab.errors import PeftlabError
from peftlab.fields import PositiveFloat, PositiveInt, added
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import Selection, Supports
from peftlab.peft.gradients import weight_gradients
from peftlab.peft.low_rank import FixedRankStrategy, LowRank
from peftlab.peft.selective import own_parameters
from peftlab.peft.starts import STARTS, gradient_start
from peftlab.peft.surgery import adapter_generator, is_quantized, random_stream, target_features, weight_matrix

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone, Target


@dataclass(kw_only=True)
class LoRA(FixedRankStrategy, name="lora"):
    """Low-rank update beside frozen weights:  h = W x + (alpha / rank) · B A x."""

    supports = Supports(mergeable=True, hf_peft="LORA")
    count = "rank · (in + out) a target"

    lr_ratio: PositiveFloat = 1.0
    """Learning rate of B over that of A and the head (LoRA+); 16 is the authors' advice."""
    freeze_A: bool = False
    """Train B alone, on a random A that stays as it is (LoRA-FA)."""
    init: Literal["kaiming", "gaussian", "orthogonal", "pissa", "milora", "olora", "lora_ga"] = "kaiming"
    """Start of A: random in one of three ways; or A and B are a part of the weight, its principal one (PiSSA), its
    minor one (MiLoRA) or the first of its QR (OLoRA), or of its gradient (LoRA-GA)."""
    gradient_batches: PositiveInt = added(8)
    """With init=lora_ga: training batches that the gradient is taken over, as many as there are at most."""
    gamma: PositiveFloat = added(16.0)
    """With init=lora_ga: γ of the stable scale; the larger, the smaller A and B start."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Biases of the backbone that train too: none, all outside the head, or those of the adapted layers."""

    def __post_init__(self) -> None:
        """As always; raise ValueError for a field of LoRA-GA beside another start."""
        super().__post_init__()
        for name, value, default in (("gradient_batches", self.gradient_batches, 8), ("gamma", self.gamma, 16.0)):
            if self.init != "lora_ga" and value != default:
                raise ValueError(
                    f"peft.{name}={value} is of peft.init=lora_ga, and peft.init={self.init}. Leave it out."
                )

    def select(self, backbone: Backbone) -> Selection:
        """The targets, and the biases that train."""
        targets = super().select(backbone).targets
        for target in targets:
            self._check(backbone, target)
        # gradients are those of the model without any adapter
        when: Literal["before others", ""] = "before others" if self.starts_from_data() else ""
        return Selection(backbone, targets=targets, trains=list(self._biases(backbone, targets)), when=when)

    def starts_from_data(self) -> bool:
        """LoRA-GA does."""
        return self.init == "lora_ga"

    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> Adapter:
        """Put a low-rank path beside every target."""
        adapter = Adapter(self, selection.backbone)
        gradients: Sequence[Tensor | None] = [None] * len(selection.targets)
        if self.starts_from_data() and batches is not None:
            gradients = weight_gradients(selection.backbone, selection.targets, batches, self.gradient_batches)
        for target, gradient in zip(selection.targets, gradients, strict=True):
            delta = LowRank(
                target,
                self.rank_at(target),
                scale=self.scale_at(target),
                dropout=self.dropout,
                generator=adapter_generator(seed, random_stream(target)),
                init=self.init if self.init in ("gaussian", "orthogonal") else "kaiming",
            )
            layer = adapter.put(target, delta)
            if self.init in STARTS:
                weight = weight_matrix(layer.base)[delta.rows or slice(None)]
                shapes_alone = weight.device.type == "meta"
                delta.start_from(None if shapes_alone else STARTS[self.init](weight, delta.rank, delta.scale))
            elif self.init == "lora_ga":
                delta.start_from(None if gradient is None else gradient_start(gradient, delta.rank, self.gamma))
            delta.lora_A.requires_grad_(not self.freeze_A)
        adapter.train_own(selection.trains)
        return adapter

    def _check(self, backbone: Backbone, target: Target) -> None:
        if self.freeze_A and isinstance(target.module, nn.Embedding):
            raise PeftlabError(
                f"peft.freeze_A=true: '{target.name}' is an embedding, whose A starts from zero and would stay there. "
                "Leave embeddings out of peft.targets, or set peft.freeze_A=false."
            )
        if self.init == "lora_ga":
            self._check_gradient(backbone, target)
        if self.init in STARTS and is_quantized(target.module):
            raise PeftlabError(
                f"peft.init={self.init}: '{target.name}' keeps its weight in {backbone.provenance.get('quantize')}. "
                "This start splits the weight before the rest of it is quantised, and here all of it was. "
                "Set backbone.quantize=null, or peft.init=kaiming."
            )

    def _check_gradient(self, backbone: Backbone, target: Target) -> None:
        if is_quantized(target.module):
            raise PeftlabError(
                f"peft.init=lora_ga: '{target.name}' keeps its weight in {backbone.provenance.get('quantize')}, of "
                "which there is no gradient. Set backbone.quantize=null, or peft.init=kaiming."
            )
        if isinstance(target.module, nn.Embedding):
            raise PeftlabError(
                f"peft.init=lora_ga: '{target.name}' is an embedding, and LoRA-GA is a start of linear layers. Leave "
                "embeddings out of peft.targets, or set peft.init=kaiming."
            )
        rank, smallest = self.rank_at(target), min(target_features(target))
        if 2 * rank > smallest:
            raise PeftlabError(
                f"peft.init=lora_ga takes 2 · rank singular vectors, and the gradient of '{target.name}' has "
                f"{smallest}: peft.rank={rank} is above {smallest // 2}. Lower it, or set it for this target in "
                "peft.rank_pattern."
            )

    def _biases(self, backbone: Backbone, targets: Sequence[Target]) -> dict[str, nn.Parameter]:
        """The biases that train, by name."""
        if self.bias == "none":
            return {}
        adapted = {target.name for target in targets}
        found = {
            name: parameter
            for name, parameter in own_parameters(backbone).items()
            if name.rpartition(".")[2] == "bias" and (self.bias == "all" or name.rpartition(".")[0] in adapted)
        }
        if not found:
            whose = "this backbone has" if self.bias == "all" else "the adapted layers have"
            raise PeftlabError(f"peft.bias={self.bias}: {whose} no bias. Set peft.bias=none.")
        return found

    def closed_form(self, backbone: Backbone) -> int:
        """Σ rank · (in + out), without ``in`` if A is frozen; and the biases."""
        targets = self.select(backbone).targets
        shapes = [(self.rank_at(target), *target_features(target)) for target in targets]
        factors = sum(rank * (out + (0 if self.freeze_A else inputs)) for rank, inputs, out in shapes)
        return factors + sum(bias.numel() for bias in self._biases(backbone, targets).values())

    def param_groups(self, adapter: Adapter, lr: float) -> list[dict[str, Any]]:
        """One group, or with LoRA+ two: the factors that start from zero are the faster ones."""
        if self.lr_ratio == 1.0:
            return super().param_groups(adapter, lr)
        deltas = [delta for delta in adapter.deltas() if isinstance(delta, LowRank)]
        fast = [delta.lora_A if delta.embedding else delta.lora_B for delta in deltas]
        known = set(map(id, fast))
        slow = [p for p in adapter.parameters(beside=True) if id(p) not in known]
        groups = [{"params": slow, "lr": lr}, {"params": fast, "lr": lr * self.lr_ratio}]
        return [group for group in groups if group["params"]]
