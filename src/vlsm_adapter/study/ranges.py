"""What a search may choose from: a range of numbers, or a list of choices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlsm_adapter.config import TrainConfig, build_section
from vlsm_adapter.errors import ConfigError, nearest

SAMPLERS = ("tpe", "random", "grid")
_SECTIONS = ("train", "settings")
# Keys of ``train`` that say how the work is done, not what comes out.
_IDLE = (
    "workers", "save_seconds", "feature_cache", "feature_cache_mb", "feature_cache_gb", "checkpointing",
)  # fmt: skip
_KEYS = ("low", "high", "log", "step")


@dataclass(frozen=True)
class Range:
    """Either ``choices``, or numbers from ``low`` to ``high``: whole ones where both ends are.

    Attributes:
        log: uniform in the logarithm.
        step: distance of the values, from ``low`` on.
    """

    choices: tuple[Any, ...] = ()
    low: float | int = 0
    high: float | int = 0
    log: bool = False
    step: float | int | None = None

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def extremes(self) -> tuple[Any, ...]:
        """Values which, being allowed, make all others allowed."""
        if self.choices:
            return self.choices
        between = () if self.whole else (self.low + (self.step or 0.618 * (self.high - self.low)),)  # 4 to 8.0 has 6.5
        return (self.low, self.high, *between)

    def holds(self, value: Any) -> bool:
        """Whether ``value`` may be chosen."""
        if self.choices:
            return any(repr(value) == repr(choice) for choice in self.choices)
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        if self.whole and value != int(value):
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return abs(steps - round(steps)) < 1e-6

    def to_plain(self) -> Any:
        """As in the study file."""
        if self.choices:
            return list(self.choices)
        plain = {"low": self.low, "high": self.high}
        return plain | ({"log": True} if self.log else {}) | ({} if self.step is None else {"step": self.step})


def parse_range(value: Any) -> Range:
    """``[1, 2, 4]`` or ``{low: 1e-5, high: 1e-2, log: true}``.

    Raises:
        ConfigError: neither, or ends that make no range.
    """
    if isinstance(value, Range):
        return value
    if isinstance(value, list):
        if len(value) < 2 or len({repr(one) for one in value}) < len(value):
            raise ConfigError("a list of choices holds at least two, each once")
        if not all(one is None or isinstance(one, str | int | float) for one in value):
            raise ConfigError("choices are numbers, texts, true or false")
        if any(isinstance(one, float) and not math.isfinite(one) for one in value):
            raise ConfigError("choices that are numbers are finite")
        return Range(choices=tuple(value))
    if not isinstance(value, Mapping) or not {"low", "high"} <= value.keys():
        raise ConfigError("write a list of choices, or {low: 1e-5, high: 1e-2, log: true}")
    for key in value:
        if key not in _KEYS:
            raise ConfigError(f"unknown key '{key}': {nearest(str(key), _KEYS)}")
    low, high = _number(value["low"]), _number(value["high"])
    log, step = value.get("log", False), value.get("step")
    if not isinstance(log, bool):
        raise ConfigError(f"log={log!r}: true or false")
    step = None if step is None else _number(step)
    if not low < high:
        raise ConfigError(f"low {low} must be below high {high}")
    if log and low <= 0:
        raise ConfigError(f"low {low}: a logarithmic range begins above 0")
    if step is not None and (log or step <= 0):
        raise ConfigError(f"step={step}: a number above 0, and not with log")
    if isinstance(low, int) and isinstance(high, int) and step is not None and not isinstance(step, int):
        raise ConfigError(f"step={step}: of whole numbers, a whole one")
    if step is not None:
        steps = math.floor((high - low) / step + 1e-9)
        if steps < 1:
            raise ConfigError(
                f"step={step}: from low {low} to high {high} there is no second value; at most {high - low:g}"
            )
        # The last value that is reached: 4 to 9 by 4 is 4 and 8.
        high = low + steps * step if isinstance(step, int) and isinstance(low, int) else min(high, low + steps * step)
    return Range(low=low, high=high, log=log, step=step)


def parse_space(values: Mapping[str, Any], where: str, problems: list[str]) -> dict[str, Range]:
    """Dotted key to range; keys are ``train.KEY`` and ``settings.KEY``. What is wrong is added to ``problems``."""
    space: dict[str, Range] = {}
    for key, value in values.items():
        section, _, last = key.partition(".")
        if section not in _SECTIONS or not last or key == "train.seed":
            problems.append(f"{where}{key}: search train.KEY (not the seed) or settings.KEY, such as train.lr")
            continue
        if section == "train" and last in _IDLE:
            problems.append(
                f"{where}{key}: changes no result, there is nothing to choose; set it in 'train' of the study"
            )
            continue
        try:
            space[key] = parse_range(value)
        except ConfigError as error:
            problems.append(f"{where}{key}: {error}")
            continue
        if section == "train":
            found: list[str] = []
            for extreme in space[key].extremes():
                build_section(TrainConfig, {last: extreme}, f"{where}train.", found)
            problems += found
    return space


def _number(value: Any) -> float | int:
    try:
        number = float(value) if isinstance(value, str) else value  # YAML reads 1e-4 (no dot) as text
    except ValueError:
        number = None
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise ConfigError(f"{value!r} is not a number")
    return number
