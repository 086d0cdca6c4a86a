"""Which cases an adapter has seen: what training recorded, beside what is evaluated now."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlsm_adapter.config import RunConfig
from vlsm_adapter.console import Console
from vlsm_adapter.data.cases import Cases, load_cases
from vlsm_adapter.data.digests import FileDigests
from vlsm_adapter.errors import UserError
from vlsm_adapter.resume_from import own_division, weights_hash
from vlsm_adapter.run_folder import RunFolder
from vlsm_adapter.types import Record, Skipped

_OWN, _BEFORE = "training_images", "parent_images"  # in data.json
_DIGEST = hashlib.sha256().digest_size
_NOT_KNOWN_BEFORE = "what the adapter was trained on that training began from is not known here: not counted"


def left_out_in_training(trained: Mapping[str, Any], split: str, cases: Cases) -> list[Skipped]:
    """Cases of other splits that training left out after decoding them; here only headers are read of those."""
    listed = trained.get("skipped")
    if not isinstance(listed, list):
        return []
    try:
        found = [Skipped(case["case_id"], case["path"], case["reason"]) for case in listed]
    except (TypeError, KeyError):
        return []
    known = {case.case_id for case in cases.skipped} | {record.case_id for record in cases.all if record.split == split}
    return [case for case in found if case.case_id not in known]


def own_data_elsewhere(run: RunFolder, data: str | Path) -> RunConfig | None:
    """The run's configuration with ``data`` as its data, where that is the run's own in another place; else None.

    It is where the run's folder is gone, and ``data``, divided as the run divides its own, has the training cases that the
    run recorded, with the images that it was trained on.
    """
    config, splits, kept = run.config(), run.data().get("splits"), _kept(run, _OWN)
    if Path(config.data.path).exists() or not isinstance(splits, dict) or kept is None:
        return None
    moved = replace(config, data=replace(config.data, path=str(data)))
    try:
        cases = load_cases(data, prompt=config.data.prompt, division=own_division(moved), skip_bad=True)
    except UserError:  # said of it as of other data
        return None
    training, digests = [record for record in cases.all if record.split == "train"], FileDigests()
    if not training or {record.case_id for record in training} != set(splits.get("train", ())):
        return None
    return moved if all(digests.of(record.image) in kept.digests for record in training) else None


@dataclass(frozen=True)
class Images:
    """Images that were trained on, by their content.

    Attributes:
        digests: SHA-256 of those that could be read.
        complete: whether these are all; of images that were deleted or renamed since, nothing is known.
    """

    digests: frozenset[bytes] = frozenset()
    complete: bool = True


@dataclass(frozen=True)
class TrainedOn:
    """How many of some cases show an image that an adapter was trained on, by the content of the images.

    Attributes:
        count: all of them, of the run and of what it began from; None where nothing is known, and of a run's own data, whose
            cases are compared by their ids (:func:`compare_with_training`).
        before: those that only adapters before it were trained on.
        known: whether the training images of the run, and of all that it began from, were there to compare with.
    """

    count: int | None = None
    before: int = 0
    known: bool = False


def trained_on(run: RunFolder, records: Sequence[Record], console: Console) -> TrainedOn:
    """What of data given with ``data`` the run was trained on, and the adapters that it began from.

    By the content of the images: copies of the data, and data that overlaps with the run's own, are found as well.
    """
    digests = FileDigests()
    own, before = _own_images(run, digests), images_before(run, digests)
    if own is None:
        console.say("the images that the run was trained on are not here: whether it has seen these cases is not known")
    elif not own.complete:
        console.say(
            "some images that the run was trained on are no longer there: whether it has seen more is not known"
        )
    if before is None or not before.complete:
        console.say(_NOT_KNOWN_BEFORE)
    of_run, of_parents = (images.digests if images is not None else frozenset() for images in (own, before))
    if own is None and not of_parents:
        return TrainedOn()
    found = [digests.of(record.image) for record in records]
    by_run = sum(one in of_run for one in found)
    earlier = sum(one in of_parents and one not in of_run for one in found)
    if own is None and not earlier:
        return TrainedOn()
    if count := by_run + earlier:
        whose = f" ({earlier} of them by the adapter that training began from)" if earlier else ""
        console.warn(f"{count} of {len(records)} cases were trained on{whose}: give data that training has not seen")
    return TrainedOn(count, earlier, all(images is not None and images.complete for images in (own, before)))


def trained_on_before(run: RunFolder, records: Sequence[Record], console: Console) -> TrainedOn:
    """What of cases of its own data, other than its training cases, the adapters that a run began from were trained on."""
    digests = FileDigests()
    before = images_before(run, digests)
    if before is None or not before.complete:
        console.say(_NOT_KNOWN_BEFORE)
    if before is None or not before.digests:
        return TrainedOn(known=before is not None and before.complete)
    splits = run.data().get("splits")
    own = set(splits.get("train", ())) if isinstance(splits, dict) else set()
    count = sum(record.case_id not in own and digests.of(record.image) in before.digests for record in records)
    if count:
        console.warn(
            f"{count} of {len(records)} cases were trained on by the adapter that training began from: evaluate on data that "
            "it has not seen, --data DIR"
        )
    return TrainedOn(before=count, known=before.complete)


def kept_for_later(run: RunFolder, training: Sequence[Record]) -> dict[str, Any]:
    """Of the images that a run trains on what its ``data.json`` keeps, so that later changes of the data hide none.

    What an earlier part of a resumed run has kept stays: an image may have changed in between.

    Args:
        training: the cases that it trains on.
    """
    resumed = run.state_file.is_file()
    # What a run of an older version had seen before it was resumed is not known.
    earlier = (_kept(run, _OWN) or Images(complete=False)) if resumed else Images()
    digests = FileDigests()
    found = [digests.of(record.image) for record in training]
    read = {digest for digest in found if digest is not None} | earlier.digests
    return _to_keep(Images(frozenset(read), None not in found and earlier.complete), _OWN)


def kept_of_before(run: RunFolder) -> dict[str, Any]:
    """The same of the images of all adapters that the run began from, while those are here."""
    return _to_keep(images_before(run), _BEFORE)


def _to_keep(images: Images | None, name: str) -> dict[str, Any]:
    return {
        name: None if images is None else sorted(digest.hex() for digest in images.digests),
        f"{name}_complete": images is not None and images.complete,
    }


def _kept(run: RunFolder, name: str) -> Images | None:
    """What ``data.json`` keeps under a name; None where it keeps nothing, or something else."""
    data = run.data()
    with suppress(ValueError, TypeError):
        if isinstance(kept := data.get(name), list):
            digests = frozenset(map(bytes.fromhex, kept))
            if all(len(digest) == _DIGEST for digest in digests):
                return Images(digests, data.get(f"{name}_complete", True) is True)
    return None


def images_before(run: RunFolder, digests: FileDigests | None = None) -> Images | None:
    """The training images of all adapters that the run began from, one after another; None where not known.

    From the run's ``data.json``, which has kept them since it began, else from the run of the adapter it began from, as long
    as that lies where it did, with the same weights.
    """
    section = run.config().adapter
    if section.resume_from is None:
        return Images()
    if (kept := _kept(run, _BEFORE)) is not None:
        return kept
    folder = Path(section.resume_from)
    parent = RunFolder(folder.parent)
    try:
        if folder.name != parent.adapter.name or weights_hash(folder) != section.parent.get("sha256"):
            return None
        digests = digests or FileDigests()
        own, before = _own_images(parent, digests), images_before(parent, digests)
    except (UserError, RecursionError):  # gone, damaged, or a run that says it began from itself
        return None
    if own is None or before is None:
        return None
    return Images(own.digests | before.digests, own.complete and before.complete)


def _own_images(run: RunFolder, digests: FileDigests) -> Images | None:
    """The images that the run trained on; None where it recorded none and its data, or which cases they were, is not here."""
    if (kept := _kept(run, _OWN)) is not None:
        return kept
    config, splits = run.config(), run.data().get("splits")
    seen = set(splits.get("train", ())) if isinstance(splits, dict) else set()
    if not seen:
        return None
    try:
        own = load_cases(config.data.path, prompt=config.data.prompt, division=own_division(config), skip_bad=True)
    except UserError:  # an adapter is evaluated elsewhere too, where the data it was trained on is not
        return None
    found = {record.case_id: digests.of(record.image) for record in own.all if record.case_id in seen}
    read = {case_id: digest for case_id, digest in found.items() if digest is not None}
    return Images(frozenset(read.values()), set(read) == seen) if read else None


def compare_with_training(
    run: RunFolder, records: Sequence[Record], split: str, console: Console
) -> dict[str, int] | None:
    """How the cases of the run's own data differ from those it recorded; scores on cases seen in training flatter.

    A case is one of training by its id, and by the content of its image: a copy under another name was seen as well.
    """
    splits = run.data().get("splits")
    if not isinstance(splits, dict):
        return None
    now = {record.case_id for record in records}
    then = {case for part, cases in splits.items() if split in (part, "all") for case in cases}
    own, kept, digests = set(splits.get("train", ())), _kept(run, _OWN) or Images(), FileDigests()
    held_out = [record for record in records if record.case_id not in own and split != "train"]
    counts = {
        "seen_in_training": len(now & own),
        "copies_of_training": sum(digests.of(record.image) in kept.digests for record in held_out)
        if kept.digests
        else 0,
        "new": len(now - then),
        "gone": len(then - now),
    }
    if split != "train" and counts["seen_in_training"]:
        why = "held-out cases alone are those of --split test" if split == "all" else "the data has changed since"
        console.warn(f"{counts['seen_in_training']} of {len(now)} cases were trained on: {why}")
    if count := counts["copies_of_training"]:
        console.warn(
            f"{count} of {len(now)} cases {'shows' if count == 1 else 'show'} an image that was trained on under another name, and flatter the scores: "
            "'vlsm data check' lists the copies"
        )
    return counts
