"""Commands in processes of their own that start at once: forked from a process that has imported the heavy libraries.

Importing torch, transformers and PEFT takes seconds, and a test that kills a command starts it many times. What is tested
is all there: a process with its own signals, exit code and error stream. ``python -m vlsm_adapter`` itself, imports
included, is what test_light.py, test_compare.py on Ray and test_processes.py start.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Mapping
from multiprocessing import forkserver
from pathlib import Path
from types import MappingProxyType

_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOADED = [
    "peft",
    "transformers.models.clipseg.modeling_clipseg",
    "fastapi",
    "uvicorn",
    "vlsm_adapter.cli",
    "vlsm_adapter.train",
    "vlsm_adapter.evaluate",
    "vlsm_adapter.predict",
    "vlsm_adapter.study.cell",
]


def start_server() -> None:
    """Start the process that the others are forked from; it ends with this one."""
    _CONTEXT.set_forkserver_preload(_PRELOADED)
    forkserver.ensure_running()


class Command:
    """``vlsm ARGUMENTS`` in a process of its own; asked as ``subprocess.Popen`` is, its standard output thrown away.

    Args:
        arguments: of the command line.
        told: the file that the error stream is appended to.
        script: what to run instead of ``vlsm``: a file, or ``study.cell``.
        environment: variables beside those of the tests.
    """

    def __init__(
        self,
        *arguments: object,
        told: Path,
        script: Path | str | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.file = told
        given = (list(map(str, arguments)), None if script is None else str(script), str(told), _around(environment))
        self._process = _CONTEXT.Process(target=_run, args=given)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def told(self) -> str:
        """What it has written to its error stream so far."""
        return self.file.read_text(encoding="utf-8", errors="replace") if self.file.exists() else ""

    @property
    def returncode(self) -> int | None:
        """The exit code, minus the number of the signal that ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise TimeoutError(f"still running after {timeout} s: {self.told}")
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[None, str]:
        self.wait(timeout)
        return None, self.told

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _around(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of the tests without those of a cluster or of a run of several processes, and ``environment``."""
    of_runs = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {key: value for key, value in os.environ.items() if key not in of_runs and not key.startswith("SLURM_")}
    return {**kept, "OMP_NUM_THREADS": "1", **environment}


def _run(arguments: list[str], script: str | None, told: str, environment: dict[str, str]) -> None:
    """In the new process: what ``python -m vlsm_adapter ARGUMENTS`` does."""
    os.environ.clear()
    os.environ.update(environment)
    for number, place in ((1, os.devnull), (2, told)):
        descriptor = os.open(place, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(descriptor, number)
        os.close(descriptor)
    # A test run that was started in the background ignores Ctrl-C, and hands that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if script == "study.cell":
        from vlsm_adapter.study import cell

        sys.exit(cell.main(arguments))
    sys.argv = [script or "vlsm", *arguments]
    if script is not None:
        runpy.run_path(script, run_name="__main__")
        return
    # By this the further processes of a run of several are started: python -m vlsm_adapter.
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("vlsm_adapter.__main__")
    from vlsm_adapter.cli import main

    main()
