"""The writer of prepared data sets: resumable, atomic, each image once, bad cases told in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlsm_adapter.data.images import read_image, read_mask
from vlsm_adapter.data.prepared import PARTIAL, About, RawCase, Summary, write_prepared
from vlsm_adapter.data.prepared import files as prepared_files
from vlsm_adapter.data.records import load_records
from vlsm_adapter.errors import DataError, UserError

ABOUT = About("mine", title="My set", licence="CC0", citation="Me 2020", homepage="https://x.org/", origin={"files": 3})
SIZE = (20, 30)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(random.integers(0, 255, (*SIZE, 3), np.uint8)).save(folder / f"{number:02d}.jpg")
    return folder


def square(number: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[2 : 4 + number, 3:9] = number > 0
    return mask


def cases(raw: Path, count: int = 12, **changes: object) -> Iterator[RawCase]:
    for number in range(count):
        image = raw / f"{number:02d}.jpg"
        values: dict = {
            "case_id": image.stem,
            "image": image,
            "mask": lambda n=number: square(n),
            "prompts": {"p1": ("polyp",)},
        }
        yield RawCase(**{**values, **changes})


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_what_is_written(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = write_prepared(
        cases(
            raw,
            split="train",
            group="g",
            spacing=(0.5, 0.25),
            attributes={"class": "polyp", "age": 5, "bad": float("nan")},
        ),
        out,
        about=ABOUT,
        expected=12,
    )
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "dataset.json",
        "images",
        "masks",
        "records.jsonl",
    ]
    assert (summary.cases, summary.images, summary.groups, summary.empty_masks) == (12, 12, 1, 1)
    assert (summary.splits, summary.classes, summary.warnings) == ({"train": 12}, {"polyp": 12}, ())
    row = rows_of(out)[3]
    assert row == {
        "case_id": "03",
        "image": "images/03.jpg",
        "mask": "masks/03.png",
        "prompts": {"p0": "", "p1": "polyp"},
        "split": "train",
        "group": "g",
        "spacing": [0.5, 0.25],
        "attributes": {"class": "polyp", "age": 5},
    }
    assert (out / row["image"]).read_bytes() == (raw / "03.jpg").read_bytes(), "byte for byte"
    with Image.open(out / row["mask"]) as mask:
        assert (mask.mode, mask.format) == ("L", "PNG")
        assert set(np.unique(mask)) == {0, 255}
    assert (read_mask(out / row["mask"]) == square(3)).all()
    records, left_out = load_records(out)
    assert [record.spacing for record in records] == [(0.5, 0.25)] * 12
    assert left_out == []
    facts = json.loads((out / "dataset.json").read_text())
    assert (facts["licence"], facts["cases"], facts["origin"]) == ("CC0", 12, {"files": 3})
    card = (out / "README.md").read_text()
    assert "CC0" in card
    assert "Me 2020" in card


def test_equal_material_gives_equal_files(raw: Path, tmp_path: Path) -> None:
    for name, jobs in (("a", 1), ("b", 4)):
        write_prepared(cases(raw), tmp_path / name, about=ABOUT, jobs=jobs)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_count_that_differs_is_a_warning_with_both_numbers(raw: Path, tmp_path: Path) -> None:
    summary = write_prepared(cases(raw), tmp_path / "out", about=ABOUT, expected=1000)
    assert summary.warnings == ("mine: 12 cases found, 1000 expected: part of the set, or another release?",)
    assert summary.warnings[0] in (tmp_path / "out" / "README.md").read_text()


def test_splits_for_some_cases_only_are_refused(raw: Path, tmp_path: Path) -> None:
    def some() -> Iterator[RawCase]:
        for number, case in enumerate(cases(raw, split="train")):
            yield case if number != 5 else replace(case, split=None)

    with pytest.raises(DataError, match=r"case 05 has no split, others have one: give a split to all or to none"):
        write_prepared(some(), tmp_path / "out", about=ABOUT)
    assert not (tmp_path / "out" / "records.jsonl").exists()


def test_divided_groups_are_a_warning(raw: Path, tmp_path: Path) -> None:
    def divided() -> Iterator[RawCase]:
        for number, case in enumerate(cases(raw)):
            yield replace(case, group=f"g{number // 2}", split="test" if number in (3, 4, 5) else "train")

    (warning,) = write_prepared(divided(), tmp_path / "out", about=ABOUT).warnings
    assert "1 group(s) stand in more than one split" in warning
    assert "g1" in warning


def test_one_group_of_all_images_is_a_warning(raw: Path, tmp_path: Path) -> None:
    """As too wide a --group-by makes it: nothing of such a set can be kept for testing."""
    one = [replace(case, group="pat", split=None) for case in cases(raw)]
    (warning,) = write_prepared(iter(one), tmp_path / "one", about=ABOUT).warnings
    assert warning.endswith("images are one group, 'pat': no split can divide them")
    two = [replace(case, group=f"pat{number % 2}") for number, case in enumerate(one)]
    assert not write_prepared(iter(two), tmp_path / "two", about=ABOUT).warnings


def test_warnings_may_grow_while_cases_are_made(raw: Path, tmp_path: Path) -> None:
    said: list[str] = []

    def telling() -> Iterator[RawCase]:
        yield from cases(raw, 2)
        said.append("three masks belong to no image")

    assert write_prepared(telling(), tmp_path / "out", about=ABOUT, warnings=said).warnings == tuple(said)


def test_pixels_are_written_as_png(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    kinds = {
        "grey": random.integers(0, 255, SIZE, np.uint8),
        "colour": random.integers(0, 255, (*SIZE, 3), np.uint8),
        "deep": random.integers(0, 60000, SIZE, np.uint16),
    }
    made = (RawCase(name, lambda p=pixels: p, lambda: square(1), {"p1": ("x",)}) for name, pixels in kinds.items())
    write_prepared(made, tmp_path / "out", about=ABOUT)
    for name, pixels in kinds.items():
        with Image.open(tmp_path / "out" / "images" / f"{name}.png") as picture:
            assert (np.asarray(picture) == pixels).all()


@pytest.mark.parametrize(
    "pixels", [np.zeros(SIZE), np.zeros((4, 5, 2), np.uint8), np.zeros((0, 5), np.uint8), np.zeros(3, np.uint8)]
)
def test_pixels_of_no_image_are_a_bad_case(tmp_path: Path, pixels: np.ndarray) -> None:
    with pytest.raises(DataError, match="needed: uint8"):
        write_prepared([RawCase("a", lambda: pixels, lambda: square(1), {"p1": ("x",)})], tmp_path / "out", about=ABOUT)


def test_an_image_of_several_cases_is_stored_once(raw: Path, tmp_path: Path) -> None:
    made = 0
    lock = threading.Lock()

    def pixels() -> np.ndarray:
        nonlocal made
        with lock:
            made += 1
        time.sleep(0.02)
        return np.zeros(SIZE, np.uint8)

    def several() -> Iterator[RawCase]:
        for number in range(6):
            yield RawCase(f"shared_{number}", raw / "00.jpg", lambda: square(1), {"p1": ("x",)})
            yield RawCase(f"scan_{number}", pixels, lambda: square(2), {"p1": ("x",)}, image_id="scan")

    summary = write_prepared(several(), tmp_path / "out", about=ABOUT, jobs=4)
    assert (summary.cases, summary.images, made) == (12, 2, 1)
    assert sorted(path.name for path in (tmp_path / "out" / "images").iterdir()) == ["scan.png", "shared_0.jpg"]


def test_names_that_differ_in_case_alone_do_not_meet(raw: Path, tmp_path: Path) -> None:
    made = [
        RawCase(name, raw / "00.jpg", lambda n=n: square(n), {"p1": ("x",)}, image_id=name)
        for n, name in enumerate("aA")
    ]
    write_prepared(made, tmp_path / "out", about=ABOUT)
    names = [path.name.casefold() for path in (tmp_path / "out" / "masks").iterdir()]
    assert len(set(names)) == 2
    assert [read_mask(tmp_path / "out" / row["mask"]).any() for row in rows_of(tmp_path / "out")] == [False, True]


def bad(raw: Path, kind: str) -> RawCase:
    good = next(cases(raw, 1))
    files = {"empty": b"", "text": b"hello", "cut": (raw / "01.jpg").read_bytes()[:300]}
    if kind in files:
        path = raw / f"{kind}.jpg"
        path.write_bytes(files[kind])
        return RawCase("bad", path, good.mask, good.prompts)

    def unreadable() -> np.ndarray:
        raise OSError(5, "Input/output error")

    masks: dict[str, Callable[[], np.ndarray]] = {
        "size": lambda: np.zeros((30, 20), bool),
        "kind": lambda: np.zeros(SIZE, np.uint8),
        "dims": lambda: np.zeros((*SIZE, 3), bool),
        "disk": unreadable,
    }
    if kind in masks:
        return RawCase("bad", raw / "02.jpg", masks[kind], good.prompts)
    changes = {
        "missing": {"image": raw / "nowhere.jpg"},
        "ending": {"image": raw / "x.txt"},
        "id": {"case_id": "../up"},
        "twice": {"case_id": "00"},
        "words": {"prompts": {"p0": ("",)}},
        "blank": {"prompts": {"p1": (" ",)}},
    }[kind]
    values: dict = {"case_id": "bad", "image": raw / "02.jpg", "mask": good.mask, "prompts": good.prompts, **changes}
    return RawCase(**values)


@pytest.mark.parametrize(
    "kind",
    ["empty", "text", "cut", "size", "kind", "dims", "disk", "missing", "ending", "id", "twice", "words", "blank"],
)
@pytest.mark.parametrize("jobs", [1, 3])
def test_a_bad_case_stops_in_one_line_or_is_left_out(raw: Path, tmp_path: Path, kind: str, jobs: int) -> None:
    def mixed() -> Iterator[RawCase]:
        yield from cases(raw, 2)
        yield bad(raw, kind)
        yield from list(cases(raw, 5))[3:]

    out = tmp_path / "out"
    with pytest.raises(DataError) as caught:
        write_prepared(mixed(), out, about=ABOUT, jobs=jobs)
    assert "\n" not in str(caught.value)
    assert ".tmp" not in str(caught.value), "the message names the user's file, not ours"
    assert "--skip-bad" in str(caught.value)
    assert not (out / "records.jsonl").exists()
    with pytest.raises(DataError, match="was stopped"):
        load_records(out, prompt="polyp")

    summary = write_prepared(mixed(), out, about=ABOUT, jobs=jobs, skip_bad=True)
    assert (summary.cases, len(summary.skipped)) == (4, 1)
    assert [row["case_id"] for row in rows_of(out)] == ["00", "01", "03", "04"]
    assert len(list((out / "images").iterdir())) == len(list((out / "masks").iterdir())) == 4
    assert summary.skipped[0].reason in (out / "README.md").read_text()


def test_no_case_at_all(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no case was found"):
        write_prepared([], tmp_path / "out", about=ABOUT)
    with pytest.raises(DataError, match="all 1 are bad, the first"):
        write_prepared([bad(raw, "size")], tmp_path / "out2", about=ABOUT, skip_bad=True)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_stopped_call_goes_on(raw: Path, tmp_path: Path, jobs: int) -> None:
    out = tmp_path / "out"

    def stopped() -> Iterator[RawCase]:
        yield from cases(raw, 10)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_prepared(stopped(), out, about=ABOUT, jobs=jobs)
    done = [json.loads(line)["case_id"] for line in (out / PARTIAL).read_text().splitlines()[1:]]
    assert not list(out.rglob("*.tmp"))
    written: list[str] = []
    touched = {path: path.stat().st_mtime_ns for path in out.rglob("*.*") if path.suffix in (".jpg", ".png")}

    def watched() -> Iterator[RawCase]:
        for case in cases(raw):
            yield RawCase(case.case_id, case.image, lambda c=case: written.append(c.case_id) or c.mask(), case.prompts)  # type: ignore[func-returns-value]

    summary = write_prepared(watched(), out, about=ABOUT, jobs=jobs)
    assert summary.resumed == len(done)
    assert sorted(written) == [f"{n:02d}" for n in range(12) if f"{n:02d}" not in done]
    finished = {path for path in touched if path.stem in done}
    assert all(path.stat().st_mtime_ns == touched[path] for path in finished), "finished files are left alone"
    write_prepared(cases(raw), tmp_path / "whole", about=ABOUT)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_torn_journal_and_lost_files_are_made_good(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def stopped() -> Iterator[RawCase]:
        yield from cases(raw, 12)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_prepared(stopped(), out, about=ABOUT)
    lines = (out / PARTIAL).read_text().splitlines()
    assert len(lines) > 5
    (out / PARTIAL).write_text("\n".join(lines)[:-20])  # a kill in the middle of a line
    (out / "masks" / "00.png").unlink()
    (out / "images" / "01.jpg").write_bytes(b"")  # what a power cut may leave
    (out / "images" / ".02.jpg.77.tmp").write_bytes(b"half")
    write_prepared(cases(raw), out, about=ABOUT)
    write_prepared(cases(raw), tmp_path / "whole", about=ABOUT)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_kill_loses_nothing(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = f"""
import sys, time
from pathlib import Path
import numpy as np
from vlsm_adapter.data.prepared import About, RawCase, write_prepared
def slow(n):
    time.sleep(0.05); m = np.zeros({SIZE}, bool); m[2:4 + n, 3:9] = n > 0; return m
cases = (RawCase(f"{{n:02d}}", Path(r"{raw}") / f"{{n:02d}}.jpg", lambda n=n: slow(n), {{"p1": ("polyp",)}}) for n in range(12))
about = About("mine", title="My set", licence="CC0", citation="Me 2020", homepage="https://x.org/", origin={{"files": 3}})
write_prepared(cases, r"{out}", about=about)
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    journal = out / PARTIAL
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not journal.is_file() or len(journal.read_text().splitlines()) < 4):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "records.jsonl").exists()
    summary = write_prepared(cases(raw), out, about=ABOUT)
    assert summary.resumed >= 2
    write_prepared(cases(raw), tmp_path / "whole", about=ABOUT)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_complete_set_is_left_as_it_is(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = write_prepared(cases(raw), out, about=ABOUT, expected=12)

    def never() -> Iterator[RawCase]:
        raise AssertionError("asked for a case")
        yield

    again = write_prepared(never(), out, about=ABOUT, expected=12)
    assert again.resumed == again.cases == first.cases
    assert str(again) == str(first)


def test_folders_of_others_are_refused(raw: Path, tmp_path: Path) -> None:
    other = About("mine", origin={"files": 4})
    out = tmp_path / "out"
    write_prepared(cases(raw), out, about=ABOUT)
    with pytest.raises(DataError, match="holds another data set"):
        write_prepared(cases(raw), out, about=other)

    def stopped() -> Iterator[RawCase]:
        yield from cases(raw, 6)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_prepared(stopped(), tmp_path / "half", about=ABOUT)
    with pytest.raises(DataError, match="unfinished set of other material"):
        write_prepared(cases(raw), tmp_path / "half", about=other)

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds other files \('thesis.txt'\)"):
        write_prepared(cases(raw), foreign, about=ABOUT)
    assert contents(foreign) == {"thesis.txt": b"mine"}
    with pytest.raises(DataError, match="is a file"):
        write_prepared(cases(raw), foreign / "thesis.txt", about=ABOUT)


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_full_disk_stops_and_is_no_bad_case(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skip_bad: bool
) -> None:
    out = tmp_path / "out"
    plain = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name.startswith(".07"):
            plain(path, content[:10])
            raise OSError(28, "No space left on device")
        return plain(path, content)

    monkeypatch.setattr(prepared_files.Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"No space left on device.*the same command goes on") as caught:
        write_prepared(cases(raw), out, about=ABOUT, skip_bad=skip_bad)
    assert not isinstance(caught.value, DataError)
    assert not list(out.rglob("*.tmp"))
    monkeypatch.undo()
    assert write_prepared(cases(raw), out, about=ABOUT).resumed == 7


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whose writes can be refused")
def test_a_folder_that_may_not_be_written(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written"):
        write_prepared(cases(raw), tmp_path / "locked" / "out", about=ABOUT)


def test_progress_counts_good_and_bad(raw: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    mixed = [*cases(raw, 3), bad(raw, "size"), *list(cases(raw, 6))[3:]]
    write_prepared(mixed, tmp_path / "out", about=ABOUT, skip_bad=True, progress=seen.append)
    assert seen == list(range(1, 8))


def test_an_image_turned_by_exif_takes_an_upright_mask(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    made = [RawCase("a", tmp_path / "a.jpg", lambda: np.ones((30, 20), bool), {"p1": ("x",)})]
    write_prepared(made, tmp_path / "out", about=ABOUT)
    assert read_image(tmp_path / "out" / "images" / "a.jpg").shape[:2] == (30, 20)
    assert load_records(tmp_path / "out")[1] == []


def test_memory_is_that_of_a_few_cases(raw: Path, tmp_path: Path) -> None:
    made, worst, written = 0, 0, 0

    def counted() -> Iterator[RawCase]:
        nonlocal made, worst
        for number in range(60):
            made += 1
            worst = max(worst, made - written)
            yield RawCase(str(number), raw / "00.jpg", lambda: square(1), {"p1": ("x",)})

    def progress(done: int) -> None:
        nonlocal written
        written = done

    write_prepared(counted(), tmp_path / "out", about=ABOUT, jobs=2, progress=progress)
    assert worst <= 10


def test_the_summary_is_one_line() -> None:
    summary = Summary("d", "mine", 2, 1, {"train": 1, "test": 1}, {"a": 1, "b": 1}, 1, 1, skipped=())
    assert str(summary) == "d: 2 cases on 1 image; train 1, test 1; a 1, b 1; 1 groups; 1 empty masks"


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(str.strip)


@settings(max_examples=25, deadline=None)
@given(
    prompts=st.dictionaries(st.sampled_from(["p1", "p2", "p7"]), st.lists(words, min_size=1, max_size=3), min_size=1),
    group=st.none() | words,
    attributes=st.dictionaries(words, words | st.integers() | st.floats(allow_nan=True) | st.booleans(), max_size=3),
)
def test_what_is_said_of_a_case_comes_back(
    tmp_path_factory: pytest.TempPathFactory, prompts: dict, group: str | None, attributes: dict
) -> None:
    folder = tmp_path_factory.mktemp("round")
    levels = {level: tuple(texts) for level, texts in prompts.items()}
    case = RawCase("a", lambda: np.zeros(SIZE, np.uint8), lambda: square(1), levels, group=group, attributes=attributes)
    write_prepared([case], folder / "out", about=ABOUT)
    (record,), _ = load_records(folder / "out")
    assert record.group == group
    assert record.prompts == {"p0": ("",), **{k: tuple(t.strip() for t in texts) for k, texts in levels.items()}}


def test_two_calls_into_one_folder_do_not_meet(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said: list[str] = []

    def first() -> Iterator[RawCase]:
        for number, case in enumerate(cases(raw)):
            if number == 6:
                (out / "images" / ".torn.1.tmp").write_bytes(b"being written")
                journal = (out / PARTIAL).read_bytes()
                for about in (ABOUT, About("other")):
                    with pytest.raises(UserError) as caught:
                        write_prepared(cases(raw), out, about=about)
                    said.append(str(caught.value))
                # Neither what is being written nor the journal was touched.
                (out / "images" / ".torn.1.tmp").unlink()
                assert (out / PARTIAL).read_bytes().startswith(journal)
            yield case

    write_prepared(first(), out, about=ABOUT, jobs=2)
    assert (
        said
        == [f"{out}: another process is writing a data set there: wait for it or stop it, or choose another folder"] * 2
    )
    write_prepared(cases(raw), tmp_path / "whole", about=ABOUT)
    assert contents(out) == contents(tmp_path / "whole"), "no lock is left either"


def test_many_calls_at_once_make_one_set(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ends: list[object] = []

    def call() -> None:
        try:
            ends.append(write_prepared(cases(raw), out, about=ABOUT).cases)
        except UserError as error:
            ends.append(str(error))

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ends) == 6
    assert all(end == 12 or "another process is writing" in str(end) for end in ends), ends
    write_prepared(cases(raw), tmp_path / "whole", about=ABOUT)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_kill_at_the_very_start_leaves_a_folder_that_can_be_used(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".lock").write_text("")
    (out / f".{PARTIAL}.abc.tmp").write_text("{")
    write_prepared(cases(raw), out, about=ABOUT)
    write_prepared(cases(raw), tmp_path / "whole", about=ABOUT)
    assert contents(out) == contents(tmp_path / "whole")


def test_what_was_left_out_is_said_again(raw: Path, tmp_path: Path) -> None:
    mixed = [*cases(raw, 3), bad(raw, "size")]
    assert write_prepared(mixed, tmp_path / "out", about=ABOUT, skip_bad=True).warnings == ()
    again = write_prepared(mixed, tmp_path / "out", about=ABOUT, skip_bad=True)
    assert again.warnings == (
        f"1 cases were left out as bad by an earlier call: to read them again, delete {tmp_path / 'out'}",
    )
