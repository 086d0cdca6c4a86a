"""Where the time of a dense VLC training step goes: the usual way, this package in fp32, and in 8 bits, side by side.

    python benchmarks/profile_step.py [--batch 4] [--docs docs/performance.md]

CLIPSeg at its full size with random weights, one thread, two steps each after one to warm up. Times are those of torch's
profiler, each operation without what it calls; the last column has the step's floating-point operations of linear maps and
attention, counted by torch, so that "linear maps" can be read as a speed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import results
from our_way import OurTraining, UsualTraining, save_base_model, save_data

# First match wins; the operations are torch's names.
KINDS = {
    "attention": ("scaled_dot_product",),
    "linear maps in 8 bits": ("quantized::",),
    "linear maps": ("::addmm", "::mm", "::bmm", "mkldnn_linear", "::linear", "::baddbmm"),
    "convolutions": ("convolution", "upsample"),
    "norms": ("norm",),
    "activations": ("gelu", "sigmoid", "silu", "relu", "threshold", "clamp_min", "softplus"),
    "sums, products, copies": (
        "::add",
        "::mul",
        "::sub",
        "::div",
        "::copy_",
        "::fill_",
        "::cat",
        "::sum",
        "::am",
        "neg",
    ),
    "optimizer": ("Optimizer", "sqrt", "addcdiv", "addcmul", "lerp"),
}
MARKS = ("<!-- profile: begin, written by benchmarks/profile_step.py -->", "<!-- profile: end -->")


def kind_of(name: str) -> str:
    """Under which heading an operation stands."""
    for kind, parts in KINDS.items():
        if any(part in name for part in parts):
            return kind
    return "all else"


def seconds_by_kind(step: Callable[[], object]) -> Counter[str]:
    """Seconds of one call, by kind of operation."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step()
    found: Counter[str] = Counter()
    for event in seen.key_averages():
        found[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    return found


def table(columns: dict[str, Counter[str]], images: int) -> str:
    """Milliseconds per image, in Markdown."""
    kinds = [kind for kind in (*KINDS, "all else") if any(column[kind] for column in columns.values())]
    lines = ["| ms per image | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for kind in kinds:
        each = " | ".join(f"{column[kind] / images * 1e3:.0f}" for column in columns.values())
        lines.append(f"| {kind} | {each} |")
    totals = (f"**{sum(column.values()) / images * 1e3:.0f}**" for column in columns.values())
    return "\n".join([*lines, "| all | " + " | ".join(totals) + " |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="the embedded model: does all run?")
    parser.add_argument("--docs", type=Path, help="page to put the table into, between its marks")
    options = parser.parse_args()
    if options.docs is not None:
        results.check_marks(options.docs, MARKS)
    torch.set_num_threads(1)
    images = 2 * options.batch
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = save_base_model(folder / "base", quick=options.quick)
        data = save_data(folder / "data", images)
        ours = OurTraining(model, data, folder / "fp32", "dense", options.batch)
        usual = UsualTraining(model, ours)
        eight: dict[str, Any] = {"train.precision": "int8"}
        lower = OurTraining(model, data, folder / "int8", "dense", options.batch, **eight)
        columns: dict[str, Counter[str]] = {}
        for title, way in (("usual way", usual), ("this package", ours), ("this package, int8", lower)):
            way.epoch()
            columns[title] = seconds_by_kind(way.epoch)
        ours.close()
        lower.close()
    text = table(columns, images)
    print(text)
    if options.docs is not None:
        results.put_between(options.docs, text, MARKS)


if __name__ == "__main__":
    main()
