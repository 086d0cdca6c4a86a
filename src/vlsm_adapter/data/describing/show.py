"""What ``vlsm prompts`` prints: the prompts of a case with what was measured, and the tally of a data set."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence

from vlsm_adapter.data.describing.measure import NUMBERS, Words
from vlsm_adapter.data.describing.phrases import LEAK_FREE, LEVELS
from vlsm_adapter.data.describing.write import Described, Tally
from vlsm_adapter.data.prompts import RANDOM


def shown_prompts(case: Described, levels: Sequence[str]) -> str:
    """The case, what was measured, and a line for every text of the levels."""
    prompts = (
        f"  {level}{'      ' if level in LEAK_FREE else ' leaks'}  {text}"
        for level in levels
        for text in case.prompts.get(level, ())
    )
    return "\n".join([f"{case.record.case_id}: {_measured(case.words)}", *prompts])


def _measured(words: Words) -> str:
    if words.empty:
        return "empty mask"
    number = "?" if words.number is None else NUMBERS[words.number]
    said = {
        "number": number,
        "shape": words.shape or "?",
        "colour": words.colour or "?",
        "size": words.size or "?",
        "position": ", ".join(words.positions) or "?",
    }
    specks = f", {words.specks} speck{'' if words.specks == 1 else 's'} passed over" if words.specks else ""
    return ", ".join(f"{name} {word}" for name, word in said.items()) + specks


def told(
    tally: Tally, out: str | os.PathLike[str], *, levels: Sequence[str] = LEVELS[1:], skip_bad: bool = False
) -> Iterator[str]:
    """The lines that end the command; what comes next needs ``skip_bad`` too, where it left cases out."""
    described = ("p7", "p8", "p9")  # with a description of the class, which some classes may lack
    named = set(levels) & set(described)
    if set(tally.undescribed) >= tally.classes.keys():
        levels = [level for level in levels if level not in described]
    everywhere = [level for level in levels if not tally.undescribed or level not in described]
    yield from (f"  {line}" for line in tally.lines())
    if tally.empty:
        later = '; p5 and later say "no ..."' if set(levels) & {"p5", "p6", "p8", "p9"} else ""
        classes = " and ".join(level for level in levels if level in LEAK_FREE)
        free = f"; {classes} name{'' if ' and ' in classes else 's'} the class all the same" if classes else ""
        yield f"  empty masks: {tally.empty}{free}{later}"
    if tally.undescribed and named:
        names = ", ".join(tally.undescribed[:5]) + (", ..." if len(tally.undescribed) > 5 else "")
        yield f"  no description, so no p7, p8, p9: {names}; add it to a file for --classes"
    for case in tally.skipped:
        yield f"  left out: {case.reason}"
    free = " and ".join(level for level in levels if level in LEAK_FREE) or "none"
    yield f"prompts of {tally.cases} cases: {out} ({free} {'are' if ' and ' in free else 'is'} leak-free)"
    if not everywhere:  # nothing was made that every case could be asked
        return
    command = ["vlsm", "train", "--data", os.fspath(out), *_asked(everywhere)]
    yield f"next: {shlex.join([*command, *(['--skip-bad'] if skip_bad and tally.skipped else [])])}"


def _asked(levels: Sequence[str]) -> list[str]:
    """Options of ``vlsm train`` that ask for nothing but ``levels``."""
    training = RANDOM if len(levels) > 1 else levels[0]
    options = [] if training == "p1" else ["--level", training]
    return options if "p1" in levels else [*options, "--set", f"data.eval_level={levels[-1]}"]
