"""Configuration: round trip, and every error of a recipe at once."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vlsm_adapter.config import RunConfig
from vlsm_adapter.errors import ConfigError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
known = st.sampled_from(["data", "model", "adapter", "train", "log", "path", "lr", "epochs", "method", "settings"])
recipes = st.dictionaries(known | st.text(max_size=6), st.dictionaries(known, values, max_size=3) | values, max_size=5)


def load(text: str, tmp_path: Path, **keywords: object) -> RunConfig:
    file = tmp_path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return RunConfig.load(file, **keywords)  # type: ignore[arg-type]


def test_written_and_read_again_it_is_equal(tmp_path: Path) -> None:
    config = RunConfig.load(
        None, {"data.path": "x"}, ["train.lr=1e-4", "adapter.settings.parts=vl", "data.prompt=polyp"]
    )
    assert config.train.lr == 1e-4
    assert dict(config.adapter.settings) == {"parts": "vl"}
    assert load(config.to_yaml(), tmp_path) == config


def test_keys_that_an_older_file_does_not_know_have_their_defaults(tmp_path: Path) -> None:
    config = RunConfig.load(None, {"data.path": "x"})
    text = config.to_yaml()
    assert "  validate_every: 1\n" in text
    assert load(text.replace("  validate_every: 1\n", ""), tmp_path) == config


def test_all_errors_are_reported_at_once_a_line_each(tmp_path: Path) -> None:
    recipe = """
    data: {path: x, level: p11}
    model: {nam: tiny}
    adapter: {method: dens}
    train: {epochs: 0, lr: fast, batch_size: true, precision: 8bit, validate_every: 0}
    lgo: {}
    """
    with pytest.raises(ConfigError) as caught:
        load(recipe, tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 8, lines
    assert "train.validate_every=0: must be from 1 to 100000" in str(caught.value)
    assert all(line.startswith(str(tmp_path / "recipe.yaml")) for line in lines)
    assert "did you mean 'name'?" in str(caught.value)
    assert "did you mean 'log'?" in str(caught.value)


def test_a_key_without_its_section_shows_it() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'epochs': did you mean 'train\.epochs'"):
        RunConfig.load(None, {"data.path": "x"}, ["epochs=1"])


def test_an_unknown_adapter_or_setting_shows_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown adapter 'dens': did you mean 'dense'"):
        RunConfig.load(None, {"data.path": "x", "adapter.method": "dens"})
    with pytest.raises(ConfigError, match="did you mean 'bottleneck_dim'"):
        RunConfig.load(None, {"data.path": "x"}, ["adapter.settings.bottleneck_dims=8"])
    with pytest.raises(ConfigError, match=r"bottleneck_dim=0: must be a whole number"):
        RunConfig.load(None, {"data.path": "x"}, ["adapter.settings.bottleneck_dim=0"])


def test_overrides_win_over_the_file_and_none_is_no_override(tmp_path: Path) -> None:
    config = load(
        "data: {path: x}\ntrain: {lr: 0.1, seed: 7}", tmp_path, overrides={"train.lr": 0.2, "train.seed": None}
    )
    assert (config.train.lr, config.train.seed) == (0.2, 7)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data: [", "not YAML"),
        ("- 1\n- 2", "must hold sections"),
        ("data: {path: x, fractions: [0.5, 0.5]}", "3 values"),
        ("data: {path: x, fractions: [0.5, 0.5, 0.5]}", "sum to 1"),
        ("train: 3\ndata: {path: x}", "must be a section"),
        ("data: {path: x}\ntrain: {lr: .nan}", "must be from"),
        ("", "data.path is missing"),
    ],
)
def test_wrong_recipes_say_what_is_wrong(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        load(text, tmp_path)


def test_missing_file_and_malformed_assignment() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        RunConfig.load("no/such/recipe.yaml")
    with pytest.raises(ConfigError, match=r"write section\.key=value"):
        RunConfig.load(None, {"data.path": "x"}, ["train.lr"])


@given(recipes)
def test_no_recipe_does_more_than_raise_a_config_error(recipe: dict) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
        with contextlib.suppress(ConfigError):
            assert RunConfig.load(file).data.path


def test_an_empty_section_is_its_defaults_and_takes_options(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data:\n  path: x\ntrain:\nlog:\n")
    assert RunConfig.load(recipe, {"train.lr": 0.5}).train.lr == 0.5
    assert RunConfig.load(recipe) == RunConfig.load(None, {"data.path": "x"})


def test_a_value_where_a_section_belongs_is_one_error() -> None:
    with pytest.raises(ConfigError, match="'data' is not a section"):
        RunConfig.load(None, {"data.path": "x"}, ["data=5"])


def test_the_losses_named_here_are_those_registered() -> None:
    from vlsm_adapter.config import LOSS_NAMES
    from vlsm_adapter.losses import LOSSES

    assert list(LOSS_NAMES) == LOSSES.names()


@pytest.mark.parametrize("value", [0.1, "0.1", True, [5]])
def test_a_subset_of_another_form_is_told_the_form(value: object) -> None:
    with pytest.raises(ConfigError, match="write a part of the training cases such as 5%, or how many, such as 20"):
        RunConfig.load(overrides={"data": {"path": "x", "subset": value}})


def test_off_is_off_although_yaml_reads_it_as_false() -> None:
    given = {"data.path": "d"}
    for assign in ("train.feature_cache=off", "train.feature_cache='off'"):
        assert RunConfig.load(None, given, [assign]).train.feature_cache == "off"
    with pytest.raises(ConfigError, match=r"train\.feature_cache=True: must be of type str"):
        RunConfig.load(None, given, ["train.feature_cache=on"])


def test_a_choice_of_another_type_is_told_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match=r"train\.precision=32: must be of type str; allowed: 16-mixed, 32-true"):
        RunConfig.load(None, {"data.path": "x"}, ["train.precision=32"])
