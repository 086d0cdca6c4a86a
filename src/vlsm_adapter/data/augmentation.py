"""Random changes of training samples: geometry shared by image and mask, colours of the image, words kept true.

What is drawn depends on case id, seed and epoch alone, so that a resumed run draws the same. Geometry is done on the
resized image, once, by one resampling for image and mask. A prompt that names a place is changed with its image ("left"
becomes "right"), and what its words do not allow is not done (``mirrored_words``): an image whose prompt says "large" is not
scaled, one whose prompt says "pink" keeps its colours.

Only training samples are ever changed: a data set without an epoch (validation, test) hands out what is on disk.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from vlsm_adapter.data.mirrored_words import allowed, mirror_prompt
from vlsm_adapter.errors import ConfigError, nearest

NONE = "none"


@dataclass(frozen=True, slots=True)
class Strength:
    """How much is changed; every amount is drawn evenly from its range.

    Attributes:
        across: probability of swapping left and right.
        down: probability of swapping top and bottom, of colour images alone: endoscopy and skin have no upright, while
            ultrasound and radiographs do.
        motion: probability of turning, scaling and shifting.
        degrees: largest turn to either side.
        scale: largest factor of enlarging; the inverse is the smallest.
        shift: largest shift, as a part of the side.
        bending: probability of an elastic deformation.
        bend: its largest displacement, as a part of the side.
        light: largest change of brightness and of contrast, as a part of the range of values.
        gamma: largest exponent; the inverse is the smallest.
        saturation: largest change of saturation, of colour images alone, as a part.
        hue: largest turn of the hue, of colour images alone, in degrees.
    """

    across: float = 0.5
    down: float = 0.0
    motion: float = 0.0
    degrees: float = 0.0
    scale: float = 1.0
    shift: float = 0.0
    bending: float = 0.0
    bend: float = 0.0
    light: float = 0.1
    gamma: float = 1.1
    saturation: float = 0.1
    hue: float = 0.0


STRENGTHS = {
    "light": Strength(),
    "medium": Strength(
        down=0.5, motion=0.8, degrees=20, scale=1.25, shift=0.05, bending=0.3, bend=0.03, light=0.2, gamma=1.3,
        saturation=0.25, hue=8,
    ),
}  # fmt: skip
# Less than this part of the foreground left in the picture: the motion is not done.
_MIN_KEPT = 0.75
# Values by which the channels of a grey image may differ, as JPEG makes them.
_GREY = 12


def check_augment(level: str) -> str:
    """``level`` if it is one.

    Raises:
        ConfigError: it is not ``none``, ``light`` or ``medium``.
    """
    if level != NONE and level not in STRENGTHS:
        raise ConfigError(f"augmentation '{level}' is unknown: {nearest(level, (NONE, *STRENGTHS))}")
    return level


def augment_case(
    image: np.ndarray,
    mask: np.ndarray | None,
    prompt: str,
    *,
    level: str,
    case_id: str,
    seed: int,
    epoch: int,
) -> tuple[np.ndarray, np.ndarray | None, str]:
    """A changed image with its mask and prompt; what is given is left as it is.

    Args:
        image: uint8 (h, w, 3).
        mask: bool (h, w), or None.
        prompt: the text asked.
        level: ``"none"``, ``"light"`` or ``"medium"``.
        case_id, seed, epoch: what is drawn depends on them alone.

    Returns:
        The image uint8 (h, w, 3), the mask bool (h, w) or None, and the prompt that is true of them.

    Raises:
        ConfigError: an unknown level.
    """
    if check_augment(level) == NONE:
        return image, mask, prompt
    strength = STRENGTHS[level]
    draw = _Draw(case_id, seed, epoch)
    may = allowed(prompt)
    colour = _is_colour(image)
    across, down = draw.chance(strength.across), draw.chance(strength.down) and colour
    image, mask, prompt = _mirrored(image, mask, prompt, across, down)
    moved = draw.chance(strength.motion)
    angle = np.deg2rad(draw.between(-strength.degrees, strength.degrees))
    zoom = float(np.exp(draw.between(-np.log(strength.scale), np.log(strength.scale))))
    shift = (draw.between(-strength.shift, strength.shift), draw.between(-strength.shift, strength.shift))
    bent = draw.chance(strength.bending)
    field = strength.bend * draw.field()
    if (moved and may.motion) or (bent and may.bending):
        if not may.bending:
            angle = 0.0
        if not (moved and may.motion):
            angle, zoom, shift = 0.0, 1.0, (0.0, 0.0)
        image, mask = _resampled(image, mask, angle, zoom, shift, field if bent and may.bending else None)
    brightness, contrast = draw.between(-strength.light, strength.light), draw.between(-strength.light, strength.light)
    gamma = float(np.exp(draw.between(-np.log(strength.gamma), np.log(strength.gamma))))
    saturation = 1 + draw.between(-strength.saturation, strength.saturation)
    hue = np.deg2rad(draw.between(-strength.hue, strength.hue))
    # Of a grey image "dark" and "bright" stay true: lighter stays lighter, under any rising curve.
    if may.colour or not colour:
        image = _curve(brightness, contrast, gamma)[image]
        if colour:
            image = _tinted(image, saturation, hue)
    return image, mask, prompt


class _Draw:
    """Numbers of one sample. All are drawn, in one order, whether used or not: so none depends on the words."""

    def __init__(self, case_id: str, seed: int, epoch: int) -> None:
        key = json.dumps(["augment", case_id, seed, epoch]).encode()
        digest = hashlib.blake2b(key, digest_size=16).digest()
        self._generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))

    def chance(self, probability: float) -> bool:
        return bool(self._generator.random() < probability)

    def between(self, low: float, high: float) -> float:
        return float(low + (high - low) * self._generator.random())

    def field(self) -> np.ndarray:
        """Displacements (2, 5, 5) from -1 to 1, 0 at the border."""
        inner = self._generator.uniform(-1, 1, (2, 3, 3))
        return np.pad(inner, ((0, 0), (1, 1), (1, 1)))


def _is_colour(image: np.ndarray) -> bool:
    # A sample of the pixels tells as well as all of them.
    part = image[::8, ::8].astype(np.int16)
    return bool(np.mean(part.max(axis=2) - part.min(axis=2) > _GREY) > 0.02)


def _mirrored(
    image: np.ndarray, mask: np.ndarray | None, prompt: str, across: bool, down: bool
) -> tuple[np.ndarray, np.ndarray | None, str]:
    """Mirrored along the axes that the words allow, one by one."""
    for axis, wanted in ((1, across), (0, down)):
        words = mirror_prompt(prompt, across=axis == 1, down=axis == 0) if wanted else None
        if words is not None:
            image = np.flip(image, axis)
            mask = None if mask is None else np.flip(mask, axis)
            prompt = words
    return np.ascontiguousarray(image), None if mask is None else np.ascontiguousarray(mask), prompt


def _resampled(
    image: np.ndarray,
    mask: np.ndarray | None,
    angle: float,
    zoom: float,
    shift: tuple[float, float],
    field: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Turn, scale, shift and bend both by one resampling; beyond its border the picture is reflected, with its mask.

    Left as they are where too little of the foreground would remain.
    """
    import torch
    from torch.nn import functional as F

    height, width = image.shape[:2]
    # Where each pixel of the result comes from, in coordinates from -1 to 1 (x first). Turning is done in pixels.
    cos, sin, ratio = np.cos(angle) / zoom, np.sin(angle) / zoom, height / width
    matrix = torch.tensor([[cos, sin * ratio, 2 * shift[1]], [-sin / ratio, cos, 2 * shift[0]]], dtype=torch.float32)
    grid = F.affine_grid(matrix[None], [1, 1, height, width], align_corners=False)
    if field is not None:
        coarse = torch.from_numpy(2 * field.astype(np.float32))[None]
        bend = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
        grid = grid + bend.permute(0, 2, 3, 1)
    layers = image if mask is None else np.dstack([image, mask.astype(np.uint8) * np.uint8(255)])
    source = torch.from_numpy(np.ascontiguousarray(layers.transpose(2, 0, 1))[None].astype(np.float32))
    made = F.grid_sample(source, grid, mode="bilinear", padding_mode="reflection", align_corners=False)[0].numpy()
    if mask is None:
        moved = None
    else:
        moved = made[3] >= 127.5
        # Enlarging makes the area grow, by zoom squared.
        if moved.sum() < _MIN_KEPT * mask.sum() * min(zoom**2, 1.0):
            return image, mask
    pixels = np.clip(np.rint(made[:3]), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0)), moved


def _curve(brightness: float, contrast: float, gamma: float) -> np.ndarray:
    """What becomes of each of the 256 values: never falling."""
    values = (np.arange(256) / 255) ** gamma
    changed = (values - 0.5) * (1 + contrast) + 0.5 + brightness
    return np.rint(255 * np.clip(changed, 0, 1)).astype(np.uint8)


def _tinted(image: np.ndarray, saturation: float, hue: float) -> np.ndarray:
    """Saturation and hue by a turn of the colour plane about the axis of greys; luminance (ITU-R BT.601) is kept."""
    from PIL import Image

    to_yiq = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    cos, sin = saturation * np.cos(hue), saturation * np.sin(hue)
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    matrix = np.linalg.inv(to_yiq) @ turn @ to_yiq
    rows = tuple(float(value) for value in np.pad(matrix, ((0, 0), (0, 1))).ravel())
    return np.asarray(Image.fromarray(image).convert("RGB", rows))
