"""CheXlocalize: ten findings outlined on CheXpert's validation and test radiographs (Saporta et al. 2022).

The masks are in two JSON files, image to finding to run-length encoded mask (the compressed form of COCO). An image
called ``patient64541_study1_view1_frontal`` is the file ``patient64541/study1/view1_frontal.jpg`` of CheXpert.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from vlsm_adapter.data.archives import Tree, TreeFile
from vlsm_adapter.data.entries import kind_of, parse_json, shown
from vlsm_adapter.data.prepared import RawCase
from vlsm_adapter.data.rle import decode, decompress
from vlsm_adapter.data.sources.base import Reading, Source, add, refusal
from vlsm_adapter.data.sources.folders import images_in
from vlsm_adapter.data.sources.pictures import Mask, unusable
from vlsm_adapter.errors import DataError

FINDINGS = (
    *("Airspace Opacity", "Atelectasis", "Cardiomegaly", "Consolidation", "Edema"),
    *("Enlarged Cardiomediastinum", "Lung Lesion", "Pleural Effusion", "Pneumothorax", "Support Devices"),
)
# The owners' page calls the first one so, their files do not.
_SYNONYMS = {"Lung Opacity": "Airspace Opacity"}
_LAYOUT = "gt_segmentations_val.json and gt_segmentations_test.json, and CheXpert/val and CheXpert/test with patient64541/study1/view1_frontal.jpg"
_JSON = re.compile(r"^gt_segmentations?_(val|valid|test)\.json$", re.IGNORECASE)
_IMAGE = re.compile(r"^(?P<patient>patient\d+)_(?P<study>study\d+)_(?P<view>view\d+_(?P<side>frontal|lateral))$")


def _read(tree: Tree, variant: str) -> Reading:
    lists = [file for file in tree.files if _JSON.match(file.name)]
    if not lists:
        raise refusal(tree, "CheXlocalize", _LAYOUT)
    images: dict[str, TreeFile] = {}
    for file in images_in(tree.files):
        parts = file.path.split("/")
        name = "_".join((*parts[-3:-1], file.stem)) if not file.stem.startswith("patient") else file.stem
        if _IMAGE.match(name):
            images[name] = file
    if not images:
        raise refusal(tree, "CheXlocalize with its images", _LAYOUT)
    warnings: list[str] = []
    subsets = {match[1].lower() for file in lists if (match := _JSON.match(file.name))}
    if len(subsets) < 2:
        warnings.append(f"only {lists[0].name} is there: the other half of the set is left out")
    cases = _cases(lists, images, variant, warnings)
    return Reading(cases, f"CheXlocalize, {variant} findings", 2177 if variant == "present" else 6860, warnings)


def _cases(
    lists: list[TreeFile], images: Mapping[str, TreeFile], variant: str, warnings: list[str]
) -> Iterator[RawCase]:
    unknown: set[str] = set()
    for file in lists:
        match = _JSON.match(file.name)
        subset = "test" if match and match[1].lower() == "test" else "val"
        content = parse_json(file.read_text(), str(file))
        if not isinstance(content, dict):
            raise DataError(f"{file}: {kind_of(content)}, not an object from image to findings")
        for image_id, findings in content.items():
            named = _IMAGE.match(image_id)
            if named is None or not isinstance(findings, dict):
                raise DataError(f"{file}: {shown(image_id)} is no image of CheXpert with an object of findings")
            image = images.get(image_id)
            for finding, rle in findings.items():
                name = _SYNONYMS.get(finding, finding)
                if name not in FINDINGS:
                    unknown.add(finding)
                    continue
                where = f"{file}: {image_id}, {finding}"
                if variant == "present" and _is_empty(rle):
                    continue
                lost = unusable(f"{where}: its image {image_id.replace('_', '/', 2)}.jpg is not there")
                yield RawCase(
                    case_id=f"{image_id}_{name.lower().replace(' ', '_')}",
                    image=image if image is not None else lost,
                    mask=functools.partial(_mask, rle, where) if image is not None else lost,
                    prompts={"p1": (name.lower(),)},
                    group=named["patient"],
                    attributes={"class": name.lower(), "view": named["side"], "subset": subset},
                    image_id=image_id,
                    where=where,
                )
    if unknown:
        warnings.append(f"findings that are not among the ten are left out: {', '.join(sorted(map(shown, unknown)))}")


def _mask(rle: Any, where: str) -> Mask:
    size = rle.get("size") if isinstance(rle, dict) else None
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        raise DataError(f"{where}: {shown(size)} is no size [rows, columns] of a run-length encoded mask")
    return decode(rle, size[0], size[1], where=where)


def _is_empty(rle: Any) -> bool:
    """Whether no run of foreground has a pixel; False for what is damaged, which is found when it is decoded."""
    counts = rle.get("counts") if isinstance(rle, dict) else None
    if isinstance(counts, str):
        try:
            counts = decompress(counts)
        except DataError:
            return False
    return isinstance(counts, list) and all(count == 0 for count in counts[1::2])


SOURCE = add(
    Source(
        name="chexlocalize",
        title="CheXlocalize",
        about="chest radiographs, ten findings",
        licence="Stanford University Dataset Research Use Agreement: non-commercial research, may not be passed on",
        citation=(
            "A. Saporta, X. Gui, A. Agrawal, et al.: Benchmarking saliency methods for chest X-ray interpretation. Nature "
            "Machine Intelligence 4, 2022. doi:10.1038/s42256-022-00536-x"
        ),
        homepage="https://aimi.stanford.edu/datasets/chexlocalize",
        cases=2177,
        images=686,
        layout=_LAYOUT,
        read=_read,
        groups="patient (573)",
        variants={
            "present": "the findings that are outlined",
            "all": "all ten findings of every image, an empty mask for those that are absent",
        },
        notes=(
            "The owners' val and test images are kept as the attribute 'subset'; there is no training part, so splits are "
            "drawn by patient.",
        ),
    )
)
