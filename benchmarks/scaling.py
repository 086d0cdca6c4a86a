"""How time and memory grow: with images, prompts per image, the side of the image, the batch, the width of the adapter.

    python benchmarks/scaling.py [--only AXIS ...] [--rounds 3] [--quick] [--out build/performance]

At CLIPSeg's full size with random weights. Every point is measured in a process of its own, all of them once per round;
time is the median of the rounds, memory what the work holds at most beyond the loaded model. The slope between
neighbouring points on log-log axes is 1 where the cost grows in proportion; the table says where it leaves that. Writes
``scaling.json``, ``scaling.md`` and a plot to ``--out``; ``--list`` names the axes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from measuring import Setting, answer_task, in_new_process, peak_memory
from vlsm_adapter import files

SCRIPT = Path(__file__).name
LINEAR = 0.15  # a slope is called linear where it is this near to 1
LEAST_MEMORY = 1 << 20  # less is noise


@dataclass(frozen=True)
class Axis:
    """One thing that grows.

    Attributes:
        name: for ``--only``.
        title: what is done, and with how many of what.
        unit: of ``values``.
        values, quick: what is measured, and the same with ``--quick``.
        task: ``predict`` or ``train``.
        keyword: argument of the task that takes the value.
        options: further arguments of the task.
        amount: of a value, that cost is compared with: the pixels of an image, not its side.
    """

    name: str
    title: str
    unit: str
    values: tuple[int, ...]
    quick: tuple[int, ...]
    task: str
    keyword: str
    options: tuple[tuple[str, Any], ...] = ()
    amount: Callable[[int], int] = int


AXES = {
    axis.name: axis
    for axis in (
        Axis("images", "predict, one prompt", "images", (1, 2, 4, 8, 16, 32), (1, 2), "predict", "images"),
        Axis("prompts", "predict, one image", "prompts", (1, 4, 16, 64, 256), (1, 4), "predict", "prompts"),
        Axis(
            "side",
            "predict, one image and prompt",
            "pixels a side",
            (176, 256, 352, 528, 704, 1056),
            (64, 128),
            "predict",
            "side",
            amount=lambda side: side * side,
        ),
        Axis("batch", "dense training step", "images", (1, 2, 4, 8, 16), (1, 2), "train", "batch"),
        Axis(
            "width",
            "dense training step, batch 4",
            "adapter width",
            (8, 32, 64, 128, 256, 512),
            (8, 64),
            "train",
            "width",
        ),
        Axis(
            "cached",
            "shallow training, an epoch after the first",
            "images",
            (8, 16, 32, 64),
            (4, 8),
            "train",
            "cases",
            (("method", "shallow"), ("batch", 4)),
        ),
    )
}


def predict(setting: Setting, *, images: int = 1, prompts: int = 1, side: int | None = None) -> dict[str, float]:
    """Seconds and bytes of asking ``prompts`` of each of ``images``, network input ``side`` x ``side``."""
    import numpy as np

    from vlsm_adapter.models import load_model
    from vlsm_adapter.predict import Predictor

    model = load_model(setting.model)
    if side is not None:
        model.preprocessing = replace(model.preprocessing, size=(side, side))
    predictor = Predictor(model)
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (480, 640, 3), np.uint8) for _ in range(min(images, 4))]
    texts = [f"lesion number {number}" for number in range(prompts)]

    def ask(count: int) -> None:
        for number in range(count):
            predictor.set_image(pixels[number % len(pixels)])
            for _ in predictor.each(texts):  # one prompt's map at a time, as vlsm predict does
                pass

    ask(1)
    return _measured(setting, lambda: ask(images))


def train(
    setting: Setting, *, batch: int = 4, width: int | None = None, cases: int | None = None, method: str = "dense"
) -> dict[str, float]:
    """Seconds and bytes of an epoch over ``cases`` images (one batch by default), after a first one."""
    from our_way import OurTraining, save_data

    data = save_data(setting.new_folder("data"), cases or batch)
    changes: dict[str, Any] = {} if width is None else {"settings": {"bottleneck_dim": width}}
    run = OurTraining(Path(setting.model), data, setting.new_folder("run"), method, batch, setting.now, **changes)
    if cases is None:
        run.epoch()
        found = _measured(setting, run.epoch)
    else:  # what is kept of the first epoch is part of the memory
        start = _resident()
        _forget_peak()
        run.epoch()
        seconds = setting.seconds_of(run.epoch)
        found = {"seconds": seconds, "bytes": float(max(LEAST_MEMORY, peak_memory() - start)), "peak": peak_memory()}
    run.close()
    return found


def _measured(setting: Setting, work: Callable[[], Any]) -> dict[str, float]:
    start = _resident()
    _forget_peak()
    seconds = setting.seconds_of(work)
    return {"seconds": seconds, "bytes": float(max(LEAST_MEMORY, peak_memory() - start)), "peak": float(peak_memory())}


def _resident() -> int:
    """Bytes held now."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:"))
    return peak_memory()


def _forget_peak() -> None:
    """Let the most that was held begin anew; where the system cannot, the load of the model is part of it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def slopes(amounts: Sequence[float], costs: Sequence[float]) -> list[float]:
    """Slope between neighbouring points on log-log axes."""
    return [math.log(costs[i + 1] / costs[i]) / math.log(amounts[i + 1] / amounts[i]) for i in range(len(amounts) - 1)]


def growth(values: Sequence[int], steps: Sequence[float]) -> str:
    """Where a cost grows in proportion and where not, in words.

    Args:
        values: of the axis, one more than ``steps``.
        steps: slopes between neighbouring values.
    """

    def kind(slope: float) -> str:
        return "linear" if abs(slope - 1) <= LINEAR else ("below linear" if slope < 1 else "above linear")

    parts: list[tuple[str, int, int, list[float]]] = []
    for low, high, slope in zip(values[:-1], values[1:], steps, strict=True):
        if parts and parts[-1][0] == kind(slope):
            before = parts[-1]
            parts[-1] = (before[0], before[1], high, [*before[3], slope])
        else:
            parts.append((kind(slope), low, high, [slope]))
    return "; ".join(
        f"{name} from {low} to {high} (slope {statistics.mean(all_):.2f})" for name, low, high, all_ in parts
    )


def measure(setting: Setting, names: Sequence[str], rounds: int) -> dict[str, Any]:
    """Every point of every axis, once per round."""
    in_new_process("performance.py", "base_model", setting)
    about = in_new_process("performance.py", "describe", setting)
    points = [
        (axis, value)
        for name in names
        for axis in [AXES[name]]
        for value in (axis.quick if setting.quick else axis.values)
    ]
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    failed: dict[str, str] = {}
    for number in range(rounds):
        for axis, value in points:
            with tempfile.TemporaryDirectory(dir=Path(setting.folder).parent) as folder:
                own = replace(setting, folder=folder)
                try:
                    one = in_new_process(SCRIPT, axis.task, own, **{axis.keyword: value}, **dict(axis.options))
                except RuntimeError as error:  # of want of memory, most likely: what is beyond is not known
                    failed[f"{axis.name} {value}"] = str(error)
                    continue
            found.setdefault((axis.name, value), []).append(one)
            told = f"{one['seconds']:.3g} s, {one['bytes'] / 2**20:.0f} MiB"
            print(f"round {number + 1}: {axis.name} {value}: {told}", file=sys.stderr, flush=True)
    return {
        "command": " ".join(["python", "benchmarks/scaling.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "quick": setting.quick,
        "repeats": rounds,
        "clock": setting.clock,
        "machine": about["machine"],
        "axes": [axis for name in names if (axis := summary(AXES[name], found)) is not None],
        "failed": failed,
    }


def summary(axis: Axis, found: dict[tuple[str, int], list[dict[str, float]]]) -> dict[str, Any] | None:
    """An axis as plain values; None where nothing of it could be measured."""
    values = sorted(value for name, value in found if name == axis.name)
    if not values:
        return None
    seconds = [statistics.median(one["seconds"] for one in found[axis.name, value]) for value in values]
    memory = [statistics.median(one["bytes"] for one in found[axis.name, value]) for value in values]
    amounts = [axis.amount(value) for value in values]
    steps = {"seconds": slopes(amounts, seconds), "bytes": slopes(amounts, memory)}
    return {
        "axis": axis.name,
        "title": axis.title,
        "unit": axis.unit,
        "values": values,
        "seconds": seconds,
        "bytes": memory,
        "slopes": steps,
        "growth": {name: growth(values, of) for name, of in steps.items()},
    }


def table(found: dict[str, Any]) -> str:
    """A Markdown table, a row per point, then where each axis leaves linear."""
    lines = ["| what | | seconds | MiB beyond the model |", "|---|---|---|---|"]
    for one in found["axes"]:
        for value, seconds, memory in zip(one["values"], one["seconds"], one["bytes"], strict=True):
            lines.append(f"| {one['title']} | {value} {one['unit']} | {seconds:.3g} | {memory / 2**20:,.0f} |")
    lines.append("")
    for one in found["axes"]:
        words = one["growth"]
        lines.append(f"- {one['title']}, {one['unit']}: time {words['seconds']}. Memory {words['bytes']}.")
    lines += [f"- {name}: failed: {reason}" for name, reason in found["failed"].items()]
    return "\n".join(lines)


def plot(found: dict[str, Any], out: Path) -> None:
    """``scaling.svg`` and ``.png``: a panel per axis, time and memory on log-log axes, with lines of slope 1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes = found["axes"]
    columns = min(3, len(axes))
    rows = math.ceil(len(axes) / columns)
    figure, panels = pyplot.subplots(
        rows, columns, figsize=(4 * columns, 3.2 * rows), layout="constrained", squeeze=False
    )
    for panel in panels.flat[len(axes) :]:
        panel.remove()
    for panel, one in zip(panels.flat, axes, strict=False):
        other = panel.twinx()
        amounts = [AXES[one["axis"]].amount(value) for value in one["values"]]
        for where, key, colour, scale, label in (
            (panel, "seconds", "#2a7fb8", 1.0, "seconds"),
            (other, "bytes", "#c8553d", 2.0**20, "MiB"),
        ):
            costs = [cost / scale for cost in one[key]]
            where.plot(one["values"], costs, "o-", color=colour, markersize=4)
            straight = [costs[-1] * amount / amounts[-1] for amount in amounts]
            where.plot(one["values"], straight, ":", color=colour, linewidth=1)
            where.set_xscale("log", base=2)
            where.set_yscale("log")
            low, high = min(costs), max(costs)
            where.set_ylim(low / 1.6, high * 1.6)
            where.set_ylabel(label, color=colour)
            where.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            where.yaxis.set_minor_formatter(NullFormatter())
        panel.set_xticks(one["values"], [str(value) for value in one["values"]])
        panel.set_xlabel(one["unit"])
        panel.set_title(one["title"], fontsize=10)
    figure.suptitle("Time (blue) and memory beyond the model (red); dotted: in proportion", fontsize=11)
    for ending in ("svg", "png"):
        with files.atomic_path(out / f"scaling.{ending}") as temporary:
            figure.savefig(temporary, format=ending, dpi=150, metadata={"Date": None} if ending == "svg" else None)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(AXES), metavar="AXIS", default=list(AXES), help="these alone")
    parser.add_argument("--list", action="store_true", help="name the axes and stop")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the embedded model and small sizes: does all run?")
    parser.add_argument("--processor-time", action="store_true", help="for a busy machine, see performance.py")
    parser.add_argument("--out", type=Path, default=Path("build/performance"))
    parser.add_argument("--folder", type=Path, help="where to make the temporary folder; 1 GB at full size")
    for hidden in ("--task", "--setting", "--answer"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.task:
        answer_task({"predict": predict, "train": train}, options.task, options.setting, Path(options.answer))
        return 0
    if options.list:
        print("\n".join(AXES))
        return 0
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        clock = "processor" if options.processor_time else "wall"
        setting = Setting(str(Path(name) / "base"), str(Path(name) / "work"), 1, options.quick, clock=clock)
        found = measure(setting, options.only, options.rounds)
    import results

    options.out.mkdir(parents=True, exist_ok=True)
    files.write_text(options.out / "scaling.json", json.dumps(found, indent=2) + "\n")
    files.write_text(options.out / "scaling.md", f"{table(found)}\n\n{results.about(found)}\n")
    if found["axes"]:
        plot(found, options.out)
    print(table(found))
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
