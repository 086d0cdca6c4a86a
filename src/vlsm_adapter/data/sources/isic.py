"""ISIC challenges of 2016, 2017 and 2018, task 1: outlines of skin lesions in dermoscopy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vlsm_adapter.data.archives import Tree, TreeFile
from vlsm_adapter.data.prepared import RawCase
from vlsm_adapter.data.sources.base import Reading, Source, add, refusal
from vlsm_adapter.data.sources.folders import images_in, paired
from vlsm_adapter.data.splits import SPLITS
from vlsm_adapter.errors import DataError


@dataclass(frozen=True)
class _Release:
    parts: tuple[tuple[str, str, str], ...]  # split, folder of images, folder of masks
    cases: int
    licence: str
    citation: str


_RELEASES = {
    "2016": _Release(
        (
            ("train", "ISBI2016_ISIC_Part1_Training_Data", "ISBI2016_ISIC_Part1_Training_GroundTruth"),
            ("test", "ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth"),
        ),
        1279,
        "CC0 1.0",
        "D. Gutman, N. C. F. Codella, E. Celebi, B. Helba, M. Marchetti, N. Mishra, A. Halpern: Skin Lesion Analysis toward "
        "Melanoma Detection: A Challenge at ISBI 2016. arXiv:1605.01397, 2016",
    ),
    "2017": _Release(
        (
            ("train", "ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth"),
            ("val", "ISIC-2017_Validation_Data", "ISIC-2017_Validation_Part1_GroundTruth"),
            ("test", "ISIC-2017_Test_v2_Data", "ISIC-2017_Test_v2_Part1_GroundTruth"),
        ),
        2750,
        "CC0 1.0",
        "N. C. F. Codella, D. Gutman, M. E. Celebi, et al.: Skin Lesion Analysis Toward Melanoma Detection: A Challenge at the "
        "2017 ISBI. arXiv:1710.05006, 2017",
    ),
    "2018": _Release(
        (
            ("train", "ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"),
            ("val", "ISIC2018_Task1-2_Validation_Input", "ISIC2018_Task1_Validation_GroundTruth"),
            ("test", "ISIC2018_Task1-2_Test_Input", "ISIC2018_Task1_Test_GroundTruth"),
        ),
        3694,
        "CC BY-NC 4.0",
        "N. Codella, V. Rotemberg, P. Tschandl, et al.: Skin Lesion Analysis Toward Melanoma Detection 2018. arXiv:1902.03368; "
        "P. Tschandl, C. Rosendahl, H. Kittler: The HAM10000 dataset. Scientific Data 5, 2018. doi:10.1038/sdata.2018.161",
    ),
}
_LAYOUT = (
    "a folder with the archives or folders of one year: ISBI2016_ISIC_Part1_Training_Data and ..._GroundTruth (2016), "
    "ISIC-2017_Training_Data and ISIC-2017_Training_Part1_GroundTruth (2017), ISIC2018_Task1-2_Training_Input and "
    "ISIC2018_Task1_Training_GroundTruth (2018), with Validation and Test beside"
)


def _read(tree: Tree, variant: str) -> Reading:
    by_name: dict[str, list[TreeFile]] = {}
    for path, files in tree.folders().items():
        name = path.rpartition("/")[2] if path else tree.around[-1]
        by_name.setdefault(name.casefold(), []).extend(images_in(files))
    years = [
        year for year, release in _RELEASES.items() if any(part[1].casefold() in by_name for part in release.parts)
    ]
    if not years:
        raise refusal(tree, "an ISIC challenge", _LAYOUT)
    if len(years) > 1:
        raise DataError(
            f"{tree.where}: holds the challenges of {' and '.join(years)}, which share images: give one year"
        )
    release = _RELEASES[years[0]]
    warnings: list[str] = []
    parts: list[tuple[str, list[TreeFile], list[TreeFile]]] = []
    for split, image_folder, mask_folder in release.parts:
        images = [file for file in by_name.get(image_folder.casefold(), []) if file.suffix in (".jpg", ".jpeg")]
        masks = by_name.get(mask_folder.casefold(), [])
        if images and masks:
            parts.append((split, images, masks))
        elif images or masks:
            warnings.append(f"{mask_folder if images else image_folder} is not there: {split} is left out")
    if not parts:
        raise refusal(tree, f"ISIC {years[0]}", f"{release.parts[0][1]} and {release.parts[0][2]}, with files in both")
    return Reading(
        _cases(parts, warnings),
        f"ISIC {years[0]}, task 1",
        release.cases,
        warnings,
        licence=release.licence,
        citation=release.citation,
    )


def _cases(parts: list[tuple[str, list[TreeFile], list[TreeFile]]], warnings: list[str]) -> Iterator[RawCase]:
    for split, images, masks in parts:
        yield from paired(
            images,
            masks,
            prompts={"p1": ("skin lesion",)},
            attributes={"class": "skin lesion"},
            warnings=warnings,
            mask_stems=lambda stem: (f"{stem}_Segmentation", stem),
            split=split if len(parts) > 1 else None,
        )


SOURCE = add(
    Source(
        name="isic",
        title="ISIC 2016 (2017, 2018), task 1",
        about="dermoscopy, skin lesions",
        licence="CC0 1.0 (2016, 2017), CC BY-NC 4.0 (2018)",
        citation=_RELEASES["2016"].citation,
        homepage="https://challenge.isic-archive.com/data/",
        cases=1279,
        images=1279,
        layout=_LAYOUT,
        read=_read,
        splits="train and test (2017, 2018: and val)",
        published=lambda case: (f"{case.case_id}_Segmentation", SPLITS),
        notes=(
            "The published prompts call every lesion 'skin melanoma'; most are not, and the prompts of this set do not.",
        ),
    )
)
