"""From records to batches, in an order that depends on seed and epoch alone.

The preprocessing belongs to the model: the dataset is given an object with ``resize`` and ``normalize`` and keeps the
resized bytes between the two in a bounded cache.
"""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import PIL
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from vlsm_adapter.data.augmentation import NONE, augment_case, check_augment
from vlsm_adapter.data.cache import MemoryCache
from vlsm_adapter.data.disk_cache import DiskCache, Kept
from vlsm_adapter.data.images import check_same_size, header_size, read_image, read_mask
from vlsm_adapter.data.masks import resize_mask
from vlsm_adapter.data.prompts import choose_prompt
from vlsm_adapter.errors import DataError, UserError
from vlsm_adapter.types import Batch, Record

# Changes when decoding does: entries of a cache on disk are then made anew.
_DECODER = f"decoded by rules 1 of Pillow {PIL.__version__}"

Tokenize = Callable[[list[str]], tuple[torch.Tensor, torch.Tensor]]


class Preprocess(Protocol):
    """What a model does to an image, in two steps so that the first can be cached."""

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the model's input in pixels."""

    def resize(self, image: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) to uint8 (h, w, 3)."""

    @property
    def resize_key(self) -> str:
        """All that ``resize`` depends on, in words; needed for a cache on disk alone."""

    def normalize(self, image: np.ndarray) -> torch.Tensor:
        """uint8 (h, w, 3) to float32 (3, h, w)."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One case ready for a model.

    Attributes:
        pixel_values: float32 (3, h, w), or None where nobody needs them (see ``CaseDataset.encoded``).
        mask: float32 (h, w) in {0, 1}, or None for an unlabelled case.
        case_id: the case.
        prompt: the text to ask.
        image: what the pixels are of: samples of equal ``image`` have equal pixels, whichever case they are of.
    """

    pixel_values: torch.Tensor | None
    mask: torch.Tensor | None
    case_id: str
    prompt: str
    image: str


class CaseDataset(Dataset[Sample]):
    """Cases with their prompts, at the model's size.

    Args:
        records: the cases.
        preprocess: the model's, see ``Preprocess``.
        level: prompt level, or ``"random"`` (see ``prompts.choose_prompt``).
        seed: seed of the choice of prompts.
        epoch: None for prompts fixed for ever; a number draws them anew each epoch (``set_epoch``).
        cache_bytes: bound of the cache of resized images and masks in memory; 0 keeps none there.
        disk_cache: keeps them on disk as well, for later runs and for loader processes.
        augment: changes every sample of an epoch, where it is on and ``epoch`` is a number; see ``augmentation``.

    Attributes:
        encoded: image files whose samples come without pixels, to be set where what is computed from them is known.

    Raises:
        DataError: on access, when a file is unusable or a case lacks the level.
    """

    def __init__(
        self,
        records: Sequence[Record],
        preprocess: Preprocess,
        *,
        level: str = "p1",
        seed: int = 0,
        epoch: int | None = None,
        cache_bytes: int = 1 << 30,
        disk_cache: DiskCache | None = None,
        augment: str = NONE,
    ) -> None:
        self.records = list(records)
        self.preprocess = preprocess
        self.level = level
        self.seed = seed
        self.epoch = epoch
        self.cache = MemoryCache(cache_bytes)
        self.disk_cache = disk_cache
        self.augment = check_augment(augment)
        self.encoded: Collection[str] = frozenset()

    def set_epoch(self, epoch: int | None) -> None:
        """Draw the prompts of ``epoch`` from now on; None fixes them."""
        self.epoch = epoch

    def prompt(self, index: int) -> str:
        """The text of case ``index`` in this epoch; opens no file."""
        return choose_prompt(self.records[index], self.level, seed=self.seed, epoch=self.epoch)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        prompt = self.prompt(index)
        name = str(record.image)
        if name in self.encoded:
            return Sample(None, _as_tensor(self._resized_mask(record)), record.case_id, prompt, name)
        image, mask = self._resized(record)
        if self.augment != NONE and self.epoch is not None:
            image, mask, prompt = augment_case(
                image, mask, prompt, level=self.augment, case_id=record.case_id, seed=self.seed, epoch=self.epoch
            )
            name = f"{name}\0{record.case_id}"  # no other case is changed alike
        return Sample(self.preprocess.normalize(image), _as_tensor(mask), record.case_id, prompt, name)

    @property
    def images(self) -> list[str]:
        """The image files, each once."""
        return list(dict.fromkeys(str(record.image) for record in self.records))

    @property
    def image_treatment(self) -> str:
        """All that the resized image depends on beside the content of its file."""
        return f"image {_DECODER} {self.preprocess.resize_key}"

    def pixels(self, image: str) -> torch.Tensor:
        """float32 (3, h, w) of one of the ``images``, as it stands in samples that are not augmented."""
        record = next(record for record in self.records if str(record.image) == image)
        return self.preprocess.normalize(self._resized(record)[0])

    def _resized(self, record: Record) -> tuple[np.ndarray, np.ndarray | None]:
        kept = self.cache.get(record.case_id)
        if kept is not None:
            return kept[0].copy(), kept[1]
        image, native = self._load_image(record)
        mask: np.ndarray | None = None
        if record.mask is not None:
            mask, mask_native = self._load_mask(record)
            check_same_size(record, native[::-1], mask_native[::-1])
        # The cache's own copy is read-only; what is handed out may be changed in place by the model's preprocessing.
        self.cache.put(record.case_id, image.copy(), mask)
        return image, mask

    def _resized_mask(self, record: Record) -> np.ndarray | None:
        """The mask alone; memory held for the image is given back."""
        if record.mask is None:
            return None
        kept = self.cache.get((record.case_id, "mask"))
        if kept is not None:
            return kept[0]
        with_image = self.cache.get(record.case_id)
        mask = self._load_mask(record)[0] if with_image is None or with_image[1] is None else with_image[1]
        self.cache.drop(record.case_id)
        self.cache.put((record.case_id, "mask"), mask, None)
        return mask

    def _load_image(self, record: Record) -> tuple[np.ndarray, tuple[int, int]]:
        """The resized image, and the native (H, W)."""

        def make() -> Kept:
            width, height = header_size(record.image)
            h, w = self.preprocess.size
            image = read_image(record.image, at_least=(2 * h, 2 * w))
            return Kept(self.preprocess.resize(image), (height, width))

        kept = make() if self.disk_cache is None else self.disk_cache.load(record.image, self.image_treatment, make)
        return kept.array, kept.native

    def _load_mask(self, record: Record) -> tuple[np.ndarray, tuple[int, int]]:
        """The resized mask, and the native (H, W)."""
        assert record.mask is not None
        path, size = record.mask, self.preprocess.size

        def make() -> Kept:
            mask = read_mask(path, record.mask_value)
            return Kept(resize_mask(mask, size), (mask.shape[0], mask.shape[1]))

        if self.disk_cache is None:
            kept = make()
        else:
            treatment = f"mask {_DECODER} value {record.mask_value} by area to {size[0]} x {size[1]}"
            kept = self.disk_cache.load(path, treatment, make)
        return kept.array, kept.native


def _as_tensor(mask: np.ndarray | None) -> torch.Tensor | None:
    return None if mask is None else torch.from_numpy(mask.astype(np.float32))


def collate(samples: Sequence[Sample], tokenize: Tokenize) -> Batch:
    """One batch, each sample with its own prompt; an image that several of them share is there once (B <= P).

    Args:
        samples: at least one, all with masks or all without.
        tokenize: texts to ``input_ids`` and ``attention_mask``, int64 (P, L) both.

    Raises:
        DataError: some samples have masks and others none.
    """
    prompts = [sample.prompt for sample in samples]
    input_ids, attention_mask = tokenize(prompts)
    images = {name: row for row, name in enumerate(dict.fromkeys(sample.image for sample in samples))}
    pixels = {images[sample.image]: sample.pixel_values for sample in samples if sample.pixel_values is not None}
    masks = [sample.mask for sample in samples if sample.mask is not None]
    if masks and len(masks) < len(samples):
        alone = next(sample.case_id for sample in samples if sample.mask is None)
        raise DataError(
            f"case {alone}: has no mask while others of its batch have: keep labelled and unlabelled cases apart"
        )
    return Batch(
        # torch's own stacks into shared memory in a loader process: one copy of every batch less.
        pixel_values=default_collate(list(pixels.values())) if pixels else torch.empty(0, 3, 0, 0),
        input_ids=input_ids,
        attention_mask=attention_mask,
        image_index=torch.tensor([images[sample.image] for sample in samples]),
        masks=default_collate(masks) if masks else None,
        case_ids=tuple(sample.case_id for sample in samples),
        prompts=tuple(prompts),
        images=tuple(images),
        pixel_rows=None if len(pixels) == len(images) else tuple(pixels),
    )


class EpochBatches(Sampler[list[int]]):
    """Batches of indices of one epoch, from ``start_batch`` on.

    The order is a function of ``seed`` and ``epoch`` alone: nothing is drawn from a global generator, so there is no
    state to save, and an epoch resumed at batch k goes on with the batches it would have had.

    Args:
        count: number of cases.
        batch_size: cases in a batch.
        shuffle: False keeps the order of the cases.
        seed, epoch: choose the permutation.
        drop_last: leave out a last batch that is not full.
        start_batch: batches of the epoch already done.
        share: ``(k, n)``: of every batch the part of the k-th (from 0) of n processes, every n-th case; one that has
            none in a last batch gets its first case, to keep step.

    Raises:
        DataError: ``batch_size`` is below one, or ``start_batch`` is negative or beyond the end.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        epoch: int,
        drop_last: bool = False,
        start_batch: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        if batch_size < 1:
            raise DataError(f"batch size {batch_size}: must be at least 1")
        order = epoch_order(count, seed, epoch) if shuffle else list(range(count))
        batches = [order[start : start + batch_size] for start in range(0, count, batch_size)]
        if drop_last and batches and len(batches[-1]) < batch_size:
            batches.pop()
        if not 0 <= start_batch <= len(batches):
            raise DataError(f"start batch {start_batch}: the epoch has batches 0 to {len(batches)}")
        rank, processes = share
        self._batches = [batch[rank::processes] or batch[:1] for batch in batches[start_batch:]]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The permutation of ``range(count)`` that belongs to ``seed`` and ``epoch``."""
    return torch.randperm(count, generator=_generator("order", seed, epoch)).tolist()


class CaseLoader(DataLoader[Any]):
    """A ``DataLoader`` that raises the user's errors of worker processes as they are: one line, no traceback."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            yield batch


def make_loader(
    dataset: CaseDataset,
    tokenize: Tokenize,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    epoch: int = 0,
    num_workers: int = 0,
    drop_last: bool = False,
    start_batch: int = 0,
    share: tuple[int, int] = (0, 1),
    pin_memory: bool = False,
) -> CaseLoader:
    """The batches of one epoch.

    The prompts are those of ``dataset.epoch``: call ``dataset.set_epoch(epoch)`` first where they are drawn anew each
    epoch. Iterating leaves torch's global generator as it was, so a resumed run draws the same numbers.

    Args:
        dataset: the cases.
        tokenize: texts to ``(input_ids, attention_mask)``; must be picklable where processes are spawned.
        batch_size, shuffle, drop_last: as usual.
        seed, epoch: determine the order, see ``EpochBatches``.
        num_workers: loader processes; 0 loads here and keeps the cache from epoch to epoch. The workers of one
            loader share the dataset's ``cache_bytes`` evenly and start with what is cached here.
        start_batch: batches of the epoch already done; iteration goes on after them.
        share: which part of every batch, see ``EpochBatches``.
        pin_memory: as in torch.

    Raises:
        DataError: no case in the dataset, or ``batch_size`` or ``start_batch`` out of range.
    """
    if len(dataset) == 0:
        raise DataError("no case to load: the split is empty")
    batches = EpochBatches(
        len(dataset),
        batch_size,
        shuffle=shuffle,
        seed=seed,
        epoch=epoch,
        drop_last=drop_last,
        start_batch=start_batch,
        share=share,
    )
    return CaseLoader(
        _Guarded(dataset) if num_workers else dataset,
        batch_sampler=batches,
        collate_fn=partial(_collate_or_error, tokenize=tokenize),
        num_workers=num_workers,
        worker_init_fn=_start_worker if num_workers else None,
        # A generator of its own: DataLoader draws the workers' base seed from the global one otherwise.
        generator=_generator("loader", seed, epoch),
        pin_memory=pin_memory,
    )


class _Guarded(Dataset[Any]):
    """Hands a user's error on as a value: torch would wrap it into a traceback on its way out of a worker."""

    def __init__(self, dataset: CaseDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample | UserError:
        try:
            return self.dataset[index]
        except UserError as error:
            return error


def _collate_or_error(samples: Sequence[Sample | UserError], tokenize: Tokenize) -> Batch | UserError:
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
    return collate(samples, tokenize)  # type: ignore[arg-type]


def _start_worker(_worker: int) -> None:
    # Ctrl-C reaches every process of the terminal; the main one stops the run and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    info = get_worker_info()
    if info is not None and isinstance(info.dataset, _Guarded):
        cache = info.dataset.dataset.cache
        cache.resize(cache.max_bytes // info.num_workers)


def _generator(purpose: str, seed: int, epoch: int) -> torch.Generator:
    digest = hashlib.blake2b(f"{purpose}\0{seed}\0{epoch}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
