"""Less than 32 bits: bfloat16 or float16 by autocast, 8-bit integers for the encoders' frozen linear maps.

The base weights are converted once, not per call. Adapters stay in float32: they are small, and switching, disabling and
saving them works as before. What it costs in Dice is in docs/performance.md; the default is float32, whose answers are the
same on every machine.

Adapters can also be trained on maps in 8 bits: gradients pass through them as through the float32 maps that they stand for
(straight-through), by products in 8 bits as well.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from vlsm_adapter.errors import ModelError

if TYPE_CHECKING:
    from vlsm_adapter.models.base import PromptSegmenter

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Int8Linear(nn.Module):
    """A frozen linear map in 8-bit integers: weights per output channel, inputs per call by their range.

    Args:
        linear: float32, frozen.
        trains: adapters before it are to be trained: it keeps its transpose too, for gradients with respect to inputs.
    """

    def __init__(self, linear: nn.Linear, *, trains: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        bias = None if linear.bias is None else linear.bias.detach().float()
        # Not parameters: nothing trains them, and they have no float form to save.
        self._packed: Any = _packed(weight, bias)
        self._transposed: Any = _packed(weight.T.contiguous(), None) if trains else None
        # Without 8-bit dot products (VNNI) pairs of products are added in 16 bits and could overflow.
        self._reduce_range = not _has_vnni()

    @property
    def trains(self) -> bool:
        """Whether gradients pass through."""
        return self._transposed is not None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., D) to (..., M), of the type of ``x``; rounded to 1/127 of the largest weight of a channel and to
        1/255 of the range of ``x``."""
        if torch.is_grad_enabled() and x.requires_grad:
            return cast("torch.Tensor", _ThroughInt8.apply(x, self))
        return self.product(x)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """What :meth:`forward` gives, without a way back."""
        output: torch.Tensor = torch.ops.quantized.linear_dynamic(
            x.float().contiguous(), self._packed, reduce_range=self._reduce_range
        )
        return output.to(x.dtype)

    def transposed(self, gradient: torch.Tensor, *, in_place: bool = False) -> torch.Tensor:
        """The gradient with respect to the input, (..., M) to (..., D).

        Each row is rounded by its own range: gradients of different tokens differ by orders of magnitude.

        Args:
            in_place: ``gradient`` may be overwritten.
        """
        rows = gradient.reshape(-1, gradient.shape[-1])
        largest = torch.maximum(rows.amax(1, keepdim=True), rows.amin(1, keepdim=True).neg_()).clamp_(min=1e-30)
        rows = rows.div_(largest) if in_place else rows / largest
        output: torch.Tensor = torch.ops.quantized.linear_dynamic(
            rows, self._transposed, reduce_range=self._reduce_range
        )
        return output.mul_(largest).view(*gradient.shape[:-1], -1)


class _ThroughInt8(torch.autograd.Function):
    """An 8-bit map with its gradient for the input."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, linear: Int8Linear) -> torch.Tensor:
        ctx.linear = linear
        return linear.product(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        if not ctx.linear.trains:  # what flows around the map would look like a gradient
            raise ModelError(
                "the model is in 8 bits for prediction, and no gradient passes: load it in fp32, or train with "
                "train.precision=int8 (lower_precision(..., trains=True))"
            )
        return ctx.linear.transposed(gradients[0]), None


def _packed(weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
    """Weights (M, D) in 8 bits, each row by its largest, in the layout that the product wants."""
    scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that its quantised tensors will move elsewhere
        quantised = torch.quantize_per_channel(
            weight, scale.double(), torch.zeros(len(scale), dtype=torch.long), 0, torch.qint8
        )
        return torch.ops.quantized.linear_prepack(quantised, bias)


@contextmanager
def flushing_denormals() -> Iterator[None]:
    """In here this thread, and those that torch starts from it, take numbers below 1.2e-38 (float32) for zero.

    A processor computes with such numbers in microcode, a hundred times slower; the tails of softmax and their gradients are
    full of them: the backward pass of attention in CLIPSeg's decoder takes a quarter of the time without them.
    """
    before = not sys.float_info.min / 2  # torch has no question for it
    for kind in (np.float16, np.float32, np.float64):
        np.finfo(kind)  # asks the processor for its smallest number once, and would warn in here
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def start_threads() -> None:
    """Have torch start its threads, unless it has, such that they take denormal numbers for zero as long as they live."""
    with flushing_denormals():
        torch.zeros(1 << 20).add_(1)


def lower_precision(model: PromptSegmenter, precision: str, *, trains: bool = False) -> str:
    """Make a model answer in ``precision`` from now on; there is no way back but to load it again.

    Args:
        model: frozen, with or without adapters, on the device it will be used on.
        precision: ``fp32`` changes nothing; ``bf16``, ``fp16``; ``int8`` on a CPU only.
        trains: adapters are to be trained through what is converted; for ``int8``.

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
        with suppress(ModelError):  # its files have gone
            _ = model.base_hash  # what is converted cannot be compared with the files any more
    with model.keeping_base_hash():
        if precision == "int8":
            told = _to_int8(model, trains)
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
        if type(module) not in (nn.Linear, nn.Conv2d, nn.ConvTranspose2d) or ".adapter_" in name:
            continue  # adapters keep theirs: they may be saved, or trained again
        if _read_by_adapters(model.get_submodule(name.rpartition(".")[0])):
            continue
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)


def _to_int8(model: PromptSegmenter, trains: bool) -> str:
    engines = torch.backends.quantized.supported_engines
    torch.backends.quantized.engine = next((name for name in ("onednn", "x86", "qnnpack") if name in engines), "none")
    names = [_plain(model, site.module) for site in model.sites() if site.name in ("image", "text")]
    linears = [name for name in dict.fromkeys(names) if type(model.get_submodule(name)) is nn.Linear]
    converted = 0
    for name in linears:
        parent = model.get_submodule(name.rpartition(".")[0])
        linear = cast("nn.Linear", model.get_submodule(name))
        if _read_by_adapters(parent) or any(parameter.requires_grad for parameter in linear.parameters()):
            continue
        setattr(parent, name.rpartition(".")[2], Int8Linear(linear, trains=trains).train(linear.training))
        converted += 1
    if not converted:
        others = "'32-true' or 'bf16-mixed'" if trains else "'fp32' or 'bf16'"
        raise ModelError(
            f"precision 'int8': none of the {len(linears)} linear maps of the encoders can be converted with this adapter, "
            f"which works on their weights; use {others}"
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
