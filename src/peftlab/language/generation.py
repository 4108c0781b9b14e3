"""What a causal model writes behind a prompt, greedily, in batches: ``transformers.generate``, and what it gets wrong.

Prompts are padded on the left, and the mask comes from their lengths, never from ids: the padding id may be the end
id, and stand in a prompt. The model's own ``generation_config`` (penalties, samplers, lengths, suppressed tokens) is
put aside, since greedy means the likeliest token and nothing else. What stands behind a row's first stop id is not the
row's. A row does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from peftlab.errors import PeftlabError


def require_generates(model: nn.Module) -> None:
    """Raise PeftlabError unless ``model`` is a causal language model of ``transformers``."""
    if not (callable(getattr(model, "can_generate", None)) and model.can_generate()):  # type: ignore[operator]
        raise PeftlabError(
            f"{type(model).__name__} cannot generate text: it has no head that says a next token. Train a language "
            "model (data=instructions) with a decoder (backbone=smollm2_135m, …)."
        )


@torch.inference_mode()
def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    pad_id: int,
    batch_size: int = 16,
    use_cache: bool = True,
    device: torch.device | str = "cpu",
) -> list[list[int]]:
    """The new ids of each prompt, in order, up to and with its first stop id.

    Args:
        model: a causal language model of ``transformers``, perhaps with adapters, in eval mode.
        prompts: ids of each, not empty.
        max_new_tokens: of a prompt, at most.
        stop_ids: each of them ends a row.
        pad_id: any id that the model embeds.
        batch_size: prompts that are computed together, those of like length.
        use_cache: keep keys and values of what was read; without, all is read anew for each token.
        device: where the model is.

    Raises:
        PeftlabError: if the model cannot generate.
    """
    require_generates(model)
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    found: dict[int, list[int]] = {}
    how = _greedy(max_new_tokens, stop_ids, pad_id, use_cache)
    with _nothing_of_its_own(model):
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            rows = _batch(model, [prompts[row] for row in numbers], how, pad_id, device)
            found |= zip(numbers, rows, strict=True)
    return [_stopped(found[row], frozenset(stop_ids)) for row in range(len(prompts))]


def _greedy(max_new_tokens: int, stop_ids: Sequence[int], pad_id: int, use_cache: bool) -> Any:
    from transformers import GenerationConfig

    config: Any = GenerationConfig  # untyped
    return config(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=pad_id,
        use_cache=use_cache,
    )


@contextmanager
def _nothing_of_its_own(model: Any) -> Iterator[None]:
    """Put the model's own ``generation_config`` aside: what ours leaves open would be taken from there."""
    from transformers import GenerationConfig

    blank: Any = GenerationConfig  # untyped
    own, model.generation_config = model.generation_config, blank()
    try:
        yield
    finally:
        model.generation_config = own


def _batch(
    model: Any, prompts: Sequence[Sequence[int]], how: Any, pad_id: int, device: torch.device | str
) -> list[list[int]]:
    assert all(prompts), "whoever makes a prompt checks that it has a token"
    width = max(map(len, prompts))
    ids = torch.tensor([[*[pad_id] * (width - len(ids)), *ids] for ids in prompts], device=device)  # (B, T)
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=how)
    new: list[list[int]] = out[:, width:].tolist()
    return new


def _stopped(ids: list[int], stop_ids: frozenset[int]) -> list[int]:
    """``ids`` up to and with the first of ``stop_ids``."""
    first = next((place for place, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[: first + 1]
