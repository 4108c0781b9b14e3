"""What a run has forgotten of general text: how well its model still foretells texts that it was not tuned on.

    forgetting = loss a token with what was trained - loss without it          in nats; positive: foretold worse

The texts are a file of the user's (``probe={file: FILE}``, a part of the run, or ``peftlab inspect RUN --probe FILE``
of a finished one), read as ``data=text`` reads them, each token once, behind a begin token. Without: the adapter is
switched off, which is the untrained model to the bit; where a method has trained the backbone's own weights these are
built anew.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from typing import Any

from peftlab.config import RunConfig
from peftlab.data.base import Splits
from peftlab.data.probe_texts import ProbeTexts
from peftlab.errors import BackboneError, PeftlabError, RunError
from peftlab.records.folder import RunFolder
from peftlab.runs.assemble import Assembled, as_it_began
from peftlab.runs.evaluate import measure
from peftlab.training.precision import into_precision

_SHOWN = ("loss", "perplexity", "token_accuracy", "tokens")


@dataclass(frozen=True)
class Probe:
    """Figures of texts, with what a run has trained and without."""

    file: str
    sha256: str
    """Of the file."""
    texts: int
    max_length: int
    trained: dict[str, Any]
    untrained: dict[str, Any] | None
    """None: the method can neither be switched off nor taken back."""
    untrained_is: str
    """How that was made, or why it was not."""

    @property
    def forgetting(self) -> float | None:
        """Nats a token that the trained model is worse by."""
        return None if self.untrained is None else float(self.trained["loss"] - self.untrained["loss"])

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"forgetting": self.forgetting}


def require_probing(texts: ProbeTexts, config: RunConfig, assembled: Assembled, key: str = "probe") -> Splits:
    """The texts, read: whatever speaks against measuring them is said before anything is trained.

    Args:
        texts: what to read.
        config: the run's.
        assembled: its model.
        key: where the user named them, for errors.

    Raises:
        DataError: for a file, or a row of it, that cannot be used.
        RunError: if it is no language model's run, or its method leaves plain texts alone.
        BackboneError: if a window is longer than the model has positions for.
    """
    option = key.startswith("--")
    if not assembled.backbone.says_next_tokens:
        raise RunError(
            f"{key}: this is no language model's run, and foretells no texts. Probe a run of data=instructions, "
            "multiple_choice or text."
        )
    if config.peft.acts_on_prompts():
        raise RunError(
            f"{key}: peft={config.peft.name} edits prompts and leaves what a model says alone; a plain text has no "
            "prompt, so that nothing would differ."
        )
    try:
        assembled.backbone.check_length(texts.max_length, extra_tokens=config.peft.extra_tokens())
    except BackboneError as error:  # which says what fits, by the name that trains have for it
        name = f"{key}-length" if option else f"{key}.max_length"
        raise BackboneError(str(error).replace("data.max_length", name)) from None
    return texts.splits(key if option else f"{key}.file")


def probe(
    folder: RunFolder, config: RunConfig, assembled: Assembled, texts: ProbeTexts, *, key: str = "probe"
) -> Probe:
    """How well the run's model foretells ``texts``, and how well it did.

    Args:
        folder: the run's.
        config: the run's.
        assembled: its model, trained; it is as it was afterwards.
        texts: what to read.
        key: where the user named them, for errors.

    Raises:
        PeftlabError: as :func:`require_probing` does.
    """
    splits = require_probing(texts, config, assembled, key)
    one_device = replace(
        config.trainer,
        devices=1, num_nodes=1, strategy="auto", progress_bar=False, monitor=None, compile=False, label_smoothing=0.0,
    )  # fmt: skip
    probing = replace(config, data=texts.data_set(config.data.eval_batch_size), trainer=one_device)

    def figures(model: Assembled) -> dict[str, Any]:
        found = measure(probing, model, splits, splits.test, folder)
        return {name: found[name] for name in _SHOWN if name in found}

    trained = figures(assembled)
    untrained, said = _untrained(folder, config, assembled, figures)
    sha256 = hashlib.sha256(texts.path().read_bytes()).hexdigest()
    return Probe(texts.file, sha256, len(splits.test), texts.max_length, trained, untrained, said)


def _untrained(folder: RunFolder, config: RunConfig, assembled: Assembled, figures: Any) -> tuple[Any, str]:
    """Figures of the untrained model, and what it is."""
    if assembled.adapter.strategy.supports.adds_nothing:
        began, _ = as_it_began(folder, config)
        into_precision(began.backbone, config.trainer.precision)
        return figures(began), "the backbone's weights, built anew"
    try:
        with assembled.adapter.disabled():
            return figures(assembled), "the adapter switched off"
    except PeftlabError as error:
        return None, str(error)
