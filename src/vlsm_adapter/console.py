"""What a command says while it works: lines, and progress bars with the time left.

Bars go to the terminal only; where the output is a file or a pipe, lines alone are printed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

logger = logging.getLogger("vlsm_adapter")


class Console:
    """Lines and bars on standard error; silent with ``quiet``.

    Standard output is left for results, so that a command's answer can be piped.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet

    def say(self, text: str) -> None:
        """One line, also into the log file if there is one."""
        logger.info(text)

    def warn(self, text: str) -> None:
        """One line that ``quiet`` does not silence."""
        logger.warning(text)

    @contextmanager
    def bar(self, description: str, total: int) -> Iterator[Callable[..., None]]:
        """A progress bar; call what is yielded with the number done, and optionally a short ``note``."""
        if self.quiet or not sys.stderr.isatty():
            yield lambda done, note="": None
            return
        from rich.console import Console as RichConsole
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=RichConsole(stderr=True), transient=True) as progress:
            task = progress.add_task(description, total=total, note="")

            def advance(done: int, note: str | None = None) -> None:
                if note is None:
                    progress.update(task, completed=done)
                else:
                    progress.update(task, completed=done, note=note)

            yield advance


class _LineHandler(logging.StreamHandler):
    """Writes to whatever standard error is now; tests and notebooks swap it."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _FileHandler(logging.FileHandler):
    """A full disk costs lines of the log, not a traceback for each of them: what matters is saved elsewhere, or raises."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def show_log(*, quiet: bool = False) -> None:
    """Print the package's messages as plain lines on standard error (warnings only with ``quiet``)."""
    for handler in list(logger.handlers):
        if isinstance(handler, _LineHandler):
            logger.removeHandler(handler)
    handler = _LineHandler()
    handler.setLevel(logging.WARNING if quiet else logging.INFO)
    handler.setFormatter(_Formatter())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


@contextmanager
def log_to(file: Path) -> Iterator[None]:
    """Also append the package's messages to ``file``, with the time, as long as the context lasts."""
    handler = _FileHandler(file, encoding="utf-8")
    handler.setLevel(logging.INFO)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        with suppress(OSError):
            handler.close()


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        return f"warning: {text}" if record.levelno == logging.WARNING else text
