"""File names for predictions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlsm_adapter.output_names import image_names, output_names, prompt_slug

STEMS = st.sampled_from(["a", "A", "b", "a_overlay", "a_probability", "a__polyp", "polyp", "ä", "x" * 200])
PATHS = st.builds(
    lambda folder, stem, ending: Path("/data", *folder, stem + ending),
    st.lists(st.sampled_from(["one", "two", "a"]), max_size=2),
    STEMS,
    st.sampled_from([".png", ".jpg", ".PNG"]),
)


@pytest.mark.parametrize(
    ("prompt", "slug"),
    [("polyp", "polyp"), ("large polyp 2", "large-polyp-2"), ("p" * 40, "p" * 40)],
)
def test_a_plain_prompt_is_its_own_slug(prompt: str, slug: str) -> None:
    assert prompt_slug(prompt) == slug


@pytest.mark.parametrize(
    "prompt", ["", "Polyp", "polyp!", " polyp", "息肉", "../../etc/passwd", "p" * 41, "con\x00", "é"]
)
def test_what_is_lost_is_in_the_hash(prompt: str) -> None:
    assert re.fullmatch(r"[a-z0-9-]{1,40}_[0-9a-f]{10}", prompt_slug(prompt))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=60), max_size=20, unique=True))
def test_slugs_are_safe_and_all_different(prompts: list[str]) -> None:
    slugs = [prompt_slug(prompt) for prompt in prompts]
    assert len({slug.casefold() for slug in slugs}) == len(prompts)
    assert all(re.fullmatch(r"[a-z0-9_-]{1,55}", slug) for slug in slugs)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(PATHS, min_size=1, max_size=12, unique=True),
    st.lists(st.sampled_from(["polyp", "overlay", "a polyp", "Polyp", "息肉"]), min_size=1, max_size=4, unique=True),
)
def test_no_two_outputs_share_a_file(images: list[Path], prompts: list[str]) -> None:
    names = output_names(images, prompts)
    files = [
        f"{base}{ending}".casefold()
        for row in names
        for base in row
        for ending in (".png", "_probability.png", "_overlay.png")
    ]
    assert len(set(files)) == len(files)
    assert all("/" not in file and len(file.encode()) < 255 for file in files)
    backwards = output_names(images[::-1], prompts)[::-1]
    assert backwards == names  # the order of the files does not matter


def test_readable_names_where_stems_are_shared() -> None:
    assert image_names([Path("d/a.png"), Path("d/b.png")]) == ["a", "b"]
    assert image_names([Path("d/p1/x.png"), Path("d/p2/x.png"), Path("d/y.png")]) == ["p1__x", "p2__x", "y"]
    assert image_names([Path("d/x.png"), Path("d/x.jpg")]) == ["x_png", "x_jpg"]
