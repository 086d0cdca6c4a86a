"""A tree of files: a folder, an archive, or a folder of archives."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from vlsm_adapter.data.archives.files import DEFAULT, Limits, TreeFile, check_count, is_junk
from vlsm_adapter.data.archives.packed import TAR, ZIP, archive_files, archive_stem
from vlsm_adapter.data.digests import digest_of_checksums
from vlsm_adapter.data.entries import shown
from vlsm_adapter.data.layouts import natural_key
from vlsm_adapter.errors import DataError


class Tree:
    """The files of an archive or folder, in natural order of their names. Use it as a context manager.

    Attributes:
        where: the path it was opened by.
        files: all of them, without junk and without folders that are around everything.
        around: the names of what is around everything, the folder or archive (without its ending) first.
    """

    def __init__(self, where: Path, files: Iterable[TreeFile], close: Callable[[], None]) -> None:
        self.where = where
        self.files, around = without_top_folder(sorted(files, key=lambda file: natural_key(file.path)))
        name = where.resolve().name
        self.around = (archive_stem(name) if name.lower().endswith(ZIP + TAR) else name, *around)
        self._close = close
        self._by_path = {file.path.casefold(): file for file in self.files}

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def get(self, path: str) -> TreeFile | None:
        """The file of this name (case does not matter), or None."""
        return self._by_path.get(path.casefold())

    def folders(self) -> dict[str, list[TreeFile]]:
        """Folder to the files that lie directly in it; in natural order."""
        found: dict[str, list[TreeFile]] = {}
        for file in self.files:
            found.setdefault(file.parent, []).append(file)
        return found

    def digest(self, jobs: int = 1) -> str:
        """A digest of all names, sizes and contents, the same for an archive and its unpacked files.

        Files that no zip archive lists with their checksum are read, with ``jobs`` threads.
        """
        with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
            checksums = list(pool.map(TreeFile.checksum, self.files))
        return digest_of_checksums(
            (file.path, file.size, checksum) for file, checksum in zip(self.files, checksums, strict=True)
        )

    def top(self, most: int = 6) -> str:
        """What lies at the top, for messages."""
        names = list(dict.fromkeys(file.path.split("/")[0] + ("/" if "/" in file.path else "") for file in self.files))
        listed = ", ".join(shown(name) for name in names[:most])
        return f"{listed}, ..." if len(names) > most else listed or "nothing"


def open_tree(path: str | os.PathLike[str], limits: Limits = DEFAULT) -> Tree:
    """The tree of a zip or tar archive, or of a folder with or without archives in it.

    Raises:
        DataError: missing, of another kind, damaged, or refused (see the module); one line each.
    """
    where = Path(path).expanduser()
    with contextlib.ExitStack() as stack:
        try:
            if where.is_dir():
                files = _folder_files(where, limits, stack)
            elif not where.exists():
                raise DataError(f"{where}: no such file or folder: check the path")
            else:
                files = archive_files(where, limits, stack)
        except PermissionError as error:
            raise DataError(f"{error.filename or where}: may not be read: check its permissions") from None
        if not files:
            raise DataError(f"{where}: holds no file")
        return Tree(where, files, stack.pop_all().close)
    raise AssertionError  # for the type checker: an ExitStack could swallow exceptions


def _folder_files(root: Path, limits: Limits, stack: contextlib.ExitStack) -> list[TreeFile]:
    real_root = root.resolve()
    files: list[TreeFile] = []
    archives: list[Path] = []
    seen: set[Path] = set()

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}): check its permissions") from None

    for base, folders, entries in os.walk(root, followlinks=True, onerror=fail):
        real_base = Path(base).resolve()
        if not real_base.is_relative_to(real_root):
            raise DataError(f"{base}: is a link that leads out of {root}: copy what it shows into the folder")
        if real_base in seen:  # a link to a folder around it would be walked for ever
            folders.clear()
            continue
        seen.add(real_base)
        folders[:] = sorted(name for name in folders if not is_junk(name))
        for name in sorted(entries):
            if is_junk(name):
                continue
            file = Path(base, name)
            if file.is_symlink() and not file.resolve().is_relative_to(real_root):
                raise DataError(f"{file}: is a link that leads out of {root}: copy the file into the folder")
            if not file.is_file():
                continue
            relative = file.relative_to(root).as_posix()
            if name.lower().endswith(ZIP + TAR):
                archives.append(file)
                continue
            files.append(TreeFile(relative, file.stat().st_size, str(root), file, file.read_bytes))
            check_count(root, len(files), limits)
    for archive in archives:
        stem = archive_stem(archive.name)
        inside = archive.parent.relative_to(root) / stem
        if (archive.parent / stem).is_dir():
            continue  # unpacked beside the archive
        for packed in without_top_folder(archive_files(archive, limits, stack))[0]:
            path = (inside / packed.path).as_posix()
            files.append(replace(packed, path=path, where=str(archive)))
        check_count(root, len(files), limits)
    return files


def without_top_folder(files: list[TreeFile]) -> tuple[list[TreeFile], list[str]]:
    """``files`` without the folders that hold everything, and the names of these."""
    parts = [file.path.split("/") for file in files]
    depth = 0
    while all(len(path) > depth + 1 for path in parts) and len({path[depth] for path in parts}) == 1:
        depth += 1
    bare = [replace(file, path="/".join(path[depth:])) for file, path in zip(files, parts, strict=True)]
    return bare, parts[0][:depth]
