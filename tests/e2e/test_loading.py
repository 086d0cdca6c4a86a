"""Cached and augmented training through the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

FAST = ("--epochs", 2, "--batch-size", 4, "--set", "log.tensorboard=false")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {name: value for name, value in load_file(run / "state.safetensors").items() if name.startswith("weights/")}


def test_a_second_run_decodes_nothing_and_ends_with_the_same_bits(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--data", phantoms, "--model", base_folder, *FAST)
    cache = tmp_path / "cache"
    answer = vlsm("train", *options, "-o", tmp_path / "off", "--cache-dir", "off")
    assert answer.code == 0, answer.err
    assert not cache.exists()
    answer = vlsm("train", *options, "-o", tmp_path / "first", "--cache-dir", cache)
    assert answer.code == 0, answer.err
    assert len(list(cache.rglob("*.case"))) == 16  # images and masks of six and two cases

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a cached file was decoded")

    monkeypatch.setattr("vlsm_adapter.data.loaders.read_image", refuse)
    monkeypatch.setattr("vlsm_adapter.data.loaders.read_mask", refuse)
    answer = vlsm("train", *options, "-o", tmp_path / "second", "--cache-dir", cache)
    assert answer.code == 0, answer.err
    first = weights(tmp_path / "first")
    for other in ("off", "second"):
        assert all(torch.equal(value, weights(tmp_path / other)[name]) for name, value in first.items())


def test_augmented_runs_are_repeatable_and_other_runs(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path
) -> None:
    options = ("--data", phantoms, "--model", base_folder, *FAST, "--level", "p6")
    for name, level in (("none", "none"), ("a", "medium"), ("b", "medium")):
        answer = vlsm("train", *options, "-o", tmp_path / name, "--augment", level)
        assert answer.code == 0, answer.err
    none, first, second = (weights(tmp_path / name) for name in ("none", "a", "b"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not all(torch.equal(value, none[name]) for name, value in first.items())
    answer = vlsm("train", *options, "-o", tmp_path / "c", "--augment", "strong")
    assert (answer.code, "data.augment='strong'" in answer.error) == (2, True)
