"""Who listens at a cluster's address; no Ray here."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from vlsm_adapter.ray_address import why_silent


@pytest.mark.parametrize("form", ["{}", "ray://{}"])
def test_a_listener_is_heard_and_its_absence_explained(form: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = form.format(f"127.0.0.1:{server.getsockname()[1]}")
        assert why_silent(address) is None
    assert "refused" in str(why_silent(address))


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "no-such-host.invalid:6379"])
def test_addresses_that_cannot_be(address: str) -> None:
    assert why_silent(address)


@pytest.mark.parametrize("word", ["local", "6379", ":6379", "host:", "host:http"])
def test_what_is_no_host_and_port_is_left_to_ray(word: str) -> None:
    assert why_silent(word) is None


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without clusters: ``proc`` lists its processes, ``ray/ray_current_cluster`` tells of the last cluster."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("vlsm_adapter.ray_address._PROCESSES", tmp_path / "proc")
    (tmp_path / "ray").mkdir()
    return tmp_path


def closed() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def test_auto_with_nothing_to_go_by_is_left_to_ray(machine: Path) -> None:
    assert why_silent("auto") is None


def test_auto_does_not_wait_for_a_cluster_that_died(machine: Path) -> None:
    file = machine / "ray" / "ray_current_cluster"
    file.write_text(f"{closed()}\n")
    told = str(why_silent("auto"))
    assert f"as {file} says" in told
    assert "refused" in told
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = f"127.0.0.1:{server.getsockname()[1]}"
        # One that runs here goes before the file.
        (machine / "proc" / "12").mkdir(parents=True)
        (machine / "proc" / "12" / "cmdline").write_bytes(f"raylet\0--gcs-address={here}\0--x".encode())
        assert why_silent("auto") is None
        file.write_text(here)
        (machine / "proc" / "12" / "cmdline").write_bytes(b"python\0")
        assert why_silent("auto") is None


def test_auto_follows_the_environment(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", closed())
    assert str(why_silent("auto")).startswith("RAY_ADDRESS is 127.0.0.1:")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        assert why_silent("auto") is None
