"""What is known of an adapter from its folder and its run: for the card, and nothing that is not on disk."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlsm_adapter.adapters.folder import CONFIG_NAME, WEIGHTS_NAME, AdapterManifest, read_manifest, read_weights
from vlsm_adapter.config import RunConfig
from vlsm_adapter.errors import AdapterError, UserError
from vlsm_adapter.evaluation_folder import EvaluationFolder
from vlsm_adapter.predict import adapter_folder
from vlsm_adapter.resume_from import weights_hash
from vlsm_adapter.run_folder import RunFolder

_SCORES = ("val_loss", "val_dice")  # columns of ``metrics.csv``
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the adapter, read off its ``summary.json``.

    Attributes:
        data, split, level: what was asked, and how.
        division: how the data was divided, in words; empty where as the data says.
        threshold: probability above which a pixel is foreground; ``own_threshold`` that of the adapter now.
        precision: of the model's answers, ``"fp32"`` or what was converted: ``"int8: 64 of 66 linear maps ..."``.
        nsd_tolerance: in mm where the spacing is known, else in pixels.
        cases: distinct cases; ``prompts`` different texts; ``left_out`` unusable cases.
        resampled: ``"case"`` or ``"group"``; ``confidence`` coverage of the intervals.
        leaks: the words were drawn from the ground truth.
        seen: cases that were trained on; None where none was found, but not all that was trained on could be compared.
        own_data: the data is that of the training, or shares cases with it.
        base_parameters: of the base model.
        metrics: metric to its statistics, as ``metrics.summarise`` gives them; ``zero_shot`` those of the base model on the
            same cases; ``paired`` metric to the paired difference (``metrics.paired_difference``). Empty where not known.
    """

    data: str
    split: str
    level: str
    division: str
    threshold: float
    precision: str
    nsd_tolerance: float
    cases: int
    prompts: int
    left_out: int
    resampled: str
    confidence: float
    leaks: bool
    seen: int | None
    own_data: bool
    base_parameters: int | None
    metrics: Mapping[str, Mapping[str, Any]]
    zero_shot: Mapping[str, Mapping[str, Any]]
    paired: Mapping[str, Mapping[str, Any]]
    own_threshold: float

    @property
    def other_threshold(self) -> bool:
        """Whether it was made with another threshold than the adapter has now, e.g. before it was calibrated."""
        return not math.isclose(self.threshold, self.own_threshold, abs_tol=1e-6)

    @property
    def lowered(self) -> str:
        """The precision in a word where it is not float32 (``"int8"``), else empty."""
        name = self.precision.partition(":")[0]
        return "" if name == "fp32" else name

    @property
    def held_out(self) -> bool:
        """Whether the scores speak for cases never seen, asked with words that do not flatter."""
        return self.split in ("test", "all") and not self.leaks and self.seen == 0


@dataclass(frozen=True)
class Facts:
    """All that is known.

    Attributes:
        folder: the adapter folder; ``manifest`` what it says; ``raw`` its JSON as it stands.
        parameters: numbers in the weights, running statistics apart.
        run: the run it comes from, where it lies in one; ``config`` and ``environment`` of that.
        epochs: trained; ``seconds`` of training steps in them; ``best`` the epoch that was kept.
        evaluations: of these weights.
        left_out: evaluations that are not used, and why.
    """

    folder: Path
    manifest: AdapterManifest
    raw: dict[str, Any]
    parameters: int
    run: RunFolder | None = None
    config: RunConfig | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    epochs: int | None = None
    seconds: float | None = None
    best: int | None = None
    evaluations: tuple[Evaluation, ...] = ()
    left_out: tuple[str, ...] = ()


def gather(path: str | Path) -> Facts:
    """Read an adapter folder, and the run around it if there is one.

    Args:
        path: a run folder, or an adapter folder (``RUN/adapter`` stands for the run).

    Raises:
        AdapterError: there is no adapter, or it is damaged.
        UserError: a file of the run or of an evaluation is damaged.
    """
    folder = adapter_folder(path)
    manifest = read_manifest(folder)
    raw = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    weights = read_weights(folder / WEIGHTS_NAME)
    parameters = sum(t.numel() for key, t in weights.items() if key.rpartition(".")[2] not in _STATISTICS)
    run = RunFolder(folder.resolve().parent)
    if folder.resolve().name != run.adapter.name or not run.config_file.is_file():
        return Facts(folder, manifest, raw, parameters)
    config = run.config()
    if config.adapter.method != manifest.config.method:
        raise AdapterError(
            f"{folder}: an adapter of '{manifest.config.method}' in a run of '{config.adapter.method}': the folder was "
            "replaced; give the adapter folder from another place"
        )
    history = _history(run)
    evaluations, left_out = _evaluations(run, manifest)
    return Facts(
        folder,
        manifest,
        raw,
        parameters,
        run=run,
        config=config,
        environment=_json(run.environment_file) if run.environment_file.is_file() else {},
        epochs=len(history) or None,
        seconds=sum(row["seconds"] for row in history) if history else None,
        best=_best(history, manifest),
        evaluations=tuple(evaluations),
        left_out=tuple(left_out),
    )


def _history(run: RunFolder) -> list[dict[str, float]]:
    if not run.metrics_file.is_file():
        return []
    try:
        with run.metrics_file.open(encoding="utf-8", newline="") as handle:
            # Scores are empty where an epoch was not validated; such a row has none.
            return [
                {key: float(value) for key, value in row.items() if value or key not in _SCORES}
                for row in csv.DictReader(handle)
            ]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{run.metrics_file}: damaged ({error}); restore it, or remove it to go without") from error


def _best(history: list[dict[str, float]], manifest: AdapterManifest) -> int | None:
    """The epoch whose validation Dice the adapter carries; 0 where no epoch does, since none was better than its start."""
    dice = manifest.info.scores.get("validation Dice")
    if not history or dice is None:
        return None
    return next(
        (int(row["epoch"]) for row in history if row.get("val_dice") == dice), 0 if manifest.info.parent else None
    )


def _evaluations(run: RunFolder, manifest: AdapterManifest) -> tuple[list[Evaluation], list[str]]:
    found: list[Evaluation] = []
    left_out: list[str] = []
    weights = weights_hash(run.adapter)
    for file in sorted(run.evaluation.glob("*/summary.json")):
        summary = EvaluationFolder(file.parent).summary()
        if "adapter" not in summary or summary.get("base", {}).get("sha256") != manifest.base_hash:
            left_out.append(f"{file.parent}: of another model")
        elif why := _of_other_weights(summary, file, run, weights):
            left_out.append(f"{file.parent}: {why}; run 'vlsm evaluate' again to have it in the card")
        else:
            try:
                compared = _compared_before(summary, run)
                found.append(_evaluation(summary, run.config().data.path, compared, manifest.info.threshold))
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{file}: damaged ({error!r}); run 'vlsm evaluate' again") from error
    return found, left_out


def _of_other_weights(summary: Mapping[str, Any], file: Path, run: RunFolder, weights: str) -> str:
    """What tells that an evaluation was made of other weights than the adapter's now; empty where nothing does."""
    evaluated = (summary.get("trained_adapter") or {}).get("sha256")
    if evaluated is not None:
        return "" if evaluated == weights else "of other weights"
    # Of an earlier version, which did not say of which weights; a copy of a run may have lost the times.
    older = file.stat().st_mtime < (run.adapter / WEIGHTS_NAME).stat().st_mtime
    return "older than the weights" if older else ""


def _compared_before(summary: Mapping[str, Any], run: RunFolder) -> bool:
    """Whether an evaluation that does not say it itself (of an earlier version) counted all that was trained on.

    Cases of the run's own data were not compared with what the adapter had seen that training began from.
    """
    if run.config().adapter.resume_from is None:
        return True
    return summary.get("training_cases") is None and isinstance(run.data().get("parent_images"), list)


def _evaluation(
    summary: Mapping[str, Any], own: str, compared: bool = True, threshold: float | None = None
) -> Evaluation:
    """Of a summary.

    Args:
        own: data folder of the run.
        compared: whether all that was trained on was compared, where the summary does not say it.
        threshold: the adapter's; by default the summary's.
    """
    adapter, data = summary["adapter"], summary["data"]
    training, elsewhere = summary.get("training_cases"), summary.get("trained_on")
    before = int(summary.get("trained_on_before") or 0)
    seen = (
        elsewhere if training is None else training["seen_in_training"] + training.get("copies_of_training", 0) + before
    )
    known = summary.get("trained_on_known")
    for about in adapter["metrics"].values():
        _ = about["display_name"], about["unit"], about["mean"], about["ci_low"], about["ci_high"]
    return Evaluation(
        data=str(data["name"] or Path(data["path"]).name),
        split=str(summary["split"]),
        level=str(summary["level"]),
        division=str(data.get("division") or ""),
        threshold=float(summary["threshold"]),
        precision=str(summary.get("precision") or "fp32"),
        nsd_tolerance=float(summary["nsd_tolerance"]),
        cases=int(adapter["n_cases"]),
        prompts=int(summary["prompts"]["different"]),
        left_out=len(summary["skipped"]),
        resampled=str(adapter["bootstrap"]["resampled"]),
        confidence=float(adapter["bootstrap"]["confidence"]),
        leaks=bool(summary["prompts"]["leaks"]),
        seen=int(seen) if seen or (seen == 0 and (compared if known is None else known)) else None,
        own_data=training is not None or bool(seen) or Path(data["path"]).resolve() == Path(own).resolve(),
        base_parameters=summary["base"].get("parameters"),
        metrics=adapter["metrics"],
        zero_shot=summary.get("zero_shot", {}).get("metrics", {}),
        paired=summary.get("paired_difference", {}),
        own_threshold=float(summary["threshold"] if threshold is None else threshold),
    )


def _json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: damaged ({error}); restore it, or remove it to go without") from error
    return values if isinstance(values, dict) else {}
