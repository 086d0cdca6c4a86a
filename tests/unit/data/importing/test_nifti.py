"""Volumes to cases: how they are paired, which slices and classes become cases, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vlsm_adapter.data.images import read_image
from vlsm_adapter.data.importing import import_data
from vlsm_adapter.errors import ConfigError, DataError

nibabel = pytest.importorskip("nibabel", reason="needs nibabel (pip install 'vlsm-adapter[volumes]')")

SHAPE = (10, 12, 6)
AFFINE = np.diag([-0.5, 0.75, 3, 1.0])  # stored from right to left, back to front, foot to head
LIVER, TUMOR = 1, 2


def labels() -> np.ndarray:
    """Liver on the slices 2 and 3, tumour on 3."""
    values = np.zeros(SHAPE, np.uint8)
    values[2:6, 3:8, 2:4] = LIVER
    values[3:5, 4:6, 3] = TUMOR
    return values


def save(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def scan(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 300, shape).astype(np.float32)


@pytest.fixture
def nnunet(tmp_path: Path) -> Path:
    """Two volumes as nnU-Net and the Decathlon keep them, with what macOS leaves in archives."""
    root = tmp_path / "Dataset001"
    for name in ("p1", "p2"):
        save(root / f"imagesTr/{name}_0000.nii.gz", scan())
        save(root / f"labelsTr/{name}.nii.gz", labels())
    (root / "imagesTr/._p1_0000.nii.gz").write_bytes(b"\0\5\26\7")
    (root / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": LIVER, "liver tumor": TUMOR}}))
    return root


def test_slices_and_classes(nnunet: Path, imported: Callable, tmp_path: Path) -> None:
    summary = import_data(nnunet, tmp_path / "out")
    cases = imported(tmp_path / "out")
    assert list(cases) == [
        f"{name}_axi000{slice_}__{what}"
        for name in ("p1", "p2")
        for slice_, what in ((2, "liver"), (3, "liver"), (3, "liver_tumor"))
    ]
    assert (summary.images, summary.groups, summary.classes) == (4, 2, {"liver": 4, "liver tumor": 2})
    record, mask = cases["p1_axi0003__liver_tumor"]
    assert record.group == "p1"
    assert record.spacing == pytest.approx((0.75, 0.5))
    assert record.prompts["p1"] == ("liver tumor",)
    # Front is up: y runs to the front in the file, so its rows are turned round; x runs to the left as the picture does.
    assert np.argwhere(mask).tolist() == [[row, column] for row in (6, 7) for column in (3, 4)]
    line = json.loads((tmp_path / "out/records.jsonl").read_text().splitlines()[2])
    assert line["attributes"] == {"class": "liver tumor", "volume": "p1", "plane": "axial", "slice": 3}


def test_intensities_are_windowed_by_volume(nnunet: Path, imported: Callable, tmp_path: Path) -> None:
    values = scan()
    import_data(nnunet, tmp_path / "out", options={"window": "0,600", "plane": "native"})
    picture = read_image(imported(tmp_path / "out")["p1_nat0002__liver"][0].image)
    expected = np.rint(np.clip((values[:, :, 2].T + 300) / 600, 0, 1) * 255)
    assert np.abs(picture[..., 0] - expected).max() <= 1
    assert (picture[..., 0] == picture[..., 2]).all()


def test_empty_slices_by_policy(nnunet: Path, tmp_path: Path) -> None:
    for policy, kept in (("drop", 0), ("keep", 18)):
        summary = import_data(nnunet, tmp_path / policy, options={"empty": policy})
        assert summary.empty_masks == kept
        assert summary.cases == 6 + kept
    share = import_data(nnunet, tmp_path / "share", options={"empty": "0.4"})
    assert 1 <= share.empty_masks <= 15


@pytest.mark.parametrize(
    ("plane", "size"), [("axial", (10, 12)), ("coronal", (10, 6)), ("sagittal", (12, 6)), ("native", (10, 12))]
)
def test_planes(nnunet: Path, imported: Callable, tmp_path: Path, plane: str, size: tuple[int, int]) -> None:
    from PIL import Image

    import_data(nnunet, tmp_path / "out", options={"plane": plane, "classes": "1=organ,2=organ"})
    cases = imported(tmp_path / "out")
    assert sum(mask.sum() for _, mask in cases.values()) == 2 * (labels() > 0).sum(), (
        "every foreground voxel is a pixel once"
    )
    for record, _ in cases.values():
        with Image.open(record.image) as picture:
            assert picture.size == size


def test_one_text_for_all_labels(nnunet: Path, imported: Callable, tmp_path: Path) -> None:
    import_data(nnunet, tmp_path / "out", options={"prompt": "abdominal organ"})
    cases = imported(tmp_path / "out")
    assert list(cases) == ["p1_axi0002", "p1_axi0003", "p2_axi0002", "p2_axi0003"]
    assert cases["p1_axi0003"][1].sum() == 20


def test_other_layouts(tmp_path: Path, imported: Callable) -> None:
    binary = (labels() > 0).astype(np.int16)
    # Folders by split, masks with an ending of their own.
    save(tmp_path / "a/train/images/x.nii.gz", scan())
    save(tmp_path / "a/train/labels/x_seg.nii.gz", binary)
    save(tmp_path / "a/test/images/y.nii", scan())
    save(tmp_path / "a/test/labels/y_seg.nii", binary)
    assert import_data(tmp_path / "a", tmp_path / "oa", options={"prompt": "liver"}).splits == {"train": 2, "test": 2}
    # A folder for each patient, frames beside their masks, and a film without.
    for patient in ("patient1", "patient2"):
        for frame in ("01", "12"):
            save(tmp_path / f"b/{patient}/{patient}_frame{frame}.nii.gz", scan())
            save(tmp_path / f"b/{patient}/{patient}_frame{frame}_gt.nii.gz", binary)
        save(tmp_path / f"b/{patient}/{patient}_4d.nii.gz", scan(shape=(*SHAPE, 2)))
    summary = import_data(tmp_path / "b", tmp_path / "ob", options={"prompt": "heart", "group_by": "^(patient[0-9]+)/"})
    assert (summary.cases, summary.groups) == (8, 2)
    assert "2 volume(s) without a mask beside them are left out" in summary.warnings
    # One file and its mask; two folders of any name.
    image, mask = save(tmp_path / "c/scan.nii.gz", scan()), save(tmp_path / "d/scan_mask.nii.gz", binary)
    assert import_data(image, tmp_path / "oc", options={"prompt": "liver", "masks": str(mask)}).cases == 2
    options = {"prompt": "liver", "images": str(image.parent), "masks": str(mask.parent)}
    assert import_data(tmp_path / "c", tmp_path / "od", options=options).cases == 2
    # A table.
    (tmp_path / "t.csv").write_text(
        "image,mask,text,patient,split,age\nc/scan.nii.gz,d/scan_mask.nii.gz,liver,p9,test,50\n"
    )
    import_data(tmp_path / "t.csv", tmp_path / "ot", options={"keep": "age"})
    record = imported(tmp_path / "ot")["c__scan_axi0002"][0]
    assert (record.group, record.split, record.prompts["p1"]) == ("p9", "test", ("liver",))


def test_a_table_finds_volumes_however_accents_are_written(forms: tuple, imported: Callable, tmp_path: Path) -> None:
    listed, stored = forms
    save(tmp_path / "c" / stored("Müller.nii.gz"), scan())
    save(tmp_path / "d" / stored("Müller.nii.gz"), (labels() > 0).astype(np.int16))
    name = listed("Müller.nii.gz")
    (tmp_path / "t.csv").write_text(f"image,mask,text\nc/{name},d/{name},liver\n", encoding="utf-8")
    import_data(tmp_path / "t.csv", tmp_path / "out")
    assert sorted(imported(tmp_path / "out")) == ["c__Müller_axi0002", "c__Müller_axi0003"]


def test_folders_pair_however_accents_are_written(forms: tuple, imported: Callable, tmp_path: Path) -> None:
    one, other = forms
    save(tmp_path / "c" / "imagesTr" / one("Müller_0000.nii.gz"), scan())
    save(tmp_path / "c" / "labelsTr" / other("Müller.nii.gz"), (labels() > 0).astype(np.int16))
    save(tmp_path / "d" / one("Müller.nii.gz"), scan())
    save(tmp_path / "d" / other("Müller_seg.nii.gz"), (labels() > 0).astype(np.int16))
    for name in "cd":
        import_data(tmp_path / name, tmp_path / f"out_{name}", options={"prompt": "liver"})
        assert sorted(imported(tmp_path / f"out_{name}")) == ["Müller_axi0002", "Müller_axi0003"]


@pytest.mark.parametrize("flat", [True, False])
def test_two_volumes_of_one_name_are_refused(flat: bool, tmp_path: Path) -> None:
    images, mask = (tmp_path / "in", "x_seg.nii") if flat else (tmp_path / "in/imagesTr", "../labelsTr/x.nii")
    save(images / "x.nii.gz", scan())
    save(images / "x.nii", scan())
    save(images / mask, (labels() > 0).astype(np.int16))
    with pytest.raises(DataError, match=r"'x\.nii' and 'x\.nii\.gz' have one name: keep or rename one"):
        import_data(tmp_path / "in", tmp_path / "out", options={"prompt": "liver"})
    assert not (tmp_path / "out").exists()


def test_labelled_test_cases_are_the_test_split(nnunet: Path, tmp_path: Path) -> None:
    save(nnunet / "imagesTs/p1_0000.nii.gz", scan())
    assert "unassigned" in import_data(nnunet, tmp_path / "unlabelled").splits
    save(nnunet / "labelsTs/p1.nii.gz", labels())
    summary = import_data(nnunet, tmp_path / "out")
    assert summary.splits == {"train": 6, "test": 3}
    assert summary.groups == 2, "a volume of one name in two splits is one group: a leak that is seen"


def test_masks_whose_volume_is_missing_are_told(nnunet: Path, tmp_path: Path) -> None:
    """Half a download: the labels are all there, of the images some."""
    told = "2 mask(s) without a volume of their name are left out"
    assert told not in import_data(nnunet, tmp_path / "whole").warnings
    for name in ("p3", "p4_seg"):
        save(nnunet / f"labelsTr/{name}.nii.gz", labels())
    assert told in import_data(nnunet, tmp_path / "out").warnings


def test_channels(nnunet: Path, imported: Callable, tmp_path: Path) -> None:
    save(nnunet / "imagesTr/p1_0001.nii.gz", scan(5))
    with pytest.raises(DataError, match="'p1': has the channels 0, 1: choose one with --channel 0"):
        import_data(nnunet, tmp_path / "out")
    with pytest.raises(DataError, match="'p2': has the channels 0, no channel 1"):
        import_data(nnunet, tmp_path / "out", options={"channel": "1"})
    assert import_data(nnunet, tmp_path / "out", options={"channel": "0"}).cases == 6
    summary = import_data(nnunet, tmp_path / "one", options={"channel": "1"}, skip_bad=True)
    assert (summary.cases, len(summary.skipped)) == (3, 1)


def test_frames(tmp_path: Path, imported: Callable) -> None:
    moving = np.stack([labels() * 0, labels(), labels()], axis=-1)
    save(tmp_path / "m/images/x.nii.gz", scan(shape=(*SHAPE, 3)))
    mask = save(tmp_path / "m/masks/x.nii.gz", moving)
    options = {"prompt": "liver"}
    with pytest.raises(DataError, match=r"is 4D, with 3 frames .*: choose one with --frame 0, or --frame all"):
        import_data(tmp_path / "m", tmp_path / "out", options=options)
    assert import_data(tmp_path / "m", tmp_path / "one", options={**options, "frame": "1"}).cases == 2
    summary = import_data(tmp_path / "m", tmp_path / "all", options={**options, "frame": "all"})
    assert (summary.cases, summary.images, summary.groups) == (4, 4, 1)
    assert "x_axi0002_f001" in imported(tmp_path / "all")
    with pytest.raises(DataError, match="no frame 3: count from 0"):
        import_data(tmp_path / "m", tmp_path / "none", options={**options, "frame": "3"})
    save(mask, moving[..., :2])
    with pytest.raises(DataError, match=r"has 2 frames but its image .* has 3"):
        import_data(tmp_path / "m", tmp_path / "two", options={**options, "frame": "all"})


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"background": 0, "liver": 1}, r"holds the value\(s\) 2, which the class table does not name"),
        ({"whole": [1, 2], "tumor": [2]}, "its regions share labels"),
        ({"background": 0}, "holds no class"),
        ({"liver": "one"}, "no value of a label file"),
    ],
)
def test_bad_tables_of_the_dataset(nnunet: Path, tmp_path: Path, table: dict, says: str) -> None:
    (nnunet / "dataset.json").write_text(json.dumps({"labels": table}))
    with pytest.raises(DataError, match=says):
        import_data(nnunet, tmp_path / "out")


def test_voxels_that_nobody_annotated_are_background(nnunet: Path, tmp_path: Path) -> None:
    (nnunet / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1, "ignore": 2}}))
    assert import_data(nnunet, tmp_path / "out").classes == {"liver": 4}


def test_without_a_table_several_labels_are_refused(nnunet: Path, tmp_path: Path) -> None:
    (nnunet / "dataset.json").unlink()
    with pytest.raises(DataError, match=r"pass --prompt .*, or --classes"):
        import_data(nnunet, tmp_path / "out")
    (tmp_path / "t.csv").write_text(
        "image,mask,text\nDataset001/imagesTr/p1_0000.nii.gz,Dataset001/labelsTr/p1.nii.gz,liver\n"
    )
    with pytest.raises(DataError, match=r"holds several labels \(1, 2\): name them with --classes 1=NAME,2=NAME"):
        import_data(tmp_path / "t.csv", tmp_path / "out")


def spoil(name: str) -> Callable[[Path], object]:
    def absent(root: Path) -> None:
        (root / "labelsTr/p1.nii.gz").unlink()

    def several(root: Path) -> None:
        save(root / "labelsTr/p1_seg.nii.gz", labels())

    def cut(root: Path) -> None:
        file = root / "labelsTr/p1.nii.gz"
        file.write_bytes(file.read_bytes()[:100])

    def cut_image(root: Path) -> None:
        file = root / "imagesTr/p1_0000.nii.gz"
        file.write_bytes(file.read_bytes()[:-1500])

    def empty(root: Path) -> None:
        (root / "imagesTr/p1_0000.nii.gz").write_bytes(b"")

    def shape(root: Path) -> None:
        save(root / "labelsTr/p1.nii.gz", labels()[:-1])

    def moved(root: Path) -> None:
        affine = AFFINE.copy()
        affine[0, 3] = 4
        save(root / "labelsTr/p1.nii.gz", labels(), affine)

    def link(root: Path) -> None:
        file = root / "labelsTr/p1.nii.gz"
        file.replace(root.parent / "outside.nii.gz")
        file.symlink_to(root.parent / "outside.nii.gz")

    def probability(root: Path) -> None:
        save(root / "labelsTr/p1.nii.gz", labels() * np.float32(0.4))

    def control(root: Path) -> None:
        for folder, ending in (("imagesTr", "_0000"), ("labelsTr", "")):
            (root / folder / f"p1{ending}.nii.gz").rename(root / folder / f"p1\nx{ending}.nii.gz")

    def needle(root: Path) -> None:
        affine = np.diag([1e-4, 1, 1, 1])
        save(root / "imagesTr/p1_0000.nii.gz", scan(), affine)
        save(root / "labelsTr/p1.nii.gz", labels(), affine)

    return locals()[name]


BAD = {
    "absent": "has no mask in",
    "several": "has several masks",
    "cut": "damaged or truncated",
    "cut_image": "damaged or truncated",
    "empty": "0 bytes",
    "shape": "resample it onto the image",
    "moved": "lies up to 4 mm off",
    "link": "a link that leads out of",
    "probability": "no labels",
    "control": "holds a control character",
    "needle": "repair the header",
}


@pytest.mark.parametrize("name", BAD)
def test_one_bad_volume_stops_or_is_left_out(nnunet: Path, imported: Callable, tmp_path: Path, name: str) -> None:
    spoil(name)(nnunet)
    with pytest.raises(DataError, match=BAD[name]) as caught:
        import_data(nnunet, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out/records.jsonl").exists()
    summary = import_data(nnunet, tmp_path / "skipping", skip_bad=True)
    assert summary.skipped
    assert {record.group for record, _ in imported(tmp_path / "skipping").values()} == {"p2"}


def test_a_folder_without_pairs_says_what_was_looked_for(tmp_path: Path) -> None:
    image = save(tmp_path / "x/scan.nii.gz", scan())
    with pytest.raises(DataError, match=r"looked for imagesTr/ with labelsTr/"):
        import_data(tmp_path / "x", tmp_path / "out", options={"prompt": "liver"})
    with pytest.raises(DataError, match="one volume needs its mask: pass --masks FILE"):
        import_data(image, tmp_path / "out", options={"prompt": "liver"})
    with pytest.raises(ConfigError, match="--spacing says nothing about the format 'nifti'"):
        import_data(image, tmp_path / "out", options={"prompt": "liver", "spacing": "1"})


def test_without_nibabel_the_fix_is_named(nnunet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(ConfigError, match=r"pip install 'vlsm-adapter\[volumes\]'"):
        import_data(nnunet, tmp_path / "out")
