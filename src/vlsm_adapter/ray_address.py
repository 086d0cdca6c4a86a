"""Whether anybody listens at a Ray cluster's address. Imports no Ray."""

from __future__ import annotations

import socket

from vlsm_adapter.errors import one_line


def why_silent(address: str) -> str | None:
    """Why nobody can be reached at ``address``, for which Ray itself waits many minutes; None where somebody listens.

    Args:
        address: ``HOST:PORT`` or ``ray://HOST:PORT``. Words that Ray knows (``"auto"``) are left to it.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return None
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        return one_line(error)
    return None
