"""CVC-300: the test part of EndoScene as it is passed around with polyp benchmarks (Vázquez et al. 2017)."""

from __future__ import annotations

from vlsm_adapter.data.archives import Tree
from vlsm_adapter.data.sources.base import Reading, Source, add
from vlsm_adapter.data.sources.folders import read_polyps

_LAYOUT = "a folder images/ beside masks/ with files of the same names (CVC-300/images/*.png, CVC-300/masks/*.png)"


def _read(tree: Tree, variant: str) -> Reading:
    reading = read_polyps(tree, key="cvc300", title="CVC-300", layout=_LAYOUT, expected=60)
    reading.release = "CVC-300, 60 test images"
    return reading


SOURCE = add(
    Source(
        name="cvc300_polyp",
        title="CVC-300 (EndoScene test images)",
        about="colonoscopy, polyps",
        licence="not stated with the test sets; EndoScene is given for research",
        citation=(
            "D. Vázquez, J. Bernal, F. J. Sánchez, G. Fernández-Esparrach, A. M. López, A. Romero, M. Drozdzal, "
            "A. Courville: A Benchmark for Endoluminal Scene Segmentation of Colonoscopy Images. Journal of Healthcare "
            "Engineering 2017. doi:10.1155/2017/4037190"
        ),
        homepage="https://github.com/DengPingFan/PraNet",
        cases=60,
        images=60,
        layout=_LAYOUT,
        read=_read,
        notes=("Frames of one video stand side by side in this set and no list says which: use it for tests only.",),
    )
)
