"""A language model writes the answers of a split, and they are judged."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from peftlab.backbones.language_model import LanguageModelBackbone
from peftlab.data.base import Texts
from peftlab.data.generation import Generation
from peftlab.data.target_rows import DialogueRows, language_tokenizer
from peftlab.dialogues import ASKS, Turn, turns_of, written
from peftlab.errors import RunError
from peftlab.language import answers

if TYPE_CHECKING:
    from peftlab.config import RunConfig
    from peftlab.runs.assemble import Assembled

GENERATED = "generated"
"""Key of a record's ``metrics.test``: how many answers were written; column of the predictions: the answers."""
_GROUPED = ("bleu", "rouge_l")
"""Judged by all references of a prompt together, as a data set that has a row a reference means it."""


@dataclass(frozen=True)
class Judged:
    """What came of it."""

    figures: dict[str, Any]
    """By the judges' names; and under :data:`GENERATED` prompts, answers that ended by themselves, and tokens."""
    columns: dict[str, list[Any]]
    """Of each row: the answer, the reference, and what a judge says of this row alone."""
    conventions: dict[str, Any]
    """How it was asked for and judged."""


def generated(config: RunConfig, assembled: Assembled, rows: Texts) -> Judged | None:
    """The answers that ``assembled`` writes to the prompts of ``rows``, judged; None if the config asks for none.

    A prompt that stands in several rows is answered once. Of a conversation the last answer is written.
    """
    generation = config.data.generation()
    if generation is None:
        return None
    began = time.perf_counter()
    encoder = config.data.row_encoder(assembled.backbone.tokenizer)
    assert isinstance(encoder, DialogueRows)
    prompts = [tuple(_prompt(encoder, text, config.data.max_length)) for text in rows.texts]
    once = list(dict.fromkeys(prompts))
    stop_ids = encoder.stop_ids()
    ids = dict(zip(once, _written(config, assembled, once, generation, stop_ids), strict=True))
    decode = language_tokenizer(assembled.backbone.tokenizer).written
    texts = {prompt: answers.cut(decode(ids[prompt]), generation.stop) for prompt in once}
    said = [texts[prompt] for prompt in prompts]
    references = [turns_of(text)[-1].content for text in rows.texts]
    figures, columns, signature = _judged(generation, prompts, said, references)
    figures[GENERATED] = {
        "prompts": len(once),
        "ended": sum(own[-1] in stop_ids for own in ids.values()),
        "tokens": sum(map(len, ids.values())),
    }
    conventions = {
        "decoding": "greedy",
        "max_new_tokens": generation.max_new_tokens,
        "stop_ids": stop_ids,
        "stop": list(generation.stop),
        "begin_ids": list(language_tokenizer(assembled.backbone.tokenizer).begin),
        "rules": {judge: answers.RULES[judge] for judge in generation.judges} | signature,
        "seconds": time.perf_counter() - began,
    }
    return Judged(figures, {GENERATED: said, "reference": references} | columns, conventions)


def _judged(
    generation: Generation, prompts: Sequence[tuple[int, ...]], said: Sequence[str], references: Sequence[str]
) -> tuple[dict[str, Any], dict[str, list[Any]], dict[str, str]]:
    """Figures, what is said of each row, and sacrebleu's signature."""
    figures: dict[str, Any] = {}
    columns: dict[str, list[Any]] = {}
    signature: dict[str, str] = {}
    groups: dict[tuple[int, ...], tuple[str, list[str]]] = {}
    for prompt, answer, reference in zip(prompts, said, references, strict=True):
        groups.setdefault(prompt, (answer, []))[1].append(reference)
    for judge in generation.judges:
        if judge in _GROUPED:
            texts, of = zip(*groups.values(), strict=True)
            figures[judge], _ = answers.score(judge, texts, of)
        else:
            figures[judge], own = answers.score(judge, said, [[reference] for reference in references])
            columns[judge] = [bool(value) for value in own or ()]
        if judge == "bleu":
            signature["sacrebleu"] = answers.bleu_signature(texts, of)
    return figures, columns, signature


def answered(config: RunConfig, assembled: Assembled, texts: Sequence[str]) -> list[str]:
    """What a run's model writes behind ``texts``: each a user's turn where it learned answers, else a beginning.

    Raises:
        RunError: if the run learned neither.
    """
    encoder: Any = config.data.row_encoder(assembled.backbone.tokenizer)
    tokenizer = language_tokenizer(assembled.backbone.tokenizer)
    generation = config.data.generation() or Generation()
    if isinstance(encoder, DialogueRows):
        prompts = [encoder.asked([Turn(ASKS, config.data.as_prompt(text))]) for text in texts]
        stop_ids = encoder.stop_ids()
    else:
        prompts = [[*tokenizer.begin, *ids] for ids in tokenizer.plain(list(texts))]
        stop_ids = [] if tokenizer.end_id is None else [tokenizer.end_id]
    ids = _written(config, assembled, prompts, generation, stop_ids)
    return [answers.cut(tokenizer.written(own), generation.stop) for own in ids]


def _prompt(encoder: DialogueRows, text: str, max_length: int) -> list[int]:
    """What stands before the last answer in its row; of a conversation that is too long, without its beginning."""
    turns = turns_of(text)
    if encoder.loss_on != "all":
        row = encoder.encode(text, max_length)[-1]
        end = max(place for place, under in enumerate(row.loss) if under)
        while end and row.loss[end - 1]:
            end -= 1
        return row.ids[:end]
    asked = encoder.asked(turns[:-1])
    if len(asked) > max_length:
        raise RunError(f"the prompt {written(turns[:-1])[:60]!r} has more than data.max_length={max_length} tokens.")
    return asked


def _written(
    config: RunConfig,
    assembled: Assembled,
    prompts: Sequence[Sequence[int]],
    generation: Generation,
    stop_ids: Sequence[int],
) -> list[list[int]]:
    """The new ids of each prompt; the model is put where there is a GPU, and back."""
    backbone = assembled.backbone.eval()
    assert isinstance(backbone, LanguageModelBackbone)
    before = next(backbone.parameters()).device
    device = torch.device("cuda" if torch.cuda.is_available() and config.trainer.accelerator != "cpu" else "cpu")
    mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(config.trainer.precision)
    backbone.to(device)
    try:
        with torch.autocast(device.type, dtype=mixed, enabled=mixed is not None):
            return backbone.written(
                prompts,
                max_new_tokens=generation.max_new_tokens,
                stop_ids=stop_ids,
                batch_size=config.data.eval_batch_size,
            )
    finally:
        backbone.to(before)
