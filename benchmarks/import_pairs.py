"""Time and memory of ``vlsm data import`` on a folder of image and mask pairs.

    python benchmarks/import_pairs.py [--pairs 10000] [--size 256] [--jobs N] [--folder DIR]

Makes PNG pairs (noisy pictures that hardly compress, as ultrasound; discs as masks) in a temporary folder, imports them by
the command line, then gives the command again. "wall" is wall-clock time, "CPU" processor time of the command with all its
threads, "memory" the largest resident set. Files just written lie in the memory of the system, so reading them is fast.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image


def make_pairs(folder: Path, count: int, size: int) -> int:
    """Write ``images/`` and ``masks/``; returns the bytes."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    rows, columns = np.ogrid[:size, :size]
    total = 0
    for number in range(count):
        # Four bits and a half of noise a value: 0.13 MB an image of 256 x 256, another content in each file.
        image = rng.integers(0, 24, (size, size, 3), np.uint8) + number % 128
        middle, radius = size / 4 + number % (size // 2), size / 8 + number % (size // 8)
        mask = (rows - middle) ** 2 + (columns - size / 2) ** 2 < radius**2
        for kind, pixels in (("images", image.astype(np.uint8)), ("masks", mask.astype(np.uint8) * 255)):
            file = folder / kind / f"{number:05}.png"
            Image.fromarray(pixels).save(file)
            total += file.stat().st_size
    return total


def timed(command: list[str]) -> str:
    """Run a command; its wall-clock and processor time and its memory in words."""
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    memory = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return f"{wall:.1f} s wall, {usage.ru_utime + usage.ru_stime:.1f} s CPU, {memory:.0f} MiB memory"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=256, help="side in pixels, 16 or more")
    parser.add_argument("--jobs", type=int, help="threads of the import; by default its own choice")
    parser.add_argument("--folder", type=Path, help="where to make the temporary folder")
    options = parser.parse_args()
    if options.pairs < 1 or options.size < 16:
        parser.error("--pairs from 1 on, --size from 16 on")
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        pairs, out = Path(made) / "pairs", Path(made) / "set"
        total = make_pairs(pairs, options.pairs, options.size)
        print(f"{options.pairs} pairs of {options.size} x {options.size}: {total / 1e9:.2f} GB", flush=True)
        command = [sys.executable, "-m", "vlsm_adapter", "data", "import", str(pairs), "--out", str(out), "--quiet"]
        command += ["--prompt", "disc", *(["--jobs", str(options.jobs)] if options.jobs else [])]
        print(f"import: {timed(command)}", flush=True)
        print(f"again:  {timed(command)}", flush=True)


if __name__ == "__main__":
    main()
