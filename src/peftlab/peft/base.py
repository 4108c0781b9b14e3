"""The protocol of a PEFT method, and the registry that subclassing fills.

A method is one dataclass in one file of this folder plus ``conf/peft/<method>.yaml``:

    @dataclass(kw_only=True)
    class BitFit(PEFTStrategy, name="bitfit"):
        '''BitFit (Ben Zaken et al. 2021, arXiv:2106.10199): train the biases.'''

        def inject(self, backbone, *, seed):
            for name, parameter in backbone.model.named_parameters():
                parameter.requires_grad_(name.endswith("bias"))

Nothing else is edited: the command line, the tests and the tables walk the registry. Packages outside
peftlab register through the entry-point group ``peftlab.methods`` (name -> module).

What trains is what requires a gradient after :meth:`PEFTStrategy.inject`; it is never guessed from names.
This module imports no torch, so that configs can be checked before anything heavy loads.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from peftlab.errors import ConfigError, PeftlabError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftlab.backbones.base import Backbone
    from peftlab.interop.hf_format import HFAdapter, HFFolder
    from peftlab.peft.weight_update import WeightUpdate

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
    encoder: bool = True
    """Works on encoders (BERT and kin)."""
    decoder: bool = True
    """Works on decoders (GPT-2, Llama and kin)."""
    identity_at_start: bool = True
    """Before the first step the model computes what the backbone computed."""
    hf_peft: str | None = None
    """``peft_type`` under which HF peft's checkpoint format knows the method, or in small letters where that is to be
    found; None: it knows no such method."""


@dataclass(kw_only=True)
class PEFTStrategy(ABC):
    """A way to fine-tune: it decides what trains, and changes the backbone in place for it."""

    name: ClassVar[str]
    supports: ClassVar[Supports] = Supports()
    count: ClassVar[str] = ""
    """Trainable parameters without the head, as a formula for people."""

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

    def closed_form(self, backbone: Backbone) -> int | None:
        """Trainable parameters without the head, by the paper's formula.

        Computed from the shapes of a ``backbone`` that nothing was injected into; the tests compare it with what
        :meth:`inject` really leaves trainable. None: the method has no such formula.
        """
        return None

    @abstractmethod
    def inject(self, backbone: Backbone, *, seed: int) -> None:
        """Change ``backbone.model`` in place so that exactly the method's own parameters require a gradient.

        Called with every backbone parameter frozen; the head is dealt with afterwards by
        :func:`apply`. New parameters are drawn from ``seed`` through a generator of the method's own.

        Raises:
            PeftlabError: if there is nothing to adapt, listing what there is.
        """

    def files(self) -> list[Path]:
        """Local files that the method starts from; their content goes into the run's identity.

        Called on a class that was read without its heavy imports (see :mod:`peftlab.schema`), so light names only.
        """
        return []

    def fit_tasks(self, tasks: int) -> None:  # noqa: B027
        """Told, when a config is checked, how many tasks the data has (1 for the usual data of one task).

        Called on a class that was read without its heavy imports, as :meth:`files` is.

        Raises:
            ConfigError: if the method was set up for another number.
        """

    def load_source(self, backbone: Backbone, fingerprint: str) -> None:  # noqa: B027
        """After :meth:`inject`, before training: load what the method starts from, if that is an earlier run.

        Not called when a trained adapter is loaded, which replaces it all.

        Args:
            backbone: injected into.
            fingerprint: of its frozen weights, as the earlier run's ``adapter.json`` says its own.

        Raises:
            PeftlabError: if the earlier run does not fit.
        """

    def keep_task(self, backbone: Backbone, task: int) -> PEFTStrategy:
        """Leave in ``backbone`` what the texts of one of several tasks need; return the method of what is left."""
        return self

    def extra_tokens(self) -> int:
        """Places in the model's sequence that the method takes beside a text's tokens (a soft prompt's length)."""
        return 0

    def param_groups(self, module: nn.Module, lr: float) -> list[dict[str, Any]]:
        """Optimizer groups over everything trainable; a method with several learning rates overrides this."""
        return [{"params": [p for p in module.parameters() if p.requires_grad], "lr": lr}]

    def adapter_tensors(self, module: nn.Module) -> dict[str, Tensor]:
        """The live tensors that a checkpoint and the adapter file hold, by qualified name.

        Every parameter that requires a gradient; a method with further state (a frozen random matrix,
        the running importance of a rank) adds it, so that a reloaded adapter trains on as it was.
        """
        return {name: p for name, p in module.named_parameters() if p.requires_grad}

    def adapter_state(self, module: nn.Module) -> dict[str, Tensor]:
        """What training changed: :meth:`adapter_tensors`, detached."""
        return {name: tensor.detach() for name, tensor in self.adapter_tensors(module).items()}

    def load_adapter_state(self, module: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Copy ``state`` into ``module``; the keys must be exactly those of :meth:`adapter_tensors`.

        Raises:
            PeftlabError: naming the first missing, unknown or misshapen tensor.
        """
        import torch

        own = self.adapter_tensors(module)
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

    def merge(self, backbone: Backbone) -> None:
        """Fold the update into the backbone's weights, for inference without extra cost.

        Raises:
            PeftlabError: if there is nothing to fold, or it cannot be done, with the reason; nothing is changed then.
        """
        raise PeftlabError(self._why_not_merged())

    def unmerge(self, backbone: Backbone) -> None:
        """Undo :meth:`merge`."""
        raise PeftlabError(self._why_not_merged())

    def _why_not_merged(self) -> str:
        if self.supports.adds_nothing:
            return (
                f"'{self.name}' trains the backbone's own tensors and adds none: there is nothing to merge, and the "
                "model already costs what the backbone costs."
            )
        return f"'{self.name}' cannot be merged into the backbone's weights."

    def weight_updates(self, backbone: Backbone) -> Iterable[WeightUpdate] | None:
        """What was changed of each weight matrix, for ``peftlab inspect``; read while the adapter is not merged.

        None, the default: it is to be seen by comparing the weights, after :meth:`merge` where the method has one,
        with those before training. A method that knows more (the factors of its update) says it here.
        """
        return None

    @contextmanager
    def switched_off(self, backbone: Backbone) -> Iterator[None]:
        """Inside, ``backbone`` computes what it computed before :meth:`inject`, but for its head.

        The default switches off what stands around the backbone's layers (:func:`~peftlab.peft.surgery.wrappers_off`).

        Raises:
            PeftlabError: if the method trains the backbone's own weights, so that nothing can be switched off.
        """
        from peftlab.peft.surgery import wrappers_off

        with wrappers_off(backbone.model) as count:
            if not count:
                raise PeftlabError(f"peft={self.name} changes the backbone itself: there is no adapter to switch off.")
            yield

    def to_hf(self, backbone: Backbone) -> HFAdapter:
        """The adapter in ``backbone`` as HF peft's checkpoint format says it (:mod:`peftlab.interop.hf_format`).

        Raises:
            PeftlabError: if the format cannot say it, with the reason.
        """
        plain = self.supports.mergeable or self.supports.adds_nothing
        way_out = " Export with --merged: a plain classifier of transformers holds all that it computes."
        raise PeftlabError(
            f"peft={self.name} cannot be written in the format of HF peft, which knows no such method "
            f"(`peftlab methods` shows those it knows, under 'HF peft file').{way_out if plain else ''}"
        )

    @classmethod
    def from_hf(cls, folder: HFFolder) -> dict[str, Any] | None:  # noqa: ARG003
        """The fields under which this method computes what HF peft's ``folder`` says; None if it is not this method's.

        Raises:
            PeftlabError: if it is, but says something that this method has not.
        """
        return None

    def load_hf(self, backbone: Backbone, folder: HFFolder) -> None:
        """Load the tensors of ``folder`` into ``backbone``, which was injected with the fields of :meth:`from_hf`."""
        raise NotImplementedError(f"{type(self).__name__} has from_hf, but no load_hf")

    def regularization(self, backbone: Backbone) -> Tensor | None:
        """A term added to the training loss (a scalar), for methods that have one; None for none."""
        return None

    def on_train_step(self, backbone: Backbone, step: int, total_steps: int) -> None:  # noqa: B027
        """Called after each optimizer step, for methods with a schedule of their own.

        Args:
            backbone: what was injected into; the gradients of the step are still there.
            step: optimizer steps done, from 1.
            total_steps: optimizer steps of the whole run.
        """


def apply(strategy: PEFTStrategy, backbone: Backbone, *, seed: int, train_head: bool = True) -> None:
    """Freeze ``backbone``, inject ``strategy`` and set the head trainable or frozen.

    Raises:
        PeftlabError: if nothing would train, or the strategy cannot work on this backbone.
    """
    if backbone.provenance.get("quantize") and not strategy.supports.quantized:
        raise PeftlabError(
            f"peft={strategy.name} trains the backbone's own weights, which backbone.quantize="
            f"{backbone.provenance['quantize']} stores in a form that cannot be trained. "
            "Set backbone.quantize=null, or choose a method that adds weights (peft=lora)."
        )
    for parameter in backbone.parameters():
        parameter.requires_grad_(False)
    strategy.inject(backbone, seed=seed)
    for _, parameter in backbone.head_parameters():
        parameter.requires_grad_(train_head)
    if not any(parameter.requires_grad for parameter in backbone.parameters()):
        raise PeftlabError(
            f"peft={strategy.name} with backbone.train_head={str(train_head).lower()} leaves nothing to train."
        )


def methods() -> Iterator[tuple[str, type[PEFTStrategy]]]:
    """Every method there is, by name: the files of this folder, then what other packages registered."""
    import peftlab.peft as package

    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    for entry in entry_points(group="peftlab.methods"):
        entry.load()
    yield from sorted(_REGISTRY.items())
