"""BKAI-IGH NeoPolyp-Small: polyps in colonoscopy, neoplastic (red) and non-neoplastic (green) (Lan et al. 2021).

Masks are colour JPEG. Brightness is kept at full resolution in a JPEG and colour at half, so an edge is told by
brightness and a class by colour, over the whole polyp rather than pixel by pixel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from vlsm_adapter.data.archives import Tree, TreeFile
from vlsm_adapter.data.entries import id_part
from vlsm_adapter.data.prepared import RawCase
from vlsm_adapter.data.sources.base import Reading, Source, add
from vlsm_adapter.data.sources.folders import Pair, folder_pairs, images_in, one_pair, paired
from vlsm_adapter.data.sources.pictures import Mask, read_colours, read_mask_file, unusable
from vlsm_adapter.errors import DataError

CLASSES = {"neoplastic": "neoplastic polyp", "non-neoplastic": "non-neoplastic polyp"}
_LABELS = {"neoplastic": 1, "non-neoplastic": 2}
_LAYOUT = "train/*.jpeg and train_gt/*.jpeg with files of the same names (train/train and train_gt/train_gt on Kaggle)"
# Half of full red and half of full green: the middle of the edge between polyp and black.
_FOREGROUND = 127
_DARK = 64
_MIN_CLEAR = 0.5
_SPECK = 9


def classify(pixels: npt.NDArray[np.uint8], name: str) -> npt.NDArray[np.uint8]:
    """Labels of a colour mask that has been through JPEG.

    Args:
        pixels: (H, W, 3) RGB, red where neoplastic, green where not, on black.
        name: the file, for messages.

    Returns:
        uint8 (H, W): 0 background, 1 neoplastic, 2 non-neoplastic.

    Raises:
        DataError: the picture is no such mask.
    """
    from scipy import ndimage

    red, green, blue = (pixels[..., channel].astype(np.int16) for channel in range(3))
    strongest = np.maximum(red, green)
    foreground = strongest > _FOREGROUND
    # In a mask nothing but edges is neither black nor one of the two pure colours.
    odd = (blue > _FOREGROUND) | ((np.minimum(red, green) > _FOREGROUND) & foreground)
    clear = (strongest <= _DARK) & (blue <= _DARK) | (np.abs(red - green) > _FOREGROUND)
    if odd.mean() > 0.02 or clear.mean() < _MIN_CLEAR:
        raise DataError(f"{name}: not a mask of red and green on black (check that image and mask are not swapped)")
    labels = np.where(foreground, np.where(red >= green, 1, 2), 0).astype(np.uint8)
    # Along the line where two polyps touch, and at dirt of the compression, single pixels take the other colour: each
    # speck takes the class of what it lies in.
    for label, other in ((1, 2), (2, 1)):
        parts, count = ndimage.label(labels == label, structure=np.ones((3, 3), bool))
        if count == 0:
            continue
        sizes = np.bincount(parts.ravel(), minlength=count + 1)
        around = ndimage.binary_dilation(labels == other, structure=np.ones((3, 3), bool))
        touching = np.bincount(parts[around], minlength=count + 1) > 0
        specks = (sizes < _SPECK) & touching
        specks[0] = False
        labels[specks[parts]] = other
    return labels


def _read(tree: Tree, variant: str) -> Reading:
    pairs = folder_pairs(tree, ("train",), ("train_gt",)) + _nested(tree)
    _, images, masks = one_pair(tree, pairs, key="bkai", title="BKAI-IGH NeoPolyp", layout=_LAYOUT)
    warnings: list[str] = []
    if variant == "classes":
        # The owners do not say on how many images both classes are.
        return Reading(_by_class(images, masks), "NeoPolyp-Small, by class", None, warnings)
    cases = paired(images, masks, prompts={"p1": ("polyp",)}, attributes={"class": "polyp"}, warnings=warnings)
    by_stem = {mask.stem: mask for mask in masks}
    return Reading(_joined(cases, by_stem), "NeoPolyp-Small, training part", 1000, warnings)


def _nested(tree: Tree) -> list[Pair]:
    """``train/train`` and ``train_gt/train_gt``, as the files lie on Kaggle."""
    folders = {path.casefold(): files for path, files in tree.folders().items()}
    pairs: list[Pair] = []
    for path, files in folders.items():
        if path == "train/train" or path.endswith("/train/train"):
            around = path[: -len("train/train")]
            masks = images_in(folders.get(f"{around}train_gt/train_gt", []))
            if images_in(files) and masks:
                pairs.append((around.rstrip("/"), images_in(files), masks))
    return pairs


def _joined(cases: Iterator[RawCase], masks: dict[str, TreeFile]) -> Iterator[RawCase]:
    """Both classes as one mask; grey masks, of copies made binary, are not refused."""
    for case in cases:
        file = masks.get(case.case_id)
        yield case if file is None else replace(case, mask=functools.partial(_any_polyp, file))


def _any_polyp(file: TreeFile) -> Mask:
    pixels = read_colours(file)
    if (pixels.max(axis=2).astype(np.int16) - pixels.min(axis=2) <= 12).mean() >= 0.999:
        return read_mask_file(file)
    return classify(pixels, str(file)) > 0


def _by_class(images: list[TreeFile], masks: list[TreeFile]) -> Iterator[RawCase]:
    by_stem = {mask.stem: mask for mask in masks}
    for image in images:
        file = by_stem.get(image.stem)
        if file is None:
            yield _case(image, "neoplastic", unusable(f"{image}: has no mask called {image.stem} in train_gt"))
            continue
        try:
            values = np.unique(classify(read_colours(file), str(file)))
        except DataError as error:
            yield _case(image, "neoplastic", unusable(str(error)))
            continue
        present = [name for name, label in _LABELS.items() if label in values]
        for name in present:
            yield _case(image, name, functools.partial(_of_class, file, _LABELS[name]))
        if not present:
            yield _case(image, "neoplastic", unusable(f"{file}: shows no polyp of either class"))


def _of_class(file: TreeFile, label: int) -> Mask:
    return classify(read_colours(file), str(file)) == label


def _case(image: TreeFile, name: str, mask: Callable[[], Mask]) -> RawCase:
    stem = id_part(image.stem)
    return RawCase(
        case_id=f"{stem}_{name}",
        image=image,
        mask=mask,
        prompts={"p1": (CLASSES[name],)},
        group=stem,
        attributes={"class": CLASSES[name]},
        image_id=stem,
        where=str(image),
    )


SOURCE = add(
    Source(
        name="bkai_polyp",
        title="BKAI-IGH NeoPolyp-Small",
        about="colonoscopy, polyps (neoplastic, non-neoplastic)",
        licence="terms of the Kaggle competition: research and education, no commercial use; read them there",
        citation=(
            "P. N. Lan, N. S. An, D. V. Hang, D. V. Long, T. Q. Trung, N. T. Thuy, D. V. Sang: NeoUNet: Towards Accurate "
            "Colon Polyp Segmentation and Neoplasm Detection. ISVC 2021. doi:10.1007/978-3-030-90436-4_2"
        ),
        homepage="https://www.kaggle.com/c/bkai-igh-neopolyp",
        cases=1000,
        images=1000,
        layout=_LAYOUT,
        read=_read,
        variants={
            "joined": "one case an image: every polyp, as published",
            "classes": "a case for each class an image shows: 'neoplastic polyp', 'non-neoplastic polyp'",
        },
        notes=("The competition's test images have no public masks and are not read.",),
    )
)
