"""A decoder with the head that it was pre-trained with, which says a next token after each token.

    z_t = W h_t        h_t (d) of token t and those before it, W (V, d), often the token embedding itself (tied)

The head is a part of the pre-trained model: it is frozen, quantised and fingerprinted as the rest is, methods may adapt
it (``peft.targets=[lm_head]``), ``peft=full`` trains it, and only with ``backbone.train_head=true`` it trains beside an
adapter and is saved with it.

Of all T · V logits of a row training needs those in front of a target alone. Which these are can be said (``at``): the
hidden states are then picked in front of the head, whatever the model does to its logits afterwards (Gemma 2 caps
them), and neither logits nor their gradients are made of any other place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from peftlab.backbones.floats import at_least_single
from peftlab.backbones.prompt_entrance import PromptEntrance
from peftlab.backbones.tokenizers import ByteTokenizer, HFTokenizer
from peftlab.backbones.transformer_backbone import TransformerBackbone
from peftlab.errors import BackboneError
from peftlab.language.generation import generate


class LanguageModelBackbone(TransformerBackbone):
    """A causal language model of ``transformers``."""

    says_next_tokens = True

    def __init__(
        self, model: nn.Module, tokenizer: ByteTokenizer | HFTokenizer, head: list[str], provenance: dict[str, Any]
    ) -> None:
        """``head``: the head's modules if it trains beside the adapter; none if it is as frozen as the rest."""
        super().__init__(model, tokenizer, head, provenance)
        self.provenance["head"] = "the model's own"

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        task_ids: Tensor | None = None,
        *,
        at: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """What follows each token of the texts; a soft prompt's own places are cut away.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T) int64, 1 on tokens and 0 on padding, which is on the right.
            task_ids: (B,) int64, where a soft prompt has vectors for each task.
            at: (B, T) bool, the places whose logits are wanted; None: all.
            position_ids: (B, T) int64, of several texts in a row, each counted from 0: none of them sees another, and
                the mask is not read.

        Returns:
            logits (B, T, V), or with ``at`` those of its N places, (N, V), in the order of rows and places; float32.
        """
        if self._prompt is not None:
            if position_ids is not None:
                raise BackboneError("a soft prompt cannot stand in a row of several texts. Set data.packing=false.")
            input_ids, attention_mask, _ = self._prompt.insert(
                input_ids, attention_mask, task_ids if self.task_prompts > 1 else None
            )
            if at is not None:
                at = torch.cat([at.new_zeros(len(at), self._prompt.length), at], dim=1)
        with self._picked(at):
            logits: Tensor = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask if position_ids is None and self._padded else None,
                position_ids=position_ids,
                use_cache=False,
            ).logits
        if at is not None:
            return at_least_single(logits[0])
        # Behind a prompt, wherever it stands, what follows a token is said n places later.
        return at_least_single(logits if self._prompt is None else logits[:, self._prompt.length :])

    @contextmanager
    def called_by_itself(self) -> Iterator[nn.Module]:
        """Inside, the model reads a soft prompt by its own forward too, as it is called while it generates."""
        if self._prompt is None:
            yield self.model
            return
        entrance = PromptEntrance(self.model, self._prompt, self._limit)
        try:
            yield self.model
        finally:
            entrance.remove()

    def written(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        batch_size: int = 16,
        use_cache: bool = True,
    ) -> list[list[int]]:
        """What the model writes behind each prompt, greedily; see :func:`peftlab.language.generation.generate`."""
        how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "stop_ids": stop_ids, "batch_size": batch_size}
        device = next(self.model.parameters()).device
        with self.called_by_itself() as model:
            return generate(model, prompts, pad_id=self.tokenizer.pad_id, use_cache=use_cache, device=device, **how)

    @contextmanager
    def _picked(self, at: Tensor | None) -> Iterator[None]:
        """Inside, the head sees the hidden states (1, N, d) of the places ``at`` (B, T) alone."""
        if at is None:
            yield
            return
        layer: nn.Module = self.model.get_output_embeddings()  # type: ignore[operator]
        handle = layer.register_forward_pre_hook(lambda _, inputs: (inputs[0][at].unsqueeze(0), *inputs[1:]))
        try:
            yield
        finally:
            handle.remove()

    def _reads_first_token(self) -> bool:
        return False


def output_layer(model: Any, key: str) -> str:
    """The name of the layer of ``model`` that says a next token.

    Raises:
        BackboneError: if there is none.
    """
    layer = model.get_output_embeddings()
    if layer is None:
        raise BackboneError(f"{key}: this {model.config.model_type} has no layer that says a next token.")
    return str(next(name for name, module in model.named_modules() if module is layer))


def is_tied(model: Any) -> bool:
    """Whether head and token embedding are one matrix."""
    return bool(model.get_output_embeddings().weight is model.get_input_embeddings().weight)


def require_head_may_train(model: Any, key: str) -> None:
    """Refuse to train the head of ``model`` beside an adapter where it is the token embedding too.

    Raises:
        BackboneError: saying what trains them.
    """
    if is_tied(model):
        raise BackboneError(
            f"backbone.train_head=true: the head of {key} is its token embedding (tied), which would change with it. "
            "Leave backbone.train_head=null; peft=full trains both, and a method may adapt the head alone "
            "(peft.targets=[query,value,lm_head])."
        )
