"""Whether what lies on disk is what the study asks for now: configuration and cases of runs and of trials."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlsm_adapter.adapters.folder import CONFIG_NAME
from vlsm_adapter.config import RunConfig
from vlsm_adapter.errors import UserError, one_line
from vlsm_adapter.evaluation_folder import EvaluationFolder, read_scores
from vlsm_adapter.models import hash_on_disk
from vlsm_adapter.study.folder import CellFolder
from vlsm_adapter.study.grid import differences


class Comparison:
    """Whether data sets still hold the cases that runs recorded, and models their weights; each is read once."""

    def __init__(self) -> None:
        self._read: dict[str, set[tuple[str, str]] | str] = {}
        self._hashes: dict[str, str | None] = {}

    def same_base(self, recorded: str | None, name: str) -> bool | None:
        """Whether model ``name`` has the weights of hash ``recorded``; None where one of the two is not known."""
        if recorded is None:
            return None
        if name not in self._hashes:
            self._hashes[name] = hash_on_disk(name)
        now = self._hashes[name]
        return None if now is None else now == recorded

    def differs(self, recorded: Mapping[str, Any], config: RunConfig) -> str | None:
        """What differs, or None.

        Args:
            recorded: ``splits``, split to case ids (of the splits that it names), and ``skipped`` as in ``data.json`` of a run.
                Without splits there is nothing to compare.
            config: of the run now.
        """
        then = recorded.get("splits")
        if not isinstance(then, dict):
            return None
        now = self._cases(config)
        if isinstance(now, str):
            return now
        left_out = {case.get("case_id") for case in recorded.get("skipped", ()) if isinstance(case, dict)}
        before = {(str(split), str(case)) for split, ids in then.items() for case in ids}
        present = {(split, case) for split, case in now if split in then}
        odd = sorted((case, split) for split, case in present ^ before if case not in left_out)
        if not odd:
            return None
        case, split = odd[0]
        return f"{len(odd)} differ, the first is {case} of {split}"

    def _cases(self, config: RunConfig) -> set[tuple[str, str]] | str:
        """Split and id of all cases, or why they cannot be read."""
        from vlsm_adapter.resume_from import cases_for

        data = config.data
        key = repr((data.path, data.val_path, data.prompt, data.division()))
        if key not in self._read:
            lenient = dataclasses.replace(config, data=dataclasses.replace(data, skip_bad=True))
            try:
                self._read[key] = {(str(record.split), record.case_id) for record in cases_for(lenient).all}
            except UserError as error:
                self._read[key] = one_line(error)
        return self._read[key]


def drift(folder: CellFolder, config: RunConfig, comparison: Comparison, *, trains: bool = True) -> str | None:
    """Why the run on disk is not the one that is asked for now; None where it is, or there is none.

    Data that is not on this machine is taken to be what it was.

    Args:
        folder: of the run.
        config: as the study has it now.
        trains: whether the run trains: what was read is in its ``data.json``, else in the scores of its evaluations.
    """
    if not folder.run.config_file.is_file():
        return None
    try:
        then = folder.run.config()
    except UserError as error:
        return f"{folder.path}: its configuration cannot be read ({error}); remove the folder to run it again"
    same_base = comparison.same_base(_base_of(folder), config.model.name)
    if changed := differences(_as_trained(folder, then, config), config, same_base=same_base):
        return (
            f"{folder.path}: {'; '.join(changed[:3])}{' ...' if len(changed) > 3 else ''}: "
            "change it back, give the changed part a new name in the study, or remove the folder to run it again"
        )
    data = config.data
    if not all(Path(path).expanduser().exists() for path in (data.path, data.val_path) if path):
        return None
    try:
        odd = comparison.differs(folder.run.data() if trains else _evaluated(folder), config)
    except UserError as error:
        return f"{folder.path}: {one_line(error)}"
    if odd:
        return (
            f"{folder.path}: made from other cases than {data.path} holds now ({odd}): bring the data back, give it a new "
            "name in the study, or remove the folder to run it again"
        )
    return None


def _as_trained(folder: CellFolder, then: RunConfig, now: RunConfig) -> RunConfig:
    """``then`` with the arithmetic that ``auto`` became in the run, where the study names one by now."""
    used = folder.run.precision()
    if used is None or then.train.precision != "auto" or now.train.precision == "auto":
        return then
    return dataclasses.replace(then, train=dataclasses.replace(then.train, precision=used))


def _base_of(folder: CellFolder) -> str | None:
    """Hash of the base model that the run was made with, by its adapter, else by an evaluation; None before both."""
    for file in (folder.run.adapter / CONFIG_NAME, *sorted(folder.run.evaluation.glob("*-*/summary.json"))):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            found = json.loads(file.read_text(encoding="utf-8"))["base"]["sha256"]
            if isinstance(found, str):
                return found
    return None


def _evaluated(folder: CellFolder) -> dict[str, Any]:
    """Split to ids of the cases that were scored."""
    splits: dict[str, list[str]] = {}
    skipped: list[Any] = []
    for place in sorted(folder.run.evaluation.glob("*-*/summary.json")):
        found = EvaluationFolder(place.parent)
        try:
            summary = found.summary()
            scores, _ = read_scores(found.zero_shot_file)
        except UserError:  # it will be evaluated again
            continue
        if (split := str(summary.get("split"))) in ("train", "val", "test"):
            splits.setdefault(split, [score.case_id for score in scores])
            skipped += summary.get("skipped") or ()
    return {"splits": splits, "skipped": skipped} if splits else {}
