"""Measure a model folder: ``python recipes/pretrain_tiny/measure.py --model DIR --corpus DIR [--out FILE.json]``.

Held-out generated scenes (a seed no training run uses): IoU of the right prompt and of a swapped prompt (another prompt
of the same picture, asked in its place), each condition (colour, position, size, ...) apart, and the false-positive
area where the object is absent. Held-out photos of the corpus (split ``val``): mean IoU of the classes present, and of
swapped classes where several are present. Then the milliseconds an image takes.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import phrases
import scenes
import torch
from corpus import Corpus, normalize, whole
from numpy.typing import NDArray

from vlsm_adapter.errors import UserError
from vlsm_adapter.files import write_json
from vlsm_adapter.models.clipseg import CLIPSeg

HELD_OUT = 9_000_001  # first element of the seeds of held-out scenes; training seeds are the user's --seed


def predict(model: CLIPSeg, image: NDArray[np.uint8], texts: list[str]) -> NDArray[np.bool_]:
    """Masks bool (P, H, W) of ``texts`` on one picture uint8 (H, W, 3) of the model's size; threshold 0.5."""
    with torch.inference_mode():
        features = model.encode_image(normalize(torch.from_numpy(image.copy())[None]))
        tokens = model.tokenize(texts)
        condition = model.encode_text(tokens.input_ids, tokens.attention_mask)
        logits = model.decode(features, condition, torch.zeros(len(texts), dtype=torch.int64))
    return (logits > 0).numpy()


def overlap(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Intersection over union of two masks; 1 where both are empty."""
    union = int((predicted | truth).sum())
    return float((predicted & truth).sum() / union) if union else 1.0


def measure_scenes(model: CLIPSeg, count: int, level: int, size: int) -> dict[str, Any]:
    """Scores on ``count`` held-out scenes without photos; ``level`` as in ``scenes.SceneStyle``."""
    right: list[float] = []
    swapped: list[float] = []
    absent: list[float] = []
    kinds: dict[str, list[float]] = defaultdict(list)
    for number in range(count):
        rng = np.random.default_rng([HELD_OUT, level, number])
        scene = scenes.render(size, rng, scenes.SceneStyle(level=level))
        asked = phrases.prompts(scene, 5, rng, level, absent=0.2)
        predicted = predict(model, scene.image, [prompt.text for prompt in asked])
        for index, prompt in enumerate(asked):
            if not prompt.mask.any():
                absent.append(float(predicted[index].mean()))
                continue
            score = overlap(predicted[index], prompt.mask)
            right.append(score)
            for kind in prompt.phrase.kinds():
                kinds[kind].append(score)
            if len(prompt.phrase.kinds()) == 1:
                kinds[f"{prompt.phrase.kinds()[0]} only"].append(score)
            # Another prompt of the picture that refers to wholly different pixels, asked in place of this one.
            others = [
                other for other, rival in enumerate(asked) if rival.mask.any() and not (rival.mask & prompt.mask).any()
            ]
            if others:
                swapped.append(float(np.mean([overlap(predicted[other], prompt.mask) for other in others])))
    return {
        "scenes": count,
        "right_iou": _mean(right),
        "right_prompts": len(right),
        "swapped_iou": _mean(swapped),
        "swapped_prompts": len(swapped),
        "absent_false_positive_area": _mean(absent),
        "absent_prompts": len(absent),
        "iou_by_condition": {kind: {"iou": _mean(v), "prompts": len(v)} for kind, v in sorted(kinds.items())},
    }


def measure_photos(model: CLIPSeg, corpus: Corpus, size: int) -> dict[str, Any]:
    """Scores on all validation photos, stretched to the model's size."""
    by_class: dict[str, list[float]] = defaultdict(list)
    swapped: list[float] = []
    paired: list[float] = []
    for photo in corpus.photos["val"]:
        image, masks = whole(corpus, photo, size)
        names = [name for name, mask in masks.items() if mask.any()]
        if not names:
            continue
        predicted = predict(model, image, names)
        scores = [overlap(predicted[index], masks[name]) for index, name in enumerate(names)]
        for name, score in zip(names, scores, strict=True):
            by_class[name].append(score)
        if len(names) > 1:
            paired += scores
            for name in names:
                swapped += [overlap(predicted[i], masks[name]) for i, other in enumerate(names) if other != name]
    every = [score for scores in by_class.values() for score in scores]
    seen = {name: scores for name, scores in by_class.items() if len(scores) >= 5}
    return {
        "photos": len(corpus.photos["val"]),
        "mean_iou": _mean(every),
        "pairs": len(every),
        "mean_iou_by_class": _mean([float(np.mean(scores)) for scores in by_class.values()]),
        "classes": len(by_class),
        "several_classes_right_iou": _mean(paired),
        "several_classes_swapped_iou": _mean(swapped),
        "iou_of_classes_with_5_or_more": {name: round(float(np.mean(seen[name])), 3) for name in sorted(seen)},
    }


def milliseconds(model: CLIPSeg, size: int, repeats: int = 30) -> float:
    """Median time of one picture with one prompt, on the threads torch uses."""
    image = np.zeros((size, size, 3), dtype=np.uint8)
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        predict(model, image, ["polyp"])
        times.append(time.perf_counter() - begun)
    return round(1000 * float(np.median(times)), 1)


def _mean(values: list[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None


def main(arguments: list[str] | None = None) -> int:
    """Load, measure, print and write the numbers."""
    parser = argparse.ArgumentParser(description="Measure a pre-trained model folder.")
    parser.add_argument("--model", type=Path, required=True, help="folder in Hugging Face format")
    parser.add_argument("--corpus", type=Path, help="corpus folder; without it only generated scenes are measured")
    parser.add_argument("--scenes", type=int, default=400, help="held-out scenes of each level")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    options = parser.parse_args(arguments)
    try:
        model = CLIPSeg.from_pretrained(options.model, str(options.model), torch.float32)
        model.eval()
        size = model.preprocessing.size[0]
        result: dict[str, Any] = {
            "machine": f"{torch.get_num_threads()} threads, {platform.machine()}",
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "few_words": measure_scenes(model, options.scenes, 0, size),
            "all_words": measure_scenes(model, options.scenes, 1, size),
        }
        if options.corpus is not None:
            result["photos"] = measure_photos(model, Corpus(options.corpus), size)
        result["milliseconds_per_image"] = milliseconds(model, size)
        if options.out is not None:
            write_json(options.out, result)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
