"""The report's section on words: how each prompt level does, and whether the model listens to them at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlsm_adapter.markdown import code, interval, plural, table
from vlsm_adapter.sensitivity import of_all_kinds

_NAMES = {"adapter": "adapter", "zero_shot": "zero-shot"}
_PROBES = {
    "contradictory": "a true word made false",
    "swapped_class": "another class",
    "absent_object": "an object that is not there",
}


def sensitivity_section(values: Mapping[str, Any]) -> list[str]:
    """Lines of the section; ``values`` is what ``sensitivity.json`` holds."""
    variants = [name for name in _NAMES if name in values["variants"]]
    return [
        "## Does it listen to words?",
        "",
        *_score(values, variants),
        "",
        *_pairs(values, variants),
        "",
        *_levels(values, variants),
    ]


def _score(values: Mapping[str, Any], variants: Sequence[str]) -> list[str]:
    scores = {name: values["variants"][name]["score"] for name in variants}
    shown = "; ".join(
        f"{_NAMES[name]} **{_interval(score)}**{of_all_kinds(score)}"
        if score["value"] is not None
        else f"{_NAMES[name]}: not measurable"
        for name, score in scores.items()
    )
    text = f"Prompt sensitivity, from 0 (deaf to words) to 1 (marks the object only when asked for it): {shown}."
    if values["difference"] is not None:
        text += f" Difference {_interval(values['difference'], signed=True)}."
    boot = values["bootstrap"]
    unit = "groups" if boot["resampled"] == "group" else "cases"
    lines = [
        text,
        "",
        f"Over {plural(values['n_with_object'], 'case')} with something to find, of {values['n_cases']:,} "
        f"[{boot['confidence']:.0%} interval: percentile bootstrap, {boot['n_boot']} resamples of {unit}].",
    ]
    if any(score["value"] is None for score in scores.values()):
        lines += [
            "",
            f"Not measurable: asked rightly, it finds next to nothing (mean Dice below {values['least_found']:g}), so that "
            "there is nothing to lose when it is asked for something else.",
        ]
    return lines


def _pairs(values: Mapping[str, Any], variants: Sequence[str]) -> list[str]:
    rows: list[list[str]] = []
    for probe, meaning in _PROBES.items():
        for name in variants:
            about = values["variants"][name]["components"][probe]
            rows.append(
                [
                    meaning,
                    _NAMES[name],
                    f"{about['n_compared']} of {about['n']}",
                    _number(about["dice_true"]),
                    _number(about["dice_false"]),
                    f"{about['n_empty_answers']} of {about['n']}",
                    _interval(about) if about["value"] is not None else "-",
                ]
            )
    head = [
        "asked for",
        "model",
        "pairs compared",
        "Dice, asked rightly",
        "Dice, asked so",
        "nothing marked",
        "listens",
    ]
    lines = [
        "Pairs of prompts that differ in the words at issue alone; Dice is with the object's mask, and of the second prompt "
        "the object is not the right answer. A contradictory pair is compared where the same two words are met the other way round, "
        "so that what a word does by itself is not taken for listening:",
        "",
        *table(head, rows),
    ]
    rows = [
        [
            meaning,
            *(
                f"{_dice(values['variants'][name][role])}, agreement {_number(values['variants'][name][role]['agreement_with_own'])}"
                for name in variants
            ),
        ]
        for role, meaning in (
            ("asked", "the evaluation's own"),
            ("paraphrase", "the class name, paraphrased"),
            ("empty", "no words"),
        )
    ]
    return [
        *lines,
        "",
        "The same cases with other words for the same thing, and with none (agreement: Dice with the model's own answer to "
        "the evaluation's prompt):",
        "",
        *table(["prompt", *(_NAMES[name] for name in variants)], rows),
    ]


def _levels(values: Mapping[str, Any], variants: Sequence[str]) -> list[str]:
    levels = sorted(values["levels"], key=lambda level: bool(level["leaks"]))
    rows = [
        [
            level["level"],
            "yes" if level["leaks"] else "no",
            *(_dice(level[name]) for name in variants),
            code(level["example"]) if level["example"] else "the empty prompt",
        ]
        for level in levels
    ]
    return [
        "By prompt level, all cases, leak-free levels first (a level leaks where its words were drawn from the true mask):",
        "",
        *table(["level", "leaks", *(f"Dice, {_NAMES[name]}" for name in variants), "first case"], rows),
    ]


def _interval(about: Mapping[str, Any], *, signed: bool = False) -> str:
    return interval({**about, "unit": "ratio"}, "value", signed=signed)


def _dice(about: Mapping[str, Any]) -> str:
    return interval({**about, "unit": "ratio"}, "dice")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
