"""BUSI: breast ultrasound of 600 women (Al-Dhabyani et al. 2020); lesions with several masks are joined."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vlsm_adapter.data.archives import Tree, TreeFile
from vlsm_adapter.data.prepared import RawCase
from vlsm_adapter.data.sources.base import Reading, Source, add, refusal
from vlsm_adapter.data.sources.folders import images_in
from vlsm_adapter.data.sources.pictures import mask_from, unusable

_LAYOUT = (
    "benign/, malignant/ and normal/ with 'benign (1).png', 'benign (1)_mask.png' and further 'benign (1)_mask_1.png'"
)
_NAME = re.compile(r"^(?P<kind>benign|malignant|normal) ?\((?P<number>\d+)\)(?P<mask>_mask(_\d+)?)?$", re.IGNORECASE)
_KINDS = ("benign", "malignant", "normal")


def _read(tree: Tree, variant: str) -> Reading:
    images: dict[tuple[str, int], TreeFile] = {}
    masks: dict[tuple[str, int], list[TreeFile]] = {}
    for file in images_in(tree.files):
        if (match := _NAME.match(file.stem)) is None:
            continue
        key = (match["kind"].lower(), int(match["number"]))
        if match["mask"]:
            masks.setdefault(key, []).append(file)
        else:
            images.setdefault(key, file)
    if not images or not masks:
        raise refusal(tree, "BUSI", _LAYOUT)
    warnings: list[str] = []
    missing = [kind for kind in _KINDS if not any(key[0] == kind for key in images)]
    if missing:
        warnings.append(f"no image of {' and '.join(missing)}")
    return Reading(_cases(images, masks), "Dataset_BUSI_with_GT", 780, warnings)


def _cases(images: dict[tuple[str, int], TreeFile], masks: dict[tuple[str, int], list[TreeFile]]) -> Iterator[RawCase]:
    for (kind, number), image in sorted(images.items()):
        found = masks.get((kind, number), [])
        attributes: dict[str, str | int] = {"class": kind}
        if len(found) > 1:
            attributes["masks_joined"] = len(found)
        yield RawCase(
            case_id=f"{number}_{kind}",
            image=image,
            mask=mask_from(found) if found else unusable(f"{image}: has no mask called {image.stem}_mask"),
            # The same words for all three classes: a prompt that differs for normal images would give the answer away.
            prompts={"p1": ("breast tumor",)},
            attributes=attributes,
            where=str(image),
        )


SOURCE = add(
    Source(
        name="busi",
        title="BUSI (Breast Ultrasound Images Dataset)",
        about="breast ultrasound, tumours (benign, malignant, normal)",
        licence="CC BY 4.0 as stated with the data article and re-uploads; cite the paper",
        citation=(
            "W. Al-Dhabyani, M. Gomaa, H. Khaled, A. Fahmy: Dataset of breast ultrasound images. Data in Brief 28, 2020. "
            "doi:10.1016/j.dib.2019.104863"
        ),
        homepage="https://scholar.cu.edu.eg/?q=afahmy/pages/dataset",
        cases=780,
        images=780,
        layout=_LAYOUT,
        read=_read,
        notes=(
            "133 normal images have an empty mask: nothing is to be found there.",
            "The release does not tell patients apart and holds near-duplicates: run 'vlsm data check' before you split.",
            "The published prompts say 'No tumor' exactly for the empty masks; the prompts of this set do not.",
        ),
    )
)
