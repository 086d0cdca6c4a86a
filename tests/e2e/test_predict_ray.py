"""``vlsm predict --ray``: the same answers from a real cluster of Ray on this machine."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlsm_adapter import DenseAdapterConfig, attach, load_model, save_adapter

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray (the extra 'study')")
pytestmark = [needs_ray, pytest.mark.slow]


def test_a_cluster_gives_the_same_answers(vlsm: Callable, base_folder: Path, tmp_path: Path) -> None:
    model = load_model(base_folder)
    attach(model, DenseAdapterConfig(bottleneck_dim=4))
    save_adapter(model, tmp_path / "adapter")
    data = tmp_path / "data"
    data.mkdir()
    generator = np.random.default_rng(2)
    for number in range(6):
        Image.fromarray(generator.integers(0, 256, (24, 30, 3), np.uint8)).save(data / f"p{number}.png")
    (data / "broken.png").write_bytes(b"no picture")
    command = ["predict", tmp_path / "adapter", data, "--prompt", "polyp", "--workers", "1"]
    assert vlsm(*command, "-o", tmp_path / "here").code == 0
    answer = vlsm(*command, "-o", tmp_path / "there", "--ray", "local")
    assert answer.code == 0, answer.err
    assert "6 mask files of 6 inputs" in answer.err
    for name in ("predictions.csv", "failures.csv"):
        with (tmp_path / "here" / name).open() as here, (tmp_path / "there" / name).open() as there:
            assert list(csv.reader(here)) == list(csv.reader(there))
    for number in range(6):
        with (
            Image.open(tmp_path / "here" / f"p{number}.png") as here,
            Image.open(tmp_path / "there" / f"p{number}.png") as there,
        ):
            np.testing.assert_array_equal(np.asarray(here), np.asarray(there))
    again = vlsm(*command, "-o", tmp_path / "there", "--ray", "local")
    assert "6 of 7 are done already" in again.err


def test_no_cluster_there(vlsm: Callable, base_folder: Path, tmp_path: Path) -> None:
    model = load_model(base_folder)
    attach(model, DenseAdapterConfig(bottleneck_dim=4))
    save_adapter(model, tmp_path / "adapter")
    Image.new("RGB", (30, 24)).save(tmp_path / "a.png")
    command = ["predict", tmp_path / "adapter", tmp_path / "a.png", "--prompt", "polyp", "-o", tmp_path / "out"]
    answer = vlsm(*command, "--ray", "127.0.0.1:9")
    assert answer.code == 2
    assert "--ray 127.0.0.1:9: no cluster answers" in answer.error
    assert not (tmp_path / "out").exists()
