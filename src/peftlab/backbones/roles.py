"""Find the modules that a list of targets (roles, names, regexes) means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from peftlab.backbones.base import Backbone, Target
from peftlab.backbones.role_table import ALL_ROLES, ROLES, Refusal, RolePattern, output_features
from peftlab.errors import BackboneError, listed, nearest

_Rows = tuple[int, int] | None
"""A slice as something that hashes: its bounds, or None for the whole output."""


@dataclass(frozen=True)
class _Found:
    target: Target
    entry: str
    """What the user wrote that led here."""


def find_targets(backbone: Backbone, targets: Sequence[str]) -> list[Target]:
    """The places that ``targets`` mean, in the order of the model's modules; the head is left out.

    An entry is a role (``query``), or the end of qualified module names (``q_proj``,
    ``layer.0.attention.self.query``), or a regex that matches them from start to end
    (``.*\\.layer\\.[0-5]\\..*query``). Roles come first when a word is both.

    Raises:
        BackboneError: for an entry that matches no linear layer or embedding, a broken regex, a role
            that cannot be had alone, or entries that mean a module both whole and in slices.
    """
    if not targets:
        raise BackboneError(f"peft.targets is empty. {_what_there_is(backbone)}")
    modules = adaptable_modules(backbone)
    found: dict[str, dict[_Rows, _Found]] = {}
    for number, entry in enumerate(targets):
        if not entry:
            raise BackboneError(
                f"peft.targets[{number}] is an empty text, which names nothing. {_what_there_is(backbone)}"
            )
        for target in _matches(backbone, modules, entry):
            places = found.setdefault(target.name, {})
            rows = _rows(target)
            known = places.get(rows)
            if known is None or known.target.role is None:
                places[rows] = _Found(target, entry)
    for name, places in found.items():
        _check_overlap(name, places)
    ordered = (found[name] for name in modules if name in found)
    return [places[rows].target for places in ordered for rows in sorted(places, key=lambda rows: rows or (0, 0))]


def adaptable_modules(backbone: Backbone) -> dict[str, nn.Module]:
    """Linear layers (quantised and GPT-2's Conv1D too) and embeddings outside the head, in model order."""
    head = backbone.head_modules()
    return {
        name: module
        for name, module in backbone.model.named_modules()
        if _is_adaptable(module) and not any(name == top or name.startswith(f"{top}.") for top in head)
    }


def output_layer(model: nn.Module) -> str | None:
    """The name of the layer that says a next token, which HF peft's ``all-linear`` leaves out; None: there is none."""
    found = getattr(model, "get_output_embeddings", lambda: None)()
    return next((name for name, module in model.named_modules() if found is not None and module is found), None)


def _is_adaptable(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Embedding) or any(cls.__name__ == "Conv1D" for cls in type(module).__mro__)


def _matches(backbone: Backbone, modules: dict[str, nn.Module], entry: str) -> list[Target]:
    place = ROLES.get(backbone.architecture, {}).get(entry)
    if isinstance(place, Refusal):
        raise BackboneError(f"peft.targets: '{entry}' of {backbone.architecture}: {place.reason}")
    found = _by_role(backbone, modules, entry, place) if place else _by_name(modules, entry)
    if not found:
        raise BackboneError(_nothing_matches(backbone, modules, entry))
    return found


def _by_role(backbone: Backbone, modules: dict[str, nn.Module], role: str, place: RolePattern) -> list[Target]:
    pattern = re.compile(rf"(?:.*\.)?(?:{place.pattern})")
    config = getattr(backbone.model, "config", None)
    named = [name for name in modules if pattern.fullmatch(name)]
    tables: dict[int, list[str]] = {}  # names of each weight
    for name in named:
        tables.setdefault(id(modules[name].weight), []).append(name)
    return [
        Target(
            name,
            modules[name],
            role,
            place.rows(output_features(modules[name]), config) if place.rows else None,
            also=tuple(also),
        )
        for name, *also in tables.values()
    ]


def _by_name(modules: dict[str, nn.Module], entry: str) -> list[Target]:
    try:
        pattern = re.compile(entry)
    except re.error as error:
        raise BackboneError(
            f"peft.targets: '{entry}' is not a regular expression ({error}). Give a role, the end of a "
            f"module's "
            "name, or a regex for its whole name."
        ) from error
    return [
        Target(name, module, role=None)
        for name, module in modules.items()
        if name == entry or name.endswith(f".{entry}") or pattern.fullmatch(name)
    ]


def _nothing_matches(backbone: Backbone, modules: dict[str, nn.Module], entry: str) -> str:
    roles = ROLES.get(backbone.architecture, {})
    endings = sorted({_ending(name) for name in modules})
    if entry in roles:
        said = f"'{entry}' is a role that this {backbone.architecture} has no layer for."
    elif entry in ALL_ROLES:
        said = f"'{entry}' is a role that {backbone.architecture} does not have."
    else:
        others = [
            name for name, module in backbone.model.named_modules() if name.endswith(f".{entry}") or name == entry
        ]
        said = f"'{entry}' matches no linear layer or embedding outside the head."
        if others:
            kind = type(backbone.model.get_submodule(others[0])).__name__
            said = f"'{entry}' matches '{others[0]}', a {kind}, which cannot be a target (or is the head)."
    near = "" if entry in roles else nearest(entry, [*roles, *endings])
    return f"peft.targets: {said}{near} {_what_there_is(backbone)}"


def _what_there_is(backbone: Backbone) -> str:
    roles = [role for role, place in ROLES.get(backbone.architecture, {}).items() if isinstance(place, RolePattern)]
    if backbone.architecture in ROLES:
        there = f"Roles of {backbone.architecture}: {listed(roles)}."
    else:
        there = f"{backbone.architecture} has no role table, so name its modules (roles are known for {listed(ROLES)})."
    endings = {_ending(name) for name in adaptable_modules(backbone)}
    return f"{there} Module names end in: {listed(endings)}."


def _ending(name: str) -> str:
    """The part of a qualified name behind the last layer number: ``attention.self.query``."""
    return re.sub(r".*\.\d+\.", "", name)


def _check_overlap(name: str, places: dict[_Rows, _Found]) -> None:
    whole = places.get(None)
    if whole is None or len(places) == 1:
        return
    part = next(one for rows, one in places.items() if rows is not None)
    raise BackboneError(
        f"peft.targets: '{whole.entry}' means all of '{name}' and '{part.entry}' means a part of it. Keep one of them."
    )


def _rows(target: Target) -> _Rows:
    rows = target.output_slice
    return None if rows is None else (rows.start, rows.stop)
