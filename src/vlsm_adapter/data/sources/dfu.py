"""DFUC2022: diabetic foot ulcers in photographs (Kendrick et al. 2022)."""

from __future__ import annotations

from vlsm_adapter.data.archives import Tree
from vlsm_adapter.data.sources.base import Reading, Source, add
from vlsm_adapter.data.sources.folders import folder_pairs, one_pair, paired

_LAYOUT = "DFUC2022_train_images/*.jpg beside DFUC2022_train_masks/*.png (or images/ beside masks/)"


def _read(tree: Tree, variant: str) -> Reading:
    pairs = folder_pairs(tree, ("dfuc2022_train_images", "images"), ("dfuc2022_train_masks", "masks"))
    _, images, masks = one_pair(tree, pairs, key="dfu", title="DFUC2022", layout=_LAYOUT)
    warnings: list[str] = []
    cases = paired(
        images, masks, prompts={"p1": ("foot ulcer",)}, attributes={"class": "foot ulcer"}, warnings=warnings
    )
    return Reading(cases, "DFUC2022, training release", 2000, warnings)


SOURCE = add(
    Source(
        name="dfu",
        title="DFUC2022 (Diabetic Foot Ulcer Challenge)",
        about="photographs, diabetic foot ulcers",
        licence="research only, under the licence agreement signed with the organisers; may not be passed on",
        citation=(
            "C. Kendrick, B. Cassidy, J. M. Pappachan, et al.: Translating Clinical Delineation of Diabetic Foot Ulcers into "
            "Machine Interpretable Segmentation. arXiv:2204.11618, 2022"
        ),
        homepage="https://dfuc2022.grand-challenge.org/",
        cases=2000,
        images=2000,
        layout=_LAYOUT,
        read=_read,
        notes=("The challenge's validation and test images have no public masks and are not read.",),
    )
)
