"""A finished run, as something to hold: its record, its metrics, its model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any

from peftlab.config import RunConfig
from peftlab.errors import DataError, PeftlabError, RunError, listed
from peftlab.pairs import paired
from peftlab.raw_rows import FROM_0
from peftlab.records.folder import RunFolder, finished_run
from peftlab.terminal import half_character
from peftlab.trusted import NotTrusted

if TYPE_CHECKING:
    from pandas import DataFrame

    from peftlab.backbones.base import Backbone
    from peftlab.peft.adapter import Adapter
    from peftlab.runs.assemble import Assembled


class Run:
    """A finished run; :func:`peftlab.fit` and :func:`load_run` return one."""

    def __init__(self, folder: RunFolder, config: RunConfig, record: dict[str, Any]) -> None:
        self.folder = folder.path
        """``<output_dir>/<name>/<key>``."""
        self.config = config
        """The checked config."""
        self.record = record
        """What ran and what came out, as record.json says it."""
        self._folder = folder
        self._holds: Any = None  # rows that were given from Python, which nobody else may keep

    @property
    def key(self) -> str:
        """The hash of everything that decides the run's numbers."""
        return self._folder.key

    @property
    def metrics(self) -> DataFrame:
        """One row an epoch: ``train/loss``, ``validation/accuracy``, …; a new frame each time.

        A run with ``trainer.validate_every_n_steps`` has rows inside its epochs too: ``of_epoch`` says where.

        The test's figures are in ``record["metrics"]["test"]``: the test is run once, at the end.
        """
        import pandas

        rows = [{k: v for k, v in row.items() if not isinstance(v, dict | list)} for row in self.record["history"]]
        return pandas.DataFrame(rows).set_index("epoch")

    def predict(self, texts: Sequence[str | tuple[str, str]], *, task: str | None = None) -> list[dict[str, Any]]:
        """Label ``texts`` with the run's model, which is rebuilt once and kept.

        Args:
            texts: texts, or pairs of them for a run on pairs.
            task: theirs, for a run on data of several tasks.

        Returns:
            for each text, in order, what ``peftlab predict --json`` says of it: text, label, probabilities.

        Raises:
            DataError: naming the text that cannot be read.
            RunError: if the model cannot be rebuilt.
        """
        self._require_task(task)
        if isinstance(texts, Mapping) or hasattr(texts, "columns"):  # iterating over them gives names of columns
            raise DataError(
                f"texts is a {type(texts).__name__}. Give the texts of one of its columns, "
                "run.predict(list(table['text'])), or of two for pairs, list(zip(table['first'], table['second']))."
            )
        given = [texts] if isinstance(texts, str) else list(texts)
        pairs = self.config.data.has_pairs(task)
        return list(self.predictions([_checked(text, number, pairs) for number, text in enumerate(given)], task=task))

    def predictions(self, texts: Sequence[str], *, task: str | None = None) -> Iterator[dict[str, Any]]:
        """The same one by one, of texts that are checked, and pairs that are put together (:mod:`peftlab.pairs`)."""
        from peftlab.runs.evaluate import predict

        assembled, facts = self._assembled
        return predict(assembled, facts, self.config, texts, task=task)

    def adapter(self) -> Adapter:
        """The trained adapter, in the run's model; rebuilt once and kept. ``adapter.save`` writes it for elsewhere."""
        return self._assembled[0].adapter

    def model(self) -> Backbone:
        """The trained model, in eval mode; rebuilt once and kept.

        Called with ids and mask, each (B, T), it returns the logits; ``model().model`` is the network, and
        ``model().tokenizer.encode(texts, max_length)`` makes the ids, a list for each text, special tokens included and
        nothing padded: pad with ``model().tokenizer.pad_id``, where the mask is 0. :meth:`predict` does all of this.
        """
        return self._assembled[0].backbone

    @cached_property
    def _assembled(self) -> tuple[Assembled, dict[str, Any]]:
        from peftlab.runs.assemble import reassemble

        assembled, facts = reassemble(self._folder, self.config)
        assembled.backbone.eval()
        return assembled, facts

    def _require_task(self, task: str | None) -> None:
        tasks = self.config.data.task_names()
        if task is None and tasks:
            raise PeftlabError(f"this run has several tasks: say which, predict(texts, task=…), of {listed(tasks)}.")
        if task is not None and task not in tasks:
            raise PeftlabError(
                f"task={task!r}: this run's tasks are {listed(tasks)}."
                if tasks
                else f"task={task!r}: this run has one task. Leave task= out."
            )

    def __repr__(self) -> str:
        figures = (self.record.get("metrics") or {}).get("test", {})
        said = "".join(f", test {k} {v:.4f}" for k, v in figures.items() if isinstance(v, float))
        return f"<run {self.folder} ({self.config.peft.name}{said})>"


def load_run(folder: str | PathLike[str]) -> Run:
    """A finished run from its folder, ``outputs/<name>/<key>``.

    Raises:
        RunError: saying what is missing, and what there is instead; or which module is yours to import.
    """
    try:
        return Run(*finished_run(str(folder)))
    except NotTrusted as error:
        raise RunError(f"the run in '{folder}': {error} Or, in Python: `import {error.module}` before.") from None
    except PeftlabError as error:
        raise error.with_traceback(None) from None  # it is about files and words, which the message names


def _checked(text: Any, number: int, pairs: bool) -> str:
    place = f"text {number} ({FROM_0})"
    both = text if pairs else (text,)
    if pairs and (not isinstance(text, tuple | list) or len(text) != 2):
        raise DataError(f"{place}: the run was trained on pairs of texts; give (first, second), not {text!r}.")
    for part in both:
        if not isinstance(part, str):
            raise DataError(f"{place} is no text but {type(part).__name__} ({part!r}).")
        if not part.strip():
            raise DataError(f"{place}: the text is empty.")
        if (half := half_character(part)) is not None:
            raise DataError(f"{place} holds {half}, one half of a character. Give whole ones.")
    return paired(*text) if pairs else str(text)
