"""What the processes of one run agree on: their shares of a batch, sums, and when to stop."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlsm_adapter.console import Console
from vlsm_adapter.data.loaders import EpochBatches
from vlsm_adapter.errors import TrainingError
from vlsm_adapter.processes import CommonStop, end_fabric, is_further_process, own_share, start_fabric, summed


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


def test_further_processes_are_known_by_their_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    logger = logging.getLogger("vlsm_adapter")
    monkeypatch.setattr(logger, "level", logger.level)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not is_further_process(1)  # a rank of something else
    assert is_further_process(2)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert not is_further_process(2)


def test_more_devices_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(TrainingError, match="has 2 GPUs"):
        start_fabric(3, "32-true")
