"""What was changed on purpose since the goldens were made, and so is not compared with them any more."""

from __future__ import annotations

from collections.abc import Sequence

from peftlab.config import RunConfig

TAGS = {"dynamic_dora": "dynamic-dora-1"}
"""Method → the tag of :mod:`peftlab.records.identity_tags` since which it trains to other numbers."""
ROUNDED = {"dora": "dora-product-1"}
"""The same, where the numbers are equal up to rounding: they are compared with a tolerance on any machine."""

DEFAULTS: dict[str, tuple[str, ...]] = {
    "peft=dora": ("peft.dropout_mode=low_rank",),
    # LoRA, where no method is named; such a run was refused, as there are no such places
    "backbone=text_classifier": ("peft.targets=[query,value]",),
    "peft=dynamic_dora": ("peft.alpha=16", "peft.dropout=0", "peft.warmup_fraction=0.1", "peft.interval=10"),
}
"""Option of a group → what its YAML said then, where it says something else now."""


SHORT = {"trainer.precision=16": "16"}
"""Override → what its run had in its key, where the config now has it in full."""


def spelled_as_then(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """``config`` with the spelling that was in its key when the goldens were made."""
    for override in overrides:
        if override in SHORT:
            config.trainer.precision = SHORT[override]  # type: ignore[assignment]
    return config


def with_defaults_of_then(overrides: Sequence[str]) -> list[str]:
    """The overrides that say today what these said when the goldens were made."""
    said = {override.partition("=")[0] for override in overrides}

    def of_then(override: str) -> list[str]:
        if override.startswith("backbone=") and "peft" in said:
            return []
        return [one for one in DEFAULTS.get(override, ()) if one.partition("=")[0] not in said]

    return [one for override in overrides for one in (override, *of_then(override))]
