"""The published lists: read, joined to cases, and told where they do not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlsm_adapter.data.images import read_mask
from vlsm_adapter.data.prepared import RawCase
from vlsm_adapter.data.records import load_records
from vlsm_adapter.data.sources import SOURCES
from vlsm_adapter.data.sources.annotations import join, read_annotations
from vlsm_adapter.data.sources.prepare import prepare
from vlsm_adapter.data.splits import SPLITS
from vlsm_adapter.errors import DataError

SOURCE = SOURCES.get("kvasir_polyp")


@pytest.fixture
def lists(tmp_path: Path) -> Callable[..., Path]:
    """``lists(train=["a", "b"], test=["c"])`` writes lists of these masks."""

    def write(**splits: list[str]) -> Path:
        folder = tmp_path / "kvasir_polyp"
        folder.mkdir(exist_ok=True)
        for split, names in splits.items():
            entries = [
                {"img_name": f"{n}.jpg", "mask_name": f"{n}.jpg", "prompts": {"p0": "", "p1": f"{split} {n}"}}
                for n in names
            ]
            (folder / f"{split}.json").write_text(json.dumps(entries))
        return tmp_path

    return write


def cases(*names: str) -> list[RawCase]:
    return [RawCase(name, Path(f"{name}.jpg"), lambda: np.ones((2, 2), bool), {"p1": ("own",)}) for name in names]


def joined(folder: Path, *names: str, expected: int | None = None) -> tuple[dict[str, tuple], list[str]]:
    warnings: list[str] = []
    found = list(join(cases(*names), SOURCE, read_annotations(folder, "kvasir_polyp"), expected, warnings))
    return {case.case_id: (case.split, case.prompts["p1"]) for case in found}, warnings


@pytest.mark.parametrize("place", ["kvasir_polyp/anns", "anns", "kvasir_polyp/Anns", "Anns"])
def test_lists_lie_in_anns_as_published(lists: Callable[..., Path], place: str) -> None:
    root = lists(train=["a"])
    file = (root / "kvasir_polyp/train.json").rename(root / "train.json")
    (root / place).parent.joinpath("anns").mkdir()  # were it empty
    (root / place).mkdir(exist_ok=True)
    file.rename(root / place / "train.json")
    found = read_annotations(root, "kvasir_polyp")
    assert found.folder.samefile(root / place)
    assert list(found.entries) == ["a"]


def test_split_and_prompts(lists: Callable[..., Path]) -> None:
    found, warnings = joined(lists(train=["a", "b"], val=["c"], test=["d"]), "a", "b", "c", "d", expected=4)
    assert found == {
        "a": ("train", ("train a",)),
        "b": ("train", ("train b",)),
        "c": ("val", ("val c",)),
        "d": ("test", ("test d",)),
    }
    assert warnings == []


def test_what_does_not_fit_is_counted(lists: Callable[..., Path]) -> None:
    folder = lists(train=["a", "a", "b", "lost"], val=[], test=["b"])
    found, warnings = joined(folder, "a", "b", "extra", expected=1000)
    assert found == {"a": ("train", ("train a",)), "b": ("train", ("train b",)), "b__test": ("test", ("test b",))}
    said = "\n".join(warnings)
    for text in (
        "3 cases found, 1000 expected",
        "1 entries stand twice",
        "1 cases stand in several lists",
        "1 cases stand in no list and are left out",
        "1 entries of the lists have no case",
    ):
        assert text in said


def test_without_a_list_of_train_the_rest_is_train(lists: Callable[..., Path]) -> None:
    found, warnings = joined(lists(val=["a"], test=["b"]), "a", "b", "c")
    assert found["c"] == ("train", ("own",))
    assert any("used for train" in line for line in warnings)


def test_the_folder_of_the_set_itself(lists: Callable[..., Path]) -> None:
    folder = lists(train=["a"])
    assert read_annotations(folder / "kvasir_polyp", "kvasir_polyp").entries.keys() == {"a"}
    anns = folder / "whole" / "anns"
    anns.mkdir(parents=True)
    (folder / "kvasir_polyp" / "train.json").rename(anns / "train.json")
    assert read_annotations(folder / "whole", "kvasir_polyp").entries.keys() == {"a"}


def test_another_list_is_another_set(lists: Callable[..., Path]) -> None:
    first = read_annotations(lists(train=["a"]), "kvasir_polyp").digest
    assert read_annotations(lists(train=["a"]), "kvasir_polyp").digest == first
    assert read_annotations(lists(train=["b"]), "kvasir_polyp").digest != first
    assert read_annotations(lists(train=["a"], val=["a"]), "kvasir_polyp").digest != first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("{}", "must be a list"),
        ("[1]", "entry 0: a number, not an object"),
        ('[{"prompts": {"p1": "x"}}]', "'img_name': missing"),
        ('[{"img_name": "../../x.png", "prompts": {"p1": "x"}}]', "climbs out"),
        ('[{"img_name": "x.png", "mask_name": "/etc/passwd", "prompts": {"p1": "x"}}]', "not relative"),
        ('[{"img_name": "x.png"}]', "says nothing"),
        ('[{"img_name": "x.png", "prompts": {"p0": ""}}]', "says nothing"),
        ('[{"img_name": "x.png", "prompts": {"p1": [3]}}]', "not a text"),
        ('[{"img_name": "x.png", "prompts": {"p1": NaN}}]', "not JSON"),
    ],
)
def test_damaged_lists(lists: Callable[..., Path], text: str, message: str) -> None:
    folder = lists(train=["a"])
    (folder / "kvasir_polyp" / "train.json").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_annotations(folder, "kvasir_polyp")
    assert "train.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_lists(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"looked for train\.json, val\.json or test\.json there and in busi/"):
        read_annotations(tmp_path, "busi")


# How the masks of each set are called in the published lists: what ``Source.published`` must give.
_NAMES = {
    "bkai_polyp": r"[0-9a-f]{32}",
    "busi": r"\d+_(benign|malignant|normal)",
    "camus": r"mask_[123]/patient\d{4}_[24]CH_E[DS]_gt",
    "chexlocalize": r"patient\d+_study\d+_view\d+_(frontal|lateral)_[a-z_]+",
    "clinicdb_polyp": r"\d+",
    "colondb_polyp": r"\d+",
    "dfu": r"\d+",
    "etis_polyp": r"\d+",
    "isic": r"ISIC_\d{7}_Segmentation",
    "kvasir_polyp": r"[a-z0-9]+",
}


@pytest.mark.parametrize("name", _NAMES)
def test_the_real_lists_are_read_and_named_as_the_readers_name(
    name: str, shared_folder: Path, miniatures, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    folder = shared_folder / "data" / "medvlsm-annotations"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/medvlsm-annotations")
    found = read_annotations(folder, name)
    pattern = re.compile(_NAMES[name])
    assert all(pattern.fullmatch(mask) for mask in found.entries)
    made = miniatures.build(name, tmp_path)
    prepare(name, made.raw, tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    for row in rows:
        case = RawCase(
            row["case_id"],
            Path(),
            lambda: np.zeros((1, 1), bool),
            {},
            group=row.get("group"),
            attributes=row["attributes"],
            image_id=Path(row["image"]).stem,
        )
        if name != "kvasir_polyp":
            assert pattern.fullmatch(SOURCES.get(name).published(case)[0])


def real(shared_folder: Path, name: str) -> Path:
    folder = shared_folder / "data" / name
    if not folder.is_dir():
        pytest.skip(f"needs ../shared/data/{name} (real images, not part of the repository)")
    return folder


def some_of(folder: Path, count: int) -> list[Path]:
    """``count`` images, as many of each split."""
    chosen: list[Path] = []
    for split in SPLITS:
        names = sorted({entry["img_name"] for entry in json.loads((folder / "anns" / f"{split}.json").read_text())})
        each = count // len(SPLITS)
        chosen += [folder / "images" / name for name in names[:: max(1, len(names) // each)][:each]]
    return chosen


class TestRealImages:
    """The owners' own layout around the real files that are here, joined to the published lists."""

    def test_kvasir(self, shared_folder: Path, tmp_path: Path) -> None:
        data = real(shared_folder, "kvasir_polyp")
        raw = tmp_path / "Kvasir-SEG"
        for image in some_of(data, 12):
            for part in ("images", "masks"):
                (raw / part).mkdir(parents=True, exist_ok=True)
                (raw / part / image.name).write_bytes((data / part / image.name).read_bytes())
        prepare("kvasir_polyp", raw, tmp_path / "out", annotations=data.parent / "medvlsm-annotations")
        self.same_as_published(tmp_path / "out", data, 12)

    def test_busi(self, shared_folder: Path, tmp_path: Path) -> None:
        data = real(shared_folder, "busi")
        raw = tmp_path / "Dataset_BUSI_with_GT"
        for image in some_of(data, 15):
            number, kind = image.stem.split("_")
            (raw / kind).mkdir(parents=True, exist_ok=True)
            (raw / kind / f"{kind} ({number}).png").write_bytes(image.read_bytes())
            (raw / kind / f"{kind} ({number})_mask.png").write_bytes((data / "masks" / image.name).read_bytes())
        prepare("busi", raw, tmp_path / "out", annotations=data.parent / "medvlsm-annotations")
        self.same_as_published(tmp_path / "out", data, 15)

    def test_isic(self, shared_folder: Path, tmp_path: Path) -> None:
        data = real(shared_folder, "isic")
        raw = tmp_path / "raw"
        splits = {
            e["img_name"]: s
            for s in ("train", "val", "test")
            for e in json.loads((data / "anns" / f"{s}.json").read_text())
        }
        for image in some_of(data, 6):
            part = "Test" if splits[image.name] == "test" else "Training"
            mask = f"{image.stem}_Segmentation.png"
            for folder, name, source in (("Data", image.name, "images"), ("GroundTruth", mask, "masks")):
                place = raw / f"ISBI2016_ISIC_Part1_{part}_{folder}"
                place.mkdir(parents=True, exist_ok=True)
                (place / name).write_bytes((data / source / name).read_bytes())
        prepare("isic", raw, tmp_path / "out", annotations=data.parent / "medvlsm-annotations")
        self.same_as_published(tmp_path / "out", data, 6)

    @staticmethod
    def same_as_published(out: Path, data: Path, count: int) -> None:
        """Ids, splits, prompts, images and masks are those of the published layout read as it is."""
        ours, _ = load_records(out)
        theirs = {record.case_id: record for record in load_records(data, checks=False)[0]}
        assert len(ours) == count
        for record in ours:
            other = theirs[record.case_id]
            assert (record.split, record.prompts) == (other.split, other.prompts)
            assert record.image.read_bytes() == other.image.read_bytes()
            assert record.mask is not None
            assert other.mask is not None
            assert (read_mask(record.mask) == read_mask(other.mask)).all()
            with Image.open(record.mask) as mask:
                assert set(np.unique(mask)) <= {0, 255}
