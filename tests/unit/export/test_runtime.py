"""The runtime reads, resizes, normalises and tokenises as the package does, and refuses what it cannot use."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vlsm_adapter.data.images import read_image
from vlsm_adapter.errors import DataError
from vlsm_adapter.export import runtime
from vlsm_adapter.export.runtime import ExportError, Predictor
from vlsm_adapter.inference import probability_at_size
from vlsm_adapter.models.preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing

# Refuses the imports that the runtime must do without.
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
"""
PROMPTS = ["polyp", "the small round skin lesion", "zebra 12", ""]


@pytest.fixture(scope="module")
def predictor(exported) -> Predictor:  # type: ignore[no-untyped-def]
    return Predictor.load(exported.folder)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (45, 60, 3), np.uint8)


def random_image(mode: str, size: tuple[int, int], seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    shape = (size[1], size[0])
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 4000, shape, np.uint16))
    if mode == "F":
        return Image.fromarray(rng.normal(0, 1000, shape).astype(np.float32))
    if mode == "unit":
        return Image.fromarray(rng.random(shape, np.float32))
    if mode == "I":
        return Image.fromarray(rng.integers(0, 200, shape, np.int32))
    colours = Image.fromarray(rng.integers(0, 256, (*shape, 4), np.uint8), "RGBA")
    return colours if mode == "RGBA" else colours.convert("RGB").convert(mode)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mode=st.sampled_from(["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "I", "F", "unit"]),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    orientation=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
def test_files_are_read_as_by_the_package(
    tmp_path: Path, mode: str, size: tuple[int, int], orientation: int, seed: int
) -> None:
    image = random_image(mode, size, seed)
    exif = Image.Exif()
    exif[0x0112] = orientation
    suffix = "tif" if mode in ("I", "F", "unit", "CMYK") else "png"
    file = tmp_path / f"image.{suffix}"
    image.save(file, exif=exif)
    np.testing.assert_array_equal(runtime.read_image(file), read_image(file))


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, None])
def test_bad_files_are_one_line(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "image.png"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError):
        read_image(file)
    with pytest.raises(ExportError, match=r"image\.png") as caught:
        runtime.read_image(file)
    assert "\n" not in str(caught.value)


def test_a_bomb_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (50, 50)).save(tmp_path / "large.png")
    monkeypatch.setattr(runtime, "MAX_PIXELS", 2000)
    with pytest.raises(ExportError, match="50 x 50 pixels"):
        runtime.read_image(tmp_path / "large.png")


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    resample=st.sampled_from(["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]),
    clip=st.booleans(),
    seed=st.integers(0, 99),
)
def test_pixels_are_the_same_bits(height: int, width: int, resample: str, clip: bool, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    own = (
        Preprocessing((32, 48), CLIP_MEAN, CLIP_STD, resample)
        if clip
        else Preprocessing(size=(32, 48), resample=resample)
    )
    values = json.loads(json.dumps(own.to_dict()))
    pixels = runtime.preprocess([image, image], values, runtime.normalised_values(values))
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, torch.stack([own(image), own(image)]).numpy())


@settings(max_examples=60, deadline=None)
@given(height=st.integers(2, 130), width=st.integers(2, 130), seed=st.integers(0, 99))
def test_probabilities_at_native_size(height: int, width: int, seed: int) -> None:
    """Of a single column torch's antialiased filter makes something else than the mean of the row; nobody asks for that."""
    logits = np.random.default_rng(seed).normal(0, 8, (32, 40)).astype(np.float32)
    found = runtime.probability_at_size(logits, (height, width))
    assert found.dtype == np.float32
    assert found.shape == (height, width)
    np.testing.assert_allclose(found, probability_at_size(torch.from_numpy(logits), (height, width)), atol=5e-5)


def test_extreme_logits_are_probabilities_without_warnings() -> None:
    with np.errstate(all="raise"):
        found = runtime.probability_at_size(np.array([[-200.0, 200.0]], np.float32), (1, 2))
    np.testing.assert_array_equal(found, [[0, 1]])


def test_tokens_are_those_of_the_model(predictor: Predictor, model) -> None:  # type: ignore[no-untyped-def]
    for prompts in ([PROMPTS[0]], PROMPTS, ["Polyp\u00e9 \u767e", " the  of "], ["skin lesion " * 20, "polyp"]):
        expected = model.tokenize(prompts)
        with pytest.warns(UserWarning, match="too long") if len(prompts[0]) > 200 else _nothing():
            ids, mask = predictor.tokenize(prompts)
        np.testing.assert_array_equal(ids, expected.input_ids.numpy())
        np.testing.assert_array_equal(mask, expected.attention_mask.numpy())


def _nothing():  # type: ignore[no-untyped-def]
    import contextlib

    return contextlib.nullcontext()


def test_answers_are_those_of_the_package(exported, predictor: Predictor, picture: np.ndarray) -> None:  # type: ignore[no-untyped-def]
    from vlsm_adapter.predict import Predictor as Original

    original = Original.load(exported.adapter)
    assert predictor.threshold == original.threshold == 0.4
    assert Predictor.load(exported.folder).image_size is None
    for image in (picture, picture[:, :, 0], Image.fromarray(picture)):
        original.set_image(image)
        predictor.set_image(image)
        assert predictor.image_size == original.image_size == (45, 60)
        for prompts in (PROMPTS[:1], PROMPTS, ["polyp"] * 40):  # more than are decoded at a time
            expected = original.probabilities(prompts)
            np.testing.assert_allclose(predictor.probabilities(prompts), expected, atol=1e-4)
            masks = predictor.predict(prompts)
            assert masks.dtype == bool
            assert masks.shape == expected.shape
            assert (masks == original.predict(prompts)).mean() > 0.999
    first = predictor.predictions(["polyp"], threshold=0.9)[0]
    assert (first.prompt, first.threshold) == ("polyp", 0.9)
    np.testing.assert_array_equal(first.mask, first.probability > 0.9)


def test_any_number_of_images_prompts_and_tokens(predictor: Predictor, picture: np.ndarray) -> None:
    images = [picture, picture[::-1], picture[:20, :20]]
    together = predictor.encode(images)
    assert {len(each) for each in together} == {3}
    index = [2, 0, 1, 1, 0]
    prompts = ["polyp", "skin", "the round skin lesion", "heart", "a"]
    batched = predictor.decode(together, prompts, index)
    assert batched.shape == (5, *predictor.manifest["logits"])
    for number, (prompt, which) in enumerate(zip(prompts, index, strict=True)):
        alone = predictor.decode(predictor.encode([images[which]]), [prompt], [0])
        np.testing.assert_allclose(batched[number], alone[0], atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, i: p.predict("polyp"), "give a list"),
        (lambda p, i: p.predict([]), "no prompt"),
        (lambda p, i: p.predict([3]), "prompts are Unicode texts"),
        (lambda p, i: p.predict(["a\ud800"]), "prompts are Unicode texts"),
        (lambda p, i: p.predict(["a"], threshold=1.5), "from 0 to 1"),
        (lambda p, i: p.predict(["a"], threshold=float("nan")), "from 0 to 1"),
        (lambda p, i: p.set_image(i.astype(np.float32)), "dtype float32"),
        (lambda p, i: p.set_image(i[:0]), "shape"),
        (lambda p, i: p.set_image(np.zeros((4, 4, 4), np.uint8)), "shape"),
        (lambda p, i: p.set_image(Image.new("I;16", (4, 4))), "more than 8 bits"),
        (lambda p, i: p.set_image(None), "NoneType"),
    ],
)
def test_misuse_is_told_and_the_image_stays(predictor: Predictor, picture: np.ndarray, call, message: str) -> None:  # type: ignore[no-untyped-def]
    predictor.set_image(picture)
    with pytest.raises(ExportError, match=message):
        call(predictor, picture)
    assert predictor.image_size == (45, 60)


def test_asking_before_an_image_is_set(exported) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ExportError, match="no image is set"):
        Predictor.load(exported.folder).predict(["polyp"])


def change(folder: Path, **values: object) -> None:
    file = folder / "manifest.json"
    manifest = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f), "not an exported folder"),
        (lambda f: (f / "manifest.json").write_text("{"), "damaged"),
        (lambda f: (f / "manifest.json").write_text("[]"), "not of the format"),
        (lambda f: change(f, format_version=2), "format_version 2"),
        (lambda f: change(f, format_of_graphs="jax"), "are unknown here"),
        (lambda f: change(f, files={"../x": "0"}), "malformed"),
        (lambda f: change(f, preprocessing=None), "malformed"),
        (lambda f: change(f, threshold=7), "from 0 to 1"),
        (lambda f: (f / "image_encoder.onnx").unlink(), "missing"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "checksum"),
        (lambda f: (f / "prompt_decoder.onnx").write_bytes(b"\0" * 9), "checksum"),
    ],
)
def test_a_damaged_folder_is_refused(exported, tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "copy"
    shutil.copytree(exported.folder, folder)
    damage(folder)
    with pytest.raises(ExportError, match=message) as caught:
        Predictor.load(folder)
    assert "\n" not in str(caught.value)


def test_unchecked_damage_is_still_one_line(exported, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "copy"
    shutil.copytree(exported.folder, folder)
    (folder / "prompt_decoder.onnx").write_bytes(b"\0" * 9)
    with pytest.raises(ExportError, match="cannot be loaded") as caught:
        Predictor.load(folder, check=False)
    assert "\n" not in str(caught.value)


def run_blocked(blocked: tuple[str, ...], code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCK.format(blocked=blocked) + code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_runs_without_torch_and_transformers(
    exported, tmp_path: Path, predictor: Predictor, picture: np.ndarray
) -> None:  # type: ignore[no-untyped-def]
    """In the package, where torch and transformers are missing; and alone, where the package is missing too."""
    Image.fromarray(picture).save(tmp_path / "image.png")
    predictor.set_image(picture)
    expected = predictor.predict(["polyp"])[0]
    heavy = ("torch", "transformers", "peft", "scipy", "safetensors", "onnx")
    arguments = (str(exported.folder), str(tmp_path / "image.png"), "--prompt", "polyp", "--out")
    inside = "import runpy; sys.argv[0] = 'r'; runpy.run_module('vlsm_adapter.export.runtime', run_name='__main__')"
    alone = (
        f"import runpy; sys.argv[0] = 'r'; runpy.run_path({str(exported.folder / 'runtime.py')!r}, run_name='__main__')"
    )
    for number, (blocked, code) in enumerate(((heavy, inside), ((*heavy, "vlsm_adapter"), alone))):
        out = tmp_path / f"mask{number}.png"
        done = run_blocked(blocked, code, *arguments, str(out))
        assert done.returncode == 0, done.stderr
        np.testing.assert_array_equal(np.asarray(Image.open(out)) > 127, expected)
        assert str(out) in done.stdout


def test_the_blocker_blocks() -> None:
    done = run_blocked(("torch",), "import torch")
    assert "torch is blocked" in done.stderr


def main(*arguments: object) -> int:
    return runtime.main([str(argument) for argument in arguments])


def test_the_command(exported, tmp_path: Path, picture: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    Image.fromarray(picture).save(tmp_path / "image.png")
    (tmp_path / "broken.png").write_bytes(b"x")
    asked = (exported.folder, tmp_path / "image.png", "--prompt", "polyp", "--prompt", "skin", "--out")
    assert main(*asked, tmp_path / "new" / "m.png") == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["m-1.png", "m-2.png"]
    assert main(*asked, tmp_path / "new" / "m.png") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(*asked, tmp_path / "new" / "m.png", "--overwrite") == 0
    for wrong, message in (
        ((exported.folder, tmp_path / "image.png", "--prompt", "a", "--out", tmp_path / "m.jpg"), "name it m.png"),
        (
            (exported.folder, tmp_path / "image.png", "--prompt", "a", "--out", tmp_path / "image.png", "--overwrite"),
            "is the image itself",
        ),
        (
            (exported.folder, tmp_path / "image.png", "--prompt", "a", "--out", tmp_path / "broken.png" / "m.png"),
            "broken.png",
        ),
        ((exported.folder, tmp_path / "image.png", "--prompt", " ", "--out", tmp_path / "m.png"), "--prompt is empty"),
        ((exported.folder, tmp_path / "broken.png", "--prompt", "a", "--out", tmp_path / "m.png"), "broken.png"),
        ((tmp_path, tmp_path / "image.png", "--prompt", "a", "--out", tmp_path / "m.png"), "not an exported folder"),
        (
            (exported.folder, tmp_path / "image.png", "--prompt", "a", "--out", tmp_path / "m.png", "--threshold", "2"),
            "0 to 1",
        ),
    ):
        capsys.readouterr()
        assert main(*wrong) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "m.png").exists()
