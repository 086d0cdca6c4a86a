"""The cache on disk: by content and treatment, bounded, verified, shared by processes, and never in the way."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from vlsm_adapter.data.disk_cache import DiskCache, Kept, _decode, _encode, cache_folder
from vlsm_adapter.data.images import read_image
from vlsm_adapter.data.loaders import CaseDataset
from vlsm_adapter.errors import DataError
from vlsm_adapter.models.preprocessing import Preprocessing
from vlsm_adapter.types import Record

ARRAYS = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=9)) | hnp.arrays(
    bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)
)


class Maker:
    """Makes an array and counts how often it had to."""

    def __init__(self, value: int = 7, side: int = 20) -> None:
        self.calls = 0
        self.kept = Kept(np.full((side, side, 3), value, np.uint8), (480, 640))

    def __call__(self) -> Kept:
        self.calls += 1
        return self.kept


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    path.write_bytes(b"an image")
    return path


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.case"))


def equal(one: Kept, other: Kept) -> bool:
    return (
        one.native == other.native and one.array.dtype == other.array.dtype and np.array_equal(one.array, other.array)
    )


# Entries


@given(ARRAYS, st.tuples(st.integers(1, 9999), st.integers(1, 9999)))
def test_an_entry_reads_back_equal_and_may_be_changed(array: np.ndarray, native: tuple[int, int]) -> None:
    kept = Kept(array, native)
    read = _decode(_encode(kept))
    assert read is not None
    assert equal(read, kept)
    read.array[...] = 0


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_is_seen(data: st.DataObject) -> None:
    whole = _encode(Maker(side=3).kept)
    where = data.draw(st.integers(0, len(whole) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "more"]))
    if kind == "flip":
        broken = bytearray(whole)
        broken[where] ^= 1 << data.draw(st.integers(0, 7))
    else:
        broken = bytearray(whole[:where] if kind == "cut" else whole + b"x")
    assert _decode(bytes(broken)) is None


# Keys


def test_what_is_kept_is_found_by_the_next_process(source: Path, tmp_path: Path) -> None:
    make = Maker()
    for cache in (DiskCache(tmp_path / "cache"), DiskCache(tmp_path / "cache")):
        for _ in range(2):
            assert equal(cache.load(source, "resized", make), make.kept)
    assert make.calls == 1
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_content_and_treatment_are_the_key_not_the_name(source: Path, tmp_path: Path) -> None:
    cache, make = DiskCache(tmp_path / "cache"), Maker()
    cache.load(source, "resized to 3", make)
    copy = tmp_path / "copy.png"
    copy.write_bytes(source.read_bytes())
    cache.load(copy, "resized to 3", make)
    assert make.calls == 1
    cache.load(copy, "resized to 4", make)
    assert make.calls == 2
    time.sleep(0.01)
    source.write_bytes(b"AN IMAGE")  # of the same size
    cache.load(source, "resized to 3", make)
    assert make.calls == 3
    assert len(entries(tmp_path / "cache")) == 3


@pytest.mark.parametrize("damage", [b"", b"vlsm-case-cache 1\n", b"\0" * 500])
def test_a_damaged_entry_is_made_anew(source: Path, tmp_path: Path, damage: bytes) -> None:
    cache, make = DiskCache(tmp_path / "cache"), Maker()
    cache.load(source, "x", make)
    (entry,) = entries(tmp_path / "cache")
    sound = entry.read_bytes()
    for broken in (damage, sound[:-1], sound[:-1] + bytes([sound[-1] ^ 1])):
        entry.write_bytes(broken)
        before = make.calls
        assert equal(cache.load(source, "x", make), make.kept)
        assert make.calls == before + 1
        assert entry.read_bytes() == sound


# Bounds


def test_the_bound_is_kept_and_what_was_used_longest_ago_goes(tmp_path: Path) -> None:
    folder, size = tmp_path / "cache", len(_encode(Maker().kept))
    cache = DiskCache(folder, 20 * size)
    sources = []
    for number in range(60):
        sources.append(tmp_path / f"{number}.png")
        sources[-1].write_bytes(str(number).encode())
        cache.load(sources[-1], "x", Maker(number))
        for entry in entries(folder):
            os.utime(entry, (entry.stat().st_atime, entry.stat().st_mtime - 10))  # time passes
        favourite = Maker(0)
        cache.load(sources[0], "x", favourite)
        assert favourite.calls == 0
        assert sum(entry.stat().st_size for entry in entries(folder)) <= cache.max_bytes
    assert len(entries(folder)) > 10
    gone = Maker(1)
    cache.load(sources[1], "x", gone)
    assert gone.calls == 1
    large = Maker(side=200)
    cache.load(sources[2], "large", large)
    cache.load(sources[2], "large", large)
    assert large.calls == 2


def test_only_our_files_are_removed(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    (folder / "ab").mkdir(parents=True)
    foreign = [folder / "thesis.txt", folder / "ab" / "photo.png", folder / "images" / "1.case"]
    foreign[2].parent.mkdir()
    for file in foreign:
        file.write_bytes(b"x" * 5000)
        os.utime(file, (0, 0))
    killed, writing = folder / "ab" / ".1.tmp", folder / "ab" / ".2.tmp"
    for file, age in ((killed, 7200), (writing, 10)):
        file.write_bytes(b"half")
        os.utime(file, (time.time() - age, time.time() - age))
    DiskCache(folder, 20_000).load(source, "x", Maker())
    assert all(file.exists() for file in foreign)
    assert not killed.exists()
    assert writing.exists()


# Failure


def test_without_room_work_goes_on_and_it_is_told_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache, make = DiskCache(tmp_path / "cache"), Maker()

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    for treatment in ("a", "b", "c"):
        assert equal(cache.load(source, treatment, make), make.kept)
    assert caplog.text.count("No space left on device") == 1
    assert not list((tmp_path / "cache").rglob("*.*"))
    (tmp_path / "file").write_text("in the way")
    assert equal(DiskCache(tmp_path / "file").load(source, "a", make), make.kept)


def test_a_source_that_is_gone_is_the_makers_to_tell(tmp_path: Path) -> None:
    def make() -> Kept:
        raise DataError("no such file")

    with pytest.raises(DataError, match="no such file"):
        DiskCache(tmp_path / "cache").load(tmp_path / "absent.png", "x", make)
    assert not (tmp_path / "cache").exists()


def _work(folder: Path, sources: list[Path], bound: int, bad: object) -> None:
    cache = DiskCache(folder, bound)
    rng = np.random.default_rng(os.getpid())
    for _ in range(150):
        number = int(rng.integers(len(sources)))
        kept = cache.load(sources[number], "x", Maker(number))
        if not equal(kept, Maker(number).kept):
            bad.set()  # type: ignore[attr-defined]
        if rng.random() < 0.1:
            for entry in entries(folder)[:1]:
                entry.write_bytes(b"torn")


def test_processes_share_it_while_entries_come_go_and_break(tmp_path: Path) -> None:
    sources = []
    for number in range(12):
        sources.append(tmp_path / f"{number}.png")
        sources[-1].write_bytes(str(number).encode())
    context = multiprocessing.get_context("fork")
    bad = context.Event()
    bound = 10 * len(_encode(Maker().kept))
    workers = [context.Process(target=_work, args=(tmp_path / "cache", sources, bound, bad)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert not bad.is_set()


# Where


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VLSM_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("auto") == cache_folder(None) == tmp_path / "vlsm-adapter" / "cases"
    assert cache_folder("off") is None
    assert cache_folder("here") == Path("here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder("auto") == tmp_path / "home" / ".cache" / "vlsm-adapter" / "cases"
    monkeypatch.setenv("VLSM_CACHE_DIR", str(tmp_path / "mine"))
    assert cache_folder("auto") == tmp_path / "mine"
    monkeypatch.setenv("VLSM_CACHE_DIR", "off")
    assert cache_folder("auto") is None


# In a data set


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    rng = np.random.default_rng(0)
    made = []
    for number in range(4):
        image, mask = tmp_path / f"{number % 2}.jpg", tmp_path / f"m{number}.png"
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)).save(image)
        Image.fromarray(rng.random((48, 64)) < 0.4).save(mask)
        made.append(Record(f"c{number}", image, mask, {"p1": ("polyp",)}, "train"))
    return made


def test_a_data_set_from_disk_is_bit_equal_and_decodes_nothing(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess = Preprocessing(size=(24, 32))

    def read(disk: DiskCache | None) -> list:
        dataset = CaseDataset(records, preprocess, disk_cache=disk, cache_bytes=0)
        return [dataset[index] for index in range(len(dataset))]

    plain, first = read(None), read(DiskCache(tmp_path / "cache"))
    assert len(entries(tmp_path / "cache")) == 2 + 4  # two images, each of two cases, and four masks
    monkeypatch.setattr("vlsm_adapter.data.loaders.read_image", None)
    monkeypatch.setattr("vlsm_adapter.data.loaders.read_mask", None)
    for samples in (first, read(DiskCache(tmp_path / "cache"))):
        for one, other in zip(plain, samples, strict=True):
            assert one.pixel_values.equal(other.pixel_values)
            assert one.mask.equal(other.mask)
    monkeypatch.undo()
    other_size = CaseDataset(records, Preprocessing(size=(24, 24)), disk_cache=DiskCache(tmp_path / "cache"))
    assert other_size[0].pixel_values.shape == (3, 24, 24)


def test_sizes_that_differ_are_told_from_the_cache_too(records: list[Record], tmp_path: Path) -> None:
    Image.fromarray(np.zeros((30, 64), bool)).save(records[0].mask)  # type: ignore[arg-type]
    for _ in range(2):
        dataset = CaseDataset(records, Preprocessing(size=(24, 32)), disk_cache=DiskCache(tmp_path / "cache"))
        with pytest.raises(DataError, match=r"64 x 48 pixels but its mask .* has 64 x 30"):
            dataset[0]


# Big JPEGs


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_big_jpeg_is_decoded_smaller_and_resized_to_nearly_the_same(
    tmp_path: Path, mode: str, orientation: int
) -> None:
    rows, columns = np.mgrid[:1200, :1600]
    wave = 127 + 60 * np.sin(rows / 90) + 50 * np.cos(columns / 70)
    edge = 60.0 * ((rows - 600) ** 2 + (columns - 700) ** 2 < 300**2)
    noise = np.random.default_rng(0).normal(0, 8, (1200, 1600, 3))
    picture = Image.fromarray(np.clip(wave[..., None] + edge[..., None] + noise, 0, 255).astype(np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "big.jpg"
    picture.save(path, quality=92, exif=exif)
    native = (1200, 1600) if orientation == 1 else (1600, 1200)
    whole = read_image(path)
    assert whole.shape[:2] == native
    small = read_image(path, at_least=(2 * 96, 2 * 128))
    assert small.shape[:2] == (native[0] // 4, native[1] // 4)
    resize = Preprocessing(size=(96, 128)).resize
    difference = np.abs(resize(whole).astype(int) - resize(small))
    assert difference.mean() < 1
    assert np.percentile(difference, 99) <= 4
    assert read_image(path, at_least=(900, 900)).shape == whole.shape


def test_other_formats_and_small_jpegs_are_decoded_whole(tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8))
    for name in ("a.png", "a.webp", "a.tif"):
        picture.save(tmp_path / name)
        assert np.array_equal(read_image(tmp_path / name, at_least=(20, 20)), read_image(tmp_path / name))
    picture.save(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg", at_least=(101, 20)).shape == (200, 200, 3)
