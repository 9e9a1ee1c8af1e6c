"""The application: both protocols, health, limits and metrics, behind the guard."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

import pixart
from pixart.errors import PixArtError
from pixart.server import a1111, openai
from pixart.server.bodies import describe
from pixart.server.guard import Access, Guard, error_response
from pixart.server.service import ClientLeft, Refused, Service

logger = logging.getLogger("pixart.server")


def create_app(service: Service, access: Access, on_failure: Callable[[PixArtError], None]) -> Any:
    """The ASGI application. `on_failure` is called where a model cannot be loaded at the start."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(_load(service, on_failure))
        reloads: set[asyncio.Task] = set()

        def reload() -> None:
            task = asyncio.create_task(_load(service, None))
            reloads.add(task)
            task.add_done_callback(reloads.discard)

        with contextlib.suppress(AttributeError, NotImplementedError, RuntimeError, ValueError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
        yield
        loading.cancel()
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="pixart",
        version=pixart.__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(openai.router(service))
    app.include_router(a1111.router(service))

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    @app.get("/health")
    async def readyz() -> Response:
        """Loaded and warm, with room in the queue."""
        ready = service.ready and len(service.backend.live) < service.limits.max_queue
        return JSONResponse({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    @app.get("/v1/limits")
    async def limits() -> dict[str, int]:
        return asdict(service.limits)

    @app.get("/metrics")
    async def metrics() -> Response:
        live = service.backend.live
        service.metrics.running.set(sum(job.started is not None for job in live))
        service.metrics.waiting.set(sum(job.started is None for job in live))
        return Response(service.metrics.text(), media_type=service.metrics.content_type)

    @app.exception_handler(HTTPException)
    async def refused(http: Request, error: HTTPException) -> Response:
        param, code = (error.param, error.code) if isinstance(error, Refused) else (None, "")
        return error_response(http.url.path, error.status_code, error.detail, param, code, dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def invalid(http: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        media = http.headers.get("content-type", "").partition(";")[0].strip().lower()
        if first["loc"] == ("body",) and first["type"] != "json_invalid" and media != "application/json":
            return error_response(http.url.path, 415, "The body must be JSON, with Content-Type: application/json.")
        message, param = describe(first, getattr(error, "known", None) or _known_fields(http))
        return error_response(http.url.path, 400, message, param, first["type"])

    @app.exception_handler(ClientLeft)
    async def client_left(http: Request, error: ClientLeft) -> Response:
        return Response(status_code=499)

    @app.exception_handler(Exception)
    async def unexpected(http: Request, error: Exception) -> Response:
        return error_response(http.url.path, 500, "This failed inside pixart; the log says more.", code="internal")

    return Guard(app, access, service.limits, service.metrics)


async def _load(service: Service, on_failure: Callable[[PixArtError], None] | None) -> None:
    """All models at the start, then those whose files have changed."""
    try:
        names = await service.load(changed_only=on_failure is None)
        logger.info("loaded: %s", ", ".join(names) or "nothing has changed")
    except PixArtError as error:
        logger.error("not loaded: %s", error)
        if on_failure is not None:
            on_failure(error)


def _known_fields(http: Request) -> list[str]:
    """The names of the fields that the body of this route may have."""
    body = getattr(http.scope.get("route"), "body_field", None)
    fields = getattr(getattr(getattr(body, "field_info", None), "annotation", None), "model_fields", {})
    return list(fields)
