"""A run that begins from an adapter: equal to it before the first step, for every method; contradictions are refused."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from vlsm_adapter import AdapterInfo, attach, load_adapter, save_adapter
from vlsm_adapter.adapters import ADAPTERS, adapter_config
from vlsm_adapter.adapters.folder import CONFIG_NAME, WEIGHTS_NAME, read_manifest
from vlsm_adapter.config import RunConfig
from vlsm_adapter.errors import AdapterError, ConfigError
from vlsm_adapter.models.base import PromptSegmenter
from vlsm_adapter.resume_from import FRACTIONS, LR, config_from, division_of, own_division, start_from
from vlsm_adapter.run_folder import RunFolder

SMALL = {"coop": {"tokens": 4}}  # what the small text encoder has room for
METHODS = [name for name in ADAPTERS if ADAPTERS.get(name).trains]


def shaken(model: PromptSegmenter) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".adapter_" in key:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        for key, buffer in model.named_buffers():
            if ".adapter_" in key and "running_var" in key:
                buffer.mul_(1.5)


@pytest.fixture
def parent(model: PromptSegmenter, tmp_path: Path) -> Path:
    attach(model, adapter_config("dense", bottleneck_dim=5, parts="vl"))
    shaken(model)
    return save_adapter(model, tmp_path / "parent", info=AdapterInfo(prompt_level="p6", data="kvasir"))


def asked(parent: Path, *assign: str, **options: object):  # type: ignore[no-untyped-def]
    return config_from(
        parent, None, {"data.path": "x", **{key.replace("_", ".", 1): v for key, v in options.items()}}, assign
    )


@pytest.mark.parametrize("method", METHODS)
def test_it_begins_exactly_where_the_parent_ended(
    method: str, model: PromptSegmenter, inputs: dict, tmp_path: Path
) -> None:
    fresh = copy.deepcopy(model)
    try:
        attach(model, adapter_config(method, **SMALL.get(method, {})))
    except AdapterError as error:
        pytest.skip(f"{method} is not for this model: {error}")
    shaken(model)
    folder = save_adapter(model, tmp_path / method)
    config = asked(folder)
    torch.manual_seed(11)
    attach(fresh, adapter_config(config.adapter.method, **dict(config.adapter.settings)))
    line = start_from(fresh, config)
    assert "training begins from" in line
    with torch.no_grad():
        expected = load_adapter(folder)(**inputs)
        assert torch.equal(fresh(**inputs), expected)
    trains = [key for key, parameter in fresh.named_parameters() if parameter.requires_grad]
    assert trains
    assert all(".adapter_" in key for key in trains)


def test_what_belongs_to_the_weights_is_taken_over_and_recorded(parent: Path) -> None:
    config = asked(parent)
    manifest = read_manifest(parent)
    assert config.adapter.method == "dense"
    assert dict(config.adapter.settings)["bottleneck_dim"] == 5
    assert config.model.name == manifest.base_id
    assert config.model.image_size == 32
    assert (config.data.level, config.data.eval_level) == ("p6", "p6")
    assert config.train.lr == LR
    assert config.adapter.resume_from == str(parent.resolve())
    digest = hashlib.sha256((parent / WEIGHTS_NAME).read_bytes()).hexdigest()
    assert dict(config.adapter.parent) == {"sha256": digest, "data": "kvasir"}
    assert type(config).load(None, config.to_dict()) == config  # as a run reads it back


def test_what_is_free_can_be_said(parent: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("train: {epochs: 3, lr: 0.01}\nadapter: {settings: {bottleneck_dim: 5}}\n")
    config = config_from(parent, recipe, {"data.path": "x", "data.level": "p1"}, ["train.seed=7"])
    assert (config.train.epochs, config.train.lr, config.train.seed) == (3, 0.01, 7)
    assert (config.data.level, config.data.eval_level) == ("p1", "p1")
    assert asked(parent, data_level="random").data.eval_level == "p6"
    assert asked(parent, adapter_method="dense", model_image_size=32).adapter.method == "dense"


@pytest.mark.parametrize(
    ("assign", "says"),
    [
        ("adapter.method=lora", "is 'dense'"),
        ("adapter.settings.bottleneck_dim=8", "bottleneck_dim=8"),
        ("adapter.settings.parts=v", "parts='v'"),
        ("adapter.settings.last_blocks=1", "last_blocks=1"),
        ("model.image_size=64", "32 x 32"),
    ],
)
def test_what_contradicts_the_adapter_is_one_line(parent: Path, assign: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        asked(parent, assign)
    assert "\n" not in str(caught.value)


def test_a_setting_that_files_may_leave_out_is_compared_too(model: PromptSegmenter, tmp_path: Path) -> None:
    attach(model, adapter_config("dense", bottleneck_dim=5, parts="v", last_blocks=1))
    folder = save_adapter(model, tmp_path / "last")
    assert asked(folder).adapter.settings["last_blocks"] == 1
    with pytest.raises(ConfigError, match=r"last_blocks=None: .* has 1; leave it out"):
        asked(folder, "adapter.settings.last_blocks=null")


def test_other_weights_base_or_preprocessing_are_refused(
    parent: Path, model: PromptSegmenter, base_folder: Path
) -> None:
    from vlsm_adapter.models import load_model

    config = asked(parent)
    fresh = load_model(base_folder)
    attach(fresh, adapter_config("dense", **dict(config.adapter.settings)))
    changed = replace(config, adapter=replace(config.adapter, parent={"sha256": "0" * 64}))
    with pytest.raises(AdapterError, match="other weights"):
        start_from(fresh, changed)
    fresh.preprocessing = replace(fresh.preprocessing, resample="bicubic")
    with pytest.raises(AdapterError, match="preprocessing"):
        start_from(fresh, config)
    manifest = json.loads((parent / CONFIG_NAME).read_text())
    manifest["base"]["sha256"] = "1" * 64
    (parent / CONFIG_NAME).write_text(json.dumps(manifest))
    with pytest.raises(AdapterError, match="--model"):
        start_from(fresh, config)


def test_no_adapter_there(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no such folder"):
        asked(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match="neither an adapter folder"):
        asked(tmp_path / "empty")


def in_run(parent: Path, **data: object) -> Path:
    """A run whose adapter is ``parent``, configured with these keys of ``data``."""
    run = RunFolder(parent.parent / "run")
    run.path.mkdir()
    parent.rename(run.adapter)
    config = RunConfig.load(None, {f"data.{key}": value for key, value in data.items()})
    run.config_file.write_text(config.to_yaml())
    return run.path


@pytest.mark.parametrize(
    "keys", [{"fold": "2/5", "split_seed": 4}, {"split_file": "/s.csv"}, {"fractions": [0.5, 0.3, 0.2]}]
)
def test_data_that_the_parent_knows_is_divided_as_it_divided_it(
    parent: Path, tmp_path: Path, keys: dict[str, object]
) -> None:
    data = tmp_path / "kvasir"
    run = in_run(parent, path=str(data), **keys)
    before = RunFolder(run).config().data.division()
    child = asked(run, data_val_path=str(data))
    assert division_of(child, data) == before
    assert RunConfig.load(None, child.to_dict()) == child
    assert asked(run, data_path=str(data)).data.division() == before
    again = asked(run, data_path=str(data), data_fold="1/3")
    assert (again.data.fold, again.data.split_file) == ("1/3", None)
    both = asked(run, data_path=str(data), data_val_path="y")  # all train, but for what the parent tests
    assert own_division(both).fractions == (pytest.approx(1 - before.fractions[2]), 0.0, before.fractions[2])


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"split_seed": 4}, "must hold split_seed, fractions, split_file, fold, stratify"),
        ("fold 2/5", "='fold 2/5': must hold split_seed"),
        ({"split_seed": 4, "fractions": [1, 2], "split_file": None, "fold": None, "stratify": "size"}, "must be 3 values"),
        ({"split_seed": "x", "fractions": [1, 0, 0], "split_file": None, "fold": None, "stratify": "size"}, "split_seed='x'"),
    ],
)  # fmt: skip
def test_a_damaged_record_of_divisions_is_one_line(parent: Path, tmp_path: Path, entry: object, says: str) -> None:
    values = asked(parent, data_val_path="y").to_dict()
    values["adapter"]["divided"] = {str(tmp_path / "x"): entry}
    run = RunFolder(tmp_path / "damaged")
    run.path.mkdir()
    run.config_file.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=f"adapter\\.divided.*{says}") as caught:
        run.config()
    assert str(caught.value).startswith(f"{run.config_file}: ")
    assert "\n" not in str(caught.value)


def test_other_data_keeps_a_test_part(parent: Path) -> None:
    config = asked(parent, data_val_path="y")
    assert config.data.fractions == FRACTIONS
    assert division_of(config, "y").fractions == (0.7, 0.1, 0.2)
    assert own_division(config).fractions == (1.0, 0.0, 0.0)
    assert division_of(asked(parent, "data.fractions=[0.6,0.4,0]"), "y").fractions == (0.6, 0.4, 0.0)
