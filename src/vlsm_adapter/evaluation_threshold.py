"""A threshold chosen on validation cases (``vlsm evaluate --calibrate``), kept in the adapter folder that predicts with it.

Every validation case is asked once; its Dice at all thresholds of a grid follows from two histograms of the probability, of
all pixels and of those of the truth. The threshold of the largest mean Dice over cases is taken, of equals the one nearest
to 0.5. Test cases have no part in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vlsm_adapter import files
from vlsm_adapter.adapters.folder import CARD_NAME, CONFIG_NAME, read_manifest
from vlsm_adapter.data.images import read_pair
from vlsm_adapter.errors import DataError, UserError
from vlsm_adapter.scoring import Protocol
from vlsm_adapter.types import Record

if TYPE_CHECKING:
    from vlsm_adapter.console import Console
    from vlsm_adapter.data.cases import Cases
    from vlsm_adapter.models.base import PromptSegmenter
    from vlsm_adapter.run_folder import RunFolder

THRESHOLDS = tuple(round(0.01 * step, 2) for step in range(1, 100))
SPLIT = "val"
# Thresholds whose mean Dice is within this of the best are called as good.
_AS_GOOD = 0.005


#: Of fewer validation cases a choice says little of others.
FEW = 10


@dataclass(frozen=True)
class Calibration:
    """A threshold and how it was chosen.

    Attributes:
        threshold, dice: the chosen one, and the mean Dice of the validation cases with it.
        before, dice_before: the adapter's threshold until then, and the mean Dice with it.
        as_good: lowest and highest threshold whose mean Dice is within 0.005 of the best.
        cases: how many were asked.
        data: name of their data set.
        level: of the prompts.
    """

    threshold: float
    dice: float
    before: float
    dice_before: float
    as_good: tuple[float, float]
    cases: int
    data: str
    level: str

    def __str__(self) -> str:
        low, high = self.as_good
        return (
            f"chosen for mean Dice on {self.cases} validation case{'' if self.cases == 1 else 's'} of {self.data}, level "
            f"{self.level}: {self.dice:.4f} (at {self.before:g}: {self.dice_before:.4f}); {low:g} to {high:g} are as good"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, for a summary."""
        return {**asdict(self), "as_good": list(self.as_good), "text": str(self)}


def calibrate_adapter(
    run: RunFolder,
    folder: Path,
    model: PromptSegmenter,
    cases: Cases,
    protocol: Protocol,
    console: Console,
    *,
    skip_bad: bool,
) -> Calibration:
    """Choose the threshold of a run's adapter on the run's validation cases, and store it.

    Args:
        run: nobody may be training it meanwhile.
        folder: its adapter folder.
        model: with the adapter.
        cases: of the run; those that cannot be used are left out of it under ``skip_bad``.
        protocol: prompt level and seed; its threshold is the one until now.
        console: says what was chosen.
        skip_bad: leave unusable cases out instead of stopping.

    Raises:
        DataError: as :func:`choose_threshold`.
        UserError: as :func:`check_cases` and :func:`store_threshold`, or the run is being trained.
    """
    records = cases.records(SPLIT)
    check_cases(records, run.data())

    def drop(record: Record, reason: str) -> None:
        cases.drop(record.case_id, record.image, reason)

    with run.locked():
        with console.bar("calibrating", len(records)) as advance:
            found = choose_threshold(model, records, protocol, on_bad=drop if skip_bad else None, progress=advance)
        store_threshold(folder, found.threshold, str(found))
    console.say(f"threshold {found.threshold:g}, {found}; stored in {folder}")
    if found.cases < FEW:
        console.warn(
            f"a threshold chosen on fewer than {FEW} validation cases is mostly chance: --threshold {found.before:g} predicts "
            "and scores with the one before"
        )
    return found


def choose_threshold(
    model: PromptSegmenter,
    records: Sequence[Record],
    protocol: Protocol,
    *,
    on_bad: Callable[[Record, str], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Calibration:
    """The threshold with the largest mean Dice of ``records``.

    Args:
        model: as it predicts.
        records: validation cases with masks.
        protocol: prompt level and seed; its threshold is the one until now.
        on_bad: called for a case whose files are unusable, which is then left out; None raises.
        progress: called with the number of cases done.

    Raises:
        DataError: a file is unusable, or no case has foreground.
    """
    from vlsm_adapter.predict import Predictor

    thresholds = np.array(sorted({*THRESHOLDS, protocol.threshold}))
    predictor = Predictor(model)
    shown: tuple[Path, tuple[int, ...]] | None = None
    scores: list[npt.NDArray[np.float64]] = []
    foreground = False
    # Cases of one image follow each other, and it is encoded once.
    for done, record in enumerate(sorted(records, key=lambda record: str(record.image)), start=1):
        prompt = protocol.prompt(record)
        try:
            image, truth = read_pair(record)
        except DataError as error:
            if on_bad is None:
                raise
            on_bad(record, str(error))
            continue
        if shown != (record.image, image.shape):
            predictor.set_image(image)
            shown = (record.image, image.shape)
        (probability,) = predictor.probabilities([prompt])
        scores.append(dice_by_threshold(probability, truth, thresholds))
        foreground = foreground or bool(truth.any())
        if progress is not None:
            progress(done)
    if not foreground:
        raise DataError(
            "no validation case has foreground, so that no threshold is better than another: check the masks of split 'val'"
        )
    means = np.mean(scores, axis=0)
    best = float(means.max())
    chosen = min(thresholds[means >= best - 1e-9], key=lambda threshold: (abs(threshold - 0.5), threshold))
    as_good = thresholds[means >= best - _AS_GOOD]
    return Calibration(
        threshold=float(chosen),
        dice=best,
        before=protocol.threshold,
        dice_before=float(means[thresholds == protocol.threshold][0]),
        as_good=(float(as_good.min()), float(as_good.max())),
        cases=len(scores),
        data=records[0].dataset or "the data",
        level=protocol.level,
    )


def dice_by_threshold(
    probability: npt.NDArray[np.float32], truth: npt.NDArray[np.bool_], thresholds: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Dice of ``probability > threshold`` and ``truth``, both (H, W), for each of the rising ``thresholds``.

    Both masks empty: 1, as in ``metrics.dice``.
    """
    count = len(thresholds)
    # How many thresholds a pixel is above. Compared as float32, as the mask is.
    above = np.searchsorted(thresholds.astype(np.float32), probability.ravel(), side="left")
    predicted = _at_least(np.bincount(above, minlength=count + 1))
    shared = _at_least(np.bincount(above[truth.ravel()], minlength=count + 1))
    total = predicted + np.count_nonzero(truth)
    return np.divide(2.0 * shared, total, out=np.ones(count), where=total > 0)


def _at_least(histogram: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Pixels above threshold 0, 1, ...: those that are above at least 1, 2, ... of them."""
    return np.cumsum(histogram[::-1], dtype=np.int64)[::-1][1:]


def check_cases(records: Sequence[Record], trained: Mapping[str, Any]) -> None:
    """Refuse cases that the run trained on or keeps for its test.

    Args:
        records: validation cases as the data has them now.
        trained: what the run recorded in ``data.json``.

    Raises:
        UserError: there is such a case.
    """
    splits = trained.get("splits")
    for split, why in (("train", "was trained on"), ("test", "is a test case")):
        of_split = set(splits.get(split, ())) if isinstance(splits, dict) else set()
        for record in records:
            if record.case_id in of_split:
                raise UserError(
                    f"case {record.case_id} of split '{SPLIT}' {why} in this run: its data has changed since; a threshold is "
                    "chosen on validation cases alone"
                )


def store_threshold(folder: Path, threshold: float, origin: str) -> None:
    """Write ``threshold``, and in words where it is from, into the manifest and the card of an adapter folder.

    The manifest is replaced atomically, the card after it; all else in both stays.

    Raises:
        AdapterError: not a sound adapter folder.
        UserError: it cannot be written; what stood there is intact.
    """
    read_manifest(folder)
    manifest = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    manifest["info"] = {**manifest.get("info", {}), "threshold": threshold, "threshold_origin": origin}
    files.write_json(folder / CONFIG_NAME, manifest)
    card = folder / CARD_NAME
    if card.is_file():
        text = card.read_text(encoding="utf-8")
        row = f"| threshold | {threshold:g}, {origin} |"
        files.write_text(card, re.sub(r"^\| threshold \|.*\|$", lambda _: row, text, count=1, flags=re.MULTILINE))
