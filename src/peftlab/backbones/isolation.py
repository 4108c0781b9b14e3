"""Whether texts that stand in one row see each other: where rows are packed they must not.

Models of ``transformers`` keep them apart by positions that begin anew, but only while no mask and no cache is given: a
mask of ones, or the cache that is there by default, lets later texts read earlier ones, unsaid.
Others (state-space models, or those without positions) never do. So each run with packed rows asks its own model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from peftlab.backbones.base import Backbone
from peftlab.errors import BackboneError, first_line

_TEXTS = ("a film, and what a film: fine", "dull and long", "so it is")


@torch.no_grad()
def require_isolation(backbone: Backbone) -> None:
    """Read texts alone, and in one row with others in front of them, by all that stands in ``backbone``.

    Allowed are 1e-5 of the largest logit in float32, and a few units of narrower types.

    Raises:
        BackboneError: if a text is answered otherwise, or the model takes no positions.
    """
    parameter = next(backbone.parameters())
    if parameter.device.type == "meta" or backbone.provenance.get("quantize") == "int8":  # repacked at a first call
        return
    training = backbone.training
    backbone.eval()
    try:
        rows = backbone.tokenizer.encode(_TEXTS, max_length=8)
        alone = torch.cat([_last_logits(backbone, [row]) for row in rows])
        together = _last_logits(backbone, rows)
    except BackboneError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise BackboneError(
            f"data.packing=true: this {backbone.architecture} cannot read several texts in a row "
            f"({type(error).__name__}: {first_line(error)}). Set data.packing=false."
        ) from error
    finally:
        backbone.train(training)
    found = float((alone - together).abs().max() / alone.abs().max().clamp_min(1e-6))
    kinds = {p.dtype for p in backbone.parameters() if p.is_floating_point()}
    widest = max(torch.finfo(kind).eps for kind in kinds)
    if found > max(1e-5, 16 * widest):
        raise BackboneError(
            f"data.packing=true: this {backbone.architecture} reads texts that stand in front of another in its row "
            f"(logits differ by {found:.1e} of the largest). Set data.packing=false."
        )


def _last_logits(backbone: Backbone, rows: list[list[int]]) -> Tensor:
    """(texts, V), behind the last token of each of ``rows``, which stand in one row."""
    device = next(backbone.parameters()).device
    ids = torch.tensor([[token for row in rows for token in row]], device=device)
    positions = torch.tensor([[place for row in rows for place in range(len(row))]], device=device)
    at = torch.tensor([[place == len(row) - 1 for row in rows for place in range(len(row))]], device=device)
    found: Tensor = backbone(ids, torch.ones_like(ids), at=at, position_ids=positions)
    return found.float()
