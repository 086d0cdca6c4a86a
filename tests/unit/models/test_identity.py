"""The hash of a base: of its files, as long as the weights in memory are those of the files."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlsm_adapter import DenseAdapterConfig, attach, load_adapter, load_model, save_adapter
from vlsm_adapter.errors import AdapterError
from vlsm_adapter.models import checkpoints
from vlsm_adapter.models.base import PromptSegmenter
from vlsm_adapter.models.low_precision import lower_precision

KEY = "clipseg.clip.text_projection.weight"


@pytest.fixture
def folder(base_folder: Path, tmp_path: Path) -> Path:
    """A copy of the base that a test may spoil; in bfloat16, so that its hash is not that of the weights in memory."""
    copied = Path(shutil.copytree(base_folder, tmp_path / "copy"))
    weights = load_file(copied / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in weights.items()}, copied / "model.safetensors")
    return copied


def add(model: PromptSegmenter) -> None:
    with torch.no_grad():
        model.get_parameter(KEY)[0].add_(1)


def add_past_the_count(model: PromptSegmenter) -> None:
    model.get_parameter(KEY).data.add_(1)


def replace(model: PromptSegmenter) -> None:
    layer = model.get_submodule(KEY.rpartition(".")[0])
    layer.weight = torch.nn.Parameter(layer.weight.detach() + 1, requires_grad=False)


def load_state(model: PromptSegmenter) -> None:
    model.load_state_dict({name: tensor + 1 for name, tensor in model.state_dict().items()})


@pytest.mark.parametrize("change", [add, add_past_the_count, replace, load_state])
@pytest.mark.parametrize("asked", [False, True], ids=["", "asked before"])
def test_weights_changed_in_memory_are_not_called_those_of_the_files(
    folder: Path, change: Callable[[PromptSegmenter], None], asked: bool
) -> None:
    model = load_model(folder)
    original = checkpoints.hash_folder(folder)
    if asked:
        assert model.base_hash == original
    change(model)
    changed = model.base_hash
    assert changed != original
    assert model.base_hash == changed
    assert copy.deepcopy(model).base_hash == changed
    add(model)
    assert model.base_hash not in (original, changed)


def test_an_adapter_of_a_changed_base_is_refused_on_the_base_of_the_files(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder)
    attach(model, DenseAdapterConfig(bottleneck_dim=4))
    with torch.no_grad():
        model.get_parameter(KEY).add_(1)
    save_adapter(model, tmp_path / "adapter")
    with pytest.raises(AdapterError, match="with hash"):
        load_adapter(tmp_path / "adapter")
    load_adapter(tmp_path / "adapter", model=_changed(folder))


def _changed(folder: Path) -> PromptSegmenter:
    model = load_model(folder)
    with torch.no_grad():
        model.get_parameter(KEY).add_(1)
    return model


def test_changes_that_are_taken_back_are_none(folder: Path) -> None:
    model = load_model(folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    add(model)
    assert model.base_hash != checkpoints.hash_folder(folder)
    model.load_state_dict(before)
    assert model.base_hash == checkpoints.hash_folder(folder)


@pytest.mark.parametrize(
    "keep",
    [
        lambda model: model.to(torch.bfloat16).float(),
        lambda model: model.double(),
        lambda model: copy.deepcopy(model),
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: lower_precision(model, "bf16"),
        lambda model: lower_precision(model, "int8"),
        lambda model: attach(model, DenseAdapterConfig(bottleneck_dim=4)),
        lambda model: model.requires_grad_(True).train(),
    ],
    ids=["rounded", "double", "copy", "pickle", "bf16", "int8", "adapter", "trainable"],
)
def test_what_moves_rounds_or_copies_a_model_leaves_it_the_model_of_its_files(
    folder: Path, keep: Callable[[PromptSegmenter], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(folder)
    result = keep(model)
    monkeypatch.setattr(type(model), "_equals_its_files", lambda model: False)  # nothing is read again for it
    for one in (model, result if isinstance(result, PromptSegmenter) else model):
        assert one.base_hash == checkpoints.hash_folder(folder)


def test_files_replaced_after_loading_are_not_what_was_loaded(folder: Path, base_folder: Path) -> None:
    model, other = load_model(folder), load_model(folder)
    original = checkpoints.hash_folder(folder)
    assert other.base_hash == original
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, folder / "new.safetensors")
    (folder / "new.safetensors").replace(folder / "model.safetensors")
    assert model.base_hash not in (original, checkpoints.hash_folder(folder))
    assert other.base_hash == original  # asked before


def test_files_that_were_only_touched_are_the_same(folder: Path) -> None:
    model = load_model(folder)
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert model.base_hash == checkpoints.hash_folder(folder)


def test_files_touched_after_a_conversion_are_the_same(folder: Path) -> None:
    model = load_model(folder)
    lower_precision(model, "int8")
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert model.base_hash == checkpoints.hash_folder(folder)


def test_a_model_pickled_before_it_knew_its_files_is_read(folder: Path) -> None:
    model = load_model(folder)
    before = model.base_hash
    state = {name: value for name, value in model.__getstate__().items() if name not in ("_origin", "_mark")}
    old = copy.copy(model)
    old.__setstate__(state)
    assert old.base_hash == before


def test_a_model_of_no_file_is_hashed_anew_when_it_changes(new_model: Callable[..., PromptSegmenter]) -> None:
    model = new_model()
    before = model.base_hash
    add(model)
    assert model.base_hash != before
