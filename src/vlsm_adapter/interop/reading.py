"""Published checkpoint files and their configurations, read without running any code they may carry."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlsm_adapter.adapters.folder import read_weights
from vlsm_adapter.errors import AdapterError, ModelError, one_line

if TYPE_CHECKING:
    import torch

PREFIXES = ("net.", "model.", "module.")  # of training code around the network


def read_published(path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors of a published checkpoint file, by key; a pickle may hold tensors and plain values only.

    Raises:
        AdapterError: missing, damaged, or holding objects whose unpickling could run code.
    """
    import torch

    file = Path(path)
    if file.suffix == ".safetensors":
        return read_weights(file)
    if not file.is_file():
        raise AdapterError(f"{file}: no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, for torch's own developers
            values: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises anything, IndexError and struct.error among them
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise AdapterError(
                f"{file}: holds objects beside tensors, whose loading could run code; save its 'state_dict' alone"
            ) from error
        raise AdapterError(f"{file}: damaged or not a checkpoint ({one_line(error)}); copy it again") from error
    if isinstance(values, dict) and isinstance(values.get("state_dict"), dict):
        values = values["state_dict"]
    if not isinstance(values, dict) or not all(isinstance(value, torch.Tensor) for value in values.values()):
        raise AdapterError(f"{file}: holds no state_dict of tensors")
    return values


def without_prefix(tensors: Mapping[Any, Any]) -> dict[Any, Any]:
    """The same by keys without one of :data:`PREFIXES`, where all of them have it."""
    for prefix in PREFIXES:
        if tensors and all(isinstance(key, str) and key.startswith(prefix) for key in tensors):
            return {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return dict(tensors)


def read_sizes(path: Path, family: str) -> Mapping[str, Any]:
    """The JSON object of a published configuration; ``family`` for the message.

    Raises:
        ModelError: missing, or no JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path}: not readable JSON ({one_line(error)}); give the config.json of the {family}"
        ) from error
    if not isinstance(values, Mapping):
        raise ModelError(f"{path}: holds no JSON object; give the config.json of the {family}")
    return values
