"""Asking the probes while an evaluation runs, keeping the answers, and what they add up to (``sensitivity``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlsm_adapter import files
from vlsm_adapter.data.describing.classes import Classes
from vlsm_adapter.data.images import read_mask
from vlsm_adapter.data.probes import PAIRS, Plan, Planner
from vlsm_adapter.data.prompts import choose_prompt, common_levels, leaks_in
from vlsm_adapter.evaluation_folder import SENSITIVITY
from vlsm_adapter.metrics import dice, score_case, summarise
from vlsm_adapter.metrics.aggregate import DEFAULT_RESAMPLES, percentile_interval
from vlsm_adapter.sensitivity import LEAST_FOUND, PairScore, sensitivity
from vlsm_adapter.types import CaseScore, Record

FORMAT, VERSION = SENSITIVITY
EMPTY_PROMPT, PARAPHRASE, ASKED = "empty", "paraphrase", "asked"
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered to one text about one case.

    Attributes:
        score: Dice with the object's mask, and what was empty.
        agreement: Dice with the same model's answer to the evaluation's own prompt; 1 where both are empty.
        right: Dice with the right answer to a text that is not of the object: 1 for a rightly empty one.
    """

    score: CaseScore
    agreement: float
    right: float | None = None

    @property
    def dice(self) -> float:
        """Dice with the object's mask."""
        return self.score.values["dice"]

    @property
    def empty(self) -> bool:
        """Whether nothing was marked."""
        return self.score.predicted_area == 0


@dataclass
class Prober:
    """Asks the probes and every level while an evaluation runs, and keeps the answers.

    Args:
        records: the cases to evaluate.
        everything: all cases of the data, for the classes there are.
        classes: names and descriptions.
        seed: of the choices of texts and probes.

    Attributes:
        levels: those that every case has; each is asked.
        plans: case number (in ``records``) to its plan.
        answers: variant to (case number, text) to answer.
    """

    records: Sequence[Record]
    everything: Iterable[Record]
    classes: Classes
    seed: int = 0
    levels: list[str] = field(init=False)
    plans: dict[int, Plan] = field(init=False, default_factory=dict)
    answers: dict[str, dict[tuple[int, str], Answer]] = field(init=False, default_factory=dict)
    asked: dict[int, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._planner = Planner(self.everything, self.classes, seed=self.seed)
        for record in self.records:
            self._planner.about(record)  # a case that names no class is found before anything is read
        self.levels = common_levels(self.records)

    def texts(self, index: int, asked: str, image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> list[str]:
        """What else to ask of case ``index``, whose own prompt is ``asked``: every text once."""
        plan = self._planner.plan(self.records[index], image, mask)
        self.plans[index], self.asked[index] = plan, asked
        by_level = [self.text(index, level) for level in self.levels]
        return [text for text in dict.fromkeys([*plan.texts, *by_level]) if text != asked]

    def text(self, index: int, level: str) -> str:
        """The text of a level that case ``index`` is asked."""
        return choose_prompt(self.records[index], level, seed=self.seed)

    def take(
        self, variant: str, index: int, truth: NDArray[np.bool_], answers: Iterator[tuple[str, NDArray[np.bool_]]]
    ) -> None:
        """Keep the scores of the answers, bool (H, W) each, to case ``index``; the first is that to its own prompt."""
        record, plan = self.records[index], self.plans[index]
        others = {pair.false: pair.other for pair in plan.pairs}
        kept = self.answers.setdefault(variant, {})
        own: NDArray[np.bool_] | None = None
        for text, mask in answers:
            own = mask if own is None else own
            right: float | None = None
            if text in others:
                other = others[text]
                wanted = (
                    read_mask(other.mask, other.mask_value)
                    if other is not None and other.mask is not None
                    else np.zeros_like(truth)
                )
                right = dice(mask, wanted)
            score = score_case(mask, truth, case_id=record.case_id, prompt=text, metrics=("dice",))
            kept[index, text] = Answer(score, dice(mask, own), right)

    # -- what was learnt ---------------------------------------------------------------------------------------------

    def summary(
        self, groups: Mapping[str, str | None] | None = None, *, n_boot: int = DEFAULT_RESAMPLES, seed: int = 0
    ) -> dict[str, Any]:
        """The content of ``sensitivity.json``, valid JSON.

        Args:
            groups: case id to group; groups are resampled whole. None resamples cases.
            n_boot: bootstrap resamples.
            seed: of the resampling.
        """
        options = {"groups": groups, "n_boot": n_boot, "seed": seed}
        cases = sorted(self.plans)
        with_object = [index for index in cases if self.plans[index].pairs]
        by_variant = {name: self._variant(name, with_object, options) for name in self.answers}
        samples = [by_variant[name].pop("_samples") for name in by_variant]
        values = [about["score"]["value"] for about in by_variant.values()]
        difference = None
        kinds = [about["score"]["kinds"] for about in by_variant.values()]
        # Means over different kinds of probes are no two measurements of one thing.
        if len(values) == 2 and None not in values and kinds[0] == kinds[1]:
            low, high = percentile_interval(samples[0] - samples[1], _CONFIDENCE)
            difference = {"value": values[0] - values[1], "ci_low": low, "ci_high": high}
        return {
            "format": FORMAT,
            "format_version": VERSION,
            "seed": self.seed,
            "n_cases": len(cases),
            "n_with_object": len(with_object),
            "bootstrap": {
                "n_boot": n_boot,
                "confidence": _CONFIDENCE,
                "seed": seed,
                "resampled": "group" if groups else "case",
            },
            "least_found": LEAST_FOUND,
            "levels": [
                {
                    "level": level,
                    "leaks": leaks_in(level, self.records),
                    "example": self.text(cases[0], level) if cases else "",
                    **{
                        name: _statistics([self._answer(name, i, self.text(i, level)) for i in cases], options)
                        for name in self.answers
                    },
                }
                for level in self.levels
            ],
            "variants": by_variant,
            "difference": difference,
        }

    def rows(self, groups: Mapping[str, str | None] | None = None) -> Iterator[dict[str, Any]]:
        """A row for ``probes.csv`` for every prompt asked: which probe or level it was, and how it was answered."""
        for variant in self.answers:
            for index in sorted(self.plans):
                for role, kind, side, text in self._roles(index):
                    answer = self._answer(variant, index, text)
                    case_id = self.records[index].case_id
                    yield {
                        "variant": variant,
                        "case_id": case_id,
                        "asked": role,
                        "kind": kind,
                        "side": side,
                        "prompt": text,
                        "dice_with_object": answer.dice,
                        "dice_with_right_answer": "" if answer.right is None or side != "false" else answer.right,
                        "agreement_with_own": answer.agreement,
                        "predicted_area": answer.score.predicted_area,
                        "object_area": answer.score.truth_area,
                        "group": (groups or {}).get(case_id) or "",
                    }

    def _roles(self, index: int) -> Iterator[tuple[str, str, str, str]]:
        plan = self.plans[index]
        yield ASKED, "", "", self.asked[index]
        for level in self.levels:
            yield level, "level", "", self.text(index, level)
        yield PARAPHRASE, "", "", plan.paraphrase
        for pair in plan.pairs:
            yield pair.probe, pair.kind, "true", pair.true
            yield pair.probe, pair.kind, "false", pair.false

    def _answer(self, variant: str, index: int, text: str) -> Answer:
        return self.answers[variant][index, text]

    def _variant(self, name: str, cases: Sequence[int], options: Mapping[str, Any]) -> dict[str, Any]:
        scores: list[PairScore] = []
        otherwise: dict[str, list[Answer]] = {probe: [] for probe in PAIRS}
        by_kind: dict[str, list[PairScore]] = {}
        for index in cases:
            for pair in self.plans[index].pairs:
                true, false = (self._answer(name, index, text) for text in (pair.true, pair.false))
                score = PairScore(self.records[index].case_id, pair.probe, true.dice, false.dice, pair.words)
                scores.append(score)
                otherwise[pair.probe].append(false)
                if pair.probe == "contradictory":
                    by_kind.setdefault(pair.kind, []).append(score)
        found = sensitivity(scores, **options)
        for probe, about in found["components"].items():
            about["n_empty_answers"] = sum(answer.empty for answer in otherwise[probe])
            rights = [answer.right for answer in otherwise[probe] if answer.right is not None]
            about["dice_with_right_answer"] = float(np.mean(rights)) if rights else None
        found["contradictory_by_kind"] = {
            kind: sensitivity(some, groups=options["groups"], n_boot=1)["components"]["contradictory"]
            for kind, some in sorted(by_kind.items())
        }
        for about in found["contradictory_by_kind"].values():
            del about["ci_low"], about["ci_high"]  # too few cases for each
        for role, texts in (
            (ASKED, [self.asked[i] for i in cases]),
            (EMPTY_PROMPT, [""] * len(cases)),
            (PARAPHRASE, [self.plans[i].paraphrase for i in cases]),
        ):
            answers = [self._answer(name, i, text) for i, text in zip(cases, texts, strict=True)]
            found[role] = {
                **_statistics(answers, options),
                "agreement_with_own": float(np.mean([answer.agreement for answer in answers])) if answers else None,
            }
        return found


def write_sensitivity(
    prober: Prober, folder_json: Path, folder_csv: Path, groups: Mapping[str, str | None] | None
) -> dict[str, Any]:
    """Write ``sensitivity.json`` and ``probes.csv``, atomically, and return the first.

    Args:
        groups: case id to group, or None where the data has none.
    """
    values = prober.summary(groups)
    files.write_json(folder_json, values)
    rows = list(prober.rows(groups))
    files.write_csv(folder_csv, list(rows[0]) if rows else ["variant"], rows)
    return values


def _statistics(answers: Sequence[Answer], options: Mapping[str, Any]) -> dict[str, Any]:
    """Mean Dice with its interval, and how often nothing was marked."""
    about = summarise(
        [answer.score for answer in answers],
        groups=options["groups"],
        n_boot=options["n_boot"],
        seed=options["seed"],
    )["metrics"].get("dice")
    return {
        "n": len(answers),
        "dice": about["mean"] if about else None,
        "ci_low": about["ci_low"] if about else None,
        "ci_high": about["ci_high"] if about else None,
        "n_empty_answers": sum(answer.empty for answer in answers),
    }
