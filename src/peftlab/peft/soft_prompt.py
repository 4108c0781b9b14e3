"""What the methods that put trained vectors among the token embeddings share.

    x' = [P ; E(x)]        P (n, d), E(x) (T, d)                    position=before
    x' = [E(x₁) ; P ; E(x₂ … x_T)]                                  position=after_first

The text's own tokens stay where they are among themselves; n places of the model's positions are used up.
How the vectors reach the model is told in :mod:`peftlab.backbones.soft_prompt`.

``auto`` is ``after_first`` for encoders, whose head reads the first token: so ``[CLS]`` stays in the place
that the pretrained pooler knows. Decoders, and T5, which has no such token, get the prompt in front. HF peft
always puts it in front, and its encoders then classify from the first prompt vector: ``before`` does the same.
With ``backbone.pooling=mean`` the mean is over the text's tokens, not the prompt. T5's classifier reads the
text in its encoder and once more in its decoder: the prompt, as a part of the text, stands in both.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from peftlab.backbones.base import Target
from peftlab.errors import PeftlabError
from peftlab.fields import PositiveInt
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import PEFTStrategy, Selection, Supports
from peftlab.peft.surgery import adapter_generator

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone

PLACE = "soft_prompt"
"""The name that the generator of a prompt's start is derived from."""


@dataclass(kw_only=True)
class SoftPrompt(PEFTStrategy):
    """Base of the methods that train vectors among the token embeddings."""

    supports = Supports(identity_at_start=False)

    length: PositiveInt = 20
    """Prompt vectors n; each takes one of the model's positions from the text."""
    position: Literal["auto", "before", "after_first"] = "auto"
    """Where the prompt stands: in front of the text (as HF peft), behind its first token, or auto: behind an encoder's
    [CLS], else in front."""

    @abstractmethod
    def vectors(self, backbone: Backbone, generator: torch.Generator) -> nn.Module:
        """The trainable module that returns the prompt's vectors (rows, d), drawn from ``generator`` on the CPU."""

    def select(self, backbone: Backbone) -> Selection:
        """The token embedding, which answers the prompt's ids with its vectors."""
        embedding = backbone.token_embedding()  # refuses a backbone that reads no sequence
        name = next(name for name, module in backbone.model.named_modules() if module is embedding)
        return Selection(backbone, targets=[Target(name, embedding, role=None)])

    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> PromptAdapter:
        """Make the vectors and let every text be read with them."""
        backbone = selection.backbone
        weight = embedding_weight(backbone)
        vectors = self.vectors(backbone, adapter_generator(seed, PLACE)).to(weight.device)
        vectors.train(backbone.model.training)
        backbone.add_soft_prompt(
            vectors, length=self.length, position=self.position, task=self.chosen_task(), tasks=self.task_count()
        )
        return self.adapter(backbone, vectors)

    def adapter(self, backbone: Backbone, vectors: nn.Module) -> PromptAdapter:
        """The adapter of ``vectors``, which stand in the model."""
        return PromptAdapter(self, backbone, vectors)

    def extra_tokens(self) -> int:
        """The prompt's length."""
        return self.length

    def chosen_task(self) -> int:
        """Which of several tasks' prompts the texts are read with."""
        return 0

    def task_count(self) -> int:
        """Tasks that have a prompt of their own."""
        return 1

    def closed_form(self, backbone: Backbone) -> int:
        """Trainable parameters without the head."""
        return self.trainable(embedding_weight(backbone).shape[1])

    @abstractmethod
    def trainable(self, dim: int) -> int:
        """Trainable parameters without the head, for word vectors of ``dim`` dimensions."""

    def inference_prompt(self, vectors: nn.Module) -> dict[str, Tensor]:
        """What is needed to use the trained prompt, without what trained it: ``prompt_embeddings`` (n, d)."""
        was_training = vectors.training
        vectors.eval()  # no dropout inside an encoder of the prompt
        try:
            with torch.no_grad():
                return {"prompt_embeddings": vectors()}
        finally:
            vectors.train(was_training)

    def load_inference_prompt(self, vectors: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`inference_prompt` returned.

        Raises:
            PeftlabError: if a tensor is missing or misshapen.
        """
        copy_tensors(dict(vectors.named_parameters()), tensors)


class PromptAdapter(Adapter):
    """A soft prompt in a model."""

    def __init__(self, strategy: SoftPrompt, backbone: Backbone, vectors: nn.Module) -> None:
        super().__init__(strategy, backbone)
        self.vectors = vectors
        self.own_module(next(name for name, module in self.model.named_modules() if module is vectors), vectors)

    def inference_prompt(self) -> dict[str, Tensor]:
        """See :meth:`SoftPrompt.inference_prompt`."""
        assert isinstance(self.strategy, SoftPrompt)
        return self.strategy.inference_prompt(self.vectors)

    def load_inference_prompt(self, tensors: Mapping[str, Tensor]) -> None:
        """See :meth:`SoftPrompt.load_inference_prompt`."""
        assert isinstance(self.strategy, SoftPrompt)
        self.strategy.load_inference_prompt(self.vectors, tensors)

    def _require_mergeable(self) -> None:
        raise PeftlabError(
            f"'{self.strategy.name}' cannot be merged: its prompt is a part of the model's input, and no weight of the "
            "backbone stands for it. Use the model with its adapter."
        )

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, texts are read without the prompt."""
        with self.backbone.without_soft_prompt():
            yield

    def remove(self) -> None:
        """Take the prompt out of the model."""
        self.backbone.remove_soft_prompt()
        self._modules = {}
        self._let_go()


@dataclass(kw_only=True)
class InitialisedSoftPrompt(SoftPrompt):
    """Base of those whose vectors may start from words."""

    init: Literal["random", "vocabulary", "text"] = "vocabulary"
    """What the prompt starts from: uniform(-0.5, 0.5), the embeddings of randomly chosen tokens, or those of
    ``init_text``."""
    init_text: str | None = None
    """Words to start from with init=text, repeated or cut to the length."""

    def __post_init__(self) -> None:
        """Raise ValueError where init and init_text contradict each other."""
        if self.init == "text" and not (self.init_text or "").strip():
            raise ValueError("peft.init=text needs words to start from: give peft.init_text, or another peft.init.")
        if self.init != "text" and self.init_text is not None:
            raise ValueError(
                f"peft.init_text has no effect with peft.init={self.init}. Set peft.init=text, or peft.init_text=null."
            )

    def initial_vectors(self, backbone: Backbone, generator: torch.Generator) -> Tensor:
        """Vectors (n, d) to start from, float32."""
        embedding = backbone.token_embedding()
        weight = embedding_weight(backbone)
        if self.init == "random":
            return torch.rand(self.length, weight.shape[1], generator=generator) - 0.5
        if self.init == "text":
            ids = _text_ids(backbone, self.init_text or "")
        else:
            order: list[int] = torch.randperm(weight.shape[0], generator=generator).tolist()
            ids = _words(backbone, order, self.length)
        repeated = [ids[index % len(ids)] for index in range(self.length)]
        with torch.no_grad():
            vectors: Tensor = embedding(torch.tensor(repeated, device=weight.device))
            return vectors.float().clone()


class PromptVectors(nn.Module):
    """A prompt that is its own parameter."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.prompt_embeddings = nn.Parameter(start)  # (n, d)

    def forward(self) -> Tensor:
        """(n, d)."""
        return self.prompt_embeddings


def embedding_weight(backbone: Backbone) -> Tensor:
    """The token embedding's weight (vocabulary, d).

    Raises:
        BackboneError: if the backbone reads no sequence.
    """
    weight = backbone.token_embedding().weight
    assert isinstance(weight, Tensor)
    return weight


def copy_tensors(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Copy ``given`` into the tensors of the same names.

    Raises:
        PeftlabError: naming the first tensor that is missing or misshapen.
    """
    for name, tensor in own.items():
        if name not in given:
            raise PeftlabError(f"the prompt does not fit: '{name}' is missing.")
        if given[name].shape != tensor.shape:
            raise PeftlabError(
                f"the prompt does not fit: '{name}' is {tuple(given[name].shape)}, and {tuple(tensor.shape)} in the "
                "model. It was trained with another length, task count, rank or backbone."
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(given[name])


def fresh_linear(in_features: int, out_features: int, generator: torch.Generator) -> nn.Linear:
    """A float32 linear layer with torch's usual start, uniform(± 1/√in), drawn from ``generator`` alone."""
    # Made on "meta": nn.Linear would draw from the global random state.
    layer = nn.Linear(in_features, out_features, device="meta", dtype=torch.float32).to_empty(device="cpu")
    bound = in_features**-0.5
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer


def _text_ids(backbone: Backbone, text: str) -> list[int]:
    """Ids of the words of ``text``, without special tokens."""
    ids = backbone.tokenizer.encode([text], max_length=1_000_000)[0]
    words = _words(backbone, ids, len(ids))
    if not words:
        raise PeftlabError(f"peft.init_text={text!r} has no word that this backbone's tokenizer knows. Give another.")
    return words


def _words(backbone: Backbone, ids: list[int], most: int) -> list[int]:
    """The first ``most`` of ``ids`` that stand for text: special and unknown tokens decode to nothing."""
    found: list[int] = []
    for token in ids:
        if len(found) == most:
            break
        if _stands_for_text(backbone, token):
            found.append(token)
    return found


def _stands_for_text(backbone: Backbone, token: int) -> bool:
    try:
        return backbone.tokenizer.decode([token]) != ""
    except PeftlabError:  # there is no tokenizer
        raise
    except (ValueError, IndexError, OverflowError):  # the model embeds more ids than the tokenizer makes
        return False
