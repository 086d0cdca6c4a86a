"""Base models, one file each, and the one function that loads any of them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from vlsm_adapter.errors import ModelError, nearest

if TYPE_CHECKING:
    import torch

    from vlsm_adapter.models.base import PromptSegmenter

_TINY = Path(__file__).parent / "tiny"
_EMBEDDED = {"tiny": _TINY}
_TEXT_FREE = ("unet", "segresnet", "dynunet")  # of text_free.ARCHITECTURES, which imports torch
_DTYPES = ("auto", "float32", "bfloat16", "float16")


# Imported when first asked for: the classes import torch, listing names must not.
_FAMILIES = {
    "clipseg": ("clipseg", "CLIPSeg"),
    "cris": ("cris", "CRIS"),
    "san": ("san", "SAN"),
    "text_free": ("text_free", "TextFree"),
}


def families() -> list[str]:
    """Names of the model families, as ``model_type`` of ``config.json`` gives them."""
    return list(_FAMILIES)


def family_class(family: str) -> type[PromptSegmenter]:
    """The class of one of :func:`families`."""
    module, name = _FAMILIES[family]
    found: type[PromptSegmenter] = getattr(importlib.import_module(f"vlsm_adapter.models.{module}"), name)
    return found


def load_model(name: str | Path, dtype: str | torch.dtype = "auto") -> PromptSegmenter:
    """Load a base model, frozen and in evaluation mode.

    Args:
        name: ``"tiny"`` (in the package), a local folder in Hugging Face format, a hub id such as
            ``"CIDAS/clipseg-rd64-refined"``, or a text-free network (:func:`text_free_models`), whose weights are random.
        dtype: type of the weights in memory; ``"auto"`` is float32, whatever the file holds.

    Raises:
        ModelError: unknown name, missing or damaged files, a pickle, or a family that is not supported.
    """
    import torch

    from vlsm_adapter.models import checkpoints
    from vlsm_adapter.models.low_precision import start_threads

    start_threads()
    if isinstance(dtype, str):
        if dtype not in _DTYPES:
            raise ModelError(f"dtype '{dtype}' is unknown: {nearest(dtype, _DTYPES)}")
        dtype = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    base_id = str(name)
    source: str | Path
    if base_id in _TEXT_FREE:
        return family_class("text_free").from_pretrained(base_id, base_id, dtype)
    if base_id in _EMBEDDED:
        source = _EMBEDDED[base_id]
    elif Path(base_id).is_dir():
        source = Path(base_id).resolve()
        base_id = str(source)  # it goes into adapter folders, which outlive the working directory
    elif base_id.count("/") == 1 and not base_id.startswith((".", "/", "~")):
        source = base_id
    else:
        raise ModelError(
            f"model '{base_id}' is neither a folder nor a hub id ('owner/name'): {nearest(base_id, (*_EMBEDDED, *_TEXT_FREE))}"
        )
    config = checkpoints.read_config(source, base_id)
    family = str(config.get("model_type", "(none)"))
    if family not in _FAMILIES:
        raise ModelError(f"model '{base_id}': model_type '{family}' is not supported: {nearest(family, _FAMILIES)}")
    model = family_class(family).from_pretrained(source, base_id, dtype)
    # A folder without this file has sizes that fit most models; another may be chosen before the first image.
    given = not isinstance(source, Path) or (source / "preprocessor_config.json").is_file()
    if given and (refused := model.refused_size(model.preprocessing.size)):
        raise ModelError(f"{source}: preprocessor_config.json: {refused}")
    return model


def base_folder(name: str | Path) -> Path:
    """The folder that holds the files of a base model: its own, the package's, or the hub's cache.

    Raises:
        ModelError: it cannot be found, or has no files (text-free networks).
    """
    from vlsm_adapter.models import checkpoints

    folder = _EMBEDDED.get(str(name), Path(name))
    found = folder if folder.is_dir() else checkpoints.weights_folder(str(name))
    if found is None or not checkpoints.weights_files(found):
        raise ModelError(f"model '{name}': no folder with model.safetensors found; give its folder")
    return found


def hash_on_disk(name: str | Path) -> str | None:
    """The hash of a base model's weights as :attr:`PromptSegmenter.base_hash`, without loading it and without the network.

    None where its files are not on this machine (or a network starts from random weights), or cannot be read.
    """
    from vlsm_adapter.models import checkpoints

    folder = _EMBEDDED.get(str(name), Path(name).expanduser())
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        if str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
            return None
        cached = try_to_load_from_cache(str(name), "config.json")
        if not isinstance(cached, str):
            return None
        folder = Path(cached).parent
    try:
        return checkpoints.hash_folder(folder)
    except (ModelError, OSError):
        return None


def embedded_models() -> list[str]:
    """Names of the models that come with the package."""
    return list(_EMBEDDED)


def text_free_models() -> list[str]:
    """Names of the text-free references, networks of MONAI that train from random weights."""
    return list(_TEXT_FREE)
