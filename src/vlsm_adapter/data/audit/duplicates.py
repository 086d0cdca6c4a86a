"""Finding the same picture twice: exactly, by a hash of the decoded pixels, and nearly, by a perceptual hash.

A near-duplicate is the same picture saved anew, resized, brightened, mirrored or turned. Candidates are pairs whose 64-bit
hashes (signs of the low frequencies of a discrete cosine transform of the 32 x 32 grey copy) differ in few bits; each
candidate is then verified on the grey copies themselves by correlation, so that pictures that merely resemble one another,
as all pictures of one modality do, are not called duplicates. Comparing hashes is an exclusive or and a bit count: 10,000
images are 50 million pairs, under a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

from vlsm_adapter.data.audit.classes import contradicting_duplicates
from vlsm_adapter.data.audit.findings import Evidence, Finding, plural
from vlsm_adapter.data.audit.pixels import Look
from vlsm_adapter.data.audit.reading import Case
from vlsm_adapter.data.audit.sizes import split_order
from vlsm_adapter.data.group_files import connected
from vlsm_adapter.data.splits import unit_of

# Bits of 64 by which the hashes of a candidate pair may differ. Two independent pictures differ in 32 on average (standard
# deviation 4 where bits are independent); a picture saved anew, brightened or cropped by a few pixels in 0 to 14.
MAX_BITS = 16
# Correlation of the grey copies, and of their fine detail alone (what a Gaussian of 2 pixels takes away). Pictures of one
# modality agree in the large: smooth skin lesions up to 0.95 with 0.6 in detail, endoscopies up to 0.94 with 0.7. On 358
# breast ultrasounds, 1000 endoscopies and 130 skin lesions every pair above both limits was, looked at, the same scene.
MIN_CORRELATION = 0.94
MIN_FINE_CORRELATION = 0.75
_FINE_SIGMA = 2.0
# Pictures with less contrast than this (standard deviation of the grey copy) all look alike and are not compared.
_MIN_CONTRAST = 6.0
# Masks of copies differ where the one has this many times the area of the other.
_OTHER_MASK = 1.2
_ROWS = 512  # hashes compared at once with all others: 512 x 10,000 distances are 5 MB
_MAX_CANDIDATES = 4_000_000
_TURNS = (
    "",
    "mirrored",
    "upside down",
    "turned by 180 degrees",
    "transposed",
    "turned by 90 degrees",
    "turned by 270 degrees",
    "transposed the other way",
)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two pictures found to be the same: indices, how they differ, and the correlation of their grey copies."""

    first: int
    second: int
    how: str
    correlation: float


def perceptual_hash(small: np.ndarray) -> np.ndarray:
    """64-bit hashes, uint64 (N,), of grey copies uint8 (N, S, S).

    The signs, about their median, of the 8 x 8 lowest frequencies of the type-II discrete cosine transform; the mean is
    left out, so that brightness and contrast do not matter.
    """
    spectrum = fft.dctn(small.astype(np.float32), axes=(1, 2), norm="ortho")[:, :9, :9].reshape(len(small), 81)
    # The lowest 64 of the 80 frequencies that are not the mean, by the sum of their orders.
    order = np.argsort(np.add.outer(np.arange(9), np.arange(9)).ravel(), kind="stable")[1:65]
    low = spectrum[:, order]
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.ascontiguousarray(np.packbits(bits, axis=1)).view(np.uint64).reshape(len(small))


def near_duplicates(small: np.ndarray, on_limit: Callable[[int], None] | None = None) -> list[Pair]:
    """Pairs of pictures that are the same but for size, compression, brightness, mirroring or quarter turns.

    Args:
        small: uint8 (N, S, S) grey copies, none of them blank.
        on_limit: called with the number of bits where there are so many candidates that not all within ``MAX_BITS`` are
            looked at.

    Returns:
        Each pair once, ``first < second``, with the best of the eight orientations.
    """
    if len(small) < 2:
        return []
    values = _standardised(small.astype(np.float32))
    fine = small - ndimage.gaussian_filter(small.astype(np.float32), (0, _FINE_SIGMA, _FINE_SIGMA))
    # The rim of the optics and the writing of the device are in all pictures; they make no two of them the same. With few
    # pictures their mean is themselves, and says nothing of the device.
    fine = _standardised(fine - fine.mean(axis=0) if len(small) >= 50 else fine)
    base = perceptual_hash(small)
    best: dict[tuple[int, int], Pair] = {}
    for number, how in enumerate(_TURNS):
        turned, turned_fine = _turned(values, number), _turned(fine, number)
        hashes = base if number == 0 else perceptual_hash(_turned(small, number))
        for first, second in _candidates(base, hashes, on_limit):
            whole = _correlations(values, turned, first, second)
            likely = whole >= MIN_CORRELATION
            first, second, whole = first[likely], second[likely], whole[likely]
            same = _correlations(fine, turned_fine, first, second) >= MIN_FINE_CORRELATION
            for i, j, correlation in zip(first[same], second[same], whole[same], strict=True):
                key = (int(i), int(j))
                # Symmetric pictures match in several orientations; the plain one is named unless another is clearly better.
                if key not in best or correlation > best[key].correlation + 0.01:
                    best[key] = Pair(*key, how, float(correlation))
    return [best[key] for key in sorted(best)]


def _standardised(pictures: np.ndarray) -> np.ndarray:
    """Each picture (N, S, S) with mean 0 and length 1, so that a scalar product is a correlation."""
    pictures = pictures - pictures.mean(axis=(1, 2), keepdims=True)
    return pictures / np.maximum(np.sqrt((pictures**2).sum(axis=(1, 2), keepdims=True)), 1e-6)


def _turned(pictures: np.ndarray, number: int) -> np.ndarray:
    """The eight symmetries of a square, (N, S, S), in the order of ``_TURNS``."""
    transposed = number >= 4
    flips = number - 4 if transposed else number
    pictures = pictures.transpose(0, 2, 1) if transposed else pictures
    if flips in (1, 3):
        pictures = pictures[:, :, ::-1]
    if flips in (2, 3):
        pictures = pictures[:, ::-1, :]
    return pictures


def _candidates(
    hashes: np.ndarray, turned: np.ndarray, on_limit: Callable[[int], None] | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Index pairs i < j whose hashes differ in at most MAX_BITS, in portions; fewer bits past _MAX_CANDIDATES."""
    limit, given = MAX_BITS, 0
    for start in range(0, len(hashes), _ROWS):
        distance = np.bitwise_count(hashes[start : start + _ROWS, None] ^ turned[None, start:])
        while True:
            rows, columns = np.nonzero(distance <= limit)
            ahead = columns > rows
            if given + np.count_nonzero(ahead) <= _MAX_CANDIDATES or limit == 0:
                break
            limit -= 2  # thousands of near-equal pictures (frames of one video): only the nearest are worth a look
        given += int(np.count_nonzero(ahead))
        if limit < MAX_BITS and on_limit is not None:
            on_limit(limit)
        if ahead.any():
            yield rows[ahead] + start, columns[ahead] + start


def _correlations(values: np.ndarray, turned: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Scalar products of ``values[first]`` and ``turned[second]``, in portions that fit the memory."""
    portions = range(0, len(first), 4096)
    parts = [np.einsum("nij,nij->n", values[first[at : at + 4096]], turned[second[at : at + 4096]]) for at in portions]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True)
class Copies:
    """Sets of cases that show the same picture.

    Attributes:
        exact: equal pixels in several files.
        near: nearly the same pictures, one case for each set of exact copies.
        remarks: id of the first case of a near set to how its pictures are alike.
        groups: case ids of exact and near copies together, joined where they share a picture, with all cases of an image.
        limit: bits of the hash within which all pairs were compared; below ``MAX_BITS`` copies may be missing.
    """

    exact: list[list[Case]]
    near: list[list[Case]]
    remarks: dict[str, str]
    groups: list[tuple[str, ...]]
    limit: int = MAX_BITS


def find_copies(cases: Sequence[Case], looks: Mapping[str, Look]) -> Copies:
    """Compare all pictures with each other."""
    first_of: dict[str, Case] = {}
    for case in cases:  # several masks may share an image file, and a case may be listed in several splits
        if looks[case.id].image_hash:
            first_of.setdefault(f"{case.split}\0{case.record.image}", case)
    exact: dict[bytes, list[Case]] = {}
    for case in first_of.values():
        exact.setdefault(looks[case.id].image_hash, []).append(case)
    # The same file in two splits is found by its name.
    copies = [found for found in exact.values() if len({case.record.image for case in found}) > 1]
    limits = [MAX_BITS]
    one_each = list({found[0].record.image: found[0] for found in exact.values()}.values())
    near, remarks = _near(one_each, looks, limits.append)
    showing: dict[bytes, list[str]] = {}
    for case in cases:
        if looks[case.id].image_hash:
            showing.setdefault(looks[case.id].image_hash, []).append(case.id)
    sets = [[name for case in found for name in showing[looks[case.id].image_hash]] for found in [*copies, *near]]
    return Copies(copies, near, remarks, connected(sets), min(limits))


def duplicate_findings(cases: Sequence[Case], looks: Mapping[str, Look], copies: Copies | None = None) -> list[Finding]:
    """Duplicates of images and of masks, across splits and within them; ``copies`` of ``find_copies`` where known."""
    copies = copies or find_copies(cases, looks)
    turned = {case for case, how in copies.remarks.items() if not how.startswith("correlation")}
    return [
        *contradicting_duplicates([*copies.exact, *copies.near], looks, turned),
        *_report(copies.exact, looks, "duplicate", "an exact copy", {}),
        *_report(copies.near, looks, "near-duplicate", "nearly the same picture", copies.remarks),
        *_not_compared(copies.limit),
        *_mask_copies(cases, looks),
    ]


def _not_compared(limit: int) -> list[Finding]:
    if limit >= MAX_BITS:
        return []
    return [
        Finding(
            "note",
            "near-duplicates-limited",
            f"over {_MAX_CANDIDATES:,} pairs of pictures look alike at first sight: of the rest only pairs whose hashes "
            f"differ in {limit} bits or fewer, not {MAX_BITS}, were compared, so near-duplicates may be missing",
            advice="check the data in parts, for instance one recording or one hospital at a time",
        )
    ]


def _near(
    cases: list[Case], looks: Mapping[str, Look], on_limit: Callable[[int], None]
) -> tuple[list[list[Case]], dict[str, str]]:
    """Sets of nearly the same pictures, and for the first of each how they are alike."""
    cases = [case for case in cases if looks[case.id].contrast >= _MIN_CONTRAST]
    if len(cases) < 2:
        return [], {}
    pairs = near_duplicates(np.stack([_small(looks[case.id]) for case in cases]), on_limit)
    # Joined to sets, so that ten frames of one scene are one line and not 45.
    place = {case.id: index for index, case in enumerate(cases)}
    names = connected([(cases[pair.first].id, cases[pair.second].id) for pair in pairs])
    sets = sorted(
        (sorted((cases[place[name]] for name in found), key=lambda case: place[case.id]) for found in names),
        key=lambda found: place[found[0].id],
    )
    first_of = {case.id: found[0].id for found in sets for case in found}
    remarks: dict[str, str] = {}
    for pair in pairs:
        how = f"{pair.how}, " if pair.how else ""
        remarks.setdefault(first_of[cases[pair.first].id], f"{how}correlation {pair.correlation:.3f}")
    return sets, remarks


def _small(look: Look) -> np.ndarray:
    assert look.small is not None  # a look with a hash has one
    return look.small


def _report(
    sets: list[list[Case]], looks: Mapping[str, Look], code: str, what: str, remarks: dict[str, str]
) -> list[Finding]:
    exact = code == "duplicate"
    across: list[Evidence] = []
    within: list[Evidence] = []
    undivided: list[Evidence] = []
    between: Counter[str] = Counter()
    for found in sets:
        splits = Counter(case.split for case in found)
        areas = [facts.share for case in found if (facts := looks[case.id].facts) is not None]
        different = len(areas) > 1 and max(areas) > _OTHER_MASK * min(areas)
        told = " and ".join(f"{count} in {split}" if count > 1 else split for split, count in splits.items())
        why = ", ".join(filter(None, [told, remarks.get(found[0].id, ""), "with different masks" if different else ""]))
        one = Evidence(tuple(case.id for case in found), why)
        if len(splits) > 1:
            across.append(one)
            between["/".join(sorted(splits, key=split_order))] += 1
        elif found[0].record.split is None and len({unit_of(case.record) for case in found}) > 1:
            undivided.append(one)
        else:
            within.append(one)
    findings: list[Finding] = []
    if across:
        pairs = ", ".join(f"{count} {name}" for name, count in sorted(between.items()))
        images = sum(len(one.cases) for one in across)
        findings.append(
            Finding(
                "error" if exact else "warning",
                f"{code}-across-splits",
                f"{plural(len(across), 'picture')} with {what} in another split ({pairs}; {images} images)",
                tuple(across),
                "keep each picture in one split: give the copies one group, or take them out of train",
            )
        )
    if undivided:
        images = sum(len(one.cases) for one in undivided)
        findings.append(
            Finding(
                "warning",
                f"{code}-without-split",
                f"{plural(len(undivided), 'picture')} with {what} ({images} images), and no split is named: training then "
                "divides case by case, so that copies come to stand in train and in test",
                tuple(undivided),
                "keep copies together: vlsm data check DIR --groups copies.json, then vlsm data split DIR --groups "
                "copies.json --out splits, and train with data.split_file",
            )
        )
    if within:
        images = sum(len(one.cases) for one in within)
        contradict = sum("different masks" in one.why for one in within)
        findings.append(
            Finding(
                "warning",
                f"{code}-within-split",
                f"{plural(len(within), 'picture')} with {what} in the same split ({images} images"
                + (f"; {contradict} with different masks)" if contradict else ")"),
                tuple(within),
                "keep one of each; copies weigh double in training and in the mean",
            )
        )
    return findings


def _mask_copies(cases: Sequence[Case], looks: Mapping[str, Look]) -> list[Finding]:
    """The same non-empty mask under different pictures: often a mask saved under a wrong name."""
    same: dict[bytes, list[Case]] = {}
    for case in cases:
        facts = looks[case.id].facts
        # A full mask, or one of few pixels, is the same by nature.
        if facts is not None and facts.pixels >= 64 and facts.share < 0.98:
            same.setdefault(looks[case.id].mask_hash, []).append(case)
    evidence = []
    for found in same.values():
        pictures = {looks[case.id].image_hash: case for case in found}
        files = {case.record.mask for case in found}
        if len(pictures) > 1 and len(files) > 1:
            evidence.append(Evidence(tuple(case.id for case in pictures.values()), "the same mask, pixel by pixel"))
    if not evidence:
        return []
    return [
        Finding(
            "warning",
            "mask-copied",
            f"{plural(len(evidence), 'mask')} used unchanged for different pictures",
            tuple(evidence),
            "look at the outlines: one of them may be saved under a wrong name",
        )
    ]
