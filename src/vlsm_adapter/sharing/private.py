"""What must not leave this machine: places on it. File names tell patients, users and projects."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vlsm_adapter.errors import UserError

# /home/ann, ~/data, C:\data, \\server\share, file:///...; not https://a/b, and/or, 1/2.
_PATH = re.compile(
    r"(?<![\w/:.~\\])~?/(?:[^\s/\\'\"`|)]+/)+[^\s'\"`|)]*"
    r"|(?<!\w)~/[^\s'\"`|)]+"
    r"|(?<!\w)[A-Za-z]:[\\/](?![\\/])[^\s'\"`|)]+"
    r"|\\\\\w[^\s'\"`|)]*"
    r"|\bfile:/[^\s'\"`|)]+"
)


def local_path(text: str) -> str | None:
    """The first absolute path of a file system in ``text``, or None."""
    found = _PATH.search(text)
    return found.group() if found else None


def texts_in(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """All texts in a JSON value, keys among them, each with the dotted name of its place."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield name, str(key)
            yield from texts_in(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from texts_in(inner, f"{name}[{number}]")


def refuse_paths(where: str, texts: Iterable[tuple[str, str]], places: Iterable[Path] = (), *, whole: bool) -> None:
    """Raise where a text tells a place on this machine.

    Args:
        where: the file, for the message.
        texts: place in the file and text.
        places: folders that may not stand in any text, whatever its form.
        whole: a text that is nothing but ``/NAME`` counts too.

    Raises:
        UserError: names the place and the path.
    """
    known = [str(place) for place in places if place.is_absolute() and len(place.parts) > 2]
    for name, text in texts:
        found = next((place for place in known if place in text), None) or local_path(text)
        if found is None and whole and re.fullmatch(r"~?/\S+", text):
            found = text
        if found is not None:
            at = f" ({name})" if name else ""
            raise UserError(
                f"{where}{at}: holds '{found}', a place on this machine, which is not shared; take it out first"
            )
