"""Looking at files: what is refused, what is mended silently, what is turned."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlsm_adapter.data.audit.findings import Finding
from vlsm_adapter.data.audit.pixels import SMALL, look_at_all, pixel_findings, shrink
from vlsm_adapter.data.audit.reading import read_data

POLYP = {"p1": "polyp"}


def audited(root: Path, **options: Any) -> tuple[dict[str, Any], dict[str, Finding]]:
    (data,) = read_data(root)
    looks = look_at_all(data.cases, **options)
    return looks, {finding.code: finding for finding in pixel_findings(data.cases, looks)}


def test_sound_cases_have_no_finding(folder: Any, picture: Any, round_mask: Any) -> None:
    root = folder({"train": [(f"c{i}", picture(i), round_mask(radius=0.1 + 0.05 * i), POLYP) for i in range(3)]})
    done: list[int] = []
    looks, found = audited(root, thumbnails=True, workers=2, progress=done.append)
    assert found == {}
    assert done == [1, 2, 3]
    look = looks["c1"]
    assert look.size == (96, 80)
    assert (look.mask_kind, look.above_zero_dice, look.problem) == ("0/255", 1.0, None)
    assert look.facts.share == pytest.approx(np.pi * 0.15**2, rel=0.02)
    assert len({looks[f"c{i}"].image_hash for i in range(3)}) == 3
    with Image.open(io.BytesIO(look.thumbnail)) as thumbnail:
        assert max(thumbnail.size) == 176
        assert (np.asarray(thumbnail)[..., 0].astype(int) - np.asarray(thumbnail)[..., 2] > 90).any()  # the outline


def test_everything_wrong_is_named(folder: Callable[..., Path], picture: Any, round_mask: Any) -> None:
    names = ["gone", "nomask", "cut", "cutmask", "size", "labels", "photo"]
    root = folder({"train": [(name, picture(i), round_mask(), POLYP) for i, name in enumerate(names)]})
    (root / "images" / "gone.png").unlink()
    for name in ("images/cut.png", "masks/cutmask.png"):
        (root / name).write_bytes((root / name).read_bytes()[:60])
    Image.fromarray(np.zeros((40, 96), np.uint8)).save(root / "masks" / "size.png")
    labels = np.zeros((80, 96), np.uint8)
    labels[:20], labels[20:40] = 1, 2
    Image.fromarray(labels).save(root / "masks" / "labels.png")
    Image.fromarray(picture(77)).save(root / "masks" / "photo.png")
    entries = json.loads((root / "anns" / "train.json").read_text())
    del entries[1]["mask_name"]
    (root / "anns" / "train.json").write_text(json.dumps(entries))
    looks, found = audited(root)
    assert {code: finding.cases for code, finding in found.items()} == {
        "missing-file": ("gone",),
        "unreadable-image": ("cut",),
        "unreadable-mask": ("cutmask",),
        "no-mask": ("nomask",),
        "size-mismatch": ("size",),
        "not-a-mask": ("labels", "photo"),
    }
    assert all(finding.severity == "error" for finding in found.values())
    assert "96 x 80" in found["size-mismatch"].evidence[0].why
    assert "mask_value" in found["not-a-mask"].evidence[0].why
    assert looks["labels"].small is not None  # the image is still compared with others


def test_zero_one_and_other_values(folder: Any, picture: Any, round_mask: Any) -> None:
    mask = round_mask()
    root = folder(
        {
            "train": [
                ("one", picture(1), mask.astype(np.uint8), POLYP),
                ("seven", picture(2), mask.astype(np.uint8) * 7, POLYP),
                ("plain", picture(3), mask, POLYP),
            ]
        }
    )
    looks, found = audited(root)
    assert found["mask-0-1"].cases == ("one",)
    assert found["mask-other-value"].cases == ("seven",)
    assert "0/1 1" in found["mask-kinds"].message
    assert looks["one"].mask_hash == looks["plain"].mask_hash  # the same foreground, however stored


def test_halo_is_measured_as_others_read_it(folder: Any, picture: Any, round_mask: Any) -> None:
    root = folder(
        {"train": [("a.jpg", picture(1), round_mask(radius=0.25), POLYP), ("b.png", picture(2), round_mask(), POLYP)]}
    )
    looks, found = audited(root)
    look = looks["a"]
    raw = np.asarray(Image.open(root / "masks" / "a.jpg"))
    expected = 2 * np.count_nonzero((raw > 0) & (raw > 127)) / (np.count_nonzero(raw > 0) + np.count_nonzero(raw > 127))
    assert look.mask_kind == "halo"
    assert look.above_zero_dice == pytest.approx(expected)
    assert look.above_zero_dice < 0.999
    assert found["mask-halo"].severity == "warning"
    assert found["mask-halo"].cases == ("a",)


def test_orientation_of_one_file_alone(folder: Any, picture: Any, round_mask: Any) -> None:
    root = folder(
        {"train": [("a.jpg", picture(1), round_mask(), POLYP), ("both.jpg", picture(2), round_mask(), POLYP)]}
    )
    exif = Image.Exif()
    exif[0x0112] = 3
    for name in ("images/a.jpg", "images/both.jpg", "masks/both.jpg"):
        with Image.open(root / name) as image:
            image.copy().save(root / name, exif=exif)
    _, found = audited(root)
    assert found["orientation-one-sided"].cases == ("a",)
    assert found["orientation"].cases == ("both",)


def test_blank_image(folder: Any, picture: Any, round_mask: Any) -> None:
    root = folder({"train": [("grey", np.full((80, 96, 3), 90, np.uint8), round_mask(), POLYP)]})
    _, found = audited(root)
    assert found["blank-image"].cases == ("grey",)


@pytest.mark.parametrize("size", [(32, 32), (33, 200), (1, 1), (700, 500)])
def test_shrinking_keeps_the_mean(size: tuple[int, int], picture: Any) -> None:
    image = picture(3, size) if min(size) > 1 else np.full((1, 1, 3), 40, np.uint8)
    small = shrink(image)
    assert small.shape == (SMALL, SMALL)
    assert small.mean() == pytest.approx(image.mean(), abs=3)
