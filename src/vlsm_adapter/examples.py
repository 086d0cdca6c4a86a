"""A few cases that every evaluation of the same data keeps with their masks, to be shown side by side later.

Which cases is decided by a hash of their ids alone, before anything is scored: neither the model nor its scores have a
say, and every method keeps the same ones. Cases with something to find come first. They are kept small::

    EVALUATION/images/examples.json             which cases, their words and their Dice
                      example-1.jpg             the image
                      example-1-truth.png       the true mask
                      example-1-adapter.png     the predicted masks; -zero_shot.png
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vlsm_adapter import files
from vlsm_adapter.data.images import read_pair
from vlsm_adapter.errors import UserError
from vlsm_adapter.evaluation_folder import EvaluationFolder
from vlsm_adapter.overlays import shown_mask
from vlsm_adapter.types import CaseScore

if TYPE_CHECKING:
    from vlsm_adapter.evaluation_summary import Job

EXAMPLES = 4
EXAMPLES_FILE = "examples.json"
FORMAT = ("vlsm-examples", 1)
_SIDE = 256  # the longer one, in pixels: three panels across a column at 300 dpi


@dataclass(frozen=True)
class Example:
    """A kept case.

    Attributes:
        case_id, prompt: which case, asked how.
        image: uint8 (h, w, 3).
        truth: bool (h, w).
        masks: variant (``"adapter"``, ``"zero_shot"``) to its prediction, bool (h, w).
        dice: variant to its Dice at native size.
    """

    case_id: str
    prompt: str
    image: np.ndarray
    truth: np.ndarray
    masks: Mapping[str, np.ndarray]
    dice: Mapping[str, float]


def pick_examples(scores: Sequence[CaseScore], count: int = EXAMPLES) -> list[str]:
    """Ids of the cases to keep, at most ``count``: by a hash of the id, those with foreground in the truth first."""
    ranked = sorted(scores, key=lambda score: (score.truth_area == 0, _hash(score.case_id), score.case_id))
    return [score.case_id for score in ranked[:count]]


def keep_examples(job: Job, scores: Mapping[str, Sequence[CaseScore]], folder: EvaluationFolder) -> None:
    """Write the examples of an evaluation into ``folder``."""
    from vlsm_adapter.scoring import predict_variants

    records = {record.case_id: record for record in job.records}
    by_case = {name: {score.case_id: score for score in found} for name, found in scores.items()}
    kept = []
    for number, case_id in enumerate(pick_examples(next(iter(scores.values()))), start=1):
        image, truth = read_pair(records[case_id])
        prompt = next(iter(by_case.values()))[case_id].prompt
        masks = predict_variants(job.model, image, prompt, job.variants, job.protocol.threshold)
        scale = min(1.0, _SIDE / max(image.shape[:2]))
        size = max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))
        name = f"example-{number}"
        small = Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)
        with files.atomic_path(folder.images / f"{name}.jpg") as temporary:
            small.save(temporary, format="JPEG", quality=90, subsampling=0)
        for kind, mask in {"truth": truth, **masks}.items():
            with files.atomic_path(folder.images / f"{name}-{kind}.png") as temporary:
                Image.fromarray(shown_mask(mask, size)).save(temporary, format="PNG", optimize=True)
        kept.append(
            {
                "case_id": case_id,
                "prompt": prompt,
                "image": f"{name}.jpg",
                "truth": f"{name}-truth.png",
                "masks": {kind: f"{name}-{kind}.png" for kind in masks},
                "dice": {kind: found[case_id].values["dice"] for kind, found in by_case.items()},
            }
        )
    values = {"format": FORMAT[0], "format_version": FORMAT[1], "cases": kept}
    files.write_json(folder.images / EXAMPLES_FILE, values)


def read_examples(images: Path) -> list[Example]:
    """The examples in an evaluation's ``images`` folder.

    Raises:
        UserError: none there, or damaged ones.
    """
    try:
        values = json.loads((images / EXAMPLES_FILE).read_text(encoding="utf-8"))
        if (values["format"], values["format_version"]) != FORMAT:
            raise ValueError("of another format")
        return [_read(images, about) for about in values["cases"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SyntaxError) as error:
        raise UserError(f"{images / EXAMPLES_FILE}: cannot be used ({error}); run 'vlsm evaluate' again") from error


def _read(images: Path, about: Mapping[str, Any]) -> Example:
    def opened(name: str, mode: str) -> np.ndarray:
        if Path(name).name != name:
            raise ValueError(f"{name!r} is not a file of the folder")
        with Image.open(images / name) as picture:
            return np.asarray(picture.convert(mode))

    masks = {str(kind): opened(name, "1") for kind, name in about["masks"].items()}
    image, truth = opened(about["image"], "RGB"), opened(about["truth"], "1")
    if any(mask.shape != image.shape[:2] for mask in (truth, *masks.values())):
        raise ValueError("masks are not of their image's size")
    dice = {str(kind): float(value) for kind, value in about["dice"].items()}
    return Example(str(about["case_id"]), str(about["prompt"]), image, truth, masks, dice)


def _hash(case_id: str) -> bytes:
    return hashlib.blake2b(case_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
