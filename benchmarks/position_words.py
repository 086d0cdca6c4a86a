"""How often the position words of prompts agree with the masks they describe: a data set's own words, and ours.

    python benchmarks/position_words.py DATA [DATA ...]

The reading is independent of both: the cell of the 3 x 3 grid that holds the centroid of the largest component of the
mask. Of a data set's own prompts those are counted that name exactly one place ("located in ... of the image", "at the ...
in the"); of ours those of level p6 that do. "Sides" counts the prompts that name a side (left, right, top, bottom) on which
the centroid does not even lie within its half of the picture: no choice of thresholds makes such a word true.
"""

from __future__ import annotations

import argparse
import logging
import re

import numpy as np
from scipy import ndimage

from vlsm_adapter.data.describing.measure import POSITIONS, describe
from vlsm_adapter.data.images import read_mask
from vlsm_adapter.data.records import load_records
from vlsm_adapter.types import Record

_PLACE = "|".join(sorted(POSITIONS, key=len, reverse=True))
_OWN = re.compile(
    rf"(?:located in|at the) ((?:{_PLACE})(?:, (?:{_PLACE}))*) (?:of the image|in the|of the)", re.IGNORECASE
)


def own_places(record: Record) -> list[str]:
    """The places that the data set's own prompts name, from the first level that names any."""
    for level in sorted(record.prompts):
        for text in record.prompts[level]:
            if found := _OWN.search(text):
                return found[1].lower().split(", ")
    return []


def centre(mask: np.ndarray) -> tuple[float, float]:
    """Centroid of the largest component as parts of height and width."""
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    largest = 1 + int(np.argmax(np.bincount(labels.ravel(), minlength=count + 1)[1:]))
    row, column = ndimage.center_of_mass(labels == largest)
    return (row + 0.5) / mask.shape[0], (column + 0.5) / mask.shape[1]


def cell(down: float, across: float) -> str:
    """The place of a point."""
    return POSITIONS[3 * min(int(3 * down), 2) + min(int(3 * across), 2)]


def wrong_side(place: str, down: float, across: float) -> bool:
    """Whether ``place`` names a side and the point lies in the other half."""
    wrong = {"top": down > 0.5, "bottom": down < 0.5, "left": across > 0.5, "right": across < 0.5}
    return any(wrong.get(word, False) for word in place.split())


def main() -> None:
    """Print a row per data set."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="+", help="data folders with prompts of their own")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    print("| data | masks | own: one place | cell | wrong half | ours: one place | cell | wrong half | ours silent |")
    print("|---|---|---|---|---|---|---|---|---|")
    for data in arguments.data:
        counts = dict.fromkeys(("masks", "own", "own_cell", "own_side", "our", "our_cell", "our_side", "silent"), 0)
        name = ""
        for record in load_records(data, skip_bad=True)[0]:
            assert record.mask is not None
            mask = read_mask(record.mask, record.mask_value)
            if not mask.any():
                continue
            name = record.dataset
            point = centre(mask)
            counts["masks"] += 1
            ours = describe(mask).positions
            counts["silent"] += not ours
            for who, places in (("own", own_places(record)), ("our", ours)):
                if len(places) == 1:
                    counts[who] += 1
                    counts[f"{who}_cell"] += places[0] == cell(*point)
                    counts[f"{who}_side"] += wrong_side(places[0], *point)
        share = {who: f"{counts[f'{who}_cell'] / max(1, counts[who]):.1%}" for who in ("own", "our")}
        print(
            f"| {name} | {counts['masks']} | {counts['own']} | {share['own']} | {counts['own_side']} "
            f"| {counts['our']} | {share['our']} | {counts['our_side']} | {counts['silent']} |"
        )


if __name__ == "__main__":
    main()
