"""The images and prompts on which an export is compared with the model, and calibrated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vlsm_adapter.console import Console
from vlsm_adapter.data.images import read_image
from vlsm_adapter.errors import UserError

_MOST = 8  # images to compare on
_LONG = (
    "one small round polyp, which is pink, located in the centre of the image"  # of another length than a class name
)


def sample_prompts(given: Sequence[str] | None, examples: Sequence[str]) -> list[str]:
    """``given``, else examples of the adapter's prompts, and a longer one, so that several lengths are compared.

    Raises:
        UserError: a given prompt is empty or no text.
    """
    from vlsm_adapter.predict import check_prompts

    if given:
        if any(not isinstance(text, str) or not text.strip() for text in given):
            raise UserError('--prompt is empty: give a text such as "polyp"')
        return check_prompts(list(dict.fromkeys(given)))
    return list(dict.fromkeys([*examples[:3], "polyp", _LONG]))


def sample_images(
    given: str | None, run: str | Path | None, console: Console, *, most: int = _MOST
) -> tuple[list[np.ndarray], str]:
    """Up to ``most`` images uint8 (H, W, 3), and what they are.

    Args:
        given: a file, folder or pattern.
        run: a run, whose validation images are taken where none are given and they are still there.

    Raises:
        DataError: a given image cannot be read.
    """
    from vlsm_adapter.data.records import list_images

    if given is not None:
        found = _spread(list_images(given), most)
        return [read_image(path) for path in found], f"{len(found)} given images"
    if run is not None and (images := _of_run(run, most, console)):
        return images, "validation images of the run"
    from vlsm_adapter.data.phantoms.generate import MODALITIES, make_phantom

    console.warn("compared on generated images only: --check IMAGES compares on real ones")
    sizes = [(256, 256), (300, 200), (160, 240), (400, 400)]  # smaller, larger and of another shape than the network's
    images = [make_phantom(kind, 0, 0, size=size).image for kind, size in zip(MODALITIES, sizes, strict=True)]
    return images[:most], "generated images"


def _of_run(run: str | Path, most: int, console: Console) -> list[np.ndarray]:
    from vlsm_adapter.data.cases import load_cases
    from vlsm_adapter.run_folder import RunFolder

    folder = RunFolder(Path(run))
    if not folder.config_file.is_file():
        return []
    try:
        data = folder.config().data
        cases = load_cases(data.path, prompt=data.prompt, division=data.division("val"), skip_bad=True)
        paths = dict.fromkeys(record.image for record in cases.records("val"))
        return [read_image(path) for path in _spread(list(paths), most)]
    except UserError as error:
        console.warn(f"the run's validation images cannot be read: {error}")
        return []


def _spread(paths: list[Path], most: int) -> list[Path]:
    """At most ``most`` of them, spread over the list: neighbours are often frames of one video."""
    if len(paths) <= most:
        return paths
    return [paths[number * len(paths) // most] for number in range(most)]
