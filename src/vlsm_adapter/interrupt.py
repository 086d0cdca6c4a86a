"""Stopping a run on request: after the current update, with the state saved."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from vlsm_adapter.console import Console
from vlsm_adapter.errors import UserError
from vlsm_adapter.run_folder import RunFolder


class Interrupted(UserError):
    """Training was stopped by Ctrl-C or a termination signal; the run can be resumed."""

    exit_code = 130


class StopSignal:
    """Ctrl-C and termination ask for a stop after the current update; a second Ctrl-C stops at once."""

    def __init__(self, console: Console) -> None:
        self.requested = False
        self._console = console

    @contextmanager
    def listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # signals reach the main thread only
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, self._ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        self._console.say("stopping after this update; the state is saved (Ctrl-C again stops at once)")

    def check(self, folder: RunFolder) -> None:
        """Raise Interrupted if a stop was asked for; the state has just been saved."""
        if self.requested:
            raise Interrupted(f"stopped; continue with: vlsm train --resume {shlex.quote(str(folder.path))}")
