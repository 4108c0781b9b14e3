"""Store frozen linear weights in 4 or 8 bits, on CPUs as well as on CUDA.

``nf4``/``fp4``: blocks of 64 weights (32 where 64 does not divide a row) with doubly quantised scales
(QLoRA, Dettmers et al. 2023, arXiv:2305.14314). ``int8``: one scale a row, activations quantised on
the fly (LLM.int8(), Dettmers et al. 2022, arXiv:2208.07339, without its outlier columns). The layers
stay ``nn.Linear`` subclasses that pass gradients to their inputs, so adapters on top of them train.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import nn

from peftlab.backbones.quiet import quiet_bitsandbytes
from peftlab.errors import BackboneError

Quantization = Literal["nf4", "fp4", "int8"]


def quantize(model: nn.Module, kind: Quantization, *, keep: Collection[str], device: torch.device) -> list[str]:
    """Replace the linear layers of ``model`` in place, quantised on ``device``; GPT-2's Conv1D included.

    Args:
        model: the network, with float weights.
        kind: how to store them.
        keep: qualified names of the modules to leave alone with all that is inside (the head).
        device: where the quantised weights live.

    Returns:
        The names of the layers replaced.

    Raises:
        BackboneError: if there is no layer to quantise, or bitsandbytes cannot be imported.
    """
    quiet_bitsandbytes()
    try:
        import bitsandbytes  # noqa: F401 - imported here to fail with a way out
    except ImportError as error:
        raise BackboneError(
            f"backbone.quantize={kind} needs bitsandbytes ({error}). Run: pip install bitsandbytes, or set "
            "backbone.quantize=null."
        ) from error
    # T5 reads the dtype of these weights to cast its activations, and would cast them to the storage type.
    float_only = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    names = [
        name
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
        and not any(name == kept or name.startswith(f"{kept}.") for kept in keep)
        and not float_only.intersection(name.split("."))
    ]
    if not names:
        raise BackboneError(f"backbone.quantize={kind}: {type(model).__name__} has no linear layer outside its head.")
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _quantized(model.get_submodule(name), kind, device))
    return names


def _quantized(module: nn.Module, kind: Quantization, device: torch.device) -> nn.Module:
    assert isinstance(module.weight, torch.Tensor)
    weight, bias = module.weight.detach(), module.bias
    if not isinstance(module, nn.Linear):
        weight = weight.T.contiguous()  # Conv1D keeps (in, out)
    layer = (
        _layer_8bit(weight, bias is not None) if kind == "int8" else _layer_4bit(weight, bias is not None, kind, device)
    )
    if bias is not None:
        assert isinstance(bias, torch.Tensor)
        layer.bias = nn.Parameter(bias.detach().clone())
    layer = layer.to(device)
    layer.train(module.training)
    return layer.requires_grad_(False)


def _layer_4bit(weight: torch.Tensor, bias: bool, kind: str, device: torch.device) -> nn.Module:
    import bitsandbytes.nn

    bnb: Any = bitsandbytes.nn  # its classes carry no types
    # Made on "meta": nn.Linear would draw its weight from the global random state.
    layer: nn.Module = bnb.Linear4bit(
        weight.shape[1], weight.shape[0], bias, _compute_dtype(weight, device), True, kind, device="meta"
    )
    # Its bfloat16 kernel for CPUs repacks the weights at the first evaluation; that would change the
    # numbers between a run's first steps and the rest.
    layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    blocksize = _blocksize(weight.shape[1], kind)
    layer.weight = bnb.Params4bit(weight, blocksize=blocksize, compress_statistics=True, quant_type=kind, module=layer)
    return layer


def _blocksize(row: int, kind: str) -> int:
    """Weights that share a scale. A block must not reach into the next row: on CPUs bitsandbytes
    would then read other blocks' scales, and be wrong by a third without a word."""
    for size in (64, 32):
        if row % size == 0:
            return size
    raise BackboneError(
        f"backbone.quantize={kind}: this backbone has a layer with {row} inputs, which blocks of 32 "
        f"weights do not "
        "divide. Set backbone.quantize=int8, or null."
    )


def _layer_8bit(weight: torch.Tensor, bias: bool) -> nn.Module:
    import bitsandbytes.nn

    bnb: Any = bitsandbytes.nn  # its classes carry no types
    layer: nn.Module = bnb.Linear8bitLt(weight.shape[1], weight.shape[0], bias, has_fp16_weights=False, device="meta")
    layer.weight = bnb.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    return layer


def _compute_dtype(weight: torch.Tensor, device: torch.device) -> torch.dtype:
    """The type products are computed in: bfloat16 on accelerators that have it, else the weights' own."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return weight.dtype


def logical_size(parameter: nn.Parameter) -> int:
    """Elements of ``parameter`` before quantisation; a 4-bit one itself reports half of them."""
    state = getattr(parameter, "quant_state", None)
    shape = parameter.shape if state is None else state.shape
    return int(torch.Size(shape).numel())


def stored_bytes(module: nn.Module) -> int:
    """Bytes that the parameters and buffers of ``module`` occupy, scales of quantised weights included."""
    total = sum(buffer.nbytes for buffer in module.buffers())
    for parameter in module.parameters():
        total += parameter.nbytes + _state_bytes(getattr(parameter, "quant_state", None))
    for child in module.modules():  # int8 keeps its row scales beside the weight
        scales = getattr(getattr(child, "weight", None), "SCB", None)
        if scales is None:
            scales = getattr(getattr(child, "state", None), "SCB", None)
        total += 0 if scales is None else scales.nbytes
    return total


def quant_states(model: nn.Module) -> dict[str, torch.Tensor]:
    """The scales of 4-bit weights by name, which are kept beside these where the weights themselves are cut."""
    return {
        f"{name}.quant_state.{part}": tensor
        for name, module in model.named_modules()
        if (state := getattr(module, "quant_state", None)) is not None
        for part, tensor in state.as_dict(packed=True).items()
    }


def store_as_floats(model: nn.Module) -> None:
    """Call the bytes of 4-bit weights bfloat16, two a number; bitsandbytes reads either (its ``quant_storage``).

    FSDP2 of torch before 2.13 takes no weights of integers.
    """
    for module in model.modules():
        layer: Any = module
        weight: Any = getattr(layer, "weight", None)
        if getattr(weight, "quant_state", None) is not None and weight.dtype == torch.uint8:
            weight.data = weight.data.view(-1).view(torch.bfloat16).view(-1, 1)
            weight.quant_storage = layer.quant_storage = torch.bfloat16


def _state_bytes(state: object) -> int:
    if state is None:
        return 0
    tensors = (getattr(state, name, None) for name in ("absmax", "code", "offset"))
    own = sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))
    return own + _state_bytes(getattr(state, "state2", None))


_REPACKS = "support_avx512bf16_for_cpu"
"""Attribute of a 4-bit layer of bitsandbytes: whether it repacks its weights for a CPU with bfloat16 instructions."""


def require_never_repacked(model: nn.Module) -> None:
    """Refuse a model whose 4-bit weights bitsandbytes has repacked.

    It does so at the first evaluation, and rounds the scales; ``state_dict()`` then packs them back wrongly, and what
    the model computes from there on is wrong without a word.

    Raises:
        BackboneError: naming the first such layer.
    """
    for name, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if hasattr(state, "original_qshape"):
            raise BackboneError(
                f"bitsandbytes has repacked the 4-bit weights of '{name}' for this CPU, which rounds them and cannot "
                "be taken back: the model was evaluated before. Load it anew, and attach before it is first called."
            )


def keep_layout(model: nn.Module) -> list[nn.Module]:
    """Let bitsandbytes leave 4-bit weights as they are stored; return the layers that would have repacked theirs."""
    told = [module for module in model.modules() if getattr(module, _REPACKS, False)]
    for layer in told:
        setattr(layer, _REPACKS, False)
    return told


def let_repack(layers: Collection[nn.Module]) -> None:
    """Undo :func:`keep_layout` for the layers that it returned."""
    for layer in layers:
        setattr(layer, _REPACKS, True)
