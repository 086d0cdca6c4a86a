"""Training with kept features ends with the bits of training without, however it is interrupted, and says what it does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vlsm_adapter import fit as fit_module
from vlsm_adapter.data import loaders
from vlsm_adapter.data.records import load_records
from vlsm_adapter.models.clipseg import CLIPSeg

METHODS = {
    "decoder_only": ("--adapter", "decoder_only"),
    **{
        f"shallow-{parts}": ("--adapter", "shallow", "--set", f"adapter.settings.parts={parts}",
                             "--set", "adapter.settings.bottleneck_dim=4", "--set", "adapter.settings.condition_dim=4")
        for parts in ("vl", "vlc")
    },
    "dense-v": ("--adapter", "dense", "--set", "adapter.settings.parts=v"),
    "dense-v, last two blocks": ("--adapter", "dense", "--set", "adapter.settings.parts=v",
                                 "--set", "adapter.settings.last_blocks=2"),
    "dense-vlc": ("--adapter", "dense"),
}  # fmt: skip
FAST = ("--epochs", 3, "--batch-size", 4, "--set", "log.tensorboard=false", "--set", "train.save_seconds=0")


class Counter:
    """How many images and texts the encoders were given, and how many images were decoded."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.images = self.stems = self.texts = self.decoded = 0
        image_trunk, image_stem = CLIPSeg.image_trunk, CLIPSeg.image_stem
        text_trunk, read = CLIPSeg.text_trunk, loaders.read_image

        def images(model: CLIPSeg, pixels: torch.Tensor) -> Any:
            self.images += len(pixels)
            return image_trunk(model, pixels)

        def stems(model: CLIPSeg, pixels: torch.Tensor, cut: int) -> Any:
            self.stems += len(pixels)
            return image_stem(model, pixels, cut)

        def texts(model: CLIPSeg, ids: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
            self.texts += len(ids)
            return text_trunk(model, ids, mask)

        def decoded(*arguments: Any, **settings: Any) -> Any:
            self.decoded += 1
            return read(*arguments, **settings)

        patch.setattr(CLIPSeg, "image_trunk", images)
        patch.setattr(CLIPSeg, "image_stem", stems)
        patch.setattr(CLIPSeg, "text_trunk", texts)
        patch.setattr(loaders, "read_image", decoded)


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    return Counter(monkeypatch)


@pytest.fixture
def run(vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """``run("name", *options)`` trains into ``tmp_path / name`` on six training and two validation phantoms."""

    def train(name: str, *options: object, data: Path = phantoms) -> Path:
        answer = vlsm("train", "--data", data, "--model", base_folder, *FAST, *options, "-o", tmp_path / name)
        assert answer.code == 0, answer.err
        return tmp_path / name

    return train


def same_bits(one: Path, other: Path) -> bool:
    first, second = load_file(one / "state.safetensors"), load_file(other / "state.safetensors")
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def log_line(run: Path) -> str:
    return next(line for line in (run / "log.txt").read_text().splitlines() if "image encoder" in line)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_bits_with_and_without(run: Callable[..., Path], method: str, counter: Counter) -> None:
    options = (*METHODS[method], "--level", "random")
    kept = run("kept", *options)
    images, stems, texts = counter.images, counter.stems, counter.texts
    anew = run("anew", *options, "--no-cache")
    assert same_bits(kept, anew)
    if method.startswith("dense"):
        assert "image encoder adapted, frozen before its adapters: features of 8 images cached, " in log_line(kept)
        assert counter.stems - stems == stems + 2 * 8  # each image once in three epochs, beside the trials
    else:
        assert "image encoder frozen: features of 8 images cached, 39 kB in memory;" in log_line(kept)
        assert images == 1 + 8  # the trial, and each image once in three epochs
        assert counter.images - images == 1 + 3 * 8
    assert "the cache is off" in log_line(anew)
    if method != "dense-vlc":
        assert "text encoder frozen: each prompt encoded once" in log_line(kept)
        assert texts <= counter.texts - texts


def test_the_same_bits_in_16_bit_arithmetic(run: Callable[..., Path]) -> None:
    options = (*METHODS["shallow-vlc"], "--set", "train.precision=bf16-mixed")
    assert same_bits(run("kept", *options), run("anew", *options, "--no-cache"))


@pytest.mark.parametrize("method", ["shallow-vlc", "dense-v, last two blocks"])
def test_the_same_bits_in_8_bit_arithmetic(run: Callable[..., Path], method: str) -> None:
    options = (*METHODS[method], "--set", "train.precision=int8")
    kept = run("kept", *options)
    assert "features of 8 images cached" in log_line(kept)
    assert same_bits(kept, run("anew", *options, "--no-cache"))


def test_dropout_and_checkpointing_together(run: Callable[..., Path]) -> None:
    options = (
        "--adapter",
        "telescopic",
        "--set",
        "adapter.settings.dropout=0.3",
        "--set",
        "adapter.settings.variant=residual",
    )
    assert same_bits(run("kept", *options), run("again", *options, "--set", "train.checkpointing=true"))


def test_later_epochs_decode_no_image_and_masks_still_come(run: Callable[..., Path], counter: Counter) -> None:
    # Without memory for decoded images each is decoded again whenever its pixels are asked for.
    options = (*METHODS["decoder_only"], "--set", "data.cache_mb=0")
    run("kept", *options)
    assert counter.decoded == 2 * 8  # once to check them, once for the features
    before = counter.decoded
    run("anew", *options, "--set", "train.feature_cache=off")
    assert counter.decoded - before == 4 * 8


def test_augmented_images_are_not_kept_but_those_of_validation_are(run: Callable[..., Path], counter: Counter) -> None:
    options = (*METHODS["shallow-vlc"], "--augment", "medium")
    kept = run("kept", *options)
    assert counter.images == 1 + 3 * 6 + 2
    line = log_line(kept)
    assert "augmentation changes the images: not cached; features of 2 validation images cached" in line
    assert same_bits(kept, run("anew", *options, "--no-cache"))


def test_what_does_not_fit_in_memory_is_on_disk_and_what_fits_nowhere_computed_anew(
    run: Callable[..., Path], counter: Counter
) -> None:
    method = METHODS["shallow-vlc"]
    anew = run("anew", *method, "--no-cache")
    counter.images = 0
    on_disk = run("disk", *method, "--set", "train.feature_cache_mb=0")
    assert counter.images == 1 + 8
    assert f"on the disk of {on_disk}" in log_line(on_disk)
    counter.images = 0
    one = 3 * 17 * 24 * 4  # bytes: three activations of 17 tokens
    part = run(
        "part", *method, "--set", "train.feature_cache_mb=0", "--set", f"train.feature_cache_gb={2.5 * one / 2**30}"
    )
    assert counter.images == 1 + 2 + 3 * 6
    assert "6 do not fit (train.feature_cache_mb, train.feature_cache_gb)" in log_line(part)
    assert same_bits(anew, on_disk)
    assert same_bits(anew, part)
    assert {file.name for file in on_disk.iterdir()} == {file.name for file in anew.iterdir()}


def test_runs_share_features_where_the_cache_folder_is_on(
    run: Callable[..., Path], counter: Counter, tmp_path: Path
) -> None:
    options = (*METHODS["shallow-vl"], "--cache-dir", tmp_path / "cache", "--level", "random")
    plain = run("plain", *METHODS["shallow-vl"], "--level", "random")
    counter.images = counter.texts = counter.decoded = 0
    first = run("first", *options)
    assert counter.images == 1 + 8
    entries = sorted((tmp_path / "cache" / "features").rglob("*.features"))
    assert len(entries) == 8 + counter.texts - 1
    assert "all of them in" in log_line(first)
    counter.images = counter.texts = counter.decoded = 0
    second = run("second", *options)
    assert (counter.images, counter.texts, counter.decoded) == (1, 1, 0)
    assert same_bits(plain, first)
    assert same_bits(plain, second)
    # Another method reads what this one wrote; another size of the images does not.
    run("third", *METHODS["decoder_only"], "--cache-dir", tmp_path / "cache")
    assert counter.images == 1 + 1
    run("small", *METHODS["decoder_only"], "--cache-dir", tmp_path / "cache", "--image-size", 48)
    assert counter.images == 1 + 1 + 1 + 1 + 8  # the size is tried as well
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:-1])
    damaged = run("damaged", *options)
    assert same_bits(plain, damaged)
    assert "damaged, made anew" in (damaged / "log.txt").read_text()
    assert [entry.stat().st_size for entry in entries] == [len(entry.read_bytes()) for entry in entries]


def test_an_image_of_several_cases_is_encoded_once(
    run: Callable[..., Path], counter: Counter, phantoms: Path, tmp_path: Path
) -> None:
    records, _ = load_records(phantoms)
    lines = []
    for record in records:
        for number, text in enumerate(("polyp", "the small polyp")):
            lines.append(
                {
                    "case_id": f"{record.case_id}-{number}",
                    "image": str(record.image.relative_to(phantoms)),
                    "mask": str(record.mask.relative_to(phantoms)),
                    "split": record.split,
                    "group": record.case_id,
                    "prompts": {"p1": [text]},
                }
            )
    manifest = shutil.copytree(phantoms, tmp_path / "data") / "manifest.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)) + "\n")
    kept = run("kept", *METHODS["shallow-vlc"], data=manifest)
    assert counter.images == 1 + 8
    assert counter.texts == 1 + 2
    assert "features of 8 images cached" in log_line(kept)
    assert same_bits(kept, run("anew", *METHODS["shallow-vlc"], "--no-cache", data=manifest))


def test_stopped_anywhere_and_resumed_with_the_cache_ends_with_the_same_bits(
    run: Callable[..., Path], vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole = run("whole", *METHODS["shallow-vlc"])
    original, count = fit_module._update, 0

    class Killed(BaseException):
        pass

    def update(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count in (2, 4):
            raise Killed
        original(*arguments)

    monkeypatch.setattr(fit_module, "_update", update)
    options = (
        "train",
        "--data",
        phantoms,
        "--model",
        base_folder,
        *FAST,
        *METHODS["shallow-vlc"],
        "-o",
        tmp_path / "cut",
    )
    with pytest.raises(Killed):
        vlsm(*options)
    with pytest.raises(Killed):
        vlsm("train", "--resume", tmp_path / "cut")
    assert vlsm("train", "--resume", tmp_path / "cut").code == 0
    assert same_bits(whole, tmp_path / "cut")


def test_loader_processes_leave_the_pixels_out_too(run: Callable[..., Path], counter: Counter) -> None:
    plain = run("plain", *METHODS["decoder_only"])
    counter.images = 0
    workers = run("workers", *METHODS["decoder_only"], "--set", "train.workers=1")
    assert counter.images == 1 + 8
    assert same_bits(plain, workers)
