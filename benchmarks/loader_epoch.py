"""Time of an epoch of loading: decoded anew, from the cache on disk, and from memory.

    python benchmarks/loader_epoch.py [--cases 1000] [--workers 2] [--size 352] [--augment none]

Makes JPEG images of 640 x 480 and PNG masks in a temporary folder. Every epoch is read by loader processes that were not
there before; "seconds" is wall-clock time from the first to the last batch of 16, "CPU s" that of all processes together.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vlsm_adapter.data.disk_cache import DiskCache
from vlsm_adapter.data.loaders import CaseDataset, make_loader
from vlsm_adapter.models.preprocessing import Preprocessing
from vlsm_adapter.types import Record


def make_cases(folder: Path, count: int) -> list[Record]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (24, 32, 3), np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)).astype(np.int16)
    picture = np.clip(picture + rng.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)
    rows, columns = np.ogrid[:480, :640]
    records = []
    for number in range(count):
        # Another content in each file, so that none is found by that of another.
        image = np.roll(picture, (7 * number, 13 * number), (0, 1))
        mask = (rows - 100 - number % 280) ** 2 + (columns - 100 - number // 3 % 440) ** 2 < (40 + number % 60) ** 2
        Image.fromarray(image).save(folder / f"{number}.jpg", quality=90)
        Image.fromarray(mask).save(folder / f"{number}.png")
        files = folder / f"{number}.jpg", folder / f"{number}.png"
        records.append(Record(f"case_{number}", *files, {"p1": ("polyp",)}, "train"))
    return records


def tokenize(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(len(texts), 4, dtype=torch.long), torch.ones(len(texts), 4, dtype=torch.long)


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def epoch(dataset: CaseDataset, workers: int, number: int) -> tuple[float, float]:
    dataset.set_epoch(number)
    start, before = time.perf_counter(), cpu_seconds()
    loader = make_loader(dataset, tokenize, batch_size=16, shuffle=True, seed=0, epoch=number, num_workers=workers)
    cases = sum(len(batch.case_ids) for batch in loader)
    assert cases == len(dataset)
    return time.perf_counter() - start, cpu_seconds() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--size", type=int, default=352)
    parser.add_argument("--augment", default="none")
    options = parser.parse_args()
    torch.set_num_threads(1)
    preprocess = Preprocessing(size=(options.size, options.size))
    with tempfile.TemporaryDirectory() as name:
        records = make_cases(Path(name), options.cases)

        def dataset(memory: int, disk: DiskCache | None) -> CaseDataset:
            return CaseDataset(records, preprocess, cache_bytes=memory, disk_cache=disk, augment=options.augment)

        print(f"{options.cases} cases, {options.workers} loader processes, augmentation {options.augment}")
        print("| epoch | seconds | CPU s |\n|---|---|---|")
        seconds, cpu = epoch(dataset(0, None), options.workers, 0)
        print(f"| decoded anew, no cache | {seconds:.2f} | {cpu:.2f} |", flush=True)
        seconds, cpu = epoch(dataset(0, DiskCache(Path(name) / "cache")), options.workers, 0)
        print(f"| decoded, and kept on disk | {seconds:.2f} | {cpu:.2f} |", flush=True)
        seconds, cpu = epoch(dataset(0, DiskCache(Path(name) / "cache")), options.workers, 0)
        print(f"| from the cache on disk | {seconds:.2f} | {cpu:.2f} |", flush=True)
        kept = dataset(1 << 32, DiskCache(Path(name) / "cache"))
        seconds, cpu = epoch(kept, 0, 0)
        print(f"| from the cache on disk, in the training process | {seconds:.2f} | {cpu:.2f} |", flush=True)
        seconds, cpu = epoch(kept, options.workers, 1)
        print(f"| from memory | {seconds:.2f} | {cpu:.2f} |", flush=True)
        seconds, cpu = epoch(kept, 0, 2)
        print(f"| from memory, in the training process | {seconds:.2f} | {cpu:.2f} |")


if __name__ == "__main__":
    main()
