"""Which types of ``transformers`` models say a next token from those before it alone."""

from __future__ import annotations

from peftlab.errors import BackboneError, listed, nearest


def require_language_model(model_type: str, key: str) -> None:
    """Refuse a type that ``transformers`` has no causal language model of.

    transformers lists encoders (BERT) and the decoders inside of encoder-decoders (BART) there too: those also fill in
    masked words, or write one text from another.

    Raises:
        BackboneError: naming the config ``key``, and models that are.
    """
    from transformers.models.auto import modeling_auto as known

    causal = set(known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    masked, from_another = known.MODEL_FOR_MASKED_LM_MAPPING_NAMES, known.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    choose = (
        "Choose a decoder: backbone=smollm2_135m, gpt2 or llama, or backbone=hf backbone.name_or_path=<id or folder>."
    )
    if model_type in from_another:
        raise BackboneError(
            f"{key}: a {model_type} writes one text from another and is no causal language model. {choose}"
        )
    if model_type in masked:
        raise BackboneError(
            f"{key}: a {model_type} is an encoder, which sees the words behind a place too: it cannot say a next "
            f"token. {choose}"
        )
    if model_type not in causal:
        close = nearest(str(model_type), sorted(causal))
        raise BackboneError(
            f"{key}: transformers has no causal language model of type '{model_type}'.{close} It has: "
            f"{listed(sorted(causal), limit=100)}."
        )
