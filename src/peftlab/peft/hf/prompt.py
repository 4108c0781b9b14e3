"""Soft prompts in HF peft's format: one tensor ``prompt_embeddings``, and the sizes of the model.

Peft puts a soft prompt in front of the text, where ours may stand behind the first token.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from peftlab.backbones.base import Backbone
from peftlab.errors import PeftlabError
from peftlab.peft.adapter import Adapter
from peftlab.peft.hf.codec import Codec
from peftlab.peft.hf.format import PROMPT, HFAdapter, HFFolder, plain_float
from peftlab.peft.multitask_prompt import MultitaskPrompt
from peftlab.peft.p_tuning import PTuning
from peftlab.peft.soft_prompt import PromptAdapter, SoftPrompt, embedding_weight

_HOW_IT_STARTED = (
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "prompt_tuning_init_state_dict_path",
    "prompt_tuning_init_task",
    "tokenizer_name_or_path",
    "tokenizer_kwargs",
    "init_weights",
    # the encoder that made the prompt, which is not in the folder
    "encoder_reparameterization_type",
    "encoder_hidden_size",
    "encoder_num_layers",
    "encoder_dropout",
    "prefix_projection",
    # sizes of the model, which the shape of the tensor is checked against
    "token_dim",
    "num_layers",
    "num_attention_heads",
)


class PromptTuningCodec(Codec):
    """PROMPT_TUNING; of P_TUNING the vectors, which is all that peft saves of it."""

    methods = ("prompt_tuning",)

    def write(self, adapter: Adapter) -> HFAdapter:
        """The prompt."""
        return _prompt(adapter, prompt_tuning_init="RANDOM")  # which has no effect on one that is loaded

    def fields(self, folder: HFFolder) -> tuple[str, dict[str, Any]] | None:
        """See :meth:`Codec.fields`."""
        if folder.peft_type not in ("PROMPT_TUNING", "P_TUNING"):
            return None
        return "prompt_tuning", {"length": prompt_length(folder), "position": "before", "init": "random"}

    def load(self, adapter: Adapter, folder: HFFolder) -> None:
        """The prompt, which is trained on as it is."""
        _load(adapter, folder)


class PTuningCodec(Codec):
    """P_TUNING: the vectors that the encoder returns; peft makes the encoder anew to train. Written only."""

    methods = ("p_tuning",)

    def write(self, adapter: Adapter) -> HFAdapter:
        """The prompt, and what its encoder was."""
        method = adapter.strategy
        assert isinstance(method, PTuning)
        return _prompt(
            adapter,
            encoder_reparameterization_type=method.encoder.upper(),
            encoder_hidden_size=method.hidden or embedding_weight(adapter.backbone).shape[1],
            encoder_num_layers=method.layers or 2,
            encoder_dropout=method.dropout,
        )


class MultitaskPromptCodec(Codec):
    """MULTITASK_PROMPT_TUNING: the shared prompt and the tasks' matrices; the task is an argument of peft's models."""

    methods = ("multitask_prompt",)

    def write(self, adapter: Adapter) -> HFAdapter:
        """All three parts."""
        method = adapter.strategy
        assert isinstance(method, MultitaskPrompt)
        said = _prompt(adapter, num_tasks=method.task_count(), num_ranks=method.rank, prompt_tuning_init="RANDOM")
        said.notes.append(
            f"Give the model `task_ids` with every batch: this run's texts are task {method.task} of "
            f"{method.task_count()} (`task_ids=torch.full((len(input_ids),), {method.task})`)."
        )
        return said

    def fields(self, folder: HFFolder) -> tuple[str, dict[str, Any]] | None:
        """See :meth:`Codec.fields`; with its first task."""
        if folder.peft_type != "MULTITASK_PROMPT_TUNING":
            return None
        return "multitask_prompt", {
            "length": prompt_length(folder),
            "position": "before",
            "init": "random",
            "num_tasks": folder.option("num_tasks", 1),
            "rank": folder.option("num_ranks", 1),
        }

    def load(self, adapter: Adapter, folder: HFFolder) -> None:
        """All three parts, which are trained on as they are."""
        _load(adapter, folder)


def _prompt(adapter: Adapter, **options: Any) -> HFAdapter:
    method = adapter.strategy
    assert isinstance(adapter, PromptAdapter)
    assert isinstance(method, SoftPrompt)
    tensors = adapter.inference_prompt()
    return prompt_adapter(adapter.backbone, str(method.supports.hf_peft), tensors, length=method.length, **options)


def _load(adapter: Adapter, folder: HFFolder) -> None:
    assert isinstance(adapter, PromptAdapter)
    for name, tensor in adapter.vectors.named_parameters():
        folder.copy(name, tensor, adapter.backbone)


def prompt_adapter(
    backbone: Backbone, peft_type: str, tensors: dict[str, Tensor], *, length: int, **options: Any
) -> HFAdapter:
    """A soft prompt.

    Raises:
        PeftlabError: if it does not stand in front of the text, or the model reads it twice.
    """
    model: Any = backbone.model
    if getattr(model.config, "is_encoder_decoder", False):
        raise PeftlabError(
            f"a soft prompt in {backbone.architecture} cannot be written in the format of HF peft, whose classifiers "
            "of that kind take none. Use an encoder or a decoder, or peft=lora."
        )
    if backbone.prompt_position != "before":
        raise PeftlabError(
            "this soft prompt stands behind the text's first token, and HF peft always puts it in front: it would "
            "compute something else. Train it with peft.position=before to export it."
        )
    text = model.config.get_text_config()
    config = {
        "peft_type": peft_type,
        "num_virtual_tokens": length,
        "token_dim": tensors[PROMPT].shape[1],
        "num_transformer_submodules": 1,
        "num_attention_heads": text.num_attention_heads,
        "num_layers": text.num_hidden_layers,
        **options,
    }
    notes = []
    if backbone.head_modules() == ["score"]:
        notes.append(
            "With a prompt peft classifies from the last place of the batch, padding included: give it texts of one "
            "length (or one at a time)."
        )
    return HFAdapter(config, {name: plain_float(tensor) for name, tensor in tensors.items()}, notes)


def prompt_length(folder: HFFolder) -> int:
    """Vectors or keys n; also notes the options that the tensors answer."""
    folder.understands(*_HOW_IT_STARTED)
    if folder.option("num_transformer_submodules", 1) != 1:
        raise PeftlabError(
            f"peft.path: {folder.path} is of a model with an encoder and a decoder (num_transformer_submodules=2), "
            "which is not supported. Give an adapter of an encoder or a decoder."
        )
    if PROMPT not in folder.tensors:
        raise PeftlabError(f"peft.path: the weights in {folder.path} lack '{PROMPT}', so they hold no prompt.")
    stored = folder.tensors[PROMPT].shape[0]
    length = folder.option("num_virtual_tokens", stored)
    if length != stored:
        raise PeftlabError(
            f"peft.path: {folder.path} says num_virtual_tokens={length} and holds {stored} vectors: its two files do "
            "not belong together."
        )
    return stored
