"""Whether a text's answer depends on what it is padded to: it must not, whoever is beside it in a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from peftlab.backbones.base import Backbone
from peftlab.errors import BackboneError, PeftlabError, first_line

_TEXTS = ("a film", "a film, and what a film: fine, moving and long")
_LENGTH = 24


def padded_left(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, T) that are padded on the right, with their padding on the left."""
    width = attention_mask.shape[1]
    shift = width - attention_mask.sum(dim=1, keepdim=True)  # (B, 1)
    source = (torch.arange(width, device=input_ids.device) - shift) % width  # (B, T)
    return input_ids.gather(1, source), attention_mask.gather(1, source)


@torch.no_grad()
def require_padding_changes_nothing(backbone: Backbone) -> None:
    """Read two texts of different lengths alone and together, before anything is put into ``backbone``.

    Allowed are 1e-5 of the largest logit in float32. In less, each block rounds what it adds to the same stream, and
    the errors walk at random: four units of the type times the root of the number of blocks; and thrice what batches
    of other shapes and orders differ by where nothing is padded. A quantised model is as it was in floats, and its
    layers must not be called before its fingerprint is taken (bitsandbytes casts biases in place at their first call);
    a model on ``meta`` computes nothing.

    Raises:
        BackboneError: naming the architecture, and by how much the answers differ.
    """
    parameter = next(backbone.parameters())
    if parameter.device.type == "meta" or backbone.provenance.get("quantize"):
        return
    length = min(_LENGTH, backbone.longest_text or _LENGTH)
    short, long = backbone.tokenizer.encode(_TEXTS, length)
    if len(short) == len(long):  # cut to the same few tokens
        return
    training = backbone.training
    backbone.eval()
    try:
        together = _logits(backbone, [short, long], parameter.device)
        alone = torch.cat([_logits(backbone, [ids], parameter.device) for ids in (short, long)])
        allowed, row = 1e-5, None
        if (kind := _type_of(backbone)) != torch.float32:
            row = 0  # the one that is padded
            rounding = 4 * torch.finfo(kind).eps * _blocks(backbone) ** 0.5
            allowed = rounding + 3 * _spread(backbone, short, long, together, alone)
    except (PeftlabError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each architecture fails in its own way
        if isinstance(error, RuntimeError) and _type_of(backbone) != torch.float32:
            return  # a kernel that the CPU has not in the narrow type: training on an accelerator may have it
        raise BackboneError(
            f"this {backbone.architecture} cannot read a text ({type(error).__name__}: {first_line(error)}). Its "
            "settings do not fit each other, or transformers needs more inputs for it than token ids."
        ) from error
    finally:
        backbone.train(training)
    if not torch.isfinite(together).all():
        raise BackboneError(
            f"this {backbone.architecture} answers {_TEXTS[0]!r} with {together[0].tolist()}: its weights overflow, or "
            "are damaged."
        )
    if (found := _difference(together, alone, row)) > allowed:
        raise BackboneError(
            f"this {backbone.architecture} answers {_TEXTS[0]!r} otherwise beside a longer text than alone (logits "
            f"differ by {found:.1e} of the largest, allowed are {allowed:.0e}): it reads its padding, so that results "
            "would depend on the batches. It cannot be used here."
        )
    if backbone.says_next_tokens:
        _require_nothing_from_behind(backbone, long, parameter.device)


def _require_nothing_from_behind(backbone: Backbone, ids: list[int], device: torch.device) -> None:
    """Refuse a language model whose answer to the beginning of a text depends on what comes behind it."""
    training = backbone.training
    backbone.eval()
    try:
        half, mask = len(ids) // 2, torch.ones(1, len(ids), dtype=torch.int64, device=device)
        whole = torch.tensor([ids], device=device)
        other = torch.cat([whole[:, :half], whole[:, half:].flip(1)], dim=1)
        at = (torch.arange(len(ids), device=device) < half)[None]
        kind = _type_of(backbone)
        with torch.autocast(device.type, dtype=kind, enabled=kind != torch.float32):
            one, two = (backbone(given, mask, at=at).float() for given in (whole, other))
    finally:
        backbone.train(training)
    if (found := _difference(one, two)) > 1e-5 + 4 * (kind != torch.float32) * torch.finfo(kind).eps:
        raise BackboneError(
            f"this {backbone.architecture} sees what comes behind a token (logits differ by {found:.1e} of the "
            "largest): it is no causal language model. Choose a decoder: backbone=smollm2_135m, gpt2 or llama."
        )


def _logits(backbone: Backbone, rows: list[list[int]], device: torch.device) -> Tensor:
    width = max(map(len, rows))
    ids = [row + [backbone.tokenizer.pad_id] * (width - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    what: dict[str, Tensor] = {}
    if backbone.says_next_tokens:  # of each text what follows its last token
        what["at"] = torch.tensor([[place == len(row) - 1 for place in range(width)] for row in rows], device=device)
    kind = _type_of(backbone)  # some layers of narrow models need what a run's precision gives them
    with torch.autocast(device.type, dtype=kind, enabled=kind != torch.float32):
        found: Tensor = backbone(torch.tensor(ids, device=device), torch.tensor(mask, device=device), **what)
    return found.float().cpu()


def _spread(backbone: Backbone, short: list[int], long: list[int], together: Tensor, alone: Tensor) -> float:
    """What rounding differs by: the longer text beside another, the shorter beside itself, a batch in another order.

    A GPU has other kernels for other shapes, whose sums go in another order.
    """
    device = next(backbone.parameters()).device
    turned = _logits(backbone, [long, short], device).flip(0)
    twice = torch.cat([_logits(backbone, [short, short], device)[:1], together[1:]])
    return max(_difference(together, turned), _difference(alone, twice))


def _difference(one: Tensor, other: Tensor, row: int | None = None) -> float:
    """The largest, of one ``row`` or of all, as a share of the largest logit."""
    apart = (one - other).abs()
    return float((apart if row is None else apart[row]).max() / one.abs().max().clamp_min(1e-6))


def _blocks(backbone: Backbone) -> int:
    """How many are behind each other, by the model's config."""
    return int(getattr(getattr(backbone.model, "config", None), "num_hidden_layers", None) or 1)


def _type_of(backbone: Backbone) -> torch.dtype:
    """The narrowest type among the weights."""
    types = {parameter.dtype for parameter in backbone.parameters() if parameter.is_floating_point()}
    return max(types, key=lambda kind: torch.finfo(kind).eps)
