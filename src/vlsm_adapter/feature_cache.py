"""What is frozen is computed once: features of images and prompts, kept for the epochs to come.

Where nothing in the trunk of an encoder trains, and no augmentation changes the images, the trunk gives the same for
every epoch. Its output is then computed for each image and each text **alone**, whether it is kept or not: the same
sums in the same order, so that training ends with the same bits with and without the cache, however cases fall into
batches, and after any interruption. (Computed for a whole batch, the last bits would depend on its size.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import nn

from vlsm_adapter.adapters import tuner
from vlsm_adapter.adapters.attach import training_mode
from vlsm_adapter.data.augmentation import NONE
from vlsm_adapter.data.digests import FileDigests
from vlsm_adapter.data.entry_folder import EntryFolder
from vlsm_adapter.data.loaders import CaseDataset
from vlsm_adapter.feature_store import SUFFIX, FeatureStore, Scratch, content, memory_for_features, nbytes
from vlsm_adapter.models.base import ImageFeatures, PromptSegmenter, TextFeatures, Trunks
from vlsm_adapter.types import Batch

# Changes when the way that features are computed here does: entries of a shared folder are then made anew.
_RULES = 1
_PROBE_TEXT = "image"
# Texts take kilobytes where images take megabytes, but come later: they have a part of the memory to themselves.
_PART_FOR_TEXTS = 16

F = TypeVar("F", ImageFeatures, TextFeatures)


@dataclass(frozen=True)
class Frozen(Generic[F]):
    """What :func:`probe` found.

    Attributes:
        features: of the input it was tried on, or None: the trunk may give something else next time.
        adapted: an adapter that does not train works in the trunk; the base's hash does not name its weights.
    """

    features: F | None
    adapted: bool = False


class _Changes(Exception):
    """Raised at the first module that trains or is in training mode."""


def probe(model: nn.Module, run: Callable[[], F]) -> Frozen[F]:
    """Whether what ``run`` computes with ``model`` stays the same while the model trains.

    It does where no module that runs has a parameter that requires a gradient, none is in training mode (dropout,
    statistics of the batch), and the result requires no gradient, which tells of weights used without their module.
    """
    ran: set[int] = set()

    def look(module: nn.Module, _arguments: Any) -> None:
        if module.training or any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            raise _Changes
        ran.add(id(module))

    hooks = [module.register_forward_pre_hook(look) for module in model.modules()]
    try:
        with torch.enable_grad():
            features = run()
    except _Changes:
        return Frozen(None)
    finally:
        for hook in hooks:
            hook.remove()
    tensors = features.tensors()
    if any(tensor.requires_grad for tensor in tensors) or any(len(tensor) != 1 for tensor in tensors):
        return Frozen(None)
    adapted = any(id(layer) in ran and not layer.disable_adapters for layer in tuner.layers(model))
    return Frozen(features, adapted)


class _Trunk(Generic[F]):
    """The frozen trunk of one encoder: features of one input at a time, kept under what they depend on.

    Args:
        features: of any one input; says what tensors there are.
        context: all that features depend on beside the input.
        store: keeps them.
    """

    def __init__(self, features: F, context: bytes, store: FeatureStore) -> None:
        self.bytes_each = nbytes(features.tensors())
        self.store = store
        self._example: F = features.with_tensors([tensor[:0].clone() for tensor in features.tensors()])
        self._context = context

    def key(self, given: bytes) -> str:
        """The name of the features of what is ``given``."""
        return hashlib.sha256(self._context + given).hexdigest()

    def __call__(self, key: str, device: torch.device, compute: Callable[[], F]) -> F:
        """Features of one input on ``device``: those that are kept, or else those that ``compute`` makes."""
        found = self.store.get(key, device)
        if found is None:
            found = self.store.put(key, compute().tensors())
        return self._example.with_tensors(found)


class FeatureCache:
    """Gives the model's arguments for a batch: features in place of pixels and token ids where the trunks are frozen.

    Args:
        model: with its adapter, on its device.
        folder: of the run; features beyond memory go to a nameless file there.
        precision: makes the context in which the model computes (Fabric's ``autocast``).
        on: False computes features for every batch, and keeps none.
        memory_mb: bound in memory, of the GPU where the model is on one; by default a quarter of what is free.
        disk_bytes: bound on disk.
        shared: a folder that keeps features for other runs; no nameless file is made then.
        processes: how many train on this machine and share its memory.
    """

    def __init__(
        self,
        model: PromptSegmenter,
        *,
        folder: Path,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
        on: bool = True,
        memory_mb: int | None = None,
        disk_bytes: int = 0,
        shared: Path | None = None,
        processes: int = 1,
    ) -> None:
        self.model = model
        self.on = on
        self._precision = precision
        self._folder = folder
        self._shared = shared if on else None
        self._disk_bytes = disk_bytes if on else 0
        self._processes = processes
        self._digests = FileDigests()
        self._image_keys: dict[str, str] = {}
        self._text_keys: dict[str, str] = {}
        memory = memory_for_features(model.device, memory_mb, processes) if on else 0
        for_texts = memory // _PART_FOR_TEXTS
        with precision(), training_mode(model):
            image = probe(model, lambda: model.image_trunk(self._pattern()))
            text = probe(model, lambda: model.text_trunk(*self._tokens(_PROBE_TEXT)))
        self._images = self._trunk("image", image, memory - for_texts)
        self._texts = self._trunk("text", text, for_texts)

    def prepare(self, data: CaseDataset) -> None:
        """Before an epoch: have ``data`` leave out the pixels of images whose features are kept."""
        data.encoded = frozenset()
        if self.on and self._images is not None and _constant(data):
            data.encoded = frozenset(
                image for image in data.images if self._image_key(image, data) in self._images.store
            )

    def inputs(self, batch: Batch, data: CaseDataset) -> dict[str, Any]:
        """Keyword arguments of the model for ``batch`` of ``data``, on the model's device.

        Each distinct text is there once; so is each distinct image. (Where their encoder trains with dropout, cases that
        share one share what is dropped.)
        """

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(self.model.device, non_blocking=True)

        trunks = Trunks()
        values: dict[str, Any] = {"image_index": move(batch.image_index), "trunks": trunks}
        if self._images is not None and _constant(data):
            trunks.image = ImageFeatures.join(self._image_features(self._images, batch, data))
        else:
            values["pixel_values"] = move(batch.pixel_values)
        texts = list(dict.fromkeys(batch.prompts))
        if self._texts is not None:
            trunks.text = TextFeatures.join([self._text_features(self._texts, text) for text in texts])
        else:
            first = [batch.prompts.index(text) for text in texts]
            values["input_ids"] = move(batch.input_ids[first])
            values["attention_mask"] = move(batch.attention_mask[first])
        if len(texts) < len(batch.prompts):
            rows = {text: row for row, text in enumerate(texts)}
            values["text_index"] = move(torch.tensor([rows[text] for text in batch.prompts]))
        return values

    def describe(self, training: CaseDataset, validation: CaseDataset) -> str:
        """One line: what is cached, where, and why not more."""
        parts = []
        if self._images is None:
            parts.append("image encoder adapted: its features change, not cached")
        elif not self.on:
            parts.append("image encoder frozen: run for every batch, the cache is off (train.feature_cache)")
        else:
            sets = [data for data in (training, validation) if _constant(data)]
            count = len({image for data in sets for image in data.images})
            kind = "images"
            if not _constant(training):
                parts.append("image encoder frozen, but augmentation changes the images: not cached")
                kind = "validation images"
            start = f"features of {count} {kind} cached"
            parts.append(f"{'' if parts else 'image encoder frozen: '}{start}, {self._places(self._images, count)}")
        if self._texts is None:
            parts.append("text encoder adapted: each distinct prompt encoded once per batch")
        else:
            parts.append("text encoder frozen: " + ("each prompt encoded once" if self.on else "run for every batch"))
        return "; ".join(parts)

    def close(self) -> None:
        """Give memory and disk back."""
        for trunk in (self._images, self._texts):
            if trunk is not None:
                trunk.store.close()

    # -- images and texts ------------------------------------------------------------------------------------------------

    def _image_features(self, trunk: _Trunk[ImageFeatures], batch: Batch, data: CaseDataset) -> list[ImageFeatures]:
        """Of each image of the batch."""
        rows = range(len(batch.images)) if batch.pixel_rows is None else batch.pixel_rows
        pixels = {batch.images[image]: batch.pixel_values[row] for row, image in enumerate(rows)}

        def compute(image: str) -> ImageFeatures:
            # What was kept when the epoch began may be gone: a damaged file, or one that made room for others.
            one = pixels[image] if image in pixels else data.pixels(image)
            with torch.no_grad(), self._precision():
                # A copy of its own: alike aligned in memory wherever it stood in the batch.
                return self.model.image_trunk(one[None].clone().to(self.model.device))

        return [
            trunk(self._image_key(image, data), self.model.device, lambda image=image: compute(image))  # type: ignore[misc]
            for image in batch.images
        ]

    def _text_features(self, trunk: _Trunk[TextFeatures], text: str) -> TextFeatures:
        def compute() -> TextFeatures:
            with torch.no_grad(), self._precision():
                return self.model.text_trunk(*self._tokens(text))

        if text not in self._text_keys:
            tokens = self.model.tokenize([text])
            about = json.dumps([tokens.input_ids.tolist(), tokens.attention_mask.tolist()])
            self._text_keys[text] = trunk.key(about.encode())
        return trunk(self._text_keys[text], self.model.device, compute)

    def _image_key(self, image: str, data: CaseDataset) -> str:
        if image not in self._image_keys:
            assert self._images is not None
            file = self._digests.of(Path(image)) or image.encode("utf-8", "surrogateescape")
            self._image_keys[image] = self._images.key(data.image_treatment.encode() + file)
        return self._image_keys[image]

    def _tokens(self, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask of one text, without padding."""
        tokens = self.model.tokenize([text])
        return tokens.input_ids.to(self.model.device), tokens.attention_mask.to(self.model.device)

    def _pattern(self) -> torch.Tensor:
        """Pixels (1, 3, h, w) of an image that is always the same and has all values."""
        height, width = self.model.preprocessing.size
        numbers = np.arange(height * width * 3, dtype=np.uint32) * np.uint32(2654435761) >> np.uint32(24)
        image = numbers.astype(np.uint8).reshape(height, width, 3)
        return self.model.preprocess([image]).to(self.model.device)

    # -- where -----------------------------------------------------------------------------------------------------------

    def _trunk(self, kind: str, found: Frozen[F], memory: int) -> _Trunk[F] | None:
        if found.features is None:
            return None
        shared = scratch = None
        if self._shared is not None and not found.adapted:
            shared = EntryFolder(self._shared, self._disk_bytes, suffix=SUFFIX, holds="features")
        elif self._disk_bytes:
            scratch = Scratch(self._folder, self._disk_bytes // self._processes)
        store = FeatureStore(memory, scratch=scratch, shared=shared)
        return _Trunk(found.features, self._context(kind, found.features), store)

    def _context(self, kind: str, features: ImageFeatures | TextFeatures) -> bytes:
        """All that features depend on beside the input, as a digest.

        What is known by name stands beside what a fixed input gives, bit for bit: that tells of configuration,
        preprocessing, precision, and versions of whatever library computes.
        """
        device = self.model.device
        about = [
            _RULES,
            kind,
            self.model.family,
            self.model.base_hash,
            torch.__version__,
            torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            torch.get_num_threads(),
        ]
        digest = hashlib.sha256(json.dumps(about).encode())
        for tensor in features.tensors():
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(content(tensor.cpu().contiguous()))
        return digest.digest()

    def _places(self, trunk: _Trunk[ImageFeatures], count: int) -> str:
        store = trunk.store
        in_memory = min(count, store.memory_bytes // max(1, trunk.bytes_each))
        rest = count - in_memory
        where = "GPU memory" if self.model.device.type == "cuda" else "memory"
        told = [f"{_size(in_memory * trunk.bytes_each)} in {where}"] if in_memory or not count else []
        if store.shared is not None:
            told.append(f"all of them in {store.shared.folder} (at most {_size(store.shared.max_bytes)})")
        elif rest and store.scratch is not None:
            on_disk = min(rest, store.scratch.room() // max(1, trunk.bytes_each))
            if on_disk:
                told.append(
                    f"{_size(on_disk * trunk.bytes_each)} on the disk of {self._folder}, until the end of the run"
                )
            rest -= on_disk
        if rest and store.shared is None:
            told.append(
                f"{rest} do not fit (train.feature_cache_mb, train.feature_cache_gb) and are encoded every epoch"
            )
        return ", ".join(told)


def _constant(data: CaseDataset) -> bool:
    """Whether the images of ``data`` are the same in every epoch."""
    return data.augment == NONE


def _size(count: int) -> str:
    """Bytes in words: decimal units, as disks are sold."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB")):
        if count >= factor / 10:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
