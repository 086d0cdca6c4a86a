"""What the sentences at the top compare, and that they say no more than the numbers."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from vlsm_adapter.study_report.cells import caption
from vlsm_adapter.study_report.document import Bullets, Facts, build
from vlsm_adapter.study_report.figures.draw import _curves, _pareto, _Part
from vlsm_adapter.study_report.numbers import TableNumbers, compute
from vlsm_adapter.study_report.reading import find_results
from vlsm_adapter.study_report.sentences import summary_text
from vlsm_adapter.study_report.small import distinct
from vlsm_adapter.study_report.tables import arrange


def numbers_of(root: Path, *metrics: str) -> list[TableNumbers]:
    tables, _, _ = arrange(distinct(find_results([root]).results)[0])
    return [compute(table, metrics or ("dice",), n_boot=20, permutations=50) for table in tables]


def test_fewer_labels_are_compared_seed_by_seed(fake: ModuleType, tmp_path: Path) -> None:
    """The one seed of a tenth is the weakest of all labels: against their mean it would seem to lose 15 points."""
    for seed, dice in ((1, [0.4, 0.6]), (2, [0.7, 0.9])):
        fake.FakeRun(tmp_path / f"all{seed}", dice, seed=seed).write()
    fake.FakeRun(tmp_path / "few", [0.38, 0.58], seed=1, subset="10%").write()
    (line,) = [line for line in summary_text(numbers_of(tmp_path)) if line.startswith("With 10 % of labels")]
    assert "changes by -2.00 points on average over methods and data sets (1 pair of runs of the same seed" in line
    fake.FakeRun(tmp_path / "few", [0.38, 0.58], seed=9, subset="10%").write()
    assert not [line for line in summary_text(numbers_of(tmp_path)) if line.startswith("With 10 %")]


def test_one_seed_has_no_deviations(fake: ModuleType, tmp_path: Path) -> None:
    def told() -> str:
        numbers = numbers_of(tmp_path)
        return " ".join(
            [
                *summary_text(numbers),
                caption(numbers[0]),
                _pareto(numbers[0], "t").caption,
                _curves(numbers[0], "t", ["a"], _Part("", False, [])).caption,
            ]
        )

    for method, dice in (("decoder_only", [0.4, 0.6]), ("dense", [0.7, 0.9])):
        fake.FakeRun(tmp_path / method, dice, seed=1, method=method).write()
    assert "one seed cannot say" in told()
    for word in ("deviation", "the band", "mean over seeds"):
        assert word not in told()
    fake.FakeRun(tmp_path / "more", [0.8, 0.9], seed=2, method="dense").write()
    for word in ("the deviations over seeds say", "bars are the standard deviation", "the band"):
        assert word in told()


def test_leaking_words_are_compared_seed_by_seed(fake: ModuleType, tmp_path: Path) -> None:
    for seed, dice in ((1, [0.4, 0.6]), (2, [0.7, 0.9]), (3, [0.7, 0.8])):
        fake.FakeRun(tmp_path / f"plain{seed}", dice, seed=seed).write()
    for seed, dice in ((2, [0.8, 0.9]), (3, [0.8, 0.9]), (4, [0.1, 0.1])):
        fake.FakeRun(tmp_path / f"told{seed}", dice, seed=seed, level="p6", train_level="p6", leaks=True).write()
    text = summary_text(numbers_of(tmp_path))[-1]
    assert "+7.50 points of DSC on average (2 pairs of runs of the same seed and data set)" in text


def test_only_data_sets_whose_words_leak_are_said_to_flatter(fake: ModuleType, tmp_path: Path) -> None:
    for data, dice, leaks in (("busi", [0.9, 0.8], True), ("isic", [0.2, 0.3], False)):
        fake.FakeRun(tmp_path / f"told-{data}", dice, data=data, level="p6", train_level="p6", leaks=leaks).write()
    text = summary_text(numbers_of(tmp_path))[-1]
    assert "true masks of busi: what is said of it, and averages with it, flatters" in text
    assert "isic" not in text
    for data in ("busi", "isic"):
        fake.FakeRun(tmp_path / f"plain-{data}", [0.7, 0.8], data=data).write()
    text = summary_text(numbers_of(tmp_path))[-1]
    assert "on busi, where they do, the same methods score +10.00 points of DSC on average (1 pair of runs" in text


def test_no_word_of_dice_where_it_was_not_asked_for(fake: ModuleType, tmp_path: Path) -> None:
    fake.FakeRun(tmp_path / "one", [0.5, 0.6]).write()
    numbers = numbers_of(tmp_path, "hd95")
    assert summary_text(numbers) == []
    assert not [item for item in build(numbers, [], Facts()) if isinstance(item, Bullets)]
