"""Files and folders that stand on disk under another spelling of their name: Unicode forms, capitals.

macOS writes an accented letter as two characters (NFD), other systems as one (NFC), and a list of cases moves between them.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from vlsm_adapter.errors import DataError


def composed(name: str) -> str:
    """``name`` in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", name)


class Spellings:
    """Finds what a list names below the folder of a data set; each folder is listed once, when a name is not there."""

    def __init__(self) -> None:
        self._listed: dict[Path, dict[str, list[str]]] = {}
        self._folders: dict[tuple[Path, str], Path] = {}
        self._beside: dict[Path, Path | None] = {}

    def file(self, base: Path, name: str) -> Path:
        """``base / name`` as it is written on disk; where nothing is called so in either Unicode form, as it is given.

        Args:
            base: a folder.
            name: of a file in it, relative, with forward slashes.

        Raises:
            DataError: two files or folders are called so, in other forms than the given one.
        """
        given = base / name
        if name.isascii() or os.path.lexists(given):
            return given
        path = base
        for part in name.split("/"):
            if not os.path.lexists(path / part):
                alike = self._names(path).get(composed(part), [])
                if not alike:
                    return given
                if len(alike) > 1:
                    one, other = (ascii(found) for found in sorted(alike)[:2])
                    raise DataError(
                        f"{path}: holds {one} and {other}, one name but for Unicode's form, of which {part!a} may be "
                        "either: rename one of them"
                    )
                part = alike[0]
            path /= part
        return path

    def folder(self, base: Path, name: str) -> Path:
        """The folder ``name``, in lower case, in ``base``, else the one that is called so but for capitals, else ``base / name``.

        Raises:
            DataError: there are several, all in capitals.
        """
        key = base, name
        if key not in self._folders:
            exact = base / name
            self._folders[key] = exact if exact.is_dir() else only(folders_like(base, [name]).get(name, [exact]))
        return self._folders[key]

    def beside(self, folder: Path) -> Path | None:
        """Another folder that is called as ``folder``, which ``folder()`` gave, but for capitals; None where there is none."""
        if folder not in self._beside:
            name = folder.name.lower()
            others = [one for one in folders_like(folder.parent, [name]).get(name, []) if not _same(one, folder)]
            self._beside[folder] = others[0] if others else None
        return self._beside[folder]

    def _names(self, folder: Path) -> dict[str, list[str]]:
        """The names in a folder by their composed form."""
        if folder not in self._listed:
            found: dict[str, list[str]] = {}
            try:
                for name in os.listdir(folder):  # noqa: PTH208 (names, not paths)
                    found.setdefault(composed(name), []).append(name)
            except OSError:
                pass  # whoever opens the file says what is wrong
            self._listed[folder] = found
        return self._listed[folder]


def folders_like(base: Path, names: Iterable[str]) -> dict[str, list[Path]]:
    """Those of ``names``, in lower case, that are folders in ``base``, whatever their capitals."""
    found: dict[str, list[Path]] = {}
    wanted = frozenset(names)
    try:
        with os.scandir(base) as entries:
            here = sorted(entry.name for entry in entries if entry.name.lower() in wanted and entry.is_dir())
    except OSError:
        return {}
    for name in here:
        found.setdefault(name.lower(), []).append(base / name)
    return found


def _same(one: Path, other: Path) -> bool:
    """Whether both are one folder: a link, or one spelling of it where capitals do not matter."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def only(folders: list[Path]) -> Path:
    """The one folder of a name that is to be read.

    Raises:
        DataError: there are several.
    """
    if len(folders) > 1:
        one, other = folders[:2]
        raise DataError(
            f"{one.parent}: holds {one.name}/ and {other.name}/, of which one can be meant: join or rename one of them"
        )
    return folders[0]
