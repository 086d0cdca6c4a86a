"""``vlsm data list | info | prepare`` as a user runs them."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from vlsm_adapter.data.sources import SOURCES


def test_list_and_info(vlsm: Callable) -> None:  # type: ignore[type-arg]
    answer = vlsm("data", "list")
    assert answer.code == 0
    assert [line.split()[0] for line in answer.out.splitlines()] == SOURCES.names()
    answer = vlsm("data", "info", "busi")
    assert answer.code == 0
    assert "doi:10.1016/j.dib.2019.104863" in answer.out
    assert "780" in answer.out
    answer = vlsm("data", "info", "bussi")
    assert answer.code == 2
    assert "did you mean 'busi'" in answer.error


def test_from_archive_to_a_set_that_other_commands_read(
    vlsm: Callable,  # type: ignore[type-arg]
    miniatures: ModuleType,
    tmp_path: Path,
) -> None:
    made = miniatures.build("busi", tmp_path)
    archive = miniatures.pack(made.raw, tmp_path / "Dataset_BUSI_with_GT.zip")
    out = tmp_path / "busi"
    answer = vlsm("data", "prepare", "busi", "--raw", archive, "--out", out)
    assert answer.code == 0
    assert "warning: busi: 6 cases found, 780 expected" in answer.err
    assert "6 cases on 6 images" in answer.err
    assert "2 empty masks" in answer.err
    assert f"next: vlsm data show {out}" in answer.err
    answer = vlsm("data", "show", out)
    assert answer.code == 0
    assert "6 cases" in answer.out
    facts = json.loads((out / "dataset.json").read_text())
    assert facts["command"] == "vlsm data prepare busi --raw Dataset_BUSI_with_GT.zip --out busi"
    assert str(tmp_path) not in (out / "README.md").read_text() + (out / "dataset.json").read_text()

    again = vlsm("data", "prepare", "busi", "--raw", archive, "--out", out)
    assert again.code == 0
    assert "6 of them by an earlier call" in again.err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "nothing"}, "unknown data set 'nothing'"),
        ({"--raw": "nowhere.zip"}, "no such file or folder"),
        ({"--variant": "both"}, "has none"),
        ({"--annotations": "."}, "holds no annotations of dfu"),
        ({"name": "busi"}, "not BUSI as its owners ship it: looked for benign/"),
    ],
)
def test_mistakes_are_one_line(vlsm: Callable, miniatures: ModuleType, tmp_path: Path, change: dict, said: str) -> None:  # type: ignore[type-arg]
    made = miniatures.build("dfu", tmp_path)
    options = {"--raw": made.raw, "--out": tmp_path / "out", **{k: v for k, v in change.items() if k != "name"}}
    if options.get("--annotations") == ".":
        options["--annotations"] = tmp_path
    answer = vlsm("data", "prepare", change.get("name", "dfu"), *(part for pair in options.items() for part in pair))
    assert answer.code == 2
    assert said in answer.error
    assert len(answer.error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_skip_bad_lists_what_is_left_out(vlsm: Callable, miniatures: ModuleType, tmp_path: Path) -> None:  # type: ignore[type-arg]
    made = miniatures.build("dfu", tmp_path)
    (made.raw / "DFUC2022_train_images" / "100002.jpg").write_bytes(b"\xff\xd8\xff")
    command = ("data", "prepare", "dfu", "--raw", made.raw, "--out", tmp_path / "out")
    answer = vlsm(*command)
    assert answer.code == 2
    assert "100002.jpg" in answer.error
    assert "--skip-bad" in answer.error
    answer = vlsm(*command, "--skip-bad")
    assert answer.code == 0
    assert "warning: left out: " in answer.err
    assert "1 left out as bad" in answer.err


def test_ctrl_c_can_be_gone_on_from(vlsm: Callable, start: Callable, miniatures: ModuleType, tmp_path: Path) -> None:
    raw = tmp_path / "Kvasir-SEG"
    mask = miniatures.blob(0, (900, 1200))
    image = miniatures.picture(0, mask)
    miniatures.save(raw / "images" / "0.jpg", image)
    miniatures.save(raw / "masks" / "0.jpg", mask)
    for number in range(1, 80):
        for part in ("images", "masks"):
            (raw / part / f"{number}.jpg").write_bytes((raw / part / "0.jpg").read_bytes())
    out = tmp_path / "out"
    command = ["data", "prepare", "kvasir_polyp", "--raw", raw, "--out", out]
    process = start(*command, "--jobs", "1")
    journal = out / "records.jsonl.partial"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not journal.is_file() or len(journal.read_text().splitlines()) < 5):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "the same command goes on from here" in err
    assert "Traceback" not in err
    assert not (out / "records.jsonl").exists()
    done = vlsm(*command)
    assert done.code == 0, done.err
    assert "80 cases on 80 images" in done.err
    assert "of them by an earlier call" in done.err
