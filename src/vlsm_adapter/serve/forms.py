"""Uploads as ``multipart/form-data``, kept in memory: the framework's own reader would lay files above 1 MiB on disk."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from vlsm_adapter.serve.answers import Form
from vlsm_adapter.serve.images import clean_name
from vlsm_adapter.serve.problems import Refused
from vlsm_adapter.serve.schema import plain_prompt
from vlsm_adapter.serve.settings import ServeSettings

_FIELDS = frozenset({"file", "prompt", "adapter", "threshold", "frame", "return"})
_FILE = {"type": "string", "format": "binary"}


def _documented(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": required}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


FILE_FORM = _documented({"file": _FILE}, ["file"])
SEGMENT_FORM = _documented(
    {
        "file": _FILE,
        "prompt": {"type": "array", "items": {"type": "string"}, "description": "What to segment; repeat for several."},
        "adapter": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Name of a loaded adapter; repeat for several. Without, or empty: the base model as it is.",
        },
        "threshold": {"type": "number", "minimum": 0, "maximum": 1},
        "frame": {"type": "integer", "minimum": 0},
        "return": {"type": "string", "enum": ["probability", "mask"]},
    },
    ["file", "prompt"],
)


@dataclass
class Uploaded:
    """What a form held.

    Attributes:
        content: bytes of the file.
        name: its name, cleaned.
        prompts, adapters, threshold, frame, form: as in a JSON request; ``adapters`` is [None] where none was named.
    """

    content: bytes
    name: str
    prompts: list[str] = field(default_factory=list)
    adapters: list[str | None] = field(default_factory=lambda: [None])
    threshold: float | None = None
    frame: int = 0
    form: Form = "probability"


async def read_form(request: Request, settings: ServeSettings) -> Uploaded:
    """The form of a request.

    Raises:
        Refused: 400, not a form; 422, no file, or a field that cannot be used.
    """

    class InMemory(MultiPartParser):
        spool_max_size = settings.most_body_bytes + 1  # never reached: the guard counts the whole body

    stream = request.stream()
    parser = InMemory(
        request.headers,
        stream,
        max_files=1,
        max_fields=2 * settings.most_prompts + 8,
        max_part_size=16 * 1024,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        async for _ in stream:  # a client reads the answer when it has sent all
            pass
        raise Refused(400, f"the form cannot be read: {error.message}") from None
    try:
        return await _uploaded(form)
    finally:
        await form.close()


async def _uploaded(form: FormData) -> Uploaded:
    for name in form:
        if name not in _FIELDS:
            raise Refused(422, f"unknown field; allowed: {', '.join(sorted(_FIELDS))}", field=name[:60])
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise Refused(422, "no file: send it as the field 'file', with a file name", field="file")
    texts = {name: [value for value in form.getlist(name) if isinstance(value, str)] for name in _FIELDS}
    try:
        prompts = [plain_prompt(text) for text in texts["prompt"]]
    except ValueError as error:
        raise Refused(422, f"a prompt {error}", field="prompt") from None
    given = Uploaded(content=b"", name=clean_name(file.filename), prompts=prompts)
    if texts["adapter"]:
        given.adapters = list(dict.fromkeys(text or None for text in texts["adapter"]))
    for text in texts["threshold"][:1]:
        given.threshold = _number(text)
    for text in texts["frame"][:1]:
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise Refused(422, "must be a whole number from 0", field="frame")
        given.frame = int(text)
    for text in texts["return"][:1]:
        if text not in ("probability", "mask"):
            raise Refused(422, "must be 'probability' or 'mask'", field="return")
        given.form = "mask" if text == "mask" else "probability"
    given.content = await file.read()
    return given


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise Refused(422, "must be a number from 0 to 1", field="threshold")
    return value
