"""``vlsm data check`` as a user and a script run it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image


def test_check_reports_and_fails_as_asked(vlsm: Callable[..., Any], phantoms: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    answer = vlsm("data", "check", data)
    assert answer.code == 0, answer.out + answer.err
    assert answer.out.startswith("data: 10 cases (train 6, val 2, test 2)")
    assert answer.out.splitlines()[-1].startswith("0 errors")

    # A test image turns up in train: the same pixels under another name.
    entries = {split: json.loads((data / "anns" / f"{split}.json").read_text()) for split in ("train", "test")}
    stolen = dict(entries["test"][0], img_name="stolen.png", mask_name="stolen.png")
    for kind, key in (("images", "img_name"), ("masks", "mask_name")):
        shutil.copy(data / kind / entries["test"][0][key], data / kind / "stolen.png")
    (data / "anns" / "train.json").write_text(json.dumps([*entries["train"], stolen]))
    out = tmp_path / "audit"
    answer = vlsm("data", "check", data, "--out", out)
    assert answer.code == 3
    assert answer.error == ""
    assert "error    duplicate-across-splits: 1 picture" in answer.out
    assert "stolen" in answer.out
    assert (out / "index.html").is_file()
    assert (out / "contact-sheet.png").is_file()
    assert vlsm("data", "check", data, "--fail-on", "never").code == 0

    answer = vlsm("data", "check", data, "--json", "--quiet")
    assert answer.code == 3
    assert answer.err == ""
    assert json.loads(answer.out) == json.loads((out / "findings.json").read_text())


def test_check_of_what_is_no_data(vlsm: Callable[..., Any], tmp_path: Path) -> None:
    answer = vlsm("data", "check", tmp_path / "missing")
    assert (answer.code, answer.out) == (2, "")
    assert len(answer.error.splitlines()) == 1
    answer = vlsm("data", "check", tmp_path, "--fail-on", "notes")
    assert answer.code == 2
    assert "allowed: error, never, warning" in answer.error


def test_copies_are_kept_in_one_split(vlsm: Callable[..., Any], phantoms: Path, tmp_path: Path) -> None:
    data, groups = tmp_path / "data", tmp_path / "groups.json"
    copied: list[set[str]] = []
    for kind in ("images", "masks"):
        (data / kind).mkdir(parents=True)
        for number, file in enumerate(sorted((phantoms / kind).iterdir())):
            shutil.copy(file, data / kind / f"{number}.png")
            if number < 4:
                with Image.open(file) as picture:
                    made = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if number % 2 else picture.copy()
                made.save(data / kind / f"{number}_copy.png")
                copied += [{str(number), f"{number}_copy"}] if kind == "images" else []
    options = (data, "--prompt", "polyp", "--groups", groups)
    answer = vlsm("data", "check", *options, "--fail-on", "never")
    assert answer.code == 0, answer.err
    assert f"groups: {groups}, 4 of copies" in answer.err
    assert [set(names) for names in json.loads(groups.read_text())["groups"]] == copied

    for seed in range(3):
        out = tmp_path / f"splits-{seed}"
        answer = vlsm("data", "split", *options, "--out", out, "--seed", seed, "--folds", 3)
        assert answer.code == 0, answer.err
        for file in out.iterdir():
            written = json.loads(file.read_text())
            for pair in copied:
                assert sum(pair <= set(written[split]) for split in ("train", "val", "test")) == 1
    (data / "notes.json").write_text("{}")
    answer = vlsm("data", "check", data, "--prompt", "polyp", "--groups", data / "notes.json")
    assert (answer.code, "not a group file" in answer.error) == (2, True)
    assert (data / "notes.json").read_text() == "{}"
    answer = vlsm("data", "split", phantoms, "--groups", groups, "--out", tmp_path / "other")
    assert (answer.code, "does not have" in answer.error) == (2, True)
