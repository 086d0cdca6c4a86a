"""Scalars to TensorBoard, Weights & Biases and MLflow; each is imported only where it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vlsm_adapter.config import RunConfig
from vlsm_adapter.errors import ConfigError
from vlsm_adapter.run_folder import RunFolder

Sink = Callable[[Mapping[str, float], int], None]


class Logs:
    """Every sink the configuration names.

    Args:
        config: the run's configuration.
        folder: the run's folder.
        first_step: updates done already; later events of an interrupted run are dropped.

    Raises:
        ConfigError: a package is missing; the message says what to install.
    """

    def __init__(self, config: RunConfig, folder: RunFolder, *, first_step: int) -> None:
        self._sinks: list[Sink] = []
        self._closers: list[Callable[[], Any]] = []
        if config.log.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(folder.tensorboard), purge_step=first_step + 1 if first_step else None)
            self._add(lambda values, step: _to_tensorboard(writer, values, step), writer.close)
        if config.log.wandb:
            wandb = _need("wandb")
            run = wandb.init(
                project=config.log.project, name=folder.path.name, config=config.to_dict(), dir=str(folder.path)
            )
            self._add(lambda values, step: run.log(dict(values), step=step), run.finish)
        if config.log.mlflow:
            mlflow = _need("mlflow")
            mlflow.set_experiment(config.log.project)
            mlflow.start_run(run_name=folder.path.name)
            self._add(lambda values, step: mlflow.log_metrics(dict(values), step=step), mlflow.end_run)

    def _add(self, sink: Sink, close: Callable[[], Any]) -> None:
        self._sinks.append(sink)
        self._closers.append(close)

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Write ``values`` (name to number) at update ``step``."""
        for sink in self._sinks:
            sink(values, step)

    def close(self) -> None:
        """Flush and close."""
        for close in self._closers:
            close()


def check_logs(config: RunConfig) -> None:
    """Import what the configuration asks for, so that a missing package is found before anything is written.

    Raises:
        ConfigError: a package is missing; the message says what to install.
    """
    for package, wanted in (("wandb", config.log.wandb), ("mlflow", config.log.mlflow)):
        if wanted:
            _need(package)


def _to_tensorboard(writer: Any, values: Mapping[str, float], step: int) -> None:
    for name, value in values.items():
        writer.add_scalar(name, value, step)


def _need(package: str) -> Any:
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"log.{package}: the package is not installed: pip install 'vlsm-adapter[{package}]'"
        ) from error
