"""The protocol of a PEFT method, and the registry that subclassing fills.

A method is one dataclass in one file of this folder plus ``conf/peft/<method>.yaml``. It says where it works on a clean
model, and then builds there an adapter (:mod:`peftlab.peft.adapter`) out of deltas (:mod:`peftlab.peft.delta`):

    @dataclass(kw_only=True)
    class Scaling(PEFTStrategy, name="scaling"):
        '''A learned factor on every output:  h = l ⊙ W x.'''

        def select(self, backbone):
            return Selection(backbone, targets=find_targets(backbone, ["value"]))

        def build(self, selection, *, seed, batches=None):
            adapter = Adapter(self, selection.backbone)
            for target in selection.targets:
                adapter.put(target, Scale(target_features(target)[1]))
            return adapter

    class Scale(Delta):
        def __init__(self, features):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(features))

        def forward(self, x, out, base):
            return out * self.scale

Nothing else is edited: the command line, the tests and the tables walk the registry. Packages outside
peftlab register through the entry-point group ``peftlab.methods`` (name -> module).

What trains is what the adapter of :meth:`PEFTStrategy.build` owns; it is never guessed from names.
Modules of methods may import torch when they are imported, and nothing heavier: configs are checked with the classes in
them.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from abc import ABCMeta, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from peftlab.errors import ConfigError, PeftlabError
from peftlab.schema import validate

if TYPE_CHECKING:
    from torch import Tensor

    from peftlab.backbones.base import Backbone, Target
    from peftlab.peft.adapter import Adapter
    from peftlab.peft.gradients import TrainingLosses

_REGISTRY: dict[str, type[PEFTStrategy]] = {}


@dataclass(frozen=True)
class Supports:
    """What a method can do; shown by ``peftlab methods`` and walked by the conformance tests."""

    mergeable: bool = False
    """The update can be folded into the backbone's weights."""
    adds_nothing: bool = False
    """Trains tensors that the backbone has, and no other: the trained model is a plain one, with nothing to merge."""
    quantized: bool = True
    """Works on a backbone whose frozen weights are stored in 4 or 8 bits."""
    sharded: bool = True
    """Works where each process keeps a part of every frozen weight (``trainer.strategy=fsdp``)."""
    encoder: bool = True
    """Works on encoders (BERT and kin)."""
    decoder: bool = True
    """Works on decoders (GPT-2, Llama and kin)."""
    identity_at_start: bool = True
    """Before the first step the model computes what the backbone computed."""
    hf_peft: str | None = None
    """``peft_type`` under which HF peft's checkpoint format knows the method, or in small letters where that is to be
    found; None: it knows no such method."""


Usual = Mapping[str, Mapping[str, Sequence[str]]]


class _Checked(ABCMeta):
    """Whoever constructs a method has its fields checked, with the words of the command line."""

    def __call__(cls, *values: Any, **fields: Any) -> Any:
        if inspect.isabstract(cls):
            return super().__call__(*values, **fields)  # Python's own refusal
        if values:
            raise ConfigError(
                f"{cls.__name__}({values[0]!r}): the fields of a method are given by their names, as in "
                f"{cls.__name__}(rank=8)."
            )
        checked: Any = cls  # for mypy it is a class of classes
        return validate(fields, checked, "peft")


@dataclass(kw_only=True)
class PEFTStrategy(metaclass=_Checked):
    """A way to fine-tune: it decides what trains, and changes the backbone in place for it.

    Constructing one checks its fields: an unknown one, or a value out of range, is a
    :class:`~peftlab.errors.ConfigError` in the words of the command line (``peft.rank=-3 is not allowed: …``).
    """

    name: ClassVar[str]
    supports: ClassVar[Supports] = Supports()
    count: ClassVar[str] = ""
    """Trainable parameters without the head, as a formula for people."""
    usual: ClassVar[Usual] = {}
    """Architecture → field that says where the method works → what it means if it is null; ``""`` is any other."""

    def __init_subclass__(cls, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name is None:  # a shared base of several methods, not a method
            return
        known = _REGISTRY.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ConfigError(
                f"two PEFT methods are called '{name}': {known.__module__}.{known.__qualname__} and "
                f"{cls.__module__}.{cls.__qualname__}. Rename one."
            )
        cls.name = name
        _REGISTRY[name] = cls

    def places(self, field: str, architecture: str) -> list[str]:
        """The places that ``field`` names; if it is null, those that are usual for ``architecture``."""
        given = getattr(self, field)
        return list(self.usual.get(architecture, self.usual[""])[field] if given is None else given)

    def settled(self, architecture: str) -> Self:
        """This method with the places that are usual for ``architecture`` written down, where it left them open."""
        fields = [name for name in self.usual.get("", {}) if getattr(self, name) is None]
        return replace(self, **{name: self.places(name, architecture) for name in fields}) if fields else self

    @abstractmethod
    def select(self, backbone: Backbone) -> Selection:
        """Where the method works in a clean ``backbone``, which it leaves as it is.

        Raises:
            PeftlabError: if there is nothing to adapt, listing what there is, or something cannot be adapted.
        """

    @abstractmethod
    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> Adapter:
        """Put the method's own into the model where ``selection`` says, and return all of it.

        Every parameter of the backbone is frozen, and exactly the method's own require a gradient afterwards; the head
        is dealt with by :func:`attach`. New parameters are drawn from ``seed`` through a generator of their own, and
        are float32 whatever the backbone's type. Other methods may work on the same model, each in its own places.

        Args:
            selection: what :meth:`select` has returned.
            seed: the run's.
            batches: losses of the first training batches, for methods whose :meth:`starts_from_data` says so; None:
                there are none, as when a trained adapter is about to be loaded.
        """

    def starts_from_data(self) -> bool:
        """Whether :meth:`build` needs training batches, unless what it builds is about to be loaded."""
        return False

    def closed_form(self, backbone: Backbone) -> int | None:
        """Trainable parameters without the head, by the paper's formula.

        Computed from the shapes of a clean ``backbone``; the tests compare it with what :meth:`build` really trains.
        None: the method has no such formula.
        """
        return None

    def files(self) -> list[Path]:
        """Local files that the method starts from; their content goes into the run's identity."""
        return []

    def identity_values(self) -> dict[str, Any]:
        """Fields that enter the run's key in another form than the config has them."""
        return {}

    def fit_tasks(self, tasks: int) -> None:
        """Told, when a config is checked, how many tasks the data has (1 for the usual data of one task).

        Raises:
            ConfigError: if the method was set up for another number.
        """

    def acts_on_prompts(self) -> bool:
        """Whether it works on what a model is given, and leaves what it says alone."""
        return False

    def extra_tokens(self) -> int:
        """Places in the model's sequence that the method takes beside a text's tokens (a soft prompt's length)."""
        return 0

    def param_groups(self, adapter: Adapter, lr: float) -> list[dict[str, Any]]:
        """Optimizer groups over everything trainable; a method with several learning rates overrides this."""
        return [{"params": adapter.parameters(beside=True), "lr": lr}]

    def regularization(self, adapter: Adapter, step: int, total: int) -> Tensor | None:
        """A term added to the training loss (a scalar), for methods that have one; None for none.

        Args:
            adapter: what :meth:`build` has returned.
            step: the optimizer step that the loss is for, from 1.
            total: optimizer steps of the whole run.
        """
        return None

    def acts_between_steps(self) -> bool:
        """Whether a step depends on where training is, by :meth:`regularization` or :meth:`on_step`."""
        cls, base = type(self), PEFTStrategy
        return cls.regularization is not base.regularization or cls.on_step is not base.on_step

    def over_budget(self, adapter: Adapter) -> int | None:
        """Components that ``adapter`` has beyond the method's final budget; None for a method without one.

        While there are any, an epoch is not chosen by validation: it would not be what was asked for.
        """
        return None

    def on_step(self, adapter: Adapter, step: int, total: int) -> None:
        """Called after each optimizer step, for methods with a schedule of their own.

        Args:
            adapter: what :meth:`build` has returned; the gradients of the step are still there.
            step: optimizer steps done, from 1.
            total: optimizer steps of the whole run.
        """


@dataclass(frozen=True)
class Selection:
    """Where a method works in a clean model: names, by which several methods are told apart before one changes it.

    A method whose ``build`` needs more than that has a subclass of it.
    """

    backbone: Backbone
    targets: Sequence[Target] = ()
    """Layers that get a delta, or slices of their output."""
    trains: Sequence[str] = ()
    """The backbone's own parameters that train by themselves, by their names in the model."""
    slots: Sequence[str] = ()
    """Places that a model has once: names of children that are added to its top."""
    when: Literal["before others", "", "behind others"] = ""
    """When it is built among several: before any layer is adapted, behind all others, or wherever it stands."""


def attach(
    backbone: Backbone,
    strategy: PEFTStrategy,
    *,
    seed: int,
    train_head: bool = True,
    batches: TrainingLosses | None = None,
    is_loaded: bool = False,
) -> Adapter:
    """Freeze ``backbone``, put ``strategy`` into it and set the head trainable or frozen; return the adapter.

    Args:
        backbone: without an adapter.
        strategy: the method.
        seed: of what it draws.
        train_head: whether the head trains beside it.
        batches: losses of training batches, for methods that start from them.
        is_loaded: a trained adapter is about to be loaded into it, so that it needs none.

    Raises:
        PeftlabError: if nothing would train, or the strategy cannot work on this backbone.
    """
    if backbone.provenance.get("quantize") and not strategy.supports.quantized:
        raise PeftlabError(
            f"peft={strategy.name} trains the backbone's own weights, which backbone.quantize="
            f"{backbone.provenance['quantize']} stores in a form that cannot be trained. "
            "Set backbone.quantize=null, or choose a method that adds weights (peft=lora)."
        )
    if strategy.starts_from_data() and batches is None and not is_loaded and not _has_shapes_alone(backbone):
        raise PeftlabError(
            f"peft={strategy.name} starts from gradients on training data here (init=lora_ga), and was given none. "
            "In Python: attach(model, method, batches=…); or choose another peft.init."
        )
    for parameter in backbone.parameters():
        parameter.requires_grad_(False)
    strategy = strategy.settled(backbone.architecture)
    adapter = strategy.build(strategy.select(backbone), seed=seed, batches=batches)
    adapter.beside = backbone.head_modules() if train_head else []
    for _, parameter in backbone.head_parameters():
        parameter.requires_grad_(train_head)
    owned = set(map(id, adapter.parameters(beside=True)))
    assert owned == {id(p) for p in backbone.parameters() if p.requires_grad}, "what trains is what the adapter owns"
    if not owned:
        raise PeftlabError(
            f"peft={strategy.name} with backbone.train_head={str(train_head).lower()} leaves nothing to train."
        )
    return adapter


def _has_shapes_alone(backbone: Backbone) -> bool:
    return all(parameter.device.type == "meta" for parameter in backbone.parameters())


def methods() -> Iterator[tuple[str, type[PEFTStrategy]]]:
    """Every method there is, by name: the files of this folder, then what other packages registered."""
    import peftlab.peft as package

    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    load_registered()
    yield from sorted(_REGISTRY.items())


def load_registered() -> None:
    """Import the modules of methods that other packages have registered (entry points ``peftlab.methods``).

    Raises:
        ConfigError: naming the package and the module of one that cannot be imported.
    """
    for entry in entry_points(group="peftlab.methods"):
        try:
            entry.load()
        except ImportError as error:
            package = "a package" if entry.dist is None else entry.dist.name
            raise ConfigError(
                f"{package} registers the method '{entry.name}' ({entry.value}), which cannot be imported: {error}. "
                "Mend it, or uninstall the package."
            ) from error


def method_elsewhere(name: str) -> type[PEFTStrategy] | None:
    """The method ``name`` of a module that this program has imported, or another package has registered; None: none.

    One that no other process would find, as a notebook's own, is none: a record names its class.
    """
    if name not in _REGISTRY:
        load_registered()
    found = _REGISTRY.get(name)
    if found is None or found.__module__ == "__main__" or "<locals>" in found.__qualname__:
        return None
    return None if found.__module__.startswith("peftlab.peft.") else found
