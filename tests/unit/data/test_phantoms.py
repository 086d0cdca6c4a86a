"""Phantoms: the same bits every time, masks that hold what the prompts say, a folder that others can read."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from vlsm_adapter.data.phantoms import MODALITIES, make_phantom, write, write_phantoms
from vlsm_adapter.data.phantoms.shapes import Style, place
from vlsm_adapter.data.phantoms.ultrasound import envelope
from vlsm_adapter.data.phantoms.words import PALETTES
from vlsm_adapter.errors import ConfigError, DataError

NOUNS = {
    "ultrasound": ("tumor", "tumors"),
    "dermoscopy": ("skin lesion", "skin lesions"),
    "endoscopy": ("polyp", "polyps"),
    "radiograph": ("opacity", "opacities"),
}
SHAPES = ("round", "oval", "irregular")
SIZES = ("small", "medium", "large")
NUMBERS = {"one": 1, "two": 2, "three": 3}
COLOURS = {name: sorted({word for word, _ in palette}) for name, palette in PALETTES.items()} | {
    "ultrasound": ["dark"],
    "radiograph": ["bright"],
}
cases = st.tuples(st.sampled_from(MODALITIES), st.integers(0, 2**40), st.integers(0, 10**6))
small_sizes = st.tuples(st.integers(64, 150), st.integers(64, 150))


def digest(phantom) -> str:
    whole = phantom.image.tobytes() + np.packbits(phantom.mask).tobytes() + json.dumps(phantom.prompts).encode()
    return hashlib.sha256(whole).hexdigest()


# --- the same bits every time -----------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_case_is_the_same_bits_again_and_alone(modality):
    in_a_row = [digest(make_phantom(modality, 4, index, size=(96, 112))) for index in range(4)]
    assert digest(make_phantom(modality, 4, 2, size=(96, 112))) == in_a_row[2]
    assert len(set(in_a_row)) == 4
    assert digest(make_phantom(modality, 5, 2, size=(96, 112))) != in_a_row[2]


def test_another_process_draws_the_same_bits():
    program = (
        "import hashlib, numpy as np; from vlsm_adapter.data.phantoms import MODALITIES, make_phantom\n"
        "for m in MODALITIES: p = make_phantom(m, 11, 3); print(hashlib.sha256(p.image.tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    here = [hashlib.sha256(make_phantom(m, 11, 3).image.tobytes()).hexdigest() for m in MODALITIES]
    assert done.stdout.split() == here


def test_global_random_state_plays_no_part():
    np.random.seed(1)  # noqa: NPY002
    first = digest(make_phantom("endoscopy", 0, 0, size=(64, 64)))
    np.random.seed(2)  # noqa: NPY002
    assert digest(make_phantom("endoscopy", 0, 0, size=(64, 64))) == first


# --- every word is true of the mask, recomputed here by other means -------------------------------------------------


def measured_shape(region: np.ndarray) -> str:
    points = np.argwhere(region).astype(float)
    centre = points.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(points.T, bias=True) + np.eye(2) / 12)
    grid = np.moveaxis(np.indices(region.shape), 0, -1) - centre
    along = (grid @ vectors) / (2 * np.sqrt(values))
    ellipse = np.sum(along**2, axis=-1) <= 1
    iou = (region & ellipse).sum() / (region | ellipse).sum()
    if iou < 0.88:
        return "irregular"
    return "round" if np.sqrt(values[1] / values[0]) <= 1.25 else "oval"


def measured_size(region: np.ndarray) -> str:
    return SIZES[int(np.digitize(region.mean(), [0.025, 0.10]))]


def measured_position(region: np.ndarray) -> str:
    row, column = ((np.argwhere(region).mean(axis=0) + 0.5) / region.shape * 3).astype(int)
    return (["top", "", "bottom"][row] + " " + ["left", "", "right"][column]).strip() or "center"


def lab(colour) -> np.ndarray:
    """CIE 1976 L*a*b* by the definitions of CIE 15, from the chromaticities of sRGB's primaries and of D65."""
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))]).T
    white = np.array((0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290))
    matrix = columns * np.linalg.solve(columns, white)
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in np.array(colour) / 255]
    x, y, z = (t ** (1 / 3) if t > (6 / 29) ** 3 else t / (3 * (6 / 29) ** 2) + 4 / 29 for t in matrix @ linear / white)
    return np.array((116 * y - 16, 500 * (x - y), 200 * (y - z)))


def assert_colour_holds(word: str, region: np.ndarray, image: np.ndarray, modality: str) -> None:
    if modality in PALETTES:
        here = lab(image[region].mean(axis=0))
        distances = [(float(np.linalg.norm(lab(colour) - here)), name) for name, colour in PALETTES[modality]]
        assert word == min(distances)[1]
        assert min(distance for distance, name in distances if name != word) >= min(distances)[0] + 2.9
    else:
        wide = ndimage.distance_transform_edt(~region)
        ring = (wide > 3) & (wide <= 10)
        grey = image[..., 0].astype(float)
        difference = grey[region].mean() - grey[ring].mean()
        assert (difference <= -4) if word == "dark" else (difference >= 4)


@settings(max_examples=60, deadline=None)
@example(case=("dermoscopy", 10880, 10880), size=(114, 64))  # gray and brown are both near: nothing is said
@given(case=cases, size=small_sizes)
def test_prompts_are_true_of_the_mask(case, size):
    modality, seed, index = case
    phantom = make_phantom(modality, seed, index, size=size)
    assert phantom.image.shape == (*size, 3)
    assert phantom.image.dtype == np.uint8
    assert phantom.mask.shape == size
    assert phantom.mask.dtype == bool
    labels, count = ndimage.label(phantom.mask, structure=np.ones((3, 3)))
    regions = [labels == number for number in range(1, count + 1)]
    noun, plural = NOUNS[modality]
    prompts = {level: texts[0] for level, texts in phantom.prompts.items()}
    assert list(prompts) == [f"p{level}" for level in range(7)]
    assert all(len(texts) == 1 for texts in phantom.prompts.values())
    assert prompts["p0"] == ""
    assert prompts["p1"] == noun  # leak-free: the same whatever the mask holds

    shapes = {measured_shape(region) for region in regions}
    sizes = {measured_size(region) for region in regions}
    shape = shapes.pop() if len(shapes) == 1 else ""
    size_word = sizes.pop() if len(sizes) == 1 else ""
    positions = {measured_position(region) for region in regions}

    p5, _, where = prompts["p6"].partition(", located in ")
    assert p5 == prompts["p5"]
    assert where.endswith(" of the image")
    named = re.split(r", | and ", where.removesuffix(" of the image"))
    assert len(named) == len(set(named))
    assert set(named) == positions

    number, *rest = p5.split(" ", 1)
    assert NUMBERS[number] == count
    words = rest[0].removesuffix(plural if count > 1 else noun).split()
    assert rest[0].endswith(plural if count > 1 else noun)
    colour = " ".join(word for word in words if word not in SHAPES + SIZES)
    assert colour in ["", *COLOURS[modality]]
    assert " ".join(words) == " ".join(filter(None, [size_word, colour, shape]))
    assert prompts["p2"] == " ".join(filter(None, [shape, noun]))
    assert prompts["p3"] == " ".join(filter(None, [colour, shape, noun]))
    assert prompts["p4"] == " ".join(filter(None, [size_word, colour, shape, noun]))
    if colour:
        for region in regions:
            assert_colour_holds(colour, region, phantom.image, modality)

    assert len(phantom.lesions) == count
    assert sorted(lesion.area for lesion in phantom.lesions) == sorted(int(region.sum()) for region in regions)
    assert [lesion.area for lesion in phantom.lesions] == sorted((le.area for le in phantom.lesions), reverse=True)
    assert phantom.case_id == f"phantom_{modality}_{index:05d}"


@pytest.mark.parametrize("modality", MODALITIES)
def test_an_empty_case_says_so_only_where_the_number_is_told(modality):
    phantom = make_phantom(modality, 0, 0, size=(80, 80), empty_fraction=1.0)
    noun = NOUNS[modality][0]
    assert not phantom.mask.any()
    assert phantom.lesions == ()
    texts = [phantom.prompts[f"p{level}"] for level in range(7)]
    assert texts == [("",), *[(noun,)] * 4, *[(f"no {noun}",)] * 2]


def test_empty_fraction_is_kept_to():
    empty = [not make_phantom("ultrasound", 1, i, size=(64, 64), empty_fraction=0.4).mask.any() for i in range(120)]
    assert 0.25 < np.mean(empty) < 0.55
    assert all(make_phantom("ultrasound", 1, i, size=(64, 64)).mask.any() for i in range(40))


# --- pictures: varied, and of their modality ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gallery():
    return {name: [make_phantom(name, 20, index, size=(160, 160)) for index in range(40)] for name in MODALITIES}


@pytest.mark.parametrize("modality", MODALITIES)
def test_masks_and_words_vary(gallery, modality):
    phantoms = gallery[modality]
    areas = [phantom.mask.mean() for phantom in phantoms]
    assert min(areas) > 0.002
    assert max(areas) < 0.6
    assert max(areas) > 4 * min(areas)
    assert {len(phantom.lesions) for phantom in phantoms} == {1, 2, 3}
    lesions = [lesion for phantom in phantoms for lesion in phantom.lesions]
    assert {lesion.shape for lesion in lesions} == set(SHAPES)
    assert {lesion.size for lesion in lesions} >= {"small", "medium"}
    assert len({lesion.position for lesion in lesions}) >= 5
    if modality in PALETTES:
        assert len({lesion.colour for lesion in lesions}) >= 3


def contrast(phantom, quantile: float) -> float:
    """Mean grey level inside less a quantile of a ring around, over the ring's spread."""
    distance = ndimage.distance_transform_edt(~phantom.mask)
    grey = phantom.image.mean(axis=2)
    ring = grey[(distance > 3) & (distance < 14)]
    return float((grey[phantom.mask].mean() - np.quantile(ring, quantile)) / ring.std())


# Around an opacity lie lung and, often, the denser heart and chest wall: the lung is the ring's darker part.
@pytest.mark.parametrize(
    ("modality", "sign", "quantile"), [("ultrasound", -1, 0.5), ("dermoscopy", -1, 0.5), ("radiograph", 1, 0.3)]
)
def test_lesions_stand_out_some_clearly_some_barely(gallery, modality, sign, quantile):
    contrasts = sign * np.array([contrast(phantom, quantile) for phantom in gallery[modality]])
    assert np.mean(contrasts > 0) > 0.8
    assert np.quantile(contrasts, 0.9) > 1.5 * np.quantile(contrasts, 0.3)


def test_greyscale_modalities_are_grey_and_colour_ones_are_not(gallery):
    for modality, phantoms in gallery.items():
        spread = np.mean([np.ptp(phantom.image.astype(int), axis=2).mean() for phantom in phantoms])
        assert (spread == 0) if modality in ("ultrasound", "radiograph") else (spread > 15)


def test_speckle_is_rayleigh_at_every_depth_and_widens_away_from_the_focus():
    seen = envelope(np.random.default_rng(0), np.ones((600, 600), np.float32), focus=0.5)
    assert seen.mean() / seen.std() == pytest.approx(1.913, abs=0.04)
    for band in np.split(seen, 6):
        assert np.mean(band**2) == pytest.approx(2.0, rel=0.06)

    def lateral_correlation(band):
        centred = band - band.mean()
        return np.mean(centred[:, 2:] * centred[:, :-2]) / np.mean(centred**2)

    assert lateral_correlation(seen[:60]) > lateral_correlation(seen[270:330]) + 0.2


def test_endoscopy_is_red_above_green_above_blue_in_a_black_frame(gallery):
    framed = 0
    for phantom in gallery["endoscopy"]:
        red, green, blue = phantom.image[phantom.image.max(axis=2) > 40].mean(axis=0)
        assert red > green > blue
        height, width = phantom.mask.shape
        corners = [phantom.image[row, column].max() for row in (0, height - 1) for column in (0, width - 1)]
        framed += max(corners) < 30
        assert phantom.image[phantom.mask].max(axis=1).mean() > 40  # polyps lie in view
    assert framed > 25


def test_dermoscopy_skin_is_light_and_warm(gallery):
    for phantom in gallery["dermoscopy"]:
        distance = ndimage.distance_transform_edt(~phantom.mask)
        red, green, blue = np.median(phantom.image[(distance > 8) & (distance < 25)], axis=0)
        assert red > green
        assert red > blue
        assert red > 80


def test_radiograph_has_bright_midline_between_dark_lungs(gallery):
    for phantom in gallery["radiograph"]:
        grey = phantom.image[..., 0]
        rows = slice(56, 90)
        midline = grey[rows, 74:86].mean()
        for columns in (slice(36, 56), slice(108, 128)):
            lung = np.ma.array(grey[rows, columns], mask=phantom.mask[rows, columns])
            assert lung.mean() < midline - 30


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), inside=st.floats(0.5, 1.0))
def test_placed_lesions_are_whole_apart_and_where_they_may_be(seed, inside):
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:96, :120].astype(np.float32)
    allowed = 40 - np.hypot(rows - 48, columns - 60)
    avoid = np.hypot(rows - 48, columns - 60) < 8
    styles = (Style((0.05, 0.3), (1.0, 2.0), (0.0, 0.25)),)
    placed = place(rng, allowed, styles, [0, 0, 0], inside=inside, avoid=avoid)
    assert placed
    union = np.zeros(allowed.shape, bool)
    for _, _, level in placed:
        support = level > 0
        assert ndimage.label(support)[1] == 1
        assert not np.any(support & (allowed <= 0))
        assert not np.any(support & avoid)
        assert not np.any(ndimage.binary_dilation(support, np.ones((3, 3))) & union)
        union |= support


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modality": "ultrasond", "seed": 0, "index": 0}, "did you mean 'ultrasound'"),
        ({"modality": "radiograph", "seed": -1, "index": 0}, "seed -1"),
        ({"modality": "radiograph", "seed": 0, "index": -3}, "index -3"),
        ({"modality": "radiograph", "seed": 0, "index": 0, "size": (32, 256)}, "64 to 4096"),
        ({"modality": "radiograph", "seed": 0, "index": 0, "empty_fraction": 1.5}, "from 0 to 1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message) as error:
        make_phantom(**arguments)
    assert "\n" not in str(error.value)


# --- the folder ----------------------------------------------------------------------------------------------------

FEW = {"cases_per_modality": 5, "seed": 2, "sizes": ((64, 64), (64, 80)), "splits": (0.6, 0.2, 0.2)}


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_the_folder_is_the_published_layout(tmp_path):
    calls = []
    root = write_phantoms(tmp_path / "set", **FEW, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 20) for done in range(1, 21)]
    seen = []
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        rows = json.loads((root / "anns" / f"{split}.json").read_text())
        assert len(rows) == count
        for row in rows:
            assert set(row) == {"img_name", "mask_name", "prompts"}
            seen.append(row["img_name"])
            modality, index = re.fullmatch(r"phantom_(\w+)_(\d{5})\.png", row["img_name"]).groups()
            case = make_phantom(modality, 2, int(index), size=FEW["sizes"][int(index) % 2])
            image, mask = Image.open(root / "images" / row["img_name"]), Image.open(root / "masks" / row["mask_name"])
            assert image.mode == ("L" if modality in ("ultrasound", "radiograph") else "RGB")
            assert mask.mode == "L"
            assert np.array_equal(np.asarray(image.convert("RGB")), case.image)
            assert np.array_equal(np.asarray(mask), case.mask * 255)
            assert row["prompts"] == {level: texts[0] for level, texts in case.prompts.items()}
    assert len(set(seen)) == 20
    assert {path.name for path in (root / "images").iterdir()} == set(seen)
    note = json.loads((root / "dataset.json").read_text())
    assert note["complete"] is True
    assert note["arguments"]["seed"] == 2
    assert note["cases"] == {"train": 12, "val": 4, "test": 4}


def test_a_complete_set_is_left_alone_and_a_broken_one_is_mended(tmp_path, monkeypatch):
    root = write_phantoms(tmp_path, **FEW, modalities=("endoscopy",))
    before = snapshot(root)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    with monkeypatch.context() as patch:
        patch.setattr(write, "make_phantom", lambda *_, **__: pytest.fail("drew again"))
        write_phantoms(tmp_path, **FEW, modalities=("endoscopy",))
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == times
    (root / "masks" / "phantom_endoscopy_00001.png").unlink()
    (root / "images" / "phantom_endoscopy_00003.png").write_bytes(b"")
    write_phantoms(tmp_path, **FEW, modalities=("endoscopy",))
    assert snapshot(root) == before


def test_an_interrupted_set_is_finished(tmp_path):
    def stop(done, _total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantoms(tmp_path / "cut", **FEW, modalities=("radiograph",), progress=stop)
    assert not (tmp_path / "cut" / "anns").exists()
    write_phantoms(tmp_path / "cut", **FEW, modalities=("radiograph",))
    write_phantoms(tmp_path / "whole", **FEW, modalities=("radiograph",))
    assert snapshot(tmp_path / "cut") == snapshot(tmp_path / "whole")


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    write_phantoms(tmp_path / "one", **FEW, modalities=("dermoscopy",))
    before = snapshot(tmp_path / "one")
    with pytest.raises(DataError, match="other arguments"):
        write_phantoms(tmp_path / "one", **{**FEW, "seed": 3}, modalities=("dermoscopy",))
    assert snapshot(tmp_path / "one") == before
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="holds other files"):
        write_phantoms(tmp_path / "two", **FEW)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        write_phantoms(tmp_path / "file", **FEW)
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        write_phantoms(tmp_path / "three", **FEW)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"splits": (0.5, 0.2, 0.2)}, "sum to 1"),
        ({"splits": (1.2, -0.2, 0.0)}, "sum to 1"),
        ({"cases_per_modality": 2}, "at least 3"),
        ({"modalities": ("ct",)}, "unknown phantom modality"),
        ({"modalities": ("endoscopy", "endoscopy")}, "each once"),
        ({"modalities": ()}, "at least one"),
        ({"sizes": ()}, "sizes is empty"),
        ({"sizes": ((10, 10),)}, "64 to 4096"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_bad_sets_are_refused_before_anything_is_written(tmp_path, changed, message):
    with pytest.raises(ConfigError, match=message):
        write_phantoms(tmp_path / "set", **{**FEW, **changed})
    assert not (tmp_path / "set").exists()


def test_a_split_that_is_asked_for_is_never_empty_and_one_that_is_not_has_no_file(tmp_path):
    arguments = {**FEW, "cases_per_modality": 3, "splits": (0.98, 0.0, 0.02)}
    root = write_phantoms(tmp_path, **arguments, modalities=("ultrasound",))
    assert sorted(path.name for path in (root / "anns").iterdir()) == ["test.json", "train.json"]
    assert len(json.loads((root / "anns" / "test.json").read_text())) == 1
