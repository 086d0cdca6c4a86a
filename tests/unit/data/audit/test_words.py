"""What prompts say, and where the mask says otherwise; what vlsm itself says of a mask passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlsm_adapter.data.audit.findings import Finding
from vlsm_adapter.data.audit.vocabulary import Said, read_words
from vlsm_adapter.data.audit.words import word_findings
from vlsm_adapter.data.phantoms import MODALITIES, make_phantom

CENTER, RIGHT, TOP_LEFT = ("", ""), ("", "right"), ("top", "left")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", Said()),
        ("polyp", Said()),
        (
            "one medium yellow round polyp, located in right of the image",
            Said(number=1, size="medium", shape="round", places=(RIGHT,)),
        ),
        (
            "Two small circle-shaped benign tumors at the top left, center in the breast ultrasound image.",
            Said(number=2, size="small", shape="round", places=(TOP_LEFT, CENTER)),
        ),
        ("tiny, small oval lesion in the upper left corner", Said(size="small", shape="oval", places=(TOP_LEFT,))),
        ("polyp on the left", Said(places=(("", "left"),))),
        (
            "three polyps, located in top, bottom right and left of the image",
            Said(number=3, places=(("top", ""), ("bottom", "right"), ("", "left"))),
        ),
        ("No tumor in the breast ultrasound image.", Said(absent=True, number=0)),
        ("there is no polyp", Said(absent=True, number=0)),
        (
            "Airspace Opacity of shape square, and located in center of the lateral view of a Chest Xray.",
            Said(shape="square", places=(CENTER,)),
        ),
        ("Left ventricular cavity of oval shape in two-chamber view of the heart", Said(shape="oval")),
        ("Left atrium cavity of the heart of a forty-one-year-old female with medium image quality.", Said()),
        ("polyp which is a small lump in the lining of colon", Said()),
        ("normal mucosa", Said()),
        ("small and large polyps", Said()),
    ],
)
def test_reading(text: str, said: Said) -> None:
    assert read_words(text) == said


@given(st.text(alphabet="abno ,.-intheoflgcr1\n", max_size=80))
@settings(max_examples=100, deadline=None)
def test_any_text_is_read(text: str) -> None:
    read_words(text)


def codes(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.code: finding for finding in findings}


@pytest.fixture
def check(new_case: Any, seen: Any) -> Any:
    """``check((mask, {"p2": ...}), ...)``: code to finding."""

    def run(*pairs: Any) -> dict[str, Finding]:
        cases = [new_case(f"c{index}.png", **prompts) for index, (_, prompts) in enumerate(pairs)]
        return codes(word_findings(cases, {case.id: seen(mask) for case, (mask, _) in zip(cases, pairs, strict=True)}))

    return run


def test_presence(check: Any, round_mask: Any) -> None:
    empty = np.zeros((80, 96), bool)
    found = check(
        (round_mask(), {"p1": "no polyp"}),
        (empty, {"p1": "polyp", "p5": "one small polyp"}),
        (empty, {"p1": "No tumor in the breast"}),
        (empty, {"p1": "polyp"}),
        (round_mask(), {"p1": "polyp"}),
    )
    assert found["absent-but-there"].severity == "error"
    assert found["absent-but-there"].cases == ("c0",)
    assert found["there-but-empty"].cases == ("c1",)
    assert found["reveals-emptiness"].cases == ("c0", "c2")
    assert "exactly" not in found["reveals-emptiness"].message
    found = check((empty, {"p1": "no polyp"}), (round_mask(), {"p1": "polyp"}))
    assert "exactly the 1 empty ones" in found["reveals-emptiness"].message


def test_presence_by_the_box_alone(new_case: Any) -> None:
    cases = [new_case("a.png", box=(3, 4, 20, 30), p1="no polyp"), new_case("b.png", box=(0, 0, 0, 0), p1="no polyp")]
    finding = codes(word_findings(cases, {}))["absent-but-there"]
    assert finding.cases == ("a",)
    assert "annotated box" in finding.message


def test_places(check: Any, round_mask: Any) -> None:
    right = round_mask(centre=(0.85, 0.5), radius=0.08)
    found = check(
        (right, {"p6": "one polyp, located in left of the image"}),
        (right, {"p6": "one polyp, located in right of the image"}),
        (round_mask(centre=(0.6, 0.5), radius=0.1), {"p6": "one polyp, located in right of the image"}),
    )
    assert found["wrong-place"].cases == ("c0",)
    assert "says left; no foreground there" in found["wrong-place"].evidence[0].why
    assert "right 1/2, left 0/1" in found["places-inexact"].message
    assert found["places-inexact"].cases == ("c0", "c2")


def test_one_sided_places(check: Any, round_mask: Any) -> None:
    def pairs(centre: float) -> list[Any]:
        mask = round_mask(centre=(centre, 0.5), radius=0.2)
        return [(mask, {"p6": f"polyp, located in {'left' if i < 2 else 'right'} of the image"}) for i in range(40)]

    finding = check(*pairs(0.45))["one-sided-places"]
    assert finding.message.startswith(
        "the prompts say right in 38 cases and left in 2; the masks' centres lie 0 right and 40 left"
    )
    assert "one-sided-places" not in check(*pairs(0.8))


def test_number_size_and_shape(check: Any, round_mask: Any) -> None:
    two = round_mask(centre=(0.25, 0.5), radius=0.1) | round_mask(centre=(0.75, 0.5), radius=0.1)
    small, large = round_mask(radius=0.05), round_mask(radius=0.4)
    long = np.zeros((80, 96), bool)
    long[38:43, 10:80] = True
    found = check(
        (two, {"p5": "one polyp"}),
        (two, {"p5": "two polyps"}),
        (round_mask(), {"p5": "three polyps"}),
        (large, {"p5": "one small polyp"}),
        (small, {"p5": "one large polyp"}),
        (small, {"p5": "one small polyp"}),
        (long, {"p2": "round polyp"}),
        (long, {"p2": "elongated polyp"}),
        (large, {"p2": "square polyp"}),
        (large, {"p2": "round polyp"}),
    )
    assert set(found["wrong-number"].cases) == {"c0", "c2"}
    assert "1 say more than there is, 1 fewer" in found["wrong-number"].message
    assert found["wrong-size"].cases == ("c3", "c4")
    assert found["wrong-shape"].cases == ("c6", "c8")
    assert "round 1/2" in found["wrong-shape"].message


def test_uneven_size_words(check: Any, round_mask: Any) -> None:
    sizes = [(0.03 + 0.01 * i, "small" if i < 10 else "large") for i in range(30)]
    assert "size-words-uneven" not in check(*((round_mask(radius=r), {"p4": f"{word} polyp"}) for r, word in sizes))
    sizes[25] = (sizes[25][0], "small")
    finding = check(*((round_mask(radius=r), {"p4": f"{word} polyp"}) for r, word in sizes))["size-words-uneven"]
    assert "1 of 30 cases on the wrong side" in finding.message
    assert finding.cases == ("c25",)


def test_levels_against_each_other(check: Any, round_mask: Any) -> None:
    found = check(
        (round_mask(), {"p4": "small polyp", "p5": "one large polyp"}),
        (round_mask(), {"p1": "no polyp", "p5": "one polyp"}),
        (round_mask(), {"p4": "small polyp", "p5": "one small polyp"}),
    )
    assert found["levels-disagree"].cases == ("c0", "c1")
    assert "size 1, presence 1" in found["levels-disagree"].message
    assert found["levels-disagree"].evidence[0].why == "size: p4 small, p5 large"


def test_more_places_than_things(check: Any, round_mask: Any) -> None:
    found = check(
        (round_mask(), {"p6": "one polyp, located in left, right of the image"}),
        (round_mask(), {"p6": "two polyps, located in center, center of the image"}),
    )
    assert found["places-and-number"].cases == ("c0",)
    assert found["place-repeated"].message.startswith("1 case ")


def test_true_prompts_of_phantoms_pass(new_case: Any, seen: Any) -> None:
    """Words measured on the mask itself, by other code: the audit must not call them wrong."""
    cases, looks = [], {}
    for modality in MODALITIES:
        for index in range(12):
            made = make_phantom(modality, seed=5, index=index, size=(128, 144))
            case = new_case(
                f"{modality}_{index}.png", **{level: texts[0] for level, texts in made.prompts.items() if texts[0]}
            )
            cases.append(case)
            looks[case.id] = seen(made.mask)
    wrong = {
        "absent-but-there",
        "there-but-empty",
        "wrong-place",
        "places-inexact",
        "wrong-number",
        "wrong-size",
        "wrong-shape",
    }
    found = codes(word_findings(cases, looks))
    assert not wrong & set(found), {code: [one.why for one in finding.evidence] for code, finding in found.items()}
