"""``trainer.compile``: the backbone with its adapter as one compiled program.

Nothing is wrapped or renamed: modules, names of tensors and files are what they are without it. Lengths are symbols, so
that one program does for all of them; training and evaluation have one each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peftlab.backbones.base import Backbone
from peftlab.errors import PeftlabError


def compile_backbone(backbone: Backbone, *, deterministic: bool, backend: str = "inductor") -> None:
    """Let the network of ``backbone`` be compiled when it is first called.

    Args:
        backbone: with the adapter in it.
        backend: torch's name of what makes the program.
        deterministic: choose kernels by rules, and not by timing them, which may choose others the next time.
    """
    import torch._inductor.config as inductor

    if deterministic and hasattr(inductor, "deterministic"):
        inductor.deterministic = True
    backbone.network().compile(dynamic=True, backend=backend)


@contextmanager
def compiling(name: str) -> Iterator[None]:
    """Around the call of what may be compiled: say what stands in the way.

    Raises:
        PeftlabError: if it cannot be compiled, with the reason.
    """
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise PeftlabError(
            f"trainer.compile=true: {name} cannot be compiled here: {lines[0] if lines else type(error).__name__} "
            "torch.compile needs a C++ compiler (on a GPU Triton as well). Set trainer.compile=false."
        ) from error
