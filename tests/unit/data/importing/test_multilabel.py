"""Label maps and folder pairs: a case for each class; what the table does not name is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlsm_adapter.data.importing import import_data
from vlsm_adapter.errors import ConfigError, DataError

LABELS = np.zeros((12, 10), np.uint8)
LABELS[:2], LABELS[3:6], LABELS[8:, :5] = 1, 2, 4


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """``make({"a": labels, ...})``: data/images and data/masks with a PNG each."""

    def write(masks: dict[str, np.ndarray | Image.Image], ending: str = ".png") -> Path:
        for folder in ("images", "masks"):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
        for number, (name, mask) in enumerate(masks.items()):
            picture = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
            picture.save(tmp_path / "data/masks" / (name + ending))
            Image.new("RGB", picture.size, (number, 9, 9)).save(tmp_path / f"data/images/{name}.jpg")
        return tmp_path / "data"

    return write


def areas(imported: Callable, folder: Path) -> dict[str, int]:
    return {name: int(mask.sum()) for name, (_, mask) in imported(folder).items()}


def palette(labels: np.ndarray) -> Image.Image:
    picture = Image.fromarray(labels)
    picture = picture.convert("P")
    picture.putpalette([value for index in range(256) for value in (index * 40 % 256, index, 255 - index)])
    return Image.fromarray(labels, "L") if picture.mode != "P" else picture


def coloured(labels: np.ndarray) -> np.ndarray:
    table = np.zeros((256, 3), np.uint8)
    table[1], table[2], table[4] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return table[labels]


@pytest.mark.parametrize("kind", ["8-bit", "16-bit", "32-bit", "palette", "colour"])
def test_a_case_for_each_class(make: Callable, imported: Callable, tmp_path: Path, kind: str) -> None:
    mask = {
        "8-bit": LABELS,
        "16-bit": LABELS.astype(np.uint16),
        "32-bit": LABELS.astype(np.int32),
        "palette": palette(LABELS),
        "colour": coloured(LABELS),
    }[kind]
    table = "#ff0000=liver,#00ff00=liver tumor,#0000ff=-" if kind == "colour" else "1=liver,2=liver tumor,4=-"
    summary = import_data(
        make({"a": mask}, ".tif" if kind == "32-bit" else ".png"), tmp_path / "out", options={"classes": table}
    )
    assert areas(imported, tmp_path / "out") == {"a__liver": 20, "a__liver_tumor": 30}
    assert summary.images == 1
    record, mask_read = imported(tmp_path / "out")["a__liver_tumor"]
    assert record.prompts["p1"] == ("liver tumor",)
    assert record.group == "image:a"
    assert mask_read[3:6].all()


def test_values_are_united_and_synonyms_kept(make: Callable, imported: Callable, tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("whole tumour: [1, 2, 4]\n")
    import_data(make({"a": LABELS}), tmp_path / "out", options={"classes": str(tmp_path / "t.yaml")})
    assert areas(imported, tmp_path / "out") == {"a": 70}
    (tmp_path / "u.yaml").write_text("1: [liver, hepatic organ]\n'*': '-'\n")
    import_data(make({"a": LABELS}), tmp_path / "other", options={"classes": str(tmp_path / "u.yaml")})
    assert imported(tmp_path / "other")["a"][0].prompts["p1"] == ("liver", "hepatic organ")


def test_absent_classes_by_policy(make: Callable, imported: Callable, tmp_path: Path) -> None:
    masks = {f"m{number:02d}": LABELS if number % 2 else np.zeros_like(LABELS) for number in range(20)}
    data = make(masks)
    for policy, kept in (("drop", 0), ("keep", 20), ("0.5", None)):
        out = tmp_path / f"out-{policy}"
        summary = import_data(data, out, options={"classes": "1=liver,2=tumor,4=-", "empty": policy})
        found = areas(imported, out)
        empty = sum(area == 0 for area in found.values())
        assert empty == summary.empty_masks
        assert len(found) == 20 + empty
        if kept is not None:
            assert empty == kept
        else:
            assert 3 <= empty <= 17
        assert bool(summary.warnings) == (policy != "keep")


def test_values_that_the_table_does_not_name_are_refused(make: Callable, tmp_path: Path) -> None:
    data = make({"a": LABELS})
    with pytest.raises(
        DataError, match=r"a.png: holds the value\(s\) 4, which the class table does not name: add them, e.g. 4=NAME"
    ):
        import_data(data, tmp_path / "out", options={"classes": "1=liver,2=tumor"})
    with pytest.raises(DataError, match="no value of a label file"):
        import_data(data, tmp_path / "out", options={"classes": "organ=liver"})
    with pytest.raises(DataError, match="need a class table"):
        import_data(data, tmp_path / "out", format="multilabel")
    noise = np.random.default_rng(0).integers(0, 255, (12, 10), np.uint8)
    with pytest.raises(DataError, match=r"and [0-9]+ more, which"):
        import_data(make({"a": noise}), tmp_path / "out", options={"classes": "1=liver"})


def test_labels_in_a_jpeg_are_refused(make: Callable, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lossy"):
        import_data(make({"a": LABELS}, ".jpg"), tmp_path / "out", options={"classes": "1=a,2=b,4=c"})


def test_fractions_of_labels_are_refused(make: Callable, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="labels must be whole numbers"):
        import_data(make({"a": LABELS.astype(np.float32) / 3}, ".tif"), tmp_path / "out", options={"classes": "1=a"})


# --- folder pairs -----------------------------------------------------------------------------------------------------


def test_pairs_with_a_prompt(make: Callable, imported: Callable, tmp_path: Path) -> None:
    binary = {f"p{number}_{side}": (number < LABELS).astype(np.uint8) * 255 for number in (0, 1) for side in "ab"}
    summary = import_data(
        make(binary), tmp_path / "out", options={"prompt": "polyp", "group_by": "(p[0-9])_", "spacing": "0.3"}
    )
    assert summary.groups == 2
    record, mask = imported(tmp_path / "out")["p1_a"]
    assert (record.group, record.spacing, record.prompts["p1"]) == ("p1", (0.3, 0.3), ("polyp",))
    assert mask.sum() == (LABELS > 1).sum()
    assert record.image.suffix == ".jpg", "images are copied as they are"


def test_pairs_in_folders_of_any_name(make: Callable, tmp_path: Path) -> None:
    data = make({"a": (LABELS > 0).astype(np.uint8)})
    (data / "images").rename(data / "pictures")
    (data / "masks").rename(tmp_path / "outlines")
    options = {"prompt": "polyp", "images": str(data / "pictures"), "masks": str(tmp_path / "outlines")}
    assert import_data(data, tmp_path / "out", options=options).cases == 1
    with pytest.raises(DataError, match="also say where the masks are"):
        import_data(data, tmp_path / "x", options={**options, "masks": None}, format="folders")
    with pytest.raises(DataError, match="pass --prompt"):
        import_data(data, tmp_path / "x", options={**options, "prompt": None})
    (tmp_path / "secret.jpg").write_bytes((data / "pictures/a.jpg").read_bytes())
    (data / "pictures/a.jpg").unlink()
    (data / "pictures/a.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(DataError, match="out of"):
        import_data(data, tmp_path / "x", options=options)


def test_the_published_layout_and_manifests_keep_what_they_say(tmp_path: Path, imported: Callable) -> None:
    from vlsm_adapter.data.phantoms import write_phantoms
    from vlsm_adapter.data.records import load_records, write_manifest

    write_phantoms(tmp_path / "data", cases_per_modality=5, modalities=("endoscopy",), sizes=((64, 72),))
    summary = import_data(tmp_path / "data", tmp_path / "out")
    before = {record.case_id: record for record in load_records(tmp_path / "data")[0]}
    after = imported(tmp_path / "out")
    assert summary.cases == 5
    assert {name: (record.split, record.prompts) for name, (record, _) in after.items()} == {
        name: (record.split, record.prompts) for name, record in before.items()
    }
    write_manifest(before.values(), tmp_path / "data/records.jsonl")
    assert import_data(tmp_path / "data", tmp_path / "again").cases == 5


def test_binary_masks_by_policy(make: Callable, tmp_path: Path) -> None:
    data = make({"a": LABELS * 0, "b": (LABELS > 0).astype(np.uint8)})
    assert import_data(data, tmp_path / "keep", options={"prompt": "x"}).empty_masks == 1
    summary = import_data(data, tmp_path / "drop", options={"prompt": "x", "empty": "drop"})
    assert (summary.cases, summary.empty_masks) == (1, 0)


def test_a_label_map_without_table_says_what_to_do(make: Callable, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one of which must be chosen"):
        import_data(make({"a": LABELS}), tmp_path / "out", options={"prompt": "x"})
    with pytest.raises(ConfigError, match="--columns says nothing about the format 'folders'"):
        import_data(make({"a": LABELS}), tmp_path / "out", options={"prompt": "x", "columns": "image=a"})
