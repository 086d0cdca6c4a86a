"""What the processes of one run agree on: their shares of a batch, sums, and when to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlsm_adapter import processes
from vlsm_adapter.console import Console
from vlsm_adapter.data.loaders import EpochBatches
from vlsm_adapter.errors import TrainingError
from vlsm_adapter.processes import CommonStop, end_fabric, is_further_process, lost, own_share, start_fabric, summed


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 5), st.booleans())
def test_shares_make_up_every_batch(count: int, size: int, processes: int, shuffle: bool) -> None:
    def batches(**share: Any) -> list[list[int]]:
        return list(EpochBatches(count, size * processes, shuffle=shuffle, seed=3, epoch=2, **share))

    whole = batches()
    shares = [batches(share=(rank, processes)) for rank in range(processes)]
    for number, batch in enumerate(whole):
        parts = [share[number] for share in shares]
        own = [
            own_share(len(batch), SimpleNamespace(global_rank=rank, world_size=processes)) for rank in range(processes)
        ]  # type: ignore[arg-type]
        assert sum(own) == len(batch)
        assert sorted(case for part, cases in zip(parts, own, strict=True) for case in part[:cases]) == sorted(batch)
        assert all(len(part) == max(1, cases) for part, cases in zip(parts, own, strict=True))
        assert max(own) <= size
    assert whole == batches(share=(0, 1))


def test_one_process_sums_to_itself() -> None:
    fabric = start_fabric(1, "32-true")
    values = [0.1, float("nan")]
    assert summed(fabric, values)[0] == 0.1
    end_fabric(fabric)


def test_a_stop_counts_once_all_have_agreed(caplog: pytest.LogCaptureFixture) -> None:
    stop = CommonStop(Console(quiet=True))
    with stop.listening():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert stop.wanted
    assert not stop.requested
    stop.agree(1.0)
    assert stop.requested


def test_a_second_ctrl_c_stops_at_once() -> None:
    stop = CommonStop(Console(quiet=True))
    with stop.listening():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert not stop.requested  # nothing was agreed on


def test_further_processes_are_known_by_their_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    logger = logging.getLogger("vlsm_adapter")
    monkeypatch.setattr(logger, "level", logger.level)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not is_further_process(1)  # a rank of something else
    assert is_further_process(2)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert not is_further_process(2)
    monkeypatch.delenv("LOCAL_RANK")
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert is_further_process(2)


def test_more_devices_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(TrainingError, match="has 2 GPUs"):
        start_fabric(3, "32-true")


@pytest.mark.parametrize(
    ("per_node", "says"),
    [("1", "1 were started from outside"), (None, "1 were started from outside"), ("2", "SLURM_NODEID")],
)
def test_another_number_of_slurm_tasks_is_refused(
    monkeypatch: pytest.MonkeyPatch, per_node: str | None, says: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in [*processes._ENVIRONMENT, "SLURM_JOB_NAME", "SLURM_PROCID"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", per_node or "1")
    for name in ("SLURM_LOCALID", "SLURM_NODEID", "SLURM_PROCID"):
        if per_node != "2":
            monkeypatch.setenv(name, "0")
    if per_node is not None:
        monkeypatch.setenv("SLURM_NTASKS_PER_NODE", per_node)
    with pytest.raises(TrainingError, match=says) as caught:
        start_fabric(2, "32-true")
    assert "srun --ntasks-per-node=2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_process_is_alone_in_a_slurm_job_of_several_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert start_fabric(1, "32-true").world_size == 1


def test_what_says_that_a_process_is_gone() -> None:
    assert lost(torch.distributed.DistBackendError("NCCL error"))
    assert lost(RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"))
    assert not lost(RuntimeError("mat1 and mat2 must have the same dtype"))
    assert not lost(ValueError("gloo"))


def test_a_first_process_that_does_not_notice_is_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with NCCL, which waits for a process that is gone."""
    failed = subprocess.Popen([sys.executable, "-c", "raise SystemExit(2)"])
    waits = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    codes: list[int] = []
    monkeypatch.setattr(processes, "_PATIENCE", 0.0)
    monkeypatch.setattr(processes, "_children", [failed, waits])
    monkeypatch.setattr(processes, "left_by_another", lambda: "x.png: unreadable; mend it")
    monkeypatch.setattr(os, "_exit", codes.append)
    processes._watch()
    assert codes == [2]
    assert capsys.readouterr().err == "vlsm: error: x.png: unreadable; mend it\n"
    assert waits.wait(10) != 0


def test_without_a_message_the_error_says_where_it_stands() -> None:
    assert "stands above" in processes.left_by_another()
