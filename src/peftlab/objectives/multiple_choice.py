"""Multiple choice by a language model: it learns the right option, and chooses the likeliest one.

    loss   = - 1/N Σ_n log softmax(z_n)[y_n]      over the N tokens of the right options, each from those before it
    choice = argmax_k  log p(option k | question)                        accuracy, by the sum
             argmax_k  log p(option k | question) / characters of k      accuracy by length

as LLM-Adapters (arXiv:2304.01933) trains, and as lm-evaluation-harness judges (``acc``, ``acc_norm``): a sum favours
short options, so the second divides by the characters of the option as the file has it, without the space before it.
Of equal options the first is chosen. Training reads the right option alone, so there is no accuracy of training rows.
Imports no torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from peftlab.errors import DataError
from peftlab.metric_names import UNDEFINED
from peftlab.objectives.base import Contradiction, Figure, LabelReader, Objective
from peftlab.objectives.parts.targets import count, in_front, next_tokens, said, sums_of_rows, targets_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torchmetrics import Metric

    from peftlab.raw_rows import RawRows

FIGURES = ("accuracy", "accuracy_by_length")
_LEARNED_FROM = "undefined: of training rows the right option alone is read"


class Choice(NamedTuple):
    """The label of a question."""

    answer: int
    """The right option, from 0."""
    characters: tuple[int, ...]
    """Of each option."""
    most: int
    """Options of the question of this data set that has most."""

    def __str__(self) -> str:
        return str(self.answer)


class Options(NamedTuple):
    """What a batch of option rows is compared to."""

    ids: Tensor
    """(B, T) int64: the option's tokens in their places, else -100."""
    facts: Tensor
    """(B, 5) float64: the question's number, the option's, its characters, whether it is right, how many there are."""
    most: int
    """Options of the question of this data set that has most."""


class MultipleChoice(Objective, name="multiple_choice"):
    """The likeliest of several options, by the model's own head."""

    about = "a multiple choice, whose rows are questions with options"
    figures = (
        Figure("accuracy", "accuracy", "max", 0.0, 1.0, share_of_rows=True),
        Figure("accuracy_by_length", "accuracy by length", "max", 0.0, 1.0, share_of_rows=True),
    )
    selects = "accuracy"
    loss_title = "cross-entropy loss a token of the right option"
    head = "own"
    head_trains = False
    weighs = True
    learns_tokens = True
    columns = MappingProxyType(
        {
            "gold": "name of the right option",
            "predicted": "name of the option with the highest log-likelihood",
            "predicted_by_length": "the same, of log-likelihoods divided by the option's characters",
            "log_likelihoods": "of each option of the row, a list in the order of the options",
        }
    )

    def reader(
        self, train: Sequence[RawRows], names: Sequence[str] | None = None, aliases: Mapping[str, int] | None = None
    ) -> LabelReader:
        """There are no labels to read by themselves."""
        raise DataError(
            "data.objective=multiple_choice needs questions with options: data=multiple_choice, which reads any "
            "labelled file (data.options=[…], data.answer_column=label)."
        )

    def strata(self, labels: Sequence[Choice]) -> Sequence[int]:
        """Each place of the right option keeps its share."""
        return [label.answer for label in labels]

    def labels_in_words(self, labels: Sequence[Choice], names: Sequence[str]) -> str:
        """``questions with 4 options, right: A 24%, B 26%, …``."""
        sizes = sorted({len(label.characters) for label in labels})
        options = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        right = Counter(label.answer for label in labels)
        shares = ", ".join(f"{names[index]} {right[index]:,}" for index in sorted(right))
        return f"questions with {options} options, right: {shares}"

    def label_facts(self, splits: Mapping[str, Sequence[Choice]], names: Sequence[str]) -> dict[str, Any]:
        """How often each option is the right one: the largest share is what always naming one place gives."""
        counts = {split: Counter(label.answer for label in labels) for split, labels in splits.items()}
        by_name = {split: {name: of[index] for index, name in enumerate(names)} for split, of in counts.items()}
        return {"rows_by_label": by_name}

    # -- loss and figures ------------------------------------------------------------------------------

    def weight(self, row: Mapping[str, Any]) -> int:
        """The option's tokens."""
        return count(targets_of(row))

    def target(self, rows: Sequence[Mapping[str, Any]]) -> Options:  # type: ignore[override]
        """See :class:`Options`."""
        import torch

        facts = [self._facts(row) for row in rows]
        return Options(next_tokens(rows).ids, torch.tensor(facts, dtype=torch.float64), rows[0]["label"].most)

    def _facts(self, row: Mapping[str, Any]) -> list[int]:
        label: Choice = row["label"]
        # of several rows each is an option; a question's only row is the right one's
        option = row["part"] if row["parts"] > 1 else label.answer
        return [row["text"], option, label.characters[option], int(option == label.answer), len(label.characters)]

    def asks(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The places in front of the options' tokens."""
        return {"at": in_front(batch["labels"].ids, batch["input_ids"].shape[1])}

    def loss(self, outputs: Tensor, labels: Any, *, label_smoothing: float = 0.0) -> Tensor:
        """The mean over the tokens of ``outputs`` (N, V)."""
        from torch.nn import functional as F

        return F.cross_entropy(outputs, said(labels.ids)) if len(outputs) else outputs.sum()

    def states(self, names: Sequence[str]) -> dict[str, Metric]:
        """Every option: what :class:`Options` says of it, its nats and its tokens."""
        from peftlab.objectives.parts.split import Collected

        return {"options": Collected(7)}

    def update(self, states: nn.ModuleDict, outputs: Tensor, labels: Any) -> None:
        """Keep the batch."""
        nats, tokens, _ = sums_of_rows(outputs, labels.ids).unbind(dim=1)
        states["options"].update(*labels.facts.unbind(dim=1), nats, tokens)  # type: ignore[operator]

    def compute(self, states: Mapping[str, Tensor]) -> dict[str, Any]:
        """Both accuracies, the loss a token of right options, and how many questions and tokens there were."""
        questions: dict[int, list[list[float]]] = {}
        for text, *option in states["options"].tolist():
            questions.setdefault(int(text), []).append(option)
        right = [option for options in questions.values() for option in options if option[2]]
        tokens = int(sum(option[5] for option in right))
        found: dict[str, Any] = {"rows": len(questions), "tokens": tokens}
        found["loss"] = math.fsum(option[4] for option in right) / tokens if tokens else None
        if not tokens:
            return found | dict.fromkeys(FIGURES) | {UNDEFINED: dict.fromkeys(("loss", *FIGURES), "undefined: no rows")}
        if any(len(options) < options[0][3] for options in questions.values()):
            return found | dict.fromkeys(FIGURES) | {UNDEFINED: dict.fromkeys(FIGURES, _LEARNED_FROM)}
        for name, by_length in zip(FIGURES, (False, True), strict=True):
            hits = sum(bool(_likeliest(options, by_length=by_length)[2]) for options in questions.values())
            found[name] = hits / len(questions)
        return found

    # -- what is kept and shown ------------------------------------------------------------------------

    def of_rows(self, outputs: Tensor, labels: Any) -> Tensor:
        """The log-likelihood of each row's option in the option's place, else 0, (B, most options)."""
        import torch

        nats = sums_of_rows(outputs, labels.ids)[:, 0]
        place = labels.facts[:, 1].long()
        found = torch.zeros(len(nats), labels.most, dtype=nats.dtype, device=nats.device)
        return found.scatter_(1, place.to(nats.device)[:, None], -nats[:, None])

    def kept(self, outputs: Tensor, labels: Sequence[Choice], names: Sequence[str]) -> dict[str, list[Any]]:
        """``gold``, ``predicted`` and ``predicted_by_length``, and the options' ``log_likelihoods``."""
        columns: dict[str, list[Any]] = {
            name: [] for name in ("gold", "predicted", "predicted_by_length", "log_likelihoods")
        }
        for row, label in zip(outputs.tolist(), labels, strict=True):
            sums = row[: len(label.characters)]
            by_length = [one / size for one, size in zip(sums, label.characters, strict=True)]
            columns["gold"].append(names[label.answer])
            columns["predicted"].append(names[sums.index(max(sums))])
            columns["predicted_by_length"].append(names[by_length.index(max(by_length))])
            columns["log_likelihoods"].append(sums)
        return columns

    def predictions(self, outputs: Tensor, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """``label`` and ``log_likelihoods`` (option → sum)."""
        for row in outputs.tolist():
            sums = row[: len(names)]
            yield {"label": names[sums.index(max(sums))], "log_likelihoods": dict(zip(names, sums, strict=True))}

    def prediction_in_words(self, predicted: Mapping[str, Any]) -> str:
        """The option and its log-likelihood."""
        return f"{predicted['label']}\tlog-likelihood {predicted['log_likelihoods'][predicted['label']]:.4f}"

    def output_in_words(self, names: Sequence[str]) -> tuple[str, str]:
        """A token: options are compared by it."""
        return "output", "the next token"

    def hf_config(self, names: Sequence[str]) -> dict[str, Any]:
        """Nothing beyond what the model's own config says."""
        return {}

    def contradictions(
        self, figures: Mapping[str, Any], data: Mapping[str, Any], split: str
    ) -> Iterator[Contradiction]:
        """Accuracies are shares of the rows."""
        rows = data["rows"].get(split)
        for name in FIGURES:
            value = figures.get(name)
            if rows and value is not None and abs(value * rows - round(value * rows)) > 1e-6 * rows:
                yield name, f"{value}, which is no share of {rows} rows"


def _likeliest(options: list[list[float]], *, by_length: bool) -> list[float]:
    """Of options (number, characters, right, how many, nats, tokens) the first of the likeliest."""
    return min(sorted(options), key=lambda option: option[4] / (option[1] if by_length else 1))
