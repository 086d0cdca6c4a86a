"""Phrases that refer to the objects of a generated scene, in the vocabulary of prompts for medical images.

A phrase is a set of conditions (shape, colour, texture, tone, size, position, number); its mask is the union of the
visible parts of all objects that meet them, empty if none does. A condition may also answer "borderline" (a centre
between left and middle, an ellipse asked for as a circle); a phrase about which any object is borderline is never used,
so every phrase kept is true of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Generator = np.random.Generator
BoolArray = NDArray[np.bool_]

# --- words -----------------------------------------------------------------------------------------------------------

SHAPES: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disk", "round shape", "round object", "circular shape"),
    "ellipse": ("ellipse", "oval", "oval shape", "oval object"),
    "square": ("square", "square shape"),
    "rectangle": ("rectangle", "rectangular shape", "box"),
    "triangle": ("triangle", "triangular shape"),
    "diamond": ("diamond", "rhombus"),
    "hexagon": ("hexagon", "hexagonal shape"),
    "star": ("star", "star shape"),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "annulus", "ring shape"),
    "crescent": ("crescent", "crescent shape", "moon shape"),
    "blob": ("blob", "irregular shape", "irregular object", "irregular region", "patch"),
    "bar": ("bar", "stick", "elongated shape", "thin line"),
}
PLURALS = {
    "rhombus": "rhombi",
    "box": "boxes",
    "cross": "crosses",
    "annulus": "annuli",
    "patch": "patches",
    "mass": "masses",
}
GENERIC = ("object", "shape", "thing", "item", "region")
# Soft-edged blobs answer to these too. The words are English before they are medical (a lump, a growth, a spot); what
# they look like in a medical image is left for fine-tuning to learn: no medical image is used anywhere.
SOFT = ("blob", "spot", "lump", "bump", "mass", "growth", "nodule", "lesion", "tumor", "polyp", "abnormal region")

# Hue in degrees, saturation, value: (hue low, hue high, s low, s high, v low, v high).
COLOURS: dict[str, tuple[float, float, float, float, float, float]] = {
    "red": (-8, 8, 0.75, 1.0, 0.6, 1.0),
    "orange": (24, 36, 0.8, 1.0, 0.85, 1.0),
    "yellow": (50, 62, 0.7, 1.0, 0.85, 1.0),
    "green": (90, 145, 0.5, 1.0, 0.35, 0.9),
    "cyan": (172, 190, 0.55, 1.0, 0.75, 1.0),
    "blue": (212, 242, 0.6, 1.0, 0.5, 1.0),
    "purple": (268, 288, 0.5, 0.95, 0.4, 0.85),
    "pink": (325, 345, 0.25, 0.55, 0.88, 1.0),
    "brown": (16, 30, 0.55, 0.85, 0.28, 0.48),
    "black": (0, 360, 0.0, 0.3, 0.0, 0.12),
    "white": (0, 360, 0.0, 0.06, 0.93, 1.0),
    "gray": (0, 360, 0.0, 0.06, 0.4, 0.62),
}
COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "purple": ("purple", "violet"),
    "cyan": ("cyan", "turquoise"),
    "gray": ("gray", "grey"),
    "red": ("red", "reddish"),
}
TEXTURES: dict[str, tuple[str, ...]] = {
    "plain": ("plain", "smooth"),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted"),
    "rough": ("rough", "textured"),
}
TONES: dict[str, tuple[str, ...]] = {
    "dark": ("dark", "darker", "hypoechoic"),
    "bright": ("bright", "lighter", "hyperechoic"),
}
SIZES: dict[str, tuple[str, ...]] = {
    "small": ("small", "small sized", "little", "tiny"),
    "medium": ("medium", "medium sized"),
    "large": ("large", "large sized", "big"),
    "largest": ("largest", "biggest"),
    "smallest": ("smallest",),
}
NUMBERS = {1: ("one", "single"), 2: ("two",), 3: ("three",), 4: ("four",), 5: ("five",)}
POSITIONS: dict[str, tuple[str, ...]] = {
    "left": ("left",),
    "right": ("right",),
    "top": ("top", "upper part"),
    "bottom": ("bottom", "lower part"),
    "center": ("center", "middle", "centre"),
    "top left": ("top left", "upper left"),
    "top right": ("top right", "upper right"),
    "bottom left": ("bottom left", "lower left"),
    "bottom right": ("bottom right", "lower right"),
}
PLACE_TEMPLATES = (
    "{noun} located in {place} of the image",
    "{noun} located in the {place} of the image",
    "{noun} in the {place}",
    "{noun} in the {place} of the image",
    "{noun} at the {place}",
    "{noun} on the {place} side",
    "{place} {noun}",
)
TEMPLATES = (
    "{0}",
    "{0}",
    "{0}",
    "the {0}",
    "a {0}",
    "an image of a {0}",
    "a photo of a {0}",
    "find the {0}",
    "segment {0}",
)

# --- conditions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SceneObject:
    """One rendered object. ``mask`` (H, W) is its visible part; ``x``, ``y`` its centre and ``area`` its share, in 0-1."""

    shape: str
    colour: str | None
    texture: str
    tone: str | None
    soft: bool
    mask: BoolArray
    x: float
    y: float
    area: float
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Phrase:
    """Conditions that refer to objects; None leaves a condition out. ``noun`` None means any object."""

    noun: str | None = None
    colour: str | None = None
    texture: str | None = None
    tone: str | None = None
    size: str | None = None
    position: str | None = None
    number: int | None = None

    def kinds(self) -> tuple[str, ...]:
        """Names of the conditions in use, for measuring attributes one by one."""
        names = ("noun", "colour", "texture", "tone", "size", "position", "number")
        return tuple(name for name in names if getattr(self, name) is not None)


@dataclass(frozen=True)
class Prompt:
    """A text, the mask (H, W) it refers to, and the conditions it was built from."""

    text: str
    mask: BoolArray
    phrase: Phrase


@dataclass
class Scene:
    """``image`` uint8 (H, W, 3) and its objects."""

    image: NDArray[np.uint8]
    objects: list[SceneObject] = field(default_factory=list)


def in_position(obj: SceneObject, position: str) -> bool | None:
    """Whether the object's centre lies in the named part of the image; None where a reader could disagree."""
    answers = []
    for word in position.split():
        if word == "center":
            distance = max(abs(obj.x - 0.5), abs(obj.y - 0.5))
            answers.append(True if distance < 0.1 else False if distance > 0.16 else None)
            continue
        along = {"left": obj.x, "right": 1 - obj.x, "top": obj.y, "bottom": 1 - obj.y}[word]
        answers.append(True if along < 0.38 else False if along > 0.46 else None)
    if False in answers:
        return False
    return None if None in answers else True


def in_size(obj: SceneObject, size: str) -> bool | None:
    """Whether the object's visible area is small (< 2.6 %), medium (3.2-8.5 %) or large (> 10 %) of the image."""
    bounds = {"small": (0.0, 0.026), "medium": (0.032, 0.085), "large": (0.1, 1.0)}
    low, high = bounds[size]
    if low <= obj.area <= high:
        return True
    near = 0.8 * low <= obj.area <= 1.2 * high
    return None if near else False


def has_noun(obj: SceneObject, noun: str) -> bool | None:
    """Whether the object answers to a canonical noun (a shape, ``"soft"`` or the name of a cut-out)."""
    if noun == "soft":
        return True if obj.soft else None  # a sharp blob might be called a spot: better not asked
    if obj.names:
        return noun in obj.names
    if obj.shape == noun:
        return True
    lookalikes = {frozenset(pair) for pair in (("circle", "ellipse"), ("ellipse", "blob"), ("square", "rectangle"))}
    lookalikes |= {frozenset(pair) for pair in (("rectangle", "bar"), ("square", "diamond"), ("circle", "hexagon"))}
    lookalikes |= {frozenset(pair) for pair in (("circle", "blob"), ("ellipse", "bar"))}
    return None if frozenset((obj.shape, noun)) in lookalikes else False


def resolve(objects: Sequence[SceneObject], phrase: Phrase) -> list[SceneObject] | None:
    """The objects a phrase refers to (none: an absent object), or None where it is borderline for any object."""
    chosen = []
    for obj in objects:
        answers: list[bool | None] = []
        if phrase.noun is not None:
            answers.append(has_noun(obj, phrase.noun))
        if phrase.colour is not None:
            answers.append(None if obj.colour is None else obj.colour == phrase.colour)
        if phrase.texture is not None:
            answers.append(obj.texture == phrase.texture)
        if phrase.tone is not None:
            answers.append(None if obj.tone is None else obj.tone == phrase.tone)
        if phrase.position is not None:
            answers.append(in_position(obj, phrase.position))
        if phrase.size in ("small", "medium", "large"):
            answers.append(in_size(obj, phrase.size))
        if False in answers:
            continue
        if None in answers:
            return None
        chosen.append(obj)
    if phrase.size in ("largest", "smallest") and chosen:
        if len(chosen) < 2:
            return None
        ordered = sorted(chosen, key=lambda obj: obj.area, reverse=phrase.size == "largest")
        first, second = ordered[0].area, ordered[1].area
        if not (first > 1.5 * second or second > 1.5 * first):
            return None
        chosen = ordered[:1]
    if phrase.number is not None and len(chosen) != phrase.number:
        return []
    return chosen


def plural(noun: str) -> str:
    """English plural of a noun phrase (its last word)."""
    head, _, last = noun.rpartition(" ")
    ending = PLURALS.get(last, last[:-1] + "ies" if last.endswith("y") else last + "s")
    return f"{head} {ending}".strip()


def say(phrase: Phrase, many: bool, rng: Generator, variety: float = 1.0) -> str:
    """Put a phrase into words. ``many``: it refers to several objects.

    Args:
        variety: chance of drawing each synonym and template at random, rather than taking the first.
    """

    def pick(words: Sequence[str]) -> str:
        return words[int(rng.integers(len(words)))] if rng.random() < variety else words[0]

    if phrase.noun is None:
        noun = pick(GENERIC)
    elif phrase.noun == "soft":
        noun = pick(SOFT)
    else:
        noun = pick(SHAPES.get(phrase.noun, (phrase.noun,)))
    if many and (phrase.number or 0) != 1 and phrase.size not in ("largest", "smallest"):
        noun = plural(noun)
    words = []
    if phrase.number is not None:
        words.append(pick(NUMBERS[phrase.number]))
    if phrase.size is not None:
        words.append(pick(SIZES[phrase.size]))
    if phrase.tone is not None:
        words.append(pick(TONES[phrase.tone]))
    if phrase.texture is not None:
        words.append(pick(TEXTURES[phrase.texture]))
    if phrase.colour is not None:
        words.append(pick(COLOUR_WORDS.get(phrase.colour, (phrase.colour,))))
    text = " ".join([*words, noun])
    if phrase.position is not None:
        place = pick(POSITIONS[phrase.position])
        templates = PLACE_TEMPLATES[:5] if place.endswith("part") else PLACE_TEMPLATES
        return pick(templates).format(noun=text, place=place)
    return pick(TEMPLATES[:3] if many or phrase.number else TEMPLATES).format(text)


# --- prompts of a scene ----------------------------------------------------------------------------------------------


ALONE = ("position", "shape", "number", "size", "texture", "relative size", "colour", "tone")
ALONE_SHARES = (0.25, 0.18, 0.16, 0.13, 0.12, 0.08, 0.05, 0.03)


def _alone(scene: Scene, target: SceneObject, rng: Generator) -> Phrase | None:
    """One condition that is true of the target, with no other word that could stand in for it; None if it has none."""
    kind = str(rng.choice(ALONE, p=ALONE_SHARES))
    shape = target.shape if target.shape in SHAPES and not target.names else None
    if kind == "number" and shape is not None:
        found = resolve(scene.objects, Phrase(noun=shape))
        return Phrase(noun=shape, number=len(found)) if found and len(found) in NUMBERS else None
    values: Sequence[str] = ()
    if kind == "position":
        values = [name for name in POSITIONS if in_position(target, name)]
    elif kind == "size":
        values = [name for name in ("small", "medium", "large") if in_size(target, name)]
    elif kind == "relative size":
        values = ("largest", "smallest")
    elif kind == "texture" and target.texture in TEXTURES:
        values = (target.texture,)
    elif kind == "colour" and target.colour:
        values = (target.colour,)
    elif kind == "tone" and target.tone:
        values = (target.tone,)
    elif kind == "shape" and shape is not None:
        return Phrase(noun=shape)
    if not values:
        return None
    value = values[int(rng.integers(len(values)))]
    return replace(Phrase(), **{"size" if kind == "relative size" else kind: value})


def _propose(scene: Scene, level: int, rng: Generator, alone: float = 0.0) -> Phrase:
    """Conditions true of one random object of the scene; with the chance ``alone`` a single one."""
    target = scene.objects[int(rng.integers(len(scene.objects)))]
    if alone and rng.random() < alone:
        single = _alone(scene, target, rng)
        if single is not None:
            return single
    if target.names:
        noun: str | None = target.names[int(rng.integers(len(target.names)))] if rng.random() < 0.9 else None
    elif target.soft and rng.random() < 0.6:
        noun = "soft"
    else:
        noun = target.shape
    phrase = Phrase(noun=noun)
    spots = [name for name in POSITIONS if in_position(target, name)]
    spot = spots[int(rng.integers(len(spots)))] if spots else None
    if level == 0:
        # Words that decide first: a colour, a shape, a place, or two of them.
        kind = int(rng.integers(5))
        return (
            Phrase(noun=target.shape),
            Phrase(colour=target.colour),
            Phrase(position=spot) if spot else Phrase(noun=target.shape),
            Phrase(noun=target.shape, colour=target.colour),
            Phrase(noun=target.shape, position=spot),
        )[kind]
    if noun is not None and rng.random() < 0.2 and not target.names:
        phrase = replace(phrase, noun=None)
    if target.colour and rng.random() < 0.5:
        phrase = replace(phrase, colour=target.colour)
    if target.tone and rng.random() < 0.5:
        phrase = replace(phrase, tone=target.tone)
    if target.texture in TEXTURES and rng.random() < 0.2:
        phrase = replace(phrase, texture=target.texture)
    if spot and rng.random() < 0.35:
        phrase = replace(phrase, position=spot)
    if rng.random() < 0.25:
        sizes = [name for name in ("small", "medium", "large") if in_size(target, name)]
        sizes += ["largest", "smallest"] if rng.random() < 0.4 else []
        if sizes:
            phrase = replace(phrase, size=sizes[int(rng.integers(len(sizes)))])
    if rng.random() < 0.2:
        found = resolve(scene.objects, phrase)
        if found and phrase.size not in ("largest", "smallest"):
            phrase = replace(phrase, number=min(len(found), 5))
    return phrase


def _spoil(phrase: Phrase, rng: Generator) -> Phrase:
    """The same phrase with one condition changed, to name something that may be absent."""
    options = [name for name in ("noun", "colour", "position", "texture", "tone", "number") if getattr(phrase, name)]
    if not options:
        return replace(phrase, noun=list(SHAPES)[int(rng.integers(len(SHAPES)))])
    name = options[int(rng.integers(len(options)))]
    pools: dict[str, list[Any]] = {
        "noun": list(SHAPES),
        "colour": list(COLOURS),
        "position": list(POSITIONS),
        "texture": list(TEXTURES),
        "tone": list(TONES),
        "number": list(NUMBERS),
    }
    pool = pools[name]
    return replace(phrase, **{name: pool[int(rng.integers(len(pool)))]})


def prompts(
    scene: Scene, count: int, rng: Generator, level: int = 1, absent: float = 0.15, alone: float = 0.0
) -> list[Prompt]:
    """``count`` prompts about the scene, referring to different sets of objects as far as the scene allows.

    Args:
        absent: share of prompts that name something the scene does not show (empty mask).
        alone: share of prompts of a single condition, so that only that word decides.
    """
    size = scene.image.shape[0]
    made: list[Prompt] = []
    seen: dict[bytes, int] = {}
    spare: list[Prompt] = []
    for _ in range(12 * count):
        if len(made) == count:
            break
        want_absent = not scene.objects or rng.random() < absent
        if scene.objects:
            phrase = _propose(scene, level, rng, alone)
        else:
            phrase = Phrase(noun=list(SHAPES)[int(rng.integers(len(SHAPES)))])
        if want_absent and scene.objects:
            phrase = _spoil(phrase, rng)
        found = resolve(scene.objects, phrase)
        if found is None or bool(found) == want_absent:
            continue
        mask = np.zeros((size, size), dtype=bool)
        for obj in found:
            mask |= obj.mask
        many = len(found) > 1 or (phrase.number or 0) > 1
        prompt = Prompt(say(phrase, many, rng, 1.0 if level else 0.3), mask, phrase)
        key = np.packbits(mask).tobytes() if found else b""
        # The first prompts of a scene refer to different things; repeats only fill up what remains.
        if seen.get(key, 0) and found:
            spare.append(prompt)
            continue
        seen[key] = 1
        made.append(prompt)
    while len(made) < count and spare:
        made.append(spare.pop())
    while len(made) < count:
        if made:
            made.append(made[int(rng.integers(len(made)))])
        else:
            empty = np.zeros((size, size), dtype=bool)
            made.append(
                Prompt("object", empty, Phrase())
                if not scene.objects
                else Prompt("object", np.logical_or.reduce([obj.mask for obj in scene.objects]), Phrase())
            )
    return made
