"""What the user may say about material that is imported; each format takes some of it (``FORMATS``)."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlsm_adapter.data.entries import Entry, kind_of, shown
from vlsm_adapter.data.importing.classes import ClassTable, read_class_table
from vlsm_adapter.data.spellings import composed
from vlsm_adapter.data.splits import place
from vlsm_adapter.errors import ConfigError, DataError, nearest

PLANES = ("axial", "coronal", "sagittal", "native")


@dataclass(frozen=True, slots=True)
class Options:
    """The options of an import; None (or empty) where the user said nothing.

    Attributes:
        prompt: what the masks show; of several categories or labels it makes one class.
        classes: the class table.
        images, masks: folders of the images and masks where they stand elsewhere (``masks`` may be a file for one volume).
        columns: our name of a column to the table's own.
        keep: columns of a table kept as attributes.
        empty: share of the cases with an empty mask that is kept, 0 to 1.
        plane: of the slices of a volume, one of ``PLANES``.
        window: (level, width) of the intensities that become 0 to 255.
        percentiles: (low, high) of a volume's intensities that become 0 and 255.
        frame: which frame of a 4D volume, or ``"all"``.
        channel: which channel file (``_0000``, ``_0001``, ...) of a volume.
        group_by: found in an image's name, it gives the group: its first bracket, or all of it.
        spacing: (row, column) in mm per pixel, where the files do not say it.
    """

    prompt: str | None = None
    classes: ClassTable | None = None
    images: Path | None = None
    masks: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    empty: float | None = None
    plane: str | None = None
    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = None
    frame: int | str | None = None
    channel: int | None = None
    group_by: re.Pattern[str] | None = None
    spacing: tuple[float, float] | None = None

    @classmethod
    def parse(cls, given: Mapping[str, str | None]) -> Options:
        """Options from texts, as the command line has them; a None is left out.

        Raises:
            ConfigError: an unknown name, or a value that is out of range; one line that says what is allowed.
            DataError: the class table cannot be read.
        """
        values: dict[str, Any] = {}
        for name, text in given.items():
            if text is None:
                continue
            if name not in _READERS:
                raise ConfigError(f"unknown option '{name}': {nearest(name, _READERS)}")
            values[name] = _READERS[name](text)
        options = cls(**values)
        if options.window is not None and options.percentiles is not None:
            raise ConfigError("--window and --percentiles both say which intensities become 0 to 255: give one")
        if options.prompt is not None and options.classes is not None:
            raise ConfigError("--prompt and --classes both name what the masks show: give one")
        return options

    def given(self) -> dict[str, Any]:
        """The options that were given, as JSON values; folders by their name alone."""
        values: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value is None or value in ({}, ()):
                continue
            if isinstance(value, ClassTable):
                value = value.as_json()
            elif isinstance(value, Path):
                value = value.name
            elif isinstance(value, re.Pattern):
                value = value.pattern
            elif isinstance(value, tuple):
                value = list(value)
            values[item.name] = dict(value) if item.name == "columns" else value
        return values

    def group_of(self, name: str, group: str | None) -> str | None:
        """The group of the image called ``name``: by ``group_by`` if given, else ``group``.

        Raises:
            DataError: ``group_by`` is not found in the name.
        """
        if self.group_by is None:
            return group
        # One form for names and groups: "Müller" is one patient, whatever system wrote the files.
        found = self.group_by.search(composed(name))
        if found is None:
            raise DataError(
                f"{name}: --group-by {shown(self.group_by.pattern)} is not found in this name: widen the pattern"
            )
        # An optional bracket that took no part gives None.
        text = (found[1] if self.group_by.groups else None) or found[0]
        if not text:
            raise DataError(f"{name}: --group-by {shown(self.group_by.pattern)} finds an empty text in this name")
        return text

    def keeps_empty(self, case_id: str, default: float) -> bool:
        """Whether a case with an empty mask is kept: by a hash of its id, the same on every machine."""
        share = default if self.empty is None else self.empty
        return share >= 1 or (share > 0 and place(f"empty:{case_id}", 0) < share)


def command_line(material: str, given: Mapping[str, str | None], *, out: str, skip_bad: bool = False) -> str:
    """The command that imports ``material``, for the card of the set; files by their name alone."""
    words = ["vlsm", "data", "import", material, "--out", out]
    for name, text in given.items():
        if text is not None:
            looks_like_file = name in ("images", "masks", "classes") and "=" not in text
            words += ["--" + name.replace("_", "-"), Path(text).name if looks_like_file else text]
    return shlex.join(words + (["--skip-bad"] if skip_bad else []))


def _read_prompt(text: str) -> str:
    prompt = " ".join(text.split())
    if not prompt:
        raise ConfigError('--prompt is empty: say what the masks show, e.g. --prompt "polyp"')
    return prompt


def _read_images(text: str) -> Path:
    return _folder("images", text)


def _read_masks(text: str) -> Path:
    path = Path(text).expanduser()
    if not text.strip() or not path.exists():
        raise DataError(f"--masks {shown(text, 300)}: no such file or folder: check the path")
    return path


def _folder(name: str, text: str) -> Path:
    path = Path(text).expanduser()
    if not text.strip() or not path.is_dir():
        raise DataError(f"--{name} {shown(text, 300)}: no such folder: check the path")
    return path


def _read_columns(text: str) -> dict[str, str]:
    from vlsm_adapter.data.importing.tables import COLUMNS

    columns: dict[str, str] = {}
    for part in text.split(","):
        ours, sign, theirs = (piece.strip() for piece in part.partition("="))
        if not sign or not theirs:
            raise ConfigError(
                f"--columns {shown(text)}: {shown(part)} is not OURS=THEIRS: write image=file,mask=seg_file"
            )
        if ours not in COLUMNS:
            raise ConfigError(f"--columns {shown(text)}: unknown column '{ours}': {nearest(ours, COLUMNS)}")
        if ours in columns:
            raise ConfigError(f"--columns {shown(text)}: '{ours}' stands twice: keep one")
        columns[ours] = theirs
    return columns


def _read_keep(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise ConfigError("--keep is empty: name columns of the table, e.g. --keep age,sex")
    return names


def _read_empty(text: str) -> float:
    named = {"keep": 1.0, "drop": 0.0}
    if text in named:
        return named[text]
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise ConfigError(f"--empty {shown(text)}: give keep, drop, or the share that is kept, e.g. 0.1")
    return share


def _read_plane(text: str) -> str:
    if text not in PLANES:
        raise ConfigError(f"--plane {shown(text)}: {nearest(text, PLANES)}")
    return text


def _read_window(text: str) -> tuple[float, float]:
    level, width = _two("window", text, "level,width, e.g. 40,400 for soft tissue in CT")
    if width <= 0:
        raise ConfigError(f"--window {shown(text)}: the width must be above 0; give level,width, e.g. 40,400")
    return level, width


def _read_percentiles(text: str) -> tuple[float, float]:
    low, high = _two("percentiles", text, "low,high, e.g. 0.5,99.5")
    if not 0 <= low < high <= 100:
        raise ConfigError(f"--percentiles {shown(text)}: give 0 <= low < high <= 100, e.g. 0.5,99.5")
    return low, high


def _two(name: str, text: str, allowed: str) -> tuple[float, float]:
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        first = second = math.nan
    if not (math.isfinite(first) and math.isfinite(second)):
        raise ConfigError(f"--{name} {shown(text)}: give {allowed}")
    return first, second


def _read_frame(text: str) -> int | str:
    return text if text == "all" else _count("frame", text, "a number from 0, or all")


def _read_channel(text: str) -> int:
    return _count("channel", text, "a number from 0")


def _count(name: str, text: str, allowed: str) -> int:
    if not re.fullmatch("[0-9]{1,6}", text):
        raise ConfigError(f"--{name} {shown(text)}: give {allowed}")
    return int(text)


def _read_group_by(text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(composed(text))
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"--group-by {shown(text)}: not a regular expression ({error})") from None
    if not text:
        raise ConfigError("--group-by is empty: give a pattern, e.g. '^(patient[0-9]+)'")
    return pattern


def _read_spacing(text: str) -> tuple[float, float]:
    try:
        return spacing_of(text, Entry({}, "--spacing", Path()))
    except DataError as error:
        raise ConfigError(str(error)) from None


def spacing_of(text: Any, entry: Entry) -> tuple[float, float]:
    """``0.5`` or ``0.5,0.4`` (also with a space, ``x`` or ``;`` between, or in brackets) as (row, column) in mm.

    Raises:
        DataError: not one or two numbers from 1e-6 to 1e6.
    """
    if not isinstance(text, str):
        raise DataError(f"{entry.where}: {kind_of(text)}; give mm per pixel, e.g. 0.5 or 0.5,0.4 (row, column)")
    parts = [part for part in re.split(r"[\s,;x]+", text.strip().strip("[]()")) if part]
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise DataError(
            f"{entry.where}, 'spacing': {shown(text)}; give mm per pixel, e.g. 0.5 or 0.5,0.4 (row, column)"
        )
    found = Entry({"spacing": numbers if len(numbers) == 2 else numbers[0]}, entry.where, entry.root).spacing()
    if found is None:  # it was given
        raise DataError(f"{entry.where}, 'spacing': empty")
    return found


_READERS: dict[str, Callable[[str], Any]] = {
    "prompt": _read_prompt,
    "classes": read_class_table,
    "images": _read_images,
    "masks": _read_masks,
    "columns": _read_columns,
    "keep": _read_keep,
    "empty": _read_empty,
    "plane": _read_plane,
    "window": _read_window,
    "percentiles": _read_percentiles,
    "frame": _read_frame,
    "channel": _read_channel,
    "group_by": _read_group_by,
    "spacing": _read_spacing,
}
