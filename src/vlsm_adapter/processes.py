"""Several processes that train one run, each on its share of every batch (distributed data parallel, by Fabric).

The first process starts the others, which run the same command, and it alone writes and speaks; under SLURM, ``srun``
starts them all. A batch of one update is ``batch_size`` cases of every process: one process with so many times the batch
size takes the same steps, but for what is drawn or measured in each process by itself, dropout (a seed per process) and
statistics of the batch (a batch norm sees its own share; the first process's running statistics are kept).
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from torch.distributed.distributed_c10d import _get_default_store

from vlsm_adapter.console import Console
from vlsm_adapter.errors import TrainingError, one_line
from vlsm_adapter.interrupt import StopSignal

_ERROR = "vlsm_adapter/error"  # where a further process leaves what is wrong, for the first one to say
_PATIENCE = 10.0  # seconds that the first process has to notice that another is gone
_GRACE = 2.0  # seconds that the others have to end after an error of the first
_ENVIRONMENT = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

_children: list[subprocess.Popen] = []  # what this process has started for the run under way


def is_further_process(devices: int) -> bool:
    """Whether this process was started to help with a run; such a one says nothing."""
    rank = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_PROCID", "0"))
    further = devices > 1 and int(rank) > 0
    if further:
        logging.getLogger("vlsm_adapter").setLevel(logging.ERROR)
    return further


def start_fabric(devices: int, precision: str) -> Fabric:
    """Fabric for ``devices`` processes; the others are started here, and all have come this far when it returns.

    Where SLURM or another launcher has started a process per device, none is started here.

    Raises:
        TrainingError: there are fewer GPUs, SLURM has started another number of tasks, or the processes do not meet.
    """
    cuda = torch.cuda.is_available()
    if cuda and devices > torch.cuda.device_count():
        raise TrainingError(
            f"train.devices={devices}: this machine has {torch.cuda.device_count()} GPUs; give at most so many"
        )
    # Who has joined, and in what precision, which the run says itself.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    if devices == 1:
        # Alone whatever the cluster's variables say: they may be those of a job that runs many commands.
        return Fabric(
            accelerator="cuda" if cuda else "cpu", devices=1, precision=precision, plugins=LightningEnvironment()
        )
    try:
        fabric = Fabric(accelerator="cuda" if cuda else "cpu", devices=devices, strategy="ddp", precision=precision)
        around = getattr(fabric.strategy, "cluster_environment", None)
        if around is not None and not isinstance(around, LightningEnvironment) and around.world_size() != devices:
            raise ValueError(f"{around.world_size()} were started from outside")
        fabric.launch()
    except (ValueError, RuntimeError, LookupError) as error:
        if lost(error) and is_further_process(devices):
            raise SystemExit(0) from None  # the first process has ended and says why
        slurm = f"srun --ntasks-per-node={devices} on one node, or unset SLURM_NTASKS to have the others started here"
        fix = f"give {slurm}" if "SLURM_NTASKS" in os.environ else "use train.devices=1, or mend that"
        raise TrainingError(
            f"train.devices={devices}: the processes cannot be started ({one_line(error)}); {fix}"
        ) from error
    # Taken over from Fabric, which would kill this process before it can say and write what is left to.
    started: list[subprocess.Popen] = getattr(getattr(fabric.strategy, "launcher", None), "procs", [])
    _children[:], started[:] = list(started), []
    if _children:
        threading.Thread(target=_watch, daemon=True).start()
    return fabric


def _watch() -> None:
    """End this process, the first one, where another has failed and it waits for that one for ever (NCCL)."""
    while _children and not any(child.poll() for child in _children):
        time.sleep(0.5)
    until = time.monotonic() + _PATIENCE
    while _children and time.monotonic() < until:
        time.sleep(0.1)
    if _children:
        print(f"vlsm: error: {left_by_another()}", file=sys.stderr, flush=True)
        _kill()
        os._exit(2)


def _kill() -> None:
    for child in _children:
        child.kill()
    _children.clear()


def end_fabric(fabric: Fabric, *, failed: bool = False) -> None:
    """Let the other processes go; another run may then follow in this one.

    Args:
        failed: the others may wait for this one for ever: those started here are killed if they do not end soon.
    """
    if fabric.world_size == 1:
        return
    if failed:
        until = time.monotonic() + _GRACE
        while time.monotonic() < until and any(child.poll() is None for child in _children):
            time.sleep(0.05)
        _kill()
    _children.clear()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name in _ENVIRONMENT:
        os.environ.pop(name, None)


def lost(error: BaseException) -> bool:
    """Whether ``error`` says that another process of the run is gone."""
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error).lower()
    )


def leave(message: str) -> NoReturn:
    """End this further process at once for an error of its own; the first one says it: see :func:`left_by_another`."""
    with suppress(RuntimeError):  # the first has ended meanwhile, with an error that it says
        _get_default_store().set(_ERROR, message)
    os._exit(2)  # the usual way out would wait for the others


def left_by_another() -> str:
    """What is wrong with the run where another process is gone: the message that it left, if it did."""
    with suppress(RuntimeError, ValueError):
        store = _get_default_store()
        if store.check([_ERROR]):
            return str(store.get(_ERROR).decode())
    return (
        "another process of the run stopped (its own message, if it left one, stands above); "
        "the run continues with --resume"
    )


def own_share(cases: int, fabric: Fabric) -> int:
    """How many cases of a batch of ``cases`` are this process's."""
    return len(range(fabric.global_rank, cases, fabric.world_size))


def summed(fabric: Fabric, values: Sequence[float]) -> list[float]:
    """Sums over all processes, the same in each; one process's own are given back as they are."""
    if fabric.world_size == 1:
        return list(values)
    total = fabric.all_reduce(torch.tensor(values, dtype=torch.float64, device=fabric.device), reduce_op="sum")
    return torch.as_tensor(total).tolist()


class CommonStop(StopSignal):
    """A stop that all processes of a run agree on: it is requested once :meth:`agree` has told everyone."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.wanted = False

    def _ask(self, number: int, frame: object) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.wanted:
            self._console.say("stopping after this update; the state is saved (Ctrl-C again stops at once)")
        self.wanted = True

    def agree(self, wanted_by: float) -> None:
        """Args: wanted_by: how many processes want to stop."""
        self.requested = wanted_by > 0
