"""The state of a run in one safetensors file, replaced atomically: the old state or the new one, never half of one.

Tensors: ``weights/NAME`` (what trains), ``buffers/NAME`` (running statistics of adapters, where there are any),
``optimizer/NAME/KEY``, ``random/DEVICE``. Metadata: one JSON text under ``progress`` with everything that is not a
tensor. No pickle.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from vlsm_adapter import files
from vlsm_adapter.errors import TrainingError

FORMAT_VERSION = 1


@dataclass
class Progress:
    """Where a run is; all plain values.

    Attributes:
        epoch: epochs finished.
        batch: batches of the current epoch done.
        update: optimizer updates done.
        epoch_loss: sum of the losses of the current epoch's batches, times their cases; ``epoch_cases`` their number.
        epoch_seconds: seconds spent training in the current epoch.
        best: best validation Dice; ``best_epoch`` when (1-based); 0 before the first validation.
        reference: validation Dice that a gain is measured from; ``stale`` epochs since without one, validated or not.
        plateau: state of the plateau schedule.
        scaler: state of the gradient scaler of 16-bit training.
        history: a row per finished epoch; scores are None where it was not validated.
        base: SHA-256 of the base model's weights.
        finished: why the run ended, or None.
    """

    epoch: int = 0
    batch: int = 0
    update: int = 0
    epoch_loss: float = 0.0
    epoch_cases: int = 0
    epoch_seconds: float = 0.0
    best: float = -1.0
    best_epoch: int = 0
    reference: float = -1.0
    stale: int = 0
    plateau: dict[str, float] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float | None]] = field(default_factory=list)
    base: str = ""
    finished: str | None = None


def save_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write the state.

    Raises:
        UserError: the disk is full or the folder not writable; the previous state is intact.
    """
    names = _names(model, optimizer)
    tensors = {f"weights/{name}": parameter.detach() for name, parameter in _trainable(model).items()}
    tensors |= {f"buffers/{name}": buffer for name, buffer in _buffers(model).items()}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            tensors[f"optimizer/{names[parameter]}/{key}"] = torch.as_tensor(value)
    tensors["random/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    metadata = {
        "format": "pt",
        "format_version": str(FORMAT_VERSION),
        "progress": json.dumps(asdict(progress)),
    }
    files.write_tensors(path, tensors, metadata)


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Put weights, optimizer and random numbers back; every tensor must fit.

    Raises:
        TrainingError: the file is damaged or of another run; nothing was changed.
    """
    tensors, progress = read_state(path)
    trainable = _trainable(model)
    own: dict[str, torch.Tensor] = {f"weights/{name}": parameter for name, parameter in trainable.items()}
    own |= {f"buffers/{name}": buffer for name, buffer in _buffers(model).items()}
    stored = {key for key in tensors if key.startswith(("weights/", "buffers/"))}
    if stored != own.keys():
        odd = min(stored ^ own.keys()).partition("/")[2]
        raise TrainingError(f"{path}: made by another model or adapter ({odd} does not match); start a new run")
    for key, tensor in own.items():
        if tensors[key].shape != tensor.shape:
            name = key.partition("/")[2]
            raise TrainingError(f"{path}: '{name}' has another shape than the model's; start a new run")
    state: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer/"):
            _, name, entry = key.split("/")
            state.setdefault(name, {})[entry] = tensor
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(tensors[key])
    fused = optimizer.param_groups[0].get("fused")  # counts its steps on the GPU
    for name, values in state.items():
        parameter = trainable[name]
        optimizer.state[parameter] = {
            key: value if key == "step" and not fused else value.to(parameter.device) for key, value in values.items()
        }
    torch.set_rng_state(tensors["random/cpu"])
    if "random/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random/cuda"])
    return progress


def read_state(path: Path) -> tuple[dict[str, torch.Tensor], Progress]:
    """Tensors and progress of a state file.

    Raises:
        TrainingError: truncated, not safetensors, or of another version.
    """
    with _opened(path) as handle:
        progress = _progress(path, handle)
        return {key: handle.get_tensor(key) for key in handle.keys()}, progress  # noqa: SIM118


def read_progress(path: Path) -> Progress:
    """Progress alone, without reading the tensors; errors as `read_state`."""
    with _opened(path) as handle:
        return _progress(path, handle)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as handle:
            yield handle
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, TrainingError):
            raise
        raise TrainingError(f"{path}: the saved state is damaged ({error}); start a new run") from error


def _progress(path: Path, handle: Any) -> Progress:
    metadata: Mapping[str, str] = handle.metadata() or {}
    if metadata.get("format_version") != str(FORMAT_VERSION):
        raise TrainingError(f"{path}: state version {metadata.get('format_version')} is not known; start a new run")
    return Progress(**json.loads(metadata["progress"]))


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Those of adapters that are saved, e.g. the running statistics of a batch norm; the base's never change."""
    saved = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if ".adapter_" in name and name in saved}


def _names(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[torch.Tensor, str]:
    known: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {parameter: known[parameter] for group in optimizer.param_groups for parameter in group["params"]}
