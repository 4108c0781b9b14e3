"""The backbone that :class:`~peftlab.backbones.transformer.TransformerConfig` asks for, with a new head."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn

from peftlab.backbones.base import Backbone
from peftlab.backbones.floats import at_least_single
from peftlab.backbones.padding import padded_left
from peftlab.backbones.segments import Segments
from peftlab.backbones.settings import position_limit
from peftlab.backbones.soft_prompt import Holder, PromptPlacement, word_table, wrap_token_embedding
from peftlab.backbones.tokenizers import ByteTokenizer, HFTokenizer
from peftlab.errors import BackboneError


class TransformerBackbone(Backbone):
    """A ``transformers`` sequence classifier."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: ByteTokenizer | HFTokenizer,
        head: list[str],
        provenance: dict[str, Any],
        *,
        pooling: Literal["model", "mean"] = "model",
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.provenance = provenance
        self.architecture = provenance["architecture"]
        self._head = head
        self._limit = position_limit(model)
        self._prompt: PromptPlacement | None = None
        self._embeddings: list[Holder] = []  # where the token embedding stood before a prompt was added
        self._mean_head = self._linear_head() if pooling == "mean" else None
        self.pools_mean = self._mean_head is not None
        self._given_mean: Tensor | None = None
        self._segments = _segments(model, tokenizer)
        self._padded = True
        # XLNet's summary is what stands last, text or padding; its tokenizer pads on the left.
        self._reads_last_place = getattr(model.config, "summary_type", None) == "last"
        if self._reads_last_place and isinstance(tokenizer, HFTokenizer):
            tokenizer.pad_on_the_left()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, task_ids: Tensor | None = None) -> Tensor:
        """Logits (B, C), float32, of ids (B, T), mask (B, T) and, if prompts differ by task, ``task_ids`` (B,)."""
        if self._given_mean is not None:
            return at_least_single(self._of_mean(self._given_mean))
        inputs, text_mask = self._inputs(input_ids, attention_mask, task_ids)
        if self.pools_mean:
            return at_least_single(self._of_mean(self._mean(inputs, text_mask)))
        logits: Tensor = self.model(**inputs).logits
        return at_least_single(logits)

    def _inputs(
        self, input_ids: Tensor, attention_mask: Tensor, task_ids: Tensor | None
    ) -> tuple[dict[str, Tensor | None], Tensor]:
        """What the network is called with, a prompt included, and the mask of the text alone."""
        text_mask = attention_mask
        if self._prompt is not None:
            input_ids, attention_mask, text_mask = self._prompt.insert(
                input_ids, attention_mask, task_ids if self.task_prompts > 1 else None
            )
        if self._reads_last_place:
            input_ids, attention_mask = padded_left(input_ids, attention_mask)
            text_mask = padded_left(text_mask, attention_mask)[0] if self._prompt is not None else attention_mask
        inputs: dict[str, Tensor | None] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask if self._padded else None,
        }
        if self._segments is not None:
            inputs["token_type_ids"] = self._segments.of(input_ids, attention_mask)
        return inputs, text_mask

    def network(self) -> nn.Module:
        """See :meth:`Backbone.network`."""
        if self._mean_head is None:
            return self.model
        trunk: nn.Module = self.model.base_model  # type: ignore[assignment]
        return trunk

    @contextmanager
    def without_a_look(self, *, full: bool) -> Iterator[None]:
        """See :meth:`Backbone.without_a_look`.

        transformers' models are given no mask if there is no padding, which for them is one of ones; without one they
        would look for several texts in a row, by positions, but here a row is a text. What is padded they do not look
        at where they are traced.
        """
        from transformers import masking_utils

        answers = {"is_tracing": not full, "find_packed_sequence_indices": None}
        looks = {name: getattr(masking_utils, name) for name in answers if hasattr(masking_utils, name)}
        self._padded = not full
        for name in looks:
            setattr(masking_utils, name, lambda *_, answer=answers[name]: answer)
        try:
            yield
        finally:
            self._padded = True
            for name, look in looks.items():
                setattr(masking_utils, name, look)

    def text_mean(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """See :meth:`Backbone.text_mean`."""
        return self._mean(*self._inputs(input_ids, attention_mask, None))

    @contextmanager
    def given_mean(self, mean: Tensor) -> Iterator[None]:
        """See :meth:`Backbone.given_mean`."""
        self._given_mean = mean
        try:
            yield
        finally:
            self._given_mean = None

    def _mean(self, inputs: dict[str, Tensor | None], text_mask: Tensor) -> Tensor:
        """The mean (B, d) over the text's tokens, which leaves out padding and a soft prompt."""
        hidden = self.network()(**inputs).last_hidden_state  # (B, T, d)
        weight = text_mask.unsqueeze(-1).to(hidden.dtype)  # (B, T, 1)
        mean: Tensor = (hidden * weight).sum(dim=1) / weight.sum(dim=1)
        return mean

    def _of_mean(self, mean: Tensor) -> Tensor:
        """Logits of the mean (B, d)."""
        assert self._mean_head is not None
        dropout = getattr(self.model, "dropout", None)
        if isinstance(dropout, nn.Dropout):
            mean = dropout(mean)
        logits: Tensor = self.model.get_submodule(self._mean_head)(mean)
        return logits

    def token_embedding(self) -> nn.Module:
        """See :meth:`Backbone.token_embedding`."""
        return word_table(self.model)

    def add_soft_prompt(
        self,
        vectors: nn.Module,
        *,
        length: int,
        position: Literal["auto", "before", "after_first"],
        task: int = 0,
        tasks: int = 1,
    ) -> None:
        """See :meth:`Backbone.add_soft_prompt`; ``auto`` keeps a first token that the head reads in its place."""
        if self._prompt is not None:
            raise BackboneError("this backbone has a soft prompt already; build it anew for another one.")
        if position == "auto":
            position = "after_first" if self._reads_first_token() else "before"
        first_id, self._embeddings = wrap_token_embedding(self.model, vectors)
        self._prompt = PromptPlacement(first_id, length, position, task)
        self.prompt_position = position
        self.task_prompts = tasks

    @contextmanager
    def without_soft_prompt(self) -> Iterator[None]:
        """See :meth:`Backbone.without_soft_prompt`."""
        prompt, self._prompt = self._prompt, None
        try:
            yield
        finally:
            self._prompt = prompt

    def remove_soft_prompt(self) -> None:
        """See :meth:`Backbone.remove_soft_prompt`."""
        for parent, name, embedding in self._embeddings:
            setattr(parent, name, embedding)
        self._prompt, self._embeddings, self.task_prompts = None, [], 1
        self.prompt_position = None

    def _reads_first_token(self) -> bool:
        """Whether the model classifies from its first token, as encoders do."""
        config: Any = self.model.config
        return self._head != ["score"] and not config.is_encoder_decoder  # "score" reads a decoder's last token

    def _linear_head(self) -> str:
        """The head's one linear layer, which can take a mean instead of what the model gives it."""
        if len(self._head) != 1 or not isinstance(self.model.get_submodule(self._head[0]), nn.Linear):
            raise BackboneError(
                f"backbone.pooling=mean needs a model whose head is one linear layer; {self.architecture} has "
                f"{', '.join(self._head)}. Set backbone.pooling=model."
            )
        return self._head[0]

    def head_modules(self) -> list[str]:
        """See :mod:`peftlab.backbones.networks` for the rule."""
        return list(self._head)

    def check_length(self, max_length: int, *, extra_tokens: int = 0) -> None:
        """Refuse more tokens, a soft prompt's included, than the model has positions for."""
        if self._limit is None or max_length + extra_tokens <= self._limit:
            self.longest_text = max_length
            return
        if extra_tokens == 0:
            raise BackboneError(
                f"data.max_length={max_length} is more than this {self.architecture} has positions for: set "
                f"data.max_length to at most {self._limit}."
            )
        room = self._limit - extra_tokens
        way_out = f"Set data.max_length to at most {room}, or lower peft.length." if room > 0 else "Lower peft.length."
        raise BackboneError(
            f"data.max_length={max_length} and the {extra_tokens} prompt tokens of peft.length are "
            f"{max_length + extra_tokens} together, more than the {self._limit} positions of this "
            f"{self.architecture}. {way_out}"
        )


def _segments(model: nn.Module, tokenizer: ByteTokenizer | HFTokenizer) -> Segments | None:
    """For models that tell the texts of a pair apart; None for the others."""
    if "token_type_ids" not in inspect.signature(model.forward).parameters:
        return None
    found = tokenizer.segments()
    if found is None or model.config.model_type == "xlnet":  # type: ignore[union-attr]  # needs no table of them
        return found
    return found if found.count <= getattr(model.config, "type_vocab_size", 0) else None
