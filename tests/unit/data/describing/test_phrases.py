"""Levels p0 to p9: what each holds, what it leaves out, and the file of classes."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlsm_adapter.data.describing.classes import BUILT_IN, ClassEntry, Classes, plain
from vlsm_adapter.data.describing.measure import COLOURS, GREY_WORDS, NUMBERS, POSITIONS, SHAPES, SIZES, Finding, Words
from vlsm_adapter.data.describing.phrases import LEAK_FREE, LEVELS, places_in, prompts
from vlsm_adapter.errors import DataError

POLYP = ClassEntry("polyp", "polyps", ("a growth in the bowel", "an outgrowth"), "colonoscopy")
SAID = {*SHAPES, *SIZES, *COLOURS, *GREY_WORDS, *NUMBERS, *" ".join(POSITIONS).split()}


def finding() -> Finding:
    return Finding(50, (1.0, 1.0), None, None, None, None)


words = st.builds(
    Words,
    st.none() | st.integers(1, 9),
    st.none() | st.sampled_from(SHAPES),
    st.none() | st.sampled_from(COLOURS),
    st.none() | st.sampled_from(SIZES),
    st.lists(st.sampled_from(POSITIONS), unique=True, max_size=4).map(tuple),
    findings=st.just((finding(),)),
)


def test_the_levels_of_a_case() -> None:
    made = prompts(Words(1, "round", "pink", "small", ("top left",), findings=(finding(),)), POLYP)
    assert made == {
        "p0": ("",),
        "p1": ("polyp",),
        "p2": ("round polyp",),
        "p3": ("pink round polyp",),
        "p4": ("small pink round polyp",),
        "p5": ("one small pink round polyp",),
        "p6": ("one small pink round polyp in the top left part of the image",),
        "p7": ("polyp, a growth in the bowel", "polyp, an outgrowth"),
        "p8": ("one small pink round polyp, a growth in the bowel", "one small pink round polyp, an outgrowth"),
        "p9": (
            "one small pink round polyp in the top left part of the image, a growth in the bowel",
            "one small pink round polyp in the top left part of the image, an outgrowth",
        ),
    }
    assert tuple(made) == LEVELS


@settings(max_examples=150, deadline=None)
@given(words)
def test_levels_say_what_was_measured_and_only_that(said: Words) -> None:
    made = prompts(said, POLYP)
    assert made["p1"] == ("polyp",)
    assert made["p7"] == ("polyp, a growth in the bowel", "polyp, an outgrowth")
    several = said.number is not None and said.number > 1
    number = NUMBERS[said.number] if said.number else None
    expected = [word for word in (number, said.size, said.colour, said.shape) if word]
    [counted] = made["p5"]
    assert counted.split() == [*expected, "polyps" if several else "polyp"]
    [placed] = made["p6"]
    assert placed.startswith(counted)
    assert places_in(placed) == (said.positions if len(said.positions) <= 3 else ())
    assert places_in(counted) == ()
    for level, start in (("p8", counted), ("p9", placed)):
        assert [text.removeprefix(start) for text in made[level]] == [", a growth in the bowel", ", an outgrowth"]
    for shorter, longer in itertools.pairwise(("p1", "p2", "p3", "p4")):
        assert made[longer][0].endswith(made[shorter][0])


def test_an_empty_mask_shows_only_where_the_number_is_told() -> None:
    empty, full = prompts(Words(0), POLYP), prompts(Words(1, findings=(finding(),)), POLYP)
    assert [empty[level] for level in LEAK_FREE] == [full[level] for level in LEAK_FREE]
    assert [empty[f"p{level}"][0] for level in range(1, 7)] == ["polyp"] * 4 + ["no polyp"] * 2
    assert empty["p9"][0] == "no polyp, a growth in the bowel"


def test_without_a_description_there_are_no_levels_that_need_one() -> None:
    assert list(prompts(Words(0), ClassEntry("nodule", "nodules"))) == list(LEVELS[:7])


# -- classes -----------------------------------------------------------------------------------------------------------------


def test_the_classes_of_the_published_data_are_known_by_their_p1() -> None:
    classes = Classes.load()
    for text, name in {
        "polyp": "polyp",
        "skin melanoma": "skin lesion",
        "foot ulcer": "foot ulcer",
        "Tumor in the breast ultrasound image.": "breast tumor",
        "No tumor in the breast ultrasound image.": "breast tumor",  # or p1 would tell that the mask is empty
        "Myocardium of the heart.": "myocardium",
        "Left ventricular cavity in the cardiac ultrasound.": "left ventricular cavity",
        "Left atrium cavity of the heart.": "left atrium cavity",
        "Airspace Opacity in a chest Xray.": "airspace opacity",
        "Pleural Effusion in a chest Xray.": "pleural effusion",
    }.items():
        found = classes.find(text)
        assert found is not None, text
        assert found.name == name
        assert found.descriptions
        assert found.seen_in


def test_descriptions_are_leak_free_and_distinct() -> None:
    classes = Classes.load()
    assert len(classes.entries) >= 20
    for entry in classes.entries.values():
        for text in entry.descriptions:
            found = set(re.findall(r"[a-z]+", text.lower())) & SAID
            # "one", "no", "left" may stand in plain sentences of anatomy; none may tell a case's look.
            assert found <= {"no", "left", "bright"}, (entry.name, text, found)
            assert text[0].islower()
            assert not text.endswith(".")
        assert len(set(entry.descriptions)) == len(entry.descriptions)


def test_an_unknown_class_keeps_its_own_words() -> None:
    classes = Classes.load()
    assert classes.find("No widget here.") is None
    assert classes.of("No Widget in the image.") == ClassEntry("widget in the image", "widget in the images")
    assert classes.of("MRI lesion").name == "MRI lesion"
    assert classes.of("opacity of glass").plural == "opacity of glasses"
    assert classes.of("cavity").plural == "cavities"
    assert plain(" The  Polyp. ") == "polyp"


def write(folder: Path, text: str) -> Path:
    file = folder / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_users_file_adds_and_replaces(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
polyp:
  descriptions: [a thing of mine.]
adenoma:
  plural: adenomata
  also: [tubular adenoma]
  seen_in: colonoscopy
lesion of the skin:
  also: [skin lesion]
bare:
""",
    )
    classes = Classes.load(file)
    assert classes.of("Polyp").descriptions == ("a thing of mine",)
    assert classes.of("Tubular adenoma.") == ClassEntry("adenoma", "adenomata", (), "colonoscopy")
    assert classes.of("skin lesion").name == "lesion of the skin"
    assert classes.find("skin melanoma") is None  # it went with the class that was replaced
    assert classes.of("bare") == ClassEntry("bare", "bares")
    assert classes.of("foot ulcer").descriptions


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a table of classes"),
        ("- polyp\n- skin", "a list, not a table"),
        ("polyp: {description: [x]}", "did you mean 'descriptions'"),
        ("polyp: {descriptions: x}", "a text: give a list"),
        ("polyp: {descriptions: [1]}", "a number, not a text"),
        ("polyp: [x]", "is a list: give a table"),
        ("no: {}", "true or false, not a text: quote it"),
        ("polyp: {}\npolyp: {}", "stands twice"),
        ("a: {also: [x]}\nb: {also: [X.]}", "names both 'a' and 'b'"),
        ("polyp: {also: [x", "not valid YAML"),
        ("polyp: !!python/object/apply:os.system [x]", "not valid YAML"),
        ('polyp: {descriptions: ["a\\0b"]}', "characters that are not text"),
        ("? [a, b]\n: {}", "not valid YAML"),
        ("'': {}", "empty, not a text"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        Classes.load(write(tmp_path, text))
    assert message in str(error.value)
    assert str(error.value).startswith(str(tmp_path))
    assert "\n" not in str(error.value)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = write(tmp_path_factory.getbasetemp(), text.replace("\ud800", ""))
    problem = ""
    try:
        Classes.load(file)
    except DataError as error:
        problem = str(error)
    assert "\n" not in problem


def test_missing_file_and_the_file_of_the_package(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        Classes.load(tmp_path / "none.yaml")
    assert BUILT_IN.is_file()
    assert Classes.load(BUILT_IN).entries == Classes.load().entries
