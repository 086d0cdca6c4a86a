"""Random changes of training samples: image and mask move together, words stay true, equal draws, off elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlsm_adapter.config import RunConfig
from vlsm_adapter.data import augmentation
from vlsm_adapter.data.augmentation import STRENGTHS, augment_case, check_augment
from vlsm_adapter.data.loaders import CaseDataset, make_loader
from vlsm_adapter.errors import ConfigError
from vlsm_adapter.models.preprocessing import Preprocessing
from vlsm_adapter.types import Record

SEEDS = st.integers(0, 10**6)


def case(seed: int, size: tuple[int, int] = (60, 80), *, colour: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """A dark image with a light ellipse, and its mask."""
    rng = np.random.default_rng(seed)
    height, width = size
    rows, columns = np.ogrid[:height, :width]
    centre = rng.uniform(0.3, 0.7, 2) * size
    radii = rng.uniform(0.1, 0.25, 2) * size
    mask = ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 <= 1
    tint = np.array([1.0, 0.7, 0.6]) if colour else np.ones(3)
    image = np.where(mask[..., None], 220.0, 40.0) * tint + rng.normal(0, 1, (height, width, 1))
    return np.clip(image, 0, 255).astype(np.uint8), mask


def changed(
    image: np.ndarray, mask: np.ndarray | None, prompt: str, number: int, level: str = "medium"
) -> tuple[np.ndarray, np.ndarray | None, str]:
    return augment_case(image, mask, prompt, level=level, case_id=f"c{number}", seed=1, epoch=2)


@settings(max_examples=150, deadline=None)
@given(SEEDS, SEEDS, st.sampled_from(["light", "medium"]), st.booleans())
def test_image_and_mask_move_together(seed: int, number: int, level: str, colour: bool) -> None:
    image, mask = case(seed, colour=colour)
    before = image.copy(), mask.copy()
    made, moved, prompt = changed(image, mask, "polyp", number, level)
    assert moved is not None
    assert (made.shape, made.dtype, moved.shape, moved.dtype) == (image.shape, np.uint8, mask.shape, bool)
    assert prompt == "polyp"
    assert np.array_equal(image, before[0])
    assert np.array_equal(mask, before[1])
    # What was light is light still, and exactly that is the mask (but for half-covered pixels of the edge).
    grey = made.astype(float).mean(axis=2)
    light = grey > (grey.min() + grey.max()) / 2
    assert np.count_nonzero(light ^ moved) <= 0.04 * light.size
    assert np.count_nonzero(light & moved) / np.count_nonzero(light | moved) > 0.8
    assert moved.sum() >= 0.5 * mask.sum()


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(0, 300), st.sampled_from(["light", "medium"]))
def test_position_words_stay_true(seed: int, number: int, level: str) -> None:
    image, mask = case(seed)

    def place(mask: np.ndarray) -> str:
        row, column = (np.mean(where) + 0.5 for where in np.nonzero(mask))
        vertical = "top" if row < 20 else "bottom" if row > 40 else ""
        horizontal = "left" if column < 80 / 3 else "right" if column > 160 / 3 else ""
        return f"{vertical} {horizontal}".strip() or "center"

    _, moved, prompt = changed(image, mask, f"polyp, located in {place(mask)} of the image", number, level)
    assert moved is not None
    assert prompt == f"polyp, located in {place(moved)} of the image"
    assert moved.sum() == mask.sum()  # mirrored, nothing else
    assert any(np.array_equal(moved, mask[::down, ::across]) for down in (1, -1) for across in (1, -1))


def test_words_that_cannot_be_kept_true_keep_the_image_as_it_is() -> None:
    image, mask = case(0)
    for number in range(40):
        _, moved, prompt = changed(image, mask, "one round polyp, left of ear", number)
        assert prompt == "one round polyp, left of ear"
        assert np.array_equal(moved, mask) or np.array_equal(moved, mask[::-1])  # type: ignore[arg-type]
        _, moved, prompt = changed(*case(0, colour=False), "left ventricle, dark and small", number)
        assert (prompt, np.array_equal(moved, mask)) == ("left ventricle, dark and small", True)  # type: ignore[arg-type]
        pink, moved, _ = changed(image, mask, "pink polyp of 5 mm", number)
        flips = [image[::down, ::across] for down in (1, -1) for across in (1, -1)]
        assert any(np.array_equal(pink, flipped) for flipped in flips)
    assert any(not np.array_equal(changed(image, mask, "polyp", number)[0], image) for number in range(3))


def test_sizes_and_numbers_stay_and_shapes_are_not_bent(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple] = []
    real = augmentation._resampled
    monkeypatch.setattr(augmentation, "_resampled", lambda *given: asked.append(given[2:]) or real(*given))
    image, mask = case(3)
    for number in range(60):
        changed(image, mask, "large polyp", number)
        changed(image, mask, "two polyps", number)
    assert asked == []
    for number in range(60):
        changed(image, mask, "oval polyp", number)
    assert asked
    assert all(angle == 0 and field is None for angle, _, _, field in asked)
    asked.clear()
    for number in range(60):
        changed(image, mask, "polyp", number)
    assert any(angle for angle, *_ in asked)
    assert any(field is not None for *_, field in asked)


def test_a_draw_is_that_of_case_seed_and_epoch() -> None:
    image, mask = case(1)

    def draw(case_id: str = "a", seed: int = 0, epoch: int = 0, prompt: str = "polyp") -> bytes:
        return augment_case(image, mask, prompt, level="medium", case_id=case_id, seed=seed, epoch=epoch)[0].tobytes()

    assert draw() == draw()
    assert len({draw(), draw("b"), draw(seed=1), draw(epoch=1)}) == 4
    torch.manual_seed(3)
    before = torch.get_rng_state()
    np.random.seed(0)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]  # noqa: NPY002
    draw()
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], state)  # type: ignore[index]  # noqa: NPY002


def test_flips_are_half_and_upright_pictures_stay_upright() -> None:
    def turned(colour: bool) -> tuple[float, float]:
        image, mask = case(2, colour=colour)
        across = down = 0
        for number in range(200):
            _, moved, _ = changed(image, mask, "one polyp", number)
            across += np.array_equal(moved, mask[:, ::-1]) or np.array_equal(moved, mask[::-1, ::-1])  # type: ignore[arg-type]
            down += np.array_equal(moved, mask[::-1]) or np.array_equal(moved, mask[::-1, ::-1])  # type: ignore[arg-type]
        return across / 200, down / 200

    across, down = turned(colour=True)
    assert 0.4 < across < 0.6
    assert 0.4 < down < 0.6
    across, down = turned(colour=False)
    assert 0.4 < across < 0.6
    assert down == 0


def test_grey_pictures_stay_grey_and_order_of_brightness_stays() -> None:
    image, mask = case(5, colour=False)
    for number in range(30):
        made, moved, _ = changed(image, mask, "one dark lump", number)
        assert (made == made[..., :1]).all()
        assert made[moved].mean() > made[~moved].mean()  # type: ignore[operator]
    for strength in STRENGTHS.values():
        for sign in (-1, 1):
            curve = augmentation._curve(sign * strength.light, sign * strength.light, strength.gamma**sign)
            assert (np.diff(curve.astype(int)) >= 0).all()


def test_tints_keep_greys_and_luminance() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(60, 190, (20, 20, 3), np.uint8)
    assert np.abs(augmentation._tinted(image, 1.0, 0.0).astype(int) - image).max() <= 1
    made = augmentation._tinted(image, 1.2, 0.1)
    weights = np.array([0.299, 0.587, 0.114])
    inside = ((made > 0) & (made < 255)).all(axis=2)
    assert np.abs((made @ weights - image @ weights)[inside]).max() < 2
    grey = np.repeat(image[..., :1], 3, axis=2)
    assert np.abs(augmentation._tinted(grey, 1.3, 0.2).astype(int) - grey).max() <= 1


def test_a_lesion_at_the_edge_is_not_moved_out(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.zeros((64, 64), bool)
    mask[:3, :3] = True
    image = np.where(mask[..., None], 200, 50).repeat(3, axis=2).astype(np.uint8)
    for number in range(80):
        _, moved, _ = changed(image, mask, "polyp", number)
        assert moved is not None
        assert moved.sum() >= 0.4 * mask.sum()
    empty = np.zeros((64, 64), bool)
    assert not changed(image, empty, "polyp", 1)[1].any()  # type: ignore[union-attr]
    assert changed(image, None, "polyp", 1)[1] is None
    assert np.array_equal(changed(image, None, "polyp", 1)[0], changed(image, empty, "polyp", 1)[0])


# In a data set


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    made = []
    for number in range(6):
        image, mask = case(number)
        Image.fromarray(image).save(tmp_path / f"{number}.png")
        Image.fromarray(mask).save(tmp_path / f"{number}_m.png")
        made.append(Record(f"c{number}", tmp_path / f"{number}.png", tmp_path / f"{number}_m.png", {"p1": ("polyp",)}))
    return made


def tokenize(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(len(texts), 2, dtype=torch.long), torch.ones(len(texts), 2, dtype=torch.long)


def read(dataset: CaseDataset, workers: int = 0) -> list:
    loader = make_loader(dataset, tokenize, batch_size=4, shuffle=True, seed=0, epoch=0, num_workers=workers)
    return [(batch.pixel_values, batch.masks) for batch in loader]


def test_an_epoch_is_changed_anew_and_is_the_same_in_any_process(records: list[Record]) -> None:
    preprocess = Preprocessing(size=(48, 48))
    plain, dataset = CaseDataset(records, preprocess), CaseDataset(records, preprocess, augment="medium")
    assert all(torch.equal(dataset[i].pixel_values, plain[i].pixel_values) for i in range(6))  # no epoch: validation
    dataset.set_epoch(0)
    first = [dataset[i].pixel_values for i in range(6)]
    assert not any(torch.equal(one, plain[i].pixel_values) for i, one in enumerate(first))
    alone, with_worker = read(dataset), read(dataset, workers=1)
    for one, other in zip(alone, with_worker, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    dataset.set_epoch(1)
    assert not torch.equal(dataset[0].pixel_values, first[0])
    dataset.set_epoch(0)
    assert all(torch.equal(dataset[i].pixel_values, first[i]) for i in range(6))
    dataset.set_epoch(None)
    assert torch.equal(dataset[0].pixel_values, plain[0].pixel_values)


def test_it_is_off_unless_asked_for() -> None:
    assert RunConfig.load(None, {"data.path": "x"}).data.augment == "none"
    assert RunConfig.load(None, {"data.path": "x"}, ["data.augment=light"]).data.augment == "light"
    with pytest.raises(ConfigError, match="did you mean 'medium'"):
        RunConfig.load(None, {"data.path": "x"}, ["data.augment=mediun"])
    with pytest.raises(ConfigError, match="augmentation 'heavy' is unknown"):
        check_augment("heavy")
    image, mask = case(0)
    assert augment_case(image, mask, "x", level="none", case_id="a", seed=0, epoch=0)[0] is image
