"""Optimizer, schedules, precision, memory, and the check that everything trainable gets a gradient."""

from __future__ import annotations

import ctypes
import math
import sys

import torch

from vlsm_adapter.checkpoint import Progress
from vlsm_adapter.config import PRECISIONS, TrainConfig
from vlsm_adapter.errors import TrainingError
from vlsm_adapter.models.base import PromptSegmenter

AUTOCAST_TYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
AUTO = "auto"  # by the machine
INT8 = "int8"  # of frozen maps alone; all else is 32-true
_M_MMAP_THRESHOLD = -3  # of malloc.h
PLATEAU_FACTOR, PLATEAU_PATIENCE = 0.3, 5  # of the paper


def make_optimizer(model: PromptSegmenter, config: TrainConfig, *, fused: bool = False) -> torch.optim.AdamW:
    """AdamW on what trains; weights decay, biases, norms and scalars do not.

    Args:
        fused: an update is one kernel on the GPU instead of several per tensor; not with a scaler of gradients, which could
            then not be clipped.

    Raises:
        TrainingError: nothing requires a gradient.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise TrainingError("no trainable parameter: attach an adapter, or choose a method that trains something")
    decayed = [parameter for parameter in trainable if parameter.ndim >= 2]
    plain = [parameter for parameter in trainable if parameter.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr, fused=fused or None)


def choose_precision(name: str) -> str:
    """The arithmetic by its name; ``auto`` is 16-bit where the hardware multiplies it fast, else 32-bit.

    Raises:
        TrainingError: this machine cannot train in it.
    """
    odd, why = (INT8, "is for a CPU") if torch.cuda.is_available() else ("16-mixed", "needs a GPU")
    if name == odd or name not in PRECISIONS:
        why = why if name == odd else "is unknown"
        here = ", ".join(one for one in PRECISIONS if one != odd)
        raise TrainingError(f"train.precision={name} {why}; allowed on this machine: {here}")
    if name != AUTO:
        return name
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    return "bf16-mixed" if _cpu_has_bf16() else "32-true"


def told_precision(asked: str, precision: str) -> str:
    """A line that says in what training computes, and why where it was not ``asked`` for; empty for plain float32."""
    if precision not in AUTOCAST_TYPES:
        return ""
    why = ", which this machine computes fast; train.precision=32-true is float32" if asked == AUTO else ""
    return f"precision {precision}{why}"


def fabric_precision(name: str) -> str:
    """What Fabric calls an arithmetic that :func:`choose_precision` gave."""
    return "32-true" if name == INT8 else name


def _cpu_has_bf16() -> bool:
    for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        if getattr(torch.cpu, check, lambda: False)():
            return True
    return False


def give_memory_back() -> None:
    """Have glibc return what large tensors leave to the system at once, for the rest of this process; elsewhere nothing.

    By itself it raises the size from which it does so to 32 MB as tensors come and go. Smaller ones then lie scattered over
    a heap that never shrinks: in training at CLIPSeg's full size a quarter of all memory. The price is that each large
    tensor's pages are new: a tenth more time.
    """
    if sys.platform == "linux":
        change = getattr(ctypes.CDLL(None), "mallopt", None)  # not in musl
        if change is not None:
            change(_M_MMAP_THRESHOLD, 1 << 20)


def learning_rate(config: TrainConfig, update: int, updates: int) -> float:
    """Learning rate of update number ``update`` (from 0) of ``updates``; the plateau factor comes on top."""
    if config.schedule != "cosine":
        return config.lr
    warmup = max(1, round(config.warmup * updates)) if config.warmup else 0
    if update < warmup:
        return config.lr * (update + 1) / warmup
    part = (update - warmup) / max(1, updates - warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, part)))


def check_gradients(model: torch.nn.Module) -> None:
    """After the first backward pass: every trainable tensor has a gradient.

    Raises:
        TrainingError: some have none, and would never learn.
    """
    without = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    if without:
        raise TrainingError(
            f"{len(without)} trainable tensors get no gradient, the first is '{without[0]}': "
            "the method trains something that the output does not depend on"
        )


def step_plateau(progress: Progress, loss: float | None) -> None:
    """Lower the learning rate after epochs without a lower validation loss (relative gain of 1e-4, as in torch).

    Args:
        loss: after the epoch; None where it was not validated: it counts among the epochs, the next validation decides.
    """
    state = progress.plateau
    state["bad"] = state.get("bad", 0) + 1
    if loss is None:
        return
    if loss < state.get("best", math.inf) * (1 - 1e-4):
        state["best"], state["bad"] = loss, 0
    if state["bad"] > PLATEAU_PATIENCE:
        state["factor"], state["bad"] = state.get("factor", 1.0) * PLATEAU_FACTOR, 0
