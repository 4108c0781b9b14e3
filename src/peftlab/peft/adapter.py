"""What a method has put into a model, as a thing that one can hold.

An :class:`Adapter` is all that one method has put into one model: deltas on its layers (:mod:`peftlab.peft.delta`),
modules of its own beside the layers, the backbone's own tensors that it trains, and its hooks. It trains, is saved,
merged, switched off and taken out again as a whole. Those of several methods are one too
(:mod:`peftlab.peft.adapters`).

What it is made of, and its tensors, are in :mod:`peftlab.peft.parts`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from peftlab.errors import PeftlabError
from peftlab.peft.delta import AdaptedLayer, NotMergeable, folded
from peftlab.peft.hf.folder import save_hf_peft
from peftlab.peft.names import clean_name
from peftlab.peft.parts import Parts, Placed, SavedWith
from peftlab.peft.saving import save
from peftlab.peft.surgery import replace_module, require_float, weight_matrix
from peftlab.peft.weight_update import WeightUpdate, slice_name


class Adapter(Parts):
    """All that one method has put into one model; :func:`peftlab.attach` and :func:`peftlab.load_adapter` return one.

    What trains: ``torch.optim.AdamW(adapter.param_groups(lr=1e-3))``. What a method does beside the gradient is called
    by the training loop: :meth:`regularization` adds to the loss, :meth:`on_step` follows each optimizer step.

    Methods make one in ``build``, by :meth:`put`, :meth:`train_own`, :meth:`add` and :meth:`hold`.
    """

    def save(self, folder: str | Path, *, format: Literal["peftlab", "hf_peft"] = "peftlab") -> list[str]:
        """Write what was trained, with what trains beside it, into ``folder``; :func:`peftlab.load_adapter` reads it.

        Args:
            folder: is made if need be; files of an adapter that was saved there before are replaced.
            format: adapter.safetensors and adapter.json, with the method, its fields and the fingerprint of the frozen
                weights; or what HF peft reads, ``PeftModel.from_pretrained(model, folder)``.

        Returns:
            what to know when it is loaded with HF peft; nothing, for peftlab's own format.

        Raises:
            PeftlabError: for another format, a method that HF peft does not have, the folder of a run, a folder that
                cannot be written, or a frozen model whose buffers have changed in training.
        """
        path = Path(folder).expanduser()
        if format not in ("peftlab", "hf_peft"):
            raise PeftlabError(f"format={format!r} is not allowed: it must be 'peftlab' or 'hf_peft'.")
        merged = any(layer.merged & keys for layer, keys in self._by_layer())
        if merged:  # the weights that it belongs to are those without it
            self.unmerge()
        try:
            for handle in self._handles:
                if isinstance(handle, SavedWith):
                    handle.before_saving()
            if format == "hf_peft":
                return save_hf_peft(self, path)
            save(self, path)
        finally:
            if merged:
                self.merge()
        return []

    # -- training ------------------------------------------------------------------------------------

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Optimizer groups over all that trains, the head included."""
        return self.strategy.param_groups(self, lr)

    def regularization(self, step: int, total: int) -> Tensor | None:
        """The method's own term of the loss (a scalar), if it has one."""
        return self.strategy.regularization(self, step, total)

    def on_step(self, step: int, total: int) -> None:
        """To be called after each optimizer step, while its gradients are still there."""
        self.strategy.on_step(self, step, total)

    def over_budget(self) -> int | None:
        """Components that the method still has to prune; None for one without a budget."""
        return self.strategy.over_budget(self)

    def load_source(self, fingerprint: str) -> None:
        """Before training: load what the method starts from, if that is an earlier run.

        Not called when a trained adapter is loaded, which replaces it all.

        Args:
            fingerprint: of the frozen weights, as the earlier run's ``adapter.json`` says its own.

        Raises:
            PeftlabError: if the earlier run does not fit.
        """

    def keep_task(self, task: int) -> None:
        """Leave in the model what the texts of one of several tasks need."""

    # -- merging, switching off, taking out ----------------------------------------------------------

    def merge(self) -> None:
        """Fold the adapter into the backbone's weights, for inference without extra cost; nothing if it is there.

        A copy of every adapted weight is kept on the CPU, as large as these weights, so that :meth:`unmerge` is exact
        to the bit; :meth:`merge_and_remove` needs none.

        Raises:
            PeftlabError: if there is nothing to fold, or it cannot be done, with the reason; nothing is changed then.
        """
        self._require_mergeable()
        done: list[tuple[AdaptedLayer, frozenset[str]]] = []
        try:
            for layer, keys in self._by_layer():
                done.append((layer, layer.merged))
                layer.fold(layer.merged | keys)
        except BaseException as error:
            for layer, before in done:
                layer.fold(before)
            if isinstance(error, NotMergeable):
                raise self._not_mergeable(str(error)) from error
            raise

    def unmerge(self) -> None:
        """Put the very weights back that were there before :meth:`merge`; nothing if it was not called."""
        self._require_mergeable()
        for layer, keys in self._by_layer():
            layer.fold(layer.merged - keys)

    def merge_and_remove(self) -> None:
        """Fold the adapter into the weights for good and take it out, a layer at a time: a plain model is left.

        Raises:
            PeftlabError: as :meth:`merge`.
        """
        self._require_mergeable()
        for layer, keys in self._by_layer():
            layer.fold(layer.merged | keys)
            for placed in [placed for placed in self.placed() if placed.layer is layer]:
                self._take_out(placed)
        self._placed = []
        self.remove()

    def _require_mergeable(self) -> None:
        supports = self.strategy.supports
        if supports.adds_nothing:
            raise PeftlabError(nothing_to_merge(self.strategy.name))
        if not supports.mergeable:
            reason = ""
            for placed in self.placed()[:1]:  # the delta knows why
                try:
                    placed.delta.folded(weight_matrix(placed.layer.base), placed.layer.bias)
                except NotMergeable as error:
                    reason = str(error)
            raise self._not_mergeable(reason)
        layers = list(self._by_layer())
        users: dict[int, list[nn.Module]] = {}
        for module in self.model.modules():
            for parameter in module.parameters(recurse=False):
                users.setdefault(id(parameter), []).append(module)
        names = {id(module): name for name, module in self.model.named_modules()}
        for placed in self.placed():
            require_float(placed.name, placed.layer.base)
        for layer, _ in layers:
            others = [
                user
                for user in users.get(id(layer.weight), [])
                if user is not layer.base and not _only_holds(names[id(user)], layer)
            ]
            if others:
                raise PeftlabError(
                    f"'{clean_name(self.model, names[id(layer)])}' shares its weight with '{names[id(others[0])]}', "
                    "which a merged update would change as well. Use this adapter unmerged, or leave it out of "
                    "peft.targets."
                )

    def _not_mergeable(self, reason: str) -> PeftlabError:
        said = f"'{self.strategy.name}' cannot be merged into the backbone's weights"
        return PeftlabError(f"{said}: {reason}" if reason else f"{said}.")

    def _by_layer(self) -> Iterator[tuple[AdaptedLayer, frozenset[str]]]:
        """Each layer that it stands on, and the keys of its deltas there."""
        found: dict[int, tuple[AdaptedLayer, set[str]]] = {}
        for placed in self.placed():
            found.setdefault(id(placed.layer), (placed.layer, set()))[1].add(placed.key)
        return ((layer, frozenset(keys)) for layer, keys in found.values())

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, the model computes what it computed before the adapter came, but for its head.

        Raises:
            PeftlabError: if the adapter trains the backbone's own tensors, so that there is no way back to them.
        """
        self._require_something_to_switch_off()
        with ExitStack() as off:
            for layer, keys in self._by_layer():
                off.enter_context(layer.without(keys))
            yield

    def _require_something_to_switch_off(self) -> None:
        own, adds = self.own_names(), self._adds()
        if own and adds:
            raise PeftlabError(
                f"peft={self.strategy.name} trains the backbone's own '{own[0]}'"
                f"{f' (and {len(own) - 1} more)' if len(own) > 1 else ''} beside what it adds: that cannot be switched "
                "off as the rest can. Train without it for that (peft.bias=none; of a composition, leave out the "
                "method that trains it)."
            )
        if not adds:
            raise PeftlabError(
                f"peft={self.strategy.name} changes the backbone itself: there is no adapter to switch off."
            )

    def _adds(self) -> bool:
        """Whether it adds anything to the model."""
        return bool(self.placed() or self.modules()) or self.num_added() > 0

    def remove(self) -> None:
        """Take it out of the model: layers stand where they stood, merged ones with the update in their weights.

        The backbone's own tensors that it trained keep what they have learned.
        """
        for placed in self.placed():
            self._take_out(placed)
        for name in self.modules():
            parent, _, child = name.rpartition(".")
            delattr(self.model.get_submodule(parent), child)
        self._placed, self._modules = [], {}
        self._let_go()

    def _let_go(self) -> None:
        """Remove what :meth:`hold` has kept."""
        held, self._handles = self._handles, []
        for handle in held:
            handle.remove()

    def _take_out(self, placed: Placed) -> None:
        placed.layer.drop(placed.key)
        if not placed.layer.deltas:
            layer = placed.layer
            replace_module(self.model, placed.name, layer.base)  # which may have been dequantised meanwhile
            for name in placed.also:
                other = layer.stands_for[name]
                other.weight = layer.base.weight
                replace_module(self.model, name, other)

    def __repr__(self) -> str:
        beside = f" beside {', '.join(self.beside)}" if self.beside else ""
        return f"<adapter of {self.strategy!r} in {type(self.model).__name__}: {self.num_parameters():,} train{beside}>"

    # -- for those who look into it ------------------------------------------------------------------

    @torch.no_grad()
    def weight_updates(self) -> Iterator[WeightUpdate] | None:
        """What it changes of each weight matrix, while it is not merged; None if its deltas change none.

        Where deltas share rows, what they change together.
        """
        if not self.placed():
            return None
        try:
            return iter([update for layer, _ in self._by_layer() for update in self._updates_of(layer)])
        except NotMergeable:
            return None

    def _updates_of(self, layer: AdaptedLayer) -> Iterator[WeightUpdate]:
        mine = [placed for placed in self.placed() if placed.layer is layer]
        weight = weight_matrix(layer.base).detach()
        if len(mine) > 1 and any(placed.delta.rows is None for placed in mine):
            changed = weight.float()
            for placed in mine:
                changed, _ = folded(placed.delta, changed, None)
            yield WeightUpdate(mine[0].name, weight, changed - weight.float())
            return
        for placed in mine:
            rows = weight[placed.delta.rows or slice(None)]
            yield WeightUpdate(slice_name(placed.name, placed.key), rows, placed.delta.update(rows))


def nothing_to_merge(method: str) -> str:
    """Why the adapter of a method that adds nothing is not merged."""
    return (
        f"'{method}' trains the backbone's own tensors and adds none: there is nothing to merge, and the model already "
        "costs what the backbone costs."
    )


def _only_holds(name: str, layer: AdaptedLayer) -> bool:
    """Whether the module ``name`` keeps a table for others, which all are ``layer``, and is never called itself."""
    return len(layer.stands_for) > 1 and name.rpartition(".")[2] == "shared"
