"""Training with the features of frozen encoders kept, beside training that computes them for every batch.

    python benchmarks/feature_cache.py [--model tiny full] [--method shallow dense:last_blocks=3,parts=v] [--cases 48] [--epochs 3]

Both runs of a pair take turns epoch by epoch in one process, so that other work on the machine meets both alike. ``full``
is CLIPSeg at its published size (150,747,746 parameters) with random weights, made in the temporary folder; the images are
phantoms. "later_images_per_second" is of the training batches of the epochs after the first, median of the epochs;
"weights_equal" compares every trained tensor at the end, bit for bit. Prints one JSON object per model and method.

On the CPU both runs give a frozen encoder one image at a time, so that the weights are equal: "off" is that computation done
for every batch. On a GPU "off" runs the encoders on whole batches; the weights are then equal but for rounding.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from our_way import save_base_model
from vlsm_adapter import fit
from vlsm_adapter.config import RunConfig
from vlsm_adapter.console import Console
from vlsm_adapter.data.phantoms import write_phantoms
from vlsm_adapter.run_folder import RunFolder
from vlsm_adapter.train import build, close, set_up


def settings_of(method: str) -> dict[str, str]:
    """Of ``dense:last_blocks=3,parts=v`` what follows the colon."""
    given = method.partition(":")[2]
    return dict(one.split("=", 1) for one in given.split(",")) if given else {}


def start(model: str, method: str, data: Path, out: Path, cache: str, options: argparse.Namespace) -> fit.Session:
    config = RunConfig.load(
        None,
        {
            "data.path": str(data),
            "model.name": model,
            "adapter.method": method.partition(":")[0],
            **{f"adapter.settings.{name}": yaml.safe_load(value) for name, value in settings_of(method).items()},
            "train.epochs": options.epochs,
            "train.batch_size": options.batch_size,
            "train.feature_cache": cache,
            "train.precision": options.precision,
            "log.tensorboard": False,
        },
    )
    console = Console(quiet=True)
    folder = RunFolder(out)
    folder.path.mkdir()
    return set_up(build(config, console), folder, console)


def epoch(session: fit.Session) -> float:
    """Images per second of one epoch of training; the validation follows."""
    fit._train_epoch(session)
    fit._end_epoch(session, fit._validate(session))
    return session.progress.history[-1]["images_per_second"]


def pair(model: str, method: str, data: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One model and method, with the cache and without."""
    speeds: dict[str, list[float]] = {"auto": [], "off": []}
    sessions = {
        cache: start(
            model, method, data, folder / f"{Path(model).name}-{method.replace(':', '-')}-{cache}", cache, options
        )
        for cache in speeds
    }
    for _ in range(options.epochs):
        for cache, session in sessions.items():
            speeds[cache].append(epoch(session))
    weights = []
    for session in sessions.values():
        fit._save(session)
        close(session)
        state = load_file(session.folder.state_file)
        weights.append({name: tensor for name, tensor in state.items() if name.startswith("weights/")})
    later = {cache: statistics.median(values[1:]) for cache, values in speeds.items()}
    return {
        "model": Path(model).name,
        "method": method,
        "images": len(sessions["auto"].train_data),
        "batch_size": options.batch_size,
        "threads": torch.get_num_threads(),
        "precision": sessions["auto"].fabric._precision.precision,
        "first_epoch_images_per_second": {cache: round(values[0], 2) for cache, values in speeds.items()},
        "later_images_per_second": {cache: round(value, 2) for cache, value in later.items()},
        "ratio": round(later["auto"] / later["off"], 2),
        "weights_equal": all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["tiny", "full"], help="tiny, full, or a folder")
    parser.add_argument(
        "--method", nargs="+", default=["shallow", "decoder_only"], help="NAME or NAME:SETTING=VALUE,..."
    )
    parser.add_argument("--cases", type=int, default=48, help="phantoms; three quarters of them train")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precision", default="32-true")
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error("--epochs: at least 2, the first one fills the cache")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_phantoms(
            folder / "data",
            cases_per_modality=options.cases,
            seed=0,
            modalities=("endoscopy",),
            splits=(0.75, 0.25, 0.0),
        )
        for model in options.model:
            path = str(save_base_model(folder / "full")) if model == "full" else model
            for method in options.method:
                print(json.dumps(pair(path, method, folder / "data", folder, options)), flush=True)


if __name__ == "__main__":
    main()
