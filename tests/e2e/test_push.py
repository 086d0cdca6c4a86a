"""Sharing an adapter through a hub, and using it from there; the hub is a small server of this process."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from vlsm_adapter import Predictor, load_adapter
from vlsm_adapter.adapters.folder import CARD_NAME, CONFIG_NAME, WEIGHTS_NAME, read_manifest
from vlsm_adapter.errors import AdapterError
from vlsm_adapter.sharing.facts import gather

FAST = ("--epochs", 1, "--batch-size", 4, "--set", "log.tensorboard=false")
BASE = "acme/base"


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fake_hub", Path(__file__).with_name("fake_hub.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_hub"] = module
    spec.loader.exec_module(module)
    return module


FAKE = _module()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator:  # type: ignore[type-arg]
    """A hub that knows one user, who is logged in; the cache is the test's own."""
    from huggingface_hub import constants

    server = FAKE.FakeHub()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # large files by Git LFS, as the small server has it
    monkeypatch.setenv("HF_TOKEN", FAKE.TOKEN)
    yield server
    server.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, phantoms: Path, base_folder: Path) -> Path:
    """A trained run with two evaluations, one of them with words from the ground truth."""
    from vlsm_adapter.config import RunConfig
    from vlsm_adapter.evaluate import evaluate_run
    from vlsm_adapter.train import train

    folder = tmp_path_factory.mktemp("shared") / "run"
    config = RunConfig.load(
        None, {"data.path": str(phantoms), "model.name": str(base_folder), "train.epochs": 1, "log.tensorboard": False}
    )
    train(config, folder)
    evaluate_run(folder)
    evaluate_run(folder, level="p6", zero_shot=False)
    return folder


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---")[1])


def test_push_load_predict_and_pin(
    vlsm: Callable, hub, run: Path, base_folder: Path, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    answer = vlsm("push", run, "acme/polyp", "--private", "--base", BASE, "--licence", "cc-by-4.0")
    assert answer.code == 0, answer.err
    ((commit, files),) = hub.commits["acme/polyp"]
    assert set(files) == {WEIGHTS_NAME, CONFIG_NAME, CARD_NAME}
    assert "acme/polyp" in hub.private
    assert f"{hub.url}/acme/polyp/commit/{commit}" in answer.err
    assert FAKE.TOKEN not in answer.err + answer.out
    assert files[WEIGHTS_NAME] == (run / "adapter" / WEIGHTS_NAME).read_bytes()
    for name in (CONFIG_NAME, CARD_NAME):
        text = files[name].decode()
        for place in (str(run), str(phantoms), str(base_folder), str(Path.home()), "/tmp"):
            assert place not in text, (name, place)
    config = json.loads(files[CONFIG_NAME])
    assert config["base"]["id"] == BASE
    assert config["info"]["licence"] == "cc-by-4.0"

    image = next((phantoms / "images").glob("*.png"))
    here, there = Predictor.load(run), Predictor.load("acme/polyp", base=base_folder)
    for one in (here, there):
        one.set_image(image)
    assert np.array_equal(here.probabilities(["polyp"]), there.probabilities(["polyp"]))

    first = load_adapter("acme/polyp", base=base_folder)
    assert first.adapter_configs["default"] == read_manifest(run / "adapter").config
    hub.commit("acme/polyp", {CONFIG_NAME: b"{}"})  # what comes later does not move a pinned revision
    with pytest.raises(AdapterError, match="format is None"):
        load_adapter("acme/polyp", base=base_folder)
    load_adapter(f"acme/polyp@{commit}", base=base_folder)
    pinned = vlsm(
        "predict", f"acme/polyp@{commit}", image, "--prompt", "polyp", "--model", base_folder, "-o", tmp_path / "out"
    )
    assert pinned.code == 0, pinned.err
    mask = np.asarray(Image.open(tmp_path / "out" / f"{image.stem}.png")) > 0
    assert np.array_equal(mask, here.predict(["polyp"])[0])

    # A new run from what was shared.
    more = vlsm(
        "train", "--resume-from", f"acme/polyp@{commit}", "--data", phantoms, "--model", base_folder, "-o",
        tmp_path / "child", *FAST,
    )  # fmt: skip
    assert more.code == 0, more.err
    assert read_manifest(tmp_path / "child" / "adapter").info.parent["id"] == f"acme/polyp@{commit}"

    hub.close()  # no network: what was used is still there
    load_adapter(f"acme/polyp@{commit}", base=base_folder)
    with pytest.raises(AdapterError, match="cannot be reached and the cache does not hold it"):
        load_adapter("acme/other", base=base_folder)


def test_errors_of_the_hub_are_one_line(vlsm: Callable, hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    hub.commit("acme/gated", {CONFIG_NAME: b"{}"})
    hub.gated.add("acme/gated")
    hub.commit("acme/base", {"config.json": b"{}", "model.safetensors": b""})
    hub.commit("acme/public", {"README.md": b"x"})
    hub.commit("acme/peft", {CONFIG_NAME: b'{"peft_type": "LORA"}', WEIGHTS_NAME: b"x"})
    for name, says in (
        ("acme/gone", "shows no repository 'acme/gone'"),
        ("acme/gated", "restricted by its author"),
        ("acme/base", "no adapter_config.json: not an adapter"),
        ("acme/public@nope", "has no revision 'nope'"),
        ("acme/peft", "not 'vlsm-adapter'"),
    ):
        answer = vlsm("predict", name, "x.png", "--prompt", "polyp")
        if "no such file" in answer.error:  # images are looked for first
            with pytest.raises(AdapterError) as caught:
                Predictor.load(name)
            text = str(caught.value)
        else:
            text = answer.error
        assert says in text, text
        assert "\n" not in text
        assert FAKE.TOKEN not in text
    for arguments, says in (
        (("acme/base",), "holds a base model"),
        (("acme/public", "--private"), "there already and public"),
        (("other/polyp",), "status 403"),
    ):
        answer = vlsm("push", run, *arguments, "--base", BASE)
        assert answer.code == 2, answer.err
        assert says in answer.error
        assert len(answer.error.splitlines()) == 1
    assert len(hub.commits["acme/base"]) == len(hub.commits["acme/public"]) == 1
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    answer = vlsm("push", run, "acme/new", "--base", BASE)
    assert answer.code == 2
    assert "log in" in answer.error
    assert "hf_wrong" not in answer.err
    assert "acme/new" not in hub.commits


def test_a_dry_run_shows_the_card_and_asks_nobody(vlsm: Callable, hub, run: Path, phantoms: Path) -> None:  # type: ignore[no-untyped-def]
    answer = vlsm("push", run, "acme/polyp", "--base", BASE, "--dry-run")
    assert answer.code == 0, answer.err
    assert hub.seen == []
    card = answer.out
    about = front_matter(card)
    assert about["base_model"] == BASE
    assert about["library_name"] == "vlsm-adapter"
    assert "license" not in about
    (entry,) = about["model-index"]
    (result,) = entry["results"]  # the evaluation whose words leak is not in it
    assert result["dataset"]["split"] == "test"
    dice = next(metric for metric in result["metrics"] if metric["type"] == "dice")
    summary = json.loads((run / "evaluation" / "test-p1" / "summary.json").read_text())
    truth = summary["adapter"]["metrics"]["dice"]
    assert dice["value"] == pytest.approx(truth["mean"], abs=1e-6)
    assert f"{truth['mean']:.4f} [{truth['ci_low']:.4f}, {truth['ci_high']:.4f}]" in card
    assert f"{summary['paired_difference']['dice']['mean_difference']:+.4f}" in card
    assert "drawn from the ground truth: these scores flatter" in card
    for section in ("Scores", "Intended use", "Limits", "Licence", "Cite"):
        assert f"\n## {section}\n" in card
    assert "6 train, 2 val, 2 test" in card
    assert "arXiv:2405.06196" in card
    assert "not recorded" in card
    assert not re.search(r"\bNone\b|\bnan\b", card)


def test_an_adapter_alone_is_shared_with_what_it_says(vlsm: Callable, hub, run: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import shutil

    alone = tmp_path / "alone"
    shutil.copytree(run / "adapter", alone)
    assert gather(alone).run is None
    answer = vlsm("push", alone, "acme/alone", "--base", BASE, "--dry-run")
    assert answer.code == 0, answer.err
    assert "settings not recorded" in answer.out
    assert "Evaluation of these weights: not recorded" in answer.out
    assert "model-index" not in front_matter(answer.out)


def test_what_tells_of_this_machine_is_not_shared(vlsm: Callable, hub, run: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import shutil

    alone = tmp_path / "alone"
    shutil.copytree(run / "adapter", alone)
    refused = vlsm("push", alone, "acme/x")
    assert refused.code == 2
    assert "--base OWNER/NAME" in refused.error
    assert str(tmp_path) not in refused.error
    config = json.loads((alone / CONFIG_NAME).read_text())
    for change, says in (
        ({"info": {**config["info"], "data": "/data/patients/P12"}}, "(info.data): holds '/data/patients/P12'"),
        ({"note": {"from": "~/scans/a"}}, "(note.from): holds '~/scans/a'"),
        ({"info": {**config["info"], "prompts": [r"polyp C:\scans\p12"]}}, "(info.prompts[0])"),
    ):
        (alone / CONFIG_NAME).write_text(json.dumps({**config, **change}))
        refused = vlsm("push", alone, "acme/x", "--base", BASE)
        assert refused.code == 2, refused.err
        assert says in refused.error
    (alone / CONFIG_NAME).write_text(json.dumps(config))
    card = tmp_path / "card.md"
    card.write_text("---\nlibrary_name: vlsm-adapter\n---\nseen on /home/ann/scans/a.png\n")
    assert "holds '/home/ann" in vlsm("push", alone, "acme/x", "--base", BASE, "--card", card).error
    card.write_text("---\nlibrary_name: vlsm-adapter\n---\nmine\n")
    assert vlsm("push", alone, "acme/x", "--base", BASE, "--card", card).code == 0
    assert hub.commits["acme/x"][-1][1][CARD_NAME].endswith(b"mine\n")
    for repo in ("x", "a/b/c", "acme/x@main", "/acme/x"):
        assert "give OWNER/NAME" in vlsm("push", alone, repo, "--base", BASE).error


def test_an_evaluation_of_other_weights_is_left_out(vlsm: Callable, hub, run: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import shutil

    other = tmp_path / "run"
    shutil.copytree(run, other)
    weights = other / "adapter" / WEIGHTS_NAME
    times = weights.stat().st_atime, weights.stat().st_mtime
    save_file({name: 0.5 * tensor for name, tensor in load_file(weights).items()}, weights)
    os.utime(weights, times)  # as a copy may have them
    answer = vlsm("push", other, "acme/x", "--base", BASE, "--dry-run")
    assert "of other weights" in answer.err
    assert "Evaluation of these weights: not recorded" in answer.out


def test_by_environment_alone(hub, run: Path, base_folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """As a user has it: HF_ENDPOINT, HF_HOME, and later HF_HUB_OFFLINE."""
    code = (
        "import sys; from vlsm_adapter.adapters.hub import HubId, fetch\n"
        "print(fetch(HubId('acme/polyp'), ('adapter_config.json', 'adapter_model.safetensors')).name)"
    )
    hub.commit("acme/polyp", {name: (run / "adapter" / name).read_bytes() for name in (CONFIG_NAME, WEIGHTS_NAME)})
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    for extra in ({}, {"HF_HUB_OFFLINE": "1"}):
        done = subprocess.run(
            [sys.executable, "-c", code], env={**environment, **extra}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == hub.commits["acme/polyp"][-1][0]
