"""Which results share a table, a row and a cell."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from vlsm_adapter.study_report.naming import display_name, fraction_size, percent_or_cases
from vlsm_adapter.study_report.reading import find_results
from vlsm_adapter.study_report.small import distinct
from vlsm_adapter.study_report.tables import Row, Table, arrange


def arranged(root: Path, **options: object) -> tuple[list[Table], list[Row], list[str]]:
    return arrange(distinct(find_results([root]).results)[0], **options)  # type: ignore[arg-type]


def test_a_table_per_way_of_asking_the_main_one_first(fake: ModuleType, tmp_path: Path) -> None:
    protocols = {"published": ("random", "p6", True), "leak_free": ("p1", "p1", False)}
    fake.write_study(
        tmp_path,
        methods=("lora", "decoder_only"),
        data=("isic",),
        seeds=(1,),
        protocols=protocols,
        fractions=("10%", "100%"),
    )
    tables, rows, _ = arranged(tmp_path)
    assert [(t.setting.protocol, t.setting.fraction, bool(t.leaks)) for t in tables] == [
        ("leak_free", "100%", False), ("leak_free", "10%", False), ("published", "100%", True), ("published", "10%", True)
    ]  # fmt: skip
    assert [row.label for row in rows] == ["Zero-shot", "Decoder only", "LoRA"]
    assert all(len(table.rows) == 3 for table in tables)  # zero-shot stands in each
    assert "leaks on isic" in tables[2].notes[0]
    assert "random levels" in tables[2].title


def test_rows_differ_by_what_differs(fake: ModuleType, tmp_path: Path) -> None:
    for number, settings in enumerate(({"parts": "v", "bottleneck_dim": 64}, {"parts": "vlc", "bottleneck_dim": 64})):
        fake.FakeRun(tmp_path / f"s{number}", [0.5, 0.6], settings=settings).write()
    fake.FakeRun(tmp_path / "lr", [0.5, 0.7], method="lora", train={"lr": 0.1}).write()
    fake.FakeRun(tmp_path / "lr2", [0.5, 0.7], method="lora", train={"lr": 0.01}).write()
    _, rows, _ = arranged(tmp_path)
    assert [row.label for row in rows] == ["LoRA lr=0.01", "LoRA lr=0.1", "Dense V", "Dense VLC"]


def test_recipes_may_differ_between_data_sets(fake: ModuleType, tmp_path: Path) -> None:
    fake.FakeRun(tmp_path / "a", [0.5, 0.6], data="a", train={"epochs": 10}).write()
    fake.FakeRun(tmp_path / "b", [0.5, 0.6], data="b", train={"epochs": 20}).write()
    _, rows, _ = arranged(tmp_path)
    assert [row.label for row in rows] == ["Dense"]


def test_models_are_named_where_a_method_has_several(fake: ModuleType, tmp_path: Path) -> None:
    fake.FakeRun(tmp_path / "a", [0.5, 0.6], model="tiny").write()
    fake.FakeRun(tmp_path / "b", [0.5, 0.7], model="CIDAS/clipseg-rd64", sha256="b" * 64).write()
    fake.FakeRun(tmp_path / "c", [0.5, 0.8], model="tiny", sha256="c" * 64).write()
    fake.FakeRun(tmp_path / "d", [0.5, 0.8], model="tiny", method="lora").write()
    _, rows, _ = arranged(tmp_path)
    labels = {row.label for row in rows}
    assert labels == {"tiny (a31336): Dense", "clipseg-rd64: Dense", "tiny (cccccc): Dense", "LoRA"}


def test_other_splits_are_counted_and_shown_on_request(fake: ModuleType, tmp_path: Path) -> None:
    fake.FakeRun(tmp_path / "run", [0.5, 0.6]).write()
    fake.FakeRun(tmp_path / "run", [0.9, 0.9], split="val").write()
    tables, _, notes = arranged(tmp_path)
    assert [table.setting.split for table in tables] == ["test"]
    assert "1 of split val" in notes[0]
    assert [table.setting.split for table in arranged(tmp_path, splits=("val",))[0]] == ["val"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("dense_vlc", "Dense VLC"),
        ("dense_published_vl", "Dense published VL"),
        ("ia3", "(IA)³"),
        ("unet", "U-Net"),
        ("dense2", "dense2"),
        ("my_own", "my_own"),
        ("Ünï_$%", "Ünï_$%"),
    ],
)
def test_names_of_methods(name: str, shown: str) -> None:
    assert display_name(name) == shown


def test_names_of_parts_of_labels() -> None:
    assert percent_or_cases("10%") == "10 % of labels"
    assert percent_or_cases("20 cases") == "20 labelled cases"
    assert percent_or_cases("100%") == "all labels"
    assert fraction_size("10%") < fraction_size("50%") < fraction_size("20 cases")
    assert fraction_size("none") == 0


def test_words_that_tell_of_empty_masks_are_in_the_title(fake: ModuleType, tmp_path: Path) -> None:
    fake.FakeRun(tmp_path / "a", [0.5, 0.6], data="isic").write()
    (table,), _, _ = arranged(tmp_path)
    assert "(leak-free)" in table.title
    fake.FakeRun(tmp_path / "b", [1.0, 0.6, 0.5], data="busi", empty=1).write()
    fake.FakeRun(tmp_path / "c", [1.0, 1.0, 0.5], data="more", empty=2).write()
    (table,), _, _ = arranged(tmp_path)
    assert table.title.startswith("Prompt level p1 (words call 3 masks empty)")
    assert "leak-free" not in table.title
    assert table.reveals == {"busi": 1, "more": 2}
    assert "busi: the words of 1 of 3 cases say that there is nothing to find." in table.notes


def test_rows_of_one_label_are_told_apart_by_what_their_study_calls_them(fake: ModuleType, tmp_path: Path) -> None:
    about = {"data": "a", "protocol": "p", "model": "tiny"}
    for number, name in enumerate(("dense_x+y", "dense-x+y", "decoder_only")):
        fake.FakeRun(tmp_path / f"r{number}", [0.5, 0.6], cell={**about, "method": name}).write()
    fake.FakeRun(tmp_path / "alone", [0.5, 0.7], method="decoder_only").write()
    labels = {row.label for row in arranged(tmp_path)[1]}
    assert labels == {
        "Dense x+y (dense_x+y)",
        "Dense x+y (dense-x+y)",
        "Decoder only (decoder_only)",
        "Decoder only (no study)",
    }
