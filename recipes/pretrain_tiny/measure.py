"""Measure a model folder: ``python recipes/pretrain_tiny/measure.py --model DIR --corpus DIR [--out FILE.json]``.

Held-out generated scenes of several objects (a seed no training run uses): IoU of the right prompt and of a swapped
prompt (another prompt of the same picture, asked in its place), the false-positive area where the object is absent, and
each attribute (colour, position, size, ...) by itself. Held-out photos of the corpus (split ``val``): mean IoU of the
classes present, of swapped classes where several are present, and of words the corpus does not hold. Then the tokens a
prompt takes, and the milliseconds an image takes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import phrases
import scenes
import torch
from corpus import Corpus, normalize, whole
from numpy.typing import NDArray

from vlsm_adapter.errors import DataError, UserError
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


def several(level: int, count: int, size: int, kind: int = 0) -> Iterator[tuple[phrases.Scene, np.random.Generator]]:
    """``count`` held-out scenes of at least two objects each, without photos; ``level`` as in ``scenes.SceneStyle``."""
    number = found = 0
    while found < count:
        rng = np.random.default_rng([HELD_OUT, level, number, kind] if kind else [HELD_OUT, level, number])
        scene = scenes.render(size, rng, scenes.SceneStyle(level=level))
        number += 1
        if len(scene.objects) > 1:
            found += 1
            yield scene, rng


def measure_scenes(model: CLIPSeg, count: int, level: int, size: int) -> dict[str, Any]:
    """Scores on ``count`` held-out scenes of several objects, five prompts each."""
    right: list[float] = []
    swapped: list[float] = []
    absent: list[float] = []
    areas: dict[str, list[float]] = defaultdict(list)
    for scene, rng in several(level, count, size):
        asked = phrases.prompts(scene, 5, rng, level, absent=0.2)
        predicted = predict(model, scene.image, [prompt.text for prompt in asked])
        for index, prompt in enumerate(asked):
            if not prompt.mask.any():
                absent.append(float(predicted[index].mean()))
                continue
            score = overlap(predicted[index], prompt.mask)
            right.append(score)
            share = prompt.mask.mean()
            areas["below 2 %" if share < 0.02 else "2 to 6 %" if share < 0.06 else "above 6 %"].append(score)
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
        "absent_unmarked": _mean([float(area == 0) for area in absent]),
        "absent_prompts": len(absent),
        "iou_by_area_of_the_object": {name: {"iou": _mean(v), "prompts": len(v)} for name, v in sorted(areas.items())},
    }


ATTRIBUTES: dict[str, Sequence[Any]] = {
    "colour": list(phrases.COLOURS),
    "shape": list(phrases.SHAPES),
    "position": list(phrases.POSITIONS),
    "size": ["small", "medium", "large"],
    "relative size": ["largest", "smallest"],
    "number": list(phrases.NUMBERS),
    "texture": ["plain", "striped", "dotted", "rough"],
    "tone": list(phrases.TONES),
}


def measure_attributes(model: CLIPSeg, count: int, size: int) -> dict[str, Any]:
    """Each attribute by itself, on scenes of several objects where that one word decides which of them is meant.

    "The red object", "the object in the top left", ... ; the number with a shape ("two circles"). Phrases that mean all
    objects of the scene are not asked. ``swapped``: another value of the same attribute, which means other pixels.
    """
    right: dict[str, list[float]] = defaultdict(list)
    swapped: dict[str, list[float]] = defaultdict(list)
    for scene, rng in several(1, count, size, kind=1):
        asked: list[tuple[str, NDArray[np.bool_], str]] = []
        everything = np.logical_or.reduce([thing.mask for thing in scene.objects])
        for kind, values in ATTRIBUTES.items():
            for value in values:
                for phrase in _phrases_of(kind, value, scene):
                    found = phrases.resolve(scene.objects, phrase)
                    if not found:
                        continue
                    mask = np.logical_or.reduce([thing.mask for thing in found])
                    if not np.array_equal(mask, everything):
                        asked.append((kind, mask, phrases.say(phrase, len(found) > 1, rng)))
        if not asked:
            continue
        predicted = predict(model, scene.image, [text for _, _, text in asked])
        for index, (kind, mask, _) in enumerate(asked):
            right[kind].append(overlap(predicted[index], mask))
            others = [
                overlap(predicted[other], mask)
                for other, (rival, rival_mask, _) in enumerate(asked)
                if rival == kind and not (rival_mask & mask).any()
            ]
            if others:
                swapped[kind].append(float(np.mean(others)))
    return {
        kind: {"iou": _mean(right[kind]), "swapped_iou": _mean(swapped[kind]), "prompts": len(right[kind])}
        for kind in ATTRIBUTES
    }


def _phrases_of(kind: str, value: Any, scene: phrases.Scene) -> list[phrases.Phrase]:
    if kind == "shape":
        return [phrases.Phrase(noun=value)]
    if kind == "number":
        shapes = sorted({thing.shape for thing in scene.objects if not thing.soft})
        return [phrases.Phrase(noun=shape, number=value) for shape in shapes]
    return [phrases.Phrase(**{"size" if kind == "relative size" else kind: value})]


# Everyday words for classes of the corpus that stand nowhere in it, nor in the generated phrases.
OTHER_WORDS = {
    "cat": ("kitty", "feline"),
    "person": ("human being", "somebody"),
    "road": ("asphalt", "roadway"),
    "shoes": ("footwear",),
    "bag": ("handheld luggage",),
    "vehicle": ("automobile",),
    "car": ("automobile",),
    "pants": ("trousers",),
    "rhesus monkey": ("macaque",),
    "turtle": ("tortoise",),
    "vegetation": ("foliage", "bushes"),
    "vegetable": ("greens",),
    "rice": ("cooked grain",),
    "wall": ("masonry",),
    "facade": ("front of a house",),
    "pedestrian": ("passer-by",),
    "motorcycle": ("motorbike",),
    "airplane": ("aircraft",),
    "bottle": ("flask",),
    "floor": ("parquet",),
}


def measure_other_words(model: CLIPSeg, corpus: Corpus, size: int) -> dict[str, Any]:
    """Held-out photos asked by words that the model never read, beside the same pairs asked by the corpus' own."""
    known = {word for name in corpus.all_names for word in name.split()}
    own: list[float] = []
    other: list[float] = []
    for photo in corpus.photos["val"]:
        words = {
            name: [word for word in OTHER_WORDS.get(name, ()) if not set(word.split()) & known] for name in photo.masks
        }
        if not any(words.values()):
            continue
        image, masks = whole(corpus, photo, size)
        for name, synonyms in words.items():
            if synonyms and masks[name].any():
                predicted = predict(model, image, [name, *synonyms])
                own.append(overlap(predicted[0], masks[name]))
                other += [overlap(one, masks[name]) for one in predicted[1:]]
    unseen = {name for photo in corpus.photos["val"] for name in photo.masks} - set(corpus.names)
    return {
        "iou_by_corpus_name": _mean(own),
        "iou_by_unseen_name": _mean(other),
        "pairs": len(own),
        "held_out_classes_without_training_photo": sorted(unseen),
    }


def tokens_per_prompt(model: CLIPSeg, clip_vocabulary: Path | None, count: int = 400) -> dict[str, Any]:
    """Mean tokens, start and end left out, of generated phrases and of prompts for medical images; CLIP's beside them.

    Args:
        clip_vocabulary: CLIP's published ``bpe_simple_vocab_16e6.txt.gz``, or None.
    """
    from tokenizer import text_corpus

    texts = {"phrases and medical prompts": list(itertools.islice(text_corpus([], seed=HELD_OUT, count=count), count))}
    texts["medical class names"] = list(MEDICAL_CLASSES)
    assert model.tokenizer is not None
    counters: dict[str, Any] = {"tiny": model.tokenizer}
    if clip_vocabulary is not None:
        counters["clip"] = clip_tokenizer(clip_vocabulary)
    return {
        group: {
            name: round(float(np.mean([len(counter(text)["input_ids"]) - 2 for text in lines])), 2)
            for name, counter in counters.items()
        }
        | {"prompts": len(lines)}
        for group, lines in texts.items()
    }


MEDICAL_CLASSES = (
    "polyp", "neoplastic polyp", "non-neoplastic polyp", "skin melanoma", "skin lesion", "foot ulcer", "benign tumor in the breast",
    "malignant tumor in the breast", "left ventricular cavity", "myocardium", "left atrium cavity", "airspace opacity", "atelectasis",
    "cardiomegaly", "consolidation", "edema", "enlarged cardiomediastinum", "lung lesion", "lung opacity", "pleural effusion",
    "pneumothorax", "support devices", "cell nucleus", "optic disc", "surgical instrument", "liver", "kidney", "spleen", "pancreas",
)  # fmt: skip


def clip_tokenizer(vocabulary: Path) -> Any:
    """CLIP's tokenizer (Radford et al. 2021) from its published list of merges, by transformers' own class."""
    import gzip
    import tempfile

    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    try:
        lines = gzip.decompress(vocabulary.read_bytes()).decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{vocabulary}: cannot be read ({error}); give CLIP's bpe_simple_vocab_16e6.txt.gz") from error
    merges = lines[1 : 49152 - 256 - 2 + 1]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
        (root / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
        return CLIPTokenizer.from_pretrained(root)


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
    parser.add_argument("--scenes", type=int, default=300, help="held-out scenes of each kind")
    parser.add_argument("--clip-vocabulary", type=Path, help="CLIP's bpe_simple_vocab_16e6.txt.gz, to count its tokens")
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
            "attributes": measure_attributes(model, options.scenes, size),
        }
        if options.corpus is not None:
            corpus = Corpus(options.corpus)
            result["photos"] = measure_photos(model, corpus, size)
            result["unseen_words"] = measure_other_words(model, corpus, size)
        result["tokens_per_prompt"] = tokens_per_prompt(model, options.clip_vocabulary)
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
