"""Time to score one case (Dice, HD95, NSD) here and with MONAI, side by side, and whether the values agree.

    python benchmarks/metrics_vs_monai.py [--repeats 7]

Both get masks in the form they like best and run on one thread, in turn. Ratios are MONAI's time over ours, above 1
where we are faster; the median of the per-repeat ratios is shown. Exits with 1 if a value differs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice
from scipy.ndimage import gaussian_filter

from vlsm_adapter.metrics import score_case

TOLERANCE = 2.0
NAMES = ["dice", "hd95", "nsd"]
Pair = tuple[np.ndarray, np.ndarray]


def ellipse(
    shape: tuple[int, int], centre: tuple[float, float], radii: tuple[float, float], rough: float
) -> np.ndarray:
    """A filled ellipse (centre and radii as fractions of the image) with a wavy outline."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    y, x = (rows / shape[0] - centre[0]) / radii[0], (columns / shape[1] - centre[1]) / radii[1]
    angle = np.arctan2(y, x)
    return np.hypot(y, x) < 1 + rough * (np.sin(7 * angle) + np.sin(23 * angle + 1))


def texture(shape: tuple[int, int], sigma: float, seed: int) -> np.ndarray:
    """The brightest fifth of smoothed noise: many islands, smaller with smaller ``sigma``."""
    field = gaussian_filter(np.random.default_rng(seed).standard_normal(shape).astype(np.float32), sigma)
    return np.asarray(field > np.quantile(field, 0.8))


def cases(small: tuple[int, int] = (500, 600), large: tuple[int, int] = (2000, 3000)) -> dict[str, Pair]:
    """Pairs of masks by name; sizes (height, width)."""
    smooth, fine = texture(large, 40, 0), texture(large, 0.5, 0)
    small_size, large_size = (f"{width} x {height}" for height, width in (small, large))
    return {
        f"polyp, good, {small_size}": (
            ellipse(small, (0.5, 0.5), (0.2, 0.25), 0.02),
            ellipse(small, (0.51, 0.5), (0.21, 0.24), 0.03),
        ),
        f"lesion, good, {large_size}": (
            ellipse(large, (0.5, 0.5), (0.3, 0.3), 0.02),
            ellipse(large, (0.5, 0.51), (0.31, 0.29), 0.03),
        ),
        f"lesion, elsewhere, {large_size}": (
            ellipse(large, (0.2, 0.2), (0.1, 0.1), 0.02),
            ellipse(large, (0.8, 0.8), (0.15, 0.1), 0.03),
        ),
        f"many islands, good, {large_size}": (smooth, np.roll(smooth, (3, -2), (0, 1))),
        f"speckle, {large_size}": (fine, texture(large, 0.5, 1)),
    }


def ours(pred: np.ndarray, truth: np.ndarray, names: Sequence[str] = NAMES) -> list[float]:
    score = score_case(pred, truth, case_id="case", prompt="", nsd_tolerance=TOLERANCE, metrics=list(names))
    return [score.values[name] for name in names]


def monai(pred: torch.Tensor, truth: torch.Tensor, names: Sequence[str] = NAMES) -> list[float]:
    known = {
        "dice": lambda: compute_dice(pred, truth, include_background=True),
        "hd95": lambda: compute_hausdorff_distance(pred, truth, include_background=True, percentile=95),
        "nsd": lambda: compute_surface_dice(pred, truth, [TOLERANCE], include_background=True),
    }
    return [known[name]().item() for name in names]


def timed(call: Callable[[], list[float]]) -> tuple[float, list[float]]:
    start = time.perf_counter()
    values = call()
    return time.perf_counter() - start, values


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    agree = True
    print(
        "| case (width x height) | ours, ms | MONAI, ms | ratio | largest relative difference |\n|---|---|---|---|---|"
    )
    for name, (pred, truth) in cases().items():
        tensors = [torch.from_numpy(mask)[None, None].float() for mask in (pred, truth)]
        ours(pred, truth), monai(*tensors)  # imports and first touches
        here, there = [], []
        for _ in range(repeats):
            seconds, found = timed(lambda pair=(pred, truth): ours(*pair))
            here.append(seconds)
            seconds, expected = timed(lambda pair=tensors: monai(*pair))
            there.append(seconds)
        apart = float(np.max(np.abs(np.subtract(found, expected)) / np.maximum(np.abs(expected), 1e-9)))
        agree &= apart < 1e-5
        ratio = statistics.median(b / a for a, b in zip(here, there, strict=True))
        times = f"{1e3 * statistics.median(here):.1f} | {1e3 * statistics.median(there):.1f}"
        print(f"| {name} | {times} | {ratio:.1f} | {apart:.0e} |", flush=True)
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
