"""One look for all figures: sizes of a two-column paper, a palette for colour-blind readers, a shape for every method.

The colours are those of Okabe and Ito (Color Universal Design, 2008) without the yellow, which does not stand out from
white. A method keeps colour, marker and line through all figures, and no two share all three.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from vlsm_adapter.errors import ConfigError
from vlsm_adapter.study_report.tables import Row, RowKey

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_Item = TypeVar("_Item")

#: Width of one column and of both, in inches.
COLUMN, PAGE = 3.5, 7.16
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    "#000000",
)
GREY, FAINT = "#6b6b6b", "#d9d9d9"
_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
_LINES = ("-", "--", ":", "-.")
FORMATS = ("svg", "pdf", "png")
_DPI = 300


@dataclass(frozen=True, slots=True)
class Look:
    """How a method is drawn."""

    colour: str
    marker: str
    line: str


def looks_of(rows: Sequence[Row]) -> dict[RowKey, Look]:
    """A look for every method, by its place in the tables."""
    return {
        row.key: Look(
            _COLOURS[index % len(_COLOURS)],
            _MARKERS[index % len(_MARKERS)],
            _LINES[(index // len(_COLOURS)) % len(_LINES)],
        )
        for index, row in enumerate(rows)
    }


def check_matplotlib() -> None:
    """Refuse to draw without matplotlib.

    Raises:
        ConfigError: it is not installed; the message says what to install.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "figures are left out: matplotlib is not installed: pip install 'vlsm-adapter[study]'"
        ) from error


@contextmanager
def style() -> Iterator[None]:
    """Draw and save inside of this; nothing of matplotlib's own settings is changed for others."""
    import matplotlib

    settings: dict[str, Any] = {
        "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture everywhere
        "font.size": 7,
        "axes.titlesize": 7.5,
        "axes.titleweight": "bold",
        "axes.labelsize": 7,
        "xtick.labelsize": 6.5,
        "ytick.labelsize": 6.5,
        "legend.fontsize": 6.5,
        "axes.linewidth": 0.6,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "xtick.minor.size": 1.5,
        "xtick.minor.width": 0.4,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": "#e6e6e6",
        "grid.linewidth": 0.5,
        "lines.linewidth": 1.1,
        "lines.markersize": 4.5,
        "legend.frameon": False,
        "legend.handlelength": 2.6,
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
        "text.parse_math": False,  # names are text, whatever signs they have
        "svg.fonttype": "path",
        "svg.hashsalt": "vlsm",  # the same file for the same numbers
        "pdf.fonttype": 42,  # TrueType: submission systems refuse Type 3
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*missing")  # a name in a script that the font lacks
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches; its parts are placed so that nothing is cut off."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # can measure texts; saving picks the canvas of each format
    return figure


def saved(figure: Figure, ending: str) -> bytes:
    """The figure as a file of one of `FORMATS`; equal figures give equal bytes."""
    if figure.get_layout_engine() is not None:  # finding the places takes longest, and once is enough
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    target = io.BytesIO()
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}[ending]
    figure.savefig(target, format=ending, dpi=_DPI, metadata=metadata)
    return target.getvalue()


def percent_range(values: Sequence[float], *, margin: float = 0.08) -> tuple[float, float]:
    """Ends of an axis in percent around ``values``, within 0 and 100 and at least 4 apart."""
    low, high = min(values), max(values)
    room = max((high - low) * margin, 0.5)
    low, high = low - room, high + room
    if high - low < 4:
        middle = (low + high) / 2
        low, high = middle - 2, middle + 2
    return max(0.0, low), min(100.0, high) if high <= 102 else high


def in_groups(items: Sequence[_Item], size: int = 6) -> list[list[_Item]]:
    """``items`` in groups of at most ``size``, as equal as can be: more lines than that cannot be told apart."""
    count = max(1, -(-len(items) // size))
    base, more = divmod(len(items), count)
    groups, start = [], 0
    for number in range(count):
        end = start + base + (number < more)
        groups.append(list(items[start:end]))
        start = end
    return groups
