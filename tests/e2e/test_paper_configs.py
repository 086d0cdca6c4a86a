"""configs/paper: the published protocol and the corrected one are studies that can be checked without data and checkpoints."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from vlsm_adapter.data.sources import SOURCES
from vlsm_adapter.optimization import PLATEAU_FACTOR, PLATEAU_PATIENCE
from vlsm_adapter.study.config import Study
from vlsm_adapter.study.estimate import Step
from vlsm_adapter.study.grid import expand
from vlsm_adapter.study.reader import load_study

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "configs" / "paper"
DOCS = ROOT / "docs" / "paper-protocol.md"
SETS = ["kvasir_polyp", "bkai_polyp", "clinicdb_polyp", "isic16", "dfu", "camus", "busi", "chexlocalize"]
RATES = {"dense": 1e-3, "shallow": 3e-4, "cris": 1e-4, "san": 3e-4}  # of the paper
SIDES = {"clipseg": 352, "cris": 416, "san": 640, "unet": 352, "dynunet": 352}


def read(name: str) -> tuple[Study, list]:
    study = load_study(PAPER / f"{name}.yaml")
    return study, expand(study)


@pytest.mark.parametrize("name", ["table1", "corrected"])
def test_dry_run_checks_it_without_data_and_checkpoints(
    name: str, vlsm: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Without data nothing can be estimated; a step of the larger text-free network takes seconds.
    monkeypatch.setattr("vlsm_adapter.study.preview.time_step", lambda *_: Step(1.0, 1.0))
    answer = vlsm("compare", PAPER / f"{name}.yaml", "--out", tmp_path / "study", "--dry-run")
    assert answer.code == 0, answer.err
    told = answer.out + answer.err
    assert "data/kvasir_polyp" in told
    assert "models/cris-" in told
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("name", ["table1", "corrected"])
def test_header_says_how_it_is_run(name: str) -> None:
    header = (PAPER / f"{name}.yaml").read_text(encoding="utf-8").split("\ndata:")[0]
    assert f"vlsm compare configs/paper/{name}.yaml --out {name} --dry-run" in header
    assert "Measured" in header


@pytest.mark.parametrize("name", ["table1", "corrected"])
def test_every_hyper_parameter_of_the_paper(name: str) -> None:
    study, cells = read(name)
    assert list(study.data) == SETS
    assert {"isic" if label == "isic16" else label for label in SETS} <= set(SOURCES.names())
    assert (PLATEAU_FACTOR, PLATEAU_PATIENCE) == (0.3, 5)
    assert study.evaluate.threshold == 0.5
    assert study.evaluate.splits == ("test",)
    for cell in cells:
        config = cell.config
        assert config.model.image_size == SIDES[cell.model]
        assert config.data.augment == "none"
        if not cell.trains:
            continue
        train = config.train
        assert (train.epochs, train.batch_size * train.accumulate, train.weight_decay) == (200, 32, 1e-3)
        assert (train.schedule, train.clip_norm, train.patience, train.min_delta) == ("plateau", 0.5, 20, 1e-4)
        family = cell.model if cell.model in RATES else cell.method.split("_")[0]
        if family in RATES:
            assert train.lr == RATES[family], cell.path
        settings = config.adapter.settings
        if config.adapter.method in ("dense", "shallow"):
            width = {"dense": 64, "shallow": 512}[config.adapter.method]
            assert (settings["bottleneck_dim"], settings["condition_dim"]) == (width, 256)
    assert {cell.seed for cell in cells if cell.trains} == {41, 42, 43}


def test_table1_is_as_published() -> None:
    _, cells = read("table1")
    assert len(cells) == 8 * 3 * 9
    for cell in cells:
        config = cell.config
        assert (config.data.level, config.data.eval_level) == ("random", "random")
        assert (config.train.loss, config.train.precision) == ("published", "16-mixed")
        assert config.adapter.settings.get("variant", "published") == "published"
    parts = {cell.method for cell in cells if cell.config.adapter.method in ("dense", "shallow")}
    assert parts == {f"{method}_{part}" for method in ("dense", "shallow") for part in ("v", "vl", "vlc")}


def test_corrected_leaks_nothing_and_asks_text_free_networks_only_one_thing() -> None:
    _, cells = read("corrected")
    for cell in cells:
        config = cell.config
        assert (config.data.level, config.data.eval_level) == ("p1", "p1")
        assert config.train.loss == "dice_bce"
        assert config.adapter.settings.get("variant", "residual") == "residual"
        assert "published" not in config.model.name
        if cell.model in ("unet", "dynunet"):
            assert cell.data not in ("camus", "chexlocalize")  # several structures of one image
    methods = {cell.config.adapter.method for cell in cells if cell.model == "clipseg"}
    assert methods == {"zero_shot", "decoder_only", "full", "shallow", "dense"}


def test_the_page_names_every_key_that_the_studies_set() -> None:
    page = DOCS.read_text(encoding="utf-8")
    study, _ = read("table1")
    for key in (
        *(f"train.{key}" for key in study.train),
        *(f"data.{key}" for key in ("level", "eval_level", "augment")),
    ):
        assert f"`{key}`" in page, key
    for name in SOURCES.names():
        if name in SETS or name == "isic":
            assert name in page
    # What the page tells to run is there.
    for command in re.findall(r"^ *vlsm compare (\S+)", page, flags=re.MULTILINE):
        assert (ROOT / command).is_file(), command
