"""Masks from an exported folder, without torch: numpy, Pillow, tokenizers and onnxruntime are all this file needs.

It imports nothing else of vlsm-adapter, and a copy of it lies in every exported folder::

    python runtime.py FOLDER IMAGE --prompt polyp --out mask.png

    from runtime import Predictor                 # or: from vlsm_adapter.export.runtime import Predictor
    predictor = Predictor.load("FOLDER")
    predictor.set_image("frame.png")
    polyp, instrument = predictor.predict(["polyp", "instrument"])

Reading, resizing and normalising give the bits that vlsm-adapter gives; logits differ as the manifest's "agreement" says.
P is the number of prompts, H and W are the rows and columns of the image, h and w those of the network's answer.

SPDX-License-Identifier: Apache-2.0
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tokenizers import Tokenizer

FORMAT, FORMAT_VERSION = "vlsm-export", 1
MANIFEST = "manifest.json"
MAX_PIXELS = 178_956_970  # of an image; more is taken for a decompression bomb
# A list, because Pillow also opens formats that start other programs (EPS) or may run long (fonts, videos).
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "GIF", "WEBP", "PPM", "JPEG2000", "TGA")
_RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
_CHUNK = 32  # prompts decoded at a time


class ExportError(ValueError):
    """Something given cannot be used; one line that says what, what is allowed, and the fix."""

    exit_code = 2


class Prediction(NamedTuple):
    """The answer to one prompt: probability float32 (H, W) in [0, 1], and mask = probability > threshold, bool."""

    prompt: str
    probability: np.ndarray
    mask: np.ndarray
    threshold: float


class Predictor:
    """An exported model that holds one image and answers prompts about it; the image is encoded once.

    Args:
        folder: an exported folder.
        threshold: by default the one the adapter was saved with.
        threads: of the computation; by default as many as the machine has cores.
        providers: of onnxruntime, e.g. ``["CUDAExecutionProvider", "CPUExecutionProvider"]``; by default the CPU.
        check: compare every file with its checksum first.

    Raises:
        ExportError: not an exported folder, a newer or damaged one, or the library that runs it is not installed.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        threshold: float | None = None,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        check: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self.manifest = manifest = read_manifest(self.folder)
        if check:
            _check_files(self.folder, manifest)
        try:
            self.threshold = _threshold(manifest["threshold"] if threshold is None else threshold)
            self._preprocessing = manifest["preprocessing"]
            self._table = normalised_values(self._preprocessing)
            self._tokenizer = None
            if manifest["tokenizer"] is not None:
                self._tokenizer = Tokenizer.from_file(str(self.folder / manifest["tokenizer"]["file"]))
            graphs = manifest["graphs"]
            self._image = _graph(manifest["format_of_graphs"], self.folder, graphs["image"], threads, providers)
            self._prompt = _graph(manifest["format_of_graphs"], self.folder, graphs["prompt"], threads, providers)
        except (KeyError, TypeError, AttributeError) as error:
            raise ExportError(f"{self.folder / MANIFEST}: malformed ({error!r}); export again") from None
        self._features: list[np.ndarray] | None = None
        self._size = (0, 0)

    @classmethod
    def load(cls, folder: str | Path, **options: Any) -> Predictor:
        """As ``Predictor(folder, ...)``."""
        return cls(folder, **options)

    def set_image(self, image: np.ndarray | Image.Image | str | Path) -> None:
        """Encode an image, a file or uint8 (H, W, 3) RGB or (H, W) grey; prompts are about it from now on.

        Raises:
            ExportError: it cannot be read, or is of another kind; the image set before stays.
        """
        pixels = _as_rgb(image)
        self._features = self.encode([pixels])
        self._size = (pixels.shape[0], pixels.shape[1])

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(H, W) of the image that is set, or None."""
        return None if self._features is None else self._size

    def predict(self, prompts: Sequence[str], *, threshold: float | None = None) -> np.ndarray:
        """Masks at native size, bool (P, H, W).

        Raises:
            ExportError: no image is set, no prompts, or the threshold is not from 0 to 1.
        """
        return np.stack([one.mask for one in self.each(prompts, threshold=threshold)])

    def probabilities(self, prompts: Sequence[str]) -> np.ndarray:
        """Probabilities of foreground at native size, float32 (P, H, W) in [0, 1]."""
        return np.stack([one.probability for one in self.each(prompts)])

    def predictions(self, prompts: Sequence[str], *, threshold: float | None = None) -> list[Prediction]:
        """Probability and mask of each prompt."""
        return list(self.each(prompts, threshold=threshold))

    def each(self, prompts: Sequence[str], *, threshold: float | None = None) -> Iterator[Prediction]:
        """As :meth:`predictions`, one at a time: only one prompt's maps of a large image are in memory."""
        texts = _texts(prompts)
        chosen = self.threshold if threshold is None else _threshold(threshold)
        if self._features is None:
            raise ExportError("no image is set: call set_image(image) before asking prompts")
        logits, size = self.decode(self._features, texts, [0] * len(texts)), self._size

        def answers() -> Iterator[Prediction]:
            for text, one in zip(texts, logits, strict=True):
                probability = probability_at_size(one, size)
                yield Prediction(text, probability, probability > chosen, chosen)

        return answers()

    # -- the stages, for batches -----------------------------------------------------------------------------------

    def encode(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Features of B images uint8 (H, W, 3), each of its own size; all of them (B, ...)."""
        return self._image({"pixel_values": preprocess(images, self._preprocessing, self._table)})

    def tokenize(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and attention mask, int64 (P, L), padded as in training; a prompt that is too long is cut, with a warning."""
        if self._tokenizer is None:  # a network that reads no text
            return np.zeros((len(prompts), 1), np.int64), np.ones((len(prompts), 1), np.int64)
        encoded = self._tokenizer.encode_batch(list(prompts))
        for prompt, one in zip(prompts, encoded, strict=True):
            if one.overflowing:
                warnings.warn(f"prompt '{prompt[:40]}...' is too long and cut: use a shorter one", stacklevel=2)
        ids = np.array([one.ids for one in encoded], np.int64)
        return ids, np.array([one.attention_mask for one in encoded], np.int64)

    def decode(self, features: Sequence[np.ndarray], prompts: Sequence[str], image_index: Sequence[int]) -> np.ndarray:
        """Logits float32 (P, h, w), prompt i on image ``image_index[i]`` of those that :meth:`encode` was given."""
        index, parts = np.asarray(image_index, np.int64), []
        for start in range(0, len(prompts), _CHUNK):
            ids, mask = self.tokenize(prompts[start : start + _CHUNK])
            feed = {"input_ids": ids, "attention_mask": mask, "image_index": index[start : start + _CHUNK]}
            feed |= {f"feature_{number}": value for number, value in enumerate(features)}
            parts.append(np.asarray(self._prompt(feed)[0], np.float32))
        return np.concatenate(parts)


# -- pixels ------------------------------------------------------------------------------------------------------------


def read_image(path: str | Path) -> np.ndarray:
    """An image file as uint8 (H, W, 3) RGB, upright; more than 8 bits are windowed from the smallest to the largest value.

    Raises:
        ExportError: missing, damaged, not an image, or too large.
    """
    path = Path(path)
    try:
        if not path.is_file() or not path.stat().st_size:
            raise ExportError(f"{path}: {'is empty (0 bytes)' if path.is_file() else 'no such file'}: check the path")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of oddities in metadata, and of sizes from half of the limit on
            with path.open("rb") as stream, Image.open(stream, formats=FORMATS) as picture:
                if not 0 < picture.width * picture.height <= MAX_PIXELS:
                    raise ExportError(f"{path}: {picture.width} x {picture.height} pixels; 1 to {MAX_PIXELS} are read")
                picture.load()
                return _upright_rgb(picture)
    except ExportError:
        raise
    except Image.DecompressionBombError:
        raise ExportError(f"{path}: more than {MAX_PIXELS} pixels: make the image smaller") from None
    except UnidentifiedImageError:
        raise ExportError(f"{path}: not an image that can be read; convert it to PNG") from None
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise ExportError(f"{path}: cannot be decoded ({_line(error)}): damaged or truncated; fetch it again") from None


def normalised_values(preprocessing: Mapping[str, Any]) -> np.ndarray:
    """float32 (3, 256): what each of the 256 values of each channel becomes."""
    mean, std = (np.array(preprocessing[name], np.float32)[:, None] * np.float32(255) for name in ("mean", "std"))
    values: np.ndarray = (np.arange(256, dtype=np.float32)[None] - mean) / std
    return values


def preprocess(images: Sequence[np.ndarray], preprocessing: Mapping[str, Any], table: np.ndarray) -> np.ndarray:
    """Images uint8 (H, W, 3), stretched and normalised: float32 (B, 3, height, width)."""
    height, width = preprocessing["size"]
    out = np.empty((len(images), 3, height, width), np.float32)
    for number, image in enumerate(images):
        if image.shape[:2] != (height, width):
            filter_ = Image.Resampling(_RESAMPLING[preprocessing["resample"]])
            image = np.asarray(Image.fromarray(image).resize((width, height), filter_))
        for channel in range(3):
            np.take(table[channel], image[:, :, channel], out=out[number, channel], mode="clip")
    return out


def probability_at_size(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Probability float32 (H, W) from logits (h, w), brought to size first; a triangle filter, wider where the size shrinks."""
    if logits.shape != size:
        stretched = Image.fromarray(np.ascontiguousarray(logits, np.float32))
        logits = np.asarray(stretched.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    with np.errstate(
        over="ignore", under="ignore"
    ):  # exp of a large number is infinite, and 1 / (1 + infinite) is 0, as it should be
        probability: np.ndarray = 1 / (1 + np.exp(-logits))
    return probability


def _upright_rgb(picture: Image.Image) -> np.ndarray:
    upright = ImageOps.exif_transpose(picture)
    if upright.mode == "F" or upright.mode.startswith("I"):
        return np.repeat(_to_8_bit(np.asarray(upright))[:, :, None], 3, axis=2)
    if upright.has_transparency_data:  # laid on black
        layer = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)
    return np.array(upright.convert("RGB"))


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.all():
        values = np.where(finite, values, values[finite].min() if finite.any() else 0.0)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1 and not bool((values == np.rint(values)).all()):
        values = values * 255
    elif low < 0 or high > 255:
        values = (values - low) * (255.0 / (high - low)) if high > low else np.zeros_like(values)
    return np.rint(values).astype(np.uint8)


def _as_rgb(image: np.ndarray | Image.Image | str | Path) -> np.ndarray:
    if isinstance(image, (str, Path)):
        return read_image(image)
    if isinstance(image, Image.Image):
        if image.mode == "F" or image.mode.startswith("I"):
            raise ExportError(
                f"a Pillow image of mode '{image.mode}' has more than 8 bits: give its file, or convert it"
            )
        return _upright_rgb(image)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = f"dtype {image.dtype}" if isinstance(image, np.ndarray) else f"type {type(image).__name__}"
        raise ExportError(f"an image of {kind} cannot be used: give a uint8 array, a Pillow image, or a file")
    if image.size == 0 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise ExportError(f"the image has shape {image.shape}: give (H, W, 3) RGB or (H, W) grey")
    return np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image


# -- the folder --------------------------------------------------------------------------------------------------------


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """``manifest.json`` of an exported folder.

    Raises:
        ExportError: there is none, or it is of another format or version.
    """
    file = Path(folder) / MANIFEST
    if not file.is_file():
        raise ExportError(f"{folder}: not an exported folder, it has no {MANIFEST}; give one that 'vlsm export' wrote")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{file}: damaged ({_line(error)}); copy the folder again") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ExportError(f"{file}: is not of the format '{FORMAT}'; give a folder that 'vlsm export' wrote")
    if values.get("format_version") != FORMAT_VERSION:
        raise ExportError(
            f"{file}: format_version {values.get('format_version')!r}, this runtime reads {FORMAT_VERSION}; use the "
            "runtime.py that lies in the folder"
        )
    return values


def _check_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(Path(name).name == name for name in files):
        raise ExportError(f"{folder / MANIFEST}: malformed ('files' must be names with checksums); export again")
    for name, expected in files.items():
        if not (folder / name).is_file():
            raise ExportError(f"{folder / name}: missing; copy the exported folder again, all of it")
        with (folder / name).open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != expected:
                raise ExportError(f"{folder / name}: differs from its checksum; copy the exported folder again")


def _graph(kind: str, folder: Path, name: str, threads: int | None, providers: Sequence[str] | None) -> Any:
    """A function from named arrays to the list of outputs."""
    makers = {"onnx": ("onnxruntime", _onnx), "openvino": ("openvino", _openvino), "torch": ("torch", _torch)}
    if kind not in makers:
        raise ExportError(f"{folder / MANIFEST}: graphs of '{kind}' are unknown here; allowed: {', '.join(makers)}")
    needs, make = makers[kind]
    try:
        return make(folder / name, threads, providers)
    except ImportError:
        raise ExportError(f"{folder}: needs {needs}, which is not installed: pip install {needs}") from None
    except Exception as error:
        raise ExportError(
            f"{folder / name}: cannot be loaded ({_line(error)}); copy the exported folder again"
        ) from None


def _onnx(file: Path, threads: int | None, providers: Sequence[str] | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(str(file), options, providers=list(providers or ["CPUExecutionProvider"]))
    names = [each.name for each in session.get_inputs()]
    return lambda feed: session.run(None, {name: feed[name] for name in names})


def _openvino(file: Path, threads: int | None, providers: Sequence[str] | None) -> Any:
    import openvino

    # Without the hint a processor with bfloat16 units would compute in bfloat16, whatever the files hold.
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    options |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
    compiled = openvino.Core().compile_model(str(file), "CPU", options)
    names = [each.any_name for each in compiled.inputs]

    def run(feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        answer = compiled({name: feed[name] for name in names})
        return [answer[each].copy() for each in compiled.outputs]  # the arrays are the request's own

    return run


def _torch(file: Path, threads: int | None, providers: Sequence[str] | None) -> Any:
    import torch

    module = torch.export.load(file).module()

    def run(feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        with torch.inference_mode():
            answer = module(*(torch.from_numpy(value) for value in feed.values()))
        return [each.numpy() for each in (answer if isinstance(answer, (tuple, list)) else [answer])]

    return run


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _texts(prompts: Sequence[str]) -> list[str]:
    if isinstance(prompts, str):
        raise ExportError(f"prompts is one string: give a list of texts, [{prompts!r}]")
    texts = list(prompts)
    if not texts:
        raise ExportError("no prompt: give at least one text that names what to find, such as 'polyp'")
    for text in texts:
        if not isinstance(text, str) or any("\ud800" <= char <= "\udfff" for char in text):
            raise ExportError(f"prompt {text!r}: prompts are Unicode texts")
    return texts


def _threshold(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= 1:
        raise ExportError(f"threshold {value!r}: must be a probability, a number from 0 to 1")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: masks of one image as PNG; with several prompts OUT-1.png, OUT-2.png, ..."""
    parser = argparse.ArgumentParser(description="Segment an image by prompt with an exported folder.")
    parser.add_argument("folder", metavar="FOLDER", help="exported folder")
    parser.add_argument("image", metavar="IMAGE", help="image file")
    parser.add_argument("--prompt", action="append", required=True, help="what to segment; repeat for several")
    parser.add_argument("--out", required=True, metavar="FILE", help="mask to write, PNG")
    parser.add_argument("--threshold", type=float, help="by default the adapter's")
    parser.add_argument("--threads", type=int, help="by default all cores")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier mask")
    given = parser.parse_args(arguments)
    try:
        if any(not text.strip() for text in given.prompt):
            raise ExportError('--prompt is empty: say what to segment, e.g. --prompt "polyp"')
        out = Path(given.out)
        many = len(given.prompt) > 1
        files = [out.with_name(f"{out.stem}-{n}{out.suffix}") if many else out for n in range(1, len(given.prompt) + 1)]
        for file in files:
            if file.suffix.lower() != ".png":
                raise ExportError(f"{file}: masks are written as PNG; name it {file.stem or 'mask'}.png")
            if file.resolve() == Path(given.image).resolve():
                raise ExportError(f"{file}: is the image itself; choose another name for the mask")
            if file.exists() and not given.overwrite:
                raise ExportError(f"{file}: exists; --overwrite replaces it")
        predictor = Predictor(given.folder, threshold=given.threshold, threads=given.threads)
        predictor.set_image(given.image)
        for file, one in zip(files, predictor.each(given.prompt), strict=True):
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
            try:
                Image.fromarray(one.mask.astype(np.uint8) * 255).save(temporary, format="PNG")
                temporary.replace(file)
            finally:
                temporary.unlink(missing_ok=True)
            print(f"{file}: {one.prompt}: {int(one.mask.sum())} of {one.mask.size} pixels")
    except OSError as error:
        print(f"error: {error.filename or given.out}: {error.strerror or error}; check the path", file=sys.stderr)
        return 2
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    sys.exit(main())
