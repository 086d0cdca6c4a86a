"""Masks from images and words: encode an image once, ask it any number of prompts.

::

    predictor = Predictor.load("runs/polyp")        # a run, or an adapter folder
    predictor.set_image("frame.png")
    polyp, instrument = predictor.predict(["polyp", "instrument"])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps

from vlsm_adapter.adapters.folder import CONFIG_NAME, FILES, load_adapter, read_manifest
from vlsm_adapter.adapters.hub import local_folder
from vlsm_adapter.data.images import read_image
from vlsm_adapter.errors import AdapterError, UserError
from vlsm_adapter.inference import (
    TextCache,
    check_threshold,
    choose_device,
    decode,
    inferring,
    probability_at_size,
    weights_in_use,
)
from vlsm_adapter.models import load_model
from vlsm_adapter.models.low_precision import lower_precision
from vlsm_adapter.predict_files import PredictReport, predict_files
from vlsm_adapter.run_folder import RunFolder
from vlsm_adapter.types import DEFAULT_THRESHOLD, Prediction

if TYPE_CHECKING:
    from vlsm_adapter.models.base import PromptSegmenter
    from vlsm_adapter.models.features import ImageFeatures

__all__ = ["PredictReport", "Predictor", "adapter_folder", "predict_files"]


@dataclass(frozen=True)
class Maps(Sequence[npt.NDArray[np.float32]]):
    """Probability maps of one image, each float32 (H, W), computed anew at every access: only one is in memory.

    Attributes:
        logits: float32 (P, h, w), at the network's resolution.
        size: (H, W).
    """

    logits: torch.Tensor
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        return probability_at_size(self.logits[index], self.size)


@dataclass(frozen=True)
class Origin:
    """Where a predictor was loaded from, by which another process loads the same.

    Attributes:
        path: adapter folder, run or hub id; or the base model, of one without adapter.
        zero_shot: whether there is no adapter.
        base: where the base model is, if not where the adapter says.
        folder: the adapter folder on this machine; None without adapter.
        precision: what it computes in.
    """

    path: str
    zero_shot: bool = False
    base: str | None = None
    folder: Path | None = None
    precision: str = "fp32"

    def load(self, threshold: float) -> Predictor:
        """The same predictor on the device of this process."""
        if self.zero_shot:
            return Predictor.zero_shot(self.path, threshold=threshold, precision=self.precision)
        return Predictor.load(self.path, base=self.base, threshold=threshold, precision=self.precision)


class Predictor:
    """A model that holds one image and answers prompts about it.

    The image is encoded once, each text once; only the decoder runs per prompt. When the model's adapter is switched,
    disabled or trained further in between, both are encoded anew.

    Args:
        model: with or without an adapter, on any device. Its training mode is left as it is.
        threshold: probability above which a pixel is foreground.

    Attributes:
        origin: what it was loaded from; None where the model came from memory.
        precision: what it computes in, in words: ``int8: 64 of 66 linear maps of the encoders``.

    Raises:
        UserError: the threshold is not from 0 to 1.
    """

    def __init__(self, model: PromptSegmenter, threshold: float = DEFAULT_THRESHOLD) -> None:
        self.model = model
        self.origin: Origin | None = None
        self.precision = "fp32"
        self.threshold = check_threshold(threshold)
        self._texts = TextCache(model)
        self._pixels: torch.Tensor | None = None  # (1, 3, h, w), kept for when the adapter changes
        self._features: ImageFeatures | None = None
        self._size = (0, 0)
        self._weights: int | None = None

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        base: str | Path | None = None,
        device: str | torch.device | None = None,
        threshold: float | None = None,
        precision: str = "fp32",
    ) -> Predictor:
        """Load an adapter onto its base model.

        Args:
            path: an adapter folder, a run folder (its best adapter), or a hub id ``OWNER/NAME[@REVISION]``.
            base: where the base model is now, if not where the adapter says.
            device: by default the GPU where there is one.
            threshold: by default the one the adapter was saved with.
            precision: ``fp32``; ``int8`` on a CPU, ``bf16``, ``fp16`` on a GPU: faster, not the same to the last digit
                (docs/performance.md).

        Raises:
            AdapterError: no adapter there, a damaged one, or one for another base.
            ModelError: the base cannot be loaded, or cannot compute in that precision.
            UserError: threshold or device cannot be used.
        """
        folder = adapter_folder(path)
        chosen = choose_device(device)
        if threshold is None:
            threshold = read_manifest(folder).info.threshold
        threshold = check_threshold(threshold)
        model = load_adapter(folder, base=base).to(chosen)
        told = lower_precision(model, precision)
        loaded = cls(model, threshold)
        loaded.precision = told
        loaded.origin = Origin(str(path), base=None if base is None else str(base), folder=folder, precision=precision)
        return loaded

    @classmethod
    def zero_shot(
        cls,
        model: str | Path,
        *,
        device: str | torch.device | None = None,
        threshold: float = DEFAULT_THRESHOLD,
        precision: str = "fp32",
    ) -> Predictor:
        """A base model as it is, without an adapter.

        Args:
            model: ``"tiny"``, a folder, or a hub id.
            device: by default the GPU where there is one.
            threshold: probability above which a pixel is foreground.
            precision: as of :meth:`load`.

        Raises:
            ModelError: the model cannot be loaded, or cannot compute in that precision.
            UserError: threshold or device cannot be used.
        """
        chosen = choose_device(device)
        threshold = check_threshold(threshold)
        base = load_model(model)
        base.require_pretrained()
        base = base.to(chosen)
        told = lower_precision(base, precision)
        loaded = cls(base, threshold)
        loaded.precision = told
        loaded.origin = Origin(str(model), zero_shot=True, precision=precision)
        return loaded

    def set_image(self, image: np.ndarray | Image.Image | str | Path) -> None:
        """Encode an image; prompts are about it from now on.

        Args:
            image: uint8 (H, W, 3) RGB or (H, W) grey, a Pillow image, or a file. EXIF orientation is applied: masks are
                those of the upright image.

        Raises:
            DataError: the file cannot be read; the image set before stays.
            UserError: an array or Pillow image of another kind.
        """
        pixels = _as_rgb(image)
        prepared = self.model.preprocess([pixels])
        self._pixels = prepared.to(self.model.device)
        self._size = (pixels.shape[0], pixels.shape[1])
        self._features = None
        with inferring(self.model):
            self._refresh()

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(H, W) of the image that is set, or None."""
        return None if self._pixels is None else self._size

    def predict(self, prompts: Sequence[str], *, threshold: float | None = None) -> np.ndarray:
        """Masks at native size.

        Args:
            prompts: P texts.
            threshold: by default the predictor's own.

        Returns:
            bool (P, H, W).

        Raises:
            UserError: no image is set, no prompts, or the threshold is not from 0 to 1.
        """
        return np.stack([one.mask for one in self.each(prompts, threshold=threshold)])

    def probabilities(self, prompts: Sequence[str]) -> np.ndarray:
        """Probabilities of foreground at native size, float32 (P, H, W) in [0, 1].

        Raises:
            UserError: no image is set, or no prompts.
        """
        return np.stack([one.probability for one in self.each(prompts)])

    def predictions(self, prompts: Sequence[str], *, threshold: float | None = None) -> list[Prediction]:
        """Probability and mask of each prompt.

        Raises:
            UserError: no image is set, no prompts, or the threshold is not from 0 to 1.
        """
        return list(self.each(prompts, threshold=threshold))

    def each(self, prompts: Sequence[str], *, threshold: float | None = None) -> Iterator[Prediction]:
        """As :meth:`predictions`, one at a time: only one prompt's maps of a large image are in memory.

        Raises:
            UserError: no image is set, no prompts, or the threshold is not from 0 to 1; at the call, not later.
        """
        texts = check_prompts(prompts)
        chosen = self.threshold if threshold is None else check_threshold(threshold)
        if self._pixels is None:
            raise UserError("no image is set: call set_image(image) before asking prompts")
        with inferring(self.model):
            self._refresh()
            assert self._features is not None
            logits = decode(self.model, self._features, self._texts(texts), [0] * len(texts))
        return self._at_native_size(texts, logits, self._size, chosen)

    def maps(self, pixels: torch.Tensor, sizes: Sequence[tuple[int, int]], prompts: Sequence[str]) -> list[Maps]:
        """Answers about several images in one pass; the image that is set stays.

        Args:
            pixels: float32 (B, 3, h, w), as ``model.preprocess`` makes them.
            sizes: (H, W) of each image.
            prompts: P texts, asked of every image.

        Raises:
            UserError: no prompts.
        """
        texts = check_prompts(prompts)
        with inferring(self.model):
            self._notice_weights()
            features = self.model.encode_image(pixels.to(device=self.model.device, dtype=self.model.dtype))
            index = [image for image in range(len(sizes)) for _ in texts]
            logits = decode(self.model, features, self._texts(texts * len(sizes)), index)
        return [Maps(one, size) for one, size in zip(logits.split(len(texts)), sizes, strict=True)]

    def _at_native_size(
        self, texts: list[str], logits: torch.Tensor, size: tuple[int, int], threshold: float
    ) -> Iterator[Prediction]:
        for text, one in zip(texts, logits, strict=True):
            probability = probability_at_size(one, size)
            yield Prediction(text, probability, probability > threshold, threshold)

    def _refresh(self) -> None:
        """Encode the image if it is new or the weights in use are others than before."""
        self._notice_weights()
        if self._features is None:
            assert self._pixels is not None
            pixels = self._pixels.to(device=self.model.device, dtype=self.model.dtype)
            self._features = self.model.encode_image(pixels)

    def _notice_weights(self) -> None:
        """Forget what was computed with other weights than those in use."""
        weights = weights_in_use(self.model)
        if weights != self._weights:
            self._texts.clear()
            self._features = None
            self._weights = weights


def adapter_folder(path: str | Path) -> Path:
    """The adapter folder at ``path``, that of the run at ``path``, or that of a hub id, fetched to the hub's cache.

    Raises:
        AdapterError: there is none.
    """
    folder = local_folder(path, FILES)
    run = RunFolder(folder)
    if (folder / CONFIG_NAME).is_file():
        return folder
    if (run.adapter / CONFIG_NAME).is_file():
        return run.adapter
    if not folder.exists():
        raise AdapterError(f"{folder}: no such folder; give a run that 'vlsm train' made, or an adapter folder")
    if run.config_file.is_file():
        raise AdapterError(
            f"{folder}: the run has no adapter yet, no epoch of it was validated; continue it with: "
            f"vlsm train --resume {folder}"
        )
    raise AdapterError(
        f"{folder}: neither an adapter folder (no {CONFIG_NAME}) nor a run (no config.yaml); "
        "give a run that 'vlsm train' made, or its adapter folder"
    )


def check_prompts(prompts: Sequence[str]) -> list[str]:
    """``prompts`` as a list.

    Raises:
        UserError: none, a single string instead of a list, or something that is not text.
    """
    if isinstance(prompts, str):
        raise UserError(f"prompts is one string: give a list of texts, [{prompts!r}]")
    texts = list(prompts)
    if not texts:
        raise UserError("no prompt: give at least one text that names what to find, such as 'polyp'")
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"prompt {text!r} is of type {type(text).__name__}: prompts are texts")
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise UserError(f"prompt {text!r} is not Unicode text: give it in UTF-8")
    return texts


def _as_rgb(image: np.ndarray | Image.Image | str | Path) -> np.ndarray:
    """uint8 (H, W, 3)."""
    if isinstance(image, (str, Path)):
        return read_image(image)
    if isinstance(image, Image.Image):
        if image.mode == "F" or image.mode.startswith("I"):
            raise UserError(
                f"a Pillow image of mode '{image.mode}' has more than 8 bits: give its file, which is windowed to 8 bits, "
                "or convert it to 'L' or 'RGB' yourself"
            )
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            layer = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)  # as read_image does
        return np.array(upright.convert("RGB"))
    if not isinstance(image, np.ndarray):
        raise UserError(
            f"an image of type {type(image).__name__} cannot be used: give a uint8 array (H, W, 3) or (H, W), a Pillow "
            "image, or a file"
        )
    if image.dtype != np.uint8:
        raise UserError(
            f"the image has dtype {image.dtype}: give uint8, 0 to 255 (of floats from 0 to 1: (255 * image).round().astype('uint8'))"
        )
    if image.size == 0 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        hint = "; drop the alpha channel with image[..., :3]" if image.ndim == 3 and image.shape[2] == 4 else ""
        raise UserError(f"the image has shape {image.shape}: give (H, W, 3) RGB or (H, W) grey{hint}")
    return np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image
