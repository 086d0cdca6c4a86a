"""Print the numbers of ``measure.py`` as the tables of a model card: ``python recipes/pretrain_tiny/tables.py FILE.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def number(value: float | None, percent: bool = False) -> str:
    """Two decimals, or a percentage; a dash where there is nothing."""
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if percent else f"{value:.2f}"


def tables(found: dict[str, Any]) -> str:
    """Markdown tables of all that was measured."""
    few, every = found["few_words"], found["all_words"]
    lines = [
        "| held-out generated scenes of several objects | shape, colour, place | whole vocabulary, soft blobs too |",
        "|---|---|---|",
        f"| IoU of the right prompt | **{number(few['right_iou'])}** ({few['right_prompts']}) | "
        f"**{number(every['right_iou'])}** ({every['right_prompts']}) |",
        f"| IoU of a swapped prompt | {number(few['swapped_iou'])} | {number(every['swapped_iou'])} |",
        f"| absent object: marked share of the picture | {number(few['absent_false_positive_area'], True)} "
        f"({few['absent_prompts']}) | {number(every['absent_false_positive_area'], True)} ({every['absent_prompts']}) |",
        f"| absent object: nothing marked at all | {number(few['absent_unmarked'], True)} | "
        f"{number(every['absent_unmarked'], True)} |",
    ]
    for name in ("below 2 %", "2 to 6 %", "above 6 %"):
        sides = [part["iou_by_area_of_the_object"].get(name, {"iou": None, "prompts": 0}) for part in (few, every)]
        cells = " | ".join(f"{number(side['iou'])} ({side['prompts']})" for side in sides)
        lines.append(f"| right prompt, object {name} of the picture | {cells} |")
    lines += ["", "| one attribute decides | right | swapped | prompts |", "|---|---|---|---|"]
    for kind, values in found["attributes"].items():
        lines.append(f"| {kind} | {number(values['iou'])} | {number(values['swapped_iou'])} | {values['prompts']} |")
    if "photos" in found:
        photos, unseen = found["photos"], found["unseen_words"]
        lines += [
            "",
            "| held-out photos (split `val` of the corpus) | |",
            "|---|---|",
            f"| mean IoU of present classes ({photos['pairs']} photo-class pairs, {photos['photos']} photos) | "
            f"**{number(photos['mean_iou'])}** |",
            f"| mean of class means ({photos['classes']} classes) | {number(photos['mean_iou_by_class'])} |",
            f"| photos with several classes: right / swapped | {number(photos['several_classes_right_iou'])} / "
            f"{number(photos['several_classes_swapped_iou'])} |",
            f"| words the model never read, beside the corpus' own for the same {unseen['pairs']} pairs | "
            f"{number(unseen['iou_by_unseen_name'])} / {number(unseen['iou_by_corpus_name'])} |",
            "",
            "Classes with at least five held-out pictures: "
            + ", ".join(
                f"{name} {value:.2f}"
                for name, value in sorted(photos["iou_of_classes_with_5_or_more"].items(), key=lambda item: -item[1])
            )
            + ".",
        ]
    lines += ["", "| tokens per prompt | tiny | CLIP |", "|---|---|---|"]
    for group, counts in found["tokens_per_prompt"].items():
        lines.append(f"| {group} ({counts['prompts']}) | {counts['tiny']} | {counts.get('clip', '-')} |")
    lines += ["", f"One picture and one prompt: {found['milliseconds_per_image']} ms ({found['machine']})."]
    return "\n".join(lines)


if __name__ == "__main__":
    print(tables(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
