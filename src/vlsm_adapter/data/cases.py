"""The cases of one data set as a run sees them: by split, with what was left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlsm_adapter.data.checks import require_split
from vlsm_adapter.data.division import Division
from vlsm_adapter.data.records import load_records
from vlsm_adapter.data.splits import SPLITS
from vlsm_adapter.errors import ConfigError, DataError, nearest
from vlsm_adapter.types import Record, Skipped


@dataclass
class Cases:
    """All cases, and those left out.

    Attributes:
        all: every usable case, each with a split.
        skipped: cases left out, with reasons.
        where: the folder or manifest, for messages.
        division: in words how the cases were divided where not as the data says, e.g. ``"5 % of train, split seed 0"``.
    """

    all: list[Record]
    skipped: list[Skipped] = field(default_factory=list)
    where: str = ""
    division: str = ""

    def records(self, split: str) -> list[Record]:
        """The cases of one split, or of ``"all"``.

        Raises:
            ConfigError: no such split.
            DataError: there are no cases in it.
        """
        if split == "all":
            return list(self.all)
        if split not in SPLITS:
            raise ConfigError(f"split '{split}' is unknown: {nearest(split, (*SPLITS, 'all'))}")
        return require_split(self.all, split, self.where)

    def drop(self, case_id: str, path: Path, reason: str) -> None:
        """Leave a case out from now on."""
        self.all = [record for record in self.all if record.case_id != case_id]
        self.skipped.append(Skipped(case_id, str(path), reason))


def load_cases(
    path: str | Path,
    *,
    prompt: str | None = None,
    division: Division | None = None,
    skip_bad: bool = False,
) -> Cases:
    """Read a data set: records, splits, header checks.

    Args:
        path, prompt, skip_bad: as in ``load_records``.
        division: which case is in which split; by default as the data says.

    Raises:
        DataError, ConfigError: as ``load_records`` and ``Division``.
    """
    chosen = division or Division()
    members: set[str] = set()

    def divide(records: Sequence[Record], where: str) -> list[Record]:
        # The subset is chosen of all cases, good and bad: one broken file leaves a gap and changes no other member.
        made = chosen.split(records, where)
        members.update(record.case_id for record in chosen.shrink(made))
        return made

    records, skipped = load_records(path, prompt=prompt, divide=divide, skip_bad=skip_bad)
    return Cases([record for record in records if record.case_id in members], skipped, str(path), str(chosen))


def load_undivided(
    path: str | Path, *, prompt: str | None = None, skip_bad: bool = False
) -> tuple[list[Record], set[str]]:
    """Read a data set as it is, to divide it: the bad cases stand among the others, with the data's own splits.

    Args:
        path, prompt, skip_bad: as in ``load_records``.

    Returns:
        All records, and the ids of those left out as bad; entries that give no record stand only among the latter.

    Raises:
        DataError: as ``load_records``.
    """
    every: list[Record] = []

    def keep(records: Sequence[Record], where: str) -> list[Record]:
        every.extend(records)
        return list(records)

    good, skipped = load_records(path, prompt=prompt, divide=keep, skip_bad=skip_bad)
    # By what is left and not by what was left out: an entry listed twice is left out once, and its case is good.
    usable = {record.case_id for record in good}
    return every, {name for name in (*(r.case_id for r in every), *(s.case_id for s in skipped)) if name not in usable}


def try_all(
    records: Sequence[Record],
    load: Callable[[int], object],
    *,
    skip_bad: bool,
    progress: Callable[[int], None] | None = None,
) -> list[tuple[Record, str]]:
    """Load every case once; the bad ones with their reasons.

    A header can be sound and the pixels not, so this runs before anything is trained, and fills the cache as it goes.

    Args:
        records: the cases; ``load(i)`` loads the i-th and raises DataError where it is unusable.
        skip_bad: collect the bad ones instead of raising.
        progress: called with the number of cases done.

    Raises:
        DataError: the first bad case, without ``skip_bad``.
    """
    bad: list[tuple[Record, str]] = []
    for index, record in enumerate(records):
        try:
            load(index)
        except DataError as error:
            if not skip_bad:
                raise DataError(f"{error} (--skip-bad leaves such cases out and lists them)") from error
            bad.append((record, str(error)))
        if progress is not None:
            progress(index + 1)
    return bad
