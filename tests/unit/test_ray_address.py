"""Who listens at a cluster's address; no Ray here."""

from __future__ import annotations

import socket

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


@pytest.mark.parametrize("word", ["auto", "local", "6379", ":6379", "host:", "host:http"])
def test_what_is_no_host_and_port_is_left_to_ray(word: str) -> None:
    assert why_silent(word) is None
