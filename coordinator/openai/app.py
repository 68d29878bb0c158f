"""The application: which paths there are, and how errors leave it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from coordinator.openai.api_error import ApiError, api_error
from coordinator.openai.chat_body import ChatBody
from coordinator.openai.client_requests import ClientRequests
from coordinator.openai.completion import CompletionBody
from coordinator.openai.connection import Json
from coordinator.openai.document import body_of, document
from coordinator.openai.endpoints import Endpoints
from coordinator.openai.responses_body import ResponsesBody
from coordinator.openai.tokens import DetokenizeBody, TokenizeBody
from coordinator.openai.unread_responses import UNREAD_SECONDS, UnreadResponses
from coordinator.service import GenerationService
from outrider import __version__
from outrider.http.scraping import metrics_answer
from outrider.http.server import NO_RECORDS
from outrider.telemetry.exposition import Exposition

_CLIENT_LEFT = 499
"""What web servers call a request whose client did not wait. Nobody receives it."""


def make_app(
    service: GenerationService,
    authorization: Callable[[ASGIApp], ASGIApp] | None = None,
    exposition: Exposition | None = None,
    unread_seconds: float = UNREAD_SECONDS,
    max_requests_per_client: int = sys.maxsize,
) -> FastAPI:
    """Everything that is answered over HTTP, metrics too if there are any, to whom `authorization` lets in. Whoever
    serves it sets `state.ready`.

    What is done for a client that takes nothing for `unread_seconds` is ended. One address has at most
    `max_requests_per_client` at a time.
    """
    app = FastAPI(
        title="Outrider",
        version=__version__,
        docs_url=None,  # they would load their scripts from other hosts
        redoc_url=None,
        telemetry=NO_RECORDS,
    )
    app.state.ready = False
    app.add_middleware(UnreadResponses, seconds=unread_seconds)
    app.add_middleware(ClientRequests, num_max=max_requests_per_client)
    answers = Endpoints(service)
    for path, endpoint in {
        "/healthz": answers.healthz,
        "/readyz": answers.readyz,
        "/version": answers.version,
        "/v1/models": answers.models,
        "/v1/models/{model:path}": answers.model,
    }.items():
        app.get(path, response_model=None)(endpoint)
    if exposition is not None:
        app.get("/metrics", response_model=None)(metrics_answer(exposition))
    for path, kind, endpoint in (
        ("/v1/completions", CompletionBody, answers.completions),
        ("/v1/chat/completions", ChatBody, answers.chat_completions),
        ("/v1/responses", ResponsesBody, answers.responses),
        ("/tokenize", TokenizeBody, answers.tokenize),
        ("/detokenize", DetokenizeBody, answers.detokenize),
    ):
        app.post(path, response_model=None, openapi_extra=body_of(kind))(endpoint)
    app.openapi = cache(lambda: document(app))
    if authorization is not None:
        app.add_middleware(authorization)
    app.add_exception_handler(ApiError, _tell)
    app.add_exception_handler(HTTPException, _tell_path)
    app.add_exception_handler(ClientDisconnect, _tell_nobody)
    app.add_exception_handler(Exception, _tell)
    return app


async def _tell(_: Request, error: Exception) -> Response:
    told = api_error(error, {})
    return Json(told.body, told.status, told.headers)


async def _tell_path(request: Request, error: Exception) -> Response:
    """No such path, or not by this method."""
    assert isinstance(error, HTTPException)
    text = f"{request.method} {request.url.path} is not answered here; GET /openapi.json has what is"
    return Json(ApiError(text).body, error.status_code, error.headers)


async def _tell_nobody(_: Request, __: Exception) -> Response:
    return Response(status_code=_CLIENT_LEFT)
