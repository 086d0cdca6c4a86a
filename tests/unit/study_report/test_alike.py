"""Seeds are averaged only where they were trained alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from vlsm_adapter.study_report.alike import trained_alike
from vlsm_adapter.study_report.reading import find_results
from vlsm_adapter.study_report.results import Result
from vlsm_adapter.study_report.write import write_study_report

Made = Callable[..., Result]


@pytest.fixture
def made(fake: ModuleType, tmp_path: Path) -> Made:
    """One result of a study, with changes."""
    cell = {"data": "polyps", "protocol": "p", "model": "tiny", "method": "dense_vlc"}
    fake.FakeRun(tmp_path / "run", [0.5, 0.6], cell=cell, settings={"parts": "vlc", "bottleneck_dim": 64}).write()
    (result,) = find_results([tmp_path]).results

    def changed(seed: int, *, recipe: dict[str, object] | None = None, **changes: object) -> Result:
        whole = {**result.recipe, **(recipe or {})}
        return replace(result, seed=seed, source=f"s{seed}", recipe=whole, **changes)  # type: ignore[arg-type]

    return changed


def seeds(results: list[Result]) -> list[int | None]:
    return [result.seed for result in results]


def test_the_majority_stays_and_the_difference_is_told(made: Made) -> None:
    results = [made(41, recipe={"train.lr": 0.1}), made(42), made(43)]
    kept, left_out = trained_alike(results)
    assert seeds(kept) == [42, 43]
    ((place, reason),) = left_out
    assert place == "s41"
    assert "polyps, dense_vlc" in reason
    assert "than the 2 runs shown: seed 41: train.lr 0.1, the others 0.001." in reason
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": "shallow"}, "method shallow, the others dense"),
        ({"settings": {"parts": "vlc", "bottleneck_dim": 7}}, "bottleneck_dim 7, the others 64"),
        ({"train_level": "p6"}, "training level p6, the others p1"),
        ({"recipe": {"train.epochs": 999}}, "train.epochs 999, the others 30"),
    ],
)
def test_all_of_a_training_must_be_equal(made: Made, changes: dict[str, object], says: str) -> None:
    kept, left_out = trained_alike([made(1), made(2), made(3, **changes)])
    assert seeds(kept) == [1, 2]
    assert says in left_out[0][1]


def test_of_equally_many_the_lowest_seed_stays(made: Made) -> None:
    kept, left_out = trained_alike([made(42), made(41, recipe={"train.lr": 0.1})])
    assert seeds(kept) == [41]
    assert "train.lr 0.001, seed 41 0.1" in left_out[0][1]


def test_what_one_run_does_not_say_is_no_difference(made: Made) -> None:
    newer = [made(seed, recipe={"train.new": 1}) for seed in (1, 2)]
    assert seeds(trained_alike([*newer, made(3)])[0]) == [1, 2, 3]
    # Nor does it join two that differ: it goes with the more.
    kept, _ = trained_alike([made(0), made(1, recipe={"train.new": 0}), *newer[1:], made(3, recipe={"train.new": 1})])
    assert seeds(kept) == [0, 2, 3]


def test_what_an_older_run_could_not_say_is_what_it_did(made: Made) -> None:
    rare = made(3, recipe={"train.validate_every": 5})
    kept, left_out = trained_alike([made(1), made(2), rare])
    assert seeds(kept) == [1, 2]
    assert "seed 3: train.validate_every 5, the others 1." in left_out[0][1]
    assert seeds(trained_alike([made(1), made(2, recipe={"train.validate_every": 1})])[0]) == [1, 2]


def test_subsets_of_each_seed_are_not_averaged_with_one_for_all(made: Made) -> None:
    own = [made(seed, recipe={"data.subset_seed": "train.seed"}) for seed in (1, 2)]
    kept, left_out = trained_alike([*own, made(3)])
    assert seeds(kept) == [1, 2]
    assert "seed 3: data.subset_seed data.split_seed, the others train.seed." in left_out[0][1]


def test_how_it_was_computed_is_no_difference(made: Made) -> None:
    odd = made(3, recipe={"train.checkpointing": True, "train.workers": 8, "train.lr": 1e-3})
    assert trained_alike([made(1), made(2), odd]) == ([made(1), made(2), odd], [])


def test_what_auto_became_is_a_difference_where_it_is_known(made: Made) -> None:
    used = {"bf16": [1, 2], "32": [3], "unknown": [4]}
    names = {"bf16": "bf16-mixed", "32": "32-true", "unknown": "auto"}
    results = [made(seed, recipe={"train.precision": names[kind]}) for kind, seeds in used.items() for seed in seeds]
    kept, left_out = trained_alike(results)
    assert seeds(kept) == [1, 2, 4]  # an older file says "auto" alone
    assert "seed 3: train.precision 32-true, the others bf16-mixed" in left_out[0][1]


def test_the_report_names_seeds_of_another_machine(
    fake: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlsm_adapter.study_report.figures.draw.drawn", lambda *_: iter(()))
    study = fake.write_study(tmp_path / "study", methods=("dense_v",), data=("isic",), seeds=(41, 42, 43))
    for config in study.glob("runs/*/*/*/*/*/s*/config.yaml"):
        config.write_text(config.read_text().replace("lr: 0.001", "lr: 0.001\n  precision: auto"))
        used = "32-true" if config.parent.name == "s42" else "bf16-mixed"
        (config.parent / "environment.json").write_text(json.dumps({"device": "cpu", "precision": used}))
    small = tmp_path / "small"
    report = write_study_report([study], small=small, n_boot=20)
    (line,) = [note for note in report.notes if note.startswith("left out")]
    assert "seed 42: train.precision 32-true, the others bf16-mixed" in line
    again = write_study_report([small], out=tmp_path / "again", n_boot=20)
    assert any("train.precision 32-true, the others bf16-mixed" in note for note in again.notes)


def test_other_cells_and_runs_without_a_study_are_not_compared(made: Made) -> None:
    other = made(2, recipe={"train.lr": 0.1})
    for changes in ({"data": "skin"}, {"fraction": "10%"}, {"protocol": "q"}, {"name": "wide"}):
        assert trained_alike([made(1), replace(other, **changes)])[1] == []  # type: ignore[arg-type]
    plain = [replace(one, name="") for one in (made(1), other)]
    assert trained_alike(plain) == (plain, [])


def test_the_report_and_the_command_name_them(
    fake: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlsm_adapter.study_report.figures.draw.drawn", lambda *_: iter(()))
    study = fake.write_study(tmp_path / "study", methods=("dense_v",), data=("isic",), seeds=(41, 42, 43))
    config = next(study.glob("runs/*/*/*/*/*/s41/config.yaml"))
    config.write_text(config.read_text().replace("lr: 0.001", "lr: 0.1"))
    report = write_study_report([study], n_boot=20)
    (line,) = [note for note in report.notes if note.startswith("left out")]
    assert "seed 41: train.lr 0.1, the others 0.001" in line
    text = (report.folder / "report.md").read_text()
    assert "train.lr 0.1, the others 0.001" in text.split("## Left out")[1]
    rows = (report.folder / "table.csv").read_text()
    assert ",42 43," in rows
    assert "41" not in [field for row in rows.splitlines() for field in row.split(",")]
