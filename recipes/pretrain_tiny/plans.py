"""What a run trains on and when: plans of stages, and the learning rate along them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from corpus import Mixture


@dataclass(frozen=True)
class Stage:
    """``share`` of the run (0-1) spent on batches of ``mixture``."""

    share: float
    mixture: Mixture


@dataclass(frozen=True)
class Plan:
    """Stages whose shares add up to 1, and the peak of the learning rate; the last stage's pictures are the model's size."""

    stages: tuple[Stage, ...]
    peak: float = 2e-3


PLANS = {
    # From nothing: few words that decide, then everything.
    "first": Plan(
        (
            Stage(0.34, Mixture(size=96, images=40, level=0, absent=0.12)),
            Stage(0.38, Mixture(size=128, images=32, photos=0.35, cutouts=0.12, soft=0.22)),
            Stage(0.28, Mixture(size=192, images=16, photos=0.40, cutouts=0.12, soft=0.25)),
        )
    ),
    # On from a trained model: more of everything, mostly at the final size.
    "longer": Plan(
        (
            Stage(0.50, Mixture(size=128, images=48, photos=0.40, cutouts=0.18, soft=0.22)),
            Stage(0.50, Mixture(size=192, images=40, photos=0.45, cutouts=0.15, soft=0.22)),
        )
    ),
    # On again, mostly at 192 px: phrases of one condition for the attributes that hardly decided.
    "attributes": Plan(
        (
            Stage(0.30, Mixture(size=128, images=48, photos=0.36, cutouts=0.16, soft=0.22, alone=0.35)),
            Stage(0.70, Mixture(size=192, images=40, photos=0.40, cutouts=0.14, soft=0.22, alone=0.30)),
        )
    ),
    # On to larger pictures, for finer masks: a patch of 16 px is a twelfth of 192 px, a fourteenth of 224 px.
    "finer": Plan(
        (Stage(1.0, Mixture(size=224, images=32, photos=0.40, cutouts=0.14, soft=0.22, alone=0.30)),),
        peak=1.5e-3,
    ),
}


def stage_at(progress: float, stages: tuple[Stage, ...]) -> int:
    """Index of the stage at this position (0-1) of the run."""
    end = 0.0
    for index, stage in enumerate(stages):
        end += stage.share
        if progress < end - 1e-9:
            return index
    return len(stages) - 1


def learning_rate(progress: float, peak: float, warmup: float = 0.02) -> float:
    """Linear warm-up, then a cosine down to one hundredth of the peak."""
    if progress < warmup:
        return peak * max(progress / warmup, 0.01)
    position = (progress - warmup) / (1 - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(position * math.pi)))
