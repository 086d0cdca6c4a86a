"""``vlsm predict`` as a user runs it: answers in kind, going on after a kill, bad input."""

from __future__ import annotations

import csv
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlsm_adapter import load_model

Run = Callable


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    """An adapter on the small random CLIPSeg."""
    from vlsm_adapter import DenseAdapterConfig, attach, save_adapter

    model = load_model(base_folder)
    attach(model, DenseAdapterConfig(bottleneck_dim=4))
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    save_adapter(model, folder)
    return folder


def pictures(folder: Path, count: int = 4) -> Path:
    generator = np.random.default_rng(2)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(generator.integers(0, 256, (24, 30, 3), np.uint8)).save(folder / f"p{number}.png")
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def test_answers_in_kind(vlsm: Run, adapter: Path, tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    data = pictures(tmp_path / "data", 1)
    values = np.random.default_rng(1).integers(0, 900, (12, 10, 3)).astype(np.int16)
    affine = np.array([[-2.0, 0, 0, 9], [0, -3.0, 0, 8], [0, 0, 4.0, 7], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(values, affine), data / "v.nii.gz")
    pages = [Image.fromarray(np.full((9, 11), grey, np.uint8)) for grey in (10, 200)]
    pages[0].save(data / "t.tif", save_all=True, append_images=pages[1:])
    (data / "broken.png").write_bytes(b"no picture")
    options = ["--prompt", "polyp", "--prompt", "skin lesion", "--window", "400,800", "-o", tmp_path / "out"]
    answer = vlsm("predict", adapter, data, *options)
    assert answer.code == 0, answer.err
    assert "1 input left out" in answer.err
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} >= {
        *(
            f"{name}__{prompt}{ending}"
            for prompt in ("polyp", "skin-lesion")
            for name, ending in (("p0", ".png"), ("t", ".tif"), ("v", ".nii.gz"))
        ),
        "predictions.csv",
        "failures.csv",
    }
    mask = nibabel.load(out / "v__polyp.nii.gz")
    assert mask.shape == (12, 10, 3)
    np.testing.assert_allclose(mask.affine, affine)
    with Image.open(out / "t__polyp.tif") as picture:
        assert (picture.n_frames, picture.size) == (2, (11, 9))
    assert [row["image"] for row in rows_of(out / "failures.csv")] == [str(data / "broken.png")]
    assert {row["kind"] for row in rows_of(out / "predictions.csv")} == {"picture", "pages", "nifti"}
    # All of one form, and one map of competing prompts.
    answer = vlsm(
        "predict", adapter, data / "v.nii.gz", *options[:-1], tmp_path / "png", "--format", "png", "--compete"
    )
    assert answer.code == 0, answer.err
    assert len(list((tmp_path / "png" / "v_labels").glob("*.png"))) == 3


def test_the_same_command_goes_on(vlsm: Run, adapter: Path, tmp_path: Path) -> None:
    data, out = pictures(tmp_path / "data", 3), tmp_path / "out"
    command = ["predict", adapter, data, "--prompt", "polyp", "-o", out]
    assert vlsm(*command).code == 0
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    (out / "p1.png").unlink()  # done anew
    pictures(tmp_path / "new", 1)
    (tmp_path / "new" / "p0.png").rename(data / "p7.png")
    answer = vlsm(*command)
    assert answer.code == 0, answer.err
    assert "2 of 4 are done already" in answer.err
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert {name for name in after if after[name] == before.get(name)} == {"p0.png", "p2.png"}
    assert [row["mask"] for row in rows_of(out / "predictions.csv")] == ["p0.png", "p1.png", "p2.png", "p7.png"]
    # Other options, and a changed input, are noticed before anything is computed.
    answer = vlsm(*command, "--threshold", "0.4")
    assert answer.code == 2
    assert "threshold 0.5, now 0.4" in answer.error
    Image.new("RGB", (30, 24)).save(data / "p2.png")
    answer = vlsm(*command)
    assert answer.code == 2
    assert "p2.png: has changed since" in answer.error
    assert vlsm(*command, "--overwrite").code == 0
    assert vlsm(*command).code == 0


def test_another_adapter_is_noticed(vlsm: Run, adapter: Path, base_folder: Path, tmp_path: Path) -> None:
    from vlsm_adapter import DenseAdapterConfig, attach, save_adapter

    data, out = pictures(tmp_path / "data", 1), tmp_path / "out"
    assert vlsm("predict", adapter, data, "--prompt", "polyp", "-o", out).code == 0
    model = load_model(base_folder)
    attach(model, DenseAdapterConfig(bottleneck_dim=6))
    save_adapter(model, tmp_path / "other")
    answer = vlsm("predict", tmp_path / "other", data, "--prompt", "polyp", "-o", out)
    assert answer.code == 2
    assert "weights" in answer.error


def test_after_a_kill_nothing_is_lost_or_done_twice(adapter: Path, tmp_path: Path, vlsm: Run, start: Callable) -> None:
    data, out = pictures(tmp_path / "data", 40), tmp_path / "out"
    command = ["predict", adapter, data, "--prompt", "polyp", "-o", out, "-q"]
    process = start(*command)
    until = time.monotonic() + 300
    while len(list(out.glob("p*.png"))) < 5 and time.monotonic() < until:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = {path.name: path.stat().st_mtime_ns for path in out.glob("p*.png")}
    assert 5 <= len(there) < 40
    answer = vlsm(*command)
    assert answer.code == 0, answer.err
    assert len(list(out.glob("p*.png"))) == len(rows_of(out / "predictions.csv")) == 40
    anew = [name for name, changed in there.items() if (out / name).stat().st_mtime_ns != changed]
    assert len(anew) <= 1  # the one whose line was not in the journal yet
    assert not list(out.glob(".*.tmp"))
    assert not (out / ".predictions.lock").exists()
    lines = [json.loads(line) for line in (out / ".predictions.jsonl").read_text().splitlines()]
    assert sum("done" in line for line in lines) == 40


def test_all_bad_is_an_error(vlsm: Run, adapter: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.nii.gz", "c.dcm"):
        (tmp_path / name).write_bytes(b"")
    answer = vlsm("predict", adapter, tmp_path / "a.png", "--prompt", "polyp", "-o", tmp_path / "out")
    assert answer.code == 2
    assert "a.png: is empty" in answer.error
    assert not (tmp_path / "out").exists()
    answer = vlsm("predict", adapter, tmp_path, "--prompt", "polyp", "-o", tmp_path / "out")
    assert answer.code == 2
    assert "none of 3 inputs" in answer.error
    assert len(rows_of(tmp_path / "out" / "failures.csv")) == 3
    pictures(tmp_path, 1)  # mended: the same command goes on
    assert vlsm("predict", adapter, tmp_path, "--prompt", "polyp", "-o", tmp_path / "out").code == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--window", "40"], "--window"),
        (["--format", "jpeg"], "--format jpeg"),
        (["--min-size", "-3"], "--min-size"),
        (["--plane", "axel"], "did you mean 'axial'"),
        (["--threshold", "2"], "from 0 to 1"),
        (["--format", "seg"], "p0.png"),
        (["--min-size", "3mm"], "p0.png"),
        (["--workers", "0"], "workers"),
    ],
)
def test_what_cannot_be_asked(vlsm: Run, adapter: Path, tmp_path: Path, options: list[str], says: str) -> None:
    data = pictures(tmp_path / "data", 1)
    answer = vlsm("predict", adapter, data, "--prompt", "polyp", "-o", tmp_path / "out", *options)
    assert answer.code == 2
    assert says in answer.error
    assert len(answer.error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_its_own_outputs_are_no_inputs(
    vlsm: Run, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures(tmp_path / "data", 2))
    for _ in range(2):
        answer = vlsm("predict", adapter, ".", "--prompt", "polyp")
        assert answer.code == 0, answer.err
        assert "2 mask files of 2 inputs" in answer.err


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_ctrl_c_says_that_the_same_command_goes_on(
    vlsm: Run, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: list[str]
) -> None:
    from vlsm_adapter.predict_journal import Journal

    command = ["predict", adapter, pictures(tmp_path / "data", 2), "--prompt", "polyp", "-o", tmp_path / "out"]

    def stopped_after(when: str) -> str:
        as_it_is = getattr(Journal, when)

        def stopping(*arguments: object, **options: object) -> None:
            as_it_is(*arguments, **options)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Journal, when, stopping)
            answer = vlsm(*command, *overwrite)
        assert answer.code == 130, answer.err
        return str(answer.error)

    assert stopped_after("__init__") == "vlsm: error: stopped"  # nothing is there to go on from
    how = " without --overwrite" if overwrite else ""
    says = f"vlsm: error: stopped; the same command{how} goes on: {tmp_path / 'out'} keeps what is done"
    assert stopped_after("finish") == says
    answer = vlsm(*command)
    assert answer.code == 0, answer.err
    assert "1 of 2 are done already" in answer.err
