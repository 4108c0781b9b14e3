"""Log-likelihoods as lm-evaluation-harness computes them, in float64, for tests/language/test_against_lm_eval.py.

    python -m venv --system-site-packages lm_eval && lm_eval/bin/pip install lm_eval==0.4.13 'peftlab[smollm2]'
    PEFTLAB_DATA=… lm_eval/bin/python -m benchmarks.lm_eval_reference > tests/language/lm_eval_reference.json
    PEFTLAB_DATA=… python -m benchmarks.lm_eval_reference --compare

SmolLM2-135M on the first 200 test questions of TREC, six options each (``loglikelihood``), and on seven reviews of IMDb
and a text of one word in windows (``loglikelihood_rolling``). Of the texts the file holds a hash; it holds the sums, as
the harness returns them, and its version. ``--compare`` needs no harness: it says how far peftlab's sums are from those
of the file, in float64 and in float32. Some minutes on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from peftlab.backbones.language_model import LanguageModelBackbone
from peftlab.choices import written
from peftlab.composition import checked
from peftlab.data.batching import Collate
from peftlab.data.choice_rows import ChoiceRows
from peftlab.data.target_rows import TokenRow
from peftlab.objectives.causal_lm import CausalLM

OPTIONS = (" an abbreviation", " a thing", " a description", " a person", " a place", " a number")
QUESTIONS, REVIEWS = 200, 8
MAX_LENGTH = 64
"""Of a window: the harness's ``max_length`` is one less, since it does not count the token that is only foretold."""
FILE = Path(__file__).parents[1] / "tests" / "language" / "lm_eval_reference.json"


def data_folder() -> Path:
    """Where TREC and IMDb are."""
    return Path(os.environ.get("PEFTLAB_DATA") or Path(__file__).parents[2] / "shared" / "data")


def questions() -> list[str]:
    """What is asked, as the model reads it."""
    texts = pq.read_table(data_folder() / "trec" / "test.parquet")["text"].to_pylist()[:QUESTIONS]
    return [f"Question: {text}\nThe question asks for" for text in texts]


def reviews() -> list[str]:
    """Texts of more than a window, and one of a single word."""
    texts = pq.read_table(data_folder() / "imdb" / "test.parquet")["text"].to_pylist()
    return [*texts[: REVIEWS - 1], "Yes"]


def digest(*texts: Sequence[str]) -> str:
    """Of what is read."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def smollm2(dtype: torch.dtype) -> LanguageModelBackbone:
    """The model with its own head."""
    config = checked(["backbone=smollm2_135m", "data=text", "data.path=none"]).backbone
    backbone = config.build(0, seed=0, head="own").eval().to(dtype)
    assert isinstance(backbone, LanguageModelBackbone)
    return backbone


def of_options(backbone: LanguageModelBackbone, asked: Sequence[str]) -> list[tuple[float, int]]:
    """Log-likelihood and tokens of each option of each question, as ``data=multiple_choice`` reads them."""
    encoder = ChoiceRows(backbone.tokenizer, right_only=False)
    return _scored(backbone, [row for text in asked for row in encoder.encode(written(text, OPTIONS, 0), 256)])


def of_texts(backbone: LanguageModelBackbone, texts: Sequence[str]) -> list[tuple[float, int]]:
    """Log-likelihood and targets of each text, as ``data=text data.begin=bos data.stride=null`` reads them."""
    words = ["data=text", "data.path=none", "data.begin=bos", f"data.max_length={MAX_LENGTH}"]
    encoder: Any = checked(words).data.row_encoder(backbone.tokenizer)
    rows = [encoder.encode(text, MAX_LENGTH) for text in texts]
    scored = iter(_scored(backbone, [row for windows in rows for row in windows]))
    found = []
    for windows in rows:
        sums, counts = zip(*(next(scored) for _ in windows), strict=True)
        found.append((sum(sums), sum(counts)))
    return found


@torch.inference_mode()
def _scored(backbone: LanguageModelBackbone, rows: Sequence[TokenRow], batch_size: int = 24) -> list[tuple[float, int]]:
    """Of each row, by the objective that figures of runs come from."""
    learned, order = CausalLM(), sorted(range(len(rows)), key=lambda row: -len(rows[row].ids))
    collate, found = Collate(backbone.tokenizer.pad_id, learned), {}
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        batch = collate([{"input_ids": rows[row].ids, "loss": rows[row].loss} for row in numbers])
        outputs = backbone(batch["input_ids"], batch["attention_mask"], **learned.asks(batch))
        found |= zip(numbers, learned.of_rows(outputs, batch["labels"]).tolist(), strict=True)
    return [(-found[row][0], int(found[row][1])) for row in range(len(rows))]


def main() -> int:
    """Print the file, or what is different from it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--compare", action="store_true")
    if parser.parse_args().compare:
        return _compare()
    asked, texts = questions(), reviews()
    found = {"lm_eval": version("lm_eval"), "texts_sha256": digest(asked, OPTIONS, texts), **_harness(asked, texts)}
    json.dump(found, sys.stdout)
    print()
    return 0


def _harness(asked: Sequence[str], texts: Sequence[str]) -> dict[str, list[float]]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    backbone = smollm2(torch.float64)
    tokenizer: Any = backbone.tokenizer
    given = {"pretrained": backbone.model, "tokenizer": tokenizer._tokenizer, "batch_size": 24}
    pairs = [(question, option) for question in asked for option in OPTIONS]
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    options = [logp for logp, _ in HFLM(**given).loglikelihood(requests, disable_tqdm=True)]
    requests = [Instance("loglikelihood_rolling", {}, (text,), number) for number, text in enumerate(texts)]
    rolling = HFLM(**given, max_length=MAX_LENGTH - 1).loglikelihood_rolling(requests, disable_tqdm=True)
    return {"options": [round(float(one), 12) for one in options], "texts": [round(float(one), 12) for one in rolling]}


def _compare() -> int:
    reference = json.loads(FILE.read_text(encoding="utf-8"))
    asked, texts = questions(), reviews()
    assert reference["texts_sha256"] == digest(asked, OPTIONS, texts), "these are other texts"
    for dtype in (torch.float64, torch.float32):
        backbone = smollm2(dtype)
        for what, scored in (("options", of_options(backbone, asked)), ("texts", of_texts(backbone, texts))):
            apart = [abs(logp - theirs) for (logp, _), theirs in zip(scored, reference[what], strict=True)]
            a_token = [one / count for one, (_, count) in zip(apart, scored, strict=True)]
            print(f"{dtype}, {what}: at most {max(apart):.1e} a sum, {max(a_token):.1e} a token", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
