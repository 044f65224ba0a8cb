"""The HTTP routes, the limits of a request, and errors as RFC 9457 problem documents.

    curl -H 'Content-Type: image/png' --data-binary @a.png http://127.0.0.1:8000/v1/encode
    curl -F image=@a.png -F 'set={"0": 1.2}' -F seed=0 -F steps=20 http://127.0.0.1:8000/v1/edit -o out.png

An uploaded image may have any size. The service turns it upright, scales it so that its shorter side fits the model,
crops it to its centre, and converts it to RGB, or to grey if the model was trained on grey images. Equal requests get
equal bytes, whatever other requests the service answers at the same time.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Form, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raydis.editor.editor import EditError
from raydis.serve.images import MAX_BODY_BYTES, MAX_PIXELS, MEDIA_TYPES, ImageError, ImageTooLarge
from raydis.serve.schemas import Edit, EditForm, Encoding, Health, ModelFacts, Problem
from raydis.serve.service import Service
from raydis.version import __version__

FORM = "multipart/form-data"
MAX_LISTED_ERRORS = 5
STATUS_OF = {EditError: 422, ImageError: 422, ImageTooLarge: 413}

_PROBLEM: dict[str, Any] = {"content": {"application/problem+json": {"schema": Problem.model_json_schema()}}}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {**_PROBLEM, "description": "The multipart body is malformed."},
    413: {
        **_PROBLEM,
        "description": f"More than {MAX_BODY_BYTES} bytes, or an image of more than {MAX_PIXELS} pixels.",
    },
    415: {**_PROBLEM, "description": "The Content-Type is not one of those listed."},
    422: {**_PROBLEM, "description": "No usable image, or a parameter that is unknown or out of range."},
    503: {"description": "Too many requests wait already; try again after Retry-After seconds."},
}
_FILE = {"type": "string", "format": "binary"}
ENCODE_BODY = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": _FILE} for kind in MEDIA_TYPES}
        | {FORM: {"schema": {"type": "object", "required": ["image"], "properties": {"image": _FILE}}}},
    }
}

router = APIRouter()


def create_app(service: Service) -> FastAPI:
    """Return the HTTP application that answers with a service."""
    app = FastAPI(
        title="raydis",
        version=__version__,
        summary="Encode images into disentangled units and edit them unit by unit.",
        description=__doc__ or "",
    )
    app.state.service = service
    app.include_router(router)
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
    for kind in (RequestValidationError, HTTPException, *STATUS_OF):
        app.add_exception_handler(kind, _refused)
    return app


def present_service(request: Request) -> Service:
    """Return the service of the application."""
    return request.app.state.service


Present = Annotated[Service, Depends(present_service)]


def media_type(request: Request) -> str:
    """Return the Content-Type of a request without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def require_form(request: Request) -> None:
    """Raise HTTPException 415 unless the body is a multipart form."""
    if media_type(request) != FORM:
        raise _unsupported(request, FORM)


async def uploaded_image(request: Request) -> bytes:
    """Return the image file that is the body, or the field `image` of a multipart body."""
    kind = media_type(request)
    if kind in MEDIA_TYPES:
        return await request.body()
    if kind != FORM:
        raise _unsupported(request, f"{', '.join(MEDIA_TYPES)} or {FORM}")
    async with request.form(max_files=1, max_fields=0) as form:
        image = form.get("image")
        if not isinstance(image, UploadFile):
            raise HTTPException(422, "the form has no file `image`: send one, as `curl -F image=@a.png` does")
        return await image.read()


@router.get("/healthz", summary="Is the service alive?")
async def healthz() -> Health:
    return Health()


@router.get("/v1/model", summary="The model that answers, its units and their ranges")
async def model(service: Present) -> ModelFacts:
    return ModelFacts.of(service.model)


@router.post("/v1/encode", summary="Image to units", responses=PROBLEMS, openapi_extra=ENCODE_BODY)
async def encode(image: Annotated[bytes, Depends(uploaded_image)], service: Present) -> Encoding:
    """Encode an image. The body is the image file itself, or a multipart form with the file in `image`."""
    return Encoding.of(service.model, await service.encode(image))


@router.post(
    "/v1/edit",
    summary="Image and operations to image",
    response_class=Response,
    response_model=None,
    dependencies=[Depends(require_form)],
    responses={200: {"model": Edit, "content": {"image/png": {"schema": _FILE}}}, **PROBLEMS},
)
async def edit(form: Annotated[EditForm, Form(media_type=FORM)], request: Request, service: Present) -> Response:
    """Draw an image again with some units changed. The answer is a PNG, or JSON if the request accepts that."""
    edited = await service.edit(
        await form.image.read(),
        set=form.set,
        shift=form.shift,
        seed=form.seed,
        steps=form.steps,
        sampler=form.sampler,
        keep_details=form.keep_details,
    )
    if "application/json" in request.headers.get("accept", ""):
        return JSONResponse(Edit.of(service.model, edited, form).model_dump())
    return Response(edited.png, media_type="image/png", headers={"Raydis-Model": str(service.model.ref)})


class BodyLimit:
    """ASGI middleware that refuses a body above a size, by its declared length or, without one, while it arrives."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        error = HTTPException(413, f"the body is larger than {self.max_bytes} bytes: send a smaller file")
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > self.max_bytes:
            return await _problem(413, error.detail)(scope, receive, send)
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise error
            return message

        return await self.app(scope, limited, send)


def _problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    problem = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail)
    return JSONResponse(problem.model_dump(), status, headers, "application/problem+json")


def _unsupported(request: Request, wanted: str) -> HTTPException:
    found = media_type(request) or "missing"
    return HTTPException(415, f"the Content-Type is {found}: send {wanted}")


async def _refused(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return _problem(error.status_code, error.detail, dict(error.headers or {}))
    if isinstance(error, RequestValidationError):
        return _problem(422, _wrong_parameters(error))
    return _problem(STATUS_OF[type(error)], str(error))


def _wrong_parameters(error: RequestValidationError) -> str:
    """Return what is wrong with each parameter. The values are left out: they may be long, or no JSON."""
    found = [
        f"{'.'.join(str(part) for part in each['loc'] if part != 'body')}: {each['msg']}" for each in error.errors()
    ]
    more = [f"and {len(found) - MAX_LISTED_ERRORS} more"] if len(found) > MAX_LISTED_ERRORS else []
    return "; ".join(found[:MAX_LISTED_ERRORS] + more)
