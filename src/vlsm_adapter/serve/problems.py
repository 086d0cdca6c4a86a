"""How a request is refused: an HTTP status, one line, and the field at fault."""

from __future__ import annotations

import logging
import traceback

logger = logging.getLogger("vlsm_adapter")


class Refused(Exception):
    """A request that is not answered.

    Attributes:
        status: HTTP status, 4xx or 503.
        message: one line: what is wrong, what is allowed, the fix.
        field: of the request, e.g. ``queries[0].prompt``; None where it is about all of it.
        retry_after: seconds to wait before asking again, for 503.
    """

    def __init__(self, status: int, message: str, *, field: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.field = field
        self.retry_after = retry_after

    def body(self) -> dict[str, str | None]:
        """The JSON that is sent."""
        return {"error": self.message, "field": self.field}


def busy(message: str, retry_after: float) -> Refused:
    """503: now is not the time."""
    return Refused(503, message, retry_after=max(1, min(30, round(retry_after))))


def log_fault(what: str, error: BaseException) -> None:
    """Log an error of ours by its kind and its place in our code; its message may hold what a client sent."""
    places = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s failed: %s\n%s", what, type(error).__name__, places)
