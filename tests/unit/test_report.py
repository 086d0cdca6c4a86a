"""The report says what the files say, and nothing else; the learning curve."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlsm_adapter import files
from vlsm_adapter.curves import line_chart
from vlsm_adapter.errors import UserError
from vlsm_adapter.metrics import paired_difference, summarise
from vlsm_adapter.report import render, write_report
from vlsm_adapter.types import CaseScore

FLOATS = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True), st.floats(-5, 5))

ADAPTER = {"method": "dense", "settings": {"parts": "vlc"}, "trainable_parameters": 40_000}


def scores(dice: list[float], emptiness: list[str] | None = None, units: str = "px") -> list[CaseScore]:
    kinds = emptiness or ["none"] * len(dice)
    return [
        CaseScore(
            f"case-{number}",
            "polyp",
            {"dice": value, "iou": value / 2, "hd95": 10 * (1 - value), "nsd": value / 4},
            units if number else "px",
            kind,
            0 if kind in ("both", "false_alarm") else 50,
            0 if kind in ("both", "missed") else 60,
        )
        for number, (value, kind) in enumerate(zip(dice, kinds, strict=True))
    ]


def summary(adapter: list[CaseScore] | None = None, zero_shot: list[CaseScore] | None = None) -> dict[str, Any]:
    adapter = scores([0.9, 0.8, 0.7]) if adapter is None else adapter
    zero_shot = scores([0.2, 0.9, 0.1]) if zero_shot is None else zero_shot
    names = ("dice", "iou", "hd95", "nsd")
    return {
        "format": "vlsm-evaluation",
        "format_version": 1,
        "split": "test",
        "level": "p1",
        "threshold": 0.5,
        "nsd_tolerance": 2.0,
        "data": {"path": "/data/polyps", "name": "polyps", "levels": ["p0", "p1"]},
        "prompts": {
            "level": "p1",
            "seed": 0,
            "leaks": False,
            "reveal_emptiness": 0,
            "reveal_emptiness_truly_empty": 0,
            "different": 1,
            "examples": ["polyp"],
        },
        "base": {
            "id": "tiny",
            "family": "clipseg",
            "sha256": "abc",
            "parameters": 4_000_000,
            "preprocessing": {"size": [96, 96]},
        },
        "run": None,
        "trained_adapter": {**ADAPTER, "sha256": "w1"},
        "training_cases": {"seen_in_training": 0, "new": 0, "gone": 0},
        "adapter": summarise(adapter, n_boot=50),
        "zero_shot": summarise(zero_shot, n_boot=50),
        "paired_difference": {name: paired_difference(adapter, zero_shot, name, n_boot=50) for name in names},
        "paired_difference_truth_foreground": {
            name: paired_difference(adapter, zero_shot, name, n_boot=50) for name in names
        },
        "skipped": [],
        "pictures": [],
        "seconds": 1.25,
        "versions": {"python": "3.11"},
        "device": "cpu",
        "platform": "Linux",
        "command": "vlsm evaluate run",
    }


def rows_of(text: str, heading: str) -> list[list[str]]:
    """Cells of the table under a heading."""
    section = text.split(f"## {heading}")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_headline_is_the_mean_with_its_interval_and_the_difference() -> None:
    values = summary()
    text = render(values)
    head, _, dice, *_ = rows_of(text, "Scores")
    assert head == ["metric", "adapter", "zero-shot", "difference", "better / worse / equal"]
    about = values["adapter"]["metrics"]["dice"]
    assert dice[1] == f"{about['mean']:.4f} [{about['ci_low']:.4f}, {about['ci_high']:.4f}]" == f"0.8000 {dice[1][7:]}"
    assert dice[2].startswith("0.4000 [")
    assert dice[3].startswith("+0.4000 [")
    assert dice[4] == "2 / 1 / 0"
    assert "40,000 trainable parameters, 1.00% of the base's 4,000,000" in text
    assert "NSD (at 2 px, higher is better)" in text
    assert "HD95 (px, lower is better)" in text


def test_no_difference_is_not_sold_as_one() -> None:
    equal = scores([0.5, 0.6, 0.7])
    assert "the interval includes zero" in render(summary(equal, equal))
    assert "the interval includes zero" not in render(summary(scores([0.9, 0.9, 0.9]), scores([0.1, 0.2, 0.1])))


def test_empty_masks_are_counted_with_their_rule() -> None:
    kinds = ["none", "both", "missed", "false_alarm", "false_alarm"]
    adapter = scores([0.9, 1.0, 0.0, 0.0, 0.0], kinds)
    zero_shot = scores([0.9, 0.0, 0.3, 0.0, 0.0], ["none", "false_alarm", "none", "false_alarm", "false_alarm"])
    text = render(summary(adapter, zero_shot))
    table = [row[1:3] for row in rows_of(text, "Empty masks")[2:]]
    assert table == [["1", "2"], ["1", "0"], ["1", "0"], ["2", "3"]]
    assert "Only the 2 cases with foreground in the truth" in text


def test_units_are_never_mixed() -> None:
    mixed = scores([0.9, 0.8, 0.7], units="mm")
    text = render(summary(mixed, mixed))
    names = [row[0] for row in rows_of(text, "Scores")[2:]]
    assert "HD95 (mm, lower is better)" in names
    assert "HD95 (px, lower is better)" in names


def test_leaking_and_revealing_words_are_named() -> None:
    values = summary()
    assert "tell no shape, size, number or place" in render(values)
    values["prompts"].update(level="p6", leaks=True, reveal_emptiness=13, reveal_emptiness_truly_empty=12)
    text = render(values)
    assert "**Prompts of level p6 may have been drawn from the true mask**" in text
    assert "In 13 cases the prompt speaks of absence" in text
    assert "the mask of 12 of them is empty" in text


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({}, True),
        ({"level": "p7"}, True),
        ({"level": "p0"}, False),
        ({"prompts": {"leaks": True}}, False),
        ({"split": "val"}, False),
        ({"threshold": 0.4}, False),
        ({"run": "/another"}, False),
        ({"base": {"sha256": "other"}}, False),
        ({"data": {"path": "/other", "name": "polyps"}}, False),
        ({"adapter": {"n_cases": 2}}, False),
        ({"adapter": None}, False),
        ({"trained_adapter": {**ADAPTER, "sha256": "w2"}}, False),  # trained further in between
        ({"trained_adapter": ADAPTER}, True),  # of a version that did not say of which weights
    ],
)
def test_only_a_leak_free_result_of_the_same_cases_heads_a_leaking_one(
    tmp_path: Path, changes: dict[str, Any], taken: bool
) -> None:
    leaking, free = summary(), summary(scores([0.3, 0.3, 0.3]), scores([0.1, 0.1, 0.1]))
    leaking["level"] = "p6"
    leaking["prompts"].update(level="p6", leaks=True)
    for name, values in (("test-p6", leaking), ("test-p1", {**free, **changes})):
        files.write_json(tmp_path / name / "summary.json", values)
    files.write_text(tmp_path / "damaged" / "summary.json", "{")
    text = write_report(tmp_path / "test-p6").read_text()
    headings = [line for line in text.splitlines() if line.startswith("## Scores")]
    opening = text.split("## ")[0]
    level = changes.get("level", "p1")
    if taken:
        assert headings[0] == f"## Scores, leak-free level {level}"
        assert headings[1].startswith(
            f"## Scores, LEAKING level p6: drawn from the ground truth; leak-free {level}: Dice 0.3000 ["
        )
        assert f"Leak-free (level {level}, evaluated apart, in `test-p1`): mean Dice 0.3000 [" in opening
        assert opening.index("0.3000 [") < opening.index("Level p6 leaks") < opening.index("0.8000 [")
        assert rows_of(text, headings[0][3:])[2][1].startswith("0.3000 [")
        assert "LEAKING" not in write_report(tmp_path / "test-p1").read_text()
    else:
        assert headings == ["## Scores, LEAKING level p6: drawn from the ground truth; leak-free p1: not evaluated"]
        assert "No leak-free result was found" in opening


def test_pictures_with_an_empty_truth_say_so() -> None:
    values = summary()
    picture = {
        "rank": "best",
        "file": "images/best.png",
        "case_id": "x",
        "prompt": "polyp",
        "truth_area": 0,
        "dice": {"adapter": 1.0, "zero_shot": 0.0},
        "predicted_area": {"adapter": 0, "zero_shot": 9},
    }
    values["pictures"] = [picture]
    text = render(values)
    assert "Best: `x`, adapter Dice 1.000, zero-shot Dice 0.000; the true mask is empty" in text
    assert "No case has anything to find" in text
    assert "the true mask is empty" not in render({**values, "pictures": [{**picture, "truth_area": 4}]})


def test_text_from_outside_cannot_break_the_table() -> None:
    values = summary()
    values["skipped"] = [{"case_id": "a|b<script>\n| x", "path": "p", "reason": "[x](http://y) `c` *d*\r\n|"}]
    values["command"] = "vlsm `rm` | x"
    values["prompts"]["examples"] = ["", "a ` b | c"]
    text = render(values)
    assert "<script>" not in text
    assert len(rows_of(text, "Cases left out")) == 3
    assert [len(row) for row in rows_of(text, "Cases left out")] == [2, 1, 2]
    assert "the empty prompt" in text


@pytest.mark.parametrize(("cases", "few"), [(1, False), (2, True), (9, True), (10, False)])
def test_intervals_over_few_are_not_sold_as_sound(cases: int, few: bool) -> None:
    some = scores([0.1 * number for number in range(cases)])
    assert (f"**With {cases} cases to resample these intervals are too narrow**" in render(summary(some, some))) == few


def test_a_single_case_has_no_interval() -> None:
    text = render(summary(scores([0.75]), scores([0.5])))
    assert rows_of(text, "Scores")[2][1:4] == ["0.7500", "0.5000", "+0.2500"]
    assert "1 case. Mean Dice 0.7500" in text


def test_writing_reads_files_only(tmp_path: Path) -> None:
    run = tmp_path / "run"
    folder = run / "evaluation" / "test-p1"
    values = summary()
    values["run"] = str(run)
    files.write_json(folder / "summary.json", values)
    code = (
        "import sys; from vlsm_adapter.report import write_report; write_report(sys.argv[1]); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    assert "Learning curve" not in (folder / "report.md").read_text()
    files.write_text(run / "metrics.csv", "epoch,train_loss,val_dice\n1,1.5,0.25\n2,1.25,\n3,1.0,0.5\n")
    assert "![Learning curve](images/learning_curve.svg)" in write_report(folder).read_text()
    curve = (folder / "images" / "learning_curve.svg").read_text()
    assert "training loss" in curve
    assert "validation loss" not in curve
    files.write_text(run / "metrics.csv", "epoch,train_loss\nx,y\n")
    assert "Learning curve" not in write_report(folder).read_text()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "not an evaluation"),
        ("{", "damaged"),
        ("[]", "not a summary"),
        (json.dumps({"format": "vlsm-evaluation", "format_version": 99}), "format_version 99"),
        (json.dumps({"format": "vlsm-evaluation", "format_version": 1}), "incomplete"),
    ],
)
def test_a_folder_that_is_no_evaluation(tmp_path: Path, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    with pytest.raises(UserError, match=says) as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "report.md").exists()


def test_every_lost_key_is_an_error_of_the_file(tmp_path: Path) -> None:
    for key in ("data", "adapter", "prompts", "base", "skipped", "pictures", "versions", "command"):
        values = copy.deepcopy(summary())
        del values[key]
        files.write_json(tmp_path / "summary.json", values)
        if key == "adapter":
            write_report(tmp_path)  # then it is a report of zero-shot alone
            continue
        with pytest.raises(UserError, match="incomplete"):
            write_report(tmp_path)


def test_a_line_goes_on_where_there_is_no_value_and_stops_where_it_cannot_be_drawn() -> None:
    rare: list[float | None] = [None, 0.25, None, None, 0.5, 0.75]
    gap: list[float | None] = [0.5, 0.5, math.nan, 0.25, None, 0.25]
    root = ElementTree.fromstring(line_chart("T", "epoch", range(1, 7), {"rare": rare, "gap": gap}))
    lines = [line.attrib["points"].split() for line in root.iter("{http://www.w3.org/2000/svg}polyline")]
    assert [len(points) for points in lines] == [3, 2, 2]
    across = [float(point.partition(",")[0]) for point in lines[0]]
    assert across[1] - across[0] == pytest.approx(3 * (across[2] - across[1]), abs=0.2)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=20), st.text(max_size=10))
def test_a_chart_is_sound_svg_inside_its_frame(values: list[tuple[float | None, float | None]], name: str) -> None:
    name = "".join(char for char in name if char.isprintable())
    svg = line_chart(
        "T<&>", "epoch", list(range(len(values))), {name: [a for a, _ in values], "b": [b for _, b in values]}
    )
    root = ElementTree.fromstring(svg)
    for line in root.iter("{http://www.w3.org/2000/svg}polyline"):
        for point in line.attrib["points"].split():
            across, up = map(float, point.split(","))
            assert 0 <= across <= 640
            assert 0 <= up <= 240
