"""From a folder to the cases of an audit: all of them, also those that training would refuse.

Training stops at the first bad case; an audit reads on and reports each. It also reads annotations whose images are not
there (``train.json``, ``val.json``, ``test.json`` alone, or several such folders side by side): names, boxes and words
already show much.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vlsm_adapter.data.audit.findings import Evidence, Finding, plural
from vlsm_adapter.data.describing.prompt_file import PromptFile
from vlsm_adapter.data.entries import Entry, parse_json, read_text, real_folder, unsafe_name
from vlsm_adapter.data.layouts import Collector, Draft, published_lists
from vlsm_adapter.data.naming import finish
from vlsm_adapter.data.records import read_layout
from vlsm_adapter.data.spellings import Spellings, composed
from vlsm_adapter.data.splits import SPLITS
from vlsm_adapter.errors import DataError
from vlsm_adapter.types import Record

log = logging.getLogger("vlsm_adapter.data")

# Stands for what a plain folder does not say; such cases carry no words to be checked.
_UNSAID = "(unsaid)"
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Case:
    """One entry of the data.

    Attributes:
        record: the case as the loaders see it; without a split where the data says none.
        name: the image's file name relative to the image folder, for what file names tell.
        mask_name: likewise of the mask.
        box: (left, top, right, bottom) in pixels as the annotation gives it, or None.
    """

    record: Record
    name: str
    mask_name: str | None = None
    box: Box | None = None

    @property
    def id(self) -> str:
        """The case id, unique in the audit."""
        return self.record.case_id

    @property
    def split(self) -> str:
        """The split, or ``"no split"``."""
        return self.record.split or "no split"


@dataclass(slots=True)
class DataSet:
    """What was read.

    Attributes:
        name, root: for messages.
        cases: every readable entry, in order; a case listed several times stands here once for each split.
        with_images: False for annotations alone.
        with_words: False for a plain folder without ``--prompt``: nothing says what the masks show.
        findings: what reading itself found.
    """

    name: str
    root: Path
    cases: list[Case]
    with_images: bool = True
    with_words: bool = True
    findings: list[Finding] = field(default_factory=list)


def read_data(path: str | Path, prompt: str | None = None) -> list[DataSet]:
    """The data sets at ``path``: one, or one for each sub-folder of annotations.

    Args:
        path: a data folder, manifest or file of prompts as ``records.load_records`` takes it, a folder with ``train.json``, ``val.json``
            or ``test.json``, or a folder of such folders.
        prompt: what the masks of a plain folder show.

    Raises:
        DataError: no known layout, or not one usable entry.
    """
    root = real_folder(path)
    if prompt is not None and not prompt.strip():
        raise DataError('the prompt is empty: say what the masks show, e.g. --prompt "polyp"')
    if root.is_dir():
        if _lists(root):
            return [_read_annotations(root, _lists(root), root.name)]
        published = published_lists(root)
        if published and not Spellings().folder(root, "images").is_dir():
            return [_read_annotations(root, published, root.name)]
        below = sorted(folder for folder in root.iterdir() if folder.is_dir() and _lists(folder))
        if below and not published and not (root / "anns").is_dir():
            return [_read_annotations(folder, _lists(folder), folder.name) for folder in below]
    words = PromptFile.open(root)
    if words is not None:
        root, prompt = words.data, words.prompt
    collector = Collector(skip_bad=True)
    read_layout(root, prompt or _UNSAID, collector)
    name = root.parent.name if root.is_file() else root.name
    boxes = _boxes(published_lists(root)) if root.is_dir() else {}
    data = _finish(name, root, collector, prompt, boxes)
    if words is not None:
        known = [case for case in data.cases if case.id in words.prompts]
        if unknown := [case for case in data.cases if case.id not in words.prompts]:
            data.findings.append(
                Finding(
                    "error",
                    "no-prompt",
                    f"{plural(len(unknown), 'case')} without a prompt in {words.path.name}",
                    tuple(Evidence((case.id,)) for case in unknown),
                    "write the prompts anew: vlsm prompts",
                )
            )
        data.cases = [replace(case, record=replace(case.record, prompts=words.prompts[case.id])) for case in known]
    data.with_words = any(
        text != _UNSAID
        for case in data.cases
        for level, texts in case.record.prompts.items()
        if level != "p0"
        for text in texts
    )
    return [data]


def _lists(folder: Path) -> dict[str, Path]:
    return {split: folder / f"{split}.json" for split in SPLITS if (folder / f"{split}.json").is_file()}


def _read_annotations(root: Path, lists: Mapping[str, Path], name: str) -> DataSet:
    """Annotations without images: the names are taken as they are, no file is looked for."""
    collector = Collector(skip_bad=True)
    for split, file in lists.items():
        entries = parse_json(read_text(file), str(file))
        if not isinstance(entries, list):
            raise DataError(f"{file}: must be a list of entries with img_name, mask_name and prompts")
        for number, value in enumerate(entries):
            collector.add(
                f"{split} entry {number}",
                str(file),
                lambda f=file, s=split, n=number, v=value: _annotation(root, f, s, n, v),  # type: ignore[misc]
            )
    data = _finish(name, root, collector, None, _boxes(lists))
    data.with_images = False
    return data


def _annotation(root: Path, file: Path, split: str, number: int, value: object) -> Draft:
    where = f"{file}: entry {number}"
    entry = Entry.of(value, where, root)
    image, mask = entry.needed_file_name("img_name"), entry.file_name("mask_name")
    return Draft(
        where=where,
        image=root / "images" / image,
        image_name=image,
        mask=root / "masks" / mask if mask else None,
        mask_name=mask,
        split=split,
        prompts=entry.prompts(),
        group=entry.group(),
        spacing=entry.spacing(),
        mask_value=entry.mask_value(),
    )


def _finish(
    name: str, root: Path, collector: Collector, prompt: str | None, boxes: Mapping[tuple[str, str, str | None], Box]
) -> DataSet:
    drafts = collector.drafts
    findings = _listed_findings(drafts)
    if collector.skipped:
        findings.append(
            Finding(
                "error",
                "bad-entry",
                f"{plural(len(collector.skipped), 'entry', 'entries')} cannot be used, the first: {collector.skipped[0].reason}",
                tuple(Evidence((bad.case_id,), bad.reason) for bad in collector.skipped),
                "mend the entries; --skip-bad trains without them",
            )
        )
    with _silent(log):  # what it warns of stands in the findings
        records, left_out, _ = finish(drafts, dataset=name, prompt=prompt, skip_bad=True, outlines=collector.outlines)
    if without := [one for one in left_out if "says no prompt" in one.reason]:
        findings.append(
            Finding(
                "error",
                "no-prompt",
                f"{plural(len(without), 'case')} without a prompt: nothing says what the mask shows",
                tuple(Evidence((one.case_id,)) for one in without),
                'add "prompts" or "text" to the entries, or train with --prompt',
            )
        )
    if same_id := [one for one in left_out if "is already that of" in one.reason]:
        findings.append(
            Finding(
                "error",
                "case-id-twice",
                f"{plural(len(same_id), 'case')} with a case id given before",
                tuple(Evidence((one.case_id,), one.reason) for one in same_id),
                "give each case its own case_id, or none",
            )
        )
    first = {(draft.image, draft.mask, draft.split): draft for draft in reversed(drafts)}
    cases: list[Case] = []
    for record in records:
        draft = first[(record.image, record.mask, record.split)]
        box = boxes.get((draft.split or "", draft.image_name.rpartition("/")[2], _last(draft.mask_name)))
        cases.append(Case(record, draft.image_name, draft.mask_name, box))
    if not cases:
        bad = [*collector.skipped, *left_out]
        raise DataError(f"{root}: holds no usable case: {bad[0].reason if bad else 'no entry at all'}")
    return DataSet(name, root, cases, findings=findings)


@contextlib.contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _listed_findings(drafts: list[Draft]) -> list[Finding]:
    """Entries listed more than once, by their files."""
    same: dict[tuple[Path, Path | None], list[Draft]] = {}
    for draft in drafts:
        same.setdefault((draft.image, draft.mask), []).append(draft)
    across: list[Evidence] = []
    other_words: list[Evidence] = []
    within: list[Evidence] = []
    for found in same.values():
        if len(found) < 2:
            continue
        name = found[0].image_name
        splits = [draft.split or "no split" for draft in found]
        if len(set(splits)) > 1:
            where = f"{name}: " + " and ".join(dict.fromkeys(splits))
            (across if all(draft.prompts == found[0].prompts for draft in found) else other_words).append(
                Evidence((_id(name),), where)
            )
        elif len({repr(sorted(draft.prompts.items())) for draft in found}) < len(found):
            within.append(Evidence((_id(name),), f"{name}: {len(found)} times in {splits[0]}"))
    findings: list[Finding] = []
    if len(other_words) > len(across):
        # Two parts that are numbered alike, as CAMUS is: a few of them have equal words by chance.
        other_words, across = other_words + across, []
    if across:
        which = Counter(one.why.partition(": ")[2] for one in across)
        findings.append(
            Finding(
                "error",
                "listed-across-splits",
                f"{plural(len(across), 'case')} listed in several splits: "
                + ", ".join(f"{count} in {pair}" for pair, count in sorted(which.items())),
                tuple(across),
                "take them out of train and val; scores on them are scores on training data",
            )
        )
    if other_words:
        findings.append(
            Finding(
                "warning",
                "name-across-splits",
                f"{plural(len(other_words), 'file name')} in several splits, most with other words each time: either other "
                "files of the same name in sub-folders, or cases listed twice",
                tuple(other_words),
                "check with the images that they are other pictures",
            )
        )
    if within:
        findings.append(
            Finding(
                "warning",
                "listed-twice",
                f"{plural(len(within), 'case')} listed twice in one split",
                tuple(within),
                "used once here; published numbers may count it twice",
            )
        )
    return findings


def _boxes(lists: Mapping[str, Path]) -> dict[tuple[str, str, str | None], Box]:
    """(split, image name, mask name) to the ``bbox`` of the published lists; entries that have none are passed over."""
    found: dict[tuple[str, str, str | None], Box] = {}
    for split, file in lists.items():
        try:
            entries: Any = parse_json(read_text(file), str(file))
        except DataError:
            continue  # reading the cases reports it
        for entry in entries if isinstance(entries, list) else []:
            box = entry.get("bbox") if isinstance(entry, dict) else None
            name, mask = (entry.get("img_name"), entry.get("mask_name")) if isinstance(entry, dict) else (None, None)
            if not (isinstance(box, list) and len(box) == 4 and isinstance(name, str)) or unsafe_name(name):
                continue
            if all(
                isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9 for value in box
            ):
                key = (split, name.rpartition("/")[2], _last(mask) if isinstance(mask, str) else None)
                found[key] = (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
    return found


def _last(name: str | None) -> str | None:
    return name.rpartition("/")[2] if name else None


def _id(name: str) -> str:
    name = composed(name)
    return name.rpartition(".")[0].replace("/", "__") or name
