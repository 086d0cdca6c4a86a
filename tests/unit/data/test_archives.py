"""Archives of unknown origin: what is tolerated, and what is refused in one line before anything is read."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlsm_adapter.data.archives import Limits, open_tree
from vlsm_adapter.data.archives.files import safe_name
from vlsm_adapter.errors import DataError, UserError

TARS = (".tar", ".tar.gz", ".tar.bz2", ".tar.xz")


def make_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.filename = name  # ZipInfo would mend backslashes and NUL characters
            entry.compress_type = method
            archive.writestr(entry, content)
    return path


def make_tar(path: Path, files: dict[str, bytes]) -> Path:
    ending = path.name.rpartition(".")[2]
    with tarfile.open(path, "w" if ending == "tar" else f"w:{ending}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def refused(path: Path, limits: Limits | None = None) -> str:
    with pytest.raises(DataError) as caught, open_tree(path, *([limits] if limits else [])):
        pass
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


FILES = {"images/a.png": b"one", "masks/a.png": b"two", "info.txt": b"three"}


@pytest.fixture(params=["folder", ".zip", *TARS])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[dict[str, bytes]], Path]:
    def build(files: dict[str, bytes]) -> Path:
        if request.param == "folder":
            for name, content in files.items():
                target = tmp_path / "set" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            return tmp_path / "set"
        path = tmp_path / f"set{request.param}"
        return make_zip(path, files) if request.param == ".zip" else make_tar(path, files)

    return build


def test_files_are_listed_and_read(make: Callable[[dict[str, bytes]], Path]) -> None:
    with open_tree(make(FILES)) as tree:
        assert [file.path for file in tree.files] == ["images/a.png", "info.txt", "masks/a.png"]
        assert {file.path: file.read_bytes() for file in tree.files} == FILES
        assert {file.path: file.size for file in tree.files} == {name: len(content) for name, content in FILES.items()}
        found = tree.get("MASKS/A.PNG")
        assert found is not None
        assert (found.name, found.stem, found.suffix, found.parent) == ("a.png", "a", ".png", "masks")
        assert found.read_text() == "two"
        with found.on_disk() as path:
            assert path.read_bytes() == b"two"
            assert path.suffix == ".png"
        assert list(tree.folders()) == ["images", "", "masks"]


def test_folders_around_everything_are_taken_off(make: Callable[[dict[str, bytes]], Path]) -> None:
    with open_tree(make({f"Set-v1/release/{name}": content for name, content in FILES.items()})) as tree:
        assert [file.path for file in tree.files] == ["images/a.png", "info.txt", "masks/a.png"]
        assert tree.around == ("set", "Set-v1", "release")


def test_junk_of_other_systems_is_passed_over(make: Callable[[dict[str, bytes]], Path]) -> None:
    junk = {
        "__MACOSX/images/._a.png": b"",
        "images/._a.png": b"",
        ".DS_Store": b"",
        "images/Thumbs.db": b"",
        "desktop.ini": b"",
    }
    with open_tree(make({**FILES, **junk})) as tree:
        assert len(tree.files) == 3


def test_natural_order(make: Callable[[dict[str, bytes]], Path]) -> None:
    with open_tree(make({f"x/{n}.png": b"" for n in (10, 9, 1, 100, 2)} | {"y": b""})) as tree:
        assert [file.stem for file in tree.files if file.parent] == ["1", "2", "9", "10", "100"]


def test_several_threads_read_what_is_there(make: Callable[[dict[str, bytes]], Path]) -> None:
    files = {f"x/{n}.bin": os.urandom(2000) for n in range(40)} | {"y": b""}
    with open_tree(make(files)) as tree, ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert (
                dict(zip((f.path for f in tree.files), pool.map(lambda f: f.read_bytes(), tree.files), strict=True))
                == files
            )


def test_archives_in_a_folder_are_folders_of_their_name(tmp_path: Path) -> None:
    raw = tmp_path / "isic"
    raw.mkdir()
    make_zip(raw / "Data.zip", {"Data/1.jpg": b"1", "Data/2.jpg": b"2"})
    make_tar(raw / "Truth.tar.gz", {"1.png": b"m1", "2.png": b"m2"})
    make_zip(raw / "Unpacked.zip", {"x.txt": b"packed"})
    (raw / "Unpacked").mkdir()
    (raw / "Unpacked" / "x.txt").write_bytes(b"unpacked")
    with open_tree(raw) as tree:
        assert [file.path for file in tree.files] == [
            "Data/1.jpg",
            "Data/2.jpg",
            "Truth/1.png",
            "Truth/2.png",
            "Unpacked/x.txt",
        ]
        assert tree.files[-1].read_bytes() == b"unpacked"
        assert str(tree.files[0]) == f"{raw / 'Data.zip'}: Data/1.jpg"
        assert tree.files[2].read_bytes() == b"m1"


@pytest.mark.parametrize(
    "name",
    ["../evil.png", "a/../../evil", "/etc/passwd", "C:/evil", "c:evil", "..\\evil", "a\\..\\..\\evil", "\\\\host\\x"],
)
@pytest.mark.parametrize("ending", [".zip", ".tar"])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str, ending: str) -> None:
    maker = make_zip if ending == ".zip" else make_tar
    assert "leads out of it" in refused(maker(tmp_path / f"set{ending}", {**FILES, name: b"x"}))


@pytest.mark.parametrize("name", ["a\nb.png", "a\x1bb", "x" * 2000])
def test_names_that_are_none_are_refused(tmp_path: Path, name: str) -> None:
    assert "no file name" in refused(make_tar(tmp_path / "set.tar", {**FILES, name: b"x"}))


@settings(deadline=None)
@given(st.text(max_size=40))
def test_a_name_is_refused_dropped_or_stays_inside(name: str) -> None:
    try:
        kept = safe_name(Path("x.zip"), name)
    except DataError:
        return
    if kept is not None:
        parts = PurePosixPath(kept).parts
        assert kept == "/".join(parts)
        assert not PurePosixPath(kept).is_absolute()
        assert ".." not in parts
        assert "\\" not in kept


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("images/a.png")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    message = refused(path)
    assert "unpack the archive yourself" in message


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        entry = zipfile.ZipInfo("images/a.png")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    assert "is a link" in refused(path)


def test_an_encrypted_file_is_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "set.zip", FILES, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02")
    content[place + 8] |= 1  # the flag in the central directory
    path.write_bytes(content)
    assert "password" in refused(path)


def test_one_name_twice_in_a_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.png", b"2")
    assert "two files" in refused(path)


def test_the_later_entry_of_a_tar_counts(tmp_path: Path) -> None:
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w") as archive:
        for content in (b"old", b"newer"):
            member = tarfile.TarInfo("x/a.txt")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with open_tree(path) as tree:
        assert [file.read_bytes() for file in tree.files] == [b"newer"]


SMALL = Limits(files=5, file_bytes=50_000, total_bytes=100_000, ratio=100, ratio_from=10_000)


@pytest.mark.parametrize("ending", [".zip", ".tar.gz"])
@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({f"{n}.png": b"" for n in range(6)}, "more than 5 files"),
        ({"a.png": bytes(50_001)}, "GiB"),
        ({f"{n}.bin": os.urandom(30_000) for n in range(4)}, "GiB"),
        ({"a.png": bytes(45_000), "b.png": bytes(45_000)}, "decompression bomb"),
    ],
    ids=["files", "file", "total", "ratio"],
)
def test_what_no_data_set_has_is_refused(tmp_path: Path, ending: str, files: dict[str, bytes], said: str) -> None:
    maker = make_zip if ending == ".zip" else make_tar
    message = refused(maker(tmp_path / f"set{ending}", files), SMALL)
    assert said in message or "decompression bomb" in message


def test_a_bomb_of_a_tar_is_not_unpacked_whole(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "set.tar.gz"
    with gzip.open(path, "wb") as stream:
        for _ in range(64):
            stream.write(bytes(2**20))
    assert "decompression bomb" in refused(path, Limits(ratio_from=2**21))


def test_masks_that_pack_well_are_no_bomb(tmp_path: Path) -> None:
    files = {f"{n}.bmp": bytes(40_000) for n in range(20)} | {f"{n}.jpg": os.urandom(10_000) for n in range(20)}
    with open_tree(make_zip(tmp_path / "set.zip", files)) as tree:
        assert len(tree.files) == 40


@pytest.mark.parametrize("ending", [".zip", *TARS])
@pytest.mark.parametrize("part", [0.3, 0.6])
def test_a_cut_off_archive_is_refused_now_or_when_read(tmp_path: Path, ending: str, part: float) -> None:
    maker = make_zip if ending == ".zip" else make_tar
    path = maker(tmp_path / f"set{ending}", {f"{n}.bin": os.urandom(3000) for n in range(10)})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])

    def read_all() -> None:
        with open_tree(path) as tree:
            for file in tree.files:
                file.read_bytes()

    with pytest.raises(DataError) as caught:
        read_all()
    assert "\n" not in str(caught.value)


def test_a_changed_byte_is_found_by_its_checksum(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "set.zip", {"x/a.png": b"A" * 500, "y.txt": b""}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[content.index(b"AAAA") + 7] ^= 1
    path.write_bytes(content)
    with open_tree(path) as tree, pytest.raises(DataError, match="fetch the archive again"):
        tree.files[0].read_bytes()


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_called_zip_give_one_line(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for name in ("x.zip", "x.tar.gz", "x.tar", "x"):
            path = Path(folder, name)
            path.write_bytes(content)
            with pytest.raises(DataError) as caught, open_tree(path):
                pass
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.rar", b"Rar!\x1a\x07\x00rest", "unpack it and give the folder"),
        ("x.7z", b"7z\xbc\xaf\x27\x1crest", "unpack it and give the folder"),
        ("x.zip", b"<html>please log in</html>", "not a zip archive"),
        ("x.png", b"\x89PNG", "neither a zip or tar archive nor a folder"),
    ],
)
def test_other_files_are_refused_with_the_fix(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert said in refused(tmp_path / name)


def test_missing_and_empty(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no file" in refused(tmp_path / "empty")
    assert "holds no file" in refused(make_zip(tmp_path / "empty.zip", {}))


def test_links_in_a_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(b"s")
    raw = tmp_path / "raw"
    (raw / "images").mkdir(parents=True)
    (raw / "images" / "a.png").write_bytes(b"a")
    (raw / "b.png").symlink_to(raw / "images" / "a.png")
    (raw / "images" / "loop").symlink_to(raw)
    with open_tree(raw) as tree:
        assert [file.path for file in tree.files] == ["b.png", "images/a.png"]
    (raw / "images" / "c.png").symlink_to(outside / "secret.png")
    with pytest.raises(DataError, match="leads out of"), open_tree(raw):
        pass
    (raw / "images" / "c.png").unlink()
    (raw / "other").symlink_to(outside)
    with pytest.raises(DataError, match="leads out of"), open_tree(raw):
        pass
    # The folder itself may be a link.
    (raw / "other").unlink()
    (tmp_path / "link").symlink_to(raw)
    with open_tree(tmp_path / "link") as tree:
        assert len(tree.files) == 2


def test_text_of_old_files(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "s.zip", {"a/1": "\ufeffÄ".encode(), "a/2": "Ä".encode("latin-1"), "b": b"\0\1"})
    with open_tree(path) as tree:
        assert [file.read_text() for file in tree.files[:2]] == ["Ä", "Ä"]
        with pytest.raises(DataError, match="not a text file"):
            tree.files[2].read_text()


def test_an_error_inside_names_the_file_in_the_archive(tmp_path: Path) -> None:
    with open_tree(make_zip(tmp_path / "s.zip", FILES)) as tree:
        with pytest.raises(DataError, match=r"s\.zip: info\.txt: bad"), tree.files[1].on_disk() as path:
            raise DataError(f"{path}: bad")
        assert not path.exists()


def test_no_room_to_unpack_a_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, content: object) -> int:
            raise OSError(28, "No space left on device")

    path = make_tar(tmp_path / "set.tar.gz", FILES)
    monkeypatch.setattr("tempfile.TemporaryFile", Full)
    with pytest.raises(UserError, match=r"No space left on device.*TMPDIR") as caught, open_tree(path):
        pass
    assert not isinstance(caught.value, DataError), "not the archive's fault"


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path: Path) -> None:
    inner = make_zip(tmp_path / "inner.zip", {"x.txt": b"x"}).read_bytes()
    with open_tree(make_tar(tmp_path / "set.tar", {"a.txt": b"a", "z/inner.zip": inner})) as tree:
        assert [file.path for file in tree.files] == ["a.txt", "z/inner.zip"]
