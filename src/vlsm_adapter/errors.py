"""Errors that end a command, and the exit code each one means.

One line each: the file or value at fault, what is allowed, the fix. ``UserError`` and its kinds are the
user's to mend (exit code 2); anything else that escapes is ours (exit code 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user gave cannot be used; the message says what, what is allowed, and the fix."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration key or value is unknown or out of range."""


class DataError(UserError):
    """A file of the data set is missing, unreadable, or not what it should be."""


class ModelError(UserError):
    """A base model is unknown, incomplete, or not of the expected kind."""


class AdapterError(UserError):
    """An adapter folder or adapter weights cannot be used with this base model."""


class TrainingError(UserError):
    """Training cannot start or go on (no trainable parameter, a loss that is not a number, ...)."""


def one_line(error: BaseException) -> str:
    """What ``error`` says, as one line of at most 300 characters, to be quoted in a message; its type if it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return short(text, 300)


def short(text: object, limit: int = 200) -> str:
    """``text`` cut to ``limit`` characters, to be quoted in a message."""
    text = str(text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A clause naming the allowed values, the closest one first: ``did you mean 'dense'? allowed: ...``."""
    names = sorted(allowed)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}allowed: {', '.join(names) if names else '(none)'}"
