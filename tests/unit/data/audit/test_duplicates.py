"""The same picture twice: exactly, nearly, mirrored; and pictures that merely look alike."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from vlsm_adapter.data.audit import duplicates
from vlsm_adapter.data.audit.duplicates import duplicate_findings, find_copies, near_duplicates, perceptual_hash
from vlsm_adapter.data.audit.findings import Finding
from vlsm_adapter.data.audit.pixels import look_at_all, shrink
from vlsm_adapter.data.audit.reading import read_data

POLYP = {"p1": "polyp"}


def as_jpeg(image: np.ndarray, quality: int = 60) -> np.ndarray:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=quality)
    return np.asarray(Image.open(content))


def resized(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((61, 47), Image.Resampling.BICUBIC))


def brightened(image: np.ndarray) -> np.ndarray:
    return np.asarray(ImageEnhance.Contrast(Image.fromarray(image // 2 + 30)).enhance(1.2))


@pytest.mark.parametrize(
    ("change", "how"),
    [
        (as_jpeg, ""),
        (resized, ""),
        (brightened, ""),
        (lambda image: image[2:, 3:], ""),
        (lambda image: image[:, ::-1], "mirrored"),
        (lambda image: image[::-1], "upside down"),
        (lambda image: image[::-1, ::-1], "turned by 180 degrees"),
        (lambda image: image.transpose(1, 0, 2), "transposed"),
        (lambda image: np.rot90(image), "turned by 90 degrees"),
        (lambda image: np.rot90(image, 3), "turned by 270 degrees"),
    ],
)
def test_changed_copies_are_found(change: Any, how: str, picture: Any) -> None:
    images = [picture(seed, (200, 160)) for seed in range(6)]
    small = np.stack([shrink(image) for image in [*images, np.ascontiguousarray(change(images[2]))]])
    (pair,) = near_duplicates(small)
    assert (pair.first, pair.second) == (2, 6)
    assert pair.how == how or (how.startswith("turned by") and pair.how.startswith("turned by"))
    assert pair.correlation >= 0.94


def test_pictures_of_one_kind_are_no_duplicates(picture: Any) -> None:
    """A common rim and a common blob, as pictures of one device have; only detail differs."""
    y, x = np.mgrid[:96, :128]
    rim = (((x - 64) / 60) ** 2 + ((y - 48) / 46) ** 2 <= 1)[..., None]
    blob = np.exp(-(((x - 64) / 30) ** 2 + ((y - 48) / 24) ** 2))[..., None] * 120
    made = [np.clip((picture(seed, (128, 96)) * 0.25 + blob + 60) * rim, 0, 255).astype(np.uint8) for seed in range(80)]
    assert near_duplicates(np.stack([shrink(image) for image in made])) == []


def test_hash_ignores_brightness_and_differs_between_pictures(picture: Any) -> None:
    small = np.stack([shrink(picture(seed)) for seed in range(40)])
    hashes = perceptual_hash(small)
    assert hashes.dtype == np.uint64
    assert (perceptual_hash(small // 2 + 20) ^ hashes < 2**64).all()
    close = np.bitwise_count(perceptual_hash(small // 2 + 20) ^ hashes)
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None])[np.triu_indices(40, 1)]
    assert close.max() <= 4
    assert apart.mean() == pytest.approx(32, abs=2)


@pytest.mark.parametrize("count", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_one_copy_among_thousands(count: int) -> None:
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (count, 8, 8), np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    small[count - 1] = small[17]
    assert [(pair.first, pair.second) for pair in near_duplicates(small)] == [(17, count - 1)]


def found_in(root: Path) -> dict[str, Finding]:
    (data,) = read_data(root)
    return {finding.code: finding for finding in duplicate_findings(data.cases, look_at_all(data.cases))}


def test_across_and_within_splits(folder: Any, picture: Any, round_mask: Any) -> None:
    masks = [round_mask(radius=0.08 + 0.01 * i) for i in range(9)]
    images = [picture(i) for i in range(5)]
    root = folder(
        {
            "train": [
                ("a", images[0], masks[0], POLYP),
                ("b", images[1], masks[1], POLYP),
                ("b_again", images[1], masks[2], POLYP),
                ("c", images[2], masks[3], POLYP),
            ],
            "test": [
                ("a_copy", images[0], masks[4], POLYP),
                ("c_jpeg.jpg", as_jpeg(images[2], 75), masks[5], POLYP),
                ("d", images[3], masks[6], POLYP),
            ],
        }
    )
    found = found_in(root)
    assert set(found) == {"duplicate-across-splits", "duplicate-within-split", "near-duplicate-across-splits"}
    assert found["duplicate-across-splits"].severity == "error"
    assert found["duplicate-across-splits"].evidence[0].cases == ("a", "a_copy")
    assert "1 train/test" in found["duplicate-across-splits"].message
    assert found["duplicate-within-split"].cases == ("b", "b_again")
    assert "different masks" in found["duplicate-within-split"].evidence[0].why
    assert found["near-duplicate-across-splits"].severity == "warning"
    assert found["near-duplicate-across-splits"].cases == ("c", "c_jpeg")


def test_copies_in_data_without_splits_are_called_what_training_makes_of_them(
    tmp_path: Path, picture: Any, round_mask: Any
) -> None:
    """Nothing keeps them together: a hash of each case id says where it goes."""
    rows = []
    images = {
        "a": picture(0), "a_copy": picture(0), "b": picture(1), "b_resized": resized(picture(1)), "c": picture(2),
        "d": picture(3), "d_copy": picture(3),
    }  # fmt: skip
    for number, (name, image) in enumerate(images.items()):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        mask = round_mask(image.shape[1::-1], radius=0.08 + 0.01 * number)
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / f"{name}_mask.png")
        # The two of d are of one patient, and stay together.
        group = {"group": "p1"} if name.startswith("d") else {}
        rows.append(json.dumps({"image": f"{name}.png", "mask": f"{name}_mask.png", "text": "polyp", **group}))
    (tmp_path / "records.jsonl").write_text("\n".join(rows))
    found = found_in(tmp_path)
    assert set(found) == {"duplicate-without-split", "near-duplicate-without-split", "duplicate-within-split"}
    assert found["duplicate-without-split"].severity == "warning"
    assert found["duplicate-without-split"].cases == ("a", "a_copy")
    assert found["near-duplicate-without-split"].cases == ("b", "b_resized")
    assert "no split is named" in found["near-duplicate-without-split"].message
    assert "vlsm data split DIR --groups" in found["near-duplicate-without-split"].advice
    assert found["duplicate-within-split"].cases == ("d", "d_copy")


def test_copies_that_contradict(folder: Any, picture: Any, round_mask: Any) -> None:
    empty = np.zeros((80, 96), bool)
    left, right = round_mask(centre=(0.2, 0.5), radius=0.1), round_mask(centre=(0.8, 0.5), radius=0.1)
    root = folder(
        {
            "train": [
                ("1_benign", picture(1), left, {"p1": "benign tumor"}),
                ("2_malignant", picture(1), left, {"p1": "malignant tumor"}),
                ("3", picture(2), empty, POLYP),
                ("4", picture(2), left, POLYP),
                ("5", picture(3), left, POLYP),
                ("6", picture(3), right, POLYP),
                ("7", picture(4), left, POLYP),
                ("8", picture(4), left, POLYP),
            ]
        }
    )
    finding = found_in(root)["duplicates-contradict"]
    assert finding.severity == "error"
    assert [one.cases for one in finding.evidence] == [("1_benign", "2_malignant"), ("3", "4"), ("5", "6")]
    assert "malignant" in finding.evidence[0].why
    assert "empty" in finding.evidence[1].why
    assert "do not meet" in finding.evidence[2].why


def test_one_mask_for_two_pictures(folder: Any, picture: Any, round_mask: Any) -> None:
    mask = round_mask()
    root = folder({"train": [("a", picture(1), mask, POLYP), ("b", picture(2), mask, POLYP)]})
    assert found_in(root)["mask-copied"].cases == ("a", "b")


def test_several_masks_of_one_image_are_no_duplicates(folder: Any, picture: Any, round_mask: Any) -> None:
    root = folder({"train": [("a", picture(1), round_mask(), POLYP), ("b", picture(2), round_mask(radius=0.1), POLYP)]})
    entries = json.loads((root / "anns" / "train.json").read_text())
    entries[1]["img_name"] = "a.png"
    (root / "anns" / "train.json").write_text(json.dumps(entries))
    assert found_in(root) == {}


def test_few_or_none() -> None:
    assert near_duplicates(np.zeros((0, 32, 32), np.uint8)) == []
    assert near_duplicates(np.zeros((1, 32, 32), np.uint8)) == []


def test_copies_are_joined_with_all_cases_of_an_image(folder: Any, picture: Any, round_mask: Any) -> None:
    images = [picture(i) for i in range(4)]
    rows = [("a", images[0]), ("a_again", images[0]), ("a_jpeg.jpg", as_jpeg(images[0], 75)), ("b", images[1])]
    rows += [("c", images[2]), ("c_mirrored", np.ascontiguousarray(images[2][:, ::-1])), ("d", images[3])]
    root = folder({"train": [(name, image, round_mask(), POLYP) for name, image in rows]})
    entries = json.loads((root / "anns" / "train.json").read_text())
    entries.append({**entries[0], "mask_name": "b.png"})  # a second mask of the image a
    (root / "anns" / "train.json").write_text(json.dumps(entries))
    (data,) = read_data(root)
    copies = find_copies(data.cases, look_at_all(data.cases))
    second = data.cases[-1].id
    assert sorted(copies.groups) == sorted(
        tuple(sorted(names)) for names in (("a", "a_again", "a_jpeg", second), ("c", "c_mirrored"))
    )
    assert copies.limit == duplicates.MAX_BITS


def test_a_lowered_limit_is_told(folder: Any, picture: Any, round_mask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(f"{i}.jpg", as_jpeg(picture(0), 40 + 4 * i), round_mask(radius=0.1 + i / 100), POLYP) for i in range(6)]
    root = folder({"train": rows})
    assert "near-duplicates-limited" not in found_in(root)
    monkeypatch.setattr(duplicates, "_MAX_CANDIDATES", 3)
    finding = found_in(root)["near-duplicates-limited"]
    assert finding.severity == "note"
    assert "over 3 pairs" in finding.message
    assert "may be missing" in finding.message
