"""The report of an evaluation, in Markdown: made from files alone, never from a model.

They are those of the evaluation's folder, the run's ``metrics.csv``, and at a leaking level the evaluations beside it.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlsm_adapter import files
from vlsm_adapter.curves import line_chart
from vlsm_adapter.errors import UserError
from vlsm_adapter.evaluation_folder import EvaluationFolder
from vlsm_adapter.leak_free import LeakFree, of_neighbours, of_probes
from vlsm_adapter.markdown import cell, code, interval, plural, table
from vlsm_adapter.metrics.aggregate import FEWEST_RESAMPLED
from vlsm_adapter.sensitivity_report import sensitivity_section

_NAMES = {"adapter": "adapter", "zero_shot": "zero-shot"}
_EMPTINESS = (
    ("none", "both have foreground", "as measured"),
    ("both", "both empty, rightly nothing found", "{best} 1; HD95 0"),
    ("missed", "prediction empty, truth not", "{best} 0; HD95 the image diagonal"),
    ("false_alarm", "truth empty, prediction not", "{best} 0; HD95 the image diagonal"),
)
_RANKS = {"best": "Best", "median": "Median", "worst": "Worst"}


def write_report(evaluation_dir: str | Path, *, place: str | Path | None = None) -> Path:
    """Write ``report.md`` (and the learning curve, where the run's ``metrics.csv`` is found) and return its path.

    Args:
        evaluation_dir: the evaluation's folder.
        place: where the folder will be, if not where it is: a leak-free evaluation is looked for beside it.

    Raises:
        UserError: the folder holds no evaluation, a damaged one, or cannot be written.
    """
    folder = EvaluationFolder(Path(evaluation_dir))
    summary, sensitivity = folder.summary(), folder.sensitivity()
    curve = _learning_curve(folder, summary)
    try:
        free = None
        if summary["prompts"]["leaks"]:
            free = of_probes(sensitivity) if sensitivity else None
            free = free or of_neighbours(Path(place or evaluation_dir), summary)
        text = render(summary, curve, sensitivity, free)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(
            f"{folder.summary_file}: incomplete ({type(error).__name__}: {error}); run 'vlsm evaluate' again"
        ) from error
    files.write_text(folder.report_file, text)
    return folder.report_file


def render(
    summary: Mapping[str, Any],
    curve: str | None = None,
    sensitivity: Mapping[str, Any] | None = None,
    leak_free: LeakFree | None = None,
) -> str:
    """The report's Markdown.

    Args:
        summary: what ``summary.json`` holds.
        curve: file name of the learning curve beside the report, or None.
        sensitivity: what ``sensitivity.json`` holds, or None.
        leak_free: at a leaking level what is put first, or None where it was not measured.
    """
    variants = [name for name in _NAMES if name in summary]
    sections = [
        [f"# Evaluation of {_subject(summary)} on {code(summary['data']['name'])}, split {summary['split']}"],
        _opening(summary, variants, leak_free),
        _leak_free_scores(summary, leak_free) if leak_free else [],
        _headline(summary, variants, leak_free),
        _emptiness(summary, variants),
        _words(summary),
        sensitivity_section(sensitivity) if sensitivity else [],
        _pictures(summary, variants),
        _skipped(summary["skipped"]),
        ["## Learning curve", "", f"![Learning curve]({curve})"] if curve else [],
        _provenance(summary),
    ]
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


# -- sections ------------------------------------------------------------------------------------------------------------


def _subject(summary: Mapping[str, Any]) -> str:
    base = code(summary["base"]["id"])
    adapter = summary["trained_adapter"]
    return f"the {adapter['method']} adapter on {base}" if adapter else f"{base} (zero-shot)"


def _opening(summary: Mapping[str, Any], variants: Sequence[str], leak_free: LeakFree | None) -> list[str]:
    main = summary[variants[0]]
    text = _mean_dice({name: summary[name]["metrics"] for name in variants}, summary.get("paired_difference"))
    cases = plural(main["n_cases"], "case")
    if not summary["prompts"]["leaks"]:
        lines = [f"{cases}. {text[0].upper()}{text[1:]}."]
    elif leak_free:
        free = _mean_dice(leak_free.metrics, leak_free.paired)
        lines = [
            f"{cases}. Leak-free (level {leak_free.level}, {leak_free.source}): {free}.",
            "",
            f"**Level {summary['level']} leaks: its words are drawn from the ground truth.** With them: {text}.",
        ]
    else:
        lines = [
            f"{cases}. **Level {summary['level']} leaks: its words are drawn from the ground truth.** With them: {text}. "
            "No leak-free result was found: evaluate with --probes, or at level p1 and then 'vlsm report' here.",
        ]
    adapter = summary["trained_adapter"]
    if adapter:
        share = adapter["trainable_parameters"] / max(1, summary["base"]["parameters"])
        lines[-1] += (
            f" The adapter has {adapter['trainable_parameters']:,} trainable parameters, {share:.2%} of the base's "
            f"{summary['base']['parameters']:,}."
        )
    if so_far := summary.get("unfinished"):
        which = (
            f"the best of these, of epoch {so_far['best_epoch']}" if so_far["best_epoch"] else "the one it began from"
        )
        done = f"{so_far['epochs_done']} of {so_far['epochs']} epochs"
        lines += ["", f"**Training was not finished**: {done} were done, and the adapter is {which}."]
    return lines


def _mean_dice(metrics: Mapping[str, Mapping[str, Any]], paired: Mapping[str, Any] | None) -> str:
    """Mean Dice of every variant and their difference, in a sentence without its full stop."""
    values = [interval(about["dice"]) for about in metrics.values()]
    if len(values) == 1:
        return f"mean Dice {values[0]}"
    text = f"mean Dice {values[0]} with the adapter, {values[1]} zero-shot"
    if paired:
        gain = paired["dice"]
        text += f": a difference of {interval(gain, 'mean_difference')}"
        low, high = gain["ci_low"], gain["ci_high"]
        if low is not None and low <= 0 <= high:
            text += "; the interval includes zero"
    return text


def _leak_free_scores(summary: Mapping[str, Any], leak_free: LeakFree) -> list[str]:
    return [
        f"## Scores, leak-free level {leak_free.level}",
        "",
        *_score_table(leak_free.metrics, leak_free.paired, summary),
        "",
        f"They were {leak_free.source}.",
    ]


def _headline(summary: Mapping[str, Any], variants: Sequence[str], leak_free: LeakFree | None) -> list[str]:
    heading = "## Scores"
    if summary["prompts"]["leaks"]:
        heading += f", LEAKING level {summary['level']}: drawn from the ground truth; leak-free "
        dice = leak_free and interval(leak_free.metrics[next(iter(leak_free.metrics))]["dice"])
        heading += f"{leak_free.level}: Dice {dice}" if leak_free else "p1: not evaluated"
    lines = [heading, ""]
    lines += _score_table(
        {name: summary[name]["metrics"] for name in variants}, summary.get("paired_difference"), summary
    )
    boot = summary[variants[0]]["bootstrap"]
    unit = "groups (patients, videos)" if boot["resampled"] == "group" else "cases"
    lines += [
        "",
        f"Mean [{boot['confidence']:.0%} interval: percentile bootstrap, {boot['n_boot']} resamples of {unit}]. Logits are "
        f"enlarged to each image's own size before the threshold of {summary['threshold']:g}.",
    ]
    if 1 < (few := summary[variants[0]]["n_groups"]) < FEWEST_RESAMPLED:
        lines += ["", f"**With {few} {unit} to resample these intervals are too narrow**: they need some tens."]
    if summary.get("precision", "fp32") != "fp32":
        lines += ["", f"The model answers in {summary['precision']}, not in float32."]
    if summary.get("calibration"):
        lines += [
            "",
            f"The threshold was chosen on these cases ({summary['calibration']['text']}): their Dice flatters.",
        ]
    foreground, everything = summary[variants[0]]["truth_foreground"], summary[variants[0]]["n"]
    if 0 < foreground["n"] < everything:
        lines += ["", f"Only the {plural(foreground['n'], 'case')} with foreground in the truth:", ""]
        lines += _score_table(
            {name: summary[name]["truth_foreground"]["metrics"] for name in variants},
            summary.get("paired_difference_truth_foreground"),
            summary,
        )
    return lines


def _score_table(
    by_variant: Mapping[str, Mapping[str, Any]], paired: Mapping[str, Any] | None, summary: Mapping[str, Any]
) -> list[str]:
    head = ["metric", *(_NAMES[name] for name in by_variant)]
    if paired:
        head += ["difference", "better / worse / equal"]
    rows: list[list[str]] = []
    units = {about["unit"] for about in next(iter(by_variant.values())).values()} - {"ratio"}
    distance = units.pop() if len(units) == 1 else "mixed"
    distance = "mm, or px where the spacing is unknown" if distance == "mixed" else distance
    for metric, about in next(iter(by_variant.values())).items():
        for unit in list(about.get("by_unit", {})) or [None]:
            cells = [_of_unit(metrics[metric], unit) for metrics in by_variant.values()]
            row = [
                _metric_name(metric, cells[0], summary["nsd_tolerance"], distance),
                *(interval(one) for one in cells),
            ]
            if paired:
                gain = _of_unit(paired[metric], unit)
                row += [
                    interval(gain, "mean_difference", signed=True),
                    f"{gain['a_better']} / {gain['b_better']} / {gain['tied']}",
                ]
            rows.append(row)
    return table(head, rows)


def _of_unit(values: Mapping[str, Any], unit: str | None) -> Mapping[str, Any]:
    if unit is None:
        return values
    about = {key: values[key] for key in ("display_name", "higher_is_better")}
    return {**about, **values["by_unit"][unit]}


def _metric_name(metric: str, about: Mapping[str, Any], tolerance: float, distance: str) -> str:
    better = "higher is better" if about["higher_is_better"] else "lower is better"
    unit = about["unit"]
    extra = f"at {tolerance:g} {distance}, " if metric == "nsd" else ""
    extra += f"{unit}, " if unit != "ratio" else ""
    return f"{about['display_name']} ({extra}{better})"


def _emptiness(summary: Mapping[str, Any], variants: Sequence[str]) -> list[str]:
    # Of the metrics that this evaluation has; those of the probability need no rule.
    metrics = summary[variants[0]]["metrics"].values()
    best = ", ".join(about["display_name"] for about in metrics if about["higher_is_better"])
    rows = [
        [meaning, *(str(summary[name]["emptiness"][kind]) for name in variants), rule.format(best=best)]
        for kind, meaning, rule in _EMPTINESS
    ]
    return [
        "## Empty masks",
        "",
        *table(["masks", *(_NAMES[name] for name in variants), "scored as"], rows),
    ]


def _words(summary: Mapping[str, Any]) -> list[str]:
    prompts = summary["prompts"]
    level = prompts["level"]
    if prompts["leaks"]:
        leak = (
            f"**Prompts of level {level} may have been drawn from the true mask**: they tell the model part of the answer, "
            "and the scores flatter. Level p1 (the class name) does not."
        )
    else:
        leak = f"Prompts of level {level} tell no shape, size, number or place drawn from the true mask."
    count = prompts["reveal_emptiness"]
    if count:
        leak += (
            f' In {plural(count, "case")} the prompt speaks of absence, such as "no ..."; the mask of '
            f"{prompts['reveal_emptiness_truly_empty']} of them is empty. Such words give the answer without the image."
        )
    examples = ", ".join(code(text) if text else "the empty prompt" for text in prompts["examples"])
    more = ", and others" if prompts["different"] > len(prompts["examples"]) else ""
    lines = ["## Prompts", "", leak, "", f"{plural(prompts['different'], 'different prompt')}: {examples}{more}."]
    training = summary.get("training_cases")
    if training and summary["split"] != "train" and training["seen_in_training"]:
        lines += [
            "",
            f"**{plural(training['seen_in_training'], 'case')} of this split were trained on**: "
            + ("it holds all cases" if summary["split"] == "all" else "the data has changed since training")
            + ", and the scores flatter.",
        ]
    elif training and (before := summary.get("trained_on_before")):
        lines += [
            "",
            f"**{plural(before, 'case')} of this split were trained on by the adapter that training began from**, and the "
            "scores flatter.",
        ]
    elif training and (training["new"] or training["gone"]):
        lines += [
            "",
            f"Since training, {plural(training['new'], 'case')} came to this split and {training['gone']} left it.",
        ]
    elif seen := summary.get("trained_on"):
        before = summary.get("trained_on_before") or 0
        whose = f", {before} of them by the adapter that training began from" if before else ""
        lines += ["", f"**{plural(seen, 'case')} of this data were trained on**{whose}, and the scores flatter."]
    if training and (copies := training.get("copies_of_training")):
        lines += [
            "",
            f"**{plural(copies, 'case')} of this split {'shows' if copies == 1 else 'show'} an image that was trained on under another name**, and the scores "
            "flatter; `vlsm data check` lists the copies.",
        ]
    if summary.get("trained_on_known") is False and summary["split"] != "train":
        lines += [
            "",
            "What the adapter was trained on, or the one that training began from, was not all at hand: it may have seen "
            f"{'more' if _seen(summary) else 'some'} of these cases.",
        ]
    return lines


def _seen(summary: Mapping[str, Any]) -> bool:
    training = summary.get("training_cases") or {}
    own = training.get("seen_in_training") or training.get("copies_of_training")
    return bool(own or summary.get("trained_on") or summary.get("trained_on_before"))


def _pictures(summary: Mapping[str, Any], variants: Sequence[str]) -> list[str]:
    if not summary["pictures"]:
        return []
    lines = [
        "## Pictures",
        "",
        f"Best, median and worst case by the {_NAMES[variants[0]]}'s Dice, of those with something to find. The truth is the "
        "yellow line, a prediction the blue area."
        if any(picture["truth_area"] for picture in summary["pictures"])
        else "No case has anything to find. A prediction is the blue area.",
    ]
    for picture in summary["pictures"]:
        scores = ", ".join(f"{_NAMES[name]} Dice {value:.3f}" for name, value in picture["dice"].items())
        empty = "; the true mask is empty" if not picture["truth_area"] else ""
        lines += [
            "",
            f"{_RANKS[picture['rank']]}: {code(picture['case_id'])}, {scores}{empty}",
            "",
            f"![{_RANKS[picture['rank']]} case]({picture['file']})",
        ]
    return lines


def _skipped(skipped: Sequence[Mapping[str, str]]) -> list[str]:
    if not skipped:
        return []
    rows = [[cell(case["case_id"]), cell(case["reason"])] for case in skipped]
    return [
        "## Cases left out",
        "",
        f"{plural(len(skipped), 'case')} of the data (all splits) could not be used and are in no score.",
        "",
        *table(["case", "why"], rows),
    ]


def _provenance(summary: Mapping[str, Any]) -> list[str]:
    base, adapter = summary["base"], summary["trained_adapter"]
    rows = [
        ["command", code(summary["command"])],
        ["data", f"{code(summary['data']['path'])}, split {summary['split']}, prompt level {summary['level']}"],
        *([["cases", cell(summary["data"]["division"])]] if summary["data"].get("division") else []),
        ["base model", f"{code(base['id'])} ({base['family']}), SHA-256 {code(base['sha256'])}"],
        ["input", f"{' x '.join(map(str, base['preprocessing']['size']))} pixels"],
    ]
    if adapter:
        settings = ", ".join(f"{key}={value}" for key, value in adapter["settings"].items())
        rows.append(["adapter", cell(f"{adapter['method']}: {settings}")])
    rows += [
        ["threshold", cell(", ".join(filter(None, (f"{summary['threshold']:g}", summary.get("threshold_origin")))))],
        ["scoring took", f"{summary['seconds']:.1f} s on {summary['device']}"],
        ["versions", cell(", ".join(f"{name} {number}" for name, number in summary["versions"].items()))],
    ]
    return ["## How this was made", "", *table(["", ""], rows)]


# -- learning curve ------------------------------------------------------------------------------------------------------


def _learning_curve(folder: EvaluationFolder, summary: Mapping[str, Any]) -> str | None:
    """Draw the run's ``metrics.csv`` if it is there; the file name beside the report, or None."""
    places = [folder.path.parent.parent, *([Path(summary["run"])] if summary.get("run") else [])]
    metrics = next((place / "metrics.csv" for place in places if (place / "metrics.csv").is_file()), None)
    if metrics is None or not summary.get("run"):
        return None
    try:
        with metrics.open(encoding="utf-8", newline="") as handle:
            rows = list(csv.DictReader(handle))
        epochs = [float(row["epoch"]) for row in rows]
        series = {
            name: [float(row[column]) if row.get(column) else None for row in rows]
            for column, name in (("train_loss", "training loss"), ("val_loss", "validation loss"), ("val_dice", "Dice"))
            if rows and column in rows[0]
        }
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return None  # the scores stand without it
    if not epochs or not series:
        return None
    files.write_text(folder.curve_file, line_chart("Training", "epoch", epochs, series))
    return f"{folder.images.name}/{folder.curve_file.name}"
