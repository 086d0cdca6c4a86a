"""A base model as a folder that ``load_model`` reads: ``config.json``, ``model.safetensors``, tokenizer, preprocessing.

For the families built here (CRIS, SAN): their class keeps its sizes as ``model.config``, whose ``to_dict`` is the whole
``config.json`` with ``model_type``, and :func:`read_tensors` and :func:`fill` are how ``from_pretrained`` reads the
folder back. A CLIPSeg is transformers' and saved by it.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from vlsm_adapter import files
from vlsm_adapter.errors import ModelError, one_line
from vlsm_adapter.models import checkpoints
from vlsm_adapter.models.base import PromptSegmenter

WEIGHTS = "model.safetensors"


def save_model(model: PromptSegmenter, folder: str | Path) -> Path:
    """Write ``model`` as a new folder, whole or not at all; ``load_model(folder)`` gives the same model.

    Args:
        model: a base model without adapters.
        folder: must not exist, or be empty.

    Returns:
        The folder.

    Raises:
        ModelError: the model carries adapters or keeps no configuration, or the folder is taken or cannot be written.
    """
    config = getattr(model, "config", None)
    values = config.to_dict() if config is not None and hasattr(config, "to_dict") else None
    if not isinstance(values, dict) or "model_type" not in values:
        raise ModelError(
            f"family '{model.family}' is not saved by this project; a CLIPSeg is by transformers: "
            "model.clipseg.save_pretrained(folder)"
        )
    tensors = base_tensors(model)
    target = Path(folder).resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(f"{target}: exists and is not empty; give a folder that does not exist yet")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            made.chmod(0o755)  # mkdtemp's are the owner's alone
            files.write_tensors(made / WEIGHTS, tensors, metadata={"format": "pt"})
            if model.tokenizer is not None:
                model.tokenizer.save_pretrained(made)
            files.write_json(made / "preprocessor_config.json", model.preprocessing.to_hugging_face())
            files.write_json(made / "config.json", values)
            made.replace(target)  # takes the place of an empty folder too
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise ModelError(f"{target}: cannot be written ({one_line(error)}); give a folder that can") from error
    return target


def base_tensors(model: PromptSegmenter) -> dict[str, torch.Tensor]:
    """Parameters and buffers of a model without adapters, by name.

    Raises:
        ModelError: it carries adapters.
    """
    state = model.state_dict()
    if model.adapter_configs or any(".base_layer." in name for name in state):
        raise ModelError("the model carries adapters: detach them first; save_adapter saves an adapter")
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def read_tensors(source: str | Path, base_id: str) -> dict[str, torch.Tensor]:
    """Tensors of ``model.safetensors`` in a folder or of a hub id.

    Raises:
        ModelError: missing, damaged, or only there as a pickle.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = checkpoints.find_file(source, WEIGHTS)
    if path is None:
        folders = [source] if isinstance(source, Path) else []
        pickles = [found for folder in folders for kind in ("*.bin", "*.pt", "*.pth") for found in folder.glob(kind)]
        if pickles:
            raise ModelError(
                f"{pickles[0]}: a pickle can run code and is refused; convert it with interop.from_published and "
                "models.saving.save_model"
            )
        raise ModelError(f"model '{base_id}': holds no {WEIGHTS}; copy the whole folder")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{path}: truncated or not safetensors ({one_line(error)}); copy it again") from error


def files_of(source: str | Path) -> tuple[object, object]:
    """``config.json`` and the weights of a folder or hub id, for messages."""
    names = ("config.json", WEIGHTS)
    return tuple(checkpoints.find_file(source, name) or name for name in names)  # type: ignore[return-value]


def fill(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Give ``model`` its parameters and buffers, all of them, in float32; it may have been built without memory.

    Build it inside ``torch.device("meta")`` and no weight is drawn at random first. The tensors become the model's own
    where they are float32 already: pass copies of what must not change.

    Raises:
        ModelError: a name is missing or unknown, or a tensor has another shape, is complex, or is not finite.
    """
    check_tensors(tensors, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, source)
    own = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    model.load_state_dict(own, assign=True)


def check_tensors(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Whether ``tensors`` are exactly the ones ``expected`` (shapes by name).

    Raises:
        ModelError: a name is missing or unknown, or a tensor has another shape, is no plain number, or is not finite.
    """
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        raise ModelError(
            f"{source}: weights do not fit the configuration; missing {missing[:2]} ({len(missing)}), unknown "
            f"{unknown[:2]} ({len(unknown)}): is config.json the one of these weights?"
        )
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != expected[name]:
            raise ModelError(f"{source}: '{name}' has shape {tuple(tensor.shape)}, the model needs {expected[name]}")
        counts = name.endswith("num_batches_tracked") and not tensor.is_complex()
        if not counts and not tensor.is_floating_point():
            raise ModelError(f"{source}: '{name}' is of type {tensor.dtype}; allowed: floating-point numbers")
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{source}: '{name}' holds values that are not finite; the file is damaged")


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes: that of the folder that :func:`save_model` makes of them."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        checkpoints.hash_tensor(digest, name, tensors[name].detach())
    return digest.hexdigest()
