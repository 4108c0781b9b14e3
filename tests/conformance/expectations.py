"""What a cell of the matrix may do other than pass: the only file of the suite that names methods.

Refusals that follow from what a method declares (``supports``) need no entry here.
"""

from __future__ import annotations

REFUSALS: dict[tuple[str, str, str], str] = {
    ("bitfit", "gemma", "*"): "has no bias term",
    ("bitfit", "llama", "*"): "has no bias term",
    ("bitfit", "mistral", "*"): "has no bias term",
    ("bitfit", "modernbert", "*"): "has no bias term",
    ("bitfit", "t5", "*"): "has no bias term",
    ("head", "lm", "*"): "leaves nothing to train",
    ("hf_peft", "gpt2", "fp32"): "Target module Conv1D",  # quantised it is a Linear, which OFT takes
    ("import", "*", "*"): "peft.path is needed",
    ("loreft", "t5", "*"): "its text has two streams",
    ("parameters", "*", "nf4"): "is stored in nf4",
}
"""(method, kind, weights) → words of the reason; ``*`` stands for every kind, or for both sorts of weights; ``lm`` for
all language models, of which what is said of the architecture holds, too."""


WORKS = {("parameters", "xlnet", "nf4")}
"""Cells that work although a ``*`` of :data:`REFUSALS` holds for them: XLNet's own parameters stay in floats."""


def expected_refusal(method: str, kind: str, weights: str) -> str | None:
    """The words that the refusal of this cell must hold; None: the cell must work."""
    if (method, kind, weights) in WORKS:
        return None
    kinds = (kind, without_head(kind), "lm", "*") if kind != without_head(kind) else (kind, "*")
    for key in [(method, one, sort) for one in kinds for sort in (weights, "*")]:
        if key in REFUSALS:
            return REFUSALS[key]
    return None


def without_head(kind: str) -> str:
    """The architecture of a ``kind``: ``llama`` of ``llama-lm``."""
    return kind.removesuffix("-lm")


_NO_KEYS = "takes no keys and values beside its own"
LACKING: dict[str, tuple[str, ...]] = {
    "big_bird": (_NO_KEYS,),
    "xlnet": (_NO_KEYS, "keeps its projections as parameters"),
}
"""Kind → what the refusals of methods may say that need what the architecture has not, whichever method it is."""

UNREAD = {
    "big_bird": "pooler",  # its classifier reads the first token itself
    "xlnet": "mask_emb",  # nothing is masked outside of pretraining
}
"""Kind → part of the names of its own parameters that no gradient reaches."""

BACKBONE_LIMITS: dict[tuple[str, str, str], str] = {
    # transformers adds XLNet's positions, which are float32, to weights in bfloat16.
    ("bf16_backbone", "xlnet", "fp32"): "expected scalar type Float but found BFloat16",
    ("bf16_backbone", "xlnet", "nf4"): "expected scalar type Float but found BFloat16",
    # transformers fills DeBERTa's masked scores with the smallest number of the query's type; bitsandbytes' layers
    # keep returning float32 under autocast, while the scores are in bfloat16. backbone.dtype=bfloat16 works.
    ("autocast", "deberta-v2", "nf4"): "cannot be converted to type c10::BFloat16",
}
"""(check, kind, weights) → the error of the untouched backbone, which no method can be blamed for."""


def backbone_cannot(check: str, kind: str, weights: str) -> str | None:
    """Why the backbone itself fails this check; None: it does not."""
    return BACKBONE_LIMITS.get((check, kind, weights))
