"""The table of ratios: this package beside the usual way, each row measured by both in turn, in the same run.

    python benchmarks/performance.py [--only ROW ...] [--repeats 5] [--quick] [--out build/performance]

At CLIPSeg's full size (150,747,746 parameters) with random weights, 352 pixels. Each row runs in a process of its own;
the rows on memory and on the start of the command start fresh ones for every repetition. The ratio is the median of the
ratios of the repetitions, with the lowest and highest. Writes ``performance.json``, ``performance.md`` and a plot to
``--out``; ``--docs FILE`` also puts the table into a page, between its marks. ``--list`` names the rows. Exits with 1 if a
row fails or the two ways differ in their results. What is "usual" is said, and done, in ``usual_way.py``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import results
from measuring import Measured, Row, Setting, answer_task, in_new_process, summary

DENSE = "dense VLC training step"


def rows() -> dict[str, Row]:
    """All rows, in the order of the table."""
    import rows_costs as costs
    import rows_prediction as prediction
    import rows_training as training

    def fastest(setting: Setting) -> Measured:
        return training.dense(setting, batch=4, precision=training.fastest_precision(setting.precision))

    found = [
        Row("dense_4", f"{DENSE}, fp32, batch 4", "images/s", 1.3, True, partial(training.dense, batch=4)),
        Row("dense_16", f"{DENSE}, fp32, batch 16", "images/s", 1.3, True, partial(training.dense, batch=16)),
        Row("dense_fastest", f"{DENSE}, fastest precision, batch 4", "images/s", 2.5, True, fastest),
        Row(
            "shallow",
            "shallow training, epochs after the first",
            "images/s",
            10,
            True,
            partial(training.epochs, method="shallow"),
        ),
        Row(
            "decoder_only",
            "decoder-only training, epochs after the first",
            "images/s",
            10,
            True,
            partial(training.epochs, method="decoder_only"),
        ),
        Row(
            "predict_1", "prediction, 1 prompt per image", "images/s", 2.3, True, partial(prediction.predict, prompts=1)
        ),
        Row(
            "predict_10",
            "prediction, 10 prompts per image",
            "masks/s",
            20,
            True,
            partial(prediction.predict, prompts=10),
        ),
        Row(
            "predict_1_int8",
            "prediction in 8 bits, 1 prompt per image",
            "images/s",
            2.3,
            True,
            partial(prediction.predict, prompts=1, precision="int8"),
        ),
        Row(
            "predict_10_int8",
            "prediction in 8 bits, 10 prompts per image",
            "masks/s",
            20,
            True,
            partial(prediction.predict, prompts=10, precision="int8"),
        ),
        Row("memory", "peak memory of a dense training step, batch 4", "MiB", 0.45, False, costs.memory, 2**20),
        Row(
            "memory_checkpointing",
            "the same with train.checkpointing",
            "MiB",
            0.45,
            False,
            partial(costs.memory, checkpointing=True),
            2**20,
        ),
        Row("artefact", "artefact on disk", "MiB", 1 / 40, False, prediction.artefact, 2**20),
        Row("cold_start", "cold start of vlsm predict on one image", "s", 0.5, False, prediction.cold_start),
        Row("metrics", "HD95 + NSD of a lesion at 3000 x 2000, beside MONAI", "cases/s", 10, True, costs.metrics),
        Row(
            "efficiency",
            "frozen forward, part of the measured matrix product",
            "GFLOP/s",
            0.75,
            True,
            costs.efficiency,
            1e9,
        ),
    ]
    return {row.name: row for row in found}


NAMES = (
    "dense_4",
    "dense_16",
    "dense_fastest",
    "shallow",
    "decoder_only",
    "predict_1",
    "predict_10",
    "predict_1_int8",
    "predict_10_int8",
    "memory",
    "memory_checkpointing",
    "artefact",
    "cold_start",
    "metrics",
    "efficiency",
)  # without importing torch, for the options


def tasks() -> dict[str, Any]:
    """What runs in processes of its own, by name."""
    import rows_costs as costs

    named: dict[str, Any] = {name: row.run for name, row in rows().items()}
    for task in (costs.memory_of_ours, costs.memory_of_usual, costs.memory_of_libraries):
        named[task.__name__] = task
    named["base_model"] = base_model
    named["describe"] = describe
    return named


def base_model(setting: Setting) -> str:
    """Save the base model that all rows use."""
    from our_way import save_base_model

    return str(save_base_model(Path(setting.model), quick=setting.quick))


def describe(_: Setting) -> dict[str, Any]:
    """The rows without their functions, and the machine."""
    from vlsm_adapter.doctor import examine

    plain = [{key: value for key, value in vars(row).items() if key != "run"} for row in rows().values()]
    return {"rows": plain, "machine": examine(speed=False).to_dict()}


def measure(setting: Setting, names: list[str]) -> dict[str, Any]:
    """Measure rows one after the other; a row that fails is told and left out."""
    script = Path(__file__).name
    about = in_new_process(script, "describe", setting)
    in_new_process(script, "base_model", setting)
    found: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/performance.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "quick": setting.quick,
        "repeats": setting.repeats,
        "clock": setting.clock,
        "machine": about["machine"],
        "rows": [],
        "failed": {},
    }
    for plain in about["rows"]:
        if plain["name"] not in names:
            continue
        start = time.perf_counter()
        own = replace(setting, folder=str(Path(setting.folder) / plain["name"]))
        try:
            measured = Measured(**in_new_process(script, plain["name"], own))
        except RuntimeError as error:
            found["failed"][plain["name"]] = str(error)
            print(f"{plain['name']}: failed: {error}", file=sys.stderr, flush=True)
            continue
        one = summary(Row(**plain), measured)
        one["seconds"] = round(time.perf_counter() - start, 1)
        found["rows"].append(one)
        print(results.line(one), file=sys.stderr, flush=True)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="ROW", default=list(NAMES), help="these rows alone")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="the embedded model and small sizes: does all run?")
    parser.add_argument("--precision", default="auto", help="of the row dense_fastest")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="for a busy machine: the time each way computed, not the wall clock's; give OMP_NUM_THREADS=1 with it",
    )
    parser.add_argument("--out", type=Path, default=Path("build/performance"))
    parser.add_argument("--docs", type=Path, help="page to put the table into, between its marks")
    parser.add_argument("--folder", type=Path, help="where to make the temporary folder; 2 GB at full size")
    for hidden in ("--task", "--setting", "--answer"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.task:
        answer_task(tasks(), options.task, options.setting, Path(options.answer))
        return 0
    if options.list:
        print("\n".join(NAMES))
        return 0
    if options.repeats < 1:
        parser.error("--repeats: at least 1")
    if options.docs is not None:
        results.check_marks(options.docs)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        setting = Setting(
            str(Path(name) / "base"),
            str(Path(name) / "work"),
            options.repeats,
            options.quick,
            options.precision,
            "processor" if options.processor_time else "wall",
        )
        found = measure(setting, options.only)
    results.write(found, options.out, docs=options.docs)
    print(results.table(found))
    differ = [one["row"] for one in found["rows"] if one["measured"]["equal"] is False]
    for row in differ:
        print(f"{row}: the two ways differ in their results, see performance.json", file=sys.stderr)
    return 1 if found["failed"] or differ else 0


if __name__ == "__main__":
    sys.exit(main())
