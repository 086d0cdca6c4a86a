"""Datasets, masks at the model's size, and an order that depends on seed and epoch alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from vlsm_adapter.data.cache import MemoryCache
from vlsm_adapter.data.loaders import CaseDataset, EpochBatches, collate, epoch_order, make_loader
from vlsm_adapter.data.masks import resize_mask
from vlsm_adapter.errors import DataError
from vlsm_adapter.types import Batch, Record

SIZE = (16, 24)


class Preprocess:
    """Stretches to 16 x 24 and counts how often it had to."""

    size = SIZE

    def __init__(self) -> None:
        self.resized = 0

    def resize(self, image: np.ndarray) -> np.ndarray:
        self.resized += 1
        return np.array(Image.fromarray(image).resize((SIZE[1], SIZE[0])))

    def normalize(self, image: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(image).permute(2, 0, 1).float() / 255


def tokenize(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(len(text) for text in texts)
    ids = torch.tensor([[ord(char) % 97 for char in text.ljust(length)] for text in texts])
    return ids, (ids > 0).long()


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    rng = np.random.default_rng(0)
    made = []
    for i in range(10):
        image, mask = tmp_path / f"{i}.png", tmp_path / f"{i}_m.png"
        Image.fromarray(rng.integers(0, 255, (32, 48, 3), dtype=np.uint8)).save(image)
        Image.fromarray(rng.random((32, 48)) > 0.5).save(mask)
        prompts = {"p1": ("polyp",), "p2": tuple(f"polyp {i} {k}" for k in range(5))}
        made.append(Record(f"c{i}", image, mask, prompts, "train"))
    return made


def read_all(dataset: CaseDataset, **options: object) -> list[Batch]:
    defaults = {"batch_size": 3, "shuffle": True, "seed": 1, "epoch": 0}
    return list(make_loader(dataset, tokenize, **{**defaults, **options}))  # type: ignore[arg-type]


def equal(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.pixel_values, b.pixel_values)
        and torch.equal(a.input_ids, b.input_ids)
        and a.masks is not None
        and b.masks is not None
        and torch.equal(a.masks, b.masks)
        and (a.case_ids, a.prompts) == (b.case_ids, b.prompts)
        for a, b in zip(one, other, strict=True)
    )


# Masks


@settings(max_examples=80, deadline=None)
@given(
    hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14)),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
def test_resize_mask_measures_exact_area(mask: np.ndarray, size: tuple[int, int]) -> None:
    # On a grid that both sizes divide, areas are counts.
    fine = np.kron(mask, np.ones(size, bool))
    blocks = fine.reshape(size[0], mask.shape[0], size[1], mask.shape[1])
    expected = 2 * blocks.sum(axis=(1, 3)) >= mask.size
    made = resize_mask(mask, size)
    assert made.dtype == bool
    assert (made == expected).all()


def test_resize_mask_of_whole_and_nothing() -> None:
    assert resize_mask(np.ones((337, 501), bool), (352, 352)).all()
    assert not resize_mask(np.zeros((337, 501), bool), (352, 352)).any()
    truth = np.zeros((1000, 1500), bool)
    truth[301:700, 402:1101] = True
    assert resize_mask(truth, (352, 352)).mean() == pytest.approx(truth.mean(), rel=0.01)


# Cache


def test_cache_is_bounded_and_drops_what_was_used_longest_ago() -> None:
    cache = MemoryCache(100)
    for key in "abc":
        cache.put(key, np.zeros(30, np.uint8), np.zeros(3, bool))
    assert cache.get("a") is not None
    cache.put("d", np.zeros(30, np.uint8), None)
    assert cache.get("b") is None
    assert [cache.get(key) is not None for key in "acd"] == [True] * 3
    assert cache.used_bytes == 33 + 33 + 30
    cache.put("huge", np.zeros(101, np.uint8), None)
    assert cache.get("huge") is None
    cache.put("a", np.zeros(10, np.uint8), None)
    assert cache.used_bytes == 10 + 33 + 30
    cache.resize(35)
    assert len(cache) == 1
    kept = cache.get("a")
    assert kept is not None
    assert not kept[0].flags.writeable


# Dataset


def test_a_sample(records: list[Record]) -> None:
    dataset = CaseDataset(records, Preprocess())
    sample = dataset[3]
    assert sample.pixel_values.shape == (3, *SIZE)
    assert sample.mask is not None
    assert sample.mask.shape == SIZE
    assert sample.mask.dtype == torch.float32
    assert set(sample.mask.unique().tolist()) <= {0.0, 1.0}
    assert (sample.case_id, sample.prompt) == ("c3", "polyp")


def test_the_second_epoch_decodes_nothing_and_is_the_same(records: list[Record]) -> None:
    preprocess = Preprocess()
    dataset = CaseDataset(records, preprocess)
    first = [dataset[i] for i in range(len(dataset))]
    # Whoever changes what was handed out must not change what is kept.
    for sample in first:
        sample.pixel_values.mul_(2)
        if sample.mask is not None:
            sample.mask.add_(1)
    for record in records:
        record.image.unlink()
    second = [dataset[i] for i in range(len(dataset))]
    assert preprocess.resized == len(records)
    assert torch.equal(first[0].pixel_values, second[0].pixel_values * 2)
    none = CaseDataset(records, preprocess, cache_bytes=0)
    with pytest.raises(DataError, match="no such file"):
        none[0]


def test_prompts_of_an_epoch(records: list[Record]) -> None:
    dataset = CaseDataset(records, Preprocess(), level="p2", seed=3)
    fixed = [dataset.prompt(i) for i in range(10)]
    dataset.set_epoch(0)
    drawn = [dataset.prompt(i) for i in range(10)]
    dataset.set_epoch(1)
    again = [dataset.prompt(i) for i in range(10)]
    assert drawn != again
    dataset.set_epoch(0)
    assert [dataset[i].prompt for i in range(10)] == drawn
    dataset.set_epoch(None)
    assert [dataset.prompt(i) for i in range(10)] == fixed
    with pytest.raises(DataError, match="p1, p2"):
        CaseDataset(records, Preprocess(), level="p7")[0]


# Batches


def test_collate(records: list[Record]) -> None:
    dataset = CaseDataset(records, Preprocess())
    batch = collate([dataset[i] for i in range(4)], tokenize)
    assert batch.pixel_values.shape == (4, 3, *SIZE)
    assert batch.input_ids.shape == batch.attention_mask.shape == (4, 5)
    assert batch.image_index.tolist() == [0, 1, 2, 3]
    assert batch.masks is not None
    assert batch.masks.shape == (4, *SIZE)
    assert batch.case_ids == ("c0", "c1", "c2", "c3")
    unlabelled = CaseDataset([replace(record, mask=None) for record in records], Preprocess())
    assert collate([unlabelled[0]], tokenize).masks is None
    with pytest.raises(DataError, match="case c1: has no mask"):
        collate([dataset[0], unlabelled[1]], tokenize)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**40), st.integers(0, 500), st.booleans(), st.data())
def test_an_epoch_holds_every_case_once_and_resumes(
    count: int, size: int, seed: int, epoch: int, drop_last: bool, data: st.DataObject
) -> None:
    options = {"shuffle": True, "seed": seed, "epoch": epoch, "drop_last": drop_last}
    batches = list(EpochBatches(count, size, **options))  # type: ignore[arg-type]
    seen = [index for batch in batches for index in batch]
    assert len(seen) == len(set(seen)) == (count - count % size if drop_last else count)
    start = data.draw(st.integers(0, len(batches)))
    rest = EpochBatches(count, size, start_batch=start, **options)  # type: ignore[arg-type]
    assert list(rest) == batches[start:]
    assert len(rest) == len(batches) - start


def test_the_order_is_that_of_seed_and_epoch() -> None:
    assert epoch_order(12, 0, 0) == epoch_order(12, 0, 0)
    assert len({tuple(epoch_order(12, seed, epoch)) for seed in range(5) for epoch in range(5)}) == 25
    assert list(EpochBatches(5, 2, shuffle=False, seed=0, epoch=3)) == [[0, 1], [2, 3], [4]]
    with pytest.raises(DataError, match="batch size 0"):
        EpochBatches(5, 0, shuffle=False, seed=0, epoch=0)
    for start in (-1, 4):
        with pytest.raises(DataError, match="batches 0 to 3"):
            EpochBatches(5, 2, shuffle=False, seed=0, epoch=0, start_batch=start)


def test_loader_is_repeatable_and_resumes_bit_for_bit(records: list[Record]) -> None:
    dataset = CaseDataset(records, Preprocess(), level="random", epoch=2)
    whole = read_all(dataset, epoch=2)
    assert [len(batch.case_ids) for batch in whole] == [3, 3, 3, 1]
    fresh = CaseDataset(records, Preprocess(), level="random", epoch=2)
    assert equal(read_all(fresh, epoch=2), whole)
    assert equal(read_all(fresh, epoch=2, start_batch=2), whole[2:])
    assert not equal(read_all(fresh, epoch=3), whole)
    assert read_all(fresh, epoch=2, start_batch=4) == []
    assert read_all(fresh, shuffle=False)[0].case_ids == ("c0", "c1", "c2")


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([0, 1, 2]))
def test_workers_change_nothing_and_no_global_number_is_drawn(records: list[Record], workers: int) -> None:
    dataset = CaseDataset(records, Preprocess(), level="random", epoch=0)
    before = torch.get_rng_state()
    batches = read_all(dataset, num_workers=workers)
    assert torch.equal(torch.get_rng_state(), before)
    assert equal(batches, read_all(CaseDataset(records, Preprocess(), level="random", epoch=0)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_case_is_one_line_also_from_a_worker(records: list[Record], workers: int) -> None:
    records[4].image.write_bytes(b"")
    with pytest.raises(DataError) as error:
        read_all(CaseDataset(records, Preprocess()), num_workers=workers)
    assert str(error.value) == f"{records[4].image}: is empty (0 bytes): fetch the file again"


def test_nothing_to_load() -> None:
    with pytest.raises(DataError, match="no case"):
        make_loader(CaseDataset([], Preprocess()), tokenize, batch_size=2, shuffle=False, seed=0)
