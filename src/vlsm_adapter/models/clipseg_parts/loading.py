"""A CLIPSeg from a folder or hub id in Hugging Face format, strictly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from vlsm_adapter.errors import ModelError, one_line
from vlsm_adapter.models import checkpoints
from vlsm_adapter.models.clipseg_parts.config import CLIPSegConfig
from vlsm_adapter.models.clipseg_parts.network import CLIPSegNetwork
from vlsm_adapter.models.sizes import Blocks, Width, check_sizes, side


def load_network(source: str | Path, base_id: str, dtype: torch.dtype) -> CLIPSegNetwork:
    """Build the modules and fill them from the safetensors files, which stay mapped into memory where types agree.

    Raises:
        ModelError: no safetensors (a pickle is refused), a damaged file, values of ``config.json`` that no model can be
            built with or that contradict the weights, or weights that do not fit it.
    """
    if isinstance(source, Path):
        checkpoints.refuse_other_folders(source)
    values = checkpoints.read_config(source, base_id)
    try:
        try:
            config = CLIPSegConfig.from_dict(values)
        except ModelError as error:
            raise ModelError(f"model '{base_id}': {error}") from error
        paths = _weights(source, base_id)
        tensors = _tensors(paths)
        check_sizes(_sizes(config), tensors, *_files(source, paths))
        with torch.device("meta"):  # no weight is drawn at random first
            network = CLIPSegNetwork(config)
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


def _sizes(config: CLIPSegConfig) -> Iterator[Width | Blocks]:
    """What the weights show of ``config.json``; heads are in no shape."""
    text, vision, depth = config.text_config, config.vision_config, len(config.extract_layers)
    text_model, vision_model = "clip.text_model", "clip.vision_model"
    words, places = (f"{text_model}.embeddings.{name}_embedding.weight" for name in ("token", "position"))
    patches, grid = (f"{vision_model}.embeddings.{name}_embedding.weight" for name in ("patch", "position"))
    yield Blocks("text_config.num_hidden_layers", text.num_hidden_layers, f"{text_model}.encoder.layers.")
    yield Blocks("vision_config.num_hidden_layers", vision.num_hidden_layers, f"{vision_model}.encoder.layers.")
    yield Blocks("the number of extract_layers", depth, "decoder.layers.")
    yield Width("text_config.vocab_size", text.vocab_size, words)
    yield Width("text_config.hidden_size", text.hidden_size, words, 1)
    yield Width("text_config.max_position_embeddings", text.max_position_embeddings, places)
    inner = "encoder.layers.0.mlp.fc1.weight"
    yield Width("text_config.intermediate_size", text.intermediate_size, f"{text_model}.{inner}")
    yield Width("vision_config.hidden_size", vision.hidden_size, patches)
    yield Width("vision_config.num_channels", vision.num_channels, patches, 1)
    yield Width("vision_config.patch_size", vision.patch_size, patches, 2)
    yield Width("vision_config.image_size", vision.image_size, grid, 0, side(vision.patch_size, extra=1))
    yield Width("vision_config.intermediate_size", vision.intermediate_size, f"{vision_model}.{inner}")
    yield Width("projection_dim", config.projection_dim, "clip.text_projection.weight")
    yield Width("reduce_dim", config.reduce_dim, "decoder.film_mul.weight")
    yield Width("decoder_intermediate_size", config.decoder_intermediate_size, "decoder.layers.0.mlp.fc1.weight")


def _files(source: str | Path, paths: list[Path]) -> tuple[Path | str, Path | str]:
    """``config.json`` and the weights, for messages."""
    config = checkpoints.find_file(source, "config.json") or "config.json"
    return config, paths[0] if len(paths) == 1 else paths[0].parent / "*.safetensors"


def _tensors(paths: list[Path]) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for path in paths:
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
