"""Features in memory, in a nameless file, in a shared folder: bit for bit, bounded, and never in the way."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlsm_adapter import feature_store
from vlsm_adapter.data.entry_folder import EntryFolder
from vlsm_adapter.feature_store import (
    FeatureStore,
    Scratch,
    _decode,
    _encode,
    free_memory,
    memory_for_features,
    nbytes,
)

CPU = torch.device("cpu")
ONE = 4 * 8 * 4  # bytes of the features made here


def features(number: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(1, 4, 4, generator=generator), torch.randn(1, 16, generator=generator)


def name(number: int) -> str:
    return f"{number:064x}"


def folder(path: Path, max_bytes: int = 1 << 20) -> EntryFolder:
    return EntryFolder(path, max_bytes, suffix=feature_store.SUFFIX, holds="features")


def equal(one: tuple[torch.Tensor, ...] | None, other: tuple[torch.Tensor, ...]) -> bool:
    return one is not None and all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, other, strict=True)
    )


# Entries


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.bool, torch.int64]),
            st.lists(st.integers(0, 5), max_size=4),
        ),
        max_size=4,
    )
)
def test_tensors_read_back_bit_for_bit(wanted: list[tuple[torch.dtype, list[int]]]) -> None:
    made = tuple(torch.randint(0, 2, shape).to(dtype) for dtype, shape in wanted)
    assert equal(_decode(_encode(made)), made)


def test_not_a_number_and_infinity_keep_their_bits(tmp_path: Path) -> None:
    odd = (torch.tensor([[float("nan"), float("inf"), -0.0]]),)
    scratch = Scratch(tmp_path, 1000)
    assert scratch.put("odd", odd)
    for read in (_decode(_encode(odd)), scratch.get("odd")):
        assert read is not None
        assert torch.equal(read[0].view(torch.int32), odd[0].view(torch.int32))
    scratch.close()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_is_seen(data: st.DataObject) -> None:
    whole = _encode(features(0))
    where = data.draw(st.integers(0, len(whole) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "more"]))
    if kind == "flip":
        broken = bytearray(whole)
        broken[where] ^= 1 << data.draw(st.integers(0, 7))
    else:
        broken = bytearray(whole[:where] if kind == "cut" else whole + b"x")
    assert _decode(bytes(broken)) is None


# Bounds


def test_memory_then_the_file_then_nothing(tmp_path: Path) -> None:
    store = FeatureStore(2 * ONE + 1, scratch=Scratch(tmp_path, 3 * ONE))
    for number in range(8):
        store.put(name(number), features(number))
        store.put(name(number), features(number))  # a second time takes no room
    assert [name(number) in store for number in range(8)] == [True] * 5 + [False] * 3
    for number in reversed(range(5)):
        assert equal(store.get(name(number), CPU), features(number))
    assert store.get(name(7), CPU) is None
    assert store.used_bytes == 2 * ONE
    assert store.scratch is not None
    assert (store.scratch.used_bytes, len(store.scratch)) == (3 * ONE, 3)
    assert not list(tmp_path.iterdir())  # no name, so nothing that a kill could leave behind
    store.close()
    assert name(0) not in store
    assert name(3) not in store


def test_no_room_at_all_keeps_nothing(tmp_path: Path) -> None:
    store = FeatureStore(0, scratch=Scratch(tmp_path, 0))
    made = features(1)
    assert equal(store.put(name(1), made), made)
    assert name(1) not in store


def test_a_part_of_a_larger_tensor_does_not_hold_the_whole() -> None:
    store = FeatureStore(1 << 20)
    large = torch.arange(1000.0)
    (kept,) = store.put(name(1), (large[10:20],))
    assert torch.equal(kept, large[10:20])
    assert kept.untyped_storage().nbytes() == 40


def test_a_full_disk_is_told_once_and_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Full:
        def __init__(self, **_: object) -> None:
            self.left = 2 * ONE

        def seek(self, place: int) -> None:
            pass

        def write(self, view: memoryview) -> int:
            self.left -= len(view)
            if self.left < 0:
                raise OSError(28, "No space left on device")
            return len(view)

        def close(self) -> None:
            pass

    monkeypatch.setattr(feature_store.tempfile, "TemporaryFile", Full)
    store = FeatureStore(0, scratch=Scratch(tmp_path, 100 * ONE))
    for number in range(6):
        store.put(name(number), features(number))
    assert [name(number) in store for number in range(6)] == [True, True] + [False] * 4
    assert caplog.text.count("No space left on device") == 1


def test_the_file_takes_half_of_a_disk_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_store.shutil, "disk_usage", lambda _: type("usage", (), {"free": 4 * ONE + 2}))
    scratch = Scratch(tmp_path, 1 << 30)
    assert scratch.room() == 2 * ONE + 1
    assert [scratch.put(name(number), features(number)) for number in range(4)] == [True, True, False, False]
    scratch.close()


def test_a_file_cut_short_is_told_and_computed_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = FeatureStore(0, scratch=Scratch(tmp_path, 1 << 20))
    store.put(name(1), features(1))
    assert store.scratch is not None
    assert store.scratch._file is not None
    os.ftruncate(store.scratch._file.fileno(), ONE - 1)
    assert store.get(name(1), CPU) is None
    assert "computed anew" in caplog.text
    assert name(1) not in store
    store.close()


def test_memory_that_is_free() -> None:
    free = free_memory(CPU)
    assert free > 1 << 20
    assert memory_for_features(CPU, 3) == 3 << 20
    assert memory_for_features(CPU, 8, processes=4) == 2 << 20
    assert memory_for_features(CPU) < free


def test_processes_share_the_memory_of_the_machine_but_have_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_store, "free_memory", lambda _: 800)
    assert memory_for_features(CPU, processes=4) == 50
    gpu = torch.device("cuda", 1)
    assert memory_for_features(gpu, processes=4) == 200
    assert memory_for_features(gpu, 8, processes=4) == 8 << 20


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": "5000\n", "memory.current": "4900\n", "memory.stat": "anon 7\ninactive_file 900\n"}, 1000),
        ({"memory.max": "5000\n", "memory.current": "4900\n", "memory.stat": "inactive_file none\n"}, 100),
        ({"memory.max": "5000\n", "memory.current": "4900\n"}, 100),
        ({"memory.max": "5000\n", "memory.current": "6000\n"}, 0),
        ({"memory.max": "max\n", "memory.current": "4900\n"}, None),
        ({}, None),
    ],
)
def test_the_limit_of_a_container_counts_without_what_was_read_from_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(feature_store, "_CGROUP", tmp_path)
    free = free_memory(CPU)
    assert free == expected if expected is not None else free > 1 << 20


# Shared


def test_what_the_folder_does_not_take_goes_to_the_file_and_only_that(tmp_path: Path) -> None:
    shared = folder(tmp_path / "f", 10_000)
    store = FeatureStore(0, shared=shared, scratch=Scratch(tmp_path, 1 << 20))
    store.put(name(1), features(1))
    store.put(name(2), features(2), share=False)
    large = (torch.arange(1000.0),)
    store.put(name(3), large)
    assert [name(number) in shared for number in (1, 2, 3)] == [True, False, False]
    assert store.scratch is not None
    assert [name(number) in store.scratch for number in (1, 2, 3)] == [False, True, True]
    assert equal(store.get(name(2), CPU), features(2))
    assert equal(store.get(name(3), CPU), large)
    shared._broken = True
    store.put(name(4), features(4))
    assert name(4) in store.scratch
    store.close()


def test_the_next_process_finds_what_was_kept_and_remembers_it(tmp_path: Path) -> None:
    FeatureStore(0, shared=folder(tmp_path / "f")).put(name(1), features(1))
    store = FeatureStore(10 * ONE, shared=folder(tmp_path / "f"))
    assert name(1) in store
    assert equal(store.get(name(1), CPU), features(1))
    next((tmp_path / "f").rglob("*.features")).unlink()
    assert equal(store.get(name(1), CPU), features(1))
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o700
    assert not list((tmp_path / "f").rglob("*.tmp"))


@pytest.mark.parametrize("damage", [b"", b"vlsm-feature-cache 1\n", b"\0" * 500])
def test_a_damaged_entry_is_told_removed_and_made_anew(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    store = FeatureStore(0, shared=folder(tmp_path))
    store.put(name(1), features(1))
    (entry,) = tmp_path.rglob("*.features")
    sound = entry.read_bytes()
    for broken in (damage, sound[:-1], sound[:-1] + bytes([sound[-1] ^ 1])):
        entry.write_bytes(broken)
        assert store.get(name(1), CPU) is None
        assert not entry.exists()
        store.put(name(1), features(1))
        assert entry.read_bytes() == sound
    assert caplog.text.count("damaged, made anew") == 3


def test_the_folder_is_bounded(tmp_path: Path) -> None:
    size = len(_encode(features(0)))
    store = FeatureStore(0, shared=folder(tmp_path, 20 * size))
    for number in range(60):
        store.put(name(number << 240), features(number))
        assert sum(entry.stat().st_size for entry in tmp_path.rglob("*.features")) <= 20 * size
    assert len(list(tmp_path.rglob("*.features"))) > 10
    store.put(name(99), (torch.zeros(10_000),))  # more than an eighth of it all
    assert name(99) not in store


def test_without_a_folder_to_write_work_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    store = FeatureStore(ONE, shared=folder(tmp_path / "file"))
    for number in range(3):
        assert equal(store.put(name(number), features(number)), features(number))
    assert caplog.text.count("without keeping features there") == 1
    assert name(0) in store
    assert store.get(name(2), CPU) is None


def _work(path: Path, bound: int, bad: object) -> None:
    store = FeatureStore(0, shared=folder(path, bound))
    generator = torch.Generator().manual_seed(os.getpid())
    for _ in range(150):
        number = int(torch.randint(12, (), generator=generator))
        found = store.get(name(number << 240), CPU)
        if found is None:
            found = store.put(name(number << 240), features(number))
        if not equal(found, features(number)):
            bad.set()  # type: ignore[attr-defined]
        if torch.rand((), generator=generator) < 0.1:
            for entry in sorted(path.rglob("*.features"))[:1]:
                entry.write_bytes(b"torn")


def test_processes_share_a_folder_while_entries_come_go_and_break(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    bad = context.Event()
    bound = 10 * len(_encode(features(0)))
    workers = [context.Process(target=_work, args=(tmp_path / "f", bound, bad)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert not bad.is_set()


def test_bytes() -> None:
    assert nbytes(features(1)) == ONE
