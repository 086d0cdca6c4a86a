"""Class names and their general descriptions, from ``classes.yaml`` and from a user's file of the same form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlsm_adapter.data.entries import MAX_TEXT, kind_of, read_text, shown
from vlsm_adapter.errors import DataError, nearest

BUILT_IN = Path(__file__).with_name("classes.yaml")
_KEYS = ("plural", "also", "seen_in", "descriptions")
_MOST = 1_000_000


@dataclass(frozen=True, slots=True)
class ClassEntry:
    """One class.

    Attributes:
        name: as a prompt says it, singular.
        plural: of the name.
        descriptions: what is true of every case of it; each can follow the name and a comma.
        seen_in: the kind of picture it is seen in, or "".
    """

    name: str
    plural: str
    descriptions: tuple[str, ...] = ()
    seen_in: str = ""


class Classes:
    """All known classes, found by their name or by how a data set calls them.

    Args:
        entries: the classes by name.
        aliases: other names, as :func:`plain` gives them, to the name.
    """

    def __init__(self, entries: Mapping[str, ClassEntry], aliases: Mapping[str, str]) -> None:
        self.entries = dict(entries)
        self._aliases = {plain(name): name for name in entries} | dict(aliases)

    @classmethod
    def load(cls, file: str | Path | None = None) -> Classes:
        """The classes of the package, and over them those of ``file``.

        Raises:
            DataError: the file cannot be read, is not YAML of that form, or gives one name to two classes.
        """
        entries, aliases = _read(BUILT_IN)
        if file is not None:
            more, other = _read(Path(file))
            replaced = {plain(name) for name in more} | set(other)
            aliases = {alias: name for alias, name in aliases.items() if alias not in replaced and name not in more}
            entries = {name: entry for name, entry in entries.items() if plain(name) not in replaced} | more
            aliases = {alias: name for alias, name in aliases.items() if name in entries} | other
        return cls(entries, aliases)

    def find(self, text: str) -> ClassEntry | None:
        """The class that ``text``, a name or a data set's own p1, means; None if it is none of them."""
        name = self._aliases.get(plain(text))
        return None if name is None else self.entries[name]

    def of(self, text: str) -> ClassEntry:
        """As :meth:`find`; a class of the text's own words, without a description, where there is none."""
        found = self.find(text)
        if found is not None:
            return found
        words = _as_name(text)
        return ClassEntry(words, _plural(words))


def plain(text: str) -> str:
    """``text`` for comparison: lower case, single spaces, without a full stop, an article or a leading "no"."""
    flat = " ".join(text.lower().split()).rstrip(". ")
    return re.sub(r"^(?:(?:no|a|an|the) )+", "", flat)


def _as_name(text: str) -> str:
    """A data set's own p1 as a name inside a sentence: "No tumor in the image." as "tumor in the image"."""
    words = re.sub(r"^(?:(?:no|a|an|the) )+", "", " ".join(text.split()).rstrip(". "), flags=re.IGNORECASE)
    # Abbreviations keep their capitals.
    return words[:1].lower() + words[1:] if words[1:2].islower() else words


def _plural(name: str) -> str:
    if re.search(r"[^aeiou]y$", name):
        return name[:-1] + "ies"
    return name + ("es" if re.search(r"(s|x|z|ch|sh)$", name) else "s")


def _read(file: Path) -> tuple[dict[str, ClassEntry], dict[str, str]]:
    import yaml

    text = read_text(file)
    if len(text) > _MOST:
        raise DataError(f"{file}: {len(text):,} characters; a file of classes may have {_MOST:,}: split it")
    try:
        values = _yaml(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}: {getattr(error, 'problem', '') or 'syntax'})" if mark else ""
        raise DataError(f"{file}: not valid YAML{where}: see the head of {BUILT_IN.name} for the form") from None
    if not isinstance(values, dict) or not values:
        raise DataError(f"{file}: {kind_of(values)}, not a table of classes: see the head of {BUILT_IN.name}")
    entries: dict[str, ClassEntry] = {}
    aliases: dict[str, str] = {}
    for name, about in values.items():
        entry, also = _entry(file, name, about)
        entries[entry.name] = entry
        for alias in (entry.name, *also):
            if aliases.setdefault(plain(alias), entry.name) != entry.name:
                raise DataError(
                    f"{file}: {shown(alias)} names both '{aliases[plain(alias)]}' and '{entry.name}': keep one"
                )
    return entries, aliases


def _entry(file: Path, name: Any, about: Any) -> tuple[ClassEntry, list[str]]:
    name = _text(file, "a class name", name)
    where = f"class '{name}'"
    if about is None:
        about = {}
    if not isinstance(about, dict):
        raise DataError(f"{file}: {where} is {kind_of(about)}: give a table with {', '.join(_KEYS)}")
    for key in about:
        if key not in _KEYS:
            raise DataError(f"{file}: {where} has the unknown key {shown(key)}: {nearest(str(key), _KEYS)}")
    lists: dict[str, list[str]] = {}
    for key in ("also", "descriptions"):
        given = about.get(key) or []
        if not isinstance(given, list):
            raise DataError(f"{file}: {where}, '{key}' is {kind_of(given)}: give a list of texts")
        lists[key] = [_text(file, f"{where}, '{key}'", one) for one in given]
    plural = _text(file, f"{where}, 'plural'", about["plural"]) if about.get("plural") else _plural(name)
    seen_in = _text(file, f"{where}, 'seen_in'", about["seen_in"]) if about.get("seen_in") else ""
    descriptions = tuple(text.rstrip(". ") for text in lists["descriptions"])
    return ClassEntry(name, plural, descriptions, seen_in), lists["also"]


def _text(file: Path, where: str, value: Any) -> str:
    if not isinstance(value, str) or not plain(value):
        hint = ": quote it" if isinstance(value, (bool, int, float)) else ""  # YAML reads a bare `no` as false
        raise DataError(f"{file}: {where} is {kind_of(value) if value != '' else 'empty'}, not a text{hint}")
    if len(value) > MAX_TEXT or not value.replace("\n", " ").isprintable():
        raise DataError(f"{file}: {where} is too long or holds characters that are not text: {shown(value)}")
    return " ".join(value.split())


def _yaml(text: str) -> Any:
    """The value of a YAML text of plain values; a key given twice is an error, not a silent replacement."""
    import yaml  # when a file is read, not before

    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        made: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            if not isinstance(key, (str, bool, int, float)) or key in made:
                problem = f"the key {key!r} stands twice" if isinstance(key, str) else "not a name"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            made[key] = loader.construct_object(value_node, deep=True)
        return made

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    return yaml.load(text, Loader)
