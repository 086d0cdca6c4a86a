"""Layers that napari takes, made without napari; its manifest names what is there."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from vlsm_adapter.errors import DataError
from vlsm_adapter.integrations import napari
from vlsm_adapter.integrations.napari import get_reader, label_layers, prediction_layers
from vlsm_adapter.types import Prediction


def folder_of(root: Path, rows: list[dict[str, str]], masks: dict[str, np.ndarray]) -> Path:
    out = root / "predictions"
    for name, mask in masks.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(out / name)
    out.mkdir(exist_ok=True)
    with (out / "predictions.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, fieldnames=["image", "prompt", "mask", "picture", "pictures", "label"])
        writer.writeheader()
        writer.writerows(rows)
    return out


def mask_of(*pixels: tuple[int, int]) -> np.ndarray:
    made = np.zeros((4, 6), np.uint8)
    for pixel in pixels:
        made[pixel] = 255
    return made


@pytest.fixture
def predicted(tmp_path: Path) -> Path:
    Image.new("RGB", (6, 4), "red").save(tmp_path / "a.png")
    rows = [
        {"image": str(tmp_path / "a.png"), "prompt": "polyp", "mask": "a__polyp.png", "pictures": "1"},
        {"image": str(tmp_path / "a.png"), "prompt": "tool", "mask": "a__tool.png", "pictures": "1"},
        {"image": str(tmp_path / "gone.png"), "prompt": "polyp", "mask": "gone__polyp.png", "pictures": "1"},
    ]
    masks = {"a__polyp.png": mask_of((0, 1)), "a__tool.png": mask_of((0, 1), (3, 5)), "gone__polyp.png": mask_of()}
    return folder_of(tmp_path, rows, masks)


def test_a_folder_gives_image_and_overlapping_labels(predicted: Path) -> None:
    layers = label_layers(predicted)
    assert [(kwargs["name"], kind) for _, kwargs, kind in layers] == [
        ("a", "image"), ("a: polyp", "labels"), ("a: tool", "labels"), ("gone: polyp", "labels"),
    ]  # fmt: skip
    image, polyp, tool, gone = (data for data, _, _ in layers)
    assert image.shape == (4, 6, 3)
    assert polyp.dtype == np.uint8
    assert np.argwhere(polyp).tolist() == [[0, 1]]
    assert polyp.max() == 1
    assert (tool.max(), int((tool > 0).sum())) == (2, 2)
    assert not gone.any()
    assert [kwargs["visible"] for _, kwargs, _ in layers] == [True, True, True, False]
    assert [kind for _, _, kind in label_layers(predicted, images=False)] == ["labels"] * 3


def test_labels_that_compete_and_pages_are_told_apart(tmp_path: Path) -> None:
    labels = np.array([[0, 1], [2, 2]], np.uint8)
    rows = [
        {"image": "v", "prompt": "a", "mask": "v/0.png", "picture": "0", "pictures": "2", "label": "1"},
        {"image": "v", "prompt": "b", "mask": "v/0.png", "picture": "0", "pictures": "2", "label": "2"},
        {"image": "v", "prompt": "a", "mask": "v/1.png", "picture": "1", "pictures": "2", "label": "1"},
    ]
    layers = label_layers(folder_of(tmp_path, rows, {"v/0.png": labels, "v/1.png": labels}))
    assert [kwargs["name"] for _, kwargs, _ in layers] == ["v 0: a", "v 0: b", "v 1: a"]
    assert [int((data > 0).sum()) for data, _, _ in layers] == [1, 2, 1]


def test_the_reader_answers_for_such_folders_only(predicted: Path, tmp_path: Path) -> None:
    reader = get_reader(str(predicted))
    assert reader is not None
    assert len(reader(str(predicted))) == 4
    assert len(reader([str(predicted)])) == 4
    assert get_reader([str(predicted / "predictions.csv")]) is not None
    assert get_reader(str(tmp_path)) is None
    assert get_reader([str(predicted), str(predicted)]) is None
    (tmp_path / "predictions.csv").write_text("a,b\n1,2\n")
    assert get_reader(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        ("../a.png", "outside its folder"),
        ("/etc/x.png", "outside its folder"),
        ("none.png", "none.png"),
        ("v.nii.gz", "plugin"),
    ],
)
def test_a_table_that_lies_is_refused(tmp_path: Path, mask: str, says: str) -> None:
    folder = folder_of(tmp_path, [{"image": "a", "prompt": "p", "mask": mask}], {})
    with pytest.raises(DataError, match=says):
        label_layers(folder)


def test_not_a_folder_of_predictions(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="vlsm predict"):
        label_layers(tmp_path)
    (tmp_path / "predictions.csv").write_text("image,prompt\n")
    with pytest.raises(DataError, match="'mask'"):
        label_layers(tmp_path)


def test_answers_at_hand() -> None:
    mask = mask_of((1, 1)) > 0
    one = Prediction("polyp", mask.astype(np.float32), mask, 0.5)
    layers = prediction_layers([one, one], name="a", image=np.zeros((4, 6, 3), np.uint8))
    assert [kind for _, _, kind in layers] == ["image", "labels", "labels"]
    assert layers[2][0].max() == 2
    assert layers[1][1]["metadata"] == {"prompt": "polyp", "threshold": 0.5}


def test_the_manifest_names_what_is_there() -> None:
    manifest = yaml.safe_load(Path(napari.__file__).with_name("napari.yaml").read_text())
    (command,) = manifest["contributions"]["commands"]
    module, _, name = command["python_name"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    (reader,) = manifest["contributions"]["readers"]
    assert reader["command"] == command["id"]
    assert command["id"].startswith(f"{manifest['name']}.")
