"""Whether anybody listens at a Ray cluster's address. Imports no Ray."""

from __future__ import annotations

import os
import re
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from vlsm_adapter.errors import one_line

_PROCESSES = Path("/proc")  # Linux; elsewhere nobody is asked who runs
_GCS = re.compile(rb"--gcs-address=([^\s\0]+)")


def why_silent(address: str) -> str | None:
    """Why nobody can be reached at ``address``, for which Ray itself waits many minutes; None where somebody listens.

    Args:
        address: ``HOST:PORT`` or ``ray://HOST:PORT``; or ``"auto"``, which Ray looks up: what it would find is tried. Other
            words that Ray knows, and ``"auto"`` where nothing tells of a cluster, are left to it: it answers at once.
    """
    if address != "auto":
        return _why_silent(address)
    if named := os.environ.get("RAY_ADDRESS"):
        why = _why_silent(named)
        return why and f"RAY_ADDRESS is {named}: {why}"
    running, file = _running_here(), _last_cluster()
    if running and (len(running) == 1 or not file.is_file()):
        return None if None in (whys := [_why_silent(one) for one in running]) else whys[0]
    try:
        last = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    why = _why_silent(last)
    return why and f"the last one was at {last}, as {file} says: {why}; start one, or give the address of one that runs"


def _why_silent(address: str) -> str | None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return None
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        return one_line(error)
    return None


def _last_cluster() -> Path:
    """Where ``ray start`` leaves its address; a cluster that was killed leaves it there."""
    place = os.environ.get("RAY_TMPDIR")
    if place is None and sys.platform.startswith("linux"):
        place = os.environ.get("TMPDIR")
    if place is None:
        place = "/tmp" if sys.platform.startswith(("linux", "darwin")) else tempfile.gettempdir()
    return Path(place) / "ray" / "ray_current_cluster"


def _running_here() -> list[str]:
    """Addresses that processes of Ray on this machine were started with, which it goes by before the file."""
    found: set[str] = set()
    for file in _PROCESSES.glob("[0-9]*/cmdline"):
        with suppress(OSError, UnicodeDecodeError):
            found |= {one.decode() for one in _GCS.findall(file.read_bytes())}
    return sorted(found)
