"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al. 2021, arXiv:2106.09685).

    h = W x + s · B A x        (paper, eq. 3)        s = alpha / rank
                                                     s = alpha / √rank    rank-stabilised (arXiv:2312.03732)

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
- ``init: pissa``: PiSSA (Meng, Wang & Zhang 2024, arXiv:2404.02948). With W = U S Vᵀ, A and B start as the
  principal part, A = √(S/s) Vᵀ and B = U √(S/s), cut to the rank, and the frozen part is the residual
  W − s · B₀ A₀. Departure: the residual is not written into the weight but computed, W x − s · B₀ A₀ x. The
  products are the same; the model starts as the backbone to the bit, in 16 bits too, and an adapter file is exact
  on a machine whose SVD rounds differently. The price is one more low-rank product a layer.
- ``bias``: biases of the backbone that train as well, in float32 whatever the backbone's type.

Trainable: rank · (in + out) a target; with freeze_A rank · out; and the biases.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from peftlab.errors import PeftlabError
from peftlab.fields import PositiveFloat
from peftlab.interop.hf_format import MODEL, HFAdapter, HFFolder, plain_float
from peftlab.interop.hf_low_rank import load_factors, lora_adapter, lora_fields
from peftlab.peft.base import Supports
from peftlab.peft.low_rank import FixedRankStrategy, LowRankLayer, LowRankUpdate, Place, attach
from peftlab.peft.selective import let_train, stored_name
from peftlab.peft.surgery import adapter_generator, is_quantized, weight_matrix

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone


@dataclass(kw_only=True)
class LoRA(FixedRankStrategy, name="lora"):
    """Low-rank update beside frozen weights:  h = W x + (alpha / rank) · B A x."""

    supports = Supports(mergeable=True, hf_peft="LORA")
    count = "rank · (in + out) a target"

    lr_ratio: PositiveFloat = 1.0
    """Learning rate of B over that of A and the head (LoRA+); 16 is the authors' advice."""
    freeze_A: bool = False
    """Train B alone, on a random A that stays as it is (LoRA-FA)."""
    init: Literal["kaiming", "gaussian", "orthogonal", "pissa"] = "kaiming"
    """Start of A: random in one of three ways, or the principal part of the weight (PiSSA)."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Biases of the backbone that train too: none, all outside the head, or those of the adapted layers."""

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        """Wrap every target in its low-rank path."""
        places = self.places(backbone)
        biases = self._biases(backbone, places)  # by their names before the layers are wrapped
        for place in places:
            self._check(backbone, place)
        for place in places:
            update = LowRankUpdate(
                place.in_features,
                place.out_features,
                self.rank_at(place),
                scale=self.scale_at(place),
                dropout=self.dropout,
                output_slice=place.target.output_slice,
                embedding=place.embedding,
                generator=adapter_generator(seed, place.random_stream),
                init="kaiming" if self.init == "pissa" else self.init,
            )
            layer = attach(backbone, place, update, LoRALayer)
            if self.init == "pissa":
                update.start_from_principal_part(weight_matrix(layer.base)[update.output_slice or slice(None)])
            update.A.requires_grad_(not self.freeze_A)
        names = {id(parameter): name for name, parameter in backbone.model.named_parameters()}
        for parameter in biases.values():
            let_train(backbone.model, names[id(parameter)])

    def _check(self, backbone: Backbone, place: Place) -> None:
        name = place.target.name
        if self.freeze_A and place.embedding:
            raise PeftlabError(
                f"peft.freeze_A=true: '{name}' is an embedding, whose A starts from zero and would stay there. "
                "Leave embeddings out of peft.targets, or set peft.freeze_A=false."
            )
        if self.init == "pissa" and is_quantized(place.target.module):
            raise PeftlabError(
                f"peft.init=pissa: '{name}' keeps its weight in {backbone.provenance.get('quantize')}. PiSSA splits "
                "the weight before the rest of it is quantised, and here all of it was. "
                "Set backbone.quantize=null, or peft.init=kaiming."
            )

    def _biases(self, backbone: Backbone, places: list[Place]) -> dict[str, nn.Parameter]:
        """The biases that train, by name."""
        if self.bias == "none":
            return {}
        adapted = {place.target.name for place in places}
        left_out = {*backbone.always_frozen(), *(name for name, _ in backbone.head_parameters())}
        found = {
            name: parameter
            for name, parameter in backbone.model.named_parameters()
            if name.rpartition(".")[2] == "bias"
            and name not in left_out
            and (self.bias == "all" or name.rpartition(".")[0] in adapted)
        }
        if not found:
            whose = "this backbone has" if self.bias == "all" else "the adapted layers have"
            raise PeftlabError(f"peft.bias={self.bias}: {whose} no bias. Set peft.bias=none.")
        return found

    def closed_form(self, backbone: Backbone) -> int:
        """Σ rank · (in + out), without ``in`` if A is frozen; and the biases."""
        places = self.places(backbone)
        factors = sum(
            self.rank_at(place) * (place.out_features + (0 if self.freeze_A else place.in_features)) for place in places
        )
        return factors + sum(bias.numel() for bias in self._biases(backbone, places).values())

    def adapter_tensors(self, module: nn.Module) -> dict[str, Tensor]:
        """As always, the biases under the backbone's own names also where a float32 copy stands in."""
        return {stored_name(name): tensor for name, tensor in super().adapter_tensors(module).items()}

    def param_groups(self, module: nn.Module, lr: float) -> list[dict[str, Any]]:
        """One group, or with LoRA+ two: the factors that start from zero are the faster ones."""
        if self.lr_ratio == 1.0:
            return super().param_groups(module, lr)
        updates = [update for update in module.modules() if isinstance(update, LowRankUpdate)]
        fast = [update.A if update.embedding else update.B for update in updates]
        known = set(map(id, fast))
        slow = [p for p in module.parameters() if p.requires_grad and id(p) not in known]
        groups = [{"params": slow, "lr": lr}, {"params": fast, "lr": lr * self.lr_ratio}]
        return [group for group in groups if group["params"]]

    @contextmanager
    def switched_off(self, backbone: Backbone) -> Iterator[None]:
        """As always; raises PeftlabError if biases train, which have no other value to go back to."""
        if self.bias != "none":
            raise PeftlabError(
                f"peft.bias={self.bias} trains the backbone's own biases: they cannot be switched off as the low-rank "
                "paths can. Train with peft.bias=none for that."
            )
        with super().switched_off(backbone):
            yield

    def to_hf(self, backbone: Backbone) -> HFAdapter:
        """A and B of every layer (PiSSA's at twice the rank, slices as blocks), and the biases that train."""
        adapter = lora_adapter(backbone, dropout=self.dropout, rank_stabilized=self.rank_stabilized, bias=self.bias)
        adapter.tensors |= {key: plain_float(bias) for key, bias in self._hf_biases(backbone).items()}
        return adapter

    def _hf_biases(self, backbone: Backbone) -> dict[str, nn.Parameter]:
        """The biases that train in an injected backbone, by HF peft's keys."""
        if self.bias == "none":
            return {}
        left_out = {*backbone.always_frozen(), *(name for name, _ in backbone.head_parameters())}
        ending = ".bias" if self.bias == "all" else ".base.bias"
        stored = {stored_name(name): parameter for name, parameter in backbone.model.named_parameters()}
        return {
            f"{MODEL}{name.replace('.base.bias', '.base_layer.bias')}": parameter
            for name, parameter in stored.items()
            if name.endswith(ending) and name not in left_out
        }

    @classmethod
    def from_hf(cls, folder: HFFolder) -> dict[str, Any] | None:
        """LORA without a magnitude."""
        if folder.peft_type != "LORA" or folder.option("use_dora", False):
            return None
        return {**lora_fields(folder), "bias": folder.option("bias", "none")}

    def load_hf(self, backbone: Backbone, folder: HFFolder) -> None:
        """A and B, and the biases if they train."""
        load_factors(backbone, folder)
        for key, bias in self._hf_biases(backbone).items():
            folder.copy(key, bias, backbone)


class LoRALayer(LowRankLayer):
    """A frozen layer and its LoRA updates."""
