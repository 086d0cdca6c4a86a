"""CVC-ColonDB: frames of colonoscopy videos (Bernal et al. 2012; 380 frames since Tajbakhsh et al. 2016)."""

from __future__ import annotations

import re

from vlsm_adapter.data.archives import Tree, TreeFile
from vlsm_adapter.data.sources.base import Reading, Source, add
from vlsm_adapter.data.sources.folders import images_in, paired, read_polyps

_LAYOUT = (
    "a folder images/ beside masks/ with files of the same names (CVC-ColonDB/images/*.png, CVC-ColonDB/masks/*.png), "
    "or one folder with 1.tiff, p1.tiff, ..."
)
_FRAME, _MASK = re.compile(r"^\d+$"), re.compile(r"^p\d+$", re.IGNORECASE)


def _read(tree: Tree, variant: str) -> Reading:
    for files in tree.folders().values():
        # The first release: frame N, its polyp mask pN, its contour cN and its specular parts beside each other.
        frames = _stems_like(images_in(files), _FRAME)
        masks = _stems_like(images_in(files), _MASK)
        if frames and masks:
            warnings: list[str] = []
            cases = paired(
                frames,
                masks,
                prompts={"p1": ("polyp",)},
                attributes={"class": "polyp"},
                warnings=warnings,
                mask_stems=lambda stem: (f"p{stem}",),
            )
            return Reading(cases, "CVC-ColonDB, first release (300 frames)", 300, warnings)
    reading = read_polyps(tree, key="colondb", title="CVC-ColonDB", layout=_LAYOUT, expected=380)
    reading.release = "CVC-ColonDB, 380 frames"
    return reading


def _stems_like(files: list[TreeFile], pattern: re.Pattern[str]) -> list[TreeFile]:
    return [file for file in files if pattern.match(file.stem)]


SOURCE = add(
    Source(
        name="colondb_polyp",
        title="CVC-ColonDB",
        about="colonoscopy, polyps",
        licence="research only; cite the paper (not confirmed: the owners' page has no licence file)",
        citation=(
            "J. Bernal, J. Sánchez, F. Vilariño: Towards automatic polyp detection with a polyp appearance model. Pattern "
            "Recognition 45(9), 2012. doi:10.1016/j.patcog.2012.03.002; N. Tajbakhsh, S. R. Gurudu, J. Liang: Automated "
            "Polyp Detection in Colonoscopy Videos Using Shape and Context Information. IEEE TMI 35(2), 2016. "
            "doi:10.1109/TMI.2015.2487997"
        ),
        homepage="http://mv.cvc.uab.es/projects/colon-qa/cvccolondb",
        cases=380,
        images=380,
        layout=_LAYOUT,
        read=_read,
        notes=("Frames of one video stand side by side in this set and no list says which: use it for tests only.",),
    )
)
