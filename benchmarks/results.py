"""The table of ratios as text, JSON and plot, and into a page of the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlsm_adapter import files

MARKS = ("<!-- performance: begin, written by benchmarks/performance.py -->", "<!-- performance: end -->")


def write(found: dict[str, Any], out: Path, docs: Path | None = None) -> None:
    """Write ``performance.json``, ``.md``, ``.svg`` and ``.png`` to ``out``, and the table into ``docs``."""
    out.mkdir(parents=True, exist_ok=True)
    files.write_json(out / "performance.json", found)
    text = f"{table(found)}\n\n{about(found)}\n"
    files.write_text(out / "performance.md", text)
    if found["rows"]:
        plot(found, out)
    if docs is not None:
        put_between(docs, text.strip())


def put_between(page: Path, text: str, marks: tuple[str, str] = MARKS) -> None:
    """Put a text between the marks of a page, in place of what is there."""
    before, after = check_marks(page, marks)
    files.write_text(page, f"{before}{marks[0]}\n\n{text}\n\n{marks[1]}{after}")


def check_marks(page: Path, marks: tuple[str, str] = MARKS) -> tuple[str, str]:
    """What stands before and after the marks of ``page``.

    Raises:
        SystemExit: it cannot be read, or has no marks.
    """
    try:
        content = page.read_text(encoding="utf-8")
        before, rest = content.split(marks[0])
        _, after = rest.split(marks[1])
    except (OSError, ValueError):
        raise SystemExit(f"{page}: needs the lines '{marks[0]}' and '{marks[1]}', once each") from None
    return before, after


def table(found: dict[str, Any]) -> str:
    """A Markdown table."""
    lines = [
        "| what | bound | ratio | lowest to highest | this package | usual way | same results |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found["rows"]:
        bound = f"{'at least' if one['least'] else 'at most'} {_number(one['bound'])}"
        held = "" if one["holds"] else ", not held"
        spread = f"{_number(one['lowest'])} to {_number(one['highest'])}"
        same = {True: "yes", False: "**no**", None: ""}[one["measured"]["equal"]]
        values = f"{_number(one['ours'])} {one['unit']} | {_number(one['usual'])} {one['unit']}"
        ratio = f"**{_number(one['ratio'])}**{held}"
        lines.append(f"| {one['title']} | {bound} | {ratio} | {spread} | {values} | {same} |")
    lines += [f"| {name} | | failed: {reason.replace('|', '/')} | | | | |" for name, reason in found["failed"].items()]
    return "\n".join(lines)


def about(found: dict[str, Any]) -> str:
    """The machine and the command in a few lines."""
    machine = found["machine"]
    cpu = machine["processor"]
    has = ", ".join(name for name, there in cpu["instructions"].items() if there)
    gpus = "".join(f"; {one['name']}" for one in machine["accelerators"])
    memory = "" if machine["memory"]["total"] is None else f", {machine['memory']['total'] / 2**30:.0f} GiB memory"
    versions = ", ".join(f"{name} {machine['versions'].get(name, '?')}" for name in ("torch", "transformers", "python"))
    load = "" if cpu["load"] is None else f", load {cpu['load']:g} at the start"
    clock = " by processor time" if found["clock"] == "processor" else ""
    quick = " **Quick sizes: the ratios say nothing.**" if found["quick"] else ""
    return (
        f"{cpu['name']}, {cpu['usable']} usable cores ({has}){memory}{gpus}; {machine['threads']} threads{load}; "
        f"{versions}; {found['date']}, medians of {found['repeats']} repetitions in turn{clock}.{quick}\n"
        f"The command: `{found['command']}`."
    )


def line(one: dict[str, Any]) -> str:
    """A row in a line, for who waits."""
    return (
        f"{one['row']}: {_number(one['ratio'])} ({_number(one['lowest'])} to {_number(one['highest'])}), bound "
        f"{_number(one['bound'])}; {_number(one['ours'])} and {_number(one['usual'])} {one['unit']}; {one['seconds']:.0f} s"
    )


def plot(found: dict[str, Any], out: Path) -> None:
    """``performance.svg`` and ``.png``: how many times better each row is, its spread, and the bound, on a log scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    rows = found["rows"][::-1]
    figure, axes = pyplot.subplots(figsize=(9, 0.5 * len(rows) + 1.2), layout="constrained")
    for place, one in enumerate(rows):
        # Where less is better, the inverse: further right is always better.
        values = [one[key] if one["least"] else 1 / one[key] for key in ("ratio", "lowest", "highest", "bound")]
        better, low, high, bound = values[0], min(values[1:3]), max(values[1:3]), values[3]
        colour = "#2a7fb8" if one["holds"] else "#c8553d"
        axes.barh(place, better - 1, left=1, color=colour, height=0.6)
        axes.plot([low, high], [place, place], color="black", linewidth=1.2)
        axes.plot([bound, bound], [place - 0.4, place + 0.4], color="black", linestyle=":", linewidth=1.5)
        axes.annotate(f" {better:.3g}x", (max(better, high, 1), place), va="center", fontsize=9, annotation_clip=False)
    axes.set_xscale("log")
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_yticks(range(len(rows)), [one["title"] for one in rows], fontsize=9)
    axes.set_xlabel("times better than the usual way (dotted: the bound; line: lowest to highest)")
    axes.margins(x=0.15)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for ending in ("svg", "png"):
        with files.atomic_path(out / f"performance.{ending}") as temporary:
            figure.savefig(temporary, format=ending, dpi=150, metadata={"Date": None} if ending == "svg" else None)
    pyplot.close(figure)


def _number(value: float) -> str:
    """Three significant digits; large numbers whole."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
