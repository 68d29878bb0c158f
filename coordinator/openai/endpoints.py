"""What each path answers."""

from __future__ import annotations

import time
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from coordinator.chat.tool_choice import offered_tools
from coordinator.openai.answer import Answer, Asked, Shape
from coordinator.openai.api_error import SERVICE_UNAVAILABLE, ApiError, explained, model_not_found
from coordinator.openai.body import Body, read_body
from coordinator.openai.chat_body import ChatBody
from coordinator.openai.chat_shape import ChatShape
from coordinator.openai.completion import CompletionBody, CompletionShape
from coordinator.openai.connection import EventStream, Json, while_connected
from coordinator.openai.conversation import Conversation
from coordinator.openai.event_id import HEADER
from coordinator.openai.response import AskedResponse, ResponseAnswer
from coordinator.openai.responses_body import ResponsesBody
from coordinator.openai.tokens import DetokenizeBody, TokenizeBody
from coordinator.service import GenerationService
from outrider import PROTOCOL_VERSION, __version__
from outrider.core.protocol.messages import ModelInfo, TraceContext
from outrider.core.protocol.options import Prompt


class Endpoints:
    """A method for each path. They raise ApiError, and ClientDisconnect if the client has left."""

    def __init__(self, service: GenerationService) -> None:
        self._service = service
        self._started = int(time.time())

    async def healthz(self) -> Response:
        """Whether the process lives: whoever answers does."""
        return Json({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """Whether requests are taken."""
        self._target()
        if not request.app.state.ready:
            raise ApiError("not ready, or stopping", status=SERVICE_UNAVAILABLE, type="server_error", code="not_ready")
        return Json({"status": "ok"})

    async def version(self) -> Response:
        """Of the program, and of the protocol that it speaks with workers."""
        return Json({"version": __version__, "protocol_version": PROTOCOL_VERSION})

    async def models(self) -> Response:
        """The one model that is served, in a list."""
        return Json({"object": "list", "data": [self._model(self._target())]})

    async def model(self, model: str) -> Response:
        """That model by its name."""
        return Json(self._model(self._target(model)))

    async def completions(self, request: Request) -> Response:
        """Continues prompts."""
        body = await read_body(request, CompletionBody)
        target = self._target(body.model)
        detokenizer = self._service.detokenizer()
        prompts = body.prompts()
        echoes = [await self._echo(prompt, body) if body.echo else "" for prompt in prompts]
        asked = Asked(
            prompts=prompts,
            options=body.options(),
            body=body,
            caller=_caller(request),
            last_event_id=request.headers.get(HEADER),
        )
        return await self._answer(request, target, asked, CompletionShape(body, echoes, detokenizer))

    async def chat_completions(self, request: Request) -> Response:
        """Answers a conversation."""
        body = await read_body(request, ChatBody)
        target = self._target(body.model)
        with explained(body.names):
            conversation = Conversation(
                self._service,
                body.messages,
                offered_tools(body.tools, body.tool_choice),
                add_generation_prompt=body.add_generation_prompt is not False,
                continue_final_message=body.continue_final_message is True,
                chat_template_kwargs=body.chat_template_kwargs or {},
            )
            parallel = body.parallel_tool_calls is not False
            options = conversation.held(body.options(), body.tool_choice, parallel=parallel)
        asked = Asked(
            prompts=[conversation.prompt],
            options=options,
            body=body,
            caller=_caller(request),
            last_event_id=request.headers.get(HEADER),
        )
        return await self._answer(request, target, asked, ChatShape(body, conversation))

    async def responses(self, request: Request) -> Response:
        """Answers a conversation, item by item."""
        body = await read_body(request, ResponsesBody)
        target = self._target(body.model)
        choice, parallel = body.chat_tool_choice, body.parallel_tool_calls is not False
        with explained(body.names):
            conversation = Conversation(self._service, body.messages(), offered_tools(body.chat_tools, choice))
            options = conversation.held(body.options(), choice, parallel=parallel)
        asked = AskedResponse(
            conversation=conversation,
            options=options,
            body=body,
            caller=_caller(request),
            last_event_id=request.headers.get(HEADER),
        )
        answer = ResponseAnswer(self._service, target, asked)
        if body.stream:
            return EventStream(answer.chunks(), answer.headers)
        told, headers = await while_connected(request.receive, answer.whole())
        return Json(told, headers=headers)

    async def tokenize(self, request: Request) -> Response:
        """The token ids of a text."""
        body = await read_body(request, TokenizeBody)
        target = self._target(body.model)
        with explained(body.names):
            token_ids = await self._service.tokenize(
                body.prompt, add_special_tokens=body.add_special_tokens is not False
            )
        return Json({"tokens": token_ids, "count": len(token_ids), "max_model_len": target.max_context})

    async def detokenize(self, request: Request) -> Response:
        """The text of token ids."""
        body = await read_body(request, DetokenizeBody)
        self._target(body.model)
        return Json({"prompt": await self._text(body.tokens, body, skip_special_tokens=False)})

    async def _answer(self, request: Request, target: ModelInfo, asked: Asked, shape: Shape) -> Response:
        answer = Answer(self._service, target, asked, shape)
        if asked.body.stream:
            return EventStream(answer.chunks(), answer.headers)
        if asked.body.stream_options is not None:
            raise ApiError("stream_options needs stream: true", param="stream_options")
        body, headers = await while_connected(request.receive, answer.whole())
        return Json(body, headers=headers)

    async def _echo(self, prompt: Prompt, body: Body) -> str:
        return prompt if isinstance(prompt, str) else await self._text(list(prompt), body, skip_special_tokens=True)

    async def _text(self, token_ids: list[int], body: Body, *, skip_special_tokens: bool) -> str:
        with explained(body.names):
            return await self._service.detokenize(token_ids, skip_special_tokens=skip_special_tokens)

    def _target(self, model: str | None = None) -> ModelInfo:
        """The model that is served, if the client means it or none by name. Raises ApiError."""
        with explained({}):
            target = self._service.target()
        if model is not None and model != target.name:
            raise model_not_found(model, target.name)
        return target

    def _model(self, target: ModelInfo) -> dict[str, Any]:
        info = self._service.server_info()
        return {
            "id": target.name,
            "object": "model",
            "created": self._started,
            "owned_by": "outrider",
            "max_model_len": target.max_context,
            "outrider": {
                "has_chat_template": self._service.chat_template().is_there,
                "draft_model": info.draft.name if info.draft is not None else info.target.draft_model or None,
                "target_only_reason": info.target_only_reason,
                "batch_invariant": target.batch_invariant,
            },
        }


def _caller(request: Request) -> TraceContext:
    """The trace that the client is in, by W3C's headers."""
    return TraceContext(request.headers.get("traceparent", ""), request.headers.get("tracestate", ""))
