"""Plain texts, in windows: what a language model's perplexity is measured on, and what it is trained on further.

How a text is cut into windows is told in :class:`peftlab.data.target_rows.TextRows`. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from peftlab.data.base import Splits, Texts
from peftlab.data.instructions import LENGTHS
from peftlab.data.labels import to_texts
from peftlab.data.own_files import LanguageFiles
from peftlab.data.readers import read_table
from peftlab.data.splits import assemble, test_or_hold_out
from peftlab.errors import DataError
from peftlab.fields import Fraction, PositiveInt, added, own_files
from peftlab.objectives.base import ObjectiveName
from peftlab.objectives.causal_lm import NAMES
from peftlab.raw_rows import RawRows

if TYPE_CHECKING:
    from peftlab.backbones.base import Tokenizer
    from peftlab.data.target_rows import TextRows


@dataclass(kw_only=True)
class PlainText(LanguageFiles):
    """csv, tsv, jsonl or parquet files with a column of texts, every token of which is learned."""

    path: str | None = own_files()
    """A folder of train.*, validation.*, test.*, or one file; instead of ``train``, ``validation`` and ``test``."""
    train: str | None = own_files()
    """File of training texts."""
    validation: str | None = own_files()
    """File of validation texts; null: ``val_fraction`` of train."""
    test: str | None = own_files()
    """File of test texts; null: ``holdout_fraction`` of train."""
    hub: dict[str, Any] | None = added(None)
    """A set of the hub instead of files: {id: namespace/name, config: null, revision: main, train: train, validation:
    null, test: null}; the last three are its splits, and one that is null is held out of train."""
    text_column: str = "text"
    """Column (or JSON key) of the text."""
    stride: PositiveInt | None = None
    """Tokens that each window but a text's first adds, of the ``max_length`` that it reads; null: all but one. Fewer
    have more before them: a lower perplexity, and more to compute."""
    begin: Literal["tokenizer", "bos"] = added("tokenizer")
    """What stands in front of every text and is no target: ``tokenizer``, what it writes there, if anything; ``bos``,
    its begin token or else its end token, also where it writes none, as lm-evaluation-harness has it."""
    batch_size: PositiveInt = 8
    """Rows in a training batch (micro-batch) of each process; with ``global_batch_size``, the most that a process
    computes at once."""
    eval_batch_size: PositiveInt = 16
    """Rows in a batch of each process, in validation and test."""
    packing: bool = False
    """Let the texts of a training batch stand behind each other in rows of at most ``max_length`` tokens, without
    seeing each other: the same steps, with less padding."""
    holdout_fraction: Fraction = 0.2
    """Share of train held out as test when no test file is given."""
    objective: ObjectiveName = "causal_lm"
    """What is learned: always ``causal_lm``, every token, from those before it."""

    def __post_init__(self) -> None:
        """Raise ValueError for windows that leave tokens out."""
        if self.truncation != "head":
            raise ValueError(LENGTHS)
        self._require_one_source()
        if self.stride is not None and self.stride >= self.max_length:
            raise ValueError(
                f"data.stride={self.stride} is not below data.max_length={self.max_length}: a window reads a token "
                "before the first that it says. Set data.stride lower, or to null."
            )

    def tells_prompts(self) -> bool:
        """A text is all that it learns to say."""
        return False

    def load(self) -> Splits:
        """Read the files, and hold out the splits that are not given."""
        files, facts = self._sources([self.text_column])
        texts = {split: self._read(split, file) for split, file in files.items()}
        train, test, held_out = test_or_hold_out(self, self.holdout_fraction, texts, self._title("train", files))
        return assemble(
            self,
            train=train,
            validation=texts.get("validation"),
            test=test,
            label_names=NAMES,
            train_kind=self._kind("train", files, len(texts["train"]), "texts"),
            test_kind=held_out or self._kind("test", files, len(test), "texts"),
            provenance={"source": "plain texts"} | facts,
        )

    def texts_of(self, split: str) -> Texts:
        """The texts of the file of ``split``, all of them, in its order.

        Raises:
            DataError: naming file and row of what cannot be used.
        """
        return self._read(split, self._split_files()[split])

    def row_encoder(self, tokenizer: Tokenizer, *, training: bool = False) -> TextRows:
        """See :meth:`DataSet.row_encoder`."""
        from peftlab.data.target_rows import TextRows, begin_token, language_tokenizer

        known = language_tokenizer(tokenizer)
        return TextRows(known, self.stride, [begin_token(known)] if self.begin == "bos" else None)

    def columns(self, task: str | None = None) -> tuple[str, str | None]:
        """See :meth:`DataSet.columns`."""
        return self.text_column, None

    def _read(self, split: str, file: Path) -> Texts:
        try:
            table = read_table(file, self.text_column, None)
            found = to_texts(table, _NoLabels())
            return Texts(found.texts, found.labels, [table.place(row) for row in range(len(found))])
        except DataError as error:
            raise DataError(f"{self._key(split)}: {error}") from None


class _NoLabels:
    """Of texts that have none."""

    names = NAMES

    def read(self, table: RawRows, row: int) -> None:
        """Nothing."""
