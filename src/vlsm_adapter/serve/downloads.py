"""Masks as files for the user: PNG, NIfTI with the source's geometry, DICOM SEG that refers to its source.

Written by :mod:`vlsm_adapter.imaging` into a folder in memory and read back from there; nothing stays on the server.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlsm_adapter.data.volumes import MAX_VOXELS
from vlsm_adapter.errors import UserError
from vlsm_adapter.output_names import prompt_slug
from vlsm_adapter.serve.answers import mask_of, png
from vlsm_adapter.serve.images import Upload
from vlsm_adapter.serve.problems import Refused
from vlsm_adapter.serve.service import Service

if TYPE_CHECKING:
    from vlsm_adapter.imaging.base import PictureAnswer, Stack


@dataclass(frozen=True)
class Wanted:
    """A mask to be put into a file.

    Attributes:
        prompt: what it shows.
        png: base64 of it.
        frame: of the picture it belongs to.
        adapter: whose answer it is; None where it is not said.
    """

    prompt: str
    png: str
    frame: int
    adapter: str | None = None


@dataclass(frozen=True)
class MadeFile:
    """A file to be sent."""

    content: bytes
    name: str
    media_type: str


async def download(service: Service, image_id: str, masks: Sequence[Wanted], form: str) -> MadeFile:
    """Make ``masks`` into one file of ``form``: ``png``, ``nifti`` or ``seg``; several of them into a ZIP of files.

    Raises:
        Refused: 404 the image is not held; 413 it is too large for this form; 422 a mask, or this form for this kind of
            image, cannot be used.
    """
    upload = service.images.require(image_id)
    for wanted in masks:
        service.images.require(image_id, wanted.frame)
    layers = _layers(masks)
    if form == "seg" and upload.kind != "dicom":
        raise Refused(422, f"DICOM SEG refers to a DICOM source, this is a {upload.kind}: choose nifti", field="format")
    height, width = upload.size
    if form != "png" and upload.count * height * width > MAX_VOXELS:  # which are in memory together
        raise Refused(
            413,
            f"{upload.count} x {height} x {width} pixels; at most {MAX_VOXELS} in one file: choose png",
            field="format",
        )
    make = _pngs if form == "png" else _with_imaging
    return await service.in_pool(lambda: make(service, upload, layers, form))


Layers = dict[str, dict[int, Wanted]]  # name of a structure to its mask on each frame


def _layers(masks: Sequence[Wanted]) -> Layers:
    layers: Layers = {}
    asked = {(wanted.prompt, wanted.adapter) for wanted in masks}
    answers = Counter(prompt for prompt, _ in asked)  # of several adapters to the same prompt, each says whose it is
    for number, wanted in enumerate(masks):
        several = answers[wanted.prompt] > 1
        name = f"{wanted.prompt} ({wanted.adapter or 'base model'})" if several else wanted.prompt
        if wanted.frame in layers.get(name, {}):
            raise Refused(422, f"'{wanted.prompt}' is given twice for one frame", field=f"masks[{number}].prompt")
        layers.setdefault(name, {})[wanted.frame] = wanted
    return layers


def _pngs(_: Service, upload: Upload, layers: Layers, __: str) -> MadeFile:
    made = [
        (
            f"{prompt_slug(name)}{f'_{frame:04d}' if upload.count > 1 else ''}.png",
            png(mask_of(wanted.png, upload.size, "masks.png").astype(np.uint8) * 255),
        )
        for name, frames in layers.items()
        for frame, wanted in sorted(frames.items())
    ]
    return _one_or_zip(made, "image/png")


def _with_imaging(service: Service, upload: Upload, layers: Layers, form: str) -> MadeFile:
    from vlsm_adapter.imaging.base import AnswerOptions, OutputNames
    from vlsm_adapter.imaging.dicom_seg import Provenance
    from vlsm_adapter.imaging.inputs import find_stacks
    from vlsm_adapter.imaging.masks_out import write_answers

    options = AnswerOptions(form="seg" if form == "seg" else "nifti")
    prompts = list(layers)
    slugs = [prompt_slug(prompt) for prompt in prompts]
    names = OutputNames("masks", (slugs[0],) if len(slugs) == 1 else tuple(slugs))
    named = {wanted.adapter for frames in layers.values() for wanted in frames.values() if wanted.adapter}
    folder_of = {one.name: one.folder for one in service.library.all()} if len(named) == 1 else {}
    weights = folder_of[name] / "adapter_model.safetensors" if (name := next(iter(named), "")) in folder_of else None
    provenance = Provenance(
        adapter=", ".join(sorted(named)) or "not stated",
        adapter_hash=hashlib.sha256(weights.read_bytes()).hexdigest() if weights and weights.is_file() else "",
        base=service.base_id,
    )
    with service.scratch.passing() as folder:
        stack: Stack
        if upload.stack is not None:
            stack = upload.stack
        else:
            assert upload.pixels is not None
            stack = find_stacks([service.scratch.write(folder, "picture.png", png(upload.pixels))]).stacks[0]
        try:
            with upload.lock:
                write_answers(stack, folder / "out", names, prompts, _answers(upload, layers), options, provenance)
        except UserError as error:
            message = str(error)
            for place in (folder, upload.folder, service.scratch.root):
                message = message.replace(f"{place}/", "")
            raise Refused(422, message, field="format") from None
        files = sorted(path for path in (folder / "out").rglob("*") if path.is_file())
        media_type = "application/dicom" if form == "seg" else "application/gzip"
        return _one_or_zip([(path.name, path.read_bytes()) for path in files], media_type)


def _answers(upload: Upload, layers: Layers) -> Iterator[PictureAnswer]:
    """A map per structure on every picture: 1 in its mask, 0 elsewhere and on pictures without one."""
    from vlsm_adapter.imaging.base import PictureAnswer

    nothing = np.zeros(upload.size, np.float32)
    unseen = np.zeros((*upload.size, 3), np.uint8)  # pictures are for overlays, which are not made here
    for index in range(upload.count):
        maps = [
            mask_of(frames[index].png, upload.size, "masks.png").astype(np.float32) if index in frames else nothing
            for frames in layers.values()
        ]
        yield PictureAnswer(index, unseen, maps)


def _one_or_zip(made: Sequence[tuple[str, bytes]], media_type: str) -> MadeFile:
    if len(made) == 1:
        return MadeFile(made[0][1], made[0][0], media_type)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:  # what is in it is compressed already
        for name, content in made:
            archive.writestr(zipfile.ZipInfo(Path(name).name), content)
    return MadeFile(stream.getvalue(), "masks.zip", "application/zip")
