"""Digests of material: equal wherever it lies, another after any change of any byte that could go unseen."""

from __future__ import annotations

import gzip
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vlsm_adapter.data.archives import open_tree
from vlsm_adapter.data.digests import digest_of_files


def digest(root: Path) -> str:
    with open_tree(root) as tree:
        return tree.digest(2)


def packed(folder: Path, archive: Path, kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(archive, "w", kind) as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder))
    return archive


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "raw"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
        for number in range(3):
            (root / name / f"{number}.bmp").write_bytes(bytes([number]) * 700_000)
    return root


def test_one_digest_for_a_folder_and_its_archives(folder: Path, tmp_path: Path) -> None:
    whole = packed(folder, tmp_path / "set.zip")
    stored = packed(folder, tmp_path / "stored.zip", zipfile.ZIP_STORED)
    assert digest(folder) == digest(whole) == digest(stored)
    parts = tmp_path / "parts"
    parts.mkdir()
    for name in ("images", "masks"):
        packed(folder / name, parts / f"{name}.zip")
    assert digest(parts) == digest(folder)


@pytest.mark.parametrize("place", [0, 350_000, 699_999])
def test_one_changed_byte_is_another_set(folder: Path, tmp_path: Path, place: int) -> None:
    before, of_zip, of_files = digest(folder), digest(packed(folder, tmp_path / "a.zip")), files_digest(folder)
    mask = folder / "masks" / "1.bmp"
    times = mask.stat()
    content = bytearray(mask.read_bytes())
    content[place] ^= 1
    mask.write_bytes(content)
    os.utime(mask, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert digest(folder) != before
    assert digest(packed(folder, tmp_path / "b.zip")) != of_zip
    assert files_digest(folder) != of_files, "also of what the user imports, in the middle of a large file"


def files_digest(folder: Path) -> str:
    return digest_of_files(folder.rglob("*.*"), folder)


def test_names_count_and_order_does_not(folder: Path) -> None:
    before = digest(folder)
    (folder / "masks" / "0.bmp").rename(folder / "x")
    (folder / "masks" / "1.bmp").rename(folder / "masks" / "0.bmp")
    (folder / "x").rename(folder / "masks" / "1.bmp")
    assert digest(folder) != before, "two masks exchanged"


def test_the_ends_of_a_large_gzip_file_tell_of_its_middle(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, 900_000, np.uint8)
    file = tmp_path / "a.nii.gz"
    digests = set()
    for change in (0, 1):
        values[450_000] ^= change
        file.write_bytes(gzip.compress(values.tobytes(), 1, mtime=0))
        assert file.stat().st_size > 512 * 1024
        digests.add(digest_of_files([file], tmp_path))
    assert len(digests) == 2


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user who can be refused")
def test_an_unreadable_file_is_left_to_be_refused_later(folder: Path) -> None:
    mask = folder / "masks" / "1.bmp"
    before = digest(folder)
    mask.chmod(0)
    assert digest(folder) not in ("", before)
    mask.chmod(0o600)
    assert digest(folder) == before
