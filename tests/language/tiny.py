"""Tiny language models of every kind, a byte-level tokenizer with the merges that one asks for, and the slow way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {},
    "qwen2": {},
    "mistral": {"sliding_window": 6},
    "gemma2": {"sliding_window": 6, "head_dim": 8},
}
"""Architectures, and what of their configs differs: windows that are shorter than the prompts of the tests."""


def language_model(kind: str, vocabulary: int = 48, *, seed: int = 25, deviation: float = 0.5) -> Any:
    """A causal model of two layers, float32, whose random weights are so large that its answers are clear."""
    small: dict[str, Any] = {"vocab_size": vocabulary, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    small["tie_word_embeddings"] = False
    if kind == "gpt2":
        small |= {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
        small |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    else:
        small |= {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        small |= {"num_key_value_heads": 1, "max_position_embeddings": 64}
    config = AutoConfig.for_model(kind, **(small | KINDS[kind]))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    dice = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.dim() > 1 or name.endswith("bias"):
                scale = deviation if parameter.dim() > 1 else deviation / 10
                parameter.copy_(torch.randn(parameter.shape, generator=dice) * scale)
    return model.eval()


def byte_tokenizer(merges: Sequence[tuple[str, str]] = (), **more: Any) -> Any:
    """Bytes, and ``merges`` of what was merged before; ids 0 to 255 are not the bytes' own. Ends with ``<|end|>``."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    spelled = [tuple("".join(_letter(byte) for byte in part.encode()) for part in merge) for merge in merges]
    for left, right in spelled:
        vocabulary.setdefault(left + right, len(vocabulary))
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=spelled))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in ("<|begin|>", "<|end|>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin|>", eos_token="<|end|>", clean_up_tokenization_spaces=False, **more
    )


def _letter(byte: int) -> str:
    """How byte-level BPE writes a byte: printable ones as they are, the others from U+0100 on."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return chr(byte) if byte in shown else chr(256 + [other for other in range(256) if other not in shown].index(byte))


@torch.no_grad()
def slowly_scored(model: Any, context: Sequence[int], target: Sequence[int]) -> list[float]:
    """log p of each token of ``target``, in float64: one call a token, no padding, no cache."""
    ids, scores = list(context), []
    for token in target:
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()
        scores.append(float(logits.log_softmax(-1)[token]))
        ids.append(token)
    return scores


@torch.no_grad()
def slowly_generated(model: Any, prompt: Sequence[int], new: int, stop: int | None) -> list[int]:
    """The likeliest tokens behind ``prompt``: one call a token, no padding, no cache."""
    ids = list(prompt)
    for _ in range(new):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] == stop:
            break
    return ids[len(prompt) :]
