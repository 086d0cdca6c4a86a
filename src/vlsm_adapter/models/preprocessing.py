"""What happens to an image before the network sees it; owned by the model and saved with it.

An image is stretched to the model's input size (as CLIPSeg's own processor does; aspect ratio is not kept),
scaled to [0, 1], and normalised per channel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlsm_adapter.errors import ModelError, one_line

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the images CLIP was trained on
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


@dataclass(frozen=True)
class Preprocessing:
    """Resize and normalise, as data: equal numbers give equal pixels.

    Attributes:
        size: (height, width) of the network's input in pixels.
        mean, std: per channel (red, green, blue), of values scaled to [0, 1].
        resample: name of a Pillow filter; with ``bilinear`` a shrunk image is area-weighted (antialiased).
    """

    size: tuple[int, int] = (352, 352)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    resample: str = "bilinear"

    def __post_init__(self) -> None:
        if self.resample not in _RESAMPLING:
            raise ModelError(f"preprocessing: resample '{self.resample}' is unknown; allowed: {', '.join(_RESAMPLING)}")
        if min(self.size) < 1 or max(self.size) > 4096:
            raise ModelError(f"preprocessing: size {self.size} is out of range; allowed: 1 to 4096 pixels a side")
        if not all(0 < value < math.inf for value in self.std):
            raise ModelError(f"preprocessing: std {self.std} must be positive")
        if not all(math.isfinite(value) for value in self.mean):
            raise ModelError(f"preprocessing: mean {self.mean} must be finite")

    def resize(self, image: np.ndarray) -> np.ndarray:
        """Stretch ``image`` uint8 (H, W, 3) to uint8 (height, width, 3)."""
        height, width = self.size
        if image.shape[:2] == (height, width):
            return image
        resized = Image.fromarray(image).resize((width, height), Image.Resampling(_RESAMPLING[self.resample]))
        return np.asarray(resized)

    def normalize(self, image: np.ndarray) -> torch.Tensor:
        """Turn ``image`` uint8 (H, W, 3) of any size into float32 (3, H, W), normalised."""
        if image.dtype == np.uint8:
            # Of 256 values: looked up, to the same bits, at a quarter of the time.
            pixels = np.empty((3, *image.shape[:2]), np.float32)
            for channel in range(3):
                np.take(self._values[channel], image[:, :, channel], out=pixels[channel], mode="clip")
            return torch.from_numpy(pixels)
        return self._normalized(torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1))

    @property
    def resize_key(self) -> str:
        """All that ``resize`` depends on: images resized under equal keys may be shared."""
        return f"stretched to {self.size[0]} x {self.size[1]}, {self.resample}"

    @cached_property
    def _values(self) -> np.ndarray:
        """float32 (3, 256): what each value of each channel becomes."""
        return self._normalized(torch.arange(256.0).expand(3, 1, 256)).reshape(3, 256).numpy()

    def _normalized(self, pixels: torch.Tensor) -> torch.Tensor:
        mean = torch.tensor(self.mean).view(3, 1, 1) * 255.0
        std = torch.tensor(self.std).view(3, 1, 1) * 255.0
        return (pixels - mean) / std

    def __call__(self, image: np.ndarray) -> torch.Tensor:
        """Resize, then normalise: uint8 (H, W, 3) to float32 (3, height, width)."""
        return self.normalize(self.resize(image))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, as it stands in an adapter folder."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Read what :meth:`to_dict` wrote.

        Raises:
            ModelError: a key or value is not of this form.
        """
        try:
            height, width = (_side(side) for side in values["size"])
            return cls(
                size=(height, width),
                mean=_triple(values["mean"]),
                std=_triple(values["std"]),
                resample=str(values["resample"]),
            )
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(
                f"preprocessing: needs size [h, w], mean, std (3 numbers), resample: {one_line(error)}"
            ) from error

    @classmethod
    def from_hugging_face(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Read a ``preprocessor_config.json`` (image processor of a ViT: size, image_mean, image_std, resample).

        ``do_rescale``, ``rescale_factor`` and ``do_normalize`` are folded into mean and std. Images are resized whole:
        ``do_center_crop`` has no place in segmentation.
        """
        size = values.get("size", 352)
        if isinstance(size, Mapping):
            height, width = size.get("height", size.get("shortest_edge")), size.get("width", size.get("shortest_edge"))
        else:
            height = width = size
        names = {number: name for name, number in _RESAMPLING.items()}
        try:
            factor = float(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale", True) else 1.0
            mean, std = values.get("image_mean", IMAGENET_MEAN), values.get("image_std", IMAGENET_STD)
            if not values.get("do_normalize", True):
                mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
            if not 1e-6 < (scale := 255 * factor) < 1e6:
                raise ValueError(f"rescale_factor {factor:g} leaves nothing of an image")
            if abs(scale - 1) > 1e-6:  # ours are of values from 0 to 1
                mean, std = [value / scale for value in _triple(mean)], [value / scale for value in _triple(std)]
            return cls(
                size=(_side(height), _side(width)),
                mean=_triple(mean),
                std=_triple(std),
                resample=names[int(values.get("resample", 2))],
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ModelError(
                "preprocessor_config.json: needs size, image_mean, image_std, resample of an image processor: "
                f"{one_line(error)}"
            ) from error

    def to_hugging_face(self) -> dict[str, Any]:
        """The same numbers as a ``preprocessor_config.json``."""
        return {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "size": {"height": self.size[0], "width": self.size[1]},
            "rescale_factor": 1 / 255,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "resample": _RESAMPLING[self.resample],
        }


def _side(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"side {value!r} is no whole number of pixels")
    return value


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
