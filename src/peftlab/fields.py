"""The vocabulary of config fields: ranges that are checked, and the marker of what is not hashed.

Every group of the config is a plain dataclass; these annotations make its fields say what they
allow, for example ``rank: PositiveInt = 8``. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import Field as DataclassField
from dataclasses import field
from typing import Annotated, Any

from pydantic import BeforeValidator, Field


def bookkeeping(default: Any) -> Any:
    """A dataclass field that cannot change a run's numbers, and so is left out of the run's identity."""
    return field(default=default, metadata={"bookkeeping": True})


def own_files() -> Any:
    """A dataclass field that may name local files, whose content is part of the identity; their path is not."""
    return field(default=None, metadata={"bookkeeping": True, "files": True})


def run_folder() -> Any:
    """A dataclass field that may name the folder of an earlier run, whose content is part of the identity."""
    return field(default=None, metadata={"bookkeeping": True, "run_folder": True})


def added(default: Any) -> Any:
    """A dataclass field that came later: at its default, a run is what it was before, and so is its identity."""
    return field(default=default, metadata={"added": True})


def is_bookkeeping(of: DataclassField[Any]) -> bool:
    """Whether the value itself is no part of the identity."""
    return bool(of.metadata.get("bookkeeping"))


def names_files(of: DataclassField[Any]) -> bool:
    """Whether it names what enters the identity by its content: files, or an earlier run's folder."""
    return bool(of.metadata.get("files") or of.metadata.get("run_folder"))


def enters_identity(of: DataclassField[Any], value: Any) -> bool:
    """Whether a field with this value is part of what a run is."""
    return not (of.metadata.get("bookkeeping") or (of.metadata.get("added") and value == of.default))


def _reject_bool(value: Any) -> Any:
    # bool is an int to Python; `peft.rank=true` is a mistake, not a rank of 1.
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true/false")
    return value


NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._+=,-]*$"
"""What names a folder."""

_number = BeforeValidator(_reject_bool)

PositiveInt = Annotated[int, Field(ge=1), _number]
NonNegativeInt = Annotated[int, Field(ge=0), _number]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False), _number]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False), _number]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False), _number]
Probability = Annotated[float, Field(ge=0, lt=1), _number]
"""A dropout probability: 0 <= p < 1."""
Fraction = Annotated[float, Field(gt=0, lt=1), _number]
"""A share of something that must leave something on both sides: 0 < f < 1."""
