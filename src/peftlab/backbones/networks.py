"""Make the ``transformers`` network: from a folder, or at random from an architecture.

**The new head** is every module of the classification model beside its encoder or decoder
(``base_model_prefix``): ``classifier`` (BERT; RoBERTa's with its dense layer), ``pre_classifier`` and
``classifier`` (DistilBERT), ``pooler`` and ``classifier`` (DeBERTa), ``head`` and ``classifier``
(ModernBERT), ``score`` (GPT-2, Llama). The rule looks at the structure alone, so parameter counts do not
depend on where the weights came from. One exception: where a checkpoint lacks the pooler inside the
encoder (BERT saved by a masked language model), the pooler is new and random, and counts as head too;
the record's ``new_weights`` shows it. A model's own head is told in
:mod:`peftlab.backbones.language_model`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peftlab.backbones.config import HeadKind
from peftlab.backbones.floats import cast_to_own_type
from peftlab.backbones.language_types import require_language_model
from peftlab.backbones.quiet import quiet_transformers
from peftlab.backbones.sources import require_config
from peftlab.errors import BackboneError, listed, nearest
from peftlab.seeding import derive_seed

_UNDECLARED = {
    "head_dim",
    "attention_head_size",
    "position_buckets",
    "norm_rel_ebd",
    "share_att_key",
    "conv_kernel_size",
    "conv_act",
}
"""Settings that models read from a config though its class does not declare them (DeBERTa has most)."""


def folder_config(folder: Path, key: str, num_labels: int, *, head: HeadKind = "new") -> Any:
    """The config of the model in ``folder``, for ``num_labels`` classes or with the model's own head.

    Raises:
        BackboneError: naming the config ``key``, if it cannot be read or needs code of its own.
    """
    from transformers import AutoConfig

    require_config(folder, key)
    classes = {} if head == "own" else {"num_labels": num_labels}
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(folder, **classes, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # a damaged or foreign config.json fails in many ways
        raise BackboneError(
            f"{key}: {folder / 'config.json'} is not a config that transformers knows by itself, and code "
            f"that comes "
            f"with a model is never run: {_first_line(error)}"
        ) from error
    if getattr(config, "quantization_config", None) is not None:
        raise BackboneError(
            f"{key}: {folder} holds weights that are already quantised. Give the original weights, and "
            "backbone.quantize=nf4 to have them quantised here."
        )
    _check_has(head, config.model_type, key)
    return config


def random_config(architecture: dict[str, Any], num_labels: int, *, head: HeadKind = "new") -> Any:
    """The config of a random model: ``model_type`` and what to override.

    Raises:
        BackboneError: for an unknown model type, or a setting that the type does not have.
    """
    from transformers import AutoConfig

    overrides = dict(architecture)
    model_type = overrides.pop("model_type")
    _check_has(head, model_type, "backbone.architecture.model_type")
    classes = {} if head == "own" else {"num_labels": num_labels}
    with quiet_transformers():
        default = AutoConfig.for_model(model_type)
        _check_settings(default, overrides, "backbone.architecture", model_type)
        try:
            return AutoConfig.for_model(model_type, **classes, use_cache=False, **overrides)
        except Exception as error:  # each architecture validates in its own way
            raise BackboneError(f"backbone.architecture: not a possible {model_type}: {_first_line(error)}") from error


def _check_settings(default: Any, given: dict[str, Any], key: str, model_type: str) -> None:
    """Raise BackboneError for the first setting that the config class of ``default`` has not, at any depth."""
    known = set(default.to_dict()) | set(default.attribute_map) | _UNDECLARED
    for name, value in given.items():
        if name not in known:
            raise BackboneError(
                f"{key}.{name}: {model_type} has no such setting.{nearest(name, known)} It has: {listed(known)}."
            )
        inner = getattr(default, name, None)
        if isinstance(value, dict) and hasattr(inner, "attribute_map"):
            _check_settings(inner, value, f"{key}.{name}", model_type)


def _check_has(head: HeadKind, model_type: str, key: str) -> None:
    """Raise BackboneError unless transformers has models of ``model_type`` with such a head."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as KNOWN

    if head == "own":
        require_language_model(model_type, key)
    elif model_type not in KNOWN and not (head == "none" and model_type in CAUSAL):
        close = nearest(str(model_type), KNOWN)
        raise BackboneError(
            f"{key}: transformers has no sequence classifier of model type '{model_type}'.{close} "
            f"It has: {listed(KNOWN, limit=100)}."
        )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from ``seed`` alone inside, and leave the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        # Only the CPU's generator: torch.manual_seed would reseed the accelerators' as well.
        torch.default_generator.manual_seed(derive_seed(seed, "backbone"))
        yield


def _kind(head: HeadKind) -> Any:
    """The models of ``transformers`` with such a head."""
    import transformers

    return transformers.AutoModelForCausalLM if head == "own" else transformers.AutoModelForSequenceClassification


def random_network(
    config: Any,
    *,
    dtype: torch.dtype,
    attention: str,
    seed: int,
    device: torch.device,
    head: HeadKind = "new",
) -> nn.Module:
    """A network of ``config`` with random weights drawn from ``seed``; none at all on ``meta``."""
    place = torch.device("meta" if device.type == "meta" else "cpu")
    try:
        with quiet_transformers(), seeded(seed), place:
            model: nn.Module = _kind(head).from_config(
                config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
            )
    except Exception as error:  # each architecture validates in its own way
        raise _cannot_build(config, attention, "backbone.architecture", error) from error
    return model


def pretrained_network(
    folder: Path,
    config: Any,
    *,
    key: str,
    dtype: torch.dtype,
    attention: str,
    seed: int,
    head: HeadKind = "new",
) -> tuple[nn.Module, list[str]]:
    """The network in ``folder``, and the names of the weights the folder lacked (drawn from ``seed``).

    A head in the checkpoint is used where its shape fits; one for another number of classes is drawn anew. A model's
    own head must be there.

    Raises:
        BackboneError: if the weights cannot be read, or others than the head's are missing or misshapen.
    """
    try:
        with quiet_transformers(), seeded(seed), _without_adapter(folder, key) as plain:
            model, info = _kind(head).from_pretrained(
                plain,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # safetensors, pickle guards and architectures each raise their own
        raise _cannot_build(config, attention, f"{key}: {folder}", error) from error
    new = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
    may_lack = [] if head == "own" else head_modules(model, new)
    lost = [name for name in new if not any(name.startswith(f"{module}.") for module in may_lack)]
    if lost or info["error_msgs"]:
        what = f"lacks {len(lost)} of the model's weights: {listed(lost, limit=5)}" if lost else info["error_msgs"][0]
        raise BackboneError(
            f"{key}: the checkpoint in {folder} {what}. It is damaged, or its config.json is of another model."
        )
    _require_finite(model, folder, key)
    return model, new


@contextmanager
def _without_adapter(folder: Path, key: str) -> Iterator[Path]:
    """A folder with the model's files alone: an adapter beside them would be put on top of the weights unasked."""
    if not (folder / "adapter_config.json").exists():
        yield folder
        return
    print(
        f"peftlab: warning: {key}: {folder} holds an adapter beside the model. The model is read without it; to start "
        "from the adapter: peft=import peft.path=<folder>.",
        file=sys.stderr,
    )
    with tempfile.TemporaryDirectory() as scratch:
        for file in folder.iterdir():
            if not file.name.startswith("adapter_"):
                (Path(scratch) / file.name).symlink_to(file.resolve())
        yield Path(scratch)


def _require_finite(model: nn.Module, folder: Path, key: str) -> None:
    """Raise BackboneError for weights that are infinite or no number."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not _finite(parameter):
            found = int((~torch.isfinite(parameter)).sum())
            raise BackboneError(
                f"{key}: {found:,} of the {parameter.numel():,} numbers of '{name}' in {folder} are infinite or no "
                "numbers. The checkpoint is damaged, or its training had diverged: give another one."
            )


def _finite(values: Tensor) -> bool:
    """Whether all are: their sum tells in a tenth of the time, unless it is too large itself."""
    return bool(torch.isfinite(values.detach().sum())) or bool(torch.isfinite(values).all())


def _cannot_build(config: Any, attention: str, where: str, error: Exception) -> BackboneError:
    if "scaled_dot_product_attention" in str(error):
        return BackboneError(
            f"backbone.attention={attention}: {config.model_type} has no such attention in transformers. Set "
            "backbone.attention=eager."
        )
    return BackboneError(f"{where}: the {config.model_type} model cannot be made: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def head_modules(model: nn.Module, new_weights: list[str]) -> list[str]:
    """Names of the head's modules by the rule above, in model order."""
    base: str = model.base_model_prefix  # type: ignore[assignment]
    beside = [
        name for name, module in model.named_children() if name != base and any(True for _ in module.parameters())
    ]
    pooler = f"{base}.pooler"
    return ([pooler] if any(name.startswith(f"{pooler}.") for name in new_weights) else []) + beside


def keep_head_in_float32(model: nn.Module, head: list[str]) -> None:
    """Make the head, which trains, float32 on top of a trunk in less; inputs are cast to its type on their way in."""
    for name in head:
        module = model.get_submodule(name).float()
        module.register_forward_pre_hook(cast_to_own_type)
