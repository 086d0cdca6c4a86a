"""Rows of the table on prediction: prompts asked of one image after the other, and the start of the command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPSegForImageSegmentation

import usual_way
from measuring import HERE, Measured, Setting, alternate, size_of
from our_way import SETTINGS, save_data
from vlsm_adapter.adapters import adapter_config, tuner
from vlsm_adapter.adapters.attach import attach
from vlsm_adapter.adapters.folder import save_adapter
from vlsm_adapter.data.images import read_image
from vlsm_adapter.models import load_model
from vlsm_adapter.predict import Predictor

PROMPTS = (
    "polyp",
    "skin lesion",
    "a small round lesion",
    "tumour in the left part of the image",
    "surgical instrument",
    "a large pink polyp in the centre",
    "heart",
    "two polyps",
    "optic disc",
    "dark irregular lesion at the top of the image",
)
# Part of the pixels on which masks agree; weights are random, so many lie at the threshold.
SAME_PIXELS = {"fp32": 0.999, "int8": 0.97}


def made(setting: Setting) -> tuple[Path, usual_way.UsualWay]:
    """A dense VLC adapter with random weights, saved, and the usual way with the same weights."""
    model = load_model(setting.model)
    torch.manual_seed(1)
    attach(model, adapter_config("dense", **SETTINGS["dense"]))
    folder = setting.new_folder("adapter")
    save_adapter(model, folder)
    stock = CLIPSegForImageSegmentation.from_pretrained(setting.model).eval().requires_grad_(False)
    usual = usual_way.UsualWay(stock, "dense").eval()
    usual.take(tuner.state_dict(model, "default"))
    return folder, usual


def images(setting: Setting, count: int) -> list[Path]:
    """Pictures of 640 x 480."""
    return sorted((save_data(setting.new_folder("data"), count) / "images").glob("*.png"))


def predict(setting: Setting, *, prompts: int, precision: str = "fp32") -> Measured:
    """Masks per second at native size; of each image first its pixels, decoded, are given to both ways."""
    folder, usual = made(setting)
    predictor = Predictor.load(folder, precision=precision)
    device = predictor.model.device
    usual.to(device)
    pixels = [read_image(path) for path in images(setting, 3)]
    texts = list(PROMPTS[:prompts])
    tokenizer = predictor.model.tokenizer
    assert tokenizer is not None
    answers: dict[str, Any] = {}
    turn = {"ours": 0, "usual": 0}

    def picture(way: str) -> Any:
        turn[way] += 1
        return pixels[turn[way] % len(pixels)]

    def ours() -> float:
        image = picture("ours")

        def ask() -> None:
            predictor.set_image(image)
            answers["ours"] = torch.from_numpy(predictor.predict(texts))

        return prompts / setting.seconds_of(ask)

    def theirs() -> float:
        image = picture("usual")

        def ask() -> None:
            encoded = tokenizer(texts, padding="max_length", max_length=usual_way.CONTEXT, return_tensors="pt")
            given = (predictor.model.preprocess([image]), encoded["input_ids"], encoded["attention_mask"])
            values = tuple(tensor.to(device) for tensor in given)
            answers["usual"] = usual_way.predict(usual, *values, size=image.shape[:2]).cpu()

        return prompts / setting.seconds_of(ask)

    ours(), theirs()
    same = (answers["ours"] == answers["usual"]).float().mean().item()
    first, second = alternate(ours, theirs, setting.repeats)
    notes = {"prompts_per_image": prompts, "image": "640 x 480", "pixels_on_which_masks_agree": same}
    return Measured(first, second, same >= SAME_PIXELS[precision], notes)


def cold_start(setting: Setting) -> Measured:
    """Seconds from the start of the command to its end, one image, one prompt; files lie in the system's memory."""
    folder, usual = made(setting)
    image = images(setting, 1)[0]
    checkpoint = setting.new_folder("checkpoint").with_suffix(".ckpt")
    usual_way.save_checkpoint(usual, checkpoint)
    del usual
    targets = {"ours": setting.new_folder("masks"), "usual": setting.new_folder("mask").with_suffix(".png")}
    our_command = [sys.executable, "-m", "vlsm_adapter", "predict", str(folder), str(image), "--prompt", PROMPTS[0]]
    our_command += ["--out", str(targets["ours"]), "--overwrite", "--quiet"]
    usual_command = [sys.executable, str(HERE / "usual_way.py"), setting.model, str(checkpoint), str(image)]
    usual_command += [PROMPTS[0], str(targets["usual"])]
    setting.seconds_of_process(our_command), setting.seconds_of_process(usual_command)
    from vlsm_adapter.data.images import read_mask

    mask = next(targets["ours"].glob("*.png"))
    same = float((read_mask(mask) == read_mask(targets["usual"])).mean())
    first, second = alternate(
        lambda: setting.seconds_of_process(our_command),
        lambda: setting.seconds_of_process(usual_command),
        setting.repeats,
    )
    return Measured(first, second, same >= SAME_PIXELS["fp32"], {"pixels_on_which_masks_agree": same})


def artefact(setting: Setting) -> Measured:
    """Bytes of the adapter folder, beside those of the whole-model checkpoint (without its optimizer's state)."""
    folder, usual = made(setting)
    checkpoint = setting.new_folder("checkpoint").with_suffix(".ckpt")
    usual_way.save_checkpoint(usual, checkpoint)
    return Measured([float(size_of(folder))], [float(size_of(checkpoint))])
