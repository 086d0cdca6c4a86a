"""Scoring a model on labelled cases, at native size, with and without its adapter in one pass over the files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch

from vlsm_adapter.data.images import check_same_size, read_image, read_mask
from vlsm_adapter.data.prompts import RANDOM, choose_prompt, levels
from vlsm_adapter.errors import DataError
from vlsm_adapter.inference import TextCache, check_threshold, decode, inferring, probability_at_size
from vlsm_adapter.metrics import score_case
from vlsm_adapter.metrics.base import DEFAULT_NSD_TOLERANCE
from vlsm_adapter.types import CaseScore, Record

if TYPE_CHECKING:
    from vlsm_adapter.models.base import PromptSegmenter
    from vlsm_adapter.prober import Prober

Context = Callable[[], AbstractContextManager[None]]
OnBad = Callable[[Record, str], None]

DEFAULT_BATCH_SIZE = 8
# The same words for every run, so that runs of different seeds are asked the same.
PROMPT_SEED = 0


@dataclass(frozen=True)
class Protocol:
    """How cases are asked and scored.

    Attributes:
        level: prompt level, one for all cases; ``random`` is one of p1 to p9 per case, as published, and leaks.
        threshold: probability above which a pixel is foreground.
        seed: which of several texts of a level, or of the levels of ``random``, a case is asked.
        nsd_tolerance: in mm where the spacing is known, else in pixels.
        batch_size: images encoded together.
    """

    level: str = "p1"
    threshold: float = 0.5
    seed: int = PROMPT_SEED
    nsd_tolerance: float = DEFAULT_NSD_TOLERANCE
    batch_size: int = DEFAULT_BATCH_SIZE

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        if self.batch_size < 1:
            raise DataError(f"batch size {self.batch_size}: must be at least 1")

    def prompt(self, record: Record) -> str:
        """The text ``record`` is asked.

        Raises:
            DataError: it has none of the level.
        """
        if self.level != RANDOM and self.level not in (has := levels(record)):
            raise DataError(
                f"case {record.case_id}: has no prompt level '{self.level}'; choose one that it has: {', '.join(has)}"
            )
        return choose_prompt(record, self.level, seed=self.seed)


def evaluate_cases(
    model: PromptSegmenter,
    records: Sequence[Record],
    *,
    level: str = "p1",
    threshold: float = 0.5,
    seed: int = PROMPT_SEED,
    nsd_tolerance: float = DEFAULT_NSD_TOLERANCE,
    batch_size: int = DEFAULT_BATCH_SIZE,
    progress: Callable[[int], None] | None = None,
) -> list[CaseScore]:
    """Score ``model``, as it stands, on labelled cases: all metrics, at the size of each mask.

    Args:
        model: with or without an adapter.
        records: cases with masks; an image that several share is encoded once.
        level, threshold, seed, nsd_tolerance, batch_size: see `Protocol`.
        progress: called with the number of cases done.

    Returns:
        A score per record, in their order.

    Raises:
        DataError: a file is unusable, or a case has no mask or no prompt of the level.
    """
    protocol = Protocol(level, threshold, seed, nsd_tolerance, batch_size)
    return score_variants(model, records, {"model": nullcontext}, protocol, progress=progress)["model"]


def score_variants(
    model: PromptSegmenter,
    records: Sequence[Record],
    variants: Mapping[str, Context],
    protocol: Protocol,
    *,
    prober: Prober | None = None,
    on_bad: OnBad | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, list[CaseScore]]:
    """Score the model in several states; every file is read once, every image encoded once per state.

    Args:
        variants: name to a context in which the model is in that state, e.g. its adapter disabled.
        prober: asks more of each case (of ``records``, by number) and keeps the answers.
        on_bad: called for a case whose files are unusable, which is then left out; None raises.

    Returns:
        Variant to its scores, in the order of ``records``, the same cases for all variants.

    Raises:
        DataError: a case has no prompt of the level (whatever ``on_bad``), or, without ``on_bad``, a file is unusable.
    """
    texts = [protocol.prompt(record) for record in records]
    by_image: dict[object, list[int]] = {}
    for index, record in enumerate(records):
        by_image.setdefault(record.image, []).append(index)
    images = list(by_image.values())
    caches = {name: TextCache(model) for name in variants}
    scores: dict[str, dict[int, CaseScore]] = {name: {} for name in variants}
    questions: dict[int, list[str]] = {}

    def look(index: int, image: np.ndarray, mask: np.ndarray) -> None:
        more = prober.texts(index, texts[index], image, mask) if prober is not None else []
        questions[index] = [texts[index], *more]

    done = 0
    for start in range(0, len(images), protocol.batch_size):
        chunk = images[start : start + protocol.batch_size]
        pixels, asked = _load(model, records, chunk, on_bad, look)
        if asked:
            batch = torch.stack(pixels)
            index_of = [image for index, image, _ in asked for _ in questions[index]]
            prompts = [text for index, _, _ in asked for text in questions[index]]
            for name, state in variants.items():
                logits = iter(_logits(model, batch, prompts, index_of, state, caches[name]))
                for index, _, truth in asked:
                    own, *others = islice(logits, len(questions[index]))
                    size = (truth.shape[0], truth.shape[1])
                    probability = probability_at_size(own, size)
                    scores[name][index] = score_case(
                        probability > protocol.threshold,
                        truth,
                        case_id=records[index].case_id,
                        prompt=texts[index],
                        spacing=records[index].spacing,
                        nsd_tolerance=protocol.nsd_tolerance,
                        probability=probability,
                    )
                    if prober is not None:
                        masks = (probability_at_size(one, size) > protocol.threshold for one in (own, *others))
                        prober.take(name, index, truth, zip(questions[index], masks, strict=True))
        questions.clear()
        done += sum(len(group) for group in chunk)
        if progress is not None:
            progress(done)
    return {name: [found[index] for index in sorted(found)] for name, found in scores.items()}


def predict_variants(
    model: PromptSegmenter, image: np.ndarray, prompt: str, variants: Mapping[str, Context], threshold: float
) -> dict[str, np.ndarray]:
    """Masks bool (H, W) of one image uint8 (H, W, 3) in every state of the model."""
    batch = model.preprocess([image])
    size = (image.shape[0], image.shape[1])
    return {
        name: probability_at_size(_logits(model, batch, [prompt], [0], state, TextCache(model))[0], size) > threshold
        for name, state in variants.items()
    }


def _load(
    model: PromptSegmenter,
    records: Sequence[Record],
    images: Sequence[Sequence[int]],
    on_bad: OnBad | None,
    look: Callable[[int, np.ndarray, np.ndarray], None],
) -> tuple[list[torch.Tensor], list[tuple[int, int, np.ndarray]]]:
    """Network inputs (3, h, w) of the usable images, and (record, position of its image, mask) of the usable cases.

    ``look`` is called with record, image uint8 (H, W, 3) and mask bool (H, W) of every usable case.
    """
    pixels: list[torch.Tensor] = []
    asked: list[tuple[int, int, np.ndarray]] = []
    for group in images:
        image: np.ndarray | None = None
        usable: list[tuple[int, int, np.ndarray]] = []
        for index in group:
            record = records[index]
            try:
                if record.mask is None:
                    raise DataError(f"{record.image}: has no mask, it cannot be scored; use it for prediction only")
                if image is None:
                    image = read_image(record.image)
                mask = read_mask(record.mask, record.mask_value)
                check_same_size(record, (image.shape[1], image.shape[0]), (mask.shape[1], mask.shape[0]))
            except DataError as error:
                if on_bad is None:
                    raise
                on_bad(record, str(error))
            else:
                usable.append((index, len(pixels), mask))
                look(index, image, mask)
        if usable and image is not None:
            pixels.append(model.preprocess([image])[0])
            asked += usable
    return pixels, asked


def _logits(
    model: PromptSegmenter,
    batch: torch.Tensor,
    prompts: Sequence[str],
    image_index: Sequence[int],
    state: Context,
    texts: TextCache,
) -> torch.Tensor:
    with inferring(model), state():
        image = model.encode_image(batch.to(device=model.device, dtype=model.dtype))
        return decode(model, image, texts(prompts), image_index)
