"""The class table: which values of a label file, or which categories of a list, are which class.

Given as text, ``1=liver,2=tumor``, or as a file: YAML or JSON with ``1: liver`` or ``liver: 1`` (as in the
``dataset.json`` of nnU-Net and the Medical Segmentation Decathlon), or CSV with the columns ``value,name``.
Values that share a name are one class: their masks are united. A name of ``-`` makes a value background, and
``*=-`` all values that are not listed. A colour of a colour mask is written ``#ff0000``.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlsm_adapter.data.entries import id_part, kind_of, read_text, shown
from vlsm_adapter.errors import DataError

_FILES = frozenset({".yaml", ".yml", ".json", ".csv", ".tsv", ".txt"})
_MAX_BYTES = 1024 * 1024
_MAX_CLASSES = 10_000
_MAX_TEXT = 500
_COLOUR = re.compile(r"#([0-9a-fA-F]{6})")
_IGNORED = "-"
_REST = "*"

Key = int | str


@dataclass(frozen=True, slots=True)
class LabelClass:
    """One class.

    Attributes:
        name: what cases and tables call it, and its first text.
        texts: the prompts of level p1; any of them may be used.
        keys: the values, or for COCO the ids or names of categories, that belong to it.
    """

    name: str
    texts: tuple[str, ...]
    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class ClassTable:
    """The classes in the order given, and what is background.

    Attributes:
        classes: at least one.
        ignored: keys that are background beside 0.
        ignores_rest: whether keys that are not listed are background; else they are an error.
    """

    classes: tuple[LabelClass, ...]
    ignored: frozenset[Key] = frozenset()
    ignores_rest: bool = False

    def as_json(self) -> dict[str, Any]:
        """The table as JSON values, to compare with another."""
        return {
            "classes": [[one.name, list(one.texts), list(one.keys)] for one in self.classes],
            "ignored": sorted(map(str, self.ignored)),
            "ignores_rest": self.ignores_rest,
        }

    def values(self, where: str) -> dict[str, tuple[int, ...]]:
        """Class name to values, for files of labels.

        Raises:
            DataError: a key is no number.
        """
        for one in self.classes:
            for key in one.keys:
                if not isinstance(key, int):
                    raise DataError(
                        f"{where}: {shown(key)} is no value of a label file: give numbers or colours, e.g. 1=liver,2=tumor"
                    )
        return {one.name: tuple(key for key in one.keys if isinstance(key, int)) for one in self.classes}


def read_class_table(given: str) -> ClassTable:
    """The table of ``--classes``: a file where ``given`` ends like one (.yaml, .yml, .json, .csv, .tsv, .txt), else itself.

    Raises:
        DataError: the file cannot be read, or the table is no table.
    """
    path = Path(given).expanduser()
    if path.suffix.lower() in _FILES and "=" not in path.name:
        return _read_file(path)
    return table_of(_inline(given), "--classes")


def table_of(pairs: Iterable[tuple[Any, Any]], where: str) -> ClassTable:
    """The table of pairs of key and name (or name and value, or a name for several values).

    Args:
        pairs: as read; a name may be a list of texts, and on the side of the values may stand a list.
        where: begins every message.

    Raises:
        DataError: a key twice, an empty or very long name, no class, or more than 10,000.
    """
    texts_of: dict[str, tuple[str, ...]] = {}
    keys_of: dict[str, list[Key]] = {}
    ignored: set[Key] = set()
    seen: set[Key] = set()
    rest = False
    for number, (left, right) in enumerate(pairs):
        if number >= _MAX_CLASSES:
            raise DataError(f"{where}: more than {_MAX_CLASSES} classes: not a class table")
        keys, texts = _sides(left, right, where)
        for key in keys:
            if key in seen:
                raise DataError(f"{where}: {_shown_key(key)} stands twice: keep one")
            seen.add(key)
        if texts == (_IGNORED,):
            rest = rest or _REST in keys
            ignored.update(key for key in keys if key != _REST)
        elif _REST in keys:
            raise DataError(f"{where}: '*' can only be background: write *=-")
        elif keys != (0,):  # whatever it is called, 0 is background
            if 0 in keys:
                raise DataError(f"{where}: 0 is background and cannot be part of {shown(texts[0])}")
            # The first spelling of a class gives its texts.
            texts_of.setdefault(texts[0], texts)
            keys_of.setdefault(texts[0], []).extend(keys)
    if not texts_of:
        raise DataError(f"{where}: holds no class: write 1=liver,2=tumor or a file with such lines")
    _refuse_overlap(keys_of, ignored, where)
    classes = tuple(LabelClass(name, texts, tuple(keys_of[name])) for name, texts in texts_of.items())
    return ClassTable(classes, frozenset(ignored), rest)


def _refuse_overlap(keys_of: Mapping[str, list[Key]], ignored: set[Key], where: str) -> None:
    lowered: dict[str, str] = {}
    for name, keys in keys_of.items():
        # Class names become parts of file names, on some systems without regard to case.
        if (other := lowered.setdefault(id_part(name.replace(" ", "_")).casefold(), name)) != name:
            raise DataError(
                f"{where}: the classes {shown(other)} and {shown(name)} would give equal file names: rename one"
            )
        if both := ignored.intersection(keys):
            raise DataError(f"{where}: {_shown_key(next(iter(both)))} is a class and background: keep one")


def _sides(left: Any, right: Any, where: str) -> tuple[tuple[Key, ...], tuple[str, ...]]:
    """Which of two sides is the keys and which the name, and both checked."""
    key = _key(left)
    values = right if isinstance(right, list) else [right]
    numbers = [_key(value) for value in values]
    # ``liver: 1`` and ``whole tumor: [1, 2, 3]``: the name stands first where it is no number and the other side is.
    if isinstance(key, str) and values and all(isinstance(number, int) for number in numbers):
        return tuple(number for number in numbers if number is not None), _texts([left], where)
    if key is None or key == "":
        raise DataError(f"{where}: {shown(left)} is no value of a class: write a number, #rrggbb or a category")
    return (key,), _texts(values, where)


def _key(value: Any) -> Key | None:
    """A whole number, a colour as its number, or a text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    if isinstance(value, int):
        return value
    text = value.strip()
    if colour := _COLOUR.fullmatch(text):
        return int(colour[1], 16)
    if re.fullmatch(r"[+-]?[0-9]{1,12}", text):
        return int(text)
    return text


def _texts(values: list[Any], where: str) -> tuple[str, ...]:
    texts: list[str] = []
    for value in values:
        if not isinstance(value, str):
            raise DataError(f"{where}: the name of a class is {kind_of(value)}, not a text")
        text = " ".join(value.split())
        if not text or len(text) > _MAX_TEXT or not text.isprintable():
            raise DataError(
                f"{where}: {shown(value)} cannot name a class: give a text of 1 to {_MAX_TEXT} characters, '-' for background"
            )
        texts.append(text)
    if not texts:
        raise DataError(f"{where}: a class has no name: give a text")
    return tuple(dict.fromkeys(texts))


def _inline(given: str) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for part in given.split(","):
        key, sign, name = part.partition("=")
        if not sign or not key.strip() or not name.strip():
            raise DataError(
                f"--classes {shown(given)}: {shown(part)} is not VALUE=NAME: write 1=liver,2=tumor, or name a YAML or CSV file"
            )
        pairs.append((key.strip(), name.strip()))
    return pairs


def _read_file(path: Path) -> ClassTable:
    where = str(path)
    if path.is_file() and path.stat().st_size > _MAX_BYTES:
        raise DataError(f"{path}: {path.stat().st_size} bytes; a class table has at most {_MAX_BYTES}")
    text = read_text(path)
    if path.suffix.lower() in (".csv", ".tsv", ".txt"):
        return table_of(_csv_pairs(text, "\t" if path.suffix.lower() == ".tsv" else ",", where), where)
    found = _yaml(text, where)
    if isinstance(found, dict) and isinstance(found.get("labels"), dict):
        found = found["labels"]
    if not isinstance(found, dict):
        raise DataError(f"{path}: {kind_of(found)}, not a table: write lines such as '1: liver'")
    return table_of(found.items(), where)


def _csv_pairs(text: str, delimiter: str, where: str) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    try:
        for number, row in enumerate(csv.reader(io.StringIO(text), delimiter=delimiter, strict=True), start=1):
            cells = [cell.strip() for cell in row]
            if not any(cells) or (number == 1 and cells[:2] == ["value", "name"]):
                continue
            if len(cells) != 2:
                raise DataError(f"{where}: line {number} has {len(cells)} columns; needed: value and name")
            pairs.append((cells[0], cells[1]))
    except csv.Error as error:
        raise DataError(f"{where}: not a CSV file ({error})") from None
    return pairs


def _yaml(text: str, where: str) -> Any:
    """A YAML (or JSON) text; a key given twice is an error, as everywhere else."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Plain values only."""

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Hashable, Any]:
        made: dict[Hashable, Any] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable) or key in made:
                raise DataError(f"{where}: the key {shown(key)} stands twice or is a list: keep one")
            made[key] = loader.construct_object(value_node, deep=True)
        return made

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}: not a YAML file ({' '.join(str(error).split())[:160]})") from None


def _shown_key(key: Key) -> str:
    return str(key) if isinstance(key, int) else shown(key)
