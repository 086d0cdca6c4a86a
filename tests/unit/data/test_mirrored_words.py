"""Words that stay true when their image is mirrored, and words that cannot."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlsm_adapter.data.describing.measure import COLOURS, GREY_WORDS, SHAPES
from vlsm_adapter.data.mirrored_words import allowed, mirror_prompt
from vlsm_adapter.data.records import load_records

PLACES = (
    "left",
    "right",
    "top",
    "bottom",
    "center",
    "top left",
    "top right",
    "bottom left",
    "bottom right",
    "top-left",
)


@pytest.mark.parametrize(
    ("text", "across", "down"),
    [
        ("polyp", "polyp", "polyp"),
        ("", "", ""),
        ("one polyp, located in top left of the image", "one polyp, located in top right of the image", "one polyp, located in bottom left of the image"),
        ("two lumps located in left, top right and bottom of the image", "two lumps located in right, top left and bottom of the image", "two lumps located in left, bottom right and top of the image"),
        ("tumor at the top right in the breast", "tumor at the top left in the breast", "tumor at the bottom right in the breast"),
        ("opacity, bottom right of the frontal view", "opacity, bottom left of the frontal view", "opacity, top right of the frontal view"),
        ("a lesion in the upper-left corner", "a lesion in the upper-right corner", "a lesion in the lower-left corner"),
        ("Left side of the image", "Right side of the image", "Left side of the image"),
        ("to the LEFT of the tumor", "to the RIGHT of the tumor", "to the LEFT of the tumor"),
        ("polyp in the center", "polyp in the center", "polyp in the center"),
        # Parts of the body, and words that are no place in a picture.
        ("left ventricular cavity", None, "left ventricular cavity"),
        ("in the left ventricle", None, "in the left ventricle"),
        ("the right lung in the left of the image", None, "the right lung in the left of the image"),
        ("opacity in the lower lobe", "opacity in the lower lobe", None),
        ("left-sided effusion", None, "left-sided effusion"),
        ("a lesion right in the center", None, "a lesion right in the center"),
        ("polyp at 3 o'clock", None, None),
        ("the superior wall", "the superior wall", None),
        ("bottom of ear polyp", "bottom of ear polyp", None),
        ("device in the lateral view", "device in the lateral view", "device in the lateral view"),
        ("lateral wall", None, "lateral wall"),
    ],
)  # fmt: skip
def test_by_hand(text: str, across: str | None, down: str | None) -> None:
    assert mirror_prompt(text, across=True) == across
    assert mirror_prompt(text, down=True) == down
    assert mirror_prompt(text) == text


@given(
    st.lists(st.sampled_from(PLACES), min_size=1, max_size=4),
    st.sampled_from(["located in {} of the image", "at the {}", "polyp, {} of the picture"]),
    st.booleans(),
    st.booleans(),
)
def test_places_are_mirrored_and_mirrored_back(places: list[str], frame: str, across: bool, down: bool) -> None:
    text = frame.format(", ".join(places[:-1]) + " and " + places[-1] if len(places) > 1 else places[0])
    made = mirror_prompt(text, across=across, down=down)
    assert made is not None
    assert mirror_prompt(made, across=across, down=down) == text
    expected = text
    for swaps, wanted in ((("left", "right"), across), (("top", "bottom"), down)):
        if wanted:
            expected = re.sub("|".join(swaps), lambda word, pair=swaps: pair[1 - pair.index(word[0])], expected)
    assert made == expected


@settings(max_examples=200)
@given(st.text(alphabet="leftrighopbm ,.-", max_size=40) | st.text(max_size=40))
def test_any_text_is_answered_and_what_is_changed_changes_back(text: str) -> None:
    for axes in ({"across": True}, {"down": True}, {"across": True, "down": True}):
        made = mirror_prompt(text, **axes)
        assert made is None or mirror_prompt(made, **axes) == text
    allowed(text)


@pytest.mark.parametrize(
    "part", ["left and ", "left, ", "in the left ", "top left and the ", "in ", "left-", "a left of "]
)
def test_hostile_text_takes_no_time(part: str) -> None:
    mirror_prompt(part * (10_000 // len(part)) + "x", across=True, down=True)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.booleans())
def test_words_measured_on_the_mirrored_mask_are_the_mirrored_words(seed: int, across: bool, down: bool) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros((90, 90), bool)
    rows, columns = rng.integers(0, 60, 2)
    mask[rows : rows + rng.integers(5, 30), columns : columns + rng.integers(5, 30)] = True

    def place(mask: np.ndarray) -> str:
        row, column = (np.mean(where) + 0.5 for where in np.nonzero(mask))
        vertical = "top" if row < 30 else "bottom" if row > 60 else ""
        horizontal = "left" if column < 30 else "right" if column > 60 else ""
        return f"{vertical} {horizontal}".strip() or "center"

    mirrored = mask[:: -1 if down else 1, :: -1 if across else 1]
    text = f"polyp, located in {place(mask)} of the image"
    assert mirror_prompt(text, across=across, down=down) == f"polyp, located in {place(mirrored)} of the image"


def test_what_the_words_allow() -> None:
    def flags(text: str) -> tuple[bool, bool, bool]:
        found = allowed(text)
        return found.motion, found.bending, found.colour

    assert flags("polyp") == flags("") == flags("skin melanoma") == (True, True, True)
    assert flags("left ventricular cavity") == flags("right lung") == (True, True, True)
    assert flags("round polyp") == (True, False, True)
    assert flags("pink polyp") == (True, True, False)
    assert flags("small polyp") == flags("two polyps") == flags("polyp in the top left") == (False, False, True)
    assert flags("no polyp")[0] is False
    # Words of the published prompts, and all of ours.
    for shape in ("octagon", "hexagon", "ovoid", "a semicircle", "a teardrop", *SHAPES):
        assert flags(f"{shape} polyp") == (True, False, True)
    for colour in ("peach", "gold", "silver", *COLOURS, *GREY_WORDS):
        assert flags(f"{colour} polyp") == (True, True, False)
    assert flags("eleven polyps") == flags("fourteen polyps") == (False, False, True)
    assert flags("one large dark oval lump, located in center of the image") == (False, False, False)


def test_published_prompts_are_understood(shared_folder: Path) -> None:
    """On the real prompts, directions are places, or else parts of the body or slips of the published words."""
    checked = refused = changed = 0
    for name in ("kvasir_polyp", "busi", "isic"):
        records, _ = load_records(shared_folder / "data" / name, checks=False, skip_bad=True)
        for record in records:
            for text in (text for texts in record.prompts.values() for text in texts):
                across = mirror_prompt(text, across=True)
                checked += 1
                refused += across is None or mirror_prompt(text, down=True) is None
                changed += across not in (None, text)
    assert checked > 10_000
    assert refused == 0
    assert changed > 1000
