"""Several processes that train one run, each on its share of every batch (distributed data parallel, by Fabric).

The first process starts the others, which run the same command, and it alone writes and speaks. A batch of one update is
``batch_size`` cases of every process: one process with so many times the batch size takes the same steps.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import torch
from lightning_fabric import Fabric

from vlsm_adapter.console import Console
from vlsm_adapter.errors import TrainingError
from vlsm_adapter.interrupt import StopSignal

_ENVIRONMENT = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def is_further_process(devices: int) -> bool:
    """Whether this process was started to help with a run; such a one says nothing."""
    further = devices > 1 and int(os.environ.get("LOCAL_RANK", "0")) > 0
    if further:
        logging.getLogger("vlsm_adapter").setLevel(logging.ERROR)
    return further


def start_fabric(devices: int, precision: str) -> Fabric:
    """Fabric for ``devices`` processes; the others are started here, and all have come this far when it returns.

    Raises:
        TrainingError: there are fewer GPUs.
    """
    cuda = torch.cuda.is_available()
    if cuda and devices > torch.cuda.device_count():
        raise TrainingError(
            f"train.devices={devices}: this machine has {torch.cuda.device_count()} GPUs; give at most so many"
        )
    fabric = Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision=precision,
    )
    if devices > 1:
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # who has joined
        fabric.launch()
    return fabric


def end_fabric(fabric: Fabric) -> None:
    """Let the other processes go; another run may then follow in this one."""
    if fabric.world_size == 1:
        return
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name in _ENVIRONMENT:
        os.environ.pop(name, None)


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
        if not self.wanted:
            self._console.say("stopping after this update; the state is saved")
        self.wanted = True

    def agree(self, wanted_by: float) -> None:
        """Args: wanted_by: how many processes want to stop."""
        self.requested = wanted_by > 0
