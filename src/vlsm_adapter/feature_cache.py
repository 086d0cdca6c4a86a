"""What is frozen is computed once: features of images and prompts, kept for the epochs to come.

Where nothing in the trunk of an encoder trains, and no augmentation changes the images, the trunk gives the same for
every epoch; where something in the image trunk does, its stem, up to the first module that changes, does so still.
On the CPU such output is then computed for each image and each text **alone**, whether it is kept or not:
the same sums in the same order, so that training ends with the same bits with and without the cache, however cases fall
into batches, and after any interruption. (Computed for a whole batch, the last bits would depend on its size.)

A GPU would idle over one image at a time. There what is missing of a batch is computed together, and with the cache off
the encoders run on the whole batch as they would without this module; the last bits may then differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import numpy as np
import torch

from vlsm_adapter.adapters.attach import training_mode
from vlsm_adapter.data.augmentation import NONE
from vlsm_adapter.data.digests import FileDigests
from vlsm_adapter.data.entry_folder import EntryFolder
from vlsm_adapter.data.loaders import CaseDataset
from vlsm_adapter.feature_probe import F, Frozen, frozen_image, image_blocks_train, probe
from vlsm_adapter.feature_store import (
    SUFFIX,
    FeatureStore,
    Scratch,
    content,
    entry_bytes,
    memory_for_features,
    nbytes,
)
from vlsm_adapter.models.base import PromptSegmenter
from vlsm_adapter.models.features import ImageFeatures, TextFeatures, Trunks
from vlsm_adapter.types import Batch

# Changes when the way that features are computed here does: entries of a shared folder are then made anew.
_RULES = 1
_PROBE_TEXT = "image"
# Texts take kilobytes where images take megabytes, but come later: they have a part of the memory to themselves.
_PART_FOR_TEXTS = 16


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

    def get(self, key: str, device: torch.device) -> F | None:
        """Features of one input on ``device``; None where they are not kept."""
        found = self.store.get(key, device)
        return None if found is None else self._example.with_tensors(found)

    def put(self, key: str, features: F, *, share: bool = True) -> F:
        """Keep the features of one input where there is room; returns them, in memory as any place gives them back."""
        tensors = tuple(tensor.contiguous() for tensor in features.tensors())
        return self._example.with_tensors(self.store.put(key, tensors, share=share))

    def kept(self, count: int) -> tuple[int, int]:
        """How many of ``count`` inputs memory has room for, and how many of the others the disk."""
        each = max(1, self.bytes_each)
        in_memory = min(count, self.store.memory_bytes // each)
        if self.store.shared is not None:
            return in_memory, count - in_memory
        room = 0 if self.store.scratch is None else self.store.scratch.room()
        return in_memory, min(count - in_memory, room // each)


@dataclass(frozen=True)
class _ImageKey:
    """The name of an image's features, and the digest of its file; None where they are not to be shared."""

    name: str
    digest: bytes | None


class FeatureCache:
    """Gives the model's arguments for a batch: features in place of pixels and token ids where the trunks are frozen.

    Args:
        model: with its adapter, on its device.
        folder: of the run; features beyond memory go to a nameless file there.
        precision: makes the context in which the model computes (Fabric's ``autocast``).
        on: False computes features for every batch, and keeps none.
        memory_mb: bound in memory, of each GPU where the model is on one, else of all processes together; by default
            a quarter of what is free.
        disk_bytes: bound on disk.
        shared: a folder that keeps features for other runs, if it can be written and takes entries of their size; the
            nameless file has then only what may not be shared.
        processes: how many train on this machine and share its memory and disk.
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
        self._disk_bytes = disk_bytes if on else 0
        self._shared = EntryFolder(shared, disk_bytes, suffix=SUFFIX, holds="features") if on and shared else None
        self._processes = processes
        self._together = model.device.type != "cpu"
        self._digests = FileDigests()
        self._image_keys: dict[str, _ImageKey] = {}
        self._text_keys: dict[str, str] = {}
        self._prepared: set[int] = set()
        memory = memory_for_features(model.device, memory_mb, processes) if on else 0
        for_texts = memory // _PART_FOR_TEXTS
        with precision(), training_mode(model):
            image = frozen_image(model, self._pattern())
            text = probe(model, lambda: model.text_trunk(*self._tokens(_PROBE_TEXT)))
        self._cut = None if image.features is None else image.features.cut
        self._images = self._trunk("image", image, memory - for_texts)
        self._texts = self._trunk("text", text, for_texts)

    def prepare(self, data: CaseDataset) -> None:
        """Before an epoch: have ``data`` leave out the pixels of images whose features are kept."""
        data.encoded = frozenset()
        if not self.on or self._images is None or not _constant(data):
            return
        store = self._images.store
        data.encoded = frozenset(image for image in data.images if self._image_key(image, data).name in store)
        if store.shared is not None and id(data) not in self._prepared:
            # Decoded when cases were checked, maybe before their files became what the digests are of.
            for record in data.records:
                if str(record.image) not in data.encoded:
                    data.cache.drop(record.case_id)
            self._prepared.add(id(data))

    def inputs(self, batch: Batch, data: CaseDataset) -> dict[str, Any]:
        """Keyword arguments of the model for ``batch`` of ``data``, on the model's device.

        Each distinct text is there once; so is each distinct image. (Where their encoder trains with dropout, cases that
        share one share what is dropped.)
        """

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(self.model.device, non_blocking=True)

        trunks = Trunks()
        values: dict[str, Any] = {"image_index": move(batch.image_index), "trunks": trunks}
        apart = self.on or not self._together
        if self._images is not None and apart and _constant(data):
            trunks.image = ImageFeatures.join(self._image_features(self._images, batch, data))
        else:
            values["pixel_values"] = move(batch.pixel_values)
        texts = list(dict.fromkeys(batch.prompts))
        if self._texts is not None and apart:
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
        adapted = image_blocks_train(self.model)
        frozen = "image encoder adapted, frozen before its adapters" if adapted else "image encoder frozen"
        if self._images is None:
            parts.append("image encoder adapted: its features change, not cached")
        elif not self.on:
            parts.append(f"{frozen}: run for every batch, the cache is off (train.feature_cache)")
        else:
            sets = [data for data in (training, validation) if _constant(data)]
            count = len({image for data in sets for image in data.images})
            kind = "images"
            if not _constant(training):
                parts.append(f"{frozen}, but augmentation changes the images: not cached")
                kind = "validation images"
            parts.append(f"{'' if parts else frozen + ': '}{self._places(self._images, count, kind)}")
        if self._texts is None:
            parts.append("text encoder adapted: each distinct prompt encoded once per batch")
        else:
            once = any(self._texts.kept(1))
            parts.append("text encoder frozen: " + ("each prompt encoded once" if once else "run for every batch"))
        return "; ".join(parts)

    def close(self) -> None:
        """Give memory and disk back."""
        for trunk in (self._images, self._texts):
            if trunk is not None:
                trunk.store.close()

    # -- images and texts ------------------------------------------------------------------------------------------------

    def _image_features(self, trunk: _Trunk[ImageFeatures], batch: Batch, data: CaseDataset) -> list[ImageFeatures]:
        """Of each image of the batch."""
        device = self.model.device
        rows = range(len(batch.images)) if batch.pixel_rows is None else batch.pixel_rows
        pixels = {batch.images[image]: batch.pixel_values[row] for row, image in enumerate(rows)}
        keys = {image: self._image_key(image, data) for image in batch.images}
        found: dict[str, ImageFeatures] = {}
        missing: dict[str, str] = {}  # of files with equal content one
        for image, key in keys.items():
            features = trunk.get(key.name, device) if self.on and key.name not in found else None
            if features is not None:
                found[key.name] = features
            elif key.name not in found:
                missing.setdefault(key.name, image)
        alone = [[image] for image in missing.values()]
        for images in [list(missing.values())] if self._together and missing else alone:
            # What was kept when the epoch began may be gone: a damaged file, or one that made room for others.
            chosen = [pixels[image] if image in pixels else data.pixels(image) for image in images]
            with torch.no_grad(), self._precision():
                # A copy of their own: alike aligned in memory wherever they stood in the batch.
                made = self._encode(torch.stack(chosen).contiguous().to(device))
            for row, image in enumerate(images):
                one = made.with_tensors([tensor[row : row + 1] for tensor in made.tensors()])
                found[keys[image].name] = trunk.put(keys[image].name, one, share=self._may_share(image))
        return [found[key.name] for key in keys.values()]

    def _encode(self, pixels: torch.Tensor) -> ImageFeatures:
        """Pixels (B, 3, h, w) through what is frozen of the image encoder."""
        if self._cut is None:
            return self.model.image_trunk(pixels)
        stem = self.model.image_stem(pixels, self._cut)
        assert stem is not None
        return stem

    def _text_features(self, trunk: _Trunk[TextFeatures], text: str) -> TextFeatures:
        if text not in self._text_keys:
            tokens = self.model.tokenize([text])
            about = json.dumps([tokens.input_ids.tolist(), tokens.attention_mask.tolist()])
            self._text_keys[text] = trunk.key(about.encode())
        key = self._text_keys[text]
        features = trunk.get(key, self.model.device)
        if features is None:
            with torch.no_grad(), self._precision():
                features = trunk.put(key, self.model.text_trunk(*self._tokens(text)))
        return features

    def _image_key(self, image: str, data: CaseDataset) -> _ImageKey:
        """Named by the content of the file where features may be shared, else, which reads nothing, by its path."""
        if image not in self._image_keys:
            assert self._images is not None
            digest = None if self._images.store.shared is None else self._digests.of(Path(image))
            given = digest or b"path " + image.encode("utf-8", "surrogateescape")
            self._image_keys[image] = _ImageKey(self._images.key(data.image_treatment.encode() + given), digest)
        return self._image_keys[image]

    def _may_share(self, image: str) -> bool:
        """Whether the file still has the content by which its features are named."""
        digest = self._image_keys[image].digest
        return digest is not None and self._digests.of(Path(image)) == digest

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
        scratch = Scratch(self._folder, self._disk_bytes // self._processes) if self._disk_bytes else None
        shared = None if found.adapted else self._shared
        if shared is not None and not (shared.takes(entry_bytes(found.features.tensors())) and shared.writable()):
            shared = None
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
        if kind == "image" and self._cut is not None:
            about.append(f"cut {self._cut}")
        digest = hashlib.sha256(json.dumps(about).encode())
        for tensor in features.tensors():
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(content(tensor.cpu().contiguous()))
        return digest.digest()

    def _places(self, trunk: _Trunk[ImageFeatures], count: int, kind: str) -> str:
        """Where the features of ``count`` images of a ``kind`` are kept."""
        size, shared = trunk.bytes_each, trunk.store.shared
        in_memory, on_disk = trunk.kept(count)
        rest = count - in_memory - on_disk
        bounds = "(train.feature_cache_mb, train.feature_cache_gb)"
        if rest == count:
            return f"{kind} not cached: no room for features of {_size(size)} each {bounds}; encoded every epoch"
        told = [f"features of {count} {kind} cached"]
        if in_memory:
            where = "GPU memory" if self.model.device.type == "cuda" else "memory"
            told.append(f"{_size(in_memory * size)} in {where}")
        if shared is not None:
            if count * size <= shared.max_bytes * 7 // 8:  # down to which room is made
                told.append(f"all of them in {shared.folder} (at most {_size(shared.max_bytes)})")
            else:
                told.append(f"at most {_size(shared.max_bytes)} of them in {shared.folder} (train.feature_cache_gb)")
                told.append("what was used longest ago makes room and is encoded again")
        elif on_disk:
            told.append(f"{_size(on_disk * size)} on the disk of {self._folder}, until the end of the run")
        if rest:
            told.append(f"{rest} do not fit {bounds} and are encoded every epoch")
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
