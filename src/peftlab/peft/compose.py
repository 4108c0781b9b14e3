"""Several methods on one backbone, each in its own places.

The MAM adapter (He et al. 2021, Towards a Unified View of Parameter-Efficient Transfer Learning, arXiv:2110.04366,
section 4.6) is the default: prefixes in attention, a scaled parallel adapter beside the feed-forward. With θ_i what
method i trains and Δ_i what it changes,

    h = backbone with Δ_1(θ_1), …, Δ_k(θ_k)        θ_i ∩ θ_j = ∅, and no place changed by two of them

Every method selects its places on the untouched backbone, as if it were alone, and then builds there, from the same
numbers as alone for the same seed. What cannot be told apart is refused before anything is changed: two methods that
change the same outputs of a layer (the query third and the value third of a fused projection are two places), that
train the same tensor, of which one trains a weight that the other takes as frozen (biases may train), or that need the
one place of a kind that a model has. The result is an adapter of adapters (:class:`~peftlab.peft.adapter.Adapters`):
each method's hooks are called with its own, so AdaLoRA's budget knows AdaLoRA's ranks alone.

Departures from the paper's MAM: prefix tuning and parallel adapter with the defaults of their own files.

Trainable: the sum over the methods.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import InstanceOf

from peftlab.class_names import stable_name
from peftlab.errors import ConfigError, PeftlabError, listed, nearest
from peftlab.peft.adapters import Adapters
from peftlab.peft.base import _REGISTRY, PEFTStrategy, Selection, Supports, load_registered
from peftlab.schema import at_its_place, import_class, says_its_place, validate
from peftlab.shipped import config_folder

if TYPE_CHECKING:
    from torch import Tensor

    from peftlab.backbones.base import Backbone, Target
    from peftlab.peft.adapter import Adapter


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
            sharded=all(part.supports.sharded for part in parts),
            encoder=all(part.supports.encoder for part in parts),
            decoder=all(part.supports.decoder for part in parts),
            identity_at_start=all(part.supports.identity_at_start for part in parts),
        )


@dataclass(kw_only=True)
class Compose(PEFTStrategy, name="compose"):
    """Several methods on one backbone at once, for example MAM: prefix tuning and parallel adapters."""

    supports = _SupportsOfParts()
    count = "sum over its methods"

    methods: list[str | dict[str, Any] | InstanceOf[PEFTStrategy]] = field(
        default_factory=lambda: [{"name": "prefix_tuning", "length": 30}, {"name": "parallel_adapter"}]
    )
    """The methods in their order, each a name or a mapping of ``name`` (or ``_target_``) and its fields.

    From Python an instance of a method will do too, which is written down as its mapping.
    """

    def __post_init__(self) -> None:
        """Check every method's fields, and write them all down."""
        if not self.methods:
            raise ValueError("peft.methods is empty: name at least one, for example [{name: lora, rank: 4}, bitfit].")
        self.methods = [_checked(entry, f"peft.methods[{index}]") for index, entry in enumerate(self.methods)]

    @cached_property
    def parts(self) -> list[PEFTStrategy]:
        """The methods themselves."""

        parts: list[PEFTStrategy] = []
        for key, entry in self._entries():
            target, _ = _meant(entry, key)  # __post_init__ has put the file's values into the entry
            fields = {name: value for name, value in entry.items() if name not in ("name", "_target_")}
            parts.append(validate(fields, import_class(target, f"{key}._target_"), key))
        return parts

    def settled(self, architecture: str) -> Compose:
        """See :meth:`PEFTStrategy.settled`: every method by itself."""
        entries = []
        for (_, entry), part in zip(self._entries(), self.parts, strict=True):
            settled = part.settled(architecture)
            entries.append(entry | {name: getattr(settled, name) for name in part.usual.get("", {})})
        return self if entries == self.methods else Compose(methods=[*entries])

    def _entries(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for index, entry in enumerate(self.methods):
            assert isinstance(entry, dict), "__post_init__ made mappings of them"
            yield f"peft.methods[{index}]", entry

    def select(self, backbone: Backbone) -> ComposedSelection:
        """What every method selects, as if it were alone.

        Raises:
            PeftlabError: if two of them cannot be had together, or one of them refuses the backbone.
        """
        selections = []
        for key, part in self._named_parts():
            with errors_at(key, part):
                selections.append(part.select(backbone))
        for (first, a), (second, b) in combinations(zip(self._named_parts(), selections, strict=True), 2):
            _refuse_conflict(first, second, a, b)
            _refuse_conflict(second, first, b, a)
        return ComposedSelection(
            backbone,
            targets=[target for one in selections for target in one.targets],
            trains=[name for one in selections for name in one.trains],
            slots=[slot for one in selections for slot in one.slots],
            parts=selections,
        )

    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> Adapter:
        """Build every method in its own places.

        One that lets others' code choose its places needs the layers as they were, and goes first; one that reads what
        a layer is given goes behind those that may adapt the layer. The numbers do not depend on it.
        """

        assert isinstance(selection, ComposedSelection)
        order = {"before others": 0, "": 1, "behind others": 2}
        adapters: dict[int, Adapter] = {}
        for index in sorted(range(len(self.parts)), key=lambda index: order[selection.parts[index].when]):
            key, part = self._named_parts()[index]
            with errors_at(key, part):
                adapters[index] = part.build(selection.parts[index], seed=seed, batches=batches)
        return Adapters(self, selection.backbone, [adapters[index] for index in range(len(self.parts))])

    def acts_on_prompts(self) -> bool:
        """Whether one of the methods does."""
        return any(part.acts_on_prompts() for part in self.parts)

    def starts_from_data(self) -> bool:
        """Whether one of the methods does."""
        return any(part.starts_from_data() for part in self.parts)

    def _named_parts(self) -> list[tuple[str, PEFTStrategy]]:
        return [(key, part) for (key, _), part in zip(self._entries(), self.parts, strict=True)]

    def closed_form(self, backbone: Backbone) -> int | None:
        """The sum of the methods' formulas; None if one of them has none."""
        counts = [part.closed_form(backbone) for part in self.parts]
        return None if None in counts else sum(count for count in counts if count is not None)

    def files(self) -> list[Path]:
        """What the methods start from."""
        found: list[Path] = []
        for key, part in self._named_parts():
            with errors_at(key, part):
                found += part.files()
        return found

    def identity_values(self) -> dict[str, Any]:
        """The methods without fields that came later and stand at their default, which are left out elsewhere too."""
        entries = []
        for (_, entry), part in zip(self._entries(), self.parts, strict=True):
            later = {one.name: one.default for one in dataclasses.fields(part) if one.metadata.get("added")}
            entries.append({name: v for name, v in entry.items() if name not in later or v != later[name]})
        return {} if entries == self.methods else {"methods": entries}

    def fit_tasks(self, tasks: int) -> None:
        """Tell every method, and write down what it makes of it."""
        for index, ((key, entry), part) in enumerate(zip(list(self._entries()), self.parts, strict=True)):
            with errors_at(key, part):
                part.fit_tasks(tasks)
            self.methods[index] = entry | dataclasses.asdict(part)

    def extra_tokens(self) -> int:
        """The sum of what the methods take."""
        return sum(part.extra_tokens() for part in self.parts)

    def param_groups(self, adapter: Adapter, lr: float) -> list[dict[str, Any]]:
        """The groups of each method over its own parameters, then one with the head."""
        groups = [group for part in _parts_of(adapter) for group in part.param_groups(lr)]
        known = {id(parameter) for group in groups for parameter in group["params"]}
        rest = [p for p in adapter.parameters(beside=True) if id(p) not in known]
        return [group for group in [*groups, {"params": rest, "lr": lr}] if group["params"]]

    def regularization(self, adapter: Adapter, step: int, total: int) -> Tensor | None:
        """The sum of the methods' terms."""
        terms = [term for part in _parts_of(adapter) if (term := part.regularization(step, total)) is not None]
        return None if not terms else sum(terms[1:], start=terms[0])

    def acts_between_steps(self) -> bool:
        """Whether one of the methods does."""
        return any(method.acts_between_steps() for method in self.parts)

    def over_budget(self, adapter: Adapter) -> int | None:
        """The sum over the methods that have a budget."""
        over = [number for part in _parts_of(adapter) if (number := part.over_budget()) is not None]
        return sum(over) if over else None

    def on_step(self, adapter: Adapter, step: int, total: int) -> None:
        """Let each method act."""
        for part in _parts_of(adapter):
            part.on_step(step, total)


@dataclass(frozen=True)
class ComposedSelection(Selection):
    """What several methods have selected, together and each by itself."""

    parts: list[Selection] = field(default_factory=list)


def _parts_of(adapter: Adapter) -> list[Adapter]:

    assert isinstance(adapter, Adapters)
    return adapter.parts


def _refuse_conflict(
    first: tuple[str, PEFTStrategy], second: tuple[str, PEFTStrategy], a: Selection, b: Selection
) -> None:
    """Raise PeftlabError if the method of selection ``a`` gets in the way of that of ``b``."""
    both = f"{first[0]} ({first[1].name}) and {second[0]} ({second[1].name})"
    keys = [key for key in map(_targets_key, (first, second)) if key]
    if clash := {one.name for one in a.targets if any(_overlap(one, other) for other in b.targets)}:
        advice = "Give them different targets" if len(keys) == 2 else _take_out(clash, keys)
        raise PeftlabError(f"{both} both change {_names(clash)}. {advice}.")
    if clash := {*a.trains} & {*b.trains}:
        raise PeftlabError(f"{both} both train {_names(clash)}. Let one of them do it.")
    if clash := {*a.slots} & {*b.slots}:
        raise PeftlabError(
            f"{both} both add {_names(clash)} to the model, which has one place for it. Keep one of them."
        )
    # A bias may train beside an adapter; a weight that an adapter measures, or is merged into, may not.
    adapted = {target.name for target in b.targets}
    if clash := {name for name in a.trains if not name.endswith("bias") and _owner(name) in adapted}:
        own = _targets_key(second)
        all_of_it = {_owner(name) for name in clash} >= adapted
        raise PeftlabError(
            f"{first[0]} ({first[1].name}) trains {_names(clash)}, which {second[0]} ({second[1].name}) adapts as a "
            f"frozen weight. {_take_out(clash, [own] if own and not all_of_it else [])}."
        )


def _overlap(one: Target, other: Target) -> bool:
    """Whether two targets have outputs in common."""
    if one.name != other.name:
        return False
    if one.output_slice is None or other.output_slice is None:
        return True
    a, b = one.output_slice, other.output_slice
    return bool(a.start < b.stop and b.start < a.stop)


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _targets_key(keyed: tuple[str, PEFTStrategy]) -> str | None:
    """The key that says where the method works; None if it has no such choice."""
    key, part = keyed
    if isinstance(getattr(part, "targets", None), list) or "targets" in part.usual.get("", {}):
        return f"{key}.targets"
    return f"{key}.options.target_modules" if "target_modules" in getattr(part, "options", ()) else None


def _take_out(names: set[str], keys: list[str]) -> str:
    what = "it" if len(names) == 1 else "them"
    return f"Take {what} out of {keys[0]}, or keep one of the two methods" if keys else "Keep one of the two methods"


def _names(names: set[str]) -> str:
    rest = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"'{min(names)}'{rest}"


def _unmergeable(parts: Iterable[PEFTStrategy]) -> list[str]:
    """Names of the methods that add something which cannot be folded into the weights."""
    return [part.name for part in parts if not (part.supports.mergeable or part.supports.adds_nothing)]


@contextmanager
def errors_at(key: str, method: Any) -> Iterator[None]:
    """Let errors of ``method`` name its fields where they stand: ``peft.methods[1].rank``; the place is said once."""

    try:
        yield
    except PeftlabError as error:
        message = at_its_place(str(error), type(method), key)
        if not says_its_place(message, key):
            message = f"{key} ({method.name}): {message}"
        raise (ConfigError if isinstance(error, ConfigError) else PeftlabError)(message) from error


def _checked(entry: str | dict[str, Any] | PEFTStrategy, key: str) -> dict[str, Any]:
    """One entry with all fields of its method, checked."""

    if isinstance(entry, PEFTStrategy):
        entry = _written(entry)
    given = {"name": entry} if isinstance(entry, str) else dict(entry)
    target, preset = _meant(given, key)
    cls = import_class(target, f"{key}._target_")
    if not issubclass(cls, PEFTStrategy):
        raise ConfigError(f"{key}._target_={target}: it must be a peftlab.peft.base.PEFTStrategy, which this is not.")
    if getattr(cls, "name", None) == "compose":
        raise ConfigError(f"{key}: a composition cannot hold another one. List all methods in peft.methods.")
    chosen = {name: given.pop(name) for name in ("name", "_target_") if name in given}
    if "_target_" in chosen:  # what enters the key
        chosen["_target_"] = stable_name(chosen["_target_"])
    instance: Any = validate(preset | given, cls, key)
    return chosen | dataclasses.asdict(instance)


def _written(method: PEFTStrategy) -> dict[str, Any]:
    """The entry that a YAML file would have for ``method``."""
    cls, fields = type(method), dataclasses.asdict(method)
    if _REGISTRY.get(cls.name) is cls:
        return {"name": cls.name} | fields
    return {"_target_": f"{cls.__module__}.{cls.__qualname__}"} | fields


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

    return {file.stem: file for file in (config_folder() / "peft").glob("*.yaml")}


def _registered() -> dict[str, str]:
    """The methods that other packages registered: name to class."""

    load_registered()
    return {name: f"{cls.__module__}.{cls.__qualname__}" for name, cls in _REGISTRY.items()}
