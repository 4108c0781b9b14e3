"""What the options in adapter_config.json may be, of the types that are read here. Imports no torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from peftlab.errors import PeftlabError

_TYPES = frozenset(
    {
        "LORA", "ADALORA", "IA3", "VERA", "LN_TUNING",
        "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING",
    }
)  # fmt: skip
"""The same option can mean another thing elsewhere: OFT's r is 0 where its block size is given."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and _is_positive(value)


def _is_probability(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


def _is_bias(value: Any) -> bool:
    return value in ("none", "all", "lora_only")


def _is_regex(value: Any) -> bool:
    try:
        re.compile(value)
    except (re.error, TypeError):
        return False
    return isinstance(value, str)


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_names(value: Any) -> bool:
    return _is_list_of_names(value) or _is_regex(value)


def _is_regexes(value: Any) -> bool:
    return all(map(_is_regex, value)) if isinstance(value, list) else _is_regex(value)


def _is_layers(value: Any) -> bool:
    layers = value if isinstance(value, list) else [value]
    return all(isinstance(layer, int) and not isinstance(layer, bool) for layer in layers)


def _is_pattern(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_regex, value))


def _is_pattern_of_numbers(value: Any) -> bool:
    return _is_pattern(value) and all(map(_is_positive, value.values()))


_Rule = tuple[Callable[[Any], bool], str]
_COUNT: _Rule = (_is_count, "a whole number from 1 on")
_PROBABILITY: _Rule = (_is_probability, "a number from 0 on and below 1")
_SWITCH: _Rule = (_is_switch, "true or false")
_NAMES: _Rule = (_is_names, "a list of names, or one regex")

_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(("r", "init_r", "target_r", "num_virtual_tokens", "num_tasks", "num_ranks"), _COUNT),
    "lora_alpha": (_is_positive, "a number above 0"),
    **dict.fromkeys(("lora_dropout", "vera_dropout"), _PROBABILITY),
    **dict.fromkeys(("use_dora", "use_rslora", "fan_in_fan_out"), _SWITCH),
    "bias": (_is_bias, "none, all or lora_only"),
    **dict.fromkeys(("target_modules", "exclude_modules", "feedforward_modules"), _NAMES),
    "modules_to_save": (_is_list_of_names, "a list of names"),
    "layers_to_transform": (_is_layers, "a whole number or a list of them"),
    "layers_pattern": (_is_regexes, "a regex or a list of them"),
    "rank_pattern": (_is_pattern, "an object whose keys are regexes"),
    "alpha_pattern": (_is_pattern_of_numbers, "an object from regexes to numbers above 0"),
}


def require_possible(config: Mapping[str, Any], file: Path) -> None:
    """Refuse values that HF peft itself cannot have written.

    Raises:
        PeftlabError: naming ``file`` and the first such option.
    """
    if str(config["peft_type"]).removeprefix("PeftType.") not in _TYPES:
        return
    for name, (holds, allowed) in _RULES.items():
        value = config.get(name)
        if value is not None and not holds(value):
            raise PeftlabError(
                f"peft.path: {file} says {name}={shortened(value)}, and that must be {allowed}. Correct it there, or "
                "save the adapter anew with HF peft."
            )


def shortened(value: Any) -> str:
    """The value as JSON, cut to what a message has room for."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:59]}…"
