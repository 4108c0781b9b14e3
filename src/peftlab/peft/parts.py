"""What a method has put into a model: its deltas, its own modules, the backbone's tensors that it trains; by name.

It holds modules and names, never parameters: sharding replaces the parameters of a module by others. Tensors have the
names of the clean model (:mod:`peftlab.peft.names`): a bias that trains is ``….query.bias``, a factor on that layer
``….query.deltas.all.lora_A``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from peftlab.backbones.base import Target
from peftlab.errors import PeftlabError
from peftlab.peft.base import PEFTStrategy
from peftlab.peft.delta import AdaptedLayer, Delta
from peftlab.peft.names import clean_name, let_train, live_parameter
from peftlab.peft.product import require_product
from peftlab.peft.surgery import part_name, replace_module

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone


@dataclass(frozen=True)
class Placed:
    """A delta of an adapter, and where it stands."""

    name: str
    """Of the layer, in the clean model."""
    also: tuple[str, ...]
    """Its further names there: modules with the same table."""
    key: str
    """Of the delta, in its layer."""
    layer: AdaptedLayer
    delta: Delta


class Removable(Protocol):
    """Something that is taken away with the adapter, as the handle of a hook is."""

    def remove(self) -> None:
        """Take it away."""


@runtime_checkable
class SavedWith(Removable, Protocol):
    """One that has a say before the adapter is saved."""

    def before_saving(self) -> None:
        """Raise PeftlabError where the file would not restore the model."""


class Parts:
    """What one method has put into one model, and its tensors. Methods build one as an :class:`Adapter`."""

    def __init__(self, strategy: PEFTStrategy, backbone: Backbone) -> None:
        self.strategy = strategy
        """The method, with its fields."""
        self.backbone = backbone
        self.beside: list[str] = []
        """Names, in the model, of the modules that train beside the adapter: the head."""
        self._placed: list[Placed] = []
        self._own: list[str] = []
        self._modules: dict[str, nn.Module] = {}
        self._handles: list[Removable] = []

    @property
    def model(self) -> nn.Module:
        """The network that it stands in."""
        return self.backbone.model

    # -- for methods that build one ------------------------------------------------------------------

    def put(self, target: Target, delta: Delta, key: str | None = None) -> AdaptedLayer:
        """Put ``delta`` on the layer of ``target``, on the device of its weight; return the layer.

        Args:
            target: of a clean model; its rows become the delta's.
            delta: on any device.
            key: of the delta in its layer; None: :func:`~peftlab.peft.surgery.part_name` of the target.
        """
        layer = self.model.get_submodule(target.name)
        if not isinstance(layer, AdaptedLayer):
            require_product(target.name, layer)
            layer = AdaptedLayer(layer)
            for name in (target.name, *target.also):
                layer.stands_for[name] = self.model.get_submodule(name)
                replace_module(self.model, name, layer)
        key = part_name(target) if key is None else key
        assert key not in layer.deltas, f"'{target.name}' has a delta '{key}' already"
        delta.rows = target.output_slice
        layer.deltas[key] = delta.to(layer.weight.device).train(layer.base.training)
        self._placed.append(Placed(target.name, target.also, key, layer, delta))
        return layer

    def train_own(self, names: Sequence[str], *, in_float32: bool = True) -> None:
        """Let the backbone's own parameters of these clean ``names`` train.

        Args:
            names: in the clean model.
            in_float32: as float32 copies of themselves where they are stored in another type
                (:func:`let_train`); False: as they are.
        """
        for name in names:
            if in_float32:
                let_train(self.model, name)
            else:
                live_parameter(self.model, name).requires_grad_(True)
        self._own += names

    def add(self, name: str, module: nn.Module) -> None:
        """Add ``module``, which is on the right device, to the top of the model as its child ``name``."""
        self.model.add_module(name, module.train(self.model.training))
        self._modules[name] = module

    def own_module(self, name: str, module: nn.Module) -> None:
        """Take over ``module``, which stands in the model as ``name`` already."""
        self._modules[name] = module

    def hold(self, *handles: Removable) -> None:
        """Keep the handles of hooks and the like, to remove them with the adapter."""
        self._handles += handles

    # -- what it is made of --------------------------------------------------------------------------

    def placed(self) -> list[Placed]:
        """Its deltas, in the order in which they were put."""
        return self._placed

    def deltas(self) -> list[Delta]:
        """The same, alone."""
        return [placed.delta for placed in self.placed()]

    def own_names(self) -> list[str]:
        """Names of the backbone's own parameters that it trains, as the clean model has them."""
        return self._own

    def modules(self) -> dict[str, nn.Module]:
        """Modules of its own that stand beside the layers, by their names in the model."""
        return self._modules

    def adapted_weights(self) -> list[nn.Parameter]:
        """The frozen weights of the layers that it stands on, each once."""
        weights = [placed.layer.weight for placed in self.placed()]
        return list({id(weight): weight for weight in weights if isinstance(weight, nn.Parameter)}.values())

    # -- tensors -------------------------------------------------------------------------------------

    def named_parameters(self, *, beside: bool = False) -> Iterator[tuple[str, nn.Parameter]]:
        """What it trains, in the order of the model's parameters; ``beside``: and what trains beside it.

        The order is that in which an optimizer numbers its states: it must not change.
        """
        for name, parameter in self._trained(beside):
            yield clean_name(self.model, name), parameter

    def _trained(self, beside: bool) -> Iterator[tuple[str, nn.Parameter]]:
        """The same by the model's own names."""
        mine = self.own_ids()
        if beside:
            mine.update(id(p) for name in self.beside for p in self.model.get_submodule(name).parameters())
        for name, parameter in self.model.named_parameters():
            if id(parameter) in mine and parameter.requires_grad:
                yield name, parameter

    def own_ids(self) -> set[int]:
        """``id`` of every parameter of its own, those that stay frozen included."""
        ids = {id(live_parameter(self.model, name)) for name in self.own_names()}
        for module in (*self.deltas(), *self.modules().values()):
            ids.update(map(id, module.parameters()))
        return ids

    def parameters(self, *, beside: bool = False) -> list[nn.Parameter]:
        """The same without names."""
        return [parameter for _, parameter in self._trained(beside)]

    def methods(self) -> list[str]:
        """Names of the methods that it is of."""
        return [self.strategy.name]

    def num_added(self) -> int:
        """Elements of the parameters that it adds to the model, whether they train or not."""
        added = self.own_ids() - {id(live_parameter(self.model, name)) for name in self.own_names()}
        return sum(parameter.numel() for parameter in self.model.parameters() if id(parameter) in added)

    def num_parameters(self) -> int:
        """Elements that it trains, without those of the head."""
        return sum(parameter.numel() for parameter in self.parameters())

    def frozen_state(self) -> dict[str, Tensor]:
        """Tensors of its own that do not train, by name: live, and saved with those that do."""
        found: dict[str, Tensor] = {}
        for placed in self.placed():
            prefix = f"{placed.name}.deltas.{placed.key}."
            found |= {f"{prefix}{name}": tensor for name, tensor in _frozen(placed.delta).items()}
        for prefix, module in self.modules().items():
            found |= {f"{prefix}.{name}": tensor for name, tensor in _frozen(module).items()}
        return found

    def running_state(self) -> list[Tensor]:
        """Buffers of its deltas: what may change in training though it does not train."""
        return [buffer for delta in self.deltas() for buffer in delta.buffers()]

    def tensors(self) -> dict[str, Tensor]:
        """Every live tensor that is saved, those that train beside the adapter included, with their buffers."""
        buffers = {
            f"{name}.{inner}": tensor
            for name in self.beside
            for inner, tensor in self.model.get_submodule(name).state_dict(keep_vars=True).items()
            if isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter)
        }
        return {**dict(self.named_parameters(beside=True)), **self.frozen_state(), **buffers}

    def state_dict(self) -> dict[str, Tensor]:
        """The same, detached."""
        return {name: tensor.detach() for name, tensor in self.tensors().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy ``state`` into the model; its keys must be exactly those of :meth:`state_dict`.

        Raises:
            PeftlabError: naming the first missing, unknown or misshapen tensor.
        """
        own = self.tensors()
        for problem, names in (
            ("is missing", own.keys() - state.keys()),
            ("is not of this model", state.keys() - own.keys()),
        ):
            if names:
                raise PeftlabError(
                    f"the adapter does not fit: '{min(names)}' {problem} ({len(names)} such of {len(own)} tensors). "
                    "It was saved for another method, backbone or number of classes."
                )
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                raise PeftlabError(
                    f"the adapter does not fit: '{name}' is {tuple(state[name].shape)} in the file and "
                    f"{tuple(tensor.shape)} in the model."
                )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])


def _frozen(module: nn.Module) -> dict[str, Tensor]:
    """Parameters of ``module`` that do not train, and its persistent buffers."""
    return {name: t for name, t in module.state_dict(keep_vars=True).items() if not t.requires_grad}
