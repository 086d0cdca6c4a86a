"""A CLIPSeg from a folder or hub id in Hugging Face format, strictly."""

from __future__ import annotations

from pathlib import Path

import torch

from vlsm_adapter.errors import ModelError, one_line
from vlsm_adapter.models import checkpoints
from vlsm_adapter.models.clipseg_parts.config import CLIPSegConfig
from vlsm_adapter.models.clipseg_parts.network import CLIPSegNetwork


def load_network(source: str | Path, base_id: str, dtype: torch.dtype) -> CLIPSegNetwork:
    """Build the modules and fill them from the safetensors files, which stay mapped into memory where types agree.

    Raises:
        ModelError: no safetensors (a pickle is refused), a damaged file, values of ``config.json`` that no model can be
            built with, or weights that do not fit it.
    """
    if isinstance(source, Path):
        checkpoints.refuse_other_folders(source)
    values = checkpoints.read_config(source, base_id)
    try:
        try:
            config = CLIPSegConfig.from_dict(values)
        except ModelError as error:
            raise ModelError(f"model '{base_id}': {error}") from error
        with torch.device("meta"):  # no weight is drawn at random first
            network = CLIPSegNetwork(config)
        tensors = _tensors(source, base_id)
    except ModelError:
        raise
    except Exception as error:  # config.json reaches constructors that raise anything, ZeroDivisionError among them
        raise ModelError(f"model '{base_id}': cannot be loaded ({one_line(error)}); fetch or copy it again") from error
    expected = network.state_dict()
    missing = sorted(expected.keys() - tensors.keys())
    wrong = sorted(name for name in expected.keys() & tensors.keys() if tensors[name].shape != expected[name].shape)
    if missing or wrong:
        raise ModelError(
            f"model '{base_id}': weights do not fit config.json; missing {missing[:3]}, of other shape {wrong[:3]} "
            f"({len(missing)} and {len(wrong)} in all)"
        )
    network.load_state_dict({name: tensors[name].to(dtype) for name in expected}, assign=True)
    return network


def _tensors(source: str | Path, base_id: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for path in _weights(source, base_id):
        tensors.update(load_file(path))
    return tensors


def _weights(source: str | Path, base_id: str) -> list[Path]:
    """The safetensors files of a folder, or of a hub id, fetched where they are not here yet."""
    if isinstance(source, Path):
        return checkpoints.weights_files(source)
    whole = checkpoints.find_file(source, "model.safetensors")
    if whole is not None:
        return [whole]
    index = checkpoints.find_file(source, checkpoints.WEIGHTS_INDEX)
    if index is None:
        raise ModelError(f"model '{base_id}': holds no model.safetensors; a pickle can run code and is not loaded")
    found = [checkpoints.find_file(source, name) for name in checkpoints.indexed_files(index)]
    if None in found:
        raise ModelError(f"model '{base_id}': a part of its weights cannot be fetched; try again")
    return [path for path in found if path is not None]
