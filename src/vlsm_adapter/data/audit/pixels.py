"""Looking at every file once: what the loaders make of it, and what they silently mend.

``data/images.py`` and ``data/masks.py`` decide what an image and a mask are; a case that they refuse is an error here in
their words. What they accept but other programs read otherwise (0/1 masks, halos, orientation tags) is told apart on the
raw values. From each picture a small grey copy and a hash of all pixels are kept, so that nothing is decoded twice.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from vlsm_adapter.data.audit.facts import MaskFacts, measure_mask
from vlsm_adapter.data.audit.findings import Evidence, Finding, plural
from vlsm_adapter.data.audit.reading import Case
from vlsm_adapter.data.checks import check_record
from vlsm_adapter.data.images import FORMATS, read_image, read_mask
from vlsm_adapter.errors import DataError
from vlsm_adapter.overlays import draw_masks

#: Side of the grey copy that near-duplicates are compared on.
SMALL = 32
#: Longer side of a thumbnail in pixels.
THUMBNAIL = 176
_ORIENTATION = 0x0112
# Published programs take every value above 0 as foreground; a Dice below this between that and ours changes scores.
_SAME_DICE = 0.999
# Channels of a grey picture saved as colour JPEG differ by rounding.
_GREY_TOLERANCE = 12
# A picture whose grey levels differ less than this (standard deviation) shows nothing.
_BLANK = 2.0


@dataclass(slots=True)
class Look:
    """What one case's files hold.

    Attributes:
        problem: (code, message) where the loaders refuse the case, else None.
        size: (width, height) of the upright image, or None where it cannot be read.
        image_hash: of the decoded pixels and their shape, 16 bytes; empty where it cannot be read.
        small: uint8 (SMALL, SMALL), the grey image shrunk to a square.
        contrast: standard deviation of ``small``.
        turned: image and mask, each whether its orientation tag turns or mirrors it.
        mask_hash: of the foreground; empty without a mask.
        mask_kind: how the mask is stored: ``"0/255"``, ``"0/1"``, ``"halo"``, ``"other value"``, ``"labels"``, ``"colours"``.
        above_zero_dice: Dice of the mask with what ``> 0`` makes of the file, as other programs read it.
        facts: area, place and shape of the mask, or None.
        thumbnail: JPEG of the image with the mask's outline, where asked for.
    """

    problem: tuple[str, str] | None = None
    size: tuple[int, int] | None = None
    image_hash: bytes = b""
    small: np.ndarray | None = None
    contrast: float = 0.0
    turned: tuple[bool, bool] = (False, False)
    mask_hash: bytes = b""
    mask_kind: str = ""
    above_zero_dice: float = 1.0
    facts: MaskFacts | None = None
    thumbnail: bytes = b""


def look_at_all(
    cases: Sequence[Case],
    *,
    thumbnails: bool = False,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Look]:
    """Case id to what its files hold; an image that several cases share is decoded once for each.

    Args:
        cases: the cases.
        thumbnails: keep a small picture of each, about 8 KB.
        workers: threads; decoding releases the interpreter's lock.
        progress: called with the number of cases done.
    """
    found: dict[str, Look] = {}
    look_one = partial(look_at, thumbnail=thumbnails)
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        try:
            for number, (case, look) in enumerate(zip(cases, pool.map(look_one, cases), strict=True), start=1):
                found[case.id] = look
                if progress is not None:
                    progress(number)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C must not wait for ten thousand files
            raise
    return found


def look_at(case: Case, *, thumbnail: bool = False) -> Look:
    """Decode one case and measure it; never raises for a bad file."""
    record, look = case.record, Look()
    try:
        image = read_image(record.image)
    except DataError as error:
        look.problem = ("missing-file" if not record.image.is_file() else "unreadable-image", str(error))
        return look
    look.size = (image.shape[1], image.shape[0])
    look.image_hash = _digest(image)
    look.small = shrink(image)
    look.contrast = float(look.small.std())
    if thumbnail:
        look.thumbnail = _thumbnail(image, None)
    if record.mask is None:
        look.problem = ("no-mask", f"{record.image}: has no mask: name one, or use the image for prediction only")
        return look
    look.turned = (_turned(record.image), _turned(record.mask))
    try:
        mask = read_mask(record.mask, record.mask_value)
    except DataError as error:
        look.problem = (_mask_problem(record.mask), str(error))
        return look
    try:
        check_record(record)  # the sizes, in the loaders' words
    except DataError as error:
        look.problem = ("size-mismatch", str(error))
        return look
    look.mask_hash = _digest(mask)
    look.mask_kind, look.above_zero_dice = _stored(record.mask, mask, record.mask_value)
    look.facts = measure_mask(mask)
    if thumbnail:
        look.thumbnail = _thumbnail(image, mask)
    return look


def shrink(image: np.ndarray) -> np.ndarray:
    """The grey image (ITU-R BT.601) averaged down to uint8 (SMALL, SMALL), the aspect ratio given up.

    Args:
        image: uint8 (H, W, 3).
    """
    picture = Image.fromarray(image)
    # In two steps: whole blocks first, which is many times faster on large images and exact all the same.
    block = max(1, min(picture.size) // (4 * SMALL))
    grey = (picture.reduce(block) if block > 1 else picture).convert("L")
    return np.asarray(grey.resize((SMALL, SMALL), Image.Resampling.BOX))


def _thumbnail(image: np.ndarray, mask: np.ndarray | None) -> bytes:
    height, width = image.shape[:2]
    scale = THUMBNAIL / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.fromarray(image)
    ground = np.asarray(picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))
    content = io.BytesIO()
    # Colour at full resolution: the outline is one pixel wide.
    Image.fromarray(draw_masks(ground, mask, None)).save(content, "JPEG", quality=85, subsampling=0)
    return content.getvalue()


def _digest(pixels: np.ndarray) -> bytes:
    content = np.packbits(pixels) if pixels.dtype == bool else np.ascontiguousarray(pixels)
    return hashlib.blake2b(repr(pixels.shape).encode() + content.tobytes(), digest_size=16).digest()


def _mask_problem(path: Path) -> str:
    if not path.is_file():
        return "missing-file"
    try:
        read_image(path)
    except DataError:
        return "unreadable-mask"
    return "not-a-mask"


def _turned(path: Path) -> bool:
    try:
        with warnings.catch_warnings(), Image.open(path, formats=FORMATS) as picture:
            warnings.simplefilter("ignore")
            # A PNG's block may stand behind the pixels and costs decoding; only blocks in front are looked for there.
            if picture.format == "PNG" and "exif" not in picture.info:
                return False
            return picture.getexif().get(_ORIENTATION, 1) not in (0, 1)
    except Exception:  # metadata may be damaged where the pixels are sound
        return False


def _stored(path: Path, mask: np.ndarray, mask_value: int | None) -> tuple[str, float]:
    """How a mask that the loaders accepted is stored, and the Dice of ``> 0`` on the raw values with it."""
    with warnings.catch_warnings(), Image.open(path, formats=FORMATS) as picture:
        warnings.simplefilter("ignore")
        if mask_value is not None:
            return "labels", 1.0
        if picture.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
            return "colours", 1.0
        if picture.mode == "P":
            return "labels" if np.asarray(picture).max(initial=0) > 1 else "0/1", 1.0
        raw = np.asarray(picture)
    if raw.ndim == 3:
        # Channel by channel: reducing over an axis of three is ten times slower.
        red, green, blue = (raw[..., channel] for channel in range(3))
        brightest = np.maximum(np.maximum(red, green), blue)
        if (brightest - np.minimum(np.minimum(red, green), blue)).max() > _GREY_TOLERANCE:
            return "colours", 1.0
        raw = brightest
    values = np.flatnonzero(np.bincount(raw.ravel(), minlength=256)) if raw.dtype == np.uint8 else np.unique(raw)
    above = raw > 0
    # Turning by an orientation tag changes places, not counts, so that counts are compared first.
    if above.shape != mask.shape:
        above = mask
    total = np.count_nonzero(above) + np.count_nonzero(mask)
    dice = 2 * np.count_nonzero(above & mask) / total if total else 1.0
    if raw.dtype == bool or len(values) == 1 or (len(values) == 2 and values[0] == 0 and values[1] == 255):
        return "0/255", dice
    if len(values) == 2 and values[0] == 0:
        return ("0/1" if values[1] == 1 else "other value"), dice
    return "halo", dice


def pixel_findings(cases: Sequence[Case], looks: Mapping[str, Look]) -> list[Finding]:
    """What is wrong with single files."""
    found: list[Finding] = []
    advice = {
        "missing-file": "restore the file or correct its name",
        "unreadable-image": "fetch the file again",
        "unreadable-mask": "fetch the file again",
        "no-mask": "give the case a mask, or leave it to prediction",
        "size-mismatch": "resize the mask (nearest neighbour) or undo the rotation of one of the two",
        "not-a-mask": "name the label by mask_value, or save the mask as PNG with 0 and 255",
    }
    problems: dict[str, list[Evidence]] = {}
    for case in cases:
        if (problem := looks[case.id].problem) is not None:
            problems.setdefault(problem[0], []).append(Evidence((case.id,), problem[1]))
    texts = {
        "missing-file": "with a file that is not there",
        "unreadable-image": "with an image that cannot be decoded",
        "unreadable-mask": "with a mask that cannot be decoded",
        "no-mask": "without a mask",
        "size-mismatch": "with a mask of another size than the image",
        "not-a-mask": "with a mask file that is no binary mask",
    }
    for code, text in texts.items():
        if evidence := problems.get(code):
            found.append(
                Finding("error", code, f"{plural(len(evidence), 'case')} {text}", tuple(evidence), advice[code])
            )
    return [*found, *_stored_findings(cases, looks), *_picture_findings(cases, looks)]


def _stored_findings(cases: Sequence[Case], looks: Mapping[str, Look]) -> list[Finding]:
    found: list[Finding] = []
    good = [(case, looks[case.id]) for case in cases if looks[case.id].mask_kind]
    kinds = Counter(look.mask_kind for _, look in good)
    zero_one = [Evidence((case.id,), "values 0 and 1") for case, look in good if look.mask_kind == "0/1"]
    if zero_one:
        found.append(
            Finding(
                "warning",
                "mask-0-1",
                f"{plural(len(zero_one), 'mask')} of {len(good)} stored as 0/1: a program that divides by 255 or cuts at 127 "
                "sees an empty mask",
                tuple(zero_one),
                "read rightly here; save as 0 and 255 for other programs",
            )
        )
    halos = [(case, look) for case, look in good if look.mask_kind == "halo"]
    if halos:
        scores = np.array([look.above_zero_dice for _, look in halos])
        harmed = int(np.count_nonzero(scores < _SAME_DICE))
        halos.sort(key=lambda pair: pair[1].above_zero_dice)
        found.append(
            Finding(
                "warning" if harmed else "note",
                "mask-halo",
                f"{plural(len(halos), 'mask')} of {len(good)} with grey halos (JPEG, or smoothed edges): a program that takes "
                f"every value above 0 scores a perfect mask {scores.min():.3f} to {scores.max():.3f} Dice, {scores.mean():.3f} "
                f"on average ({harmed} below {_SAME_DICE})",
                tuple(
                    Evidence((case.id,), f"Dice {look.above_zero_dice:.3f} of '> 0' with '> 127'")
                    for case, look in halos
                ),
                "read above 127 here; save the masks as PNG with 0 and 255 for other programs",
            )
        )
    if other := [Evidence((case.id,)) for case, look in good if look.mask_kind == "other value"]:
        found.append(
            Finding(
                "note",
                "mask-other-value",
                f"{plural(len(other), 'mask')} with one foreground value that is neither 1 nor 255",
                tuple(other),
                "read as foreground here; check that it is not one label of several",
            )
        )
    if len(kinds) > 1:
        listed = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
        found.append(
            Finding("note", "mask-kinds", f"masks are stored in several ways: {listed}", (), "make them uniform")
        )
    return found


def _picture_findings(cases: Sequence[Case], looks: Mapping[str, Look]) -> list[Finding]:
    found: list[Finding] = []
    seen = [(case, looks[case.id]) for case in cases if looks[case.id].size is not None]
    apart = [
        Evidence((case.id,), "image" if look.turned[0] else "mask")
        for case, look in seen
        if look.turned[0] != look.turned[1]
    ]
    if apart:
        found.append(
            Finding(
                "warning",
                "orientation-one-sided",
                f"{plural(len(apart), 'case')} where an EXIF orientation turns the image or the mask alone; right only if the "
                "other was drawn upright",
                tuple(apart),
                "look at the outlines: where one does not fit, remove the tag or turn the other file",
            )
        )
    if both := [Evidence((case.id,)) for case, look in seen if look.turned == (True, True)]:
        found.append(
            Finding(
                "note",
                "orientation",
                f"{plural(len(both), 'case')} with EXIF orientation in image and mask: programs that ignore it see them turned",
                tuple(both),
                "applied here; save the pixels upright for other programs",
            )
        )
    if blank := [
        Evidence((case.id,), f"grey levels vary by {look.contrast:.1f}")
        for case, look in seen
        if look.contrast < _BLANK
    ]:
        found.append(
            Finding(
                "warning",
                "blank-image",
                f"{plural(len(blank), 'image')} with hardly any contrast",
                tuple(blank),
                "look at them; take out what shows nothing",
            )
        )
    return found
