"""``backbone.cache_frozen``: what lies below everything that trains, computed once and given to every step.

Where training reaches down to block k only, what the blocks below it make of a text never changes. It is computed once,
without dropout, kept on the disk (:mod:`peftlab.training.trunk_cache`), and put in the place of block k - 1's output;
the blocks below are passed over. Where only the head trains, as little is kept as it reads: the mean over the text
(``backbone.pooling=mean``), or its first token, if the model's own output says that it reads no other; else all tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from peftlab.backbones.base import Backbone
from peftlab.errors import PeftlabError
from peftlab.peft.adapter import Adapter
from peftlab.peft.last_layers import transformer_blocks

Kept = Literal["mean", "first", "tokens"]
_CLOSE = 1e-4
"""Between outputs computed from what is kept and at once, in units of the largest."""


class FrozenTrunk:
    """The blocks of a backbone below everything that trains.

    Args:
        adapter: with its head, as it trains.
        example: ``input_ids`` and ``attention_mask`` (B, T) of texts of different lengths, on the model's device; what
            is computed from what is kept must equal what is computed at once.

    Raises:
        PeftlabError: if nothing is frozen below what trains, saying what trains lowest; or if the model's blocks do not
            hand on one tensor alone.
    """

    def __init__(self, adapter: Adapter, example: tuple[Tensor, Tensor]) -> None:
        self.backbone: Backbone = adapter.backbone
        try:
            self.place, blocks = transformer_blocks(self.backbone)
        except PeftlabError as error:
            raise _refused(f"{str(error).partition(': ')[2] or error}") from error
        self.blocks: Sequence[nn.Module] = list(blocks)
        self.count = self._frozen_blocks(adapter, example)
        """Blocks that are computed once."""
        self.kept: Kept = self._least_kept(example)

    @property
    def about(self) -> str:
        """For people: ``the first 4 of 6 blocks``."""
        all_of = len(self.blocks)
        return f"all {all_of} blocks" if self.count == all_of else f"the first {self.count} of {all_of} blocks"

    # -- what is frozen ------------------------------------------------------------------------------

    def _frozen_blocks(self, adapter: Adapter, example: tuple[Tensor, Tensor]) -> int:
        config: Any = getattr(self.backbone.model, "config", None)
        if getattr(config, "is_encoder_decoder", False) or getattr(config, "summary_type", None) == "last":
            raise _refused(f"{self.backbone.architecture} has no one stack of blocks that reads a text as it is")
        head = {name for name, _ in self.backbone.head_parameters()}
        trained = [n for n, p in self.backbone.model.named_parameters() if p.requires_grad and n not in head]
        inside = {name: self._block_of(name) for name in trained}
        beside = [name for name, block in inside.items() if block is None]
        lower = self._before_the_last_block(beside, example)
        lowest = min((block for block in inside.values() if block is not None), default=len(self.blocks))
        if lower or lowest == 0:
            name = lower[0] if lower else next(name for name, block in inside.items() if block == 0)
            raise _refused(
                f"peft={adapter.strategy.name} trains '{name}', and below it nothing is frozen that could be computed "
                "once"
            )
        return lowest

    def _block_of(self, name: str) -> int | None:
        rest = name.removeprefix(f"{self.place}.")
        return int(rest.partition(".")[0]) if rest != name else None

    def _before_the_last_block(self, names: list[str], example: tuple[Tensor, Tensor]) -> list[str]:
        """Of parameters outside of blocks and head those that are read before the last block, or outside of a call."""
        if not names:
            return []
        called: list[str] = []
        with ExitStack() as hooks:
            for name in names:
                owner = self.backbone.model.get_submodule(name.rpartition(".")[0])
                handle = owner.register_forward_pre_hook(lambda *_, name=name: called.append(name))
                hooks.callback(handle.remove)
            last = self.blocks[-1].register_forward_pre_hook(lambda *_: called.clear())
            hooks.callback(last.remove)
            self._outputs(example)
        return [name for name in names if name not in called]

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
        expected = self._outputs(example)
        ways: tuple[Kept, ...] = ("first", "tokens") if alone else ("tokens",)
        for way in ways:
            self.kept = way
            try:
                with self.given(self.compute(*example)):
                    found = self._outputs(example)
            except (RuntimeError, IndexError, TypeError, ValueError):
                continue
            if found.shape == expected.shape and (found - expected).abs().max() <= _CLOSE * expected.abs().max():
                return way
        raise _refused(f"the blocks of {self.backbone.architecture} hand on more than the hidden states of a text")

    def _answers_in_tuples(self, example: tuple[Tensor, Tensor]) -> int:
        answers: list[Any] = []
        handle = self.blocks[0].register_forward_hook(lambda _, __, output: answers.append(output))
        try:
            self._outputs(example)
        finally:
            handle.remove()
        return 0 if isinstance(answers[0], Tensor) else len(answers[0])

    @torch.inference_mode()
    def _outputs(self, example: tuple[Tensor, Tensor]) -> Tensor:
        training = self.backbone.training
        self.backbone.eval()
        try:
            outputs: Tensor = self.backbone(*example)
            return outputs.float()
        finally:
            self.backbone.train(training)


class _Reached(Exception):
    """No error, but the way out of a forward pass that has come far enough."""

    def __init__(self, states: Tensor) -> None:
        self.states = states


def _hand_on(in_tuples: int, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
    return _like(hidden_states, in_tuples)


def _like(states: Tensor, in_tuples: int) -> Any:
    """``states`` as a block returns them: alone, or first of so many."""
    return (states, *[None] * (in_tuples - 1)) if in_tuples else states


def _refused(reason: str) -> PeftlabError:
    return PeftlabError(
        f"backbone.cache_frozen=true: {reason}. Set backbone.cache_frozen=false, or train the top alone: peft=head, "
        "peft=last_layers, or peft.targets=[…] of the last blocks."
    )
