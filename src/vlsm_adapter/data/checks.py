"""Refusing bad cases before anything is trained or scored on them.

The cheap pass reads the headers of image and mask; ``decode=True`` decodes both, which finds truncated files and
masks that are none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from vlsm_adapter.data.images import check_same_size, header_size, read_image, read_pair
from vlsm_adapter.errors import DataError
from vlsm_adapter.types import Record, Skipped


def check_record(record: Record, *, decode: bool = False, labelled: bool = True) -> None:
    """Check one case: files exist, headers read, sizes equal; with ``decode`` the pixels too.

    Args:
        record: the case.
        decode: decode image and mask as training would.
        labelled: a case without a mask is a bad case.

    Raises:
        DataError: what is wrong, naming the file and the fix.
    """
    if record.mask is None:
        if labelled:
            raise DataError(f"{record.image}: has no mask: name one, or use the image for prediction only")
        if decode:
            read_image(record.image)
        else:
            header_size(record.image)
    elif decode:
        read_pair(record)
    else:
        check_same_size(record, header_size(record.image), header_size(record.mask))


def check_records(
    records: Sequence[Record],
    skip_bad: bool = False,
    *,
    decode: bool = False,
    labelled: bool = True,
    headers: bool = True,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[Record], list[Skipped]]:
    """Divide cases into good and bad.

    Args:
        records: the cases.
        skip_bad: return the bad ones instead of raising.
        decode, labelled: as in ``check_record``.
        headers: False opens no file; then only a missing mask (``labelled``) is bad.
        progress: called after each case with the number checked so far.

    Returns:
        The good cases in their order, and the bad ones with their reasons.

    Raises:
        DataError: without ``skip_bad``, the first bad case and how many there are.
    """
    good: list[Record] = []
    bad: list[Skipped] = []
    for number, record in enumerate(records, start=1):
        try:
            if headers or decode:
                check_record(record, decode=decode, labelled=labelled)
            elif labelled and record.mask is None:
                check_record(record)
            good.append(record)
        except DataError as error:
            bad.append(Skipped(record.case_id, str(record.image), str(error)))
        if progress is not None:
            progress(number)
    if bad and not skip_bad:
        more = f" ({len(bad)} of {len(records)} cases are bad; --skip-bad leaves them out and lists them)"
        raise DataError(bad[0].reason + more)
    return good, bad


def require_split(records: Sequence[Record], split: str, where: str) -> list[Record]:
    """The cases of one split.

    Raises:
        DataError: there are none; the message counts the other splits.
    """
    chosen = [record for record in records if record.split == split]
    if not chosen:
        counts = Counter(record.split or "no split" for record in records)
        others = ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "no case at all"
        raise DataError(f"split '{split}' of {where} is empty: it has {others}; choose one of them or add cases")
    return chosen
