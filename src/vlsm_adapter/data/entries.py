"""Reading what other people wrote: JSON of any origin, its fields, and the file names in it.

A data set's JSON may be damaged or made to do harm. Everything here either returns a checked value or raises
one ``DataError`` that names the file, the entry and the field. JSON is read by the letter of RFC 8259 (NaN and
infinities are refused), and a key may stand only once in an object.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from vlsm_adapter.data.spellings import composed
from vlsm_adapter.errors import DataError

MAX_JSON_BYTES = 256 * 1024 * 1024
MAX_NAME = 1024
MAX_TEXT = 10_000
_DRIVE = re.compile(r"^[A-Za-z]:")
_LEVEL = re.compile(r"^[A-Za-z0-9_.-]{1,32}$")
_UNSAFE_IN_ID = re.compile(r"[\x00-\x1f\x7f\\/:*?\"<>|]")
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def read_text(path: Path, most_bytes: int | None = None) -> str:
    """The text of a UTF-8 file (a byte order mark is dropped).

    Raises:
        DataError: missing, unreadable, larger than ``most_bytes`` (256 MiB by default), or not UTF-8.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path}: no such file: check the path")
        size, most_bytes = path.stat().st_size, most_bytes or MAX_JSON_BYTES
        if size > most_bytes:
            raise DataError(
                f"{path}: {size / 2**20:.0f} MiB; a list of cases may have at most {most_bytes // 2**20} MiB: split it"
            )
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}): check the file and its permissions"
        ) from None


def parse_json(text: str, where: str) -> Any:
    """The value of one JSON text; ``where`` begins the message.

    Raises:
        DataError: not JSON, nested too deep, a key given twice, NaN, or a number of thousands of digits.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(items)
        if len(made) < len(items):
            seen: set[str] = set()
            twice = next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise DataError(f"{where}: the key {shown(twice)} stands twice in one object: keep one")
        return made

    def constant(name: str) -> NoReturn:
        raise DataError(f"{where}: {name} is not JSON: give a number or null")

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except DataError:
        raise
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON (line {error.lineno}, column {error.colno}: {error.msg})") from None
    except RecursionError:
        raise DataError(f"{where}: nested too deep to be a list of cases") from None
    except ValueError:
        # Python refuses to convert integers of more than some thousand digits.
        raise DataError(f"{where}: holds a number of thousands of digits: no list of cases needs one") from None


def shown(value: Any, limit: int = 60) -> str:
    """``value`` as it may stand in a one-line message: quoted, escaped, cut."""
    text = ascii(value) if not isinstance(value, str) or not value.isprintable() else f"'{value}'"
    return text if len(text) <= limit else f"{text[: limit - 4]}...{text[-1]}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a list of cases, with typed access to its fields.

    Attributes:
        values: the JSON object.
        where: ``FILE: entry 12``, the start of every message.
        root: the folder that file names are relative to and may not leave (resolved).
    """

    values: Mapping[str, Any]
    where: str
    root: Path

    @classmethod
    def of(cls, value: Any, where: str, root: Path) -> Entry:
        """Wrap ``value``; raises DataError when it is no object."""
        if not isinstance(value, dict):
            raise DataError(f"{where}: {kind_of(value)}, not an object with file names and prompts")
        return cls(value, where, root)

    def fail(self, field: str, problem: str) -> NoReturn:
        """Raise the DataError of one field."""
        raise DataError(f"{self.where}, '{field}': {problem}")

    def text(self, field: str) -> str | None:
        """A non-empty text, or None where the field is absent or null."""
        value = self.values.get(field)
        if value is None:
            return None
        if not isinstance(value, str):
            self.fail(field, f"{kind_of(value)}, not a text")
        if not value.strip():
            self.fail(field, "empty; give a text or leave the field out")
        self._readable(field, value)
        return value

    def group(self) -> str | None:
        """The field ``group`` in Unicode's composed form, so that a patient is one however his name is written, or None."""
        value = self.text("group")
        return None if value is None else composed(value)

    def file_name(self, field: str) -> str | None:
        """A relative file name with forward slashes that does not climb out of its folder, or None."""
        value = self.text(field)
        if value is not None and (problem := unsafe_name(value)):
            self.fail(field, f"{shown(value)} {problem}")
        return value

    def needed_file_name(self, field: str) -> str:
        """As ``file_name``; an absent field is an error."""
        value = self.file_name(field)
        if value is None:
            has = ", ".join(shown(key) for key in list(self.values)[:8]) or "nothing"
            self.fail(field, f"missing; every entry needs it (this one has {has})")
        return value

    def inside(self, field: str, path: Path) -> Path:
        """``path`` made absolute, links followed; refused when it lies outside ``root``."""
        try:
            resolved = path.resolve()
        except (OSError, RuntimeError, ValueError) as error:
            self.fail(field, f"{shown(str(path), 300)} cannot be followed ({type(error).__name__}): a loop of links?")
        if not resolved.is_relative_to(self.root):
            self.fail(
                field,
                f"{shown(str(path), 300)} is a link that leads out of {self.root}: copy the file into the data folder",
            )
        return resolved

    def case_id(self) -> str | None:
        """The field ``case_id``, usable as a file name; a whole number is taken as text."""
        value = self.values.get("case_id")
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        text = self.text("case_id")
        if text is not None and (_UNSAFE_IN_ID.search(text) or text.startswith(".") or len(text.encode()) > 200):
            self.fail("case_id", f"{shown(text)} cannot name a file: use letters, digits, '_', '-', '.' (at most 200)")
        return text

    def split(self, field: str = "split") -> str | None:
        """``"train"``, ``"val"``, ``"test"`` or None; ``validation``, ``valid``, ``dev`` are val."""
        text = self.text(field)
        if text is None:
            return None
        split = _SPLITS.get(text.strip().lower())
        if split is None:
            self.fail(field, f"unknown split {shown(text)}; allowed: train, val, test")
        return split

    def spacing(self) -> tuple[float, float] | None:
        """``[row, column]`` in mm per pixel, both positive, or None."""
        value = self.values.get("spacing")
        if value is None:
            return None
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = [value, value]
        if not (isinstance(value, list) and len(value) == 2):
            self.fail("spacing", f"{shown(value)}; give [row, column] in mm per pixel")
        numbers: list[float] = []
        for number in value:
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                self.fail("spacing", f"{shown(number)} is not a number; give [row, column] in mm per pixel")
            # 1e400 is read as infinity and a whole number of 400 digits has no float; neither is a pixel size.
            if not 1e-6 <= number <= 1e6 or not math.isfinite(number):
                self.fail("spacing", f"{shown(number)} is out of range; a pixel has 0.000001 to 1000000 mm")
            numbers.append(float(number))
        return numbers[0], numbers[1]

    def mask_value(self) -> int | None:
        """The value that means foreground in a multi-label mask, 0 to 2^24 - 1, or None."""
        value = self.values.get("mask_value")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**24:
            self.fail("mask_value", f"{shown(value)}; give a whole number from 0 to 16777215")
        return value

    def leak_free(self) -> tuple[str, ...] | None:
        """The levels whose words were not drawn from the mask, or None where the field is absent."""
        value = self.values.get("leak_free")
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(level, str) and _LEVEL.match(level) for level in value):
            self.fail("leak_free", f'{shown(value)}; give a list of prompt levels such as ["p1"]')
        return tuple(dict.fromkeys(value))

    def prompts(self) -> dict[str, tuple[str, ...]]:
        """``prompts`` (level to text or texts) and ``text`` (short for level p1); empty levels are left out.

        Level p0 is the empty prompt; elsewhere an empty text says nothing and is dropped.
        """
        value = self.values.get("prompts")
        if value is None:
            value = {}
        if isinstance(value, (str, list)):
            value = {"p1": value}
        if not isinstance(value, dict):
            self.fail("prompts", f'{kind_of(value)}; give an object such as {{"p1": "polyp"}}')
        levels: dict[str, tuple[str, ...]] = {}
        for level, given in value.items():
            if not _LEVEL.match(level):
                self.fail("prompts", f"{shown(level)} cannot name a prompt level; use p0, p1, ...")
            texts = self._texts(f"prompts.{level}", given)
            if level == "p0":
                levels[level] = ("",)
            elif kept := tuple(text.strip() for text in texts if text.strip()):
                levels[level] = kept
        text = self.values.get("text")
        if text is not None and "p1" not in levels:
            levels["p1"] = tuple(one.strip() for one in self._texts("text", text) if one.strip())
            if not levels["p1"]:
                self.fail("text", "empty; give the word for what the mask shows")
        return levels

    def _texts(self, field: str, value: Any) -> list[str]:
        texts = value if isinstance(value, list) else [value]
        for text in texts:
            if not isinstance(text, str):
                self.fail(field, f"{kind_of(text)}, not a text or a list of texts")
            if len(text) > MAX_TEXT:
                self.fail(field, f"{len(text)} characters; a prompt may have at most {MAX_TEXT}")
            self._readable(field, text)
        return texts

    def _readable(self, field: str, text: str) -> None:
        if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
            self.fail(field, f"{shown(text)} holds a character that is not text (NUL or half a surrogate pair)")


def unsafe_name(name: str) -> str:
    """Why ``name`` may not be used as a file name inside a data folder, or an empty text where it may."""
    if len(name) > MAX_NAME:
        return f"has {len(name)} characters; a file name may have at most {MAX_NAME}"
    if any(ord(char) < 32 or ord(char) == 127 for char in name):
        return "holds a control character: rename the file"
    if "\\" in name:
        return "has a backslash: write folders with '/'"
    if name.startswith(("/", "~")) or _DRIVE.match(name):
        return "is not relative: give the name relative to the data folder"
    if ".." in name.split("/"):
        return "climbs out of its folder ('..'): give a name inside the data folder"
    return ""


def id_part(text: str) -> str:
    """``text`` with everything that cannot stand in a file name replaced."""
    return _UNSAFE_IN_ID.sub("_", text.replace("/", "__")).lstrip(".") or "_"


def kind_of(value: Any) -> str:
    """The JSON kind of ``value`` for a message: ``a number``, ``a list``, ..."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def real_folder(path: str | os.PathLike[str]) -> Path:
    """``path`` absolute, links followed.

    Raises:
        DataError: the path cannot be followed.
    """
    try:
        return Path(path).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{shown(str(path), 200)}: cannot be followed ({error})") from None
