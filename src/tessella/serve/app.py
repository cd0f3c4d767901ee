"""The application: routes of all protocols, errors in their dialects, and the gate around everything."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from .._version import __version__
from ..errors import TessellaError
from .collection import Collection as ImageCollection
from .disconnects import run_unless_disconnected as run_unless_disconnected
from .metrics import ServeMetrics
from .openapi import describe
from .problems import Problem, RequestError, make_problem, problem_of
from .routes import cohere, explanation, index, native, open_inference, openai, page, teaching
from .security import ClientGoneError, Gate, GateHooks
from .thumbnails import ByteCache

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .service import Service
    from .settings import ServeSettings

logger = logging.getLogger(__name__)

# Each module has a `router`, and may have `OPEN_PATHS`: exact paths of static files, which need no token; and
# `MODEL_PATHS`: exact paths whose POST requests run a model, so that the gate refuses them while there is no room.
ROUTES = (page, native, explanation, open_inference, openai, cohere, index, teaching)

DESCRIPTION = """Classification and embeddings of images.

Every answer has the header `X-Request-ID`, every error the header `X-Tessella-Error` with its code."""


def create_app(service: Service, settings: ServeSettings, *, log_requests: bool = False) -> Gate:
    """Return the ASGI application. log_requests: write one JSON object per request to the log.

    Opens the index of the settings. Raises UsageError `not_found`, `damaged_run`, `missing_dependency` without one.
    """
    app = FastAPI(
        title="Tessella",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,  # these pages load scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service, app.state.settings = service, settings
    app.state.collection = None if settings.index is None else ImageCollection(settings.index)
    app.state.thumbnails = ByteCache()
    open_paths: set[str] = set()
    routers = (app, *(module.router for module in ROUTES))
    app.state.routes = [route for router in routers for route in router.routes if isinstance(route, Route)]
    for module in ROUTES:
        app.include_router(module.router)
        open_paths |= set(getattr(module, "OPEN_PATHS", ()))
    app.add_exception_handler(TessellaError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientGoneError, _on_client_gone)
    app.add_exception_handler(Exception, _on_defect)
    describe(app, has_token=settings.token is not None, open_paths=open_paths)

    paths = frozenset[str]().union(*(getattr(module, "MODEL_PATHS", ()) for module in ROUTES))
    hooks = _hooks(service, paths)
    return Gate(ModelRoutes(app, paths), settings, open_paths=open_paths, hooks=hooks, log_requests=log_requests)


class ModelRoutes:
    """Calls the endpoints of exact paths that run models, and leaves all other requests to FastAPI.

    These endpoints take a Request and return a Response, so they need nothing of FastAPI's middleware, search for a
    route and resolution of dependencies, which would take a quarter of the time that the event loop has for a request.
    """

    def __init__(self, app: FastAPI, model_paths: Collection[str]) -> None:
        self.app = app
        self._routes = {
            route.path: route
            for route in app.state.routes
            if isinstance(route, APIRoute) and route.path in model_paths and "POST" in (route.methods or ())
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request that the gate has checked."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            await _answer_head(self.app, scope, receive, send)
            return
        route = self._routes.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if route is None:
            await self.app(scope, receive, send)
            return
        scope.update(app=self.app, route=route)
        request = Request(scope, receive, send)
        try:
            response: Response = await route.endpoint(request)
        except TessellaError as error:
            response = await _on_error(request, error)
        except ClientGoneError as error:
            response = await _on_client_gone(request, error)
        await response(scope, receive, send)


async def _answer_head(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer HEAD as GET, without the body: FastAPI adds HEAD to no route."""

    async def send_without_body(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    inner = {**scope, "method": "GET"}
    try:
        await app(inner, receive, send_without_body)
    finally:
        if "route" in inner:
            scope["route"] = inner["route"]  # for the metrics


def _hooks(service: Service, model_paths: Collection[str]) -> GateHooks:
    def refusal(scope: Scope) -> TessellaError | None:
        if scope["method"] != "POST" or scope["path"] not in model_paths:
            return None
        if scope["path"] in explanation.MODEL_PATHS and (error := service.explanations.refusal()) is not None:
            return error
        return service.refusal()

    def count(scope: Scope, status: int) -> None:
        route = scope.get("route")
        path = route.path if isinstance(route, Route) else scope["path"] if scope["path"] in model_paths else "other"
        service.metrics.request(path, scope["method"], status)

    return GateHooks(
        refusal=refusal,
        is_draining=lambda: service.is_stopping,
        exchange=service.exchange,
        retry_after=lambda: service.retry_after,
        on_answer=count,
        on_error=service.metrics.error,
    )


# Handlers of errors are coroutines: Starlette runs other functions in threads, which takes longer than they do.


def _answer(problem: Problem) -> Response:
    response = Response(problem.body, problem.status)
    response.raw_headers = problem.headers
    return response


async def _on_error(request: Request, error: Exception) -> Response:
    """Answer with a coded error, and count it unless the service has done so."""
    assert isinstance(error, TessellaError)
    _metrics(request).failed(error)
    if error.http_status == 500:
        logger.error("request %s failed: %s: %s", request.state.request_id, error.code, error)
    seconds = request.app.state.service.retry_after
    return _answer(problem_of(error, request.scope["path"], request.state.request_id, retry_after=seconds))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Answer what Starlette refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    path, request_id = request.scope["path"], request.state.request_id
    code = {404: "not_found_route", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    _metrics(request).error(code)
    allow = _allowed_methods(request) if error.status_code == 405 else ""
    return _answer(make_problem(code, path, request_id, allow=allow))


def _metrics(request: Request) -> ServeMetrics:
    metrics = request.app.state.service.metrics
    assert isinstance(metrics, ServeMetrics)
    return metrics


def _allowed_methods(request: Request) -> str:
    """Return the methods of all routes of a path."""
    methods: set[str] = set()
    for route in request.app.state.routes:
        if route.matches(request.scope)[0] != Match.NONE:
            methods |= route.methods or set()
    return ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))


async def _on_client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # for the log and the metrics; nobody reads it


async def _on_defect(request: Request, error: Exception) -> Response:
    """Answer for a defect of ours; the gate logs it."""
    _metrics(request).error("internal_error")
    return _answer(problem_of(RequestError("internal_error", ""), request.scope["path"], request.state.request_id))
