"""One phantom from (modality, seed, index): the picture, its exact mask, and prompts that are true of the mask."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlsm_adapter.data.phantoms.dermoscopy import dermoscopy
from vlsm_adapter.data.phantoms.endoscopy import endoscopy
from vlsm_adapter.data.phantoms.radiograph import radiograph
from vlsm_adapter.data.phantoms.shapes import Scene, Size
from vlsm_adapter.data.phantoms.ultrasound import ultrasound
from vlsm_adapter.data.phantoms.words import Lesion, describe, prompts
from vlsm_adapter.errors import ConfigError, nearest

_ONE_TWO_THREE = (0.7, 0.2, 0.1)  # how often a case has so many lesions
_SMALLEST, _LARGEST = 64, 4096


@dataclass(frozen=True, slots=True)
class Modality:
    """How a modality is drawn and what its lesion is called."""

    draw: Callable[[np.random.Generator, Size, int], Scene]
    noun: str
    plural: str
    greyscale: bool


_MODALITIES = {
    "ultrasound": Modality(ultrasound, "tumor", "tumors", True),
    "dermoscopy": Modality(dermoscopy, "skin lesion", "skin lesions", False),
    "endoscopy": Modality(endoscopy, "polyp", "polyps", False),
    "radiograph": Modality(radiograph, "opacity", "opacities", True),
}
MODALITIES: tuple[str, ...] = tuple(_MODALITIES)


@dataclass(frozen=True, slots=True)
class Phantom:
    """A generated case.

    Attributes:
        case_id: ``phantom_<modality>_<index>``.
        modality: one of ``MODALITIES``.
        image: uint8 (H, W, 3) RGB; three equal channels where the modality is greyscale.
        mask: bool (H, W), the lesions' supports: where a lesion's soft edge has at least half its strength.
        prompts: level (``"p0"`` to ``"p6"``) to its texts, see ``words``.
        lesions: what the mask holds, largest first.
    """

    case_id: str
    modality: str
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    prompts: dict[str, tuple[str, ...]]
    lesions: tuple[Lesion, ...]


def modality_of(name: str) -> Modality:
    """The modality called ``name``.

    Raises:
        ConfigError: no such modality; the message names the nearest one.
    """
    if name not in _MODALITIES:
        raise ConfigError(f"unknown phantom modality '{name}': {nearest(name, MODALITIES)}")
    return _MODALITIES[name]


def make_phantom(
    modality: str, seed: int, index: int, *, size: tuple[int, int] = (256, 256), empty_fraction: float = 0.0
) -> Phantom:
    """Generate case ``index`` of ``seed``: the same bits at every call, whatever else is generated.

    Args:
        modality: one of ``MODALITIES``.
        seed, index: whole numbers >= 0; every pair is its own random stream.
        size: (height, width) in pixels, 64 to 4096 each.
        empty_fraction: probability in [0, 1] that the case has no lesion and an empty mask.

    Raises:
        ConfigError: an argument is out of its range.
    """
    kind = modality_of(modality)
    check_arguments(seed=seed, size=size, empty_fraction=empty_fraction)
    if index < 0:
        raise ConfigError(f"phantom index {index}: must be a whole number >= 0")
    for attempt in range(16):
        stream = np.random.SeedSequence([seed, zlib.crc32(modality.encode()), index, attempt])
        rng = np.random.default_rng(stream)
        empty = rng.random() < empty_fraction
        number = 1 + int(rng.choice(3, p=_ONE_TWO_THREE))
        scene = kind.draw(rng, size, 0 if empty else number)
        if empty or scene.supports:
            break
    else:
        raise RuntimeError(f"no room for a lesion in phantom {modality} {seed} {index} at {size}")
    lesions = [describe(support, scene.image, modality) for support in scene.supports]
    lesions.sort(key=lambda lesion: (-lesion.area, lesion.centre))
    mask = np.zeros(size, bool)
    for support in scene.supports:
        mask |= support
    image = scene.image if scene.image.ndim == 3 else np.repeat(scene.image[..., None], 3, axis=2)
    return Phantom(
        case_id=f"phantom_{modality}_{index:05d}",
        modality=modality,
        image=image,
        mask=mask,
        prompts=prompts(lesions, kind.noun, kind.plural),
        lesions=tuple(lesions),
    )


def check_arguments(*, seed: int, size: tuple[int, int], empty_fraction: float) -> None:
    """Raise ConfigError where an argument of the generator is out of its range."""
    if seed < 0:
        raise ConfigError(f"phantom seed {seed}: must be a whole number >= 0")
    if len(size) != 2 or not all(_SMALLEST <= side <= _LARGEST for side in size):
        raise ConfigError(
            f"phantom size {tuple(size)}: give (height, width), each from {_SMALLEST} to {_LARGEST} pixels"
        )
    if not 0 <= empty_fraction <= 1:
        raise ConfigError(f"empty_fraction {empty_fraction}: must be from 0 to 1")
