"""The routes: each reads, asks the engine, answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

import alexnet
from alexnet.errors import printable
from alexnet.server import schemas
from alexnet.server.engine import Engine
from alexnet.server.headers import error_body
from alexnet.server.limits import Limits, Refused, Rooms
from alexnet.server.page import page_file
from alexnet.server.uploads import received

Top = Annotated[int, Query(ge=1, le=100_000, description="Labels for each image.")]
POST = schemas.failures(400, 401, 403, 408, 413, 415, 422, 429)


def build(engine: Engine, limits: Limits, model: dict[str, Any]) -> FastAPI:
    """Return the application; `model` is what `GET /model` says."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with engine.running():
            yield

    # docs_url, redoc_url: those pages load scripts from elsewhere.
    app = FastAPI(
        title="AlexNet",
        version=alexnet.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    _answer_errors(app)
    _add_page(app)
    _add_answers(app, engine, limits, model)
    _describe_keys(app)
    return app


def _add_answers(app: FastAPI, engine: Engine, limits: Limits, model: dict[str, Any]) -> None:
    rooms = Rooms(limits)
    answer: dict[int | str, dict[str, Any]] = {200: {"model": list[schemas.Predicted | schemas.Unread]}}

    @app.post("/predict", summary="What is on images", responses=answer | POST, openapi_extra=schemas.BODY)
    async def predict(request: Request, top: Top = 5) -> Response:
        async with received(request, limits, rooms) as uploads:
            return _json(await engine.predict(uploads, top))

    explained: dict[int | str, dict[str, Any]] = {200: {"model": schemas.Explained}}

    @app.post("/explain", summary="Why it says so, of one image", responses=explained | POST, openapi_extra=schemas.BODY)
    async def explain(request: Request) -> Response:
        rooms.explanations.check()
        async with received(request, limits, rooms) as uploads:
            if len(uploads) > 1:
                raise Refused(413, f"{len(uploads)} images: send one at a time to be explained")
            with rooms.explanations.taking():
                return _json(await engine.explain(uploads[0]))

    @app.get("/model", summary="The run that answers", responses={200: {"model": schemas.Model}, **schemas.failures()})
    async def describe() -> Response:
        return _json(model)

    @app.get("/healthz", summary="Whether it answers", responses={200: {"model": schemas.Health}, **schemas.failures()})
    async def health() -> Response:
        return _json({"status": "ok"})


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return page_file("index.html")

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        return page_file(name)


def _json(content: Any) -> Response:
    return Response(json.dumps(content, ensure_ascii=False).encode(), media_type="application/json")


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return Response(error_body(message), status, headers, media_type="application/json")


def _answer_errors(app: FastAPI) -> None:
    """Say every error in the same form."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return _error(error.status, str(error), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _error(422, printable(f"{first['loc'][-1]}: {first['msg']}"))

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["allow"] = "POST, OPTIONS" if "POST" in headers.pop("Allow") else "GET, HEAD, OPTIONS"
            if request.method == "OPTIONS":
                return Response(status_code=204, headers=headers)
        where = f"{request.method} {request.url.path[:100]}"
        told = {404: f"nothing here: {where}", 405: f"not in this way: {where}"}.get(error.status_code, error.detail)
        return _error(error.status_code, printable(told), headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return _error(500, "something went wrong in the server: its log says what")


def _describe_keys(app: FastAPI) -> None:
    """Add to /openapi.json what FastAPI cannot know, as the key is looked at before it comes to a route."""
    document = app.openapi()
    document.setdefault("components", {})["securitySchemes"] = schemas.SECURITY
