"""What an evaluation says in ``summary.json``: statistics, protocol and provenance, all valid JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from vlsm_adapter.adapters import tuner
from vlsm_adapter.data.cases import Cases
from vlsm_adapter.data.prompts import common_levels, leaks_in, reveals_emptiness
from vlsm_adapter.evaluation_folder import FORMAT, FORMAT_VERSION, EvaluationFolder
from vlsm_adapter.metrics import paired_difference, summarise
from vlsm_adapter.run_folder import environment
from vlsm_adapter.scoring import Context, Protocol
from vlsm_adapter.types import CaseScore, Record

if TYPE_CHECKING:
    from vlsm_adapter.models.base import PromptSegmenter
    from vlsm_adapter.prober import Prober


@dataclass
class Job:
    """What is evaluated, how, and where the result goes.

    Attributes:
        model: the model, with the adapter if there is one.
        cases: all cases of the data, and those left out.
        records: the cases to score.
        split: their split.
        variants: name to a context in which the model is in that state; the first is the main one.
        protocol: how cases are asked and scored.
        folder: of the result.
        skip_bad: leave unusable cases out instead of stopping.
        about: for the summary: ``run``, ``adapter``, ``unfinished`` (how far training is that has not ended),
            ``training_cases`` (of the run's own data), ``trained_on`` (of other data), ``trained_on_before`` and
            ``trained_on_known`` (see `seen_cases.TrainedOn`), ``division`` (of the data, in words); also ``precision`` of
            the answers, ``threshold_origin`` (in words) and ``calibration`` (of the threshold, on these cases), where
            there are.
        prober: asks probes beside the evaluation's prompt, or None.
    """

    model: PromptSegmenter
    cases: Cases
    records: list[Record]
    split: str
    variants: dict[str, Context]
    protocol: Protocol
    folder: EvaluationFolder
    skip_bad: bool
    about: dict[str, Any] = field(default_factory=dict)
    prober: Prober | None = None


def summarise_evaluation(
    job: Job,
    scores: Mapping[str, Sequence[CaseScore]],
    pictures: list[dict[str, Any]],
    seconds: float,
) -> dict[str, Any]:
    """The content of ``summary.json``.

    Args:
        job: what was evaluated.
        scores: variant (``"adapter"``, ``"zero_shot"``) to its scores of the same cases.
        pictures: what `pictures.draw_cases` drew.
        seconds: that scoring took.
    """
    groups = {record.case_id: record.group for record in job.records}
    # Without a single group there is nothing to say about groups: cases are resampled.
    by_group = groups if any(group is not None for group in groups.values()) else None
    level, model = job.protocol.level, job.model
    revealing = reveals_emptiness(job.records, level)
    first = next(iter(scores.values()))
    summary: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "split": job.split,
        "level": level,
        "threshold": job.protocol.threshold,
        "precision": job.about.get("precision", "fp32"),
        "threshold_origin": job.about.get("threshold_origin"),
        "calibration": job.about.get("calibration"),
        "nsd_tolerance": job.protocol.nsd_tolerance,
        "data": {
            "path": job.cases.where,
            "name": job.records[0].dataset,
            "division": job.about.get("division", ""),
            "levels": common_levels(job.records),
        },
        "prompts": {
            "level": level,
            "seed": job.protocol.seed,
            "leaks": leaks_in(level, job.cases.all),
            "reveal_emptiness": len(revealing),
            "reveal_emptiness_truly_empty": sum(
                score.truth_area == 0 for score in first if score.case_id in set(revealing)
            ),
            "different": len({score.prompt for score in first}),
            "examples": list(dict.fromkeys(score.prompt for score in first))[:5],
        },
        "base": {
            "id": model.base_id,
            "family": model.family,
            "sha256": model.base_hash,
            "parameters": _base_parameters(model),
            "preprocessing": model.preprocessing.to_dict(),
        },
        "run": job.about["run"],
        "trained_adapter": job.about["adapter"],
        "unfinished": job.about.get("unfinished"),
        "training_cases": job.about["training_cases"],
        "trained_on": job.about.get("trained_on"),
        "trained_on_before": job.about.get("trained_on_before", 0),
        "trained_on_known": job.about.get("trained_on_known"),
        **{name: summarise(found, groups=by_group) for name, found in scores.items()},
        "skipped": [asdict(case) for case in job.cases.skipped],
        "pictures": pictures,
        "seconds": round(seconds, 3),
        **environment(),
        "device": str(model.device),
    }
    if {"adapter", "zero_shot"} <= scores.keys():
        a, b = scores["adapter"], scores["zero_shot"]
        has_truth = [index for index, score in enumerate(a) if score.truth_area > 0]
        summary["paired_difference"] = {name: paired_difference(a, b, name, groups=by_group) for name in a[0].values}
        summary["paired_difference_truth_foreground"] = {
            name: paired_difference([a[i] for i in has_truth], [b[i] for i in has_truth], name, groups=by_group)
            for name in a[0].values
        }
    return summary


def _base_parameters(model: PromptSegmenter) -> int:
    total = sum(parameter.numel() for parameter in model.parameters())
    return total - sum(
        tensor.numel() for name in tuner.names(model) for tensor in tuner.state_dict(model, name).values()
    )
