"""A run's folder: what lies where. Everything in it is readable without this package.

::

    RUN/config.yaml        the configuration, complete
        data.json          case ids by split, the cases left out with their reasons, and the SHA-256 of the images that
                           it and the adapters before it were trained on
        environment.json   versions, machine, command
        metrics.csv        a row per epoch; cells of scores are empty where it was not validated
        adapter/           the best adapter by validation Dice (an adapter folder)
        state.safetensors  the last state, to resume from; its metadata is JSON
        tensorboard/       event files
        log.txt            what was said while it ran
        evaluation/        written by ``vlsm evaluate``
"""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vlsm_adapter import files
from vlsm_adapter.config import RunConfig
from vlsm_adapter.errors import UserError


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder."""

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run.

        Raises:
            UserError: there is no run at ``path``.
        """
        folder = cls(Path(path))
        if not folder.config_file.is_file():
            raise UserError(f"{path}: not a run folder, it has no config.yaml; give a folder that 'vlsm train' made")
        return folder

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def data_file(self) -> Path:
        return self.path / "data.json"

    @property
    def environment_file(self) -> Path:
        return self.path / "environment.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def state_file(self) -> Path:
        return self.path / "state.safetensors"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def log_file(self) -> Path:
        return self.path / "log.txt"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second process out of this run, and clear away what a killed one left half-written.

        Raises:
            UserError: another process works on the run.
        """
        busy = f"{self.path}: another process is training this run; wait for it or stop it"
        with files.locked(self.path / ".lock", busy):
            for leftover in (*self.path.glob(".*.tmp"), *self.adapter.glob(".*.tmp")):
                leftover.unlink(missing_ok=True)
            yield

    def config(self) -> RunConfig:
        """The run's configuration."""
        return RunConfig.load(self.config_file)

    def precision(self) -> str | None:
        """The arithmetic that training really used, by ``environment.json``; None where it does not say."""
        try:
            values = json.loads(self.environment_file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        found = values.get("precision") if isinstance(values, dict) else None
        return found if isinstance(found, str) and found else None

    def data(self) -> dict[str, Any]:
        """What ``data.json`` holds, or an empty dictionary.

        Raises:
            UserError: the file is damaged.
        """
        if not self.data_file.is_file():
            return {}
        try:
            values = json.loads(self.data_file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{self.data_file}: damaged ({error}); restore it, or remove it to go without") from error
        return values if isinstance(values, dict) else {}


def environment() -> dict[str, Any]:
    """What numbers depend on beside the configuration: command, machine, versions."""
    import torch

    versions = {"python": platform.python_version()}
    for package in ("vlsm-adapter", "torch", "transformers", "peft", "lightning-fabric", "numpy", "scipy", "pillow"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that is not installed
            versions[package] = "unknown"
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": versions,
    }
