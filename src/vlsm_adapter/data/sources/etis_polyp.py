"""ETIS-Larib Polyp DB: frames of colonoscopy videos (Silva et al. 2014)."""

from __future__ import annotations

from vlsm_adapter.data.archives import Tree
from vlsm_adapter.data.sources.base import Reading, Source, add
from vlsm_adapter.data.sources.folders import folder_pairs, paired, read_polyps

_LAYOUT = (
    "a folder images/ beside masks/ with files of the same names (ETIS-LaribPolypDB/images/*.png, .../masks/*.png), or "
    "ETIS-LaribPolypDB/N.tif beside Ground Truth/pN.tif"
)


def _read(tree: Tree, variant: str) -> Reading:
    first = folder_pairs(tree, ("etis-laribpolypdb",), ("ground truth", "groundtruth"))
    if len(first) == 1:
        warnings: list[str] = []
        cases = paired(
            first[0][1],
            first[0][2],
            prompts={"p1": ("polyp",)},
            attributes={"class": "polyp"},
            warnings=warnings,
            mask_stems=lambda stem: (f"p{stem}", stem),
        )
        return Reading(cases, "ETIS-Larib, first release", 196, warnings)
    reading = read_polyps(tree, key="etis", title="ETIS-Larib Polyp DB", layout=_LAYOUT, expected=196)
    reading.release = "ETIS-Larib"
    return reading


SOURCE = add(
    Source(
        name="etis_polyp",
        title="ETIS-Larib Polyp DB",
        about="colonoscopy, polyps",
        licence="research only; images belong to Lariboisière Hospital (APHP), ground truth to ETIS laboratory; cite the paper",
        citation=(
            "J. Silva, A. Histace, O. Romain, X. Dray, B. Granado: Toward embedded detection of polyps in WCE images for early "
            "diagnosis of colorectal cancer. IJCARS 9(2), 2014. doi:10.1007/s11548-013-0926-3"
        ),
        homepage="https://polyp.grand-challenge.org/EtisLarib/",
        cases=196,
        images=196,
        layout=_LAYOUT,
        read=_read,
        notes=("Frames of 34 videos stand side by side in this set and no list says which: use it for tests only.",),
    )
)
