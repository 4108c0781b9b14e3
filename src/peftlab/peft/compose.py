"""Several methods on one backbone, each in its own places.

The MAM adapter (He et al. 2021, Towards a Unified View of Parameter-Efficient Transfer Learning, arXiv:2110.04366,
section 4.6) is the default: prefixes in attention, a scaled parallel adapter beside the feed-forward. With θ_i what
method i trains and Δ_i what it changes,

    h = backbone with Δ_1(θ_1), …, Δ_k(θ_k)        θ_i ∩ θ_j = ∅, and no place changed by two of them

Every method is injected as it would be alone: it sees the untouched backbone, its targets are found by the same
names, and it starts from the same numbers for the same seed. What cannot be told apart is refused: two methods
that wrap the same layer, train the same tensor, or one that trains a weight which the other takes as
frozen. The methods' own hooks are then called one by one, each on a view of the model that hides
what belongs to the others (:mod:`peftlab.peft.shared_model`), so AdaLoRA's budget knows AdaLoRA's ranks alone.

Departures from the paper's MAM: prefix tuning and parallel adapter with the defaults of their own files.

Trainable: the sum over the methods.

This file imports no torch, and is imported itself when a config is checked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.errors import ConfigError, PeftlabError, listed, nearest
from peftlab.peft.base import PEFTStrategy, Supports

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftlab.backbones.base import Backbone
    from peftlab.peft.weight_update import WeightUpdate


class _SupportsOfParts:
    """``supports`` of a composition: what all of its methods can do; of the class, what the default can do."""

    def __get__(self, instance: Compose | None, owner: type[Compose]) -> Supports:
        if instance is None:
            return Supports(identity_at_start=False)
        parts = instance.parts
        return Supports(
            mergeable=any(part.supports.mergeable for part in parts) and not _unmergeable(parts),
            adds_nothing=all(part.supports.adds_nothing for part in parts),
            quantized=all(part.supports.quantized for part in parts),
            encoder=all(part.supports.encoder for part in parts),
            decoder=all(part.supports.decoder for part in parts),
            identity_at_start=all(part.supports.identity_at_start for part in parts),
        )


@dataclass(kw_only=True)
class Compose(PEFTStrategy, name="compose"):
    """Several methods on one backbone at once, for example MAM: prefix tuning and parallel adapters."""

    supports = _SupportsOfParts()
    count = "sum over its methods"

    methods: list[str | dict[str, Any]] = field(
        default_factory=lambda: [{"name": "prefix_tuning", "length": 30}, {"name": "parallel_adapter"}]
    )
    """The methods in their order, each a name or a mapping of ``name`` (or ``_target_``) and its fields."""

    def __post_init__(self) -> None:
        """Check every method's fields, and write them all down."""
        if not self.methods:
            raise ValueError("peft.methods is empty: name at least one, for example [{name: lora, rank: 4}, bitfit].")
        self.methods = [_checked(entry, f"peft.methods[{index}]") for index, entry in enumerate(self.methods)]

    @cached_property
    def parts(self) -> list[PEFTStrategy]:
        """The methods themselves."""
        from peftlab.schema import import_class, validate

        parts: list[PEFTStrategy] = []
        for key, entry in self._entries():
            target, _ = _meant(entry, key)  # __post_init__ has put the file's values into the entry
            fields = {name: value for name, value in entry.items() if name not in ("name", "_target_")}
            parts.append(validate(fields, import_class(target, f"{key}._target_"), key))
        return parts

    def _entries(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for index, entry in enumerate(self.methods):
            assert isinstance(entry, dict), "__post_init__ made mappings of them"
            yield f"peft.methods[{index}]", entry

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        """Inject every method as if it were alone.

        Raises:
            PeftlabError: if two of them cannot be had together, or one of them refuses the backbone.
        """
        from peftlab.peft.shared_model import inject_all

        inject_all(self._named_parts(), backbone, seed=seed)

    def _named_parts(self) -> list[tuple[str, PEFTStrategy]]:
        return [(key, part) for (key, _), part in zip(self._entries(), self.parts, strict=True)]

    def closed_form(self, backbone: Backbone) -> int | None:
        """The sum of the methods' formulas; None if one of them has none."""
        counts = [part.closed_form(backbone) for part in self.parts]
        return None if None in counts else sum(count for count in counts if count is not None)

    def files(self) -> list[Path]:
        """What the methods start from, found without importing torch."""
        found: list[Path] = []
        for key, _, method in self._read_parts():
            with errors_at(key, method):
                found += method.files()
        return found

    def fit_tasks(self, tasks: int) -> None:
        """Tell every method, and write down what it makes of it."""
        for index, (key, entry, method) in enumerate(list(self._read_parts())):
            with errors_at(key, method):
                method.fit_tasks(tasks)
            self.methods[index] = entry | dataclasses.asdict(method)
        self.__dict__.pop("parts", None)

    def _read_parts(self) -> Iterator[tuple[str, dict[str, Any], Any]]:
        """Key, entry and method of each, its class read without importing torch."""
        from peftlab.schema import config_class, validate

        for key, entry in self._entries():
            target, _ = _meant(entry, key)
            fields = {name: value for name, value in entry.items() if name not in ("name", "_target_")}
            yield key, entry, validate(fields, config_class(target, f"{key}._target_"), key)

    def load_source(self, backbone: Backbone, fingerprint: str) -> None:
        """Let each method load what it starts from."""
        keys = {id(part): key for key, part in self._named_parts()}
        for part, view in self._each(backbone, "load_source"):
            with view(), errors_at(keys[id(part)], part):
                part.load_source(backbone, fingerprint)

    def extra_tokens(self) -> int:
        """The sum of what the methods take."""
        return sum(part.extra_tokens() for part in self.parts)

    def param_groups(self, module: nn.Module, lr: float) -> list[dict[str, Any]]:
        """The groups of each method over its own parameters, then one with the head."""
        groups: list[dict[str, Any]] = []
        for part, view in self._each(module):
            with view():
                groups += part.param_groups(module, lr)
        known = {id(parameter) for group in groups for parameter in group["params"]}
        rest = [p for p in module.parameters() if p.requires_grad and id(p) not in known]
        return [group for group in [*groups, {"params": rest, "lr": lr}] if group["params"]]

    def adapter_tensors(self, module: nn.Module) -> dict[str, Tensor]:
        """The tensors of each method, and those of the head."""
        tensors: dict[str, Tensor] = {}
        for part, view in self._each(module):
            with view():
                tensors |= part.adapter_tensors(module)
        known = set(map(id, tensors.values()))
        return tensors | {n: p for n, p in module.named_parameters() if p.requires_grad and id(p) not in known}

    def regularization(self, backbone: Backbone) -> Tensor | None:
        """The sum of the methods' terms."""
        terms: list[Tensor] = []
        for part, view in self._each(backbone, "regularization"):
            with view():
                term = part.regularization(backbone)
            terms += [] if term is None else [term]
        return None if not terms else sum(terms[1:], start=terms[0])

    def on_train_step(self, backbone: Backbone, step: int, total_steps: int) -> None:
        """Let each method act."""
        for part, view in self._each(backbone, "on_train_step"):
            with view():
                part.on_train_step(backbone, step, total_steps)

    def merge(self, backbone: Backbone) -> None:
        """Merge the methods that add something, the last one first; all of them or, if one refuses, none."""
        merged: list[tuple[PEFTStrategy, Any]] = []
        for part, view in reversed(self._each_to_merge(backbone)):
            try:
                with view():
                    part.merge(backbone)
            except PeftlabError:
                for done, view_of_done in reversed(merged):
                    with view_of_done():
                        done.unmerge(backbone)
                raise
            merged.append((part, view))

    def unmerge(self, backbone: Backbone) -> None:
        """Undo :meth:`merge`."""
        for part, view in self._each_to_merge(backbone):
            with view():
                part.unmerge(backbone)

    def _each_to_merge(self, backbone: Backbone) -> list[tuple[PEFTStrategy, Callable[[], Any]]]:
        """The methods that add something, each with its view; raises PeftlabError if they cannot be merged."""
        if fixed := _unmergeable(self.parts):
            raise PeftlabError(
                f"'compose' cannot be merged, as '{fixed[0]}' cannot: it is no change of the backbone's weights "
                "alone. Use the model with its adapter."
            )
        if self.supports.adds_nothing:
            raise PeftlabError(self._why_not_merged())
        return [(part, view) for part, view in self._each(backbone) if not part.supports.adds_nothing]

    def weight_updates(self, backbone: Backbone) -> list[WeightUpdate] | None:
        """What the methods say of their own; None if none of them says anything."""
        said: list[WeightUpdate] = []
        for part, view in self._each(backbone, "weight_updates"):
            with view():
                said += part.weight_updates(backbone) or []
        return said or None

    @contextmanager
    def switched_off(self, backbone: Backbone) -> Iterator[None]:
        """All methods off; see :meth:`PEFTStrategy.switched_off`."""
        with ExitStack() as off:
            for part, view in self._each(backbone):
                context = part.switched_off(backbone)
                with view():
                    context.__enter__()
                off.callback(_leave, context, view)
            yield

    def _each(self, module: nn.Module, hook: str = "") -> Iterator[tuple[PEFTStrategy, Callable[[], Any]]]:
        """The methods that have a ``hook`` of their own, each with the context that shows it its part of ``module``."""
        from peftlab.peft.shared_model import seen_by

        for index, part in enumerate(self.parts):
            if not hook or getattr(type(part), hook) is not getattr(PEFTStrategy, hook):
                yield part, lambda index=index: seen_by(index, module)  # type: ignore[misc]


def _unmergeable(parts: Iterable[PEFTStrategy]) -> list[str]:
    """Names of the methods that add something which cannot be folded into the weights."""
    return [part.name for part in parts if not (part.supports.mergeable or part.supports.adds_nothing)]


@contextmanager
def errors_at(key: str, method: Any) -> Iterator[None]:
    """Let errors of ``method`` name its fields where they stand: ``peft.methods[1].rank``; the place is said once."""
    from peftlab.schema import at_its_place, says_its_place

    try:
        yield
    except PeftlabError as error:
        message = at_its_place(str(error), type(method), key)
        if not says_its_place(message, key):
            message = f"{key} ({method.name}): {message}"
        raise (ConfigError if isinstance(error, ConfigError) else PeftlabError)(message) from error


def _leave(context: AbstractContextManager[None], view: Callable[[], Any]) -> None:
    with view():
        context.__exit__(None, None, None)


def _checked(entry: str | dict[str, Any], key: str) -> dict[str, Any]:
    """One entry with all fields of its method, checked without importing torch."""
    from peftlab.schema import config_class, validate

    given = {"name": entry} if isinstance(entry, str) else dict(entry)
    target, preset = _meant(given, key)
    cls = config_class(target, f"{key}._target_")
    if not issubclass(cls, PEFTStrategy):
        raise ConfigError(f"{key}._target_={target}: it must be a peftlab.peft.base.PEFTStrategy, which this is not.")
    if getattr(cls, "name", None) == "compose":
        raise ConfigError(f"{key}: a composition cannot hold another one. List all methods in peft.methods.")
    chosen = {name: given.pop(name) for name in ("name", "_target_") if name in given}
    instance: Any = validate(preset | given, cls, key)
    return chosen | dataclasses.asdict(instance)


def _meant(entry: dict[str, Any], key: str) -> tuple[str, dict[str, Any]]:
    """The class that an entry means by its ``_target_`` or ``name``, and what the file of that name sets.

    Raises:
        ConfigError: naming ``key``, if it gives neither or both, or a name that no method has.
    """
    name, target = entry.get("name"), entry.get("_target_")
    if (name is None) == (target is None):
        given = "neither is given" if name is None else "both are given"
        raise ConfigError(
            f"{key}: {given}, a method's name or its _target_. Write for example {{name: lora, rank: 4}}."
        )
    for chooser, value in (("name", name), ("_target_", target)):
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"{key}.{chooser}={value!r} is not allowed: it must be text, for example lora.")
    if target is not None:
        return str(target), {}
    shipped = _shipped()
    if name in shipped:
        import yaml

        preset = yaml.safe_load(shipped[str(name)].read_text(encoding="utf-8"))
        return preset.pop("_target_"), preset
    registered = _registered()
    if name not in registered:
        known = {*shipped, *registered} - {"compose"}
        raise ConfigError(
            f"{key}.name={name}: there is no method '{name}'.{nearest(str(name), known)} There are: {listed(known)}."
        )
    return registered[str(name)], {}


def _shipped() -> dict[str, Path]:
    """The files of ``conf/peft`` by name."""
    from peftlab.config import config_folder

    return {file.stem: file for file in (config_folder() / "peft").glob("*.yaml")}


def _registered() -> dict[str, str]:
    """The methods that other packages registered: name to class."""
    from peftlab.peft.base import _REGISTRY

    for entry in entry_points(group="peftlab.methods"):
        entry.load()
    return {name: f"{cls.__module__}.{cls.__qualname__}" for name, cls in _REGISTRY.items()}
