"""Prediction with less than 32 bits: bfloat16 or float16 by autocast, 8-bit integers for the encoders' linear maps.

The base weights are converted once, not per call. Adapters stay in float32: they are small, and switching, disabling and
saving them works as before. What it costs in Dice is in docs/performance.md; the default is float32, whose answers are the
same on every machine.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vlsm_adapter.errors import ModelError

if TYPE_CHECKING:
    from vlsm_adapter.models.base import PromptSegmenter

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Int8Linear(nn.Module):
    """A linear map in 8-bit integers: weights per output channel, inputs per call by their range.

    Args:
        linear: float32, frozen.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
        bias = None if linear.bias is None else linear.bias.detach().float()
        # Not a parameter: nothing trains it, and it has no float form to save.
        self._packed: Any
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces that its quantised tensors will move elsewhere
            quantised = torch.quantize_per_channel(
                weight, scale.double(), torch.zeros(len(scale), dtype=torch.long), 0, torch.qint8
            )
            self._packed = torch.ops.quantized.linear_prepack(quantised, bias)
        # Without 8-bit dot products (VNNI) pairs of products are added in 16 bits and could overflow.
        self._reduce_range = not _has_vnni()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., D) to (..., M), of the type of ``x``; rounded to 1/127 of the largest weight of a channel and to
        1/255 of the range of ``x``."""
        output: torch.Tensor = torch.ops.quantized.linear_dynamic(
            x.float().contiguous(), self._packed, reduce_range=self._reduce_range
        )
        return output.to(x.dtype)


def lower_precision(model: PromptSegmenter, precision: str) -> str:
    """Make a model answer in ``precision`` from now on; there is no way back but to load it again.

    Args:
        model: frozen, with or without adapters, on the device it will be used on.
        precision: ``fp32`` changes nothing; ``bf16``, ``fp16``; ``int8`` on a CPU only.

    Returns:
        What was done, for a log: ``"int8: 64 of 66 linear maps of the encoders"``.

    Raises:
        ModelError: an unknown precision, one the device cannot compute in, or nothing in the model can be converted.
    """
    if precision not in PRECISIONS:
        raise ModelError(f"precision '{precision}' is unknown: allowed: {', '.join(PRECISIONS)}")
    if precision == "fp32":
        return "fp32"
    if model.inference_precision != "fp32":
        raise ModelError(f"the model answers in {model.inference_precision} already: load it anew for {precision}")
    device = model.device.type
    if precision == "fp16" and device == "cpu":
        raise ModelError("precision 'fp16' is not for a CPU: use 'bf16' or 'int8', or a GPU")
    if precision == "int8" and device != "cpu":
        raise ModelError(f"precision 'int8' is for a CPU, the model is on '{device}': use 'bf16' or 'fp16'")
    if precision == "int8":
        told = _to_int8(model)
    else:
        cast_frozen(model, _HALF[precision])
        told = precision
    model.inference_precision = precision
    return told


def computing(model: PromptSegmenter) -> AbstractContextManager[Any]:
    """The context in which a model answers in the precision it was given."""
    half = _HALF.get(model.inference_precision)
    return nullcontext() if half is None else torch.autocast(model.device.type, dtype=half)


def cast_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep the frozen weights of linear maps and convolutions in the type that autocast computes them in.

    Autocast would cast them for every call, to the same values: the answers are the same, the work and half of the memory
    are saved. Layers that an adapter's copies and parts (LoRA and kin) stand on keep theirs: those read their weights.
    """
    for name, module in model.named_modules():
        if type(module) not in (nn.Linear, nn.Conv2d, nn.ConvTranspose2d):
            continue
        if _read_by_adapters(model.get_submodule(name.rpartition(".")[0])):
            continue
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)


def _to_int8(model: PromptSegmenter) -> str:
    engines = torch.backends.quantized.supported_engines
    torch.backends.quantized.engine = next((name for name in ("onednn", "x86", "qnnpack") if name in engines), "none")
    names = [_plain(model, site.module) for site in model.sites() if site.name in ("image", "text")]
    linears = [name for name in dict.fromkeys(names) if type(model.get_submodule(name)) is nn.Linear]
    converted = 0
    for name in linears:
        parent = model.get_submodule(name.rpartition(".")[0])
        if _read_by_adapters(parent):
            continue
        setattr(parent, name.rpartition(".")[2], Int8Linear(model.get_submodule(name)))  # type: ignore[arg-type]
        converted += 1
    if not converted:
        raise ModelError(
            f"precision 'int8': none of the {len(linears)} linear maps of the encoders can be converted with this adapter, "
            "which works on their weights; use 'fp32' or 'bf16'"
        )
    return f"int8: {converted} of {len(linears)} linear maps of the encoders"


def _read_by_adapters(parent: nn.Module) -> bool:
    """Whether an adapter's layer holds a copy or a part, which read the base layer's weights or stand in its place."""
    return bool(len(getattr(parent, "adapter_part", ())) or len(getattr(parent, "adapter_copy", ())))


def _plain(model: PromptSegmenter, name: str) -> str:
    """The name of a module, or where an adapter's layer stands in its place, of the one inside that."""
    return f"{name}.base_layer" if hasattr(model.get_submodule(name), "base_layer") else name


def _has_vnni() -> bool:
    check = getattr(torch.cpu, "_is_vnni_supported", None)
    return bool(check is not None and check())
