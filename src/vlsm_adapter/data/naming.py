"""Giving every case its id and its group: from drafts to records.

An id names files and decides random choices, so it must not change when cases are added elsewhere or the folder
is moved. It is made of names inside the data folder alone, in Unicode's composed form (NFC): macOS may write them otherwise.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from vlsm_adapter.data.entries import id_part, shown
from vlsm_adapter.data.layouts import IMAGE_SUFFIXES, Draft
from vlsm_adapter.data.spellings import composed
from vlsm_adapter.errors import DataError
from vlsm_adapter.types import Record, Skipped

log = logging.getLogger("vlsm_adapter.data")

_MAX_ID_BYTES = 200  # file systems stop at 255, and endings are added
Prompts = Mapping[str, tuple[str, ...]]

# Of names that become ids. Manifests name TGA files since before folders were searched for them; their ids, and with them
# their splits, stay as they were.
_ENDINGS_LEFT_OUT = IMAGE_SUFFIXES - {".tga"}


def finish(
    drafts: Sequence[Draft],
    *,
    dataset: str,
    prompt: str | None,
    skip_bad: bool = False,
    outlines: Sequence[Draft] = (),
    origins: dict[str, Draft] | None = None,
) -> tuple[list[Record], list[Skipped], list[Record]]:
    """Records with unique ids, the cases left out, and the records that bad entries would be.

    An id that the data does not give is the image's name without its ending (``sub/x.png`` is ``sub__x``); where
    several masks share an image, the mask's name is part of it; where several images share a stem, the ending; where
    one case stands in several splits, as in some published lists, the split (a warning is logged: such a case leaks).
    Cases of one image (several masks, labels of a mask, or wordings) form a group unless the data names one. A case listed twice in one split is used
    once; the second is left out, with a warning.

    Args:
        drafts: what the layout holds.
        dataset: the ``dataset`` of the records.
        prompt: takes the place of the data's own prompts.
        skip_bad: leave bad cases out instead of raising.
        outlines: what is legible of the entries that were found bad before (``Collector.outlines``).
        origins: gets the draft of each record, by its case id.

    Returns:
        The records; the cases left out here, with reasons; and, as far as their names are known, records of the bad ones,
        of ``outlines`` and of those left out here, for dividing alone: they have no prompts.

    Raises:
        DataError: a case without a prompt, or a ``case_id`` given twice.
    """
    # Bad entries take part in naming, so that mending one gives no other case another id or group.
    names = _Names([*drafts, *outlines])
    records: list[Record] = []
    left_out: list[Skipped] = []
    bad = list(outlines)
    for draft in drafts:
        prompts = {"p0": ("",), "p1": (prompt.strip(),)} if prompt is not None else draft.prompts
        try:
            if not any(level != "p0" for level in prompts):
                raise DataError(
                    f'{draft.where}: says no prompt: add "prompts": {{"p1": ...}} (or "text"), or pass --prompt "polyp"'
                )
            _check_names(draft)
            case_id = names.name(draft, prompts)
        except _ListedTwice as twice:
            left_out.append(Skipped(twice.case_id, str(draft.image), str(twice)))
            continue
        except DataError as error:
            if not skip_bad:
                raise
            name = draft.case_id or _stem_id(draft.image_name)
            left_out.append(Skipped(_escaped(name), _escaped(draft.image), str(error)))
            bad.append(draft)
            continue
        records.append(_record(draft, case_id, prompts, names, dataset))
        if origins is not None:
            origins[case_id] = draft
    names.warn(dataset)
    return records, left_out, [record for draft in bad if (record := _lost(draft, names, dataset)) is not None]


def _record(draft: Draft, case_id: str, prompts: Prompts, names: _Names, dataset: str) -> Record:
    return Record(
        case_id=case_id,
        image=draft.image,
        mask=draft.mask,
        prompts=prompts,
        split=draft.split,
        group=draft.group or (f"image:{_stem_id(draft.image_name)}" if names.shares_image(draft) else None),
        spacing=draft.spacing,
        mask_value=draft.mask_value,
        dataset=dataset,
        leak_free=draft.leak_free,
    )


def _lost(draft: Draft, names: _Names, dataset: str) -> Record | None:
    """The record that a bad entry would be; None where another has its place."""
    named = replace(
        draft, image_name=_escaped(draft.image_name), mask_name=draft.mask_name and _escaped(draft.mask_name)
    )
    for known in (named, replace(named, case_id=None)):  # an id given twice: mended, it has its own, or none
        try:
            return _record(draft, names.name(known, {}), {}, names, dataset)
        except _ListedTwice:
            return None
        except DataError:
            continue
    return None


def _check_names(draft: Draft) -> None:
    """Refuse names that no text file of ours could hold.

    Raises:
        DataError: the name of the image or mask is not UTF-8, as on discs written elsewhere.
    """
    for path in filter(None, (draft.image, draft.mask)):
        if _escaped(path) != str(path):
            raise DataError(
                f"{_escaped(path)}: the name is not UTF-8; rename the file, such as with 'convmv -f latin1 -t utf8 --notest'"
            )


def _escaped(name: object) -> str:
    """With what is no text as backslash escapes."""
    return str(name).encode("utf-8", "backslashreplace").decode()


class _ListedTwice(Exception):
    """The same image, mask and prompts stand twice in one split."""

    def __init__(self, case_id: str, message: str) -> None:
        super().__init__(message)
        self.case_id = case_id


class _Names:
    """Hands out ids; see ``finish`` for the rule."""

    def __init__(self, drafts: Sequence[Draft]) -> None:
        self._masks_of: dict[Path, set[Path | None]] = {}
        self._images_of: dict[str, set[Path]] = {}
        self._asked_of: dict[Path, set[tuple[object, ...]]] = {}
        for draft in drafts:
            self._masks_of.setdefault(draft.image, set()).add(draft.mask)
            # By the data's own words, whatever --prompt puts in their place: a case listed twice is one.
            asked = (draft.mask, draft.mask_value, repr(sorted(draft.prompts.items())))
            self._asked_of.setdefault(draft.image, set()).add(asked)
            self._images_of.setdefault(_stem_id(draft.image_name), set()).add(draft.image)
        self._taken: dict[str, tuple[Draft, Prompts]] = {}
        self._twice: list[str] = []
        self._in_two_splits: list[str] = []

    def shares_image(self, draft: Draft) -> bool:
        """Whether the image has several cases: masks, labels of a mask, or wordings. No split may divide them."""
        return len(self._asked_of[draft.image]) > 1

    def name(self, draft: Draft, prompts: Prompts) -> str:
        """The id of a case, never given before."""
        case_id = draft.case_id if draft.case_id is not None else self._derive(draft, prompts)
        if case_id in self._taken:
            raise DataError(
                f"{draft.where}: the case id {shown(case_id)} is already that of {self._taken[case_id][0].where}: "
                "give each case its own"
            )
        self._taken[case_id] = (draft, prompts)
        return case_id

    def warn(self, dataset: str) -> None:
        """Log what was found in the list as a whole."""
        if self._twice:
            log.warning(
                "%s: %d case(s) are listed twice in one split and used once, the first is %s",
                dataset,
                len(self._twice),
                self._twice[0],
            )
        if self._in_two_splits:
            log.warning(
                "%s: %d case(s) stand in more than one split, so that scores flatter; the first is %s",
                dataset,
                len(self._in_two_splits),
                self._in_two_splits[0],
            )

    def _derive(self, draft: Draft, prompts: Prompts) -> str:
        stem = _stem_id(draft.image_name)
        name = _id(draft.image_name) if len(self._images_of.get(stem, ())) > 1 else stem
        if len(self._masks_of[draft.image]) > 1 and draft.mask_name is not None:
            mask = _stem_id(draft.mask_name)
            name = mask if mask.startswith(name) else f"{name}__{mask}"
        if len(name.encode()) > _MAX_ID_BYTES:
            name = f"{name.encode()[: _MAX_ID_BYTES - 20].decode(errors='ignore')}_{_digest(name, 6)}"

        # The same image and mask once more: under another split, by a slip, with other words, or another label of it.
        other = self._taken.get(name)
        if other is not None and _same_files(other[0], draft) and other[0].split != draft.split:
            self._in_two_splits.append(name)
            name = f"{name}__{draft.split}"
            other = self._taken.get(name)
        if other is None or not _same_files(other[0], draft):
            return name
        if other[1] != prompts:
            name = f"{name}__{_digest(repr(sorted(prompts.items())), 3)}"
            other = self._taken.get(name)
        if other is not None and other[0].mask_value != draft.mask_value:
            name = f"{name}__label-{'any' if draft.mask_value is None else draft.mask_value}"
            other = self._taken.get(name)
        if other is not None:
            self._twice.append(name)
            raise _ListedTwice(name, f"{draft.where}: the same case as {other[0].where}; used once")
        return name


def _same_files(one: Draft, other: Draft) -> bool:
    return (one.image, one.mask) == (other.image, other.mask)


def _stem_id(name: str) -> str:
    ending = PurePosixPath(name).suffix
    return _id(name[: -len(ending)] if ending.lower() in _ENDINGS_LEFT_OUT else name)


def _id(name: str) -> str:
    return id_part(composed(name))


def _digest(text: str, size: int) -> str:
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()
