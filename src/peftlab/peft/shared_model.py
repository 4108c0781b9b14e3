"""One model that several methods work on: what each of them changes, and what it is shown of the rest.

Before anything is changed, every method is tried on a skeleton of the backbone (shapes without values). From
that it is known which modules it replaces or adds and which of the backbone's own tensors it trains, so that
methods that get in each other's way are refused with the names of the places.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from peftlab.backbones.base import Backbone
from peftlab.errors import PeftlabError
from peftlab.peft.base import PEFTStrategy
from peftlab.peft.compose import errors_at
from peftlab.peft.selective import stored_name

_SHARES = "peft_shares"
"""The model's attribute that holds the list of :class:`Share`."""


@dataclass
class Share:
    """What belongs to one method, by qualified names inside the model."""

    modules: set[str] = field(default_factory=set)
    """Modules that it added."""
    trained: set[str] = field(default_factory=set)
    """Parameters that it trains."""


@dataclass
class Plan:
    """What a method would do to the untouched model."""

    replaced: set[str]
    """Names at which another module would stand afterwards."""
    added: set[str]
    """Names, without those below them, at which there would be a module and now is none."""
    own: set[str]
    """Parameters of the backbone itself that would train."""
    elements: int
    """Trainable elements, without the head."""


def inject_all(parts: Sequence[tuple[str, PEFTStrategy]], backbone: Backbone, *, seed: int) -> None:
    """Inject every part (config key and method) as if it were alone, and remember what belongs to which.

    Raises:
        PeftlabError: if two of them cannot be had together, or one of them refuses the backbone.
    """
    plans = [_plan(key, part, backbone, seed) for key, part in parts]
    for (first, second), (a, b) in zip(combinations(parts, 2), combinations(plans, 2), strict=True):
        _refuse_conflict(first, second, a, b)
        _refuse_conflict(second, first, b, a)
    model = backbone.model
    untouched = dict(model.named_modules())
    belongings: dict[int, tuple[list[nn.Module], list[nn.Parameter]]] = {}
    # Those that replace modules go first: training a tensor in 16 bits changes the type of the layer that owns it.
    for index in sorted(range(len(parts)), key=lambda index: not plans[index].replaced):
        key, part = parts[index]
        with _as_untouched(model, untouched), errors_at(key, part):
            belongings[index] = _injected(part, backbone, seed)
        elements = sum(parameter.numel() for parameter in belongings[index][1])
        if elements != plans[index].elements:
            raise PeftlabError(
                f"{key} ({part.name}) trains {elements:,} parameters beside the other methods and "
                f"{plans[index].elements:,} alone: they do not work together. Leave one of them out of peft.methods."
            )
    modules = {id(module): name for name, module in model.named_modules()}
    parameters = {id(parameter): name for name, parameter in model.named_parameters()}
    shares = []
    for index in range(len(parts)):
        added, trained = belongings[index]
        for parameter in trained:
            parameter.requires_grad_(True)
        shares.append(Share({modules[id(m)] for m in added}, {parameters[id(p)] for p in trained}))
    setattr(model, _SHARES, shares)


def _injected(part: PEFTStrategy, backbone: Backbone, seed: int) -> tuple[list[nn.Module], list[nn.Parameter]]:
    """Inject ``part`` into the frozen model; return the modules it added and the parameters it trains."""
    for parameter in backbone.parameters():
        parameter.requires_grad_(False)
    before = list(backbone.model.modules())  # kept, so that no id is given twice
    known = set(map(id, before))
    part.inject(backbone, seed=seed)
    head = {id(parameter) for _, parameter in backbone.head_parameters()}
    return (
        [module for module in backbone.model.modules() if id(module) not in known],
        [p for p in backbone.model.parameters() if p.requires_grad and id(p) not in head],
    )


@contextmanager
def seen_by(index: int, module: nn.Module) -> Iterator[None]:
    """Show the part at ``index`` the modules and parameters of ``module`` without those that others added or train.

    Args:
        index: place of the part among the parts.
        module: a backbone that :func:`inject_all` worked on, or its inner model.
    """
    model = module.model if isinstance(module, Backbone) else module
    shares: list[Share] | None = getattr(model, _SHARES, None)
    if shares is None:
        raise PeftlabError("nothing was injected into this model by peft=compose.")
    mine = shares[index].trained
    others = {name for place, share in enumerate(shares) if place != index for name in share.modules}
    hidden = {id(module) for name, module in model.named_modules() if name in others}
    hidden |= {id(p) for name, p in model.named_parameters() if p.requires_grad and name not in mine}
    with _filtered(model, hidden), _filtered(module, hidden):
        yield


@contextmanager
def _filtered(module: nn.Module, hidden: set[int]) -> Iterator[None]:
    """Leave ``hidden`` objects out when the modules or parameters of ``module`` are walked through."""

    def visible(walk: Callable[..., Any], *args: Any, **named: Any) -> Any:
        return (item for item in walk(*args, **named) if id(item[1]) not in hidden)

    with _instead(module, "named_modules", visible), _instead(module, "named_parameters", visible):
        yield


@contextmanager
def _as_untouched(model: nn.Module, untouched: dict[str, nn.Module]) -> Iterator[None]:
    """Hide what stands in ``model`` beside the modules it had, ``untouched``, and show these under their old names.

    What is put into the model meanwhile is seen.
    """
    names = {id(module): name for name, module in untouched.items()}
    foreign = {id(module) for module in model.modules() if id(module) not in names}

    def modules(walk: Callable[..., Any], memo: Any = None, prefix: str = "", remove_duplicate: bool = True) -> Any:
        shown = {"": ""}  # name inside the model -> name to show
        hidden = set()
        for name, module in walk(memo, prefix, remove_duplicate):
            inner = name.removeprefix(prefix).removeprefix(".")
            outer, _, child = inner.rpartition(".")
            by_place = ".".join(filter(None, (shown.get(outer, outer), child)))
            shown[inner] = names.get(id(module), by_place) if outer in hidden else by_place
            if id(module) in foreign:
                hidden.add(inner)
            else:
                yield ".".join(filter(None, (prefix, shown[inner]))), module

    def submodule(get: Callable[[str], nn.Module], target: str) -> nn.Module:
        try:
            found = get(target)
        except AttributeError:  # it is inside of what is hidden
            if target not in untouched:
                raise
            return untouched[target]
        return untouched.get(target, found) if id(found) in foreign else found

    with _instead(model, "named_modules", modules), _instead(model, "get_submodule", submodule):
        yield


@contextmanager
def _instead(module: nn.Module, method: str, wrapper: Callable[..., Any]) -> Iterator[None]:
    """Let ``wrapper``, which gets the method itself as its first argument, answer ``module.<method>(…)``.

    ``modules()``, ``parameters()``, ``get_parameter()`` and so on are built on those that are wrapped here.
    """
    before = vars(module).get(method)
    setattr(module, method, partial(wrapper, getattr(module, method)))
    try:
        yield
    finally:
        if before is None:
            delattr(module, method)
        else:
            setattr(module, method, before)


# -- plans ---------------------------------------------------------------------------------------------


def _plan(key: str, part: PEFTStrategy, backbone: Backbone, seed: int) -> Plan:
    twin = skeleton(backbone)
    before = dict(twin.model.named_modules())
    own = {id(parameter): name for name, parameter in twin.model.named_parameters()}
    head = {name for name, _ in twin.head_parameters()}
    with errors_at(key, part):
        part.inject(twin, seed=seed)
    after = dict(twin.model.named_modules())
    added = {name for name in after if name not in before and _parent(name) in before}
    trained = {name: p for name, p in twin.model.named_parameters() if p.requires_grad and name not in head}
    names = {own.get(id(p)) or stored_name(name) for name, p in trained.items()}
    return Plan(
        replaced={name for name, module in before.items() if name in after and after[name] is not module},
        added={name for name in added if not name.endswith("parametrizations")},
        own=names & set(own.values()),
        elements=sum(p.numel() for p in trained.values()),
    )


def skeleton(backbone: Backbone) -> Backbone:
    """A copy of ``backbone`` on device ``meta``: all modules, no values; quantised weights as float ones."""
    memo: dict[int, Any] = {id(backbone.tokenizer): backbone.tokenizer}
    for parameter in backbone.parameters():
        memo[id(parameter)] = nn.Parameter(_shape_only(parameter), requires_grad=False)
    for buffer in backbone.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(backbone, memo)


def _shape_only(parameter: nn.Parameter) -> Tensor:
    state = getattr(parameter, "quant_state", None)
    dtype = parameter.dtype if parameter.is_floating_point() else torch.float32
    return torch.empty(parameter.shape if state is None else state.shape, dtype=dtype, device="meta")


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _refuse_conflict(first: tuple[str, PEFTStrategy], second: tuple[str, PEFTStrategy], a: Plan, b: Plan) -> None:
    """Raise if the method of plan ``a`` gets in the way of that of ``b``."""
    both = f"{first[0]} ({first[1].name}) and {second[0]} ({second[1].name})"
    keys = [key for key in map(_targets_key, (first, second)) if key]
    if clash := a.replaced & b.replaced:
        advice = "Give them different targets" if len(keys) == 2 else _take_out(clash, keys)
        raise PeftlabError(f"{both} both change {_names(clash)}. {advice}.")
    if clash := a.own & b.own:
        raise PeftlabError(f"{both} both train {_names(clash)}. Let one of them do it.")
    if clash := a.added & b.added:
        raise PeftlabError(
            f"{both} both add {_names(clash)} to the model, which has one place for it. Keep one of them."
        )
    # A bias may train beside an adapter; a weight that an adapter measures, or is merged into, may not.
    weights = {name for name in a.own if not name.endswith("bias")}
    if clash := {name for name in weights if _parent(name) in b.replaced}:
        own = _targets_key(second)
        all_of_it = {_parent(name) for name in clash} >= b.replaced
        raise PeftlabError(
            f"{first[0]} ({first[1].name}) trains {_names(clash)}, which {second[0]} ({second[1].name}) adapts as a "
            f"frozen weight. {_take_out(clash, [own] if own and not all_of_it else [])}."
        )


def _targets_key(keyed: tuple[str, PEFTStrategy]) -> str | None:
    """The key that says where the method works; None if it has no such choice."""
    key, part = keyed
    if isinstance(getattr(part, "targets", None), list):
        return f"{key}.targets"
    return f"{key}.options.target_modules" if "target_modules" in getattr(part, "options", ()) else None


def _take_out(names: set[str], keys: list[str]) -> str:
    what = "it" if len(names) == 1 else "them"
    return f"Take {what} out of {keys[0]}, or keep one of the two methods" if keys else "Keep one of the two methods"


def _names(names: set[str]) -> str:
    rest = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"'{min(names)}'{rest}"
