"""A MONAI Bundle of an adapter: valid by MONAI's schema, run by MONAI, with the predictor's masks."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlsm_adapter import AdapterInfo, DenseAdapterConfig, Predictor, attach, load_model, save_adapter
from vlsm_adapter.adapters.folder import WEIGHTS_NAME
from vlsm_adapter.output_names import output_names

# Asked for without importing it, which takes long.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("monai") is None, reason="needs the extra [monai]")

PROMPTS = ("polyp", "small round tumor")
# What MONAI's metadata schema of 2024-07-25 requires, and of which type; told here since a test must not need a network.
REQUIRED = {
    "schema": str, "version": str, "monai_version": str, "pytorch_version": str, "numpy_version": str,
    "required_packages_version": dict, "task": str, "description": str, "authors": str, "copyright": str,
    "network_data_format": dict,
}  # fmt: skip
OPTIONAL = {
    "changelog": dict, "data_source": str, "data_type": str, "image_classes": str, "label_classes": str,
    "pred_classes": str, "eval_metrics": dict, "intended_use": str, "references": list, "supported_apps": dict,
}  # fmt: skip
TENSOR = {
    "type": str, "format": str, "num_channels": int, "spatial_shape": list, "dtype": str, "value_range": list,
}  # fmt: skip


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    import torch

    model = load_model(base_folder)
    attach(model, DenseAdapterConfig(4))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".adapter_" in key:
                parameter.add_(torch.randn(parameter.shape, generator=generator))
    info = AdapterInfo(threshold=0.4, prompts=PROMPTS, data="phantoms", prompt_level="p1")
    return save_adapter(model, tmp_path_factory.mktemp("bundle") / "adapter", info=info)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several kinds and sizes: RGB, grey, 16 bits, turned by EXIF, and in a folder below."""
    folder = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0)
    Image.fromarray(noise.integers(0, 256, (40, 56, 3), np.uint8)).save(folder / "a.png")
    Image.fromarray(noise.integers(0, 256, (33, 21), np.uint8)).save(folder / "b.bmp")
    Image.fromarray(noise.integers(0, 4096, (24, 30)).astype(np.uint16)).save(folder / "c.tif")
    turned = Image.fromarray(noise.integers(0, 256, (20, 48, 3), np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "d.jpg", exif=exif)
    (folder / "below").mkdir()
    Image.new("RGB", (17, 16), "white").save(folder / "below" / "a.png")
    return folder


@pytest.fixture(scope="module")
def bundle(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vlsm_adapter.integrations.monai_bundle import write_bundle

    return write_bundle(adapter, tmp_path_factory.mktemp("out") / "endoscopy-dense", with_base=True)


def run_by_monai(bundle: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """``python -m monai.bundle run`` where its command line (fire) is installed, else the function behind it."""
    options = [str(one) for one in arguments]
    command = ["-m", "monai.bundle", "run", "--config_file", "configs/inference.json", *options]
    if importlib.util.find_spec("fire") is None:
        values = dict(zip([one.lstrip("-") for one in options[::2]], options[1::2], strict=True))
        command = ["-c", f"from monai.bundle import run; run(config_file='configs/inference.json', **{values!r})"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=bundle, env=environment, capture_output=True, text=True, timeout=570
    )


def test_monai_runs_it_and_gives_the_masks_of_the_predictor(
    bundle: Path, adapter: Path, pictures: Path, tmp_path: Path
) -> None:
    done = run_by_monai(bundle, "--dataset_dir", pictures, "--output_dir", tmp_path / "masks")
    assert done.returncode == 0, done.stderr[-3000:]
    predictor = Predictor.load(adapter)
    files = sorted(file for file in pictures.rglob("*") if file.is_file())
    names = output_names(files, PROMPTS)
    assert {file.name for file in (tmp_path / "masks").iterdir()} == {f"{name}.png" for row in names for name in row}
    seen = 0
    for file, row in zip(files, names, strict=True):
        predictor.set_image(file)
        for name, expected in zip(row, predictor.predict(PROMPTS), strict=True):
            found = np.asarray(Image.open(tmp_path / "masks" / f"{name}.png"))
            assert set(np.unique(found)) <= {0, 255}
            assert np.array_equal(found > 0, expected), name
            seen += int(expected.any() and not expected.all())
    assert seen  # not all masks are empty or full


def test_masks_that_are_there_are_not_replaced_unasked(pictures: Path, tmp_path: Path) -> None:
    import torch
    from monai.data import MetaTensor

    from vlsm_adapter.errors import UserError
    from vlsm_adapter.integrations.monai_parts import SavePromptMasksd, datalist

    images = datalist(str(pictures))
    mask = MetaTensor(torch.ones(1, 4, 5, dtype=torch.uint8), meta={"filename_or_obj": images[0]["image"]})
    SavePromptMasksd("pred", images, ["polyp"], str(tmp_path))({"pred": mask})
    (written,) = tmp_path.iterdir()
    with pytest.raises(UserError, match="exists already"):
        SavePromptMasksd("pred", images, ["polyp"], str(tmp_path))({"pred": mask})
    SavePromptMasksd("pred", images, ["polyp"], str(tmp_path), overwrite=True)({"pred": mask * 0})
    assert not np.asarray(Image.open(written)).any()


def test_metadata_is_what_the_schema_asks(bundle: Path) -> None:
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert REQUIRED.keys() <= metadata.keys() <= REQUIRED.keys() | OPTIONAL.keys()
    for key, kind in {**REQUIRED, **OPTIONAL}.items():
        assert key not in metadata or isinstance(metadata[key], kind), key
    for group in ("inputs", "outputs"):
        for tensor in metadata["network_data_format"][group].values():
            assert all(isinstance(tensor[key], kind) for key, kind in TENSOR.items())
    pred = metadata["network_data_format"]["outputs"]["pred"]
    assert pred["num_channels"] == 2
    assert pred["channel_def"] == {"0": PROMPTS[0], "1": PROMPTS[1]}


def test_the_workflow_has_what_applications_ask_for(
    bundle: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MONAI's own checks: all properties of an inference workflow, and a network that keeps to the metadata."""
    import torch
    from monai.bundle import ConfigWorkflow, verify_net_in_out

    from vlsm_adapter.errors import AdapterError

    monkeypatch.chdir(bundle)
    monkeypatch.setattr(sys, "path", [str(bundle), *sys.path])
    config = str(bundle / "configs" / "inference.json")
    workflow = ConfigWorkflow(config_file=config, workflow_type="infer", logging_file=False, dataset_dir=str(pictures))
    workflow.initialize()
    assert not workflow.check_properties()
    verify_net_in_out(
        net_id="network_def", meta_file=str(bundle / "configs" / "metadata.json"), config_file=config, device="cpu"
    )
    network = workflow.network_def
    saved = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert saved.keys() == network.state_dict().keys()
    network.load_state_dict(saved)
    with pytest.raises(AdapterError):
        network.load_state_dict({})
    sys.modules.pop("scripts", None)


def test_it_stands_alone_and_tells_nothing_of_this_machine(bundle: Path, adapter: Path, base_folder: Path) -> None:
    assert (bundle / "models" / "base" / "model.safetensors").is_file()
    assert (bundle / "models" / "adapter" / WEIGHTS_NAME).read_bytes() == (adapter / WEIGHTS_NAME).read_bytes()
    for file in bundle.rglob("*"):
        if file.suffix in (".json", ".md", ".py") and file.parent.name != "base":
            text = file.read_text()
            for place in (str(adapter), str(base_folder), str(base_folder.parent), str(Path.home())):
                assert place not in text, (file, place)


def test_what_cannot_be_bundled(
    vlsm: Callable, adapter: Path, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    other = tmp_path / "other"
    shutil.copytree(base_folder, other)
    from safetensors.torch import load_file, save_file

    weights = load_file(other / "model.safetensors")
    first = next(iter(weights))
    save_file({**weights, first: weights[first] + 1}, other / "model.safetensors", metadata={"format": "pt"})
    for arguments, says in (
        ((adapter, "-o", out), "--base OWNER/NAME"),
        ((adapter, "-o", tmp_path / "full", "--with-base"), "is there already"),
        ((adapter, "-o", out, "--with-base", "--prompt", " "), "--prompt is empty"),
        ((adapter, "-o", out, "--with-base", "--base", other), "other weights"),
        ((tmp_path, "-o", out), "neither an adapter folder"),
    ):
        answer = vlsm("bundle", *arguments)
        assert answer.code == 2, answer.err
        assert says in answer.error
        assert len(answer.error.splitlines()) == 1
        assert not out.exists()
        assert not list(tmp_path.glob(".out*"))
    assert vlsm("bundle", adapter, "-o", out, "--base", "acme/base", "--prompt", "polyp").code == 0
    config = json.loads((out / "models" / "adapter" / "adapter_config.json").read_text())
    assert config["base"]["id"] == "acme/base"
    assert json.loads((out / "configs" / "inference.json").read_text())["prompts"] == ["polyp"]
