"""What a worker answers over HTTP: its metrics, whether it lives, and whether it takes sessions."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response

from outrider.http.server import NO_RECORDS
from outrider.telemetry.exposition import Exposition

_SERVICE_UNAVAILABLE = 503


def metrics_answer(exposition: Exposition) -> Callable[[Request], Response]:
    """The endpoint of GET /metrics. FastAPI calls it on a thread, because it is no coroutine."""

    def metrics(request: Request) -> Response:
        content, content_type = exposition.answer(request.headers.get("accept", ""))
        return Response(content, headers={"content-type": content_type})

    return metrics


def make_scraping_app(exposition: Exposition) -> FastAPI:
    """GET /metrics, /healthz and /readyz, and nothing else. Whoever serves it sets `state.ready`."""
    app = FastAPI(
        openapi_url=None,
        telemetry=NO_RECORDS,
    )
    app.state.ready = False

    async def healthz() -> Response:
        return PlainTextResponse("ok")

    async def readyz(request: Request) -> Response:
        if request.app.state.ready:
            return PlainTextResponse("ok")
        return PlainTextResponse("not ready, or stopping", _SERVICE_UNAVAILABLE)

    for path, endpoint in {"/metrics": metrics_answer(exposition), "/healthz": healthz, "/readyz": readyz}.items():
        app.get(path, response_model=None)(endpoint)
    return app
