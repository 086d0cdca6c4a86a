"""Which cases an adapter has seen: what training recorded, beside what is evaluated now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlsm_adapter.console import Console
from vlsm_adapter.data.cases import Cases, load_cases
from vlsm_adapter.data.digests import FileDigests
from vlsm_adapter.errors import UserError
from vlsm_adapter.resume_from import own_division
from vlsm_adapter.types import Record, Skipped

if TYPE_CHECKING:
    from vlsm_adapter.config import RunConfig


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


def trained_on(
    config: RunConfig, trained: Mapping[str, Any], records: Sequence[Record], console: Console
) -> int | None:
    """How many cases of data given with ``data`` show an image that the run trained on; None where that is not known.

    By the content of the images: copies of the data, and data that overlaps with the run's own, are found as well.
    """
    splits = trained.get("splits")
    seen = set(splits.get("train", ())) if isinstance(splits, dict) else set()
    if not seen:
        return None
    try:
        own = load_cases(config.data.path, prompt=config.data.prompt, division=own_division(config), skip_bad=True)
    except UserError:  # an adapter is evaluated elsewhere too, where the data it was trained on is not
        return None
    digests = FileDigests()
    images = {digests.of(record.image) for record in own.all if record.case_id in seen} - {None}
    if not images:
        return None
    count = sum(digests.of(record.image) in images for record in records)
    if count:
        console.warn(f"{count} of {len(records)} cases were trained on: give data that training has not seen")
    return count


def compare_with_training(
    trained: Mapping[str, Any], records: Sequence[Record], split: str, console: Console
) -> dict[str, int] | None:
    """How the cases differ from those the run recorded; scores on cases seen in training flatter."""
    splits = trained.get("splits")
    if not isinstance(splits, dict):
        return None
    now = {record.case_id for record in records}
    then = {case for part, cases in splits.items() if split in (part, "all") for case in cases}
    counts = {
        "seen_in_training": len(now & set(splits.get("train", ()))),
        "new": len(now - then),
        "gone": len(then - now),
    }
    if split != "train" and counts["seen_in_training"]:
        why = "held-out cases alone are those of --split test" if split == "all" else "the data has changed since"
        console.warn(f"{counts['seen_in_training']} of {len(now)} cases were trained on: {why}")
    return counts
