"""Several evaluations of the same cases side by side: paired differences, tests, corrected p-values.

Made from ``cases.csv`` and ``summary.json`` alone, never from a model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any, Literal

from vlsm_adapter import files
from vlsm_adapter.errors import ConfigError, UserError, nearest
from vlsm_adapter.evaluation_folder import EvaluationFolder, read_scores
from vlsm_adapter.markdown import cell, code, interval, plural, table
from vlsm_adapter.metrics import METRICS, compare_runs, summarise
from vlsm_adapter.metrics.aggregate import FEWEST_RESAMPLED
from vlsm_adapter.types import CaseScore

PAIRS = ("first", "all")


_TITLE = "# Comparison of"


@dataclass(frozen=True)
class Entry:
    """One evaluation to compare.

    Attributes:
        path: the table of its scores.
        scores: per case.
        groups: case id to group.
        about: its ``summary.json``; empty where a table stands alone.
    """

    path: Path
    scores: list[CaseScore]
    groups: dict[str, str | None]
    about: Mapping[str, Any] = field(default_factory=dict)


def compare_evaluations(
    paths: Sequence[str | Path],
    *,
    metrics: Sequence[str] | None = None,
    pairs: str = "first",
    common: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare evaluations of the same cases.

    Args:
        paths: evaluation folders (of these the adapter's scores, or zero-shot where that is all there is), run folders with one
            evaluation, or tables such as ``zero_shot_cases.csv``; the first is the reference.
        metrics: names; by default those that all have.
        pairs: ``"first"`` compares every run with the first, ``"all"`` each with each.
        common: compare the cases that all have, instead of refusing evaluations of different cases.
        seed: of bootstrap and permutations.

    Returns:
        What ``metrics.compare_runs`` gives, with ``entries`` (label, path, protocol, statistics of each run), ``left_out`` (cases
        not compared, by run) and ``notes``, texts to heed; valid JSON.

    Raises:
        UserError: one is no evaluation, they are of different cases, or groups, or a metric is missing.
        ConfigError: an unknown metric or choice of pairs.
    """
    if pairs not in PAIRS:
        raise ConfigError(f"pairs '{pairs}': {nearest(pairs, PAIRS)}")
    for name in metrics or ():
        METRICS.get(name)
    entries = [open_entry(Path(path)) for path in paths]
    labels = _labels([entry.path for entry in entries])
    runs = dict(zip(labels, entries, strict=True))
    scores = {label: entry.scores for label, entry in runs.items()}
    left_out = dict.fromkeys(labels, 0)
    cases = {name: {score.case_id for score in found} for name, found in scores.items()}
    if not common:
        for (one, has), (other, needs) in permutations(cases.items(), 2):
            if lacking := needs - has:
                raise UserError(
                    f"{one} lacks {len(lacking)} of the {len(needs)} cases of {other}, the first is '{min(lacking)}': "
                    "evaluate both on the same split"
                    + ("; --common compares those that all have" if set.intersection(*cases.values()) else "")
                )
    else:
        shared = set.intersection(*cases.values())
        if not shared:
            raise UserError(f"{entries[0].path} and the others have no case in common: nothing can be compared")
        left_out = {name: sum(score.case_id not in shared for score in found) for name, found in scores.items()}
        scores = {name: [score for score in found if score.case_id in shared] for name, found in scores.items()}
    groups = _groups(runs, {score.case_id for found in scores.values() for score in found})
    notes, dropped = _notes(runs)
    chosen = list(metrics) if metrics is not None else _common_metrics(scores, dropped)
    if not chosen:
        raise UserError("the runs have no metric in common that can be compared: evaluate them again")
    for name in set(chosen) & set(dropped):
        raise UserError(f"metric '{name}' cannot be compared: {dropped[name]}")
    by_group = groups if any(group is not None for group in groups.values()) else None
    kind: Literal["first", "all"] = "all" if pairs == "all" else "first"
    result = compare_runs(scores, metrics=chosen, groups=by_group, pairs=kind, seed=seed)
    described = {
        name: {
            "path": str(entry.path),
            "method": _method(entry),
            **{key: entry.about.get(key) for key in ("split", "level", "threshold", "nsd_tolerance")},
            **summarise(scores[name], groups=by_group, seed=seed),
        }
        for name, entry in runs.items()
    }
    return {**result, "entries": described, "left_out": left_out, "notes": notes}


def open_entry(path: Path) -> Entry:
    """One evaluation: its folder, a run with one evaluation, or a table of scores.

    Raises:
        UserError: none of these.
    """
    if path.suffix == ".csv":
        folder = EvaluationFolder(path.parent)
        about = folder.summary() if folder.summary_file.is_file() else {}
        return Entry(path, *read_scores(path), about)
    inside = sorted(file.parent for file in (path / "evaluation").glob("*/summary.json"))
    if not (path / "summary.json").is_file() and inside:
        if len(inside) > 1:
            listed = ", ".join(folder.name for folder in inside)
            raise UserError(f"{path}: holds several evaluations ({listed}): name one, e.g. {inside[0]}")
        path = inside[0]
    folder = EvaluationFolder(path)
    about = folder.summary()
    file = folder.cases_file if folder.cases_file.is_file() else folder.zero_shot_file
    return Entry(file, *read_scores(file), about)


def write_comparison(result: Mapping[str, Any], out: str | Path) -> tuple[Path, Path]:
    """Write the comparison as Markdown to ``out`` and as JSON beside it; both paths.

    Raises:
        UserError: ``out`` does not end in ``.md``, is there and no comparison, or cannot be written.
    """
    page = Path(out)
    if page.suffix.lower() != ".md":
        raise UserError(f"{out}: the comparison is Markdown; give a name that ends in .md")
    numbers = page.with_suffix(".json")
    for file, start in ((page, _TITLE), (numbers, "{")):
        # An earlier comparison is replaced; a README of the user is not.
        if file.exists() and not (page.is_file() and _begins(page, _TITLE) and _begins(file, start)):
            raise UserError(f"{file}: is there already and no comparison; choose another --out")
    files.write_json(numbers, result)
    files.write_text(page, render_comparison(result))
    return page, numbers


# -- checks --------------------------------------------------------------------------------------------------------------


def _begins(file: Path, start: str) -> bool:
    try:
        with file.open(encoding="utf-8") as handle:
            return handle.read(len(start)) == start
    except (OSError, UnicodeDecodeError):
        return False


def _labels(paths: Sequence[Path]) -> list[str]:
    """Names as short as tells them apart: of the runs, else of their evaluations, else more and more of their paths."""
    tables = [path.resolve() for path in paths]
    if len(set(tables)) < len(tables):
        twice = next(file for file, count in Counter(tables).items() if count > 1)
        raise UserError(f"{twice}: given twice; a run is compared with others")
    places = [[part for part in file.parent.parts[1:] if part != "evaluation"] for file in tables]
    variants = ["zero-shot" if file.name == "zero_shot_cases.csv" else file.stem for file in tables]
    in_run = [file.parent.parent.name == "evaluation" for file in tables]
    for length in range(max(map(len, places)) + 1):
        names = []
        for parts, variant, inside in zip(places, variants, in_run, strict=True):
            kept = parts[-2:-1] if inside and length == 0 else parts[-max(1, length) :]
            names.append("/".join(kept) + ("" if variant == "cases" else f" {variant}"))
        if len(set(names)) == len(names):
            return names
    return [str(file) for file in tables]


def _groups(runs: Mapping[str, Entry], compared: set[str]) -> dict[str, str | None]:
    """Case id to group, the same in all runs."""
    first, *others = runs.items()
    for name, entry in others:
        for case in sorted(compared & entry.groups.keys() & first[1].groups.keys()):
            if entry.groups[case] != first[1].groups[case]:
                raise UserError(
                    f"case '{case}' is of group '{entry.groups[case]}' in {name} and of '{first[1].groups[case]}' in {first[0]}: "
                    "evaluate both on the same data"
                )
    return {case: group for case, group in first[1].groups.items() if case in compared}


def _notes(runs: Mapping[str, Entry]) -> tuple[list[str], dict[str, str]]:
    """What differs between the runs beside the model; and metrics that cannot be compared for it, with the reason."""
    notes, dropped = [], {}
    what = {"level": "prompt levels", "threshold": "thresholds", "split": "splits"}
    for key, words in what.items():
        found = {str(entry.about[key]) for entry in runs.values() if entry.about.get(key) is not None}
        if len(found) > 1:
            notes.append(
                f"The runs differ in their {words} ({', '.join(sorted(found))}): the differences are theirs too."
            )
    tolerances = {entry.about["nsd_tolerance"] for entry in runs.values() if "nsd_tolerance" in entry.about}
    if len(tolerances) > 1:
        listed = ", ".join(f"{value:g}" for value in sorted(tolerances))
        dropped["nsd"] = f"NSD was measured at different tolerances ({listed})"
        notes.append(f"NSD is left out: it was measured at different tolerances ({listed}).")
    return notes, dropped


def _common_metrics(scores: Mapping[str, Sequence[CaseScore]], dropped: Mapping[str, str]) -> list[str]:
    sets = [set(score.values) for found in scores.values() for score in found]
    shared = set.intersection(*sets) if sets else set()
    return [name for name in METRICS.names() if name in shared and name not in dropped]


def _method(entry: Entry) -> str:
    adapter = entry.about.get("trained_adapter")
    if entry.path.name.startswith("zero_shot") or not isinstance(adapter, Mapping):
        return "zero-shot" if entry.about else "not known"
    return str(adapter.get("method", "not known"))


# -- Markdown ------------------------------------------------------------------------------------------------------------


def render_comparison(result: Mapping[str, Any]) -> str:
    """The comparison in Markdown."""
    entries = result["entries"]
    sections = [
        [f"{_TITLE} {plural(len(entries), 'run')} on {plural(result['n_cases'], 'case')}"],
        _runs(entries),
        [f"**{note}**" for note in result["notes"]],
        _left_out(result["left_out"]),
        _differences(result),
        _how(result),
    ]
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def _runs(entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    head = ["run", "method", "words", "Dice", "both empty", "missed", "false alarms"]
    rows = []
    for name, about in entries.items():
        dice = about["metrics"].get("dice")
        empty = about["emptiness"]
        rows.append(
            [
                cell(name),
                cell(about["method"]),
                cell(about["level"] or "not known"),
                interval(dice) if dice else "-",
                *(str(empty[kind]) for kind in ("both", "missed", "false_alarm")),
            ]
        )
    return table(head, rows)


def _left_out(left_out: Mapping[str, int]) -> list[str]:
    if not any(left_out.values()):
        return []
    parts = ", ".join(f"{plural(count, 'score')} of {code(name)}" for name, count in left_out.items() if count)
    return [f"Only cases that all runs have are compared; left out: {parts}."]


def _differences(result: Mapping[str, Any]) -> list[str]:
    head = ["metric", "run", "against", "difference", "better / worse / equal"]
    head += ["p (permutation)", "Holm", "BH", "p (Wilcoxon)", "Holm", "BH"]
    rows = []
    for row in result["rows"]:
        better = "higher is better" if row["higher_is_better"] else "lower is better"
        unit = "" if row["unit"] == "ratio" else f"{row['unit']}, "
        rows.append(
            [
                f"{row['display_name']} ({unit}{better})",
                cell(row["run"]),
                cell(row["reference"]),
                interval(row, "mean_difference", signed=True),
                f"{row['a_better']} / {row['b_better']} / {row['tied']}",
                *(
                    _p(row[f"p_{test}{correction}"])
                    for test in ("sign_flip", "wilcoxon")
                    for correction in ("", "_holm", "_bh")
                ),
            ]
        )
    return ["## Paired differences", "", *table(head, rows)]


def _how(result: Mapping[str, Any]) -> list[str]:
    boot, tests = result["bootstrap"], result["tests"]
    unit = "groups (patients, videos)" if result["resampled"] == "group" else "cases"
    lines = [
        f"Difference: mean of run minus reference over the same cases [{boot['confidence']:.0%} interval: percentile "
        f"bootstrap, {boot['n_boot']} resamples of {unit}]. Permutation: the sign of the differences of whole {unit} is "
        f"changed at random ({tests['permutations']:,} times, or in every way where these are fewer). Wilcoxon: signed ranks "
        f"of the mean differences of {unit}. Both two-sided. Holm and Benjamini-Hochberg (BH) correct each test over the "
        f"{plural(tests['count'], 'row')} of this table: a Holm value below 0.05 stands with at most 5 % chance of any false "
        "claim in the table, a BH value below 0.05 with at most 5 % false ones expected among those claimed.",
    ]
    if result["n_groups"] < 6:
        lines.append(
            f"With {result['n_groups']} {unit} no p-value can be below 0.05: there are too few ways to change their signs."
        )
    if 1 < result["n_groups"] < FEWEST_RESAMPLED:
        lines.append(
            f"With {result['n_groups']} {unit} to resample these intervals are too narrow: they need some tens."
        )
    return lines


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"
