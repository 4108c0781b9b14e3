"""The adapters of several methods on one model, held as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from torch import Tensor, nn

from peftlab.errors import PeftlabError
from peftlab.peft.adapter import Adapter, nothing_to_merge
from peftlab.peft.base import PEFTStrategy
from peftlab.peft.parts import Placed
from peftlab.peft.weight_update import WeightUpdate

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone


class Adapters(Adapter):
    """The adapters of several methods on one model, as one."""

    def __init__(self, strategy: PEFTStrategy, backbone: Backbone, parts: Sequence[Adapter]) -> None:
        super().__init__(strategy, backbone)
        self.parts = list(parts)

    def methods(self) -> list[str]:
        """Those of all parts."""
        return [method for part in self.parts for method in part.methods()]

    def placed(self) -> list[Placed]:
        """Those of all parts."""
        return [placed for part in self.parts for placed in part.placed()]

    def own_names(self) -> list[str]:
        """Those of all parts."""
        return [name for part in self.parts for name in part.own_names()]

    def modules(self) -> dict[str, nn.Module]:
        """Those of all parts."""
        return {name: module for part in self.parts for name, module in part.modules().items()}

    def own_ids(self) -> set[int]:
        """Those of all parts."""
        return set().union(*(part.own_ids() for part in self.parts))

    def adapted_weights(self) -> list[nn.Parameter]:
        """Those of all parts, each once."""
        return list({id(weight): weight for part in self.parts for weight in part.adapted_weights()}.values())

    def frozen_state(self) -> dict[str, Tensor]:
        """That of all parts."""
        return {name: tensor for part in self.parts for name, tensor in part.frozen_state().items()}

    def load_source(self, fingerprint: str) -> None:
        """Let each part load what it starts from."""
        for part in self.parts:
            part.load_source(fingerprint)

    def keep_task(self, task: int) -> None:
        """Let each part keep its own of it."""
        for part in self.parts:
            part.keep_task(task)

    def _adding(self) -> list[Adapter]:
        """The parts that add something, so that there is something to merge."""
        return [part for part in self.parts if not part.strategy.supports.adds_nothing]

    def merge(self) -> None:
        """Merge the parts that add something; all of them or, if one refuses, none."""
        self._require_mergeable()
        done: list[Adapter] = []
        try:
            for part in self._adding():
                part.merge()
                done.append(part)
        except BaseException:
            for part in done:
                part.unmerge()
            raise

    def unmerge(self) -> None:
        """Undo :meth:`merge`."""
        self._require_mergeable()
        for part in self._adding():
            part.unmerge()

    def merge_and_remove(self) -> None:
        """Fold the parts that add something for good, and take all of them out."""
        self._require_mergeable()
        for part in self.parts:
            if part in self._adding():
                part.merge_and_remove()
            else:
                part.remove()
        self._let_go()

    def _require_mergeable(self) -> None:
        fixed = [part.strategy for part in self._adding() if not part.strategy.supports.mergeable]
        if fixed:
            raise PeftlabError(
                f"'{self.strategy.name}' cannot be merged, as '{fixed[0].name}' cannot: it is no change of the "
                "backbone's weights alone. Use the model with its adapter."
            )
        if not self._adding():
            raise PeftlabError(nothing_to_merge(self.strategy.name))
        for part in self._adding():
            part._require_mergeable()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """All parts off that add something; the others must not train the backbone's own tensors."""
        self._require_something_to_switch_off()
        with ExitStack() as off:
            for part in self.parts:
                if part._adds():
                    off.enter_context(part.disabled())
            yield

    def remove(self) -> None:
        """Take all parts out."""
        for part in self.parts:
            part.remove()
        self._let_go()

    def weight_updates(self) -> Iterator[WeightUpdate] | None:
        """What the parts say of their own; None if none of them says anything."""
        said = [update for part in self.parts for update in part.weight_updates() or ()]
        return iter(said) if said else None
