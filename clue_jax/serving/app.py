"""The application: what is answered under which address."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, Response
from starlette.exceptions import HTTPException

import clue_jax
from clue_jax.errors import UserError
from clue_jax.files import json_text
from clue_jax.prediction.inputs import FIELDS
from clue_jax.prediction.kinds import Item, Outputs
from clue_jax.serving import requests
from clue_jax.serving.batching import Batcher, Overloaded, TooLarge, tokens_of
from clue_jax.serving.guards import Refused, body_of
from clue_jax.serving.metrics import Metrics
from clue_jax.serving.models import Served, WarmUp, load_all

_PAGE = resources.files("clue_jax.serving") / "page"
# address -> file, and its type
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
# Nothing from elsewhere is loaded, and no other site may frame the page.
_POLICY = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"


@dataclass(frozen=True)
class Settings:
    """How a server works.

    Attributes:
      limits: of a request.
      queue_tokens: of all requests that wait or are computed; more are turned away.
      batch_tokens: that are computed together.
      warm_up: see `clue_jax.serving.models.load_all`.
      dtype: of the computation.
    """

    limits: requests.Limits = field(default_factory=requests.Limits)
    queue_tokens: int = 65_536
    batch_tokens: int = 1024
    warm_up: WarmUp = "own"
    dtype: str = "float32"


@dataclass
class State:
    """What changes while a server runs."""

    models: Mapping[str, Served]
    settings: Settings
    metrics: Metrics
    draining: bool = False
    stop: threading.Event = field(default_factory=threading.Event)
    readers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, "reader"))
    batcher: Batcher | None = None

    def ready(self) -> bool:
        """Whether requests are answered: everything that can be loaded is, and that is not
        nothing."""
        states = {model.state for model in self.models.values()}
        return not self.draining and "ready" in states and not states & {"loading", "compiling"}


def build(
    models: Mapping[str, Served],
    settings: Settings,
    failed: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The application.

    Args:
      models: to be loaded when it starts.
      settings: see there.
      failed: called when all models have failed.
    """
    state = State(models, settings, Metrics(lambda: state.batcher.tokens if state.batcher else 0))

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        with ThreadPoolExecutor(1, "model") as device, ThreadPoolExecutor(1, "loader") as loader:
            state.batcher = Batcher(
                partial(_compute, models), device, settings.queue_tokens, settings.batch_tokens,
                partial(_observe, state),
            )  # fmt: skip
            loading = asyncio.get_running_loop().run_in_executor(loader, _load, state, failed)
            working = asyncio.create_task(state.batcher.work())
            yield
            state.stop.set()
            working.cancel()
            await asyncio.gather(loading, working, return_exceptions=True)

    app = FastAPI(
        title="clue_jax", version=clue_jax.__version__, lifespan=life, docs_url=None,
        redoc_url=None,
        description="Predictions by fine-tuned Chinese encoders. Places in texts are code points.",
    )  # fmt: skip
    app.openapi_version = "3.0.3"  # what the bundled viewer shows
    app.state.server = state
    _add_errors(app)
    _add_status(app, state)
    _add_predictions(app, state)
    _add_pages(app)
    return app


def _load(state: State, failed: Callable[[], None]) -> None:
    def changed(model: Served) -> None:
        state.metrics.ready.labels(model.name).set(model.state == "ready")

    settings = state.settings
    load_all(state.models, settings.dtype, settings.warm_up, state.stop, changed)
    if all(model.state == "failed" for model in state.models.values()):
        failed()


def _compute(
    models: Mapping[str, Served], key: tuple[str, str], items: list[Item]
) -> list[Outputs]:
    name, kind = key
    return models[name].predictor.compute(items, kind)


def _observe(state: State, key: tuple[str, str], items: int) -> None:
    state.metrics.batches.labels(*key).observe(items)


# ---- errors --------------------------------------------------------------------------------------


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        json_text(value), status, headers=dict(headers or {}), media_type="application/json"
    )


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(request: HttpRequest, error: Refused) -> Response:
        request.scope.get("log", {})["error"] = error.message
        return _json({"error": error.message}, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def unknown(request: HttpRequest, error: HTTPException) -> Response:
        message = str(error.detail)
        if error.status_code == 404:
            message = f"nothing is at {request.url.path}; /docs shows what is"
        elif error.status_code == 405:
            message = f"{request.url.path} does not take {request.method}"
        return _json({"error": message}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def fault(request: HttpRequest, error: Exception) -> Response:
        return _json({"error": "a fault of the server; its log has more"}, 500)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: HttpRequest, error: RequestValidationError) -> Response:
        return _json({"error": str(error.errors()[0].get("msg"))}, 422)


# ---- status --------------------------------------------------------------------------------------


def _add_status(app: FastAPI, state: State) -> None:
    @app.get("/health", tags=["status"])
    async def health() -> Response:
        """Whether the process is alive."""
        return _json({"status": "ok"})

    @app.get("/ready", tags=["status"])
    async def ready() -> Response:
        """200 when every model that can be loaded is compiled, 503 before that and while the server
        stops."""
        told = {name: model.state for name, model in state.models.items()}
        status = 200 if state.ready() else 503
        return _json({"ready": status == 200, "models": told}, status)

    @app.get("/metrics", tags=["status"])
    async def metrics() -> Response:
        """Counters in Prometheus' form."""
        return Response(state.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models", tags=["models"])
    async def models() -> Response:
        """The models, what they predict, and why one could not be loaded."""
        return _json({"models": [model.about() for model in state.models.values()]})

    @app.get("/v1/models/{name}:{method}", include_in_schema=False)
    async def not_posted(name: str, method: str) -> Response:
        headers = {"Allow": "POST"}
        raise Refused(405, f"/v1/models/{name}:{method} takes POST, not GET", headers)

    @app.get("/v1/models/{name}", tags=["models"])
    async def model(name: str) -> Response:
        """One model."""
        return _json(_model(state, name).about())


def _model(state: State, name: str) -> Served:
    if name not in state.models:
        known = ", ".join(state.models)
        raise Refused(404, f"no model {name!r}; there are {known}")
    return state.models[name]


# ---- predictions ---------------------------------------------------------------------------------


def _add_predictions(app: FastAPI, state: State) -> None:
    for kind in (None, *FIELDS):
        method = kind or "predict"
        answer = requests.ANSWERS[kind] if kind else "as the endpoint of that kind"
        does = f"Predicts {kind}" if kind else "Predicts what the model was trained for"
        body = {"application/json": {"schema": requests.schema(kind, state.settings.limits)}}
        app.add_api_route(
            f"/v1/models/{{name}}:{method}",
            _endpoint(state, kind),
            methods=["POST"],
            tags=["predictions"],
            summary=f"{does}.",
            description=f'Gives {{"outputs": [..]}}, for each input {answer}.',
            operation_id=method,
            openapi_extra={"requestBody": {"required": True, "content": body}},
            responses={
                413: {"description": "The request is too large."},
                422: {"description": "The request is not as it should be; the answer says why."},
                429: {"description": "Too much is waiting; try again after Retry-After seconds."},
                503: {"description": "The model is not ready, or the time was up."},
            },
        )

    @app.post("/v1/models/{name}:{method}", include_in_schema=False)
    async def other(name: str, method: str) -> Response:
        _model(state, name)
        raise Refused(404, f"no method {method!r}; there are predict, {', '.join(FIELDS)}")


def _endpoint(state: State, kind: str | None) -> Callable[..., Any]:
    async def predict(name: str, request: HttpRequest) -> Response:
        started = time.monotonic()
        model = _model(state, name)
        labels = (name, kind or "predict")
        try:
            answers, tokens = await _predict(state, model, kind, request)
        except Refused as error:
            state.metrics.requests.labels(*labels, str(error.status)).inc()
            raise
        except Exception:
            state.metrics.requests.labels(*labels, "500").inc()
            raise
        state.metrics.requests.labels(*labels, "200").inc()
        state.metrics.seconds.labels(*labels).observe(time.monotonic() - started)
        state.metrics.inputs.labels(*labels).inc(len(answers))
        state.metrics.tokens.labels(*labels).inc(tokens)
        request.scope.get("log", {}).update(model=name, inputs=len(answers), tokens=tokens)
        if tokens < 4096:
            return _json({"outputs": answers})
        write = partial(_json, {"outputs": answers})  # others need not wait for a long one
        return await asyncio.get_running_loop().run_in_executor(state.readers, write)

    return predict


async def _predict(
    state: State, model: Served, kind: str | None, request: HttpRequest
) -> tuple[list[dict[str, Any]], int]:
    """The answers to a request, and how many tokens it had."""
    limits, batcher = state.settings.limits, state.batcher
    body = await body_of(request.receive, request.headers.get("content-length"), limits.body)
    if model.state == "failed":
        raise Refused(503, f"model {model.name} could not be loaded: {model.error}")
    if model.state != "ready" or batcher is None:
        message = f"model {model.name} is {model.state}; /ready says when it is ready"
        raise Refused(503, message, {"Retry-After": "2"})
    predictor = model.predictor
    kind = kind or predictor.kinds[0]
    if kind not in predictor.kinds:
        makes = ", ".join(predictor.kinds)
        raise Refused(422, f"model {model.name} makes no {kind}; it makes {makes}")
    try:
        given = requests.read(body, limits)
        answering = asyncio.create_task(_answer(state, model, kind, given))
        leaving = asyncio.create_task(request.receive())
        try:
            await asyncio.wait(
                (answering, leaving), timeout=given.timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if answering.done():
                return answering.result()
            if leaving.done():
                raise Refused(400, "the client went away")
            message = f"the request took longer than {given.timeout:g} s and was given up"
            raise Refused(503, message, {"Retry-After": "1"})
        finally:
            answering.cancel()
            leaving.cancel()
    except UserError as error:
        raise Refused(422, str(error)) from error
    except TooLarge as error:
        raise Refused(413, str(error)) from error
    except Overloaded as error:
        raise Refused(429, f"too much is waiting ({error})", {"Retry-After": "1"}) from error


async def _answer(
    state: State, model: Served, kind: str, given: requests.Request
) -> tuple[list[dict[str, Any]], int]:
    """Reads, computes and decodes; the first and the last in other threads."""
    predictor, batcher = model.predictor, state.batcher
    loop = asyncio.get_running_loop()
    top_k = min(given.top_k, predictor.config.vocab_size)
    in_parts = kind in ("spans", "entities")  # nothing of a text is cut off
    size = given.size(sys.maxsize if in_parts else predictor.longest(kind))
    with batcher.room(size, given.timeout) as room:
        read = partial(predictor.prepare, given.inputs, kind, top_k)
        items = await loop.run_in_executor(state.readers, read)
        tokens = tokens_of(items)
        batcher.resize(room, tokens)
        outputs = await batcher.submit((model.name, kind), items)
        decode = partial(predictor.answers, items, outputs, kind, top_k)
        return await loop.run_in_executor(state.readers, decode), tokens


# ---- pages ---------------------------------------------------------------------------------------


def _add_pages(app: FastAPI) -> None:
    def add(address: str, name: str, kind: str) -> None:
        content = (_PAGE / name).read_bytes()
        headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}

        @app.get(address, include_in_schema=False)
        async def page() -> Response:
            return Response(content, media_type=kind, headers=headers)

    for address, (name, kind) in _FILES.items():
        add(address, name, kind)

    try:
        import swagger_ui_bundle
    except ImportError:
        return
    folder = swagger_ui_bundle.swagger_ui_path

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json", title="clue_jax",
            swagger_js_url="/docs/swagger-ui-bundle.js", swagger_css_url="/docs/swagger-ui.css",
            swagger_favicon_url="/docs/favicon-32x32.png",
        )  # fmt: skip

    @app.get("/docs/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"):
            raise Refused(404, f"nothing is at /docs/{name}")
        return FileResponse(f"{folder}/{name}")
