"""Exported folders beside the model in torch: seconds per image and per prompt, and the Dice that each form costs.

    python benchmarks/export_speed.py RUN DATA [--cases 40] [--repeats 5] [--threads 1] [--model BASE] [--keep DIR]
        [--variants onnx onnx-fp16 onnx-int8 onnx-int8-static torch openvino openvino-fp16 openvino-int8]

RUN is a run or adapter folder, DATA a data folder with masks (docs/data.md). Static int8 is calibrated on 16 of its images
that are not among the cases. With --keep the exports stay in DIR, and are taken from there the next time.

Per case: the whole answer to one prompt from the decoded image to the mask at native size ("answer"), and the answer to a
further prompt on the same image ("next"). The forms take turns case by case, ``repeats`` times, so that other work on the
machine meets all alike; a ratio is the median over cases of torch's median time to the form's, above 1 where the form is
faster. Dice is the mean over the cases at native size, "change" its difference to torch's in points. Prints one table, in
Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlsm_adapter.console import Console, show_log
from vlsm_adapter.data.cases import load_cases
from vlsm_adapter.data.images import read_image, read_mask
from vlsm_adapter.data.prompts import choose_prompt
from vlsm_adapter.export import runtime
from vlsm_adapter.export.write import Prepared, prepare, write
from vlsm_adapter.predict import Predictor

VARIANTS: dict[str, dict[str, str]] = {
    "onnx": {},
    "onnx-fp16": {"precision": "fp16"},
    "onnx-int8": {"precision": "int8"},
    "onnx-int8-static": {"precision": "int8", "calibrate": "given"},
    "torch": {"format": "torch"},
    "openvino": {"format": "openvino"},
    "openvino-fp16": {"format": "openvino", "precision": "fp16"},
    "openvino-int8": {"format": "openvino", "precision": "int8", "calibrate": "given"},
}


def make(
    prepared: Callable[[], Prepared], variant: str, work: Path, images: Path, options: argparse.Namespace
) -> runtime.Predictor | None:
    """The exported form, or None where it is refused (the reason is printed)."""
    settings = {key: str(images) if value == "given" else value for key, value in VARIANTS[variant].items()}
    folder = work / variant
    try:
        if not (folder / runtime.MANIFEST).is_file():
            write(prepared(), folder, console=Console(), **settings)
    except ValueError as error:
        print(f"{variant}: {error}", flush=True)
        return None
    return runtime.Predictor(folder, threads=options.threads)


def ask(predictor: Any, image: np.ndarray, prompt: str) -> tuple[np.ndarray, float, float]:
    """Mask, seconds of the whole answer, seconds of a further one."""
    start = time.perf_counter()
    predictor.set_image(image)
    mask = predictor.predict([prompt])[0]
    middle = time.perf_counter()
    predictor.predict([prompt])
    return mask, middle - start, time.perf_counter() - middle


def dice(mask: np.ndarray, truth: np.ndarray) -> float:
    total = int(mask.sum()) + int(truth.sum())
    return 2 * int((mask & truth).sum()) / total if total else 1.0


def main() -> None:
    """Export, take turns, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("data")
    parser.add_argument("--model")
    parser.add_argument("--prompt", help="class name, for data without prompts")
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", help="folder for the exports")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    show_log(quiet=False)
    every = [record for record in load_cases(options.data, prompt=options.prompt).all if record.mask is not None]
    records = every[:: max(1, len(every) // options.cases)][: options.cases]
    chosen = {record.image for record in records}
    others = [record.image for record in every if record.image not in chosen][:16]
    with tempfile.TemporaryDirectory() as name:
        work = Path(options.keep or name)
        images = Path(name) / "images"
        images.mkdir()
        for path in others or list(chosen)[:16]:
            (images / path.name).symlink_to(path.resolve())
        predictors: dict[str, Any] = {"torch eager": Predictor.load(options.run, base=options.model, device="cpu")}
        prepared = cache(lambda: prepare(options.run, base=options.model, check=str(images)))
        made = {variant: make(prepared, variant, work, images, options) for variant in options.variants}
        predictors |= {variant: predictor for variant, predictor in made.items() if predictor is not None}
        answers: dict[str, list[float]] = defaultdict(list)
        times: dict[tuple[str, str], list[float]] = defaultdict(list)
        for record in records:
            image, truth = read_image(record.image), read_mask(record.mask, record.mask_value)  # type: ignore[arg-type]
            prompt = choose_prompt(record, "p1", seed=0)
            taken: dict[tuple[str, str], list[float]] = defaultdict(list)
            for turn in range(options.repeats):
                order = list(predictors)
                for variant in order[turn % len(order) :] + order[: turn % len(order)]:
                    mask, whole, further = ask(predictors[variant], image, prompt)
                    taken[variant, "answer"].append(whole)
                    taken[variant, "next"].append(further)
                    if turn == 0:
                        answers[variant].append(dice(mask, truth))
            for key, values in taken.items():
                times[key].append(statistics.median(values))
    print(f"\n{len(records)} cases, {options.repeats} turns, {options.threads} threads\n")
    print("| form | answer, ms | ratio | next prompt, ms | ratio | Dice | change, points |")
    print("|---|---|---|---|---|---|---|")
    base = statistics.mean(answers["torch eager"])
    for variant in predictors:
        cells = []
        for kind in ("answer", "next"):
            pairs = zip(times["torch eager", kind], times[variant, kind], strict=True)
            ratio = statistics.median(eager / own for eager, own in pairs)
            cells += [f"{1000 * statistics.median(times[variant, kind]):.1f}", f"{ratio:.2f}"]
        mean = statistics.mean(answers[variant])
        print(f"| {variant} | {' | '.join(cells)} | {mean:.4f} | {100 * (mean - base):+.2f} |")


if __name__ == "__main__":
    main()
