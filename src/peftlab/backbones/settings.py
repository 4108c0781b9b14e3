"""What differs in name and place between the configs of ``transformers``: dropout and positions.

Models of text and images (Gemma 3) keep what concerns text in a config inside their config, which
``get_text_config()`` finds; of other models it is the config itself.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from peftlab.errors import BackboneError

_DROPOUT = (
    "hidden_dropout_prob",  # BERT and kin, DeBERTa
    "hidden_dropout",  # GPT-NeoX
    "dropout",  # DistilBERT
    "resid_pdrop",  # GPT-2, Phi-3
    "embd_pdrop",  # GPT-2, Phi-3
    "embedding_dropout",  # ModernBERT
    "mlp_dropout",  # ModernBERT
    "dropout_rate",  # T5, its attention included
)
_ATTENTION_DROPOUT = (
    "attention_probs_dropout_prob",  # BERT and kin, DeBERTa
    "attention_dropout",  # DistilBERT, ModernBERT, GPT-NeoX, Llama and kin
    "attn_pdrop",  # GPT-2
)


def set_dropout(config: Any, dropout: float | None, attention_dropout: float | None) -> None:
    """Set the config's dropouts; null leaves the model's own.

    ``dropout`` covers hidden states, embeddings and attention, ``attention_dropout`` overrides the latter.
    Dropouts of the head alone stay as they are.

    Raises:
        BackboneError: if the architecture has no such dropout.
    """
    if dropout is not None:
        _set(config, (*_DROPOUT, *_ATTENTION_DROPOUT), dropout, "dropout")
    if attention_dropout is not None:
        _set(config, _ATTENTION_DROPOUT, attention_dropout, "attention_dropout")


def text_configs(config: Any) -> list[Any]:
    """The config, and the one inside it that is of its text, if that is another."""
    text = config.get_text_config()
    return [config] if text is config else [config, text]


def _set(config: Any, names: tuple[str, ...], value: float, key: str) -> None:
    present = [(part, name) for part in text_configs(config) for name in names if hasattr(part, name)]
    if not present:
        raise BackboneError(
            f"backbone.{key}={value}: {config.model_type} has no such dropout of its own. Set backbone.{key}=null."
        )
    for part, name in present:
        setattr(part, name, value)


def position_limit(model: nn.Module) -> int | None:
    """The longest input in tokens that ``model`` has positions for; None if there is no limit."""
    config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    for name, module in model.named_modules():
        # RoBERTa and kin count positions from behind the padding id.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return limit - int(module.padding_idx) - 1
    return limit
