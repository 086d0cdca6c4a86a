"""Does a model listen to words? Probes asked beside the evaluation's own prompt, and a score in [0, 1].

A probe is a pair of prompts that differ in the words at issue (``data.probes``): one true of the object, one not. Let D
be the Dice of an answer with the object's mask. A kind of probe has the value

    1 - sum of D(asked otherwise) / sum of D(asked rightly)        over the cases, clipped to [0, 1]

the share of what the model finds of the object when asked for it that it no longer marks when asked for something else.
Contradictory pairs are weighed so that each two words count alike in both directions ("large" asked of small objects and
"small" of large ones); a word that is not met in both is left out. Else a model that finds little with "small", whatever
the truth, would seem to listen where most objects are large.
A model deaf to words answers both alike: 0. One that marks the object only when it is asked for: 1, however well it
outlines it. One that stumbles over any unusual wording finds as little with either: near 0. **Prompt sensitivity** is the
mean of the kinds' values. A kind whose mean D(asked rightly) is below ``LEAST_FOUND`` has no value, since there is nothing
to lose; a score over none is None. Cases with an empty mask take no part.

Intervals are percentile bootstrap intervals of the whole statistic; groups (patients, videos) are resampled where given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlsm_adapter.data.describing.classes import Classes
from vlsm_adapter.data.images import read_mask
from vlsm_adapter.data.probes import PAIRS, Plan, Planner
from vlsm_adapter.data.prompts import choose_prompt, common_levels, leaks_in
from vlsm_adapter.evaluation_folder import SENSITIVITY
from vlsm_adapter.metrics import score_case, summarise
from vlsm_adapter.metrics.aggregate import DEFAULT_RESAMPLES
from vlsm_adapter.types import CaseScore, Record

FORMAT, VERSION = SENSITIVITY
LEAST_FOUND = 0.05
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


@dataclass(frozen=True, slots=True)
class PairScore:
    """One pair of one case: Dice with the object when asked rightly and otherwise; ``words`` of a contradictory pair."""

    case_id: str
    probe: str
    true: float
    false: float
    words: tuple[str, str] = ("", "")


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
                right = _dice(mask, wanted)
            score = score_case(mask, truth, case_id=record.case_id, prompt=text, metrics=("dice",))
            kept[index, text] = Answer(score, _dice(mask, own), right)

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
        if len(values) == 2 and None not in values:
            low, high = _percentiles(samples[0] - samples[1])
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


def sensitivity(
    scores: Sequence[PairScore],
    *,
    groups: Mapping[str, str | None] | None = None,
    n_boot: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """The prompt-sensitivity score of a model from its pairs, as the head of this module defines it.

    Args:
        scores: the pairs.
        groups: case id to group; groups are resampled whole. A case without one is its own group.
        n_boot: bootstrap resamples.
        seed: of the resampling; equal sets of cases are resampled alike, so that two models can be compared.

    Returns:
        ``{"score": {"value", "ci_low", "ci_high"}, "components": {kind: {"n", "n_compared", "value", "ci_low",
        "ci_high", "dice_true", "dice_false"}}}``, values in [0, 1] or None, means of Dice weighed as the value is,
        ``n_compared`` of the ``n`` pairs in both directions; and under ``"_samples"`` the resampled scores (n_boot,).
    """
    labels = [_label(score.case_id, groups) for score in scores]
    places = {name: number for number, name in enumerate(sorted(set(labels)))}
    ways = {way: number for number, way in enumerate(sorted({(score.probe, score.words) for score in scores}))}
    sums = np.zeros((3, len(places), len(ways)))  # of Dice asked rightly, of Dice asked otherwise, of pairs
    for score, label in zip(scores, labels, strict=True):
        sums[:, places[label], ways[score.probe, score.words]] += (score.true, score.false, 1)
    samples = np.full((n_boot, len(PAIRS)), np.nan)
    if len(places) > 1:
        drawn = np.random.default_rng(seed).multinomial(len(places), [1 / len(places)] * len(places), size=n_boot)
        resampled = np.stack([drawn @ one for one in sums])
        samples = np.stack([_compare(resampled, _both_ways(ways, probe))[0] for probe in PAIRS], axis=1)
    total = sums.sum(axis=1, keepdims=True)
    components: dict[str, dict[str, Any]] = {}
    for column, probe in enumerate(PAIRS):
        both = _both_ways(ways, probe)
        value, true, false = (float(one[0]) for one in _compare(total, both))
        low, high = _percentiles(samples[:, column]) if np.isfinite(value) else (None, None)
        components[probe] = {
            "n": sum(score.probe == probe for score in scores),
            "n_compared": int(sum(total[2, 0, way] for way in {way for pair in both for way in pair})),
            "value": _number(value),
            "ci_low": low,
            "ci_high": high,
            "dice_true": _number(true),
            "dice_false": _number(false),
        }
    # The kinds that have a value on the cases as they are; a resample may lack one of them.
    chosen = [column for column, probe in enumerate(PAIRS) if components[probe]["value"] is not None]
    heard = _row_means(samples[:, chosen])
    low, high = _percentiles(heard)
    value = float(np.mean([components[PAIRS[column]]["value"] for column in chosen])) if chosen else np.nan
    return {
        "score": {"value": _number(value), "ci_low": low, "ci_high": high},
        "components": components,
        "_samples": heard,
    }


def write_sensitivity(
    prober: Prober, folder_json: Path, folder_csv: Path, groups: Mapping[str, str | None] | None
) -> dict[str, Any]:
    """Write ``sensitivity.json`` and ``probes.csv``, atomically, and return the first.

    Args:
        groups: case id to group, or None where the data has none.
    """
    import csv
    import io

    from vlsm_adapter import files

    values = prober.summary(groups)
    files.write_json(folder_json, values)
    rows = list(prober.rows(groups))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["variant"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_bytes(folder_csv, text.getvalue().encode("utf-8", "backslashreplace"))
    return values


# -- small parts ---------------------------------------------------------------------------------------------------------


def _both_ways(ways: Mapping[tuple[str, tuple[str, str]], int], probe: str) -> list[tuple[int, int]]:
    """Numbers of the ways of asking that are each other's reverse; a way without words is its own."""
    found: list[tuple[int, int]] = []
    for (kind, words), number in ways.items():
        reverse = ways.get((kind, words[::-1]))
        if kind == probe and reverse is not None and number <= reverse:
            found.append((number, reverse))
    return found


def _compare(
    sums: NDArray[np.float64], both: Sequence[tuple[int, int]]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Value of one kind of probe, and mean Dice asked rightly and otherwise, for each of N samples; NaN where undefined.

    Args:
        sums: (3, N, ways): of Dice asked rightly, of Dice asked otherwise, of pairs.
        both: ways that are compared with each other.
    """
    one, other = (sums[:, :, [pair[side] for pair in both]] for side in (0, 1))
    there = (one[2] > 0) & (other[2] > 0)
    n, m = np.where(there, one[2], 1), np.where(there, other[2], 1)
    # The harmonic mean of the counts: a word met ten times one way and once the other says little more than 1 : 1 does.
    weights = np.where(there, 2 * n * m / (n + m), 0)
    total = weights.sum(axis=1)
    true, false = (
        np.divide(
            (weights * (one[k] / n + other[k] / m) / 2).sum(axis=1),
            total,
            out=np.full(len(total), np.nan),
            where=total > 0,
        )
        for k in (0, 1)
    )
    enough = np.nan_to_num(true) >= LEAST_FOUND
    ratio = np.divide(false, true, out=np.full(len(total), np.nan), where=enough)
    return np.clip(1 - ratio, 0, 1), true, false


def _row_means(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the finite values of each row; NaN where there are none."""
    finite = np.isfinite(samples)
    counts = finite.sum(axis=1)
    sums = np.where(finite, samples, 0).sum(axis=1)
    return np.divide(sums, counts, out=np.full(len(samples), np.nan), where=counts > 0)


def _percentiles(samples: NDArray[np.float64]) -> tuple[float | None, float | None]:
    finite = samples[np.isfinite(samples)]
    if not len(finite):
        return None, None
    tail = 50 * (1 - _CONFIDENCE)
    low, high = np.percentile(finite, [tail, 100 - tail])
    return float(low), float(high)


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


def _dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    total = int(np.count_nonzero(one)) + int(np.count_nonzero(other))
    return 2 * int(np.count_nonzero(one & other)) / total if total else 1.0


def _label(case_id: str, groups: Mapping[str, str | None] | None) -> str:
    # The prefix keeps a case without a group from joining a group that bears its name.
    group = groups.get(case_id) if groups else None
    return f"case:{case_id}" if group is None else f"group:{group}"


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
