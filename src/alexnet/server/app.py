"""`alexnet serve`: routes, the checks before them, errors as JSON, startup and shutdown."""

import hmac
import ipaddress
import logging
import mimetypes
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from types import FrameType
from typing import Annotated, Any

import captum  # noqa: F401 - if missing, fail at startup, not at the first request for an explanation
import uvicorn
from fastapi import Depends, FastAPI, Query
from fastapi.exceptions import RequestValidationError
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

import alexnet
from alexnet.data.decode import MAX_PIXELS
from alexnet.errors import AlexNetError, Interrupted, error_reason, printable
from alexnet.network.alexnet import AlexNet
from alexnet.page.describe import WEB, describe
from alexnet.run import ModelConfig, RunFolder
from alexnet.server import schemas
from alexnet.server.engine import Engine
from alexnet.server.limits import Limits, Quotas
from alexnet.server.middleware import AccessLog, configure_logging
from alexnet.server.uploads import Upload, read_uploads

KEY = "ALEXNET_API_KEY"
SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-cache",
}
Top = Annotated[int, Query(ge=1, le=100_000, description="Labels for each image.")]

mimetypes.add_type("text/javascript", ".js")  # Windows takes it from the registry, where it may be text/plain


def serve(folder: RunFolder, network: AlexNet, config: ModelConfig, host: str, port: int, views: int | None = None) -> None:
    """Serve a run over HTTP until Ctrl-C or SIGTERM, answer the pending requests, then raise Interrupted."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        word = "interrupted" if number == signal.SIGINT else "terminated"
        raise Interrupted(f"{word}: pending requests were answered", 128 + number)

    listening = listen(host, port)
    configure_logging()
    server = make_server(Engine(network, config, views), folder, config, Limits(), listening, os.environ.get(KEY) or None)
    signals = [signal.SIGINT, signal.SIGTERM] if threading.current_thread() is threading.main_thread() else []
    before = {number: signal.signal(number, interrupt) for number in signals}
    try:
        server.run([listening])  # shuts down at a signal, then raises it again
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def make_server(
    engine: Engine, folder: RunFolder, config: ModelConfig, limits: Limits, listening: socket.socket, key: str | None
) -> uvicorn.Server:
    """Return a server that has not been started."""
    address, port = listening.getsockname()[:2]
    local, name = ipaddress.ip_address(address).is_loopback, f"[{address}]" if ":" in address else address
    if not local and key is None:
        logging.warning("anyone who reaches this machine may ask: set %s to require a key", KEY)
    hosts = {"localhost", "127.0.0.1", "[::1]", name} if local else {"*"}
    app = build_app(engine, described(folder, config, limits, key), limits, hosts, key, f"http://{name}:{port}")
    settings = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        headers=list(SECURITY_HEADERS.items()),
        limit_concurrency=limits.connections,
        h11_max_incomplete_event_size=limits.head,
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=int(limits.body_seconds + limits.answer_seconds),
    )
    return uvicorn.Server(settings)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; AlexNetError if the address cannot be bound."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address, family=family)
    except OSError as error:
        reason = error_reason(error).partition(" (while")[0]
        raise AlexNetError(f"cannot listen on {host}, port {port}: {reason}; try another --port") from error


def build_app(engine: Engine, model: schemas.Model, limits: Limits, hosts: set[str], key: str | None, url: str) -> FastAPI:
    """Return the application; it prints `url` when it starts.

    Only `hosts` are allowed in the Host header (`*`: any); otherwise, a page of another site could use a name that points to
    this machine (DNS rebinding). `POST` needs the API `key`, if any; `GET /model` answers `model`.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with engine.running():
            print(f"{'serve':10}  {url}  (Ctrl-C to stop)", flush=True)
            yield

    # docs_url, redoc_url: those pages load scripts from elsewhere.
    app = FastAPI(title="AlexNet", version=alexnet.__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    app.add_middleware(AccessLog)
    for error in (HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(error, error_response)
    app.state.key = key
    quotas = Quotas(limits)
    post: dict[str, Any] = {"responses": schemas.ERRORS, "openapi_extra": schemas.BODY}
    post["dependencies"] = [Depends(check_site), Depends(check_key)] if key else [Depends(check_site)]

    @app.post("/predict", response_model=list[schemas.Prediction | schemas.Unreadable], summary="Classify images", **post)
    async def predict(request: Request, top: Top = 5) -> Any:
        async with read_uploads(request, limits, quotas) as uploads:
            return await engine.predict(uploads, top)

    @app.post("/preview", response_model=schemas.Preview, summary="Convert an image to one that browsers show", **post)
    async def preview(request: Request) -> Any:
        async with read_uploads(request, limits, quotas) as uploads:
            return await engine.preview(only(uploads, "to be shown"))

    @app.post("/explain", response_model=schemas.Explanation, summary="Explain the prediction of an image", **post)
    async def explain(request: Request) -> Any:
        quotas.check("explanations")
        async with read_uploads(request, limits, quotas) as uploads:
            upload = only(uploads, "to be explained")
            with quotas.use("explanations"):
                return await engine.explain(upload)

    @app.get("/model", summary="Describe the run")
    async def get_model() -> schemas.Model:
        return model

    @app.get("/healthz", summary="Check that the server answers")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    app.add_route("/", lambda _: FileResponse(WEB / "index.html"), include_in_schema=False)
    app.mount("/static", StaticFiles(directory=WEB))
    return app


def described(folder: RunFolder, config: ModelConfig, limits: Limits, key: str | None) -> schemas.Model:
    """Return the answer of `GET /model`; RunError if the run's summary cannot be read."""
    return schemas.Model(**describe(folder, config), limits={**asdict(limits), "pixels": MAX_PIXELS}, key=key is not None)


def only(uploads: list[Upload], purpose: str) -> Upload:
    """Return the image of a request; status 413 if there are several."""
    if len(uploads) > 1:
        raise HTTPException(413, f"{len(uploads)} images: send one at a time {purpose}")
    return uploads[0]


async def check_site(request: Request) -> None:
    """Refuse requests that a browser sends on behalf of another site."""
    if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        raise HTTPException(403, "requests from pages of other sites are refused")


async def check_key(
    request: Request,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
    header: Annotated[str | None, Depends(APIKeyHeader(name="X-API-Key", auto_error=False))],
) -> None:
    """Refuse requests without the API key."""
    given, key = (bearer.credentials if bearer else "", header or ""), request.app.state.key.encode()
    if not any([hmac.compare_digest(each.encode(), key) for each in given]):
        reason = "an API key is needed: Authorization: Bearer KEY, or X-API-Key: KEY"
        raise HTTPException(401, reason, {"WWW-Authenticate": "Bearer"})


async def error_response(request: Request, error: Exception) -> Response:
    """Return `{"error": "one line"}`."""
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        return JSONResponse({"error": printable(f"{first['loc'][-1]}: {first['msg']}")}, 422)
    if not isinstance(error, HTTPException):
        return JSONResponse({"error": "internal server error: see the server's log"}, 500)
    message, headers = error.detail, dict(error.headers or {})
    if error.status_code == 405:
        headers = {"Allow": "POST, OPTIONS" if "POST" in headers["Allow"] else "GET, HEAD, OPTIONS"}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
    if error.status_code in (404, 405):
        message = f"{message}: {request.method} {request.url.path[:100]}"
    return JSONResponse({"error": printable(message)}, error.status_code, headers)
