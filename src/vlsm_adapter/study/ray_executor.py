"""Runs on Ray: embedded in this process for one machine, or a cluster by its address. The only file of the study that imports Ray."""

from __future__ import annotations

import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

from vlsm_adapter.errors import UserError, one_line
from vlsm_adapter.ray_address import why_silent
from vlsm_adapter.study.processes import Outcome, mark_killed, run_to_end

INSTALL = "pip install 'vlsm-adapter[study]'"
_OBJECT_STORE = 80 << 20  # its least: nothing but paths and one-line answers pass through it
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a run that asks for no GPU keeps what the user made visible
}
_EMBEDDED = {
    # Ray sees its own small workers, not the processes of the runs: it would kill the wrong ones.
    "RAY_memory_monitor_refresh_ms": "0",
    # Its name notwithstanding: off, Ray's processes listen on the loopback interface alone, on Linux as well.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


def need_ray() -> None:
    """Refuse to go on without Ray; it is not imported.

    Raises:
        UserError: it is not installed.
    """
    if why := ray_missing():
        raise UserError(why)


def ray_missing() -> str | None:
    """Why runs cannot go to Ray: it is not installed; None where it is. It is not imported."""
    if importlib.util.find_spec("ray") is None:
        return f"Ray is not installed: {INSTALL}, or run one after another with --local"
    return None


class RayExecutor:
    """Each run is a task of Ray that starts the run's own process and waits for it.

    So a run that is killed takes no worker of Ray with it, and a worker that is killed leaves a run that notices, saves
    its state and stops. Retries are the caller's.

    Args:
        capacity: runs given to Ray at once; on one machine the runs at once.
        stop_file, threads: as in ``processes.start``.
        cpus, gpus: of one run; ``gpus=None`` is one for each of its ``devices`` where there are GPUs, else none.
        memory_gb: of one run; a cluster starts no more on a node than its memory allows.
        address: of a cluster; None starts Ray here, for this process alone.

    Raises:
        UserError: Ray is not installed or does not start, the cluster does not answer, or no node of it has room.
    """

    def __init__(
        self,
        capacity: int,
        stop_file: Path,
        threads: int,
        *,
        cpus: int,
        gpus: float | None,
        devices: int = 1,
        memory_gb: float,
        address: str | None = None,
    ) -> None:
        os.environ.update(_ENVIRONMENT | (_EMBEDDED if address is None else {}))  # before Ray is imported
        need_ray()
        try:
            import ray
        except ImportError as error:
            raise UserError(f"Ray cannot be imported ({one_line(error)}): {INSTALL} again") from error
        if address is not None and (why := why_silent(address)):
            raise UserError(f"Ray: no cluster answers at '{address}' ({why}); or run on this machine with --local")
        self._ray: Any = ray
        self.capacity = capacity
        options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if address is None:
                ray.init(
                    "local",  # not a cluster that happens to run here
                    num_cpus=capacity * cpus,
                    object_store_memory=_OBJECT_STORE,
                    **options,
                )
            else:
                ray.init(address, **{key: options[key] for key in ("log_to_driver", "logging_level")})
        except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError, TimeoutError, ...
            what = "it does not start here" if address is None else f"no cluster answers at '{address}'"
            raise UserError(f"Ray: {what} ({one_line(error)}); or run on this machine with --local") from error
        needed: dict[str, float] = {"num_cpus": cpus}
        if gpus is None:
            gpus = float(devices) if ray.cluster_resources().get("GPU", 0) else 0.0
        if gpus:
            needed["num_gpus"] = gpus
        if address is not None:
            needed["memory"] = memory_gb * (1 << 30)
        try:
            self._check_room(needed)
        except UserError:
            ray.shutdown()
            raise
        self._task = ray.remote(_task).options(max_retries=0, **needed)
        self._arguments = (str(stop_file), threads)
        self._running: dict[Any, Path] = {}

    def _check_room(self, needed: dict[str, float]) -> None:
        names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(all(node.get(names[key], 0) >= amount for key, amount in needed.items()) for node in nodes):
            raise UserError(
                f"Ray: no node has room for one run ({', '.join(f'{names[key]} {amount:g}' for key, amount in needed.items())}); "
                "lower 'resources' of the study"
            )

    def submit(self, run: Path) -> None:
        # Absolute: the working directory of a node's workers is another.
        self._running[self._task.remote(str(run.absolute()), *self._arguments)] = run

    def wait(self, seconds: float) -> list[tuple[Path, Outcome]]:
        if not self._running:
            return []
        done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        ended = []
        for reference in done:
            run = self._running.pop(reference)
            try:
                state, error = self._ray.get(reference)
                ended.append((run, Outcome(state, error)))
            except self._ray.exceptions.RayError as error:  # the worker or its node died, not the run by itself
                ended.append((run, mark_killed(run, f"its Ray worker died ({type(error).__name__})")))
        return ended

    def close(self) -> None:
        self._ray.shutdown()


def _task(run: str, stop_file: str, threads: int) -> tuple[str, str | None]:
    outcome = run_to_end(Path(run), Path(stop_file), threads)
    return outcome.state, outcome.error
