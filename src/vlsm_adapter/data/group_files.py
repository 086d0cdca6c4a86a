"""Group files: cases that belong together though the data does not say so, as a JSON list of lists of case ids.

``vlsm data check DIR --groups FILE`` writes the copies that it found, ``vlsm data split DIR --groups FILE`` keeps each set
on one side of a split. Like a split file it holds no path; a file written by hand (patients, recordings) does as well.

::

    {"format": "vlsm-groups", "format_version": 1, "data": "busi", "about": {...}, "groups": [["case_1", "case_7"], ...]}
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlsm_adapter.data.entries import kind_of, parse_json, read_text, shown
from vlsm_adapter.data.splits import unit_of
from vlsm_adapter.errors import DataError
from vlsm_adapter.files import write_text
from vlsm_adapter.types import Record

FORMAT = "vlsm-groups"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class GroupFile:
    """A group file, read and checked.

    Attributes:
        path: the file, for messages.
        groups: sets of case ids; a case in two of them joins them.
    """

    path: Path
    groups: tuple[tuple[str, ...], ...]

    def apply(self, records: Sequence[Record], where: str, *, left_out: Collection[str] = ()) -> list[Record]:
        """``records`` in their order, those of the file grouped, together with the groups they already have.

        A set that touches a patient's group takes in all cases of the patient, and so joins the patients of which it
        holds a case. Cases that the file does not touch are returned as they are.

        Args:
            records: the cases.
            where: the data, for messages.
            left_out: ids of cases that reading left out; the file may name them.

        Raises:
            DataError: a case that the file names is neither in the data nor left out.
        """
        unit = {record.case_id: unit_of(record) for record in records}
        lacking = {name for names in self.groups for name in names} - unit.keys() - set(left_out)
        if lacking:
            raise DataError(
                f"{self.path}: names {len(lacking)} cases that {where} does not have, the first is {shown(min(lacking))}: "
                "use it with the data it was made for, or make a new one (vlsm data check --groups)"
            )
        joined = connected([unit[name] for name in names if name in unit] for names in self.groups)
        # Named by its first unit, so that neither the order of the file nor that of the data matters.
        name_of = {one: f"with {min(units)}" for units in joined for one in units}
        return [
            replace(record, group=name_of[unit[record.case_id]]) if unit[record.case_id] in name_of else record
            for record in records
        ]


def connected(sets: Iterable[Sequence[str]]) -> list[tuple[str, ...]]:
    """Sets joined where they share a name: the connected components of two names and more, sorted."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for names in sets:
        for name in names:
            parent[root(name)] = root(names[0])
    found: dict[str, list[str]] = {}
    for name in sorted(parent):
        found.setdefault(root(name), []).append(name)
    return sorted(tuple(names) for names in found.values() if len(names) > 1)


def read_group_file(path: str | os.PathLike[str]) -> GroupFile:
    """Read a group file.

    Raises:
        DataError: missing, damaged, or of another format.
    """
    file = Path(path).expanduser()
    values = parse_json(read_text(file), str(file))
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise DataError(f"{file}: not a group file; give one that 'vlsm data check DIR --groups FILE' wrote")
    if values.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{file}: format_version {shown(values.get('format_version'))} is not known to this version, which reads "
            f"{FORMAT_VERSION}: update vlsm-adapter, or make the file anew"
        )
    groups = values.get("groups")
    if not isinstance(groups, list):
        raise DataError(f"{file}: 'groups' is {kind_of(groups)}, not a list of lists of case ids")
    for number, names in enumerate(groups):
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f"{file}: group {number} is not a list of case ids")
    return GroupFile(file, tuple(tuple(names) for names in groups))


def check_target(path: str | os.PathLike[str]) -> None:
    """Refuse to write over what is no group file; asked before the data is read.

    Raises:
        DataError: the file is there and is no group file.
    """
    if Path(path).expanduser().exists():
        try:
            read_group_file(path)
        except DataError as error:
            raise DataError(f"{error}; it is not replaced: choose another --groups") from None


def write_group_file(
    path: str | os.PathLike[str], groups: Iterable[Sequence[str]], data: str, about: Mapping[str, Any]
) -> int:
    """Write sets of case ids, joined where they share a case, atomically; an older group file is replaced.

    Returns:
        The number of groups.

    Raises:
        DataError: as ``check_target``.
        UserError: the file cannot be written.
    """
    check_target(path)
    joined = connected(groups)
    values = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "data": data,
        "about": dict(about),
        "groups": [list(names) for names in joined],
    }
    write_text(Path(path).expanduser(), json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return len(joined)
