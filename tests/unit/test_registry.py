"""The registry: order, one name once, the nearest name for an unknown one."""

from __future__ import annotations

import pytest

from vlsm_adapter.errors import ConfigError
from vlsm_adapter.registry import Registry


@pytest.fixture
def colours() -> Registry[int]:
    registry: Registry[int] = Registry("colour")
    registry.register("red")(1)
    registry.register("blue")(2)
    return registry


def test_names_keep_the_order_of_registration(colours: Registry[int]) -> None:
    assert colours.names() == list(colours) == ["red", "blue"]
    assert "red" in colours
    assert "green" not in colours
    assert 3 not in colours
    assert colours.get("blue") == 2


def test_unknown_name_shows_the_nearest_and_all(colours: Registry[int]) -> None:
    with pytest.raises(ConfigError, match="unknown colour 'bleu': did you mean 'blue'"):
        colours.get("bleu")
    with pytest.raises(ConfigError, match="allowed: blue, red"):
        colours.get("x")


def test_a_name_is_given_once(colours: Registry[int]) -> None:
    with pytest.raises(RuntimeError, match="colour 'red' is registered twice"):
        colours.register("red")(3)
    assert colours.get("red") == 1


def test_decorator_hands_the_thing_back() -> None:
    registry: Registry[type] = Registry("kind")

    @registry.register("thing")
    class Thing:
        pass

    assert registry.get("thing") is Thing
