"""The layout most sets have: a folder of images beside a folder of masks, paired by the names of their files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from vlsm_adapter.data.archives import Tree, TreeFile
from vlsm_adapter.data.entries import id_part
from vlsm_adapter.data.layouts import IMAGE_SUFFIXES
from vlsm_adapter.data.prepared import RawCase
from vlsm_adapter.data.sources.base import Reading, refusal
from vlsm_adapter.data.sources.pictures import mask_from, unusable
from vlsm_adapter.errors import DataError

# The sets that are shipped in this layout, to tell one given in place of another.
_SETS = {
    "kvasir": re.compile(r"kvasir", re.IGNORECASE),
    "clinicdb": re.compile(r"clinic[ _-]?db|cvc-?612", re.IGNORECASE),
    "colondb": re.compile(r"colon[ _-]?db", re.IGNORECASE),
    "etis": re.compile(r"etis", re.IGNORECASE),
    "cvc300": re.compile(r"cvc[ _-]?300|endoscene", re.IGNORECASE),
    "bkai": re.compile(r"bkai|neopolyp", re.IGNORECASE),
    "dfu": re.compile(r"dfu", re.IGNORECASE),
}

Pair = tuple[str, list[TreeFile], list[TreeFile]]


def images_in(files: Iterable[TreeFile]) -> list[TreeFile]:
    """Those with the ending of an image."""
    return [file for file in files if file.suffix in IMAGE_SUFFIXES]


def folder_pairs(tree: Tree, images: Sequence[str], masks: Sequence[str]) -> list[Pair]:
    """(folder around them, images, masks) for every folder called as one of ``images`` beside one of ``masks``."""
    folders = tree.folders()
    by_name = {path.casefold(): path for path in folders}
    pairs: list[Pair] = []
    for path in folders:
        parent, _, name = path.rpartition("/")
        if name.casefold() not in images:
            continue
        for mask_name in masks:
            beside = by_name.get(f"{parent}/{mask_name}".lstrip("/").casefold())
            if beside is not None:
                pairs.append((parent, images_in(folders[path]), images_in(folders[beside])))
                break
    return [pair for pair in pairs if pair[1] and pair[2]]


def one_pair(tree: Tree, pairs: Sequence[Pair], *, key: str, title: str, layout: str) -> Pair:
    """The pair that is the set ``key``: the one whose folders are named so, or the only one if none is.

    Raises:
        DataError: there is none, or it is named as another set, or there are several.
    """
    named = [pair for pair in pairs if _SETS[key].search(pair[0])]
    if not named and _SETS[key].search("/".join(tree.around)):
        named = list(pairs)
    if not named:
        named = [pair for pair in pairs if not _other(key, "/".join((*tree.around, pair[0])))]
        if pairs and not named:
            raise DataError(
                f"{tree.where}: these folders are named as another set ({pairs[0][0] or tree.around[-1]}), not as {title}"
            )
    if not named:
        raise refusal(tree, title, layout)
    if len(named) > 1:
        listed = ", ".join(pair[0] or "the top" for pair in named[:4])
        raise DataError(f"{tree.where}: {len(named)} places could be {title} ({listed}): give one of these folders")
    return named[0]


def _other(key: str, names: str) -> bool:
    return any(name != key and pattern.search(names) for name, pattern in _SETS.items())


def paired(
    images: Sequence[TreeFile],
    masks: Sequence[TreeFile],
    *,
    prompts: Mapping[str, tuple[str, ...]],
    attributes: Mapping[str, str],
    warnings: list[str],
    mask_stems: Callable[[str], Sequence[str]] = lambda stem: (stem,),
    group: Callable[[str], str | None] = lambda stem: None,
    split: str | None = None,
) -> Iterator[RawCase]:
    """A case for every image, its id the image's name without ending; an image without a mask is a bad case.

    Args:
        images, masks: the files of the two folders.
        prompts, attributes: of every case.
        warnings: gets a line if there are masks without an image.
        mask_stems: from an image's stem to those its mask may have.
        group: from an image's stem to its group.
        split: of every case.
    """
    by_stem = {mask.stem.casefold(): mask for mask in reversed(masks)}
    used: set[str] = set()
    for image in images:
        stems = [stem.casefold() for stem in mask_stems(image.stem)]
        found = next((stem for stem in stems if stem in by_stem), None)
        if found is not None:
            used.add(found)
            mask = mask_from([by_stem[found]])
        else:
            mask = unusable(f"{image}: has no mask called {stems[0]} in {masks[0].parent or masks[0].where}")
        yield RawCase(
            case_id=id_part(image.stem),
            image=image,
            mask=mask,
            prompts=prompts,
            group=group(image.stem),
            split=split,
            attributes=attributes,
            where=str(image),
        )
    if alone := [mask for stem, mask in by_stem.items() if stem not in used]:
        warnings.append(f"{len(alone)} mask(s) belong to no image, the first is {alone[-1].path}")


def read_polyps(tree: Tree, *, key: str, title: str, layout: str, expected: int) -> Reading:
    """A polyp set with ``images/`` beside ``masks/``, as it stands in the test sets that are passed around."""
    pairs = folder_pairs(tree, ("images", "image", "original"), ("masks", "mask", "ground truth", "groundtruth"))
    place, images, masks = one_pair(tree, pairs, key=key, title=title, layout=layout)
    warnings: list[str] = []
    cases = paired(
        images,
        masks,
        prompts={"p1": ("polyp",)},
        attributes={"class": "polyp"},
        warnings=warnings,
        mask_stems=lambda stem: (stem, f"p{stem}"),
    )
    return Reading(cases, place or tree.around[-1], expected, warnings)
