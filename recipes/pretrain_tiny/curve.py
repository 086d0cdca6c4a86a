"""Draw the logs of one or more runs: ``python recipes/pretrain_tiny/curve.py RUN/log.csv RUN2/log.csv --out curve.svg``.

Runs that continue each other are drawn one behind the other, over the pictures seen.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from plans import PLANS

from vlsm_adapter.curves import line_chart
from vlsm_adapter.errors import DataError, UserError
from vlsm_adapter.files import write_text


def read_log(path: Path, plan: str) -> list[tuple[float, float, float]]:
    """Pictures seen, mask loss (2 BCE + Dice) and IoU of each row of ``log.csv``; the plan says how many a step takes.

    Raises:
        DataError: the file is missing or no such log.
    """
    sizes = [stage.mixture.images for stage in PLANS[plan].stages]
    points: list[tuple[float, float, float]] = []
    seen = before = 0
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            for row in csv.DictReader(handle):
                step = int(row["step"])
                seen += (step - before) * sizes[int(row["stage"])]
                before = step
                points.append((seen / 1000, 2 * float(row["bce"]) + float(row["dice"]), float(row["iou"])))
    except (OSError, KeyError, ValueError, IndexError, TypeError) as error:
        raise DataError(
            f"{path}: is no log of plan '{plan}' ({error!r}); give RUN/log.csv, --plans in order"
        ) from error
    return points


def smooth(values: list[float], width: int = 9) -> list[float]:
    """Centred means over ``width`` rows; a row's batches differ in difficulty."""
    half = width // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def main(arguments: list[str] | None = None) -> int:
    """Read the logs, draw, write."""
    parser = argparse.ArgumentParser(description="Draw the training logs of the embedded model.")
    parser.add_argument("logs", type=Path, nargs="+", help="log.csv files, in the order of the runs")
    parser.add_argument("--plans", nargs="+", choices=list(PLANS), help="plan of each; by default first, then longer")
    parser.add_argument("--out", type=Path, required=True, help="SVG file")
    options = parser.parse_args(arguments)
    plans = options.plans or ["first", *["longer"] * (len(options.logs) - 1)]
    try:
        if len(plans) != len(options.logs):
            raise UserError(f"{len(options.logs)} logs but {len(plans)} plans: give one --plans name per log")
        x: list[float] = []
        loss: list[float] = []
        iou: list[float] = []
        for path, plan in zip(options.logs, plans, strict=True):
            points = read_log(path, plan)
            start = x[-1] if x else 0.0
            x += [start + seen for seen, _, _ in points]
            loss += smooth([value for _, value, _ in points])
            iou += smooth([value for _, _, value in points])
        chart = line_chart(
            "Training of tiny", "thousand pictures seen (4 prompts each)", x, {"mask loss": loss, "IoU": iou}
        )
        write_text(options.out, chart)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
