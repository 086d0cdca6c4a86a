"""Reading checkpoints in Hugging Face format, strictly: safetensors only, nothing missing, nothing unpickled."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from vlsm_adapter.errors import ModelError, one_line
from vlsm_adapter.models.known_hashes import FileState, hash_of, state_of
from vlsm_adapter.models.preprocessing import Preprocessing
from vlsm_adapter.models.sizes import Blocks, check_sizes
from vlsm_adapter.models.tokenizer import FileTokenizer, is_plain

WEIGHTS_INDEX = "model.safetensors.index.json"

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def read_config(source: str | Path, base_id: str) -> dict[str, Any]:
    """``config.json`` of a folder or hub id.

    Raises:
        ModelError: not found or not JSON.
    """
    path = find_file(source, "config.json")
    if path is None:
        if isinstance(source, Path) and (source / "adapter_config.json").is_file():
            raise ModelError(f"{source}: is an adapter folder, not a base model; load it with load_adapter")
        raise ModelError(
            f"model '{base_id}': no config.json found; give 'tiny', a folder in Hugging Face format, or a hub id "
            "that this machine can reach"
        )
    return _read_json(path, base_id)


def load_stock_model(
    model_class: type[PreTrainedModel],
    source: str | Path,
    base_id: str,
    dtype: torch.dtype,
    blocks: Sequence[Blocks] = (),
) -> Any:
    """Build the stock model and load its safetensors weights strictly.

    Args:
        blocks: of ``config.json``, to be compared first with the weights that are on this machine.

    Raises:
        ModelError: no safetensors (a pickle is refused), a damaged file, blocks that are in no weights, or missing weights.
    """
    if isinstance(source, Path):
        refuse_other_folders(source)
    _check_blocks(blocks, source, base_id)
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()  # half a second of bar per load says nothing to a user
    transformers_logging.set_verbosity_error()  # its table of missing weights becomes our one line
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, info = model_class.from_pretrained(
                str(source), use_safetensors=True, output_loading_info=True, dtype=dtype
            )
    except Exception as error:  # config.json reaches constructors that raise anything, ZeroDivisionError among them
        raise ModelError(f"model '{base_id}': cannot be loaded ({one_line(error)}); fetch or copy it again") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
    missing = sorted(key for key in info["missing_keys"] if not key.endswith("position_ids"))
    wrong = sorted(str(key) for key in info.get("mismatched_keys", ()))
    if missing or wrong:
        raise ModelError(
            f"model '{base_id}': weights do not fit config.json; missing {missing[:3]}, of other shape {wrong[:3]} "
            f"({len(missing)} and {len(wrong)} in all)"
        )
    return model


def _check_blocks(blocks: Sequence[Blocks], source: str | Path, base_id: str) -> None:
    folder = weights_folder(source) if blocks else None
    if folder is None:
        return
    tensors: dict[str, torch.Tensor] = {}
    for path in weights_files(folder):
        try:
            tensors.update(load_file(path))  # mapped, not read
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"model '{base_id}': {path} cannot be loaded ({one_line(error)}); fetch or copy it again"
            ) from error
    check_sizes(blocks, tensors, folder / "config.json", folder / "*.safetensors")


def refuse_other_folders(folder: Path) -> None:
    """Refuse a folder that holds a pickle in place of weights, none, or an adapter beside them.

    Raises:
        ModelError: it does.
    """
    if not weights_files(folder):
        pickles = sorted(path.name for path in folder.glob("*.bin")) + sorted(path.name for path in folder.glob("*.pt"))
        if pickles:
            raise ModelError(
                f"{folder / pickles[0]}: a pickle can run code and is refused; convert it to model.safetensors"
            )
        raise ModelError(f"{folder}: holds no model.safetensors; copy the whole folder")
    if (folder / "adapter_config.json").is_file():
        # Which of the two is meant is not ours to guess; transformers would load that adapter into the base on its own.
        raise ModelError(
            f"{folder}: holds a base model and an adapter (adapter_config.json); move one of them elsewhere"
        )


def load_preprocessing(source: str | Path, base_id: str, default: Preprocessing | None = None) -> Preprocessing:
    """The preprocessing saved beside the weights; ``default``, or CLIPSeg's own, where there is none."""
    path = find_file(source, "preprocessor_config.json")
    if path is None:
        return default or Preprocessing()
    values = _read_json(path, base_id)
    try:
        return Preprocessing.from_hugging_face(values)
    except ModelError as error:
        raise ModelError(f"{path.parent}: {error}") from error


def load_tokenizer(source: str | Path, base_id: str) -> PreTrainedTokenizerBase | FileTokenizer | None:
    """The tokenizer saved beside the weights, or None where a local folder has none.

    Raises:
        ModelError: its files are damaged.
    """
    names = ("tokenizer.json", "vocab.json", "tokenizer_config.json")
    if isinstance(source, Path) and not any((source / name).exists() for name in names):
        return None
    try:
        whole, config = (find_file(source, name) for name in ("tokenizer.json", "tokenizer_config.json"))
        if whole is not None and config is not None and whole.parent == config.parent:
            own = FileTokenizer(config.parent) if is_plain(_read_json(config, base_id)) else None
            if own is not None and own.is_complete:
                return own
        return _load_stock_tokenizer(source)
    except ModelError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception on a damaged file
        raise ModelError(
            f"model '{base_id}': the tokenizer cannot be read ({one_line(error)}); copy its files again"
        ) from error


def _load_stock_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it warns of model types that are not its own, such as 'san'
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(source))
        return tokenizer
    finally:
        transformers_logging.set_verbosity(verbosity)


def weights_folder(source: str | Path) -> Path | None:
    """The local folder that holds the weights files, also for a hub id (its snapshot in the cache)."""
    if isinstance(source, Path):
        return source
    found = find_file(source, "config.json")
    return found.parent if found is not None and weights_files(found.parent) else None


def weights_files(folder: Path) -> list[Path]:
    """The safetensors files of a base model: ``model.safetensors``, or the parts that its index names.

    Not every safetensors file of the folder: neither an adapter saved into it nor parts of other weights that were left there
    must change what the base is.
    """
    whole = folder / "model.safetensors"
    if whole.is_file():
        return [whole]
    try:
        names = indexed_files(folder / WEIGHTS_INDEX)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return sorted(folder.glob("model-*-of-*.safetensors"))  # without an index, or a readable one
    return [folder / name for name in names]


def weights_state(source: str | Path) -> list[FileState] | None:
    """What tells the weights files of a local folder from later ones in their place; None of a hub id, whose files stay."""
    return state_of(weights_files(source)) if isinstance(source, Path) else None


def indexed_files(index: Path) -> list[str]:
    """Names of the files that ``model.safetensors.index.json`` names.

    Raises:
        OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError: it is missing or malformed.
    """
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    if not names or any(Path(name).name != name for name in names):
        raise ValueError(f"{index}: names files outside the folder")
    return names


def hash_folder(folder: Path) -> str:
    """SHA-256 over all tensors of the base model in ``folder``, independent of file layout and order.

    Of large files it is kept (:mod:`.known_hashes`).

    Raises:
        ModelError: there are none (any more), or a file is truncated or not safetensors.
    """
    paths = weights_files(folder)
    if not paths:  # the hash of nothing would go into an adapter's folder, which then fits no base
        raise ModelError(f"{folder}: the weights that the model was loaded from are gone; put them back there")
    return hash_of(paths, lambda: _hash_tensors_in(folder))


def _hash_tensors_in(folder: Path) -> str:
    digest = hashlib.sha256()
    tensors: dict[str, Path] = {}
    for path in weights_files(folder):
        try:
            with safe_open(path, framework="pt") as handle:
                tensors.update(dict.fromkeys(handle.keys(), path))
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: truncated or not safetensors ({one_line(error)}); copy it again") from error
    handles: dict[Path, Any] = {path: safe_open(path, framework="pt") for path in set(tensors.values())}
    for name in sorted(tensors):
        hash_tensor(digest, name, handles[tensors[name]].get_tensor(name))
    return digest.hexdigest()


def hash_tensor(digest: hashlib._Hash, name: str, tensor: torch.Tensor) -> None:
    """Add name, type, shape and bytes of ``tensor`` to ``digest``."""
    digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
    digest.update(tensor.contiguous().cpu().flatten().view(torch.uint8).numpy().data)


def find_file(source: str | Path, name: str) -> Path | None:
    """A file of a folder, or of a hub id (downloaded, or from the local cache); None where there is none."""
    if isinstance(source, Path):
        path = source / name
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return Path(hf_hub_download(source, name))
    except (OSError, ValueError, HfHubHTTPError):  # not there, not reachable, or not a well-formed id
        return None


def _read_json(path: Path, base_id: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"model '{base_id}': {path} is not readable JSON ({one_line(error)}); copy it again"
        ) from error
    if not isinstance(values, dict):
        raise ModelError(f"model '{base_id}': {path} holds no JSON object; copy it again")
    return values
