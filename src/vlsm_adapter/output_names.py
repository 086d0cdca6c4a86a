"""File names for predictions: safe on every file system, never the same for two different things."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

_SLUG_LENGTH = 40
# Bytes of a name before our endings; file systems stop at 255.
_STEM_BYTES = 150
# What stands beside a mask, or in place of the masks of all prompts.
_BESIDE = ("", "_probability", "_overlay", "_labels", "_contours")
_PLAIN = re.compile(r"[a-z0-9]+( [a-z0-9]+)*")


def prompt_slug(prompt: str) -> str:
    """A short ASCII name for any text, a different one for every text.

    ``"large polyp"`` is ``large-polyp``. Where something is lost (capitals, punctuation, other scripts, length), a hash
    of the text follows after ``_``: ``"Large polyp!"`` is ``large-polyp_`` and ten hexadecimal digits.
    """
    if _PLAIN.fullmatch(prompt) and len(prompt) <= _SLUG_LENGTH:
        return prompt.replace(" ", "-")
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:_SLUG_LENGTH].rstrip("-")
    return f"{words or 'prompt'}_{_hash(prompt, 5)}"


def image_names(images: Sequence[Path]) -> list[str]:
    """A name for each image: its stem; where several share it, the path below their common folder, and the ending.

    Names differ even without regard to case and do not depend on the order of ``images``, which are different files.
    """
    stems = [_short(image.stem) for image in images]
    names = _where_shared(stems, lambda index: _below_common(images[index], images))
    names = _where_shared(names, lambda index: f"{names[index]}_{images[index].suffix[1:]}")
    return _where_shared(names, lambda index: f"{names[index]}_{_hash(os.fsdecode(images[index]), 5)}")


def output_names(images: Sequence[Path], prompts: Sequence[str]) -> list[list[str]]:
    """Base names of the outputs, one list per image with one name per prompt, none of which begins another's files.

    One prompt: the image's name. Several: ``NAME__SLUG``. Each base name also reserves those with the endings of
    ``_BESIDE``.
    """
    return [list(bases) for _, bases in stack_names(images, prompts)]


def stack_names(sources: Sequence[Path], prompts: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """For each source its name, for files about all prompts, and the base names of :func:`output_names`."""
    slugs = [prompt_slug(prompt) for prompt in prompts]
    names = image_names(sources)
    bases = [(name,) if len(prompts) == 1 else tuple(f"{name}__{slug}" for slug in slugs) for name in names]
    reserved = Counter(
        file for name, own in zip(names, bases, strict=True) for file in {*_files_of(name), *_all_files(own)}
    )

    def shared(base: str) -> bool:
        return any(reserved[file] > 1 for file in _files_of(base))

    found = []
    for source, name, own in zip(sources, names, bases, strict=True):
        path = os.fsdecode(source)
        found.append(
            (
                f"{name}_{_hash(path, 5)}" if shared(name) else name,
                tuple(
                    f"{base}_{_hash(f'{path}|{prompt}', 5)}" if shared(base) else base
                    for base, prompt in zip(own, prompts, strict=True)
                ),
            )
        )
    return found


def _files_of(base: str) -> list[str]:
    return [f"{base}{ending}".casefold() for ending in _BESIDE]


def _all_files(bases: Sequence[str]) -> set[str]:
    return {file for base in bases for file in _files_of(base)}


def _where_shared(names: list[str], longer: object) -> list[str]:
    counts = Counter(name.casefold() for name in names)
    return [longer(index) if counts[name.casefold()] > 1 else name for index, name in enumerate(names)]  # type: ignore[operator]


def _below_common(image: Path, images: Sequence[Path]) -> str:
    parents = [os.path.abspath(other.parent) for other in images]  # noqa: PTH100 (links stay as they are)
    try:
        common = Path(os.path.commonpath(parents))
        below = Path(os.path.abspath(image)).relative_to(common)  # noqa: PTH100
    except ValueError:  # different drives
        below = Path(image.name)
    return _short("__".join(below.with_suffix("").parts))


def _short(name: str) -> str:
    encoded = os.fsencode(name)
    if len(encoded) <= _STEM_BYTES:
        return name
    return f"{encoded[: _STEM_BYTES - 20].decode(errors='ignore')}_{_hash(name, 5)}"


def _hash(text: str, size: int) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).hexdigest()
