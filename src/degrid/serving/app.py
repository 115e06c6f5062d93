"""The server's paths: predictions, receptive fields, the models, and the page."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import numpy as np
import torch
from fastapi import APIRouter, FastAPI, File, Form, Query, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response

from degrid.analysis.receptive_field import influence
from degrid.bands import open_scene, read_scene
from degrid.contracts import ExportedNetwork
from degrid.engine.inference.adapted import adapted
from degrid.engine.inference.options import Prediction
from degrid.engine.inference.predictor import Predictor
from degrid.engine.memory import available_to_process
from degrid.files import printable
from degrid.image import palette_image
from degrid.serving import answers
from degrid.serving.answers import Output, answer_for, field_answer, png_of
from degrid.serving.guard import Guard
from degrid.serving.served import Served, ServeLimits, Worker
from degrid.serving.uploads import RefusedError, named, save_images
from degrid.types import UserError
from degrid.version import VERSION

T = TypeVar("T")
_FIELD_SIDE = 513
"""Side of the part of an image in which a receptive field is measured, pixels: its gradient takes much memory."""
_ANY = {"file": "an image as a file", "files": "images as files"}
_PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": answers.Problem, "description": description}
    for status, description in (
        (400, "the form cannot be read"),
        (401, "the token is missing or wrong"),
        (403, "requested in the name of another host or site"),
        (404, "no model of this name"),
        (408, "the request arrived too slowly"),
        (413, "more bytes, pixels or files than allowed"),
        (415, "not an image of a supported kind"),
        (422, "an image or a value that cannot be used"),
        (503, "too many requests are waiting; Retry-After says when to retry"),
    )
}
_NO_BODY_PROBLEMS: dict[int | str, dict[str, Any]] = {status: _PROBLEMS[status] for status in (401, 403)}
router = APIRouter()

Files = Annotated[list[UploadFile], File(min_length=1, description="One or more images.")]
OneFile = Annotated[UploadFile, File(description="An image.")]
Name = Annotated[str | None, Query(description="A name from /models; by default the first.")]
Outputs = Annotated[
    list[Output] | None,
    Query(description="What to return besides the pixels per class; may be repeated. By default ids."),
]


class Service:
    """What the paths share: the models, the thread they run in, and the limits."""

    def __init__(self, models: Sequence[Served], limits: ServeLimits) -> None:
        self.models = {served.name: served for served in models}
        self.limits, self.worker = limits, Worker(limits.waiting)

    def model(self, name: str | None) -> Served:
        """A model by its name.

        Raises:
            RefusedError: there is none.
        """
        found = next(iter(self.models.values())) if name is None else self.models.get(name)
        if found is None:
            raise RefusedError(404, f'no model "{name}"; there are {", ".join(self.models)}')
        return found

    async def run(self, request: Request, job: Callable[[], T], every: float = 1) -> T:
        """The result of a job in the models' thread; it is not begun if its sender has gone meanwhile.

        Args:
            every: how often that is looked after, seconds.
        """
        future = self.worker.submit(job)
        result = asyncio.wrap_future(future)
        while not (await asyncio.wait({result}, timeout=every))[0]:
            if not future.running() and await request.is_disconnected():
                future.cancel()
        return await result


def make_app(models: Sequence[Served], limits: ServeLimits | None = None, token: str | None = None) -> FastAPI:
    """The server as an ASGI application.

    Args:
        models: at least one; their names differ.
        token: that requests need; None: requests from this machine only.
    """
    limits = limits or ServeLimits()
    service = Service(models, limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.worker.close)

    # FastAPI's pages of documentation load scripts from another host.
    app = FastAPI(title="degrid", version=VERSION, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    app.include_router(router)
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_middleware(cast(Any, Guard), worker=service.worker, limits=limits, token=token)
    return app


@router.post("/predict", response_model=answers.Predictions, responses=_PROBLEMS)
async def predict(request: Request, files: Files, model: Name = None, output: Outputs = None) -> Response:
    """Segment one or more images."""
    service = _service(request)
    served, wanted = service.model(model), set(output or [Output.ids])
    if len(files) > service.limits.files:
        raise RefusedError(413, f"a request may have {service.limits.files} images, got {len(files)}")
    with ExitStack() as held:
        found = []
        for name, path in await _saved(files, held, service.limits):
            sure = bool(wanted & {Output.polygons, Output.rle, Output.raw})
            job = functools.partial(_predicted, served, path, name, sure)
            prediction, confidence = await service.run(request, job)
            found.append(await run_in_threadpool(answer_for, name, prediction, confidence, served.labels, wanted))
    return JSONResponse({"model": served.name, "images": found})


@router.post("/predict.png", response_class=Response, responses={200: {"content": {"image/png": {}}}, **_PROBLEMS})
async def predict_png(request: Request, file: OneFile, model: Name = None) -> Response:
    """Segment one image: a PNG of class ids with a palette, as `degrid predict` writes it."""
    service = _service(request)
    served = service.model(model)
    with ExitStack() as held:
        ((name, path),) = await _saved([file], held, service.limits)
        prediction, _ = await service.run(request, functools.partial(_predicted, served, path, name, False))
    picture = palette_image(prediction.ids, served.labels)
    return Response(await run_in_threadpool(png_of, picture), media_type="image/png")


@router.post("/receptive_field", response_model=answers.ReceptiveField, responses=_PROBLEMS)
async def receptive_field(
    request: Request,
    file: OneFile,
    x: Annotated[int, Form(ge=0, description="Column of the pixel.")],
    y: Annotated[int, Form(ge=0, description="Row of the pixel.")],
    model: Name = None,
) -> Response:
    """The pixels of the image on which the class of one of them depends, and how much."""
    service = _service(request)
    served = service.model(model)
    with ExitStack() as held:
        ((name, path),) = await _saved([file], held, service.limits)
        answer = await service.run(request, functools.partial(_seen, served, path, name, x, y))
    return JSONResponse(answer)


@router.get("/models", response_model=answers.Models, responses=_NO_BODY_PROBLEMS)
async def models(request: Request) -> Response:
    """The models and their classes."""
    rows = []
    for served in _service(request).models.values():
        pairs = zip(served.labels.names, served.labels.colors, strict=True)
        rows.append(
            {
                "name": served.name,
                "classes": [{"id": index, "name": name, "color": color} for index, (name, color) in enumerate(pairs)],
                "bands": served.predictor.bands.count,
                "precision": str(served.predictor.network),
                "receptive_fields": _has_gradients(served),
            }
        )
    return JSONResponse({"models": rows})


@router.get("/health", response_model=answers.Health, responses={403: _NO_BODY_PROBLEMS[403]})
async def health(request: Request) -> Response:
    """Whether the server answers, and how many requests it is working on."""
    return JSONResponse({"status": "ok", "requests": _service(request).worker.taken})


async def _page(request: Request) -> Response:
    name, kind = _PAGE[request.url.path]
    content = resources.files("degrid.serving").joinpath("page", name).read_bytes()
    return Response(content, media_type=kind, headers={"cache-control": "no-cache"})


for _path in _PAGE:
    router.add_api_route(_path, _page, methods=["GET", "HEAD"], include_in_schema=False)
# Monitoring programs request only the headers.
router.add_api_route("/models", models, methods=["HEAD"], include_in_schema=False)
router.add_api_route("/health", health, methods=["HEAD"], include_in_schema=False)


def _service(request: Request) -> Service:
    return cast(Service, request.app.state.service)


async def _saved(files: Sequence[UploadFile], held: ExitStack, limits: ServeLimits) -> list[tuple[str, Path]]:
    """The names of the uploads, and where they are stored meanwhile."""
    names = [printable(file.filename or f"image {number}")[:200] for number, file in enumerate(files, start=1)]
    uploads = [(name, file.file) for name, file in zip(names, files, strict=True)]
    paths = await run_in_threadpool(save_images, uploads, held, limits.pixels)
    return list(zip(names, paths, strict=True))


def _predicted(served: Served, path: Path, name: str, sure: bool) -> tuple[Prediction, np.ndarray | None]:
    """The prediction, and where wanted and possible the confidence."""
    with named(path, name):
        prediction = served.predictor.predict(open_scene(path, served.predictor.bands, available_to_process()))
    return prediction, served.predictor.confidence(prediction) if sure else None


def _has_gradients(served: Served) -> bool:
    predictor = served.predictor
    return isinstance(predictor, Predictor) and not isinstance(predictor.model, ExportedNetwork)


def _seen(served: Served, path: Path, name: str, x: int, y: int) -> dict[str, Any]:
    """The fields of `answers.ReceptiveField`.

    Raises:
        RefusedError: the pixel is outside the image, or the model gives no gradients.
    """
    if not _has_gradients(served):
        raise RefusedError(422, f"{served.name} is an exported file, which gives no gradients")
    predictor = cast(Any, served.predictor)
    with named(path, name):
        pixels = read_scene(path, predictor.bands).pixels
        height, width = pixels.shape[:2]
        if not (x < width and y < height):
            raise UserError(f"expected a pixel in the image of {width}x{height}, got x {x}, y {y}")
        top, left = (max(0, min(at - _FIELD_SIDE // 2, side - _FIELD_SIDE)) for at, side in ((y, height), (x, width)))
        part = torch.from_numpy(
            np.ascontiguousarray(pixels[top:, left:][:_FIELD_SIDE, :_FIELD_SIDE].transpose(2, 0, 1))
        )
        field, best = influence(
            adapted(predictor.model), part.to(predictor.device), y - top, x - left, predictor.resize
        )
    answer = field_answer(served.name, field, y - top, x - left, (left, top))
    return {**answer, "id": best, "name": served.labels.names[best]}


async def _refused(request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, status_code=cast(RefusedError, error).status)


async def _invalid(request: Request, error: Exception) -> Response:
    """FastAPI's list of faults as one sentence."""
    faults = map(_fault, cast(RequestValidationError, error).errors())
    return JSONResponse({"detail": "; ".join(dict.fromkeys(faults))}, status_code=422)


def _fault(found: dict[str, Any]) -> str:
    """The fault of a value, in words for its sender."""
    place, name = found["loc"][0], str(found["loc"][1]) if len(found["loc"]) > 1 else ""
    if name in ("file", "files"):
        return f"{name}: expected {_ANY[name]} of a form, as curl -F {name}=@photo.jpg sends"
    if found["type"] == "missing":
        return f"{name}: expected a value {'of the form' if place == 'body' else 'in the address'}, got none"
    return f"{name or place}: {found['msg']}"
