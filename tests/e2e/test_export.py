"""``vlsm export`` as a user runs it: train, export, predict without torch; refusals; every method; every form."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlsm_adapter.adapters import ADAPTERS, adapter_config
from vlsm_adapter.adapters.attach import attach
from vlsm_adapter.adapters.folder import AdapterInfo, save_adapter
from vlsm_adapter.errors import AdapterError
from vlsm_adapter.models import load_model

pytest.importorskip("onnxruntime", reason="needs the extra [export]")
pytest.importorskip("onnxscript", reason="needs the extra [export]")

Vlsm = Callable[..., object]
SETTINGS = {"coop": {"tokens": 3}, "vpt": {"tokens": 2}, "maple": {"depth": 2}}
FILES = {
    "ADAPTER.md",
    "README.md",
    "image_encoder.onnx",
    "manifest.json",
    "prompt_decoder.onnx",
    "requirements.txt",
    "runtime.py",
    "tokenizer.json",
}


def adapter_on(base: Path | str, folder: Path, method: str) -> Path:
    torch.manual_seed(0)
    model = load_model(base)
    attach(model, adapter_config(method, **SETTINGS.get(method, {})))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return save_adapter(model.freeze(), folder, info=AdapterInfo(prompts=("polyp",)))


@pytest.fixture(scope="module")
def trained(base_folder: Path, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch on phantoms."""
    from vlsm_adapter.config import RunConfig
    from vlsm_adapter.train import train

    values = {
        "data.path": str(phantoms),
        "model.name": str(base_folder),
        "adapter.method": "lora",
        "train.epochs": 1,
        "train.batch_size": 4,
    }
    return train(RunConfig.load(None, values), tmp_path_factory.mktemp("runs") / "run").path


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vlsm_adapter.export.write import export

    return export(trained, tmp_path_factory.mktemp("exports") / "out")


def test_a_run_becomes_a_folder_that_predicts(exported: Path, trained: Path, phantoms: Path) -> None:
    from vlsm_adapter.export.runtime import Predictor
    from vlsm_adapter.predict import Predictor as Original

    assert {path.name for path in exported.iterdir()} == FILES
    assert [path.name for path in exported.parent.iterdir()] == ["out"]
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["modules"]["carried"] == 0, "LoRA is folded into the weights"
    assert manifest["agreement"]["image_source"] == "validation images of the run"
    assert manifest["agreement"]["max_logit_difference"] < 1e-3
    assert manifest["adapter"]["method"] == "lora"
    assert set(manifest["files"]) == FILES - {"manifest.json"}
    assert str(Path(__file__).resolve().parents[2]).encode() not in (exported / "prompt_decoder.onnx").read_bytes()
    card = (exported / "README.md").read_text()
    assert "lora" in card
    assert "Research software" in card
    original, own = Original.load(trained), Predictor.load(exported)
    for image in sorted((phantoms / "images").iterdir())[:3]:
        original.set_image(image)
        own.set_image(image)
        np.testing.assert_allclose(own.probabilities(["polyp"]), original.probabilities(["polyp"]), atol=1e-4)


def test_half_and_eight_bits_and_openvino(exported: Path, trained: Path, phantoms: Path, tmp_path: Path) -> None:
    """Derived from one pair of float32 files; whole exports of every form run in ``test_every_form``."""
    from vlsm_adapter.export import onnx_files, other_files, runtime

    image = np.asarray(Image.open(min((phantoms / "images").iterdir())).convert("RGB"))
    reference = runtime.Predictor(exported)
    features = reference.encode([image])
    logits = reference.decode(features, ["polyp"], [0])
    spread = float(logits.std())
    table = runtime.normalised_values(reference.manifest["preprocessing"])
    feed = {"pixel_values": runtime.preprocess([image], reference.manifest["preprocessing"], table)}
    ids, mask = reference.tokenize(["polyp"])
    second = {"input_ids": ids, "attention_mask": mask, "image_index": np.zeros(1, np.int64)}
    second |= {f"feature_{number}": value for number, value in enumerate(features)}
    for form in ("half", "dynamic", "static", "openvino"):
        if form == "openvino":
            pytest.importorskip("openvino", reason="needs the extra [openvino]")
        folder = tmp_path / form
        folder.mkdir()
        files = []
        for name, one in (("image_encoder.onnx", feed), ("prompt_decoder.onnx", second)):
            file = folder / name
            shutil.copyfile(exported / name, file)
            if form == "half":
                onnx_files.halve(file)
            elif form == "openvino":
                file = folder / other_files.to_openvino(file, half=False)
            else:
                onnx_files.quantise(file, None if form == "dynamic" else [one])
            files.append(file)
        make = runtime._openvino if form == "openvino" else runtime._onnx
        encode, decode = (make(file, 1, None) for file in files)
        found = encode(feed)
        answer = decode({**second, **{f"feature_{number}": value for number, value in enumerate(found)}})[0]
        assert answer.dtype == np.float32
        most = {"half": 0.02, "dynamic": 0.5, "static": 0.5, "openvino": 1e-3}[form]
        assert 0 <= np.abs(answer - logits).max() / spread < most, form
        if form == "half":
            assert (folder / "image_encoder.onnx").stat().st_size < 0.7 * (
                exported / "image_encoder.onnx"
            ).stat().st_size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give a run or adapter folder"),
        (("RUN", "--format", "onxx"), "did you mean 'onnx'"),
        (("RUN", "--precision", "int4"), "allowed: fp16, fp32, int8"),
        (("RUN", "--format", "torch", "--precision", "fp16"), "--format torch holds float32"),
        (("RUN", "--calibrate", "x"), "--calibrate is for --precision int8"),
        (("RUN", "--format", "openvino", "--precision", "int8"), "give --calibrate IMAGES"),
        (("RUN", "--check", "/nowhere/at/all"), "/nowhere/at/all"),
        (("RUN", "--prompt", " "), "--prompt is empty"),
        (("/nowhere/at/all",), "no such folder"),
        (("RUN", "--out", "TAKEN"), "exists"),
        (("RUN", "--out", "TAKEN", "--overwrite"), "this is none"),
    ],
)
def test_wrong_options_are_one_line(
    vlsm: Vlsm, trained: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "precious").write_text("x")
    known = {"RUN": trained, "TAKEN": taken}
    out = () if "--out" in options else ("--out", tmp_path / "new")
    answer = vlsm("export", *(known.get(option, option) for option in options), *out)
    assert answer.code == 2, answer.err  # type: ignore[attr-defined]
    assert message in answer.error  # type: ignore[attr-defined]
    assert answer.error.count("\n") == 0  # type: ignore[attr-defined]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]
    assert (taken / "precious").read_text() == "x"


def test_text_free_networks_without_training_are_refused(vlsm: Vlsm, tmp_path: Path) -> None:
    pytest.importorskip("monai", reason="needs the extra [monai]")
    answer = vlsm("export", "--model", "unet", "--out", tmp_path / "new")
    assert answer.code == 2  # type: ignore[attr-defined]
    assert "random weights" in answer.error  # type: ignore[attr-defined]


def test_an_export_that_answers_otherwise_is_not_written(
    trained: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlsm_adapter.errors import ModelError
    from vlsm_adapter.export import write

    def spoil(_: object, folder: Path, *rest: object) -> tuple[str, ...]:
        names = ("image_encoder.onnx", "prompt_decoder.onnx")
        for name in names:  # the right graphs, which need not be made again
            shutil.copyfile(exported / name, folder / name)
        monkeypatch.setattr(write.runtime, "normalised_values", lambda values: 0 * np.zeros((3, 256), np.float32))
        return names

    monkeypatch.setattr(write, "_write_graphs", spoil)
    with pytest.raises(ModelError, match="differ from the model"):
        write.export(trained, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in ADAPTERS if ADAPTERS.get(name).trains])
def test_every_method_exports(base_folder: Path, tmp_path: Path, method: str) -> None:
    """The export compares itself with the model, and fails where it answers otherwise."""
    from vlsm_adapter.export.write import export

    folder = export(adapter_on(base_folder, tmp_path / "adapter", method), tmp_path / "out")
    assert json.loads((folder / "manifest.json").read_text())["agreement"]["pixels_agree"] > 0.999


@pytest.mark.slow
def test_equal_exports_have_equal_bytes(base_folder: Path, tmp_path: Path) -> None:
    from vlsm_adapter.export.write import export

    adapter = adapter_on(base_folder, tmp_path / "adapter", "dense")
    first, second = (export(adapter, tmp_path / name) for name in ("first", "second"))
    assert json.loads((first / "manifest.json").read_text()) == json.loads((second / "manifest.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "precision"),
    [
        ("onnx", "fp32"),
        ("onnx", "fp16"),
        ("onnx", "int8"),
        ("torch", "fp32"),
        ("openvino", "fp32"),
        ("openvino", "fp16"),
        ("openvino", "int8"),
    ],
)
def test_every_form(shared_folder: Path, tmp_path: Path, form: str, precision: str) -> None:
    """``tiny`` with an adapter, on real pictures: every form predicts, and its masks are the model's."""
    from vlsm_adapter.export import runtime
    from vlsm_adapter.export.write import export

    if form == "openvino":
        pytest.importorskip("openvino", reason="needs the extra [openvino]")
    pictures = shared_folder / "data" / "kvasir_polyp" / "images"
    if not pictures.is_dir():
        pytest.skip("needs ../shared/data/kvasir_polyp")
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(pictures.iterdir())[:12]:
        (few / path.name).symlink_to(path)
    torch.manual_seed(0)
    model = load_model("tiny")
    attach(model, adapter_config("dense"))
    adapter = save_adapter(model.freeze(), tmp_path / "adapter", info=AdapterInfo(prompts=("polyp",)))
    calibrate = str(few) if precision == "int8" else None
    folder = export(
        adapter,
        tmp_path / "out",
        format=form,
        precision=precision,
        calibrate=calibrate,
        check=str(few),
        prompts=["polyp"],
    )
    predictor = runtime.Predictor.load(folder)
    predictor.set_image(min(few.iterdir()))
    assert predictor.predict(["polyp"]).any()
    found = predictor.manifest["agreement"]
    assert found["dice"] > {"fp32": 0.999, "fp16": 0.99, "int8": 0.85}[precision]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "dense", "decoder_only"])
@pytest.mark.parametrize("family", ["cris", "san"])
def test_other_families_export(family: str, method: str, tmp_path: Path) -> None:
    """Graphs of the small CRIS and SAN, as onnxruntime runs them, beside the models."""
    import importlib.util

    from vlsm_adapter.export import onnx_files, runtime
    from vlsm_adapter.export.graphs import trace
    from vlsm_adapter.export.merging import merge
    from vlsm_adapter.models.base import Tokens

    file = Path(__file__).parents[1] / "contract" / "test_models_and_adapters.py"
    spec = importlib.util.spec_from_file_location("small_models", file)
    assert spec is not None
    assert spec.loader is not None
    small = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(small)
    model = small.SMALL[family](None)
    settings = {"parts": "l"} if family == "cris" and method != "decoder_only" else {}
    try:
        attach(model, adapter_config(method, **settings))
    except AdapterError as error:
        pytest.fail(str(error))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
        inputs = small.arguments()
        expected = model.freeze()(**inputs)[:, 0].numpy()
    merge(model)
    names = onnx_files.to_onnx(trace(model, Tokens(inputs["input_ids"], inputs["attention_mask"])), tmp_path)
    encode, decode = (runtime._onnx(tmp_path / name, 1, None) for name in names)
    features = encode({"pixel_values": inputs["pixel_values"].numpy()})
    for count in (1, 2):
        feed = {
            "input_ids": inputs["input_ids"][:count].numpy(),
            "attention_mask": inputs["attention_mask"][:count].numpy(),
            "image_index": np.arange(count),
            **{f"feature_{number}": value for number, value in enumerate(features)},
        }
        np.testing.assert_allclose(decode(feed)[0], expected[:count], atol=1e-3)
