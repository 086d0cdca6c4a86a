"""Kvasir-SEG: polyps in colonoscopy, from Vestre Viken Health Trust (Jha et al. 2020)."""

from __future__ import annotations

from vlsm_adapter.data.archives import Tree
from vlsm_adapter.data.sources.base import Reading, Source, add
from vlsm_adapter.data.sources.folders import read_polyps

_LAYOUT = (
    "a folder images/ beside masks/ with files of the same names (Kvasir-SEG/images/*.jpg, Kvasir-SEG/masks/*.jpg)"
)


def _read(tree: Tree, variant: str) -> Reading:
    reading = read_polyps(tree, key="kvasir", title="Kvasir-SEG", layout=_LAYOUT, expected=1000)
    reading.release = "Kvasir-SEG"
    return reading


SOURCE = add(
    Source(
        name="kvasir_polyp",
        title="Kvasir-SEG",
        about="colonoscopy, polyps",
        licence="research and education only; anything else needs the owners' written permission",
        citation=(
            "D. Jha, P. H. Smedsrud, M. A. Riegler, P. Halvorsen, T. de Lange, D. Johansen, H. D. Johansen: "
            "Kvasir-SEG: A Segmented Polyp Dataset. MMM 2020. doi:10.1007/978-3-030-37734-2_37"
        ),
        homepage="https://datasets.simula.no/kvasir-seg/",
        cases=1000,
        images=1000,
        layout=_LAYOUT,
        read=_read,
        notes=("Masks are JPEG; they are made binary at half of the brightness.",),
    )
)
