"""A byte-level BPE that is the same on every machine, and chat templates of the kinds that there are."""

from __future__ import annotations

import collections
import itertools
from typing import Any

import jinja2.sandbox
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from peftlab.backbones.tokenizers import HFTokenizer

TEXT = """The cat sat on the mat and the dog sat near the door. What is the answer? The answer is yes, the answer is no.
A small boat went down the river; the water was cold and the sky was grey. Is it true? It is true. It is not true.
Count the apples: one, two, three, four. The teacher said that the sum is twelve and that the rest is three."""

CHATML = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
TEMPLATES: dict[str, str] = {
    "chatml": CHATML,
    "with bos": "{{ bos_token }}" + CHATML,
    "without line breaks": CHATML.replace("\\n", "").replace("\n", ""),
    "a space at the end of the prompt": (
        "{% for m in messages %}{{ 'Q: ' + m['content'] + '\n' if m['role'] == 'user' else 'A: ' + m['content'] + "
        "'<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'A: ' }}{% endif %}"
    ),
    "deaf to the generation prompt": (
        "{% for m in messages %}{{ '[Q] ' + m['content'] + ' [A]' if m['role'] == 'user' else ' ' + m['content'] + "
        "'<|end|>' }}{% endfor %}"
    ),
    "empty thoughts": (
        "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
        "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m['content'] + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>assistant\n<think>\n\n</think>\n\n' }}{% endif %}"
    ),
    "trims": CHATML.replace("m['content']", "m['content'] | trim"),
    "without an end": (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    ),
    "an end of the whole": CHATML + "{% if not add_generation_prompt %}{{ '<|start|>' }}{% endif %}",
    "a system line of its own": (
        "{% if messages[0]['role'] != 'system' %}{{ '<|start|>system\nBe kind.<|end|>\n' }}{% endif %}" + CHATML
    ),
}
"""What ``whole`` of the ninth ends with is taken back when the conversation goes on, as Phi-3's does."""

THOUGHTS_TAKEN_OUT = (
    "{%- set ns = namespace(last=0) -%}{%- for m in messages -%}{%- if m['role'] == 'user' -%}"
    "{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
    "{%- for m in messages -%}{%- set text = m['content'] -%}"
    "{%- if m['role'] == 'assistant' and loop.index0 < ns.last and '</think>' in text -%}"
    "{%- set text = text.split('</think>')[-1].lstrip('\n') -%}{%- endif -%}"
    "{{- '<|start|>' + m['role'] + '\n' + text + '<|end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start|>assistant\n' -}}{%- endif -%}"
)


def render(template: str, messages: list[dict[str, str]], add_generation_prompt: bool = False) -> str:
    """By jinja2 alone."""
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    written: str = env.from_string(template).render(
        messages=messages, add_generation_prompt=add_generation_prompt, bos_token="<|begin|>", eos_token="<|end|>"
    )
    return written


def plain_tokenizer(
    merges: int = 60,
    *,
    begins: bool = False,
    ends: bool = False,
    pad: str | None = "<|end|>",
    bos: str | None = "<|begin|>",
    eos: str | None = "<|end|>",
    template: str | None = None,
) -> Any:
    """Pad and end are one token, unless ``pad`` says another thing."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in shown]
    chars = {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(rest)}
    vocabulary = {char: byte for byte, char in chars.items()}
    learned = _merges(merges)
    for left, right in learned:
        vocabulary.setdefault(left + right, len(vocabulary))
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=learned))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ("<|begin|>", "<|start|>", "<|end|>")
    backend.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in special])
    if begins or ends:
        single = ("<|begin|> " if begins else "") + "$A" + (" <|end|>" if ends else "")
        known = [(word, backend.token_to_id(word)) for word in special]
        backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=known)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=pad,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip  # <|start|> is special and nobody names it, as in Llama 3
    tokenizer.chat_template = template
    return tokenizer


def language_tokenizer(merges: int = 60, **more: Any) -> HFTokenizer:
    return HFTokenizer(plain_tokenizer(merges, **more), 1_000)


def _merges(count: int) -> list[tuple[str, str]]:
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(TEXT)
    words = collections.Counter(tuple(piece) for piece, _ in pieces)
    merges = []
    for _ in range(count):
        pairs: collections.Counter[tuple[str, str]] = collections.Counter()
        for word, times in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += times
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = collections.Counter({_merged(word, best): times for word, times in words.items()})
    return merges


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    found, place = [], 0
    while place < len(word):
        two = word[place : place + 2] == pair
        found.append("".join(pair) if two else word[place])
        place += 2 if two else 1
    return tuple(found)
