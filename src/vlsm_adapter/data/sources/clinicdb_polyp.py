"""CVC-ClinicDB: 612 frames of 29 colonoscopy sequences (Bernal et al. 2015), as PNG or TIF.

The sequences are runs of neighbouring frame numbers. ``metadata.csv`` (in the release that holds PNG and TIF) gives
them by frame; where it is absent, the ranges below are used: those of the table that came with the first release.
"""

from __future__ import annotations

import bisect
import csv
import io
from pathlib import PurePosixPath

from vlsm_adapter.data.archives import Tree
from vlsm_adapter.data.sources.base import Reading, Source, add, refusal
from vlsm_adapter.data.sources.folders import folder_pairs, one_pair, paired

# The first frame of each of the 29 sequences; the last one ends with frame 612.
SEQUENCE_STARTS = (
    *(1, 26, 51, 68, 79, 104, 127, 152, 178, 200, 206, 228, 253, 278, 298),
    *(318, 343, 364, 384, 409, 429, 448, 467, 479, 504, 529, 547, 572, 592),
)
FRAMES = 612
_LAYOUT = "a folder Original/ beside 'Ground Truth'/ with 1.tif ... 612.tif (or PNG/ and TIF/ with these), or images/ beside masks/"


def sequence_of(stem: str) -> str | None:
    """The group of frame ``stem`` (``"1"`` to ``"612"``), ``sequence01`` to ``sequence29``; None for another name."""
    if not (stem.isascii() and stem.isdigit()) or not 1 <= int(stem) <= FRAMES:
        return None
    return f"sequence{bisect.bisect_right(SEQUENCE_STARTS, int(stem)):02d}"


def _read(tree: Tree, variant: str) -> Reading:
    pairs = folder_pairs(tree, ("original", "images"), ("ground truth", "groundtruth", "ground_truth", "masks"))
    if not pairs:
        raise refusal(tree, "CVC-ClinicDB", _LAYOUT)
    if len(pairs) > 1:
        # PNG and TIF hold the same pixels; the published annotations name PNG files.
        png = [pair for pair in pairs if pair[0].rpartition("/")[2].casefold() == "png"]
        pairs = png or pairs
    _, images, masks = one_pair(tree, pairs, key="clinicdb", title="CVC-ClinicDB", layout=_LAYOUT)
    warnings: list[str] = []
    listed = _sequences(tree, warnings)
    cases = paired(
        images,
        masks,
        prompts={"p1": ("polyp",)},
        attributes={"class": "polyp"},
        warnings=warnings,
        group=lambda stem: listed.get(stem) or sequence_of(stem),
    )
    kind = "TIF" if images[0].suffix.startswith(".tif") else "PNG"
    return Reading(cases, f"CVC-ClinicDB, {kind}", FRAMES, warnings)


def _sequences(tree: Tree, warnings: list[str]) -> dict[str, str]:
    """Frame to group from ``metadata.csv``, or nothing where there is none that can be read."""
    file = next((file for file in tree.files if file.name.casefold() == "metadata.csv"), None)
    if file is None:
        return {}
    rows = csv.DictReader(io.StringIO(file.read_text()))
    column = next((name for name in rows.fieldnames or () if name and name.endswith("image_path")), None)
    if column is None or "sequence_id" not in (rows.fieldnames or ()):
        warnings.append(f"{file.path} has no columns sequence_id and png_image_path; frame numbers tell the sequences")
        return {}
    found: dict[str, str] = {}
    for row in rows:
        number = (row["sequence_id"] or "").strip()
        if number.isdigit():
            found[PurePosixPath((row[column] or "").replace("\\", "/")).stem] = f"sequence{int(number):02d}"
    differing = [frame for frame, group in found.items() if sequence_of(frame) != group]
    if differing:
        warnings.append(
            f"{file.path} gives {len(differing)} frames another sequence than the frame ranges, the first is {differing[0]}; "
            "the file is followed"
        )
    return found


SOURCE = add(
    Source(
        name="clinicdb_polyp",
        title="CVC-ClinicDB",
        about="colonoscopy, polyps",
        licence=(
            "research and education; images belong to Hospital Clínic, ground truth to the Computer Vision Center, Barcelona; "
            "cite the paper"
        ),
        citation=(
            "J. Bernal, F. J. Sánchez, G. Fernández-Esparrach, D. Gil, C. Rodríguez, F. Vilariño: WM-DOVA maps for accurate "
            "polyp highlighting in colonoscopy: Validation vs. saliency maps from physicians. Computerized Medical Imaging and "
            "Graphics 43, 2015. doi:10.1016/j.compmedimag.2015.02.007"
        ),
        homepage="https://polyp.grand-challenge.org/CVCClinicDB/",
        cases=FRAMES,
        images=FRAMES,
        layout=_LAYOUT,
        read=_read,
        groups="sequence (29)",
        notes=("The published split divides sequences: neighbouring frames stand on both sides.",),
    )
)
