"""Pictures of the best, median and worst case of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from vlsm_adapter import files
from vlsm_adapter.data.images import read_pair
from vlsm_adapter.evaluation_folder import PICKED, EvaluationFolder
from vlsm_adapter.evaluation_summary import Job
from vlsm_adapter.overlays import Panel, figure
from vlsm_adapter.scoring import predict_variants
from vlsm_adapter.types import CaseScore, Record


def draw_cases(job: Job, scores: Mapping[str, Sequence[CaseScore]], folder: EvaluationFolder) -> list[dict[str, Any]]:
    """Draw the best, median and worst case by Dice of the first variant into ``folder``; what stands in each."""
    main = next(iter(scores))
    records = {record.case_id: record for record in job.records}
    by_case = {name: {score.case_id: score for score in found} for name, found in scores.items()}
    drawn: list[dict[str, Any]] = []
    for rank, score in pick(scores[main]).items():
        record = records[score.case_id]
        target = folder.images / f"{rank}.png"
        of_case = {name: found[score.case_id] for name, found in by_case.items()}
        with files.atomic_path(target) as temporary:
            _picture(job, record, of_case).save(temporary, format="PNG")
        drawn.append(
            {
                "rank": rank,
                "file": f"{folder.images.name}/{target.name}",
                "case_id": score.case_id,
                "prompt": score.prompt,
                "truth_area": score.truth_area,
                "dice": {name: one.values["dice"] for name, one in of_case.items()},
                "predicted_area": {name: one.predicted_area for name, one in of_case.items()},
            }
        )
    return drawn


def pick(scores: Sequence[CaseScore]) -> dict[str, CaseScore]:
    """Best, median and worst case by Dice, among those with something to find; equal Dice goes by case id.

    Only where no case has foreground in the truth are the others looked at. Fewer than three cases give fewer.
    """
    chosen = [score for score in scores if score.truth_area > 0] or list(scores)
    ranked = sorted(chosen, key=lambda score: (-score.values["dice"], score.case_id))
    places = {"best": 0, "worst": len(ranked) - 1, "median": (len(ranked) - 1) // 2}
    seen: set[int] = set()
    found: dict[str, CaseScore] = {}
    for name, place in places.items():
        if ranked and place not in seen:
            seen.add(place)
            found[name] = ranked[place]
    return {name: found[name] for name in PICKED if name in found}


def _picture(job: Job, record: Record, scores: Mapping[str, CaseScore]) -> Image.Image:
    image, truth = read_pair(record)
    prompt = next(iter(scores.values())).prompt
    masks = predict_variants(job.model, image, prompt, job.variants, job.protocol.threshold)
    empty = "" if truth.any() else ": empty"
    panels = [Panel("image"), Panel(f"truth (line){empty}", truth=truth)]
    for name in reversed(list(masks)):  # zero-shot first, then what fine-tuning made of it
        title = "adapter" if name == "adapter" else "zero-shot"
        nothing = "" if masks[name].any() else ", nothing found"
        panels.append(Panel(f"{title} (area): Dice {scores[name].values['dice']:.3f}{nothing}", truth, masks[name]))
    return figure(image, panels, f"{record.case_id}, prompt {prompt!r}")
