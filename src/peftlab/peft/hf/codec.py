"""How the adapter of a method is said in HF peft's checkpoint format, and read from it.

A codec is one class: of a ``peft_type`` of HF peft in a file of this folder, or in the file of a method from elsewhere.
Subclassing :class:`Codec` registers it, for the methods that it names.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from peftlab.errors import PeftlabError

if TYPE_CHECKING:
    from peftlab.peft.adapter import Adapter
    from peftlab.peft.base import PEFTStrategy
    from peftlab.peft.hf.format import HFAdapter, HFFolder

_CODECS: list[Codec] = []


class Codec(ABC):
    """A method in the format; one that is only written has no :meth:`fields`."""

    methods: ClassVar[tuple[str, ...]]
    """Names of the methods whose adapters it writes and loads."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _CODECS.append(cls())

    @abstractmethod
    def write(self, adapter: Adapter) -> HFAdapter:
        """``adapter``, the head apart, as the format says it.

        Raises:
            PeftlabError: if the format cannot say it, with the reason.
        """

    def fields(self, folder: HFFolder) -> tuple[str, dict[str, Any]] | None:
        """The method that computes what ``folder`` says, and its fields; None if that is none of :attr:`methods`.

        Raises:
            PeftlabError: if it is, but says something that the method has not.
        """
        return None

    def load(self, adapter: Adapter, folder: HFFolder) -> None:
        """Copy the tensors of ``folder`` into ``adapter``, which was built with :meth:`fields`."""
        raise NotImplementedError(f"{type(self).__name__} has fields, but no load")


def codecs() -> list[Codec]:
    """Every codec there is."""
    import peftlab.peft.hf as package
    from peftlab.peft.base import methods

    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    dict(methods())  # those in the files of methods
    return list(_CODECS)


def codec_of(method: str) -> Codec:
    """The codec of the method of this name; there must be one."""
    return next(codec for codec in codecs() if method in codec.methods)


def read(folder: HFFolder) -> tuple[str, dict[str, Any]] | None:
    """Name and fields of the method that computes what ``folder`` says; None if there is none."""
    return next((found for codec in codecs() if (found := codec.fields(folder)) is not None), None)


def written(adapter: Adapter) -> HFAdapter:
    """``adapter`` in the format.

    Raises:
        PeftlabError: if the format cannot say it, with the reason.
    """
    for codec in codecs():
        if adapter.strategy.name in codec.methods:
            return codec.write(adapter)
    raise PeftlabError(_unknown(adapter.strategy))


def _unknown(strategy: PEFTStrategy) -> str:
    plain = strategy.supports.mergeable or strategy.supports.adds_nothing
    way_out = " Export with --merged: a plain classifier of transformers holds all that it computes."
    return (
        f"peft={strategy.name} cannot be written in the format of HF peft, which knows no such method "
        f"(`peftlab methods` shows those it knows, under 'HF peft file').{way_out if plain else ''}"
    )
