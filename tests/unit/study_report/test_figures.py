"""Figures: what they are drawn from, that nothing covers anything, that they come without matplotlib's help or not at all."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlsm_adapter.errors import ConfigError
from vlsm_adapter.study_report.document import Facts, Grid, Paragraph, build
from vlsm_adapter.study_report.extras import costs_of, curves_of, heard_of
from vlsm_adapter.study_report.figures import costs, draw, grid, lines, pareto, spider, style
from vlsm_adapter.study_report.figures.draw import draw_all
from vlsm_adapter.study_report.figures.labels import Box, _through, leader, place_labels
from vlsm_adapter.study_report.numbers import TableNumbers, compute
from vlsm_adapter.study_report.reading import find_results
from vlsm_adapter.study_report.small import distinct
from vlsm_adapter.study_report.tables import Row, arrange


def numbers_of(root: Path) -> tuple[list[TableNumbers], list[Row]]:
    tables, rows, _ = arrange(distinct(find_results([root]).results)[0])
    return [compute(table, ("dice",), n_boot=40, permutations=100) for table in tables], rows


@pytest.fixture(scope="module", autouse=True)
def _coarse() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "_DPI", 60)  # what is drawn is the same, and faster
        yield


@pytest.fixture(scope="module")
def numbers(study: Path) -> tuple[list[TableNumbers], list[Row]]:
    return numbers_of(study)


def test_every_figure_in_every_format(numbers: tuple[list[TableNumbers], list[Row]]) -> None:
    # The pictures of cases take longest: see e2e/test_study_report.py.
    drawn = {item.name: (item, content) for item, content in draw_all(*numbers, images=False)}
    assert set(drawn) == {"pareto", "pareto_by_data", "spider", "labels", "learning_curves", "costs"}
    for item, content in drawn.values():
        assert content["svg"].startswith(b"<?xml")
        assert content["pdf"].startswith(b"%PDF")
        assert content["png"].startswith(b"\x89PNG")
        assert b"Type3" not in content["pdf"].replace(b" ", b"")
        assert len(item.alt) > 30
        assert item.caption.endswith(".")
        width = int.from_bytes(content["png"][16:20], "big") / 60
        assert width == pytest.approx(style.COLUMN, abs=0.1) or width <= style.PAGE + 0.1
    with style.style():
        ((_, figure),) = lines.draw_curves(numbers[0][0], style.looks_of(numbers[1]))
        assert style.saved(figure, "svg") == drawn["learning_curves"][1]["svg"]  # equal numbers, equal bytes


def test_without_matplotlib(numbers: tuple[list[TableNumbers], list[Row]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'vlsm-adapter\[study\]'"):
        list(draw_all(*numbers))


def test_drawing_leaves_no_settings_behind_and_images_out(numbers: tuple[list[TableNumbers], list[Row]]) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    with style.style():
        drawn = [item.name for item, _ in draw.drawn(numbers[0][:1], numbers[1], images=False)]
    assert "qualitative" not in drawn
    assert "pareto" in drawn
    assert dict(matplotlib.rcParams) == before


def test_no_two_methods_look_alike(numbers: tuple[list[TableNumbers], list[Row]]) -> None:
    rows = [replace(numbers[1][0], key=(str(number),)) for number in range(28)]
    looks = style.looks_of(rows)
    assert len(set(looks.values())) == len(rows)


# -- Pareto --------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 10**7), st.floats(0, 100)), min_size=1, max_size=20))
def test_the_front_by_its_definition(values: list[tuple[int, float]]) -> None:
    points = [pareto.Point((str(n),), str(n), size, dice, None) for n, (size, dice) in enumerate(values)]
    points.sort(key=lambda point: (point.parameters, -point.dice, point.label))
    front = pareto.front_of(points)
    for point in points:
        beaten = any(o.parameters <= point.parameters and o.dice > point.dice for o in points)
        beaten |= any(o.parameters < point.parameters and o.dice >= point.dice for o in points)
        same = [one for one in front if (one.parameters, one.dice) == (point.parameters, point.dice)]
        assert bool(same) == (not beaten)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.floats(10, 240), st.floats(10, 170)), min_size=2, max_size=12, unique=True))
def test_labels_keep_off_each_other(points: list[tuple[float, float]]) -> None:
    frame = Box(0, 0, 260, 190)
    boxes = place_labels(points, [(38.0, 6.0)] * len(points), frame)
    assert boxes == place_labels(points, [(38.0, 6.0)] * len(points), frame)
    spread = min(math.dist(a, b) for a, b in itertools.combinations(points, 2))
    if spread > 12:  # where there is room, there is no overlap
        assert sum(a.overlap(b) for a, b in itertools.combinations(boxes, 2)) < 1e-6
    assert all(box.outside(frame) < 1e-6 for box in boxes)  # however crowded


def test_a_line_to_a_label_that_is_far_off() -> None:
    assert leader(Box(20, 0, 40, 6), (0, 3)) == (20, 3)
    assert leader(Box(4, 0, 24, 6), (0, 3)) is None


def test_labels_of_the_study_do_not_overlap(numbers: tuple[list[TableNumbers], list[Row]]) -> None:
    tables, rows = numbers
    with style.style():
        figure = pareto.draw_pareto(tables[0], style.looks_of(rows))
        assert figure is not None
        figure.canvas.draw()
        texts = [text for text in figure.axes[0].texts if text.get_text() and not text.get_text().startswith("↓")]
        boxes = [text.get_window_extent() for text in texts]
    assert len(texts) == 6
    for one, other in itertools.combinations(boxes, 2):
        width = min(one.x1, other.x1) - max(one.x0, other.x0)
        height = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert min(width, height) <= 1


def test_what_is_far_below_all_others_stands_at_the_edge() -> None:
    def points(*dice: float, std: float = 0.5) -> list[pareto.Point]:
        return [pareto.Point((str(n),), f"m{n}", 1000 * (n + 1), value, std) for n, value in enumerate(dice)]

    def below(points: list[pareto.Point]) -> list[pareto.Point]:
        return list(pareto.frame_of(points).below)

    one_low = points(20, 66, 67, 68, 69)
    assert below(one_low) == one_low[:1]
    assert below(points(56, 60, 62, 66, 70)) == []  # spread, no gap
    assert below(points(20, 25, 68, 69, 70)) == []  # two fifths are no outliers
    assert below(points(20, 68, 69)) == []  # too few to say
    assert below(points(69.0, 70.0, 70.1, 70.2, 70.3)) == []  # within two points all is drawn
    assert below(points(67.5, 69.7, 69.8, 69.9, 70, std=2)) == []  # no further than bars reach
    assert (
        below([*points(62.5, 66, 67, 68, 69), pareto.Point(("z",), "zero", 0, 61.0, None)]) == []
    )  # its line is there
    wide = [*points(40, 67, 68, 69), pareto.Point(("w",), "wide", 9000, 66.0, 30.0)]
    assert below(wide) == []  # a bar makes the axis as long

    with style.style():
        figure = style.new_figure(3.3, 2.7)
        axis = figure.subplots()
        looks = {point.key: style.Look("#000000", "o", "-") for point in one_low}
        pareto._panel(axis, one_low, looks)
        figure.draw_without_rendering()
        pareto._label(axis, one_low, looks)
        low, high = axis.get_ylim()
        assert (low, high) == pytest.approx((65.0, 70.0), abs=0.1)
        texts = [text.get_text() for text in axis.texts if text.get_text()]
        assert sorted(texts) == ["m0 ↓ 20.0 %", "m1", "m2", "m3", "m4"]
        drawn = [float(line.get_ydata()[0]) for line in axis.lines if len(line.get_ydata()) == 1]
        assert min(drawn) == low


def test_a_line_through_a_name() -> None:
    box = Box(10, 10, 20, 16)
    for a, b, through in (
        ((0, 0), (30, 30), True),
        ((0, 13), (30, 13), True),
        ((15, 0), (15, 40), True),
        ((0, 20), (30, 20), False),
        ((0, 0), (9, 9), False),
        ((12, 12), (13, 13), True),
        ((0, 10), (30, 10), False),  # along the edge
    ):
        assert _through(box, a, b) is _through(box, b, a) is through


# -- the others ----------------------------------------------------------------------------------------------------------


def test_spider(numbers: tuple[list[TableNumbers], list[Row]]) -> None:
    (rows,) = spider.spider_rows(numbers[0][0]).values()
    assert {(row.method, row.settings["parts"]) for row in rows} == {
        ("dense", "v"), ("dense", "vlc"), ("shallow", "v"), ("shallow", "vlc")
    }  # fmt: skip


def test_a_spider_is_of_rows_that_differ_in_their_parts_alone(fake: ModuleType, tmp_path: Path) -> None:
    """A narrow VLC whose name sorts first does not stand for the VLC of the others."""
    cell = {"protocol": "p", "model": "tiny"}
    methods = {"dense_narrow": ("vlc", 12), "dense_v": ("v", 64), "dense_vl": ("vl", 64), "dense_wide_vlc": ("vlc", 64)}
    for model, sha256, chosen in (
        ("tiny", "a" * 64, methods),
        ("big", "b" * 64, {name: methods[name] for name in ("dense_v", "dense_vl")}),
        ("one", "c" * 64, {"dense_v": ("v", 64)}),
    ):
        for number, (name, (parts, width)) in enumerate(chosen.items()):
            for data in ("a", "b", "c"):
                own = {**cell, "data": data, "model": model, "method": name}
                settings = {"parts": parts, "variant": "residual", "bottleneck_dim": width}
                place = tmp_path / f"{model}-{name}-{data}"
                dice = [0.5 + number / 10, 0.6]
                fake.FakeRun(place, dice, data=data, settings=settings, cell=own, sha256=sha256, model=model).write()
    tables, rows = numbers_of(tmp_path)
    charts = spider.spider_rows(tables[0])
    assert {name: [(row.name, row.model) for row in chosen] for name, chosen in charts.items()} == {
        "residual, on tiny": [("dense_v", "tiny"), ("dense_vl", "tiny"), ("dense_wide_vlc", "tiny")],
        "residual, on big": [("dense_v", "big"), ("dense_vl", "big")],
    }
    with style.style():
        figures = {item.name: (item, figure) for item, figure in draw.drawn(tables, rows, images=False)}
    item, figure = next((i, f) for i, f in figures.values() if "on tiny" in i.caption and "spider" in i.name)
    assert item.caption.startswith(
        "V, VL and VLC of the dense adapter (residual, on tiny), dense with bottleneck_dim=64 alone"
    )
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        row.label for row in charts["residual, on tiny"]
    }


def test_a_spider_tells_of_what_it_draws_alone(fake: ModuleType, tmp_path: Path) -> None:
    fake.write_study(tmp_path, methods=("dense_v", "dense_vl", "dense_vlc", "shallow_v"), seeds=(1,))
    shutil.rmtree(next(tmp_path.glob("runs/isic/*/*/dense_vlc")))
    shutil.rmtree(next(tmp_path.glob("runs/busi/*/*/shallow_v")))
    tables, rows = numbers_of(tmp_path)
    with style.style():
        item, figure = next(one for one in draw.drawn(tables, rows, images=False) if one[0].name == "spider")
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"Dense V", "Dense VL"}
    assert item.caption.startswith("V and VL of the dense adapter (residual), DSC in percent")
    for text in (item.caption, item.alt):
        assert "Shallow V and Dense VLC have no score on one of the data sets and are not drawn" in text
    told = item.alt.split("not drawn")[1]
    assert "Dense VL: " in told
    assert "Dense VLC" not in told
    assert "Shallow" not in told


def test_eight_data_sets_are_all_drawn_and_named(fake: ModuleType, tmp_path: Path) -> None:
    data = [f"set{number}" for number in range(9)]
    fake.write_study(tmp_path, methods=("dense_v", "lora"), data=data, seeds=(1,), fractions=("100%", "10%"))
    for folder in tmp_path.glob("runs/*/*/*/*/100pct/*/evaluation/*"):
        if "set8" not in folder.parts:
            fake.write_examples(folder, 0.7, count=1, size=(20, 30))
    for file in tmp_path.glob("runs/set8/**/metrics.csv"):
        file.unlink()
    for folder in tmp_path.glob("runs/set8/*/*/*/10pct"):
        shutil.rmtree(folder)
    tables, rows = numbers_of(tmp_path)
    with style.style():
        drawn = {item.name: (item, figure) for item, figure in draw.drawn(tables, rows, images=True)}
    for name in ("learning_curves", "labels", "qualitative"):
        (first, one), (second, other) = drawn[name], drawn[f"{name}1"]
        assert "; data sets: set0, set1, set2, set3." in first.caption
        assert "; data sets: set4, set5, set6, set7; there is nothing of set8." in second.caption
        assert "set3" in first.alt
        assert "set8" in second.alt
        shown = [text for figure in (one, other) for axis in figure.axes for text in (axis.get_title("left"), *(
            text.get_text() for text in axis.texts))]  # fmt: skip
        assert [text for text in shown if text.startswith("set")] == data[:8]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12))
def test_the_axes_of_the_spider_hold_their_values(values: list[float]) -> None:
    low, high = spider.scale_of(values)
    assert low <= min(values)
    assert high >= max(values) or high == 100.0
    assert low < high <= 100


def test_epochs_are_whole_and_short_runs_take_seconds(fake: ModuleType, tmp_path: Path) -> None:
    fake.write_study(tmp_path, methods=("dense_v", "lora"), data=("isic",), seeds=(1,))
    for file in tmp_path.rglob("metrics.csv"):
        file.write_text("\n".join(file.read_text().splitlines()[:3]) + "\n")
    for file in tmp_path.rglob("resources.json"):
        values = json.loads(file.read_text())
        values["train"]["seconds"] = 4.0
        file.write_text(json.dumps(values))
    tables, rows = numbers_of(tmp_path)
    looks = style.looks_of(rows)
    with style.style():
        ((_, curves),) = lines.draw_curves(tables[0], looks)
        bars = costs.draw_costs(costs_of(tables[0].table), looks)
        assert bars is not None
        curves.draw_without_rendering()
    low, high = curves.axes[0].get_xlim()
    assert [tick for tick in curves.axes[0].get_xticks() if low <= tick <= high] == [1, 2]
    assert bars.axes[0].get_xlabel() == "training of a run (s)"
    assert [text.get_text() for text in bars.axes[0].texts] == ["4", "4"]


def test_peaks_of_a_gpu_are_told_from_those_of_a_process(fake: ModuleType, tmp_path: Path) -> None:
    fake.write_study(tmp_path, methods=("dense_v", "lora"), data=("isic",), seeds=(1, 2))

    def cost_texts() -> tuple[list[str], str, str, str]:
        tables, rows = numbers_of(tmp_path)
        items = build(tables, [], Facts())
        (table,) = [item for item in items if isinstance(item, Grid) and item.title.startswith("Time and memory")]
        with style.style():
            item, figure = next(one for one in draw.drawn(tables, rows, images=False) if one[0].name == "costs")
        (text,) = [item.text for item in items if isinstance(item, Paragraph) and item.text.startswith("Time of")]
        return [table.head[-1], *(str(row[-1]) for row in table.rows)], figure.axes[-1].get_xlabel(), item.alt, text

    for number, file in enumerate(sorted(tmp_path.glob("runs/*/*/*/dense_v/*/*/resources.json"))):
        values = json.loads(file.read_text())
        values["train"]["peak_gpu_memory_mb"] = 2000 + number
        file.write_text(json.dumps(values))
    cells, label, alt, text = cost_texts()
    assert cells == ["peak memory", "0.98 GB (process)", "2.10 GB (GPU)"]
    assert label == "peak memory (GB)"
    assert "0.98 GB (process); Dense V" in alt
    assert "of the GPU where a run had one" in text
    shutil.rmtree(next(tmp_path.glob("runs/*/*/*/lora")))
    cells, label, alt, text = cost_texts()
    assert cells == ["peak GPU memory", "2.10 GB"]
    assert label == "peak GPU memory (GB)"
    assert "largest peak GPU memory" in alt
    assert "largest peak GPU memory of a run." in text


def test_learning_curves_join_the_epochs_that_were_validated(fake: ModuleType, tmp_path: Path) -> None:
    fake.write_study(tmp_path, methods=("lora",), data=("isic",), seeds=(1, 2))
    for seed, file in enumerate(sorted(tmp_path.rglob("metrics.csv"))):
        fake.write_curve(file.parent, 0.8, epochs=14 if seed else 20, seed=seed, every=6)
    tables, rows = numbers_of(tmp_path)
    (curve,) = curves_of(tables[0].table).values()
    assert curve.epochs == [6, 12, 14, 18, 20]
    assert curve.seeds == 2
    with style.style():
        ((_, figure),) = lines.draw_curves(tables[0], style.looks_of(rows))
        figure.draw_without_rendering()
    (line,) = figure.axes[0].get_lines()
    assert list(line.get_xdata()) == curve.epochs
    assert np.isfinite(np.asarray(line.get_ydata(), dtype=float)).all()


def test_two_data_sets_make_no_web(fake: ModuleType, tmp_path: Path) -> None:
    fake.write_study(tmp_path, methods=("dense_v", "dense_vlc"), data=("isic", "busi"), seeds=(1,))
    tables, _ = numbers_of(tmp_path)
    (rows,) = spider.spider_rows(tables[0]).values()
    with style.style():
        figure = spider.draw_spider(tables[0], rows)
        assert figure is not None
        assert len(figure.axes) == 2


def test_learning_curves_costs_and_words(study: Path, numbers: tuple[list[TableNumbers], list[Row]]) -> None:
    found = numbers[0][0]
    row = next(row for row in found.table.rows if row.name == "lora")
    runs = found.table.cells[row.key, "isic"]
    curve = curves_of(found.table)[row.key, "isic"]
    dice = np.array([run.curve["val_dice"] for run in runs], dtype=float)
    assert curve.mean == pytest.approx(dice.mean(axis=0))
    assert (curve.low, curve.high) == (pytest.approx(dice.min(axis=0)), pytest.approx(dice.max(axis=0)))
    cost = next(cost for cost in costs_of(found.table) if cost.row == row)
    assert cost.seconds["isic"] == pytest.approx(np.mean([run.resources["seconds"] for run in runs]))
    assert cost.peak_memory == pytest.approx((900 + 147_456 / 4000) * 2**20)
    heard, levels = heard_of(found.table)
    assert heard[row.key, "isic"].value == pytest.approx(0.2 + 0.5 * 0.74)
    assert levels["isic"] == {"p0": False, "p1": False, "p6": True}


def test_labels_with_two_parts_and_with_three(fake: ModuleType, tmp_path: Path) -> None:
    fractions = ("100%", "50%", "10%")
    fake.write_study(tmp_path, methods=("lora", "dense_v"), data=("isic",), seeds=(1,), fractions=fractions)
    tables, rows = numbers_of(tmp_path)
    looks = style.looks_of(rows)
    with style.style():
        assert list(lines.draw_labels(tables[:1], looks)) == []
        assert len(list(lines.draw_labels(tables[:2], looks))) == 1
        ((_, three),) = lines.draw_labels(tables, looks)
    assert [label.get_text() for label in three.axes[0].get_xticklabels()] == ["10 %", "50 %", "100 %"]


def test_the_grid_takes_cases_that_all_kept_and_goes_without_damaged_ones(
    study: Path, tmp_path: Path, fake: ModuleType
) -> None:
    fake.write_study(tmp_path, methods=("lora", "dense_v", "full"), data=("isic",), seeds=(1,))
    for method, count in (("lora", 4), ("dense_v", 2)):
        folder = next(tmp_path.glob(f"runs/isic/*/*/{method}/*/*/evaluation/*"))
        fake.write_examples(folder, 0.7, count=count, size=(40, 60))
    bad = next(tmp_path.glob("runs/isic/*/*/full/*/*/evaluation/*"))
    (bad / "images").mkdir()
    (bad / "images/examples.json").write_text("{")
    tables, _ = numbers_of(tmp_path)
    strips = grid.strips_of(tables[0].table)
    assert [strip.example.case_id for strip in strips] == ["case_0001", "case_0002"]
    assert set(strips[0].masks) == {"Zero-shot", "LoRA", "Dense V"} - ({"Zero-shot"} - set(strips[0].masks))
    assert "Full fine-tuning" in strips[0].lacking


def test_a_long_name_never_hides_the_score(study: Path, tmp_path: Path, fake: ModuleType) -> None:
    fake.write_study(tmp_path, methods=("lora", "full"), data=("isic",), seeds=(1,))
    for method in ("lora", "full"):
        fake.write_examples(
            next(tmp_path.glob(f"runs/isic/*/*/{method}/*/*/evaluation/*")), 0.7, count=1, size=(40, 60)
        )
    tables, _ = numbers_of(tmp_path)
    (strip,) = grid.strips_of(tables[0].table)
    some = next(iter(strip.masks.values()))
    names = ("LoRA", "Shallow published VLC", "Full fine-tuning of everything that there is", *"abcdefg")
    (axes, *more) = grid.draw_grid([replace(strip, masks=dict.fromkeys(names, some))]).axes
    titles = [one.get_title() for one in (axes, *more)]
    number = f"{100 * some[1]:.0f}"
    assert titles[2:4] == [f"LoRA {number}", f"Shallow published VLC {number}"]
    assert titles[4].startswith("Full fine-tuning of")
    assert titles[4].endswith(f"… {number}")


def test_names_are_text_not_mathematics(fake: ModuleType, tmp_path: Path) -> None:
    cell = {"data": "a_b $x^2$", "protocol": "p", "model": "m", "method": "$\\frac{}$ 中 _^"}
    fake.FakeRun(tmp_path / "run", [0.5, 0.6], cell=cell).write()
    names = [item.name for item, _ in draw_all(*numbers_of(tmp_path))]
    assert names == ["pareto"]


def test_nothing_to_draw(fake: ModuleType, tmp_path: Path) -> None:
    fake.FakeRun(tmp_path / "run", [float("nan")] * 2, trainable=None).write()
    assert list(draw_all(*numbers_of(tmp_path))) == []
    assert list(draw_all([], [])) == []


def test_palette_is_told_apart() -> None:
    looks = style._COLOURS
    assert all(re.fullmatch(r"#[0-9A-F]{6}", colour) for colour in looks)
    assert len(set(looks)) == len(looks)
