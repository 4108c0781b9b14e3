"""Which tokens of a row are to be said, and how many: what loss, figures, accumulation and processes count by.

A token is a target where it is under loss and something stands in front of it: what it is said from. So the first token
of a row is none. Imports neither torch nor numpy, but where it computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

NONE = -100
"""Stands where a token is no target."""


class NextTokens(NamedTuple):
    """What a batch of token rows is compared to."""

    ids: Tensor
    """(B, T) int64: each target in its own place (not shifted), :data:`NONE` elsewhere."""
    texts: Tensor
    """(B,) int64: texts that each row begins; of a text in several windows the first has it."""


def targets_of(row: Mapping[str, Any]) -> npt.NDArray[np.int64]:
    """The targets of a row with ``input_ids`` and ``loss``, in their places, (T,); :data:`NONE` elsewhere.

    ``starts``, where it is there, are the places of further first tokens: of rows that are packed into one.
    """
    import numpy as np

    found: npt.NDArray[np.int64] = np.where(row["loss"], row["input_ids"], NONE).astype(np.int64)
    found[:1] = NONE
    found[list(row.get("starts", ()))] = NONE
    return found


def count(targets: npt.NDArray[np.int64]) -> int:
    """How many there are."""
    return int((targets != NONE).sum())


def next_tokens(rows: Sequence[Mapping[str, Any]]) -> NextTokens:
    """The targets of a batch, padded on the right to its longest row."""
    import numpy as np
    import torch

    of_rows = [targets_of(row) for row in rows]
    ids = np.full((len(rows), max(map(len, of_rows))), NONE, dtype=np.int64)
    for number, found in enumerate(of_rows):
        ids[number, : len(found)] = found
    return NextTokens(torch.from_numpy(ids), torch.tensor([row.get("texts", 1) for row in rows], dtype=torch.int64))


def in_front(ids: Tensor, width: int) -> Tensor:
    """The places, (B, ``width``) bool, of the tokens in front of a target: what follows them is asked for."""
    from torch.nn import functional as F

    return F.pad(ids[:, 1:] != NONE, (0, width - ids.shape[1] + 1))


def said(ids: Tensor) -> Tensor:
    """The targets (N,) of ``ids`` (B, T), in the order of rows and places, as :func:`in_front` asks for them."""
    shifted = ids[:, 1:]
    return shifted[shifted != NONE]


def sums_of_rows(logits: Tensor, ids: Tensor) -> Tensor:
    """Nats, targets and targets that were said rightly of each row, (B, 3) float64.

    Args:
        logits: (N, V), in front of the targets.
        ids: (B, T), of :class:`NextTokens`.
    """
    import torch
    from torch.nn import functional as F

    targets, asked = said(ids), in_front(ids, ids.shape[1])
    row = asked.nonzero()[:, 0]  # (N,)
    kind = torch.float64 if logits.device.type != "mps" else torch.float32
    nats = F.cross_entropy(logits, targets, reduction="none").to(kind)
    right = (logits.argmax(dim=-1) == targets).to(kind)
    each = torch.stack([nats, torch.ones_like(nats), right], dim=1)  # (N, 3)
    return torch.zeros(len(asked), 3, dtype=kind, device=logits.device).index_add_(0, row, each)
