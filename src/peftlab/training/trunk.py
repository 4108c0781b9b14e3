"""``backbone.cache_frozen``: what lies below everything that trains, computed once and given to every step.

Where training reaches down to block k only, what the blocks below it make of a text never changes. It is computed once,
without dropout, kept on the disk (:mod:`peftlab.training.trunk_cache`), and put in the place of block k - 1's output;
the blocks below are passed over. Where only the head trains, as little is kept as it reads: the mean over the text
(``backbone.pooling=mean``), or its first token, if the model's own output says that it reads no other; else all tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from peftlab.peft.adapter import Adapter
from peftlab.training.frozen_blocks import FrozenBlocks, refused

Kept = Literal["mean", "first", "tokens"]
_CLOSE = 1e-4
"""Between outputs computed from what is kept and at once, in units of the largest."""


class FrozenTrunk(FrozenBlocks):
    """The blocks of a backbone below everything that trains.

    Args:
        adapter: with its head, as it trains.
        example: ``input_ids`` and ``attention_mask`` (B, T) of texts of different lengths, on the model's device; what
            is computed from what is kept must equal what is computed at once.
        shapes_alone: the model has no numbers to compare: where a first token might do, all of them are kept.

    Raises:
        PeftlabError: if nothing is frozen below what trains, saying what trains lowest; or if the model's blocks do not
            hand on one tensor alone.
    """

    def __init__(self, adapter: Adapter, example: tuple[Tensor, Tensor], *, shapes_alone: bool = False) -> None:
        super().__init__(adapter, example)
        self.kept: Kept = self._most_kept(example) if shapes_alone else self._least_kept(example)

    # -- computing it --------------------------------------------------------------------------------

    @torch.inference_mode()
    def compute(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What is kept of texts (B, T), without dropout: (B, T, d), (B, 1, d) of first tokens, or (B, d) of means."""
        training = self.backbone.training
        self.backbone.eval()
        try:
            if self.kept == "mean":
                mean: Tensor = self.backbone.text_mean(input_ids, attention_mask)
                return mean
            states = self._states(input_ids, attention_mask)
        finally:
            self.backbone.train(training)
        return states[:, :1] if self.kept == "first" else states

    def _states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The hidden states (B, T, d) that the last frozen block hands on; what lies above is not computed."""

        def leave(_: nn.Module, __: Any, output: Any) -> None:
            raise _Reached(output if isinstance(output, Tensor) else output[0])

        handle = self.blocks[self.count - 1].register_forward_hook(leave)
        try:
            self.backbone(input_ids, attention_mask)
        except _Reached as reached:
            return reached.states
        finally:
            handle.remove()
        raise AssertionError("a backbone runs its blocks")

    @contextmanager
    def given(self, states: Tensor) -> Iterator[None]:
        """Inside, the backbone's forward pass goes on from ``states``, as :meth:`compute` has returned them."""
        if self.kept == "mean":
            with self.backbone.given_mean(states):
                yield
            return
        frozen = self.blocks[: self.count]
        for block in frozen:
            # an attribute of the instance, which no name of a tensor knows of
            object.__setattr__(block, "forward", partial(_hand_on, self._in_tuples))
        object.__setattr__(frozen[-1], "forward", lambda *_, **__: _like(states, self._in_tuples))
        try:
            yield
        finally:
            for block in frozen:
                object.__delattr__(block, "forward")

    # -- how little is kept --------------------------------------------------------------------------

    def _least_kept(self, example: tuple[Tensor, Tensor]) -> Kept:
        self._in_tuples = self._answers_in_tuples(example)
        alone = self.count == len(self.blocks)
        if alone and self.backbone.pools_mean:
            return "mean"
        expected = self.outputs(example)
        ways: tuple[Kept, ...] = ("first", "tokens") if alone else ("tokens",)
        for way in ways:
            self.kept = way
            try:
                with self.given(self.compute(*example)):
                    found = self.outputs(example)
            except (RuntimeError, IndexError, TypeError, ValueError):
                continue
            if found.shape == expected.shape and (found - expected).abs().max() <= _CLOSE * expected.abs().max():
                return way
        raise refused(f"the blocks of {self.backbone.architecture} hand on more than the hidden states of a text")

    def _most_kept(self, example: tuple[Tensor, Tensor]) -> Kept:
        self._in_tuples = self._answers_in_tuples(example)
        return "mean" if self.count == len(self.blocks) and self.backbone.pools_mean else "tokens"

    def stand_in(self, shape: tuple[int, int]) -> Tensor:
        """Zeros in the place of what is kept of a batch of ``shape``, (B, T)."""
        settings: Any = self.backbone.model.config
        width = int(settings.hidden_size)
        return torch.zeros(shape[0], width) if self.kept == "mean" else torch.zeros(*shape, width)

    def _answers_in_tuples(self, example: tuple[Tensor, Tensor]) -> int:
        answers: list[Any] = []
        handle = self.blocks[0].register_forward_hook(lambda _, __, output: answers.append(output))
        try:
            self.outputs(example)
        finally:
            handle.remove()
        return 0 if isinstance(answers[0], Tensor) else len(answers[0])


class _Reached(Exception):
    """No error, but the way out of a forward pass that has come far enough."""

    def __init__(self, states: Tensor) -> None:
        self.states = states


def _hand_on(in_tuples: int, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
    return _like(hidden_states, in_tuples)


def _like(states: Tensor, in_tuples: int) -> Any:
    """``states`` as a block returns them: alone, or first of so many."""
    return (states, *[None] * (in_tuples - 1)) if in_tuples else states
