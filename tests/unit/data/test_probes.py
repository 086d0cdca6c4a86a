"""Probes: pairs that differ in the words at issue alone, one true of the mask and one false."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlsm_adapter.data.describing.classes import Classes
from vlsm_adapter.data.describing.colours import BASIC, lab
from vlsm_adapter.data.describing.measure import COLOUR_REACH, COLOURS, GREY_WORDS, POSITIONS, SHAPES, SIZES, describe
from vlsm_adapter.data.describing.phrases import places_in
from vlsm_adapter.data.probes import ABSENT, MOST_OVERLAP, OPPOSITES, PAIRS, TEMPLATES, Pair, Planner
from vlsm_adapter.errors import DataError
from vlsm_adapter.metrics import dice
from vlsm_adapter.types import Record

CLASSES = Classes.load()
WORDS = {"shape": SHAPES, "size": SIZES, "colour": (*COLOURS, *GREY_WORDS), "position": POSITIONS}


def record(case_id: str = "a", p1: str = "polyp", image: str = "a", mask: str | None = "a") -> Record:
    return Record(case_id, Path(f"/{image}.png"), Path(f"/{mask}.png") if mask else None, {"p1": (p1,)})


def disc(row: float = 20, column: float = 20, radius: float = 12, size: tuple[int, int] = (100, 120)) -> np.ndarray:
    rows, columns = np.mgrid[: size[0], : size[1]]
    return np.hypot(rows - row, columns - column) < radius


def picture(mask: np.ndarray) -> np.ndarray:
    return np.where(mask[..., None], np.array((190, 40, 40), np.uint8), np.array((80, 160, 90), np.uint8))


def planner(*records: Record, seed: int = 0) -> Planner:
    return Planner(records, CLASSES, seed=seed)


@settings(max_examples=80, deadline=None)
@given(
    st.text("abcdef", min_size=1, max_size=8),
    st.floats(15, 85),
    st.floats(15, 105),
    st.floats(4, 14),
    st.integers(0, 9),
)
def test_pairs_differ_in_one_place_and_the_first_is_true(
    case_id: str, row: float, column: float, radius: float, seed: int
) -> None:
    mask = disc(row, column, radius)
    one = record(case_id)
    plan = planner(one, seed=seed).plan(one, picture(mask), mask)
    again = planner(one, record("other"), seed=seed).plan(one, picture(mask), mask)
    assert plan == again  # by case and seed alone
    assert {pair.probe for pair in plan.pairs} == set(PAIRS)
    assert plan.texts[0] == ""
    assert len(set(plan.texts)) == len(plan.texts)
    words = describe(mask, picture(mask))
    for pair in plan.pairs:
        assert pair.true != pair.false
        if pair.probe != "contradictory":
            assert pair.true == plan.paraphrase
            [template] = [t for t in TEMPLATES if t.format("polyp") == pair.true]
            head, _, tail = template.partition("{}")
            other = pair.false.removeprefix(head).removesuffix(tail)
            assert template.format(other) == pair.false
            assert "polyp" not in other
            if pair.probe == "absent_object":
                assert other in ABSENT
            else:
                assert CLASSES.of(other).seen_in not in ("", "colonoscopy")
            assert pair.other is None
        elif pair.kind == "position":
            assert places_in(pair.true) == words.positions == (pair.words[0],)
            assert places_in(pair.false) == (pair.words[1],)
            changed = set(pair.words[0].split()) ^ set(pair.words[1].split())
            assert len(changed) == 2
            assert "center" in changed or changed in ({"left", "right"}, {"top", "bottom"})
        else:
            assert pair.true == f"{pair.words[0]} polyp"
            assert pair.false == f"{pair.words[1]} polyp"
            assert pair.words[0] == getattr(words, pair.kind)
            assert pair.words[1] in OPPOSITES[pair.words[0]]
    kinds = [pair.kind for pair in plan.pairs if pair.probe == "contradictory"]
    said = {"position": len(words.positions) == 1, "shape": words.shape, "size": words.size, "colour": words.colour}
    assert sorted(kinds) == sorted(kind for kind, word in said.items() if word)


def test_opposites_are_words_of_ours_and_false_wherever_the_word_is_said() -> None:
    assert set(OPPOSITES) == {word for words in WORDS.values() for word in words}
    for word, opposites in OPPOSITES.items():
        [kind] = [kind for kind, words in WORDS.items() if word in words]
        assert opposites
        for other in opposites:
            assert other != word
            assert other in WORDS[kind]
            assert word in OPPOSITES[other]  # both ways, or no pair could be compared with its reverse
    assert "oval" not in OPPOSITES["round"]  # between them a reader may waver
    # No colour is within reach of both a word and its opposite with the reach that a reader of medical pictures would give.
    shades = {word: lab(np.array([colour for name, colour in BASIC if name == word])) for word in COLOURS}
    for word in COLOURS:
        for other in OPPOSITES[word]:
            apart = np.linalg.norm(shades[word][:, None] - shades[other][None], axis=2).min()
            assert apart > COLOUR_REACH, (word, other, apart)


def test_a_class_that_the_image_lacks_is_preferred_then_one_with_its_own_mask(tmp_path: Path) -> None:
    left = record("l", "Left atrium cavity of the heart.", "x", "la")
    ventricle = beside(tmp_path, disc(70, 80), "Left ventricular cavity of the heart.")
    [pair] = swapped(left, ventricle)
    assert pair.other is ventricle
    assert "left ventricular cavity" in pair.false
    muscle = record("m", "Myocardium of the heart.", "y", "m")
    [pair] = swapped(left, ventricle, muscle)
    assert pair.other is None
    assert "myocardium" in pair.false
    assert pair.kind == "of_the_data"


def beside(folder: Path, mask: np.ndarray, p1: str) -> Record:
    """Another class of image ``x``, whose mask is a file."""
    file = folder / f"{p1[:8]}.png"
    Image.fromarray(mask.astype(np.uint8) * 255).save(file)
    return Record(p1, Path("/x.png"), file, {"p1": (p1,)})


def swapped(one: Record, *others: Record) -> list[Pair]:
    mask = disc()
    return [p for p in planner(one, *others).plan(one, picture(mask), mask).pairs if p.probe == "swapped_class"]


def test_a_class_that_overlaps_the_object_is_not_swapped(tmp_path: Path) -> None:
    heart = record("h", "Cardiomegaly", "x", "h")
    holds_it = beside(tmp_path, disc(radius=16), "Enlarged Cardiomediastinum")
    lung = beside(tmp_path, disc(80, 100), "Lung Opacity")
    touching = beside(tmp_path, disc(40, 20), "Edema")
    assert 0 < dice(disc(40, 20), disc()) < MOST_OVERLAP
    assert [pair for pair in swapped(heart, holds_it) if pair.kind == "of_the_data"] == []
    chosen = set()
    for number in range(20):  # whatever is drawn first
        one = record(f"h{number}", "Cardiomegaly", "x", "h")
        [pair] = swapped(one, holds_it, lung, touching)
        assert pair.other is not None
        assert pair.kind == "of_the_data"
        chosen.add(pair.other.case_id)
    assert chosen == {"Lung Opacity", "Edema"}


@pytest.mark.parametrize("damage", ["gone", "not a picture", "another size", "no mask"])
def test_a_mask_that_cannot_be_used_is_not_the_right_answer(tmp_path: Path, damage: str) -> None:
    heart = record("h", "Cardiomegaly", "x", "h")
    lung = beside(tmp_path, disc(80, 100, size=(90, 120) if damage == "another size" else (100, 120)), "Lung Opacity")
    assert lung.mask is not None
    if damage == "gone":
        lung.mask.unlink()
    elif damage == "not a picture":
        lung.mask.write_bytes(b"\x89PNG broken")
    elif damage == "no mask":
        lung = Record(lung.case_id, lung.image, None, lung.prompts)
    assert [pair for pair in swapped(heart, lung) if pair.kind == "of_the_data"] == []


def test_what_cannot_be_known_is_not_asked() -> None:
    mask = disc()
    unknown = record("u", "widget")
    probes = {pair.probe for pair in planner(unknown).plan(unknown, picture(mask), mask).pairs}
    assert probes == {"contradictory", "absent_object"}  # who can say that a widget's picture shows no polyp?
    zebra = record("z", "zebra")
    for number in range(30):
        one = record(f"z{number}", "zebra")
        absent = [p for p in planner(zebra, one).plan(one, picture(mask), mask).pairs if p.probe == "absent_object"]
        assert "zebra" not in absent[0].false
    empty = planner(unknown).plan(unknown, picture(mask), np.zeros_like(mask))
    assert empty.pairs == ()
    assert empty.texts == ("", empty.paraphrase)
    # A shape between shapes, of a size between sizes, on a line, in a grey of its surroundings: nothing to contradict.
    grey = np.full((*mask.shape, 3), 90, np.uint8)
    middling = disc(100 / 3, 40, 9.8)
    middling[28:32, 40:56] = True
    assert describe(middling, grey).positions == ()
    plan = planner(unknown).plan(unknown, grey, middling)
    words = describe(middling, grey)
    assert ("contradictory" in {p.probe for p in plan.pairs}) == any((words.shape, words.size, words.colour))


def test_a_case_that_names_no_class_is_an_error() -> None:
    nameless = Record("n", Path("/n.png"), Path("/n.png"), {"p2": ("round polyp",)})
    with pytest.raises(DataError, match="no p1 that names its class"):
        planner(nameless).plan(nameless, picture(disc()), disc())


def test_templates_keep_the_name_and_name_nothing_else() -> None:
    assert len(set(TEMPLATES)) == len(TEMPLATES) >= 4
    assert all(template.count("{}") == 1 for template in TEMPLATES)


def test_nothing_of_it_waits_for_torch() -> None:
    modules = ("probes", "records", "describing.write", "describing.show", "describing.classes")
    program = f"import sys; {'; '.join(f'import vlsm_adapter.data.{name}' for name in modules)}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
