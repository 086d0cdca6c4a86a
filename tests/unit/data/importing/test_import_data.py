"""What holds for every format: which one is chosen, progress, going on after a stop, and equal results."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlsm_adapter.data.importing import FORMATS, Options, detect_format, import_data
from vlsm_adapter.data.prompts import leaks_in
from vlsm_adapter.data.records import load_records
from vlsm_adapter.errors import ConfigError, DataError, UserError


def pairs(root: Path, count: int = 12) -> Path:
    for number in range(count):
        for folder, value in (("images", number), ("masks", 255)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            pixels = np.zeros((16, 18), np.uint8)
            pixels[: number + 1] = value
            Image.fromarray(pixels).save(root / folder / f"c{number:02d}.png")
    return root


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_formats_are_told_by_the_files(tmp_path: Path) -> None:
    pairs(tmp_path / "pairs")
    (tmp_path / "empty").mkdir()
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco/x.json").write_text('{"images": [{"file_name": "a"}], "annotations": []}')
    (tmp_path / "volumes/imagesTr").mkdir(parents=True)
    (tmp_path / "volumes/imagesTr/a.nii.gz").touch()
    (tmp_path / "t.csv").write_text("image,mask\n")
    table = Options.parse({"classes": "1=liver"})
    assert detect_format(tmp_path / "pairs", Options()) == "folders"
    assert detect_format(tmp_path / "pairs", table) == "multilabel"
    assert detect_format(tmp_path / "coco", Options()) == "coco"
    assert detect_format(tmp_path / "coco/x.json", table) == "coco"
    assert detect_format(tmp_path / "volumes", table) == "nifti"
    assert detect_format(tmp_path / "t.csv", table) == "table"
    with pytest.raises(DataError, match="no known format; known are coco: COCO JSON"):
        detect_format(tmp_path / "empty", Options())
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/cases.CSV").touch()
    with pytest.raises(DataError, match=r"no known format: give the table itself, '.*tables/cases\.CSV'; known are"):
        detect_format(tmp_path / "tables", Options())
    (tmp_path / "tables/cases.xlsx").touch()
    with pytest.raises(DataError, match=r"cases\.xlsx: no known format: save the sheet as CSV"):
        detect_format(tmp_path / "tables/cases.xlsx", Options())
    with pytest.raises(DataError, match="no such file or folder"):
        detect_format(tmp_path / "nothing", Options())
    (tmp_path / "pairs/images/list.csv").touch()
    (tmp_path / "pairs/list.csv").write_text("file_name,x\n")
    with pytest.raises(DataError, match="may be table or folders: choose with --format table"):
        detect_format(tmp_path / "pairs", Options())
    with pytest.raises(ConfigError, match="unknown format 'foldrs': did you mean 'folders'"):
        import_data(tmp_path / "pairs", tmp_path / "out", format="foldrs")


def test_every_format_takes_options_that_exist() -> None:
    known = set(Options.__dataclass_fields__)
    for name in FORMATS:
        assert FORMATS.get(name).takes <= known
        assert FORMATS.get(name).summary
    assert known == set().union(*(FORMATS.get(name).takes for name in FORMATS))


def test_every_option_of_the_command_is_known() -> None:
    import inspect

    from vlsm_adapter import cli_data

    body = inspect.getsource(cli_data.data_import)
    assert set(re.findall(r'^        "(\w+)": \w+,$', body, re.MULTILINE)) == set(Options.__dataclass_fields__)


def test_progress_counts_every_item_once(tmp_path: Path) -> None:
    seen: list[tuple[int, int, int]] = []
    import_data(
        pairs(tmp_path / "data"), tmp_path / "out", options={"prompt": "x"}, progress=lambda *told: seen.append(told)
    )
    assert [items for items, _, _ in seen] == list(range(1, 13))
    assert {total for _, total, _ in seen} == {12}
    assert seen[-1] == (12, 12, 12)


def test_a_stopped_import_goes_on_and_ends_equal(tmp_path: Path) -> None:
    data = pairs(tmp_path / "data", 40)
    options = {"prompt": "x"}
    import_data(data, tmp_path / "whole/out", options=options, jobs=1)

    class Stop(Exception):
        pass

    def stop(items: int, total: int, cases: int) -> None:
        if items == 25:
            raise Stop

    with pytest.raises(Stop):
        import_data(data, tmp_path / "parts/out", options=options, jobs=1, progress=stop)
    assert not (tmp_path / "parts/out/records.jsonl").exists()
    summary = import_data(data, tmp_path / "parts/out", options=options, jobs=3)
    assert 10 <= summary.resumed < 40
    assert content(tmp_path / "parts/out") == content(tmp_path / "whole/out"), "whatever the number of threads"
    again = import_data(data, tmp_path / "parts/out", options=options)
    assert again.resumed == 40


def test_other_material_or_options_are_another_set(tmp_path: Path) -> None:
    data, out = pairs(tmp_path / "data"), tmp_path / "out"
    import_data(data, out, options={"prompt": "x"})
    before = content(out)
    for change in ({"prompt": "y"}, {"prompt": "x", "empty": "drop"}, {"prompt": "x", "spacing": "2"}):
        with pytest.raises(DataError, match="holds another data set"):
            import_data(data, out, options=change)
    Image.new("L", (18, 16), 255).save(data / "masks/c01.png")
    with pytest.raises(DataError, match="holds another data set"):
        import_data(data, out, options={"prompt": "x"})
    assert content(out) == before


def test_the_folder_to_write_is_guarded(tmp_path: Path) -> None:
    data = pairs(tmp_path / "data")
    for inside in (data, data / "images/new"):
        with pytest.raises(UserError, match="lies in the data that is imported"):
            import_data(data, inside, options={"prompt": "x"})
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="holds other files"):
        import_data(data, tmp_path / "full", options={"prompt": "x"})
    assert content(tmp_path / "full") == {"thesis.txt": b"mine"}


def test_the_card_says_how_it_was_made(tmp_path: Path) -> None:
    data = pairs(tmp_path / "data")
    (data / "images/extra.png").write_bytes((data / "images/c00.png").read_bytes())
    out = tmp_path / "out"
    import_data(
        data, out, options={"prompt": "small polyp"}, licence="CC0", citation="Me 2026", name="mine", skip_bad=True
    )
    card, facts = (out / "README.md").read_text(), json.loads((out / "dataset.json").read_text())
    assert "vlsm data import data --out out --prompt 'small polyp' --skip-bad" in card
    assert "CC0" in card
    assert "extra.png: has no mask" in card
    assert (facts["name"], facts["kind"], facts["licence"], facts["cases"]) == ("mine", "import", "CC0", 12)
    assert str(tmp_path) not in json.dumps(facts["origin"])


def test_memory_does_not_grow_with_the_number_of_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Label maps that were written are let go: at most those in work are held at one time."""
    import weakref

    from vlsm_adapter.data.importing import multilabel

    alive: list[Callable[[], object]] = []
    most = 0
    read = multilabel.read_labels

    def counted(path: Path) -> np.ndarray:
        nonlocal most
        labels = read(path)
        alive.append(weakref.ref(labels))
        most = max(most, sum(one() is not None for one in alive))
        return labels

    monkeypatch.setattr(multilabel, "read_labels", counted)
    import_data(pairs(tmp_path / "data", 60), tmp_path / "out", options={"classes": "255=x"}, jobs=1)
    assert len(alive) == 60
    assert most <= 10


@pytest.mark.parametrize("declared", [["view"], []])
@pytest.mark.parametrize("format", ["folders", "table"])
def test_a_manifest_keeps_its_word_on_which_levels_leak(tmp_path: Path, declared: list[str], format: str) -> None:
    root = pairs(tmp_path / "mine", 2)
    words = {"p1": "small polyp", "view": "seen from afar"}
    rows = [
        {
            "image": f"images/c{number:02d}.png",
            "mask": f"masks/c{number:02d}.png",
            "prompts": words,
            "leak_free": declared,
        }
        for number in range(2)
    ]
    (root / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_data(root if format == "folders" else root / "records.jsonl", tmp_path / "out", format=format)
    records, _ = load_records(tmp_path / "out", labelled=True)
    assert [record.leak_free for record in records] == [tuple(declared)] * 2
    assert leaks_in("p1", records)
    assert leaks_in("view", records) == (declared == [])
    # A text of the user's own is not what was declared.
    import_data(root, tmp_path / "other", format="folders", options={"prompt": "polyp"})
    assert not leaks_in("p1", load_records(tmp_path / "other")[0])
    # The same folder with another declaration is another set.
    rows[0]["leak_free"] = ["p1", "view"]
    (root / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="holds another data set"):
        import_data(root if format == "folders" else root / "records.jsonl", tmp_path / "out", format=format)
