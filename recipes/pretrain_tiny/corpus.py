"""The corpus of the embedded model: a folder of photos and cut-outs, and batches mixed from it and generated scenes.

The folder format is described in README.md. Batch number n of a seed is always the same batch, whoever renders it and
when: that is what makes a run deterministic and resumable.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import phrases
import scenes
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from torch.utils.data import Dataset

from vlsm_adapter.errors import DataError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PHOTO_TEMPLATES = (
    "{}",
    "{}",
    "{}",
    "the {}",
    "a {}",
    "a photo of a {}",
    "an image of a {}",
    "find the {}",
    "segment {}",
)
MIN_SHARE = 0.003  # a class with less than this share of the (cropped) picture is not asked for


@dataclass
class Photo:
    """A photo and its masks: class name to path."""

    image: Path
    source: str
    masks: dict[str, Path] = field(default_factory=dict)


def _rows(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give a corpus folder as README.md describes") from error
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error.msg}); one object per line") from error
        missing = [key for key in keys if not isinstance(row, dict) or not isinstance(row.get(key), str)]
        if missing:
            raise DataError(f"{path}, line {number}: no text under {', '.join(missing)}; needed: {', '.join(keys)}")
        rows.append(row)
    return rows


class Corpus:
    """Photos of the training and validation split, and cut-outs, of a corpus folder. Pictures are read when first used.

    Raises:
        DataError: the folder or its records.jsonl is missing or malformed, or a named file does not exist.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise DataError(f"{root}: no such folder; give the corpus folder (README.md describes its format)")
        self.root = root.resolve()
        self.photos: dict[str, list[Photo]] = {"train": [], "val": []}
        photos: dict[str, tuple[str, Photo]] = {}
        for row in _rows(root / "records.jsonl", ("image", "mask", "text", "source", "split")):
            if row["split"] not in self.photos:
                raise DataError(f"{root / 'records.jsonl'}: split '{row['split']}' is unknown; allowed: train, val")
            split, photo = photos.setdefault(
                row["image"], (row["split"], Photo(self._inside(row["image"]), row["source"]))
            )
            photo.masks[row["text"]] = self._inside(row["mask"])
        for split, photo in photos.values():
            self.photos[split].append(photo)
        if not self.photos["train"]:
            raise DataError(f"{root / 'records.jsonl'}: no photo of the split 'train'")
        self.cutouts: list[tuple[Path, str]] = []
        if (root / "cutouts.jsonl").is_file():
            rows = _rows(root / "cutouts.jsonl", ("image", "text"))
            self.cutouts = [(self._inside(row["image"]), row["text"]) for row in rows]
        self._index()
        self._pictures: dict[Path, NDArray[np.uint8]] = {}

    def _inside(self, name: str) -> Path:
        path = (self.root / name).resolve()
        if not path.is_relative_to(self.root):
            raise DataError(f"{self.root}: '{name}' lies outside the corpus folder; use relative paths inside it")
        if not path.is_file():
            raise DataError(f"{path}: named in the corpus but missing; restore the file or remove its line")
        return path

    def _index(self) -> None:
        by_name: dict[str, list[Photo]] = defaultdict(list)
        by_source: dict[str, set[str]] = defaultdict(set)
        per_photo: dict[str, list[int]] = defaultdict(list)
        for photo in self.photos["train"]:
            per_photo[photo.source].append(len(photo.masks))
            for name in photo.masks:
                by_name[name].append(photo)
                by_source[photo.source].add(name)
        self.by_name = dict(by_name)
        self.names = sorted(by_name)
        # Rare classes oftener than they occur, common ones seldomer.
        weights = np.array([len(by_name[name]) ** 0.5 for name in self.names])
        self.weights = weights / weights.sum()
        # What may be taken as absent from a photo: other names of its own source where that is annotated throughout
        # (few names), and the names of all one-object sources for a photo of a one-object source.
        alone = {source for source, counts in per_photo.items() if max(counts) == 1}
        singles = set().union(*(by_source[source] for source in alone)) if alone else set()
        self.absent = {
            source: sorted(singles if source in alone else names if len(names) <= 60 else ())
            for source, names in by_source.items()
        }

    @property
    def all_names(self) -> list[str]:
        """Every class and cut-out name, for training the tokenizer."""
        return sorted(set(self.names) | {name for _, name in self.cutouts})

    def picture(self, path: Path, mode: str) -> NDArray[np.uint8]:
        """The pixels of a file in a Pillow mode, kept in memory (masks as one bit per pixel would gain little).

        Raises:
            DataError: the file is no readable image.
        """
        if path not in self._pictures:
            try:
                with Image.open(path) as image:
                    self._pictures[path] = np.asarray(image.convert(mode))
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise DataError(f"{path}: cannot be read as an image ({error}); replace or remove it") from error
        return self._pictures[path]

    def thing(self, rng: np.random.Generator) -> tuple[NDArray[np.uint8], str] | None:
        """A class cut out of a random training photo along its mask, as an RGBA picture with its name.

        None where the class there is no compact thing: it fills the photo or little of its own bounding box, or is tiny.
        """
        name = self.names[int(rng.choice(len(self.names), p=self.weights))]
        photo = self.by_name[name][int(rng.integers(len(self.by_name[name])))]
        mask = self.picture(photo.masks[name], "L") > 127
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            return None
        window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        inside = mask[window]
        if inside.size > 0.7 * mask.size or min(inside.shape) < 32 or inside.mean() < 0.35:
            return None
        pixels = self.picture(photo.image, "RGB")
        if pixels.shape[:2] != mask.shape:
            return None  # named as an error where the photo itself is used
        return np.dstack([pixels[window], np.where(inside, np.uint8(255), np.uint8(0))]), name


def whole(corpus: Corpus, photo: Photo, size: int) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.bool_]]]:
    """A photo (size, size, 3) stretched to a square, and its masks (size, size)."""
    image = Image.fromarray(corpus.picture(photo.image, "RGB")).resize((size, size), Image.Resampling.BILINEAR)
    masks = {}
    for name, path in photo.masks.items():
        mask = Image.fromarray(corpus.picture(path, "L")).resize((size, size), Image.Resampling.BILINEAR)
        masks[name] = np.asarray(mask) > 127
    return np.asarray(image), masks


def _crop_box(width: int, height: int, rng: np.random.Generator) -> tuple[float, float, float, float]:
    scale = rng.uniform(0.45, 1.0) ** 0.5
    stretch = np.exp(rng.uniform(-0.25, 0.25))
    w, h = width * min(1.0, scale * stretch), height * min(1.0, scale / stretch)
    left, top = rng.uniform(0, width - w + 1e-6), rng.uniform(0, height - h + 1e-6)
    return left, top, min(left + w, width), min(top + h, height)


def augmented(
    corpus: Corpus, photo: Photo, size: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.bool_]]]:
    """A random crop of a photo, mirrored or not, with changed colours; masks of the classes still in it."""
    pixels = corpus.picture(photo.image, "RGB")
    box = _crop_box(pixels.shape[1], pixels.shape[0], rng)
    flip = rng.random() < 0.5
    image = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR, box=box)
    values = np.asarray(image).astype(np.float32)
    grey = values.mean(axis=2, keepdims=True)
    values = grey + (values - grey) * (0.0 if rng.random() < 0.05 else rng.uniform(0.6, 1.4))
    mean = values.mean()
    values = mean + (values - mean) * rng.uniform(0.7, 1.3) + rng.uniform(-25, 25)
    values *= rng.uniform(0.92, 1.08, 3).astype(np.float32)
    picture = np.clip(values, 0, 255).astype(np.uint8)
    masks = {}
    for name, path in photo.masks.items():
        mask = corpus.picture(path, "L")
        if mask.shape != pixels.shape[:2]:
            raise DataError(
                f"{path}: size {mask.shape[::-1]} differs from its photo's {pixels.shape[1::-1]}; fix either"
            )
        cut = np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.BILINEAR, box=box)) > 127
        if cut.mean() >= MIN_SHARE:
            masks[name] = cut[:, ::-1] if flip else cut
    return (picture[:, ::-1] if flip else picture), masks


@dataclass(frozen=True)
class Mixture:
    """What the batches of a stage hold.

    Attributes:
        size: side of the pictures in pixels.
        images: pictures per batch; prompts: prompts per picture at most.
        photos, cutouts: share of pictures that are photos, and scenes with cut-outs; the rest are scenes of shapes.
        level: 0 for the first few words, 1 for the whole vocabulary (see ``scenes.SceneStyle``).
        backgrounds: share of scenes on a photo background.
        alone: share of a scene's prompts that have one condition only ("the object in the top left").
    """

    size: int
    images: int
    prompts: int = 4
    photos: float = 0.0
    cutouts: float = 0.0
    level: int = 1
    soft: float = 0.25
    backgrounds: float = 0.3
    absent: float = 0.15
    alone: float = 0.0


@dataclass
class Examples:
    """``pixels`` uint8 (B, H, W, 3); P ``texts`` with ``image_index`` int64 (P,) and ``masks`` bool (P, H, W)."""

    pixels: NDArray[np.uint8]
    texts: list[str]
    image_index: NDArray[np.int64]
    masks: NDArray[np.bool_]


def make_examples(corpus: Corpus | None, mixture: Mixture, rng: np.random.Generator) -> Examples:
    """Render one batch. Without a corpus there are scenes of shapes on procedural backgrounds only."""
    images, texts, index, masks = [], [], [], []
    for number in range(mixture.images):
        draw = rng.random()
        if corpus is not None and draw < mixture.photos:
            image, asked = _photo_example(corpus, mixture, rng)
        else:
            names = corpus is not None and draw < mixture.photos + mixture.cutouts
            scene = _scene(corpus, mixture, names, rng)
            image = scene.image
            asked = [
                (prompt.text, prompt.mask)
                for prompt in phrases.prompts(scene, mixture.prompts, rng, mixture.level, mixture.absent, mixture.alone)
            ]
        images.append(image)
        for text, mask in asked:
            texts.append(text)
            index.append(number)
            masks.append(mask)
    return Examples(np.stack(images), texts, np.array(index, dtype=np.int64), np.stack(masks))


def _scene(corpus: Corpus | None, mixture: Mixture, names: bool, rng: np.random.Generator) -> phrases.Scene:
    photo = None
    if corpus is not None and mixture.level > 0 and rng.random() < (0.6 if names else mixture.backgrounds):
        chosen = corpus.photos["train"][int(rng.integers(len(corpus.photos["train"])))]
        pixels = corpus.picture(chosen.image, "RGB")
        box = _crop_box(pixels.shape[1], pixels.shape[0], rng)
        side = mixture.size if rng.random() < 0.6 else max(8, mixture.size // 6)  # the smaller: a blurred background
        small = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR, box=box)
        photo = np.asarray(small.resize((mixture.size, mixture.size), Image.Resampling.BILINEAR))
    cutouts: list[tuple[NDArray[np.uint8], str]] = []
    if names and corpus is not None and corpus.cutouts:
        for _ in range(int(rng.integers(1, 4))):
            thing = corpus.thing(rng) if rng.random() < 0.5 else None
            if thing is None:
                path, name = corpus.cutouts[int(rng.integers(len(corpus.cutouts)))]
                thing = corpus.picture(path, "RGBA"), name
            cutouts.append(thing)
    style = scenes.SceneStyle(level=mixture.level, soft=mixture.soft)
    return scenes.render(mixture.size, rng, style, photo, cutouts)


def _photo_example(
    corpus: Corpus, mixture: Mixture, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], list[tuple[str, NDArray[np.bool_]]]]:
    name = corpus.names[int(rng.choice(len(corpus.names), p=corpus.weights))]
    photo = corpus.by_name[name][int(rng.integers(len(corpus.by_name[name])))]
    image, masks = augmented(corpus, photo, mixture.size, rng)
    present = [found for found in masks if found != name]
    rng.shuffle(present)
    if name in masks:
        present.insert(0, name)
    chosen = [(found, masks[found]) for found in present[: mixture.prompts]]
    others = [other for other in corpus.absent[photo.source] if other not in photo.masks]
    empty = np.zeros((mixture.size, mixture.size), dtype=bool)
    if others and (rng.random() < 0.5 or not chosen):
        chosen.append((others[int(rng.integers(len(others)))], empty))
    if not chosen:
        chosen.append((phrases.say(phrases.Phrase(noun="star", colour="purple"), False, rng), empty))
    return image, [
        (PHOTO_TEMPLATES[int(rng.integers(len(PHOTO_TEMPLATES)))].format(text), mask) for text, mask in chosen
    ]


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str], context: int = 77) -> torch.Tensor:
    """Token ids int64 (P, L), padded with the end token to the longest text (cut to ``context``)."""
    encoded = [item.ids for item in tokenizer.encode_batch(list(texts))]
    end = encoded[0][-1]
    encoded = [ids if len(ids) <= context else [*ids[: context - 1], end] for ids in encoded]
    ids = torch.full((len(encoded), max(map(len, encoded))), end, dtype=torch.int64)
    for row, tokens in enumerate(encoded):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    return ids


class Batches(Dataset[dict[str, torch.Tensor]]):
    """Batch ``n`` of a stage, rendered from ``(seed, stage, n)`` alone."""

    def __init__(
        self, corpus: Corpus | None, tokenizer: Tokenizer, mixture: Mixture, seed: int, stage: int, count: int = 10**7
    ) -> None:
        self.corpus, self.tokenizer, self.mixture = corpus, tokenizer, mixture
        self.seed, self.stage, self.count = seed, stage, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng([self.seed, self.stage, number])
        examples = make_examples(self.corpus, self.mixture, rng)
        # Each text is encoded once, however many pictures ask for it.
        texts = sorted(set(examples.texts))
        place = {text: row for row, text in enumerate(texts)}
        return {
            "pixels": torch.from_numpy(examples.pixels),
            "input_ids": encode_texts(self.tokenizer, texts),
            "text_index": torch.tensor([place[text] for text in examples.texts]),
            "image_index": torch.from_numpy(examples.image_index),
            "masks": torch.from_numpy(examples.masks),
        }


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 (B, H, W, 3) to normalised float32 (B, 3, H, W)."""
    mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1) * 255
    std = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1) * 255
    return (pixels.permute(0, 3, 1, 2).to(torch.float32) - mean) / std
