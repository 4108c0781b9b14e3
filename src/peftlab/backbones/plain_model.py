"""Any ``nn.Module`` as a backbone, for those who attach an adapter to a model of their own.

The model is held, and stays what it is: it is called by its own ``forward``, and named by its own names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

from torch import Tensor, nn

from peftlab.backbones.base import Backbone, Tokenizer
from peftlab.backbones.prompt_entrance import PromptEntrance
from peftlab.backbones.settings import position_limit
from peftlab.backbones.soft_prompt import Holder, PromptPlacement, wrap_token_embedding
from peftlab.errors import BackboneError


class PlainModel(Backbone):
    """A model that peftlab has not built."""

    def __init__(self, model: nn.Module, *, tokenizer: Any = None, beside: Sequence[str] = ()) -> None:
        """Hold ``model``.

        Args:
            model: of any kind; of one of ``transformers`` the architecture is known by its config.
            tokenizer: of ``transformers``, or what is a :class:`~peftlab.backbones.base.Tokenizer`.
            beside: names of the modules that train beside an adapter, in the place of a head.
        """
        super().__init__()
        self.model = model
        config = getattr(model, "config", None)
        model_type = getattr(config, "model_type", None)
        self.architecture = model_type if isinstance(model_type, str) and model_type else type(model).__name__
        self.tokenizer = _tokenizer(model, tokenizer)
        self.provenance = {
            "source": "a model given from Python",
            "class": type(model).__qualname__,
            "architecture": self.architecture,
            "quantize": stored_in_bits(model),
        }
        self._beside = list(beside)
        self._entrance: PromptEntrance | None = None
        self._embeddings: list[Holder] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor, task_ids: Tensor | None = None) -> Tensor:
        """What the model says of ids and mask (B, T): its logits, or the last hidden states (B, T, d)."""
        out: Any = self.model(input_ids=input_ids, attention_mask=attention_mask)
        found: Tensor = out.logits if hasattr(out, "logits") else out.last_hidden_state
        return found

    def head_modules(self) -> list[str]:
        """The modules that train beside the adapter."""
        return list(self._beside)

    def token_embedding(self) -> nn.Module:
        """See :meth:`Backbone.token_embedding`."""
        if not hasattr(self.model, "base_model_prefix") or not hasattr(self.model, "get_input_embeddings"):
            raise BackboneError(
                f"a soft prompt cannot enter the forward of {self.architecture}, which is no model of transformers "
                "that reads token ids (input_ids). Attach it to such a model inside, attach(model.encoder, …), or "
                "choose a method that adapts layers, as LoRA does."
            )
        embedding = self.model.get_input_embeddings()  # type: ignore[operator]
        if not isinstance(getattr(embedding, "weight", None), Tensor) or self.model.main_input_name != "input_ids":
            raise BackboneError(
                f"a soft prompt cannot enter the forward of {self.architecture}, which reads no token ids (input_ids) "
                "but other inputs. Choose a method that adapts layers, as LoRA does."
            )
        return cast(nn.Module, embedding)

    def add_soft_prompt(
        self,
        vectors: nn.Module,
        *,
        length: int,
        position: Literal["auto", "before", "after_first"],
        task: int = 0,
        tasks: int = 1,
    ) -> None:
        """See :meth:`Backbone.add_soft_prompt`; all texts are read with the prompt of ``task``."""
        self.token_embedding()
        if position == "auto":
            position = "after_first" if self._reads_first_token() else "before"
        first_id, self._embeddings = wrap_token_embedding(self.model, vectors)
        self.prompt_position = position
        placement = PromptPlacement(first_id, length, position, task)
        self._entrance = PromptEntrance(self.model, placement, position_limit(self.model))

    def _reads_first_token(self) -> bool:
        """Whether the model is an encoder, whose first token stands for the text."""
        config: Any = self.model.config
        if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False):
            return False
        return not any(getattr(module, "is_causal", False) for module in self.model.modules())

    @contextmanager
    def without_soft_prompt(self) -> Iterator[None]:
        """See :meth:`Backbone.without_soft_prompt`."""
        assert self._entrance is not None
        self._entrance.active = False
        try:
            yield
        finally:
            self._entrance.active = True

    def remove_soft_prompt(self) -> None:
        """See :meth:`Backbone.remove_soft_prompt`."""
        for parent, name, embedding in self._embeddings:
            setattr(parent, name, embedding)
        if self._entrance is not None:
            self._entrance.remove()
        self._entrance, self._embeddings, self.prompt_position = None, [], None


class NoTokenizer:
    """In the place of a tokenizer where none was given: whoever needs one says so."""

    pad_id = 0
    fingerprint = ""

    def encode(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """Raise BackboneError."""
        raise _lacking()

    def decode(self, ids: Sequence[int]) -> str:
        """Raise BackboneError."""
        raise _lacking()


class AnyTokenizer:
    """In the place of a tokenizer where nothing that it says will be used: the adapter is about to be loaded."""

    pad_id = 0
    fingerprint = ""

    def encode(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """One token a text."""
        return [[0] for _ in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Some text."""
        return "token"


def _lacking() -> BackboneError:
    return BackboneError(
        "peft.init=vocabulary and peft.init=text start from words, for which the model's tokenizer is needed: give it, "
        "attach(model, …, tokenizer=tokenizer), or start with init='random'."
    )


def _tokenizer(model: nn.Module, given: Any) -> Tokenizer:
    if given is None:
        return NoTokenizer()
    if hasattr(given, "encode") and hasattr(given, "decode") and hasattr(given, "pad_id"):
        return cast(Tokenizer, given)
    if not hasattr(given, "num_special_tokens_to_add") or not hasattr(given, "convert_ids_to_tokens"):
        raise BackboneError(
            f"tokenizer= must be a tokenizer of transformers (AutoTokenizer.from_pretrained(…)), not "
            f"{type(given).__name__}."
        )
    from peftlab.backbones.tokenizers import HFTokenizer

    config: Any = getattr(model, "config", None)
    return HFTokenizer(given, int(getattr(config, "vocab_size", len(given))))


def stored_in_bits(model: nn.Module) -> str | None:
    """``nf4``, ``fp4`` or ``int8`` where a linear layer keeps its weight so; None for floats."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear) and isinstance(weight, Tensor) and not weight.is_floating_point():
            return str(getattr(weight, "quant_type", "int8"))
    return None
