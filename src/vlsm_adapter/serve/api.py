"""The routes: HTTP in, HTTP out; what they do is in :mod:`.service`, what stands before them in :mod:`.guard`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from vlsm_adapter import __version__
from vlsm_adapter.serve import schema
from vlsm_adapter.serve.docs_page import STYLE, docs_page
from vlsm_adapter.serve.downloads import Wanted, download
from vlsm_adapter.serve.forms import FILE_FORM, SEGMENT_FORM, read_form
from vlsm_adapter.serve.guard import Guard
from vlsm_adapter.serve.page_files import page_files
from vlsm_adapter.serve.problems import Refused
from vlsm_adapter.serve.service import Query as Asked
from vlsm_adapter.serve.service import Service

_ABOUT = (
    "Segments medical images by prompt, with several adapters on one base model. Research software, not a medical "
    "device: its output needs review by a qualified person."
)
_REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": schema.Problem, "description": "The request cannot be answered; what to change."},
    503: {"model": schema.Problem, "description": "Not now: ask again after the seconds in Retry-After."},
}
ImageId = Annotated[str, Path(max_length=100)]
AdapterName = Annotated[str, Path(max_length=200)]


def make_app(service: Service) -> FastAPI:
    """The application around ``service``; it closes the service when it ends."""

    @contextlib.asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        import asyncio

        tidying = asyncio.create_task(service.tidy())
        try:
            yield
        finally:
            tidying.cancel()
            await asyncio.to_thread(service.close)

    app = FastAPI(
        title="vlsm-adapter",
        version=__version__,
        description=_ABOUT,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=life,
        responses=_REFUSALS,
    )
    app.add_middleware(Guard, service=service)
    app.exception_handlers.update({Refused: _refused, RequestValidationError: _invalid, HTTPException: _http_error})
    _add_adapters(app, service)
    _add_images(app, service)
    _add_questions(app, service)
    _add_masks(app, service)
    _add_operations(app, service)
    _add_pages(app)
    return app


def _add_adapters(app: FastAPI, service: Service) -> None:
    @app.get("/v1/adapters", tags=["adapters"])
    async def adapters() -> schema.Adapters:
        """The base model, and every adapter in the server's folder."""
        return schema.Adapters(**await service.adapters(), corrections=service.corrections is not None)

    @app.post("/v1/adapters/{name}", tags=["adapters"])
    async def load(name: AdapterName) -> schema.AdapterCard:
        """Load an adapter, or load it anew after its folder has changed."""
        return schema.AdapterCard(**await service.load(name))

    @app.delete("/v1/adapters/{name}", tags=["adapters"])
    async def unload(name: AdapterName) -> schema.Unloaded:
        """Take an adapter out of memory."""
        return schema.Unloaded(**await service.unload(name))


def _add_images(app: FastAPI, service: Service) -> None:
    @app.post("/v1/images", tags=["images"], openapi_extra=FILE_FORM)
    async def upload(request: Request) -> schema.ImageCard:
        """Keep an image in memory, to ask about it: PNG, JPEG, TIFF, BMP, WebP, NIfTI or DICOM."""
        form = await read_form(request, service.settings)
        return schema.ImageCard(**await service.upload(form.content, form.name))

    @app.get(
        "/v1/images/{image_id}/picture",
        tags=["images"],
        response_class=Response,
        responses={200: {"content": {"image/png": {}}}},
    )
    async def picture(image_id: ImageId, frame: Annotated[int, Query(ge=0)] = 0) -> Response:
        """A picture as the model is shown it, for display."""
        content = await service.picture(image_id, frame)
        # The id is a hash of the file: under it there is never another picture.
        return Response(content, media_type="image/png", headers={"Cache-Control": "private, max-age=3600, immutable"})

    @app.delete("/v1/images/{image_id}", tags=["images"], status_code=204, response_class=Response)
    async def forget(image_id: ImageId) -> Response:
        """Forget an image and all that was computed from it."""
        await service.forget(image_id)
        return Response(status_code=204)


def _add_questions(app: FastAPI, service: Service) -> None:
    answer: dict[int | str, dict[str, Any]] = {200: {"model": schema.SegmentAnswer}}

    @app.post("/v1/segment", tags=["segment"], response_class=Response, responses=answer)
    async def segment(body: schema.SegmentRequest) -> Response:
        """Ask prompts about an uploaded image, of one adapter or of several."""
        queries = [Asked(query.prompt, query.adapter, query.threshold) for query in body.queries]
        _check_prompts(service, [query.prompt for query in queries])
        content = await service.segment(body.image_id, body.frame, queries, body.form)
        return Response(content, media_type="application/json")

    @app.post(
        "/v1/segment/file", tags=["segment"], response_class=Response, responses=answer, openapi_extra=SEGMENT_FORM
    )
    async def segment_file(request: Request) -> Response:
        """Upload an image and ask about it, in one request; ``adapter`` may be given several times."""
        form = await read_form(request, service.settings)
        if not form.prompts:
            raise Refused(
                422, "no prompt: say what to segment in the field 'prompt', once or several times", field="prompt"
            )
        _check_prompts(service, [prompt for _ in form.adapters for prompt in form.prompts], "prompt")
        image = await service.upload(form.content, form.name)
        queries = [Asked(prompt, adapter, form.threshold) for adapter in form.adapters for prompt in form.prompts]
        content = await service.segment(str(image["image_id"]), form.frame, queries, form.form)
        return Response(content, media_type="application/json")


def _add_masks(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/download",
        tags=["masks"],
        response_class=Response,
        responses={200: {"content": {"application/octet-stream": {}}, "description": "The file."}},
    )
    async def make_file(body: schema.DownloadRequest) -> Response:
        """Make masks into a file: PNG (several: a ZIP of them), NIfTI, or DICOM SEG of a DICOM upload."""
        # A mask for each frame of a volume is one structure, whose prompt is asked once.
        structures = {(mask.prompt, mask.adapter) for mask in body.masks}
        _check_prompts(service, [mask.prompt for mask in body.masks], "masks[{}].prompt", count=len(structures))
        masks = [
            Wanted(mask.prompt, mask.png, body.frame if mask.frame is None else mask.frame, mask.adapter)
            for mask in body.masks
        ]
        file = await download(service, body.image_id, masks, body.format)
        disposition = f"attachment; filename*=UTF-8''{quote(file.name, safe='')}"
        return Response(file.content, media_type=file.media_type, headers={"Content-Disposition": disposition})

    @app.post("/v1/corrections", tags=["masks"])
    async def correct(body: schema.CorrectionRequest) -> schema.Saved:
        """Save a corrected mask, to train on; one of the same picture and prompt takes the place of the one before."""
        _check_prompts(service, [body.prompt], "prompt")
        return schema.Saved(**await service.correct(body.image_id, body.frame, body.prompt, body.adapter, body.png))


def _add_operations(app: FastAPI, service: Service) -> None:
    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", tags=["operation"])
    async def health() -> schema.Health:
        """Whether the process works; an answer other than 200 means: restart it."""
        if not service.worker.alive:
            raise Refused(503, "the model's thread has ended")
        return schema.Health(status="ok")

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", tags=["operation"])
    async def ready() -> schema.Health:
        """Whether to send requests here now."""
        if problem := service.ready():
            raise Refused(503, problem, retry_after=2)
        return schema.Health(status="ready")

    @app.get("/metrics", tags=["operation"], response_class=Response)
    async def metrics() -> Response:
        """Measurements in Prometheus' format."""
        return Response(service.metrics.text(), headers={"Content-Type": service.metrics.content_type})


def _add_pages(app: FastAPI) -> None:
    files = page_files()
    documentation: list[str] = []

    def from_memory(request: Request, name: str) -> Response:
        file = files.get(name)
        if file is None:
            raise Refused(404, "no such page; see /docs")
        # Asked for again at every visit, sent again only when changed: an update shows at once.
        headers = {"ETag": file.etag, "Cache-Control": "no-cache"}
        if file.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers={**headers, "Content-Type": file.media_type})

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return from_memory(request, "index.html")

    @app.get("/static/{name:path}", include_in_schema=False)
    async def static(request: Request, name: str) -> Response:
        return from_memory(request, name)

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> JSONResponse:
        return JSONResponse(app.openapi())

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        if not documentation:
            documentation.append(docs_page(app.openapi()))
        return HTMLResponse(documentation[0])

    @app.get("/docs.css", include_in_schema=False)
    async def docs_style() -> Response:
        return Response(STYLE, media_type="text/css")


def _check_prompts(
    service: Service, prompts: Sequence[str], field: str = "queries[{}].prompt", *, count: int | None = None
) -> None:
    """Hold ``prompts``, which stand in ``field`` of the request, to the limits; ``count`` where not each of them counts."""
    settings = service.settings
    count = len(prompts) if count is None else count
    if count > settings.most_prompts:
        raise Refused(
            422, f"{count} prompts; at most {settings.most_prompts} per request", field=field.partition("[")[0]
        )
    for number, prompt in enumerate(prompts):
        if len(prompt) > settings.most_prompt_characters:
            raise Refused(
                422,
                f"a prompt of {len(prompt)} characters; at most {settings.most_prompt_characters}",
                field=field.format(number),
            )


async def _refused(_: Request, refused: Exception) -> Response:
    assert isinstance(refused, Refused)
    headers = {} if refused.retry_after is None else {"Retry-After": str(refused.retry_after)}
    return JSONResponse(refused.body(), refused.status, headers)


async def _invalid(_: Request, error: Exception) -> Response:
    """A request that does not fit its schema: the first thing wrong. What was sent is not repeated."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = [part for part in first["loc"] if part not in ("body", "query", "path")]
    if first["type"] == "json_invalid":
        return JSONResponse({"error": "the body is not JSON", "field": None}, 400)
    field = ""
    for part in where:
        field += f"[{part}]" if isinstance(part, int) else f".{part}" if field else str(part)
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown field; see /docs"
    return JSONResponse({"error": f"{field or 'the body'}: {message}", "field": field or None}, 422)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    # 400: JSON that Python's reader gives up on, such as a thousand brackets in each other.
    messages = {
        400: "the body is not JSON that can be read",
        404: "no such page; see /docs",
        405: "not with this method; see /docs",
    }
    message = messages.get(error.status_code, "the request cannot be read")
    return JSONResponse({"error": message, "field": None}, error.status_code, error.headers)
