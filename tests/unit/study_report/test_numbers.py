"""The numbers of the tables, against the same computed here by other means."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import stats

from vlsm_adapter.errors import UserError
from vlsm_adapter.study_report import numbers as numbers_module
from vlsm_adapter.study_report.cells import average_cell, caption, cell_of, sizes
from vlsm_adapter.study_report.data_forms import report_json, table_rows
from vlsm_adapter.study_report.document import Facts, Paragraph, build
from vlsm_adapter.study_report.numbers import (
    TableNumbers,
    check_metrics,
    compute,
    displayed,
)
from vlsm_adapter.study_report.reading import find_results
from vlsm_adapter.study_report.references import check_reference
from vlsm_adapter.study_report.small import distinct
from vlsm_adapter.study_report.tables import Table, arrange

FEW = {"n_boot": 200, "permutations": 500}


def tables_of(root: Path, **options: Any) -> list[Table]:
    results, _ = distinct(find_results([root]).results)
    return arrange(results, **options)[0]


def write(fake: ModuleType, root: Path, scores: dict[str, dict[int, list[float]]], **options: Any) -> Path:
    """Plain runs: method to seed to Dice per case."""
    for method, by_seed in scores.items():
        for seed, dice in by_seed.items():
            data = options.get("data", "kvasir_polyp")
            fake.FakeRun(root / f"{data}-{method}-{seed}", dice, method=method, seed=seed, **options).write()
    return root


def computed(root: Path, metrics: tuple[str, ...] = ("dice", "hd95"), **options: Any) -> TableNumbers:
    return compute(tables_of(root)[0], metrics, **{**FEW, **options})


SCORES = {
    "decoder_only": {1: [0.50, 0.60, 0.40, 0.55, 0.45, 0.52, 0.61], 2: [0.52, 0.58, 0.44, 0.50, 0.49, 0.50, 0.63]},
    "dense": {1: [0.70, 0.81, 0.55, 0.72, 0.66, 0.71, 0.80], 2: [0.74, 0.83, 0.57, 0.70, 0.60, 0.73, 0.84]},
    "lora": {
        1: [0.5131, 0.6317, 0.3159, 0.5783, 0.4142, 0.5747, 0.6073],
        2: [0.50, 0.58, 0.46, 0.49, 0.50, 0.50, 0.62],
    },
}


def test_mean_deviation_rank_and_marks(fake: ModuleType, tmp_path: Path) -> None:
    found = computed(write(fake, tmp_path, SCORES))
    assert [row.label for row in found.table.rows] == ["Decoder only", "LoRA", "Dense"]
    assert [row.name for row in found.reference_rows] == ["decoder_only"]
    labels = {row.name: row.key for row in found.table.rows}
    for method, by_seed in SCORES.items():
        number = found.numbers[labels[method], "kvasir_polyp", "dice"]
        means = [statistics.mean(dice) for dice in by_seed.values()]
        assert number.by_seed == pytest.approx(means)
        assert number.mean == pytest.approx(statistics.mean(means))
        assert number.std == pytest.approx(statistics.stdev(means))
        assert (number.n_cases, number.n_undefined, number.seeds) == (7, 0, [1, 2])
        assert number.ci_low is not None
        assert number.ci_low < number.mean < (number.ci_high or 0)
    best = {m: found.numbers[key, "kvasir_polyp", "dice"].best for m, key in labels.items()}
    second = {m: found.numbers[key, "kvasir_polyp", "dice"].second for m, key in labels.items()}
    assert best == {"decoder_only": False, "lora": False, "dense": True}
    assert second == {"decoder_only": True, "lora": False, "dense": False}
    # A distance is the better the smaller it is.
    assert found.numbers[labels["dense"], "kvasir_polyp", "hd95"].best
    cell = cell_of(found, labels["dense"], "kvasir_polyp", "dice")
    assert (cell.mean, cell.std, cell.mark) == ("71.14", "0.61", "*")


def test_a_run_without_a_metric_leaves_that_metric_alone(fake: ModuleType, tmp_path: Path) -> None:
    (table,) = tables_of(write(fake, tmp_path, SCORES))
    labels = {row.name: row.key for row in table.rows}
    for method, seeds in (("dense", {1}), ("lora", {1, 2})):
        place = labels[method], "kvasir_polyp"
        table.cells[place] = [
            replace(run, values={name: column for name, column in run.values.items() if name != "hd95"})
            if run.seed in seeds
            else run
            for run in table.cells[place]
        ]
    found = compute(table, ("dice", "hd95"), **FEW)
    number = found.numbers[labels["dense"], "kvasir_polyp", "hd95"]
    assert number.seeds == [2]
    assert number.mean == pytest.approx(statistics.mean(250 * (1 - dice) for dice in SCORES["dense"][2]), rel=1e-5)
    assert number.difference is not None
    assert cell_of(found, labels["dense"], "kvasir_polyp", "hd95").seeds == 1
    assert found.numbers[labels["dense"], "kvasir_polyp", "dice"].seeds == [1, 2]
    assert cell_of(found, labels["lora"], "kvasir_polyp", "hd95").mean == "-"
    assert found.notes == [
        "Without hd95, and not in its numbers: LoRA seed 1 on kvasir_polyp, LoRA seed 2 on kvasir_polyp, "
        "Dense seed 1 on kvasir_polyp. Evaluate them anew."
    ]
    assert found.notes[0] in [item.text for item in build([found], [], Facts()) if isinstance(item, Paragraph)]
    assert report_json([found], summary=[], notes=[], problems=[], unfinished=[], written=[])["tables"][0]["notes"] == (
        found.notes
    )


def test_differences_and_holm(fake: ModuleType, tmp_path: Path) -> None:
    """Every sign of seven cases is tried, so that p is exact and SciPy has the same."""
    write(fake, tmp_path, SCORES)
    write(
        fake,
        tmp_path,
        {name: {s: list(np.array(d) * 0.9) for s, d in by.items()} for name, by in SCORES.items()},
        data="isic",
    )
    found = computed(tmp_path)
    expected: dict[tuple[str, str], float] = {}
    for data, factor in (("isic", 0.9), ("kvasir_polyp", 1.0)):
        base = factor * np.mean(list(SCORES["decoder_only"].values()), axis=0)
        for method in ("dense", "lora"):
            gain = factor * np.mean(list(SCORES[method].values()), axis=0) - base
            key = next(row.key for row in found.table.rows if row.name == method)
            number = found.numbers[key, data, "dice"]
            assert number.difference == pytest.approx(gain.mean(), abs=1e-6)
            test = stats.permutation_test((gain,), np.mean, permutation_type="samples", n_resamples=np.inf)
            assert number.p == pytest.approx(test.pvalue)
            expected[method, data] = test.pvalue
    # Holm by its definition: the k-th smallest of m times (m - k + 1), never below one before it.
    ranked = sorted(expected, key=lambda place: expected[place])
    highest, corrected = 0.0, {}
    for place, key in enumerate(ranked):
        highest = max(highest, min(1.0, expected[key] * (len(ranked) - place)))
        corrected[key] = highest
    assert found.tests == {"dice": 4, "hd95": 4}
    for (method, data), value in corrected.items():
        key = next(row.key for row in found.table.rows if row.name == method)
        assert found.numbers[key, data, "dice"].p_holm == pytest.approx(value)
    average = found.average[next(row.key for row in found.table.rows if row.name == "dense"), "dice"]
    means = [statistics.mean(dice) for dice in SCORES["dense"].values()]
    assert average["mean"] == pytest.approx(0.95 * statistics.mean(means))
    assert average["std"] == pytest.approx(0.95 * statistics.stdev(means), abs=1e-6)


def test_equal_as_displayed_is_equally_best(fake: ModuleType, tmp_path: Path) -> None:
    scores = {"dense": {1: [0.8, 0.6]}, "lora": {1: [0.80001, 0.6]}, "shallow": {1: [0.5, 0.6]}}
    found = computed(write(fake, tmp_path, scores))
    ranks = {row.name: cell_of(found, row.key, "kvasir_polyp", "dice") for row in found.table.rows}
    assert [name for name, cell in ranks.items() if cell.best] == ["lora", "dense"]
    assert [name for name, cell in ranks.items() if cell.second] == ["shallow"]
    assert found.lead == {}  # two are first: there is no lead


def test_one_seed_has_no_deviation_and_one_method_no_rank(fake: ModuleType, tmp_path: Path) -> None:
    found = computed(write(fake, tmp_path, {"dense": {1: [0.8, 0.6, 0.7]}}))
    number = found.numbers[found.table.rows[0].key, "kvasir_polyp", "dice"]
    assert (number.std, number.best, number.p) == (None, False, None)
    assert found.reference_rows == [found.table.rows[0]]


def test_values_that_are_missing(fake: ModuleType, tmp_path: Path) -> None:
    nan = float("nan")
    scores = {"dense": {1: [0.8, nan, 0.6, 0.7], 2: [0.6, 0.5, nan, 0.9]}, "lora": {1: [nan] * 4, 2: [nan] * 4}}
    found = computed(write(fake, tmp_path, scores), reference="dense")
    by_name = {row.name: found.numbers[row.key, "kvasir_polyp", "dice"] for row in found.table.rows}
    # A case counts where both seeds have a value: the first and the last.
    assert by_name["dense"].mean == pytest.approx((0.75 + 0.75) / 2)
    assert (by_name["dense"].n_cases, by_name["dense"].n_undefined) == (2, 2)
    assert (by_name["lora"].mean, by_name["lora"].std, by_name["lora"].p) == (None, None, None)
    lora = next(row for row in found.table.rows if row.name == "lora")
    assert cell_of(found, lora.key, "kvasir_polyp", "dice").mean == "-"


def test_a_cell_that_is_not_there(fake: ModuleType, tmp_path: Path) -> None:
    write(fake, tmp_path, {"dense": {1: [0.8, 0.7], 2: [0.7, 0.8]}, "lora": {1: [0.5, 0.6], 2: [0.6, 0.6]}})
    write(fake, tmp_path, {"dense": {1: [0.9, 0.7], 2: [0.9, 0.8]}}, data="isic")
    write(fake, tmp_path, {"shallow": {1: [0.9, 0.75]}}, data="isic")
    found = computed(tmp_path)
    by_name = {row.name: row.key for row in found.table.rows}
    assert cell_of(found, by_name["lora"], "isic", "dice").mean == "-"
    assert cell_of(found, by_name["shallow"], "isic", "dice").seeds == 1
    assert (by_name["lora"], "dice") not in found.average
    assert (by_name["dense"], "dice") in found.average
    assert any(note.startswith("Seeds differ: Shallow on isic (1 instead of 2)") for note in found.table.notes)


def test_other_cases_are_left_out_and_told(fake: ModuleType, tmp_path: Path) -> None:
    write(fake, tmp_path, {"dense": {1: [0.8, 0.7, 0.6]}, "lora": {1: [0.5, 0.6, 0.5]}, "shallow": {1: [0.9, 0.9]}})
    (table,) = tables_of(tmp_path)
    assert [row.name for row in table.rows] == ["lora", "dense"]
    assert "Shallow seed 1 (lacks 1)" in table.notes[0]
    (common,) = tables_of(tmp_path, common=True)
    found = compute(common, ("dice",), **FEW)
    assert {row.name: found.numbers[row.key, "kvasir_polyp", "dice"].mean for row in common.rows} == {
        "lora": pytest.approx(0.55), "dense": pytest.approx(0.75), "shallow": pytest.approx(0.9)
    }  # fmt: skip
    assert "compared on the 2 cases" in common.notes[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [({"unit": "mm"}, "pixel spacing"), ({"groups": {"case_0000": "patient"}}, "group"), ({"empty": 1}, "mask")],
)
def test_the_same_names_of_other_cases(fake: ModuleType, tmp_path: Path, change: dict[str, Any], says: str) -> None:
    write(fake, tmp_path, {"dense": {1: [1.0, 0.7]}, "lora": {1: [1.0, 0.6]}})
    fake.FakeRun(tmp_path / "odd", [1.0, 0.5], method="shallow", **change).write()
    (table,) = tables_of(tmp_path)
    assert f"another {says} of case 'case_0000'" in table.notes[0]


def test_groups_are_resampled_and_empty_masks_counted(fake: ModuleType, tmp_path: Path) -> None:
    groups = {f"case_{number:04}": f"patient{number // 2}" for number in range(8)}
    dice = {"dense": [1.0, 0.0, 0.7, 0.8, 0.6, 0.0, 0.7, 0.8], "decoder_only": [0.0, 0.0, 0.5, 0.5, 0.5, 0.4, 0.5, 0.5]}
    found = computed(write(fake, tmp_path, {name: {1: one} for name, one in dice.items()}, groups=groups, empty=2))
    dense = next(row for row in found.table.rows if row.name == "dense")
    assert found.resampled == {"kvasir_polyp": "group"}
    assert found.n_empty == {"kvasir_polyp": 2}
    assert found.emptiness[dense.key, "kvasir_polyp"] == {"both": 1, "missed": 1, "false_alarm": 1}
    assert found.foreground[dense.key, "kvasir_polyp"]["mean"] == pytest.approx(np.mean(dice["dense"][2:]))
    # Four groups have sixteen signs; four of these are as far out as what was seen.
    assert found.numbers[dense.key, "kvasir_polyp", "dice"].p == pytest.approx(4 / 16)


def test_names_that_are_not_there(fake: ModuleType, tmp_path: Path) -> None:
    (table,) = tables_of(write(fake, tmp_path, {"dense": {1: [0.8, 0.7]}, "lora": {1: [0.5, 0.6]}}))
    with pytest.raises(UserError, match="did you mean 'dense'"):
        check_reference(table.rows, "Dens")
    with pytest.raises(UserError, match="--metric 'dise'"):
        check_metrics(["dise"])
    assert check_metrics(["hd95", "dice", "dice"]) == ("dice", "hd95")
    fake.FakeRun(tmp_path / "wide", [0.8, 0.7], method="dense", settings={"bottleneck_dim": 9}, seed=1).write()
    (table,) = tables_of(tmp_path)
    with pytest.raises(UserError, match="2 rows: name one of them: Dense, Dense bottleneck_dim=9"):
        check_reference(table.rows, "dense")


def test_how_numbers_are_shown() -> None:
    assert displayed("dice", 0.81235) == "81.23"
    assert displayed("hd95", 54.018) == "54.02"


def test_a_reference_per_base_model(fake: ModuleType, tmp_path: Path) -> None:
    runs = {
        "tiny": ("a" * 64, {"decoder_only": 0.5, "dense": 0.6}),
        "big": ("b" * 64, {"decoder_only": 0.7, "dense": 0.9}),
        "bare": ("c" * 64, {"lora": 0.8}),
    }
    for model, (sha256, methods) in runs.items():
        for method, level in methods.items():
            dice = [level, level - 0.01, level + 0.02]
            fake.FakeRun(tmp_path / f"{model}-{method}", dice, method=method, model=model, sha256=sha256).write()
    found = computed(tmp_path)
    number = {(row.model, row.name): found.numbers[row.key, "kvasir_polyp", "dice"] for row in found.table.rows}
    assert number["tiny", "dense"].difference == pytest.approx(0.1)
    assert number["big", "dense"].difference == pytest.approx(0.2)
    for place in (("bare", "lora"), ("tiny", "decoder_only"), ("big", "decoder_only")):
        assert number[place].p is None
    assert found.tests["dice"] == 2
    assert "worse than Decoder only of the same base model" in caption(found)
    assert "what is on a base model without it is not tested" in caption(found)
    told = {(row["model"], row["method"]): row["reference"] for row in table_rows([found])}
    assert told["big", "dense"] == "big: Decoder only"
    assert told["bare", "lora"] == ""
    # What is asked for is the reference of all.
    found = computed(tmp_path, reference="big: Decoder only")
    assert found.tests["dice"] == 4
    assert "worse than big: Decoder only (" in caption(found)


def test_the_caption_says_where_each_seed_has_its_own_part_of_the_cases(fake: ModuleType, tmp_path: Path) -> None:
    for place in ("own", "shared"):
        for seed in (1, 2):
            drawn = seed if place == "own" else None
            run = fake.FakeRun(
                tmp_path / place / str(seed), [0.5, 0.6, 0.7], seed=seed, subset="10%", subset_seed=drawn
            )
            run.write()
        said = "; each seed has its own part of the training cases;" in caption(computed(tmp_path / place))
        assert said == (place == "own")


def test_as_many_permutations_as_comparisons_need(
    fake: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = computed(write(fake, tmp_path, SCORES), permutations=10)
    assert found.permutations == 2 * 20 / 0.05
    assert computed(tmp_path, permutations=5000).permutations == 5000
    assert "no difference can be significant" not in caption(found)
    monkeypatch.setattr(numbers_module, "MAX_PERMUTATIONS", 30)
    assert "with 30 permutations and so many comparisons no" in caption(computed(tmp_path, permutations=10))


def test_with_five_groups_nothing_can_be_significant_and_the_caption_says_so(fake: ModuleType, tmp_path: Path) -> None:
    def found(groups: int) -> TableNumbers:
        of_case = {f"case_{index:04}": f"patient{index % groups}" for index in range(12)}
        for method, dice in (("decoder_only", 0.5), ("dense", 0.8)):
            scores = [dice + 0.01 * index for index in range(12)]
            fake.FakeRun(tmp_path / f"few-{method}", scores, method=method, data="few", groups=of_case).write()
            fake.FakeRun(tmp_path / f"many-{method}", scores, method=method, data="many").write()
        return computed(tmp_path)

    five = found(5)
    assert min(number.p for number in five.numbers.values() if number.p is not None and number.p > 0.01) == 2 / 2**5
    assert "on few no difference can be significant: with fewer than 6 groups" in caption(five)
    six = found(6)
    assert 2 / 2**6 in [number.p for number in six.numbers.values()]
    assert "can be significant" not in caption(six)


def test_averages_are_of_the_seeds_that_all_data_have(fake: ModuleType, tmp_path: Path) -> None:
    write(fake, tmp_path, {"dense": {1: [0.8, 0.6], 2: [0.4, 0.4]}, "lora": {1: [0.1, 0.3], 2: [0.1, 0.5]}})
    write(fake, tmp_path, {"dense": {1: [0.9, 0.7]}, "lora": {1: [0.1, 0.3], 2: [0.1, 0.5]}}, data="isic")
    write(fake, tmp_path, {"shallow": {1: [0.9, 0.7]}, "ia3": {1: [0.5, 0.5], 2: [0.5, 0.6]}})
    write(fake, tmp_path, {"shallow": {2: [0.9, 0.7]}, "ia3": {1: [0.5, 0.5], 2: [0.5, 0.6]}}, data="isic")
    found = computed(tmp_path)
    by_name = {row.name: row.key for row in found.table.rows}
    assert found.average[by_name["dense"], "dice"]["mean"] == pytest.approx((0.7 + 0.8) / 2)
    assert found.average[by_name["dense"], "dice"]["seeds"] == [1]
    assert average_cell(found, by_name["dense"], "dice").seeds == 1
    assert found.average[by_name["lora"], "dice"]["std"] == pytest.approx(statistics.stdev([0.2, 0.3]))
    assert average_cell(found, by_name["lora"], "dice").seeds is None
    assert (by_name["shallow"], "dice") not in found.average
    assert "averages are over the seeds that every data set has" in caption(found)


def test_cases_of_training_and_validation_are_told(fake: ModuleType, tmp_path: Path) -> None:
    for number, val in enumerate((7, 9)):
        fake.FakeRun(tmp_path / f"r{number}", [0.5, 0.6], seed=number).write()
        splits = {"train": ["a"] * 30, "val": ["b"] * val}
        (tmp_path / f"r{number}/data.json").write_text(json.dumps({"path": "/data/kvasir_polyp", "splits": splits}))
    few = " Intervals over cases of kvasir_polyp are too narrow: with fewer than 10 to resample."
    assert sizes(computed(tmp_path)) == f"Cases: kvasir_polyp 2 (training 30, validation 7 to 9).{few}"
