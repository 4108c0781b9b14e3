"""Language modelling: each token that is under loss, from those before it.

    loss = - 1/N Σ_n log softmax(z_n)[y_n]        z_n (V) the logits in front of target n, y_n its token

Of the answers that a test has written (``data.generate``) it also has exact match, right numbers, BLEU or ROUGE-L, by
the rules of :mod:`peftlab.language.answers`.

N is the number of targets, after the shift: of a batch, of a step over several batches and processes, of an epoch, of a
split. Every target weighs the same, however rows are cut into batches (the mean of batches' means would be another
number); :mod:`peftlab.objectives.parts.targets` counts them, for all of these. Perplexity is exp(loss).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from peftlab.errors import DataError
from peftlab.metric_names import UNDEFINED
from peftlab.objectives.base import Contradiction, Figure, LabelReader, Objective
from peftlab.objectives.parts.targets import count, in_front, next_tokens, said, sums_of_rows, targets_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torchmetrics import Metric

    from peftlab.objectives.parts.targets import NextTokens
    from peftlab.raw_rows import RawRows

NAMES = ("nats", "tokens", "correct")
"""What is kept of each row: the sum of its targets' losses, how many there are, and how many were said rightly."""


class CausalLM(Objective, name="causal_lm"):
    """The next token, by the model's own head."""

    about = "a language modelling, whose rows are texts or answers to prompts"
    figures = (
        Figure("perplexity", "perplexity", "min", 1.0),
        Figure("token_accuracy", "token accuracy", "max", 0.0, 1.0),
        Figure("exact_match", "exact match", "max", 0.0, 1.0, each_epoch=False, share_of_rows=True),
        Figure("number", "right numbers", "max", 0.0, 1.0, each_epoch=False, share_of_rows=True),
        Figure("bleu", "BLEU", "max", 0.0, 100.0, each_epoch=False),
        Figure("rouge_l", "ROUGE-L", "max", 0.0, 1.0, each_epoch=False),
    )
    selects = "perplexity"
    loss_title = "cross-entropy loss a token"
    head = "own"
    head_trains = False
    learns_tokens = True
    weighs = True
    columns = MappingProxyType(
        {
            "gold": "kind of the row, where the data has kinds; else nothing",
            "nats": "negative log-likelihood of the row's targets, summed",
            "tokens": "targets of the row",
            "correct": "targets that the model says rightly, each after the true ones before it",
            "generated": "the answer, where answers are written (data.generate)",
            "reference": "the row's own answer, there",
            "exact_match": "whether the two are the same, where that is judged",
            "number": "whether the two give the same number (the record has the rule), where that is judged",
        }
    )

    def reader(
        self, train: Sequence[RawRows], names: Sequence[str] | None = None, aliases: Mapping[str, int] | None = None
    ) -> LabelReader:
        """There are no labels to read."""
        raise DataError(
            "data.objective=causal_lm learns texts, and this data set has labelled ones. Turn the rows into prompts "
            "and answers (data=instructions with data.template), or learn the texts themselves (data=text)."
        )

    def strata(self, labels: Sequence[Any]) -> Sequence[int]:
        """Where rows were made of labelled ones each label keeps its share."""
        order = {label: number for number, label in enumerate(sorted(set(labels), key=str))}
        return [order[label] for label in labels]

    def labels_in_words(self, labels: Sequence[Any], names: Sequence[str]) -> str:
        """``texts``, and of how many labels where rows were made of labelled ones."""
        kinds = {label for label in labels if label is not None}
        return f"texts of {len(kinds)} labels" if kinds else "texts"

    def label_facts(self, splits: Mapping[str, Sequence[Any]], names: Sequence[str]) -> dict[str, Any]:
        """How many rows each label has, where rows were made of labelled ones."""
        found: dict[str, dict[str, int]] = {}
        for split, labels in splits.items():
            kinds = sorted({str(label) for label in labels if label is not None})
            if kinds:
                words = list(map(str, labels))
                found[split] = {kind: words.count(kind) for kind in kinds}
        return {"rows_by_label": found} if found else {}

    # -- loss and figures ------------------------------------------------------------------------------

    def weight(self, row: Mapping[str, Any]) -> int:
        """Its targets."""
        return count(targets_of(row))

    def target(self, rows: Sequence[Mapping[str, Any]]) -> NextTokens:  # type: ignore[override]
        """See :class:`~peftlab.objectives.parts.targets.NextTokens`."""
        return next_tokens(rows)

    def asks(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The places in front of targets; of packed rows their positions too."""
        found = {"at": in_front(batch["labels"].ids, batch["input_ids"].shape[1])}
        return found | ({"position_ids": batch["position_ids"]} if "position_ids" in batch else {})

    def loss(self, outputs: Tensor, labels: Any, *, label_smoothing: float = 0.0) -> Tensor:
        """The mean over the targets of ``outputs`` (N, V); 0 where there are none."""
        from torch.nn import functional as F

        if not len(outputs):
            return outputs.sum()
        return F.cross_entropy(outputs, said(labels.ids))

    def states(self, names: Sequence[str]) -> dict[str, Metric]:
        """Sums in float64, so that figures are quotients of them, whatever the batches and processes."""
        from peftlab.objectives.parts.split import Sums

        return {"sums": Sums(len(NAMES) + 1)}

    def update(self, states: nn.ModuleDict, outputs: Tensor, labels: Any) -> None:
        """Add a batch."""
        import torch

        of_rows = self.of_rows(outputs, labels).sum(dim=0)
        states["sums"].update(torch.cat([of_rows, labels.texts.sum()[None]]))  # type: ignore[operator]

    def of_rows(self, outputs: Tensor, labels: Any) -> Tensor:
        """:data:`NAMES` of each row, (B, 3) float64."""
        return sums_of_rows(outputs, labels.ids)

    def compute(self, states: Mapping[str, Tensor]) -> dict[str, Any]:
        """Loss, perplexity, token accuracy, and the numbers of targets and texts."""
        nats, tokens, right, texts = states["sums"].tolist()
        found: dict[str, Any] = {"rows": int(texts), "tokens": int(tokens)}
        if not tokens:
            why = "undefined: there is no target"
            names = ("loss", "perplexity", "token_accuracy")
            return found | dict.fromkeys(names) | {UNDEFINED: dict.fromkeys(names, why)}
        loss = nats / tokens
        return found | {"loss": loss, "perplexity": perplexity(loss), "token_accuracy": right / tokens}

    # -- what is kept and shown ------------------------------------------------------------------------

    def predictions(self, outputs: Tensor, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """``nats``, ``tokens`` and ``correct`` of each row of ``outputs`` (B, 3)."""
        for nats, tokens, correct in outputs.tolist():
            yield {"nats": nats, "tokens": int(tokens), "correct": int(correct)}

    def prediction_in_words(self, predicted: Mapping[str, Any]) -> str:
        """What was written; of a row that was scored its perplexity, and its targets."""
        if "generated" in predicted:
            return str(predicted["generated"])
        each = predicted["nats"] / max(predicted["tokens"], 1)
        return f"perplexity {perplexity(each):.4f}\t{predicted['tokens']} tokens, {predicted['correct']} said rightly"

    def output_in_words(self, names: Sequence[str]) -> tuple[str, str]:
        """A token."""
        return "output", "the next token"

    def hf_config(self, names: Sequence[str]) -> dict[str, Any]:
        """Nothing beyond what the model's own config says."""
        return {}

    def contradictions(
        self, figures: Mapping[str, Any], data: Mapping[str, Any], split: str
    ) -> Iterator[Contradiction]:
        """Perplexity against the loss, and the accuracy against whole numbers of tokens."""
        loss, tokens = figures["loss"], figures.get("tokens")
        if loss is not None and not math.isclose(figures["perplexity"], perplexity(loss), rel_tol=1e-9):
            yield "perplexity", f"{figures['perplexity']}, but exp(loss) is {perplexity(loss)}"
        accuracy = figures["token_accuracy"]
        if accuracy is not None and tokens and abs(accuracy * tokens - round(accuracy * tokens)) > 1e-6 * tokens:
            yield "token_accuracy", f"{accuracy}, which is no share of {tokens} tokens"
        for name in ("exact_match", "number"):
            value, rows = figures.get(name), data["rows"].get(split)
            if rows and value is not None and abs(value * rows - round(value * rows)) > 1e-6 * rows:
                yield name, f"{value}, which is no share of {rows} rows"


def perplexity(loss: float) -> float:
    """exp(``loss``); infinite where it is too large for a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
