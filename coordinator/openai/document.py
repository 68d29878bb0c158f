"""The OpenAPI document: every path, what it is sent, and what it answers."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from coordinator.openai.body import Body
from coordinator.openai.chat_body import ChatBody
from coordinator.openai.completion import CompletionBody
from coordinator.openai.responses_body import ResponsesBody
from coordinator.openai.tokens import DetokenizeBody, TokenizeBody

_BODIES: Final[tuple[type[Body], ...]] = (CompletionBody, ChatBody, ResponsesBody, TokenizeBody, DetokenizeBody)

_SCHEMAS: Final = "#/components/schemas/"

_ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
"""What is told of whatever goes wrong, as OpenAI's clients read it."""


def body_of(kind: type[Body]) -> dict[str, Any]:
    """What the operation of a path is sent."""
    return {"requestBody": {"required": True, "content": _json(kind.__name__)}}


def document(app: FastAPI) -> dict[str, Any]:
    """The whole document of the paths of `app`."""
    told = get_openapi(title=app.title, version=app.version, routes=app.routes)
    _, schemas = models_json_schema([(kind, "validation") for kind in _BODIES], ref_template=f"{_SCHEMAS}{{model}}")
    told["components"] = {"schemas": {**schemas["$defs"], "Error": _ERROR}}
    for operations in told["paths"].values():
        for operation in operations.values():
            answers = operation["responses"]
            answers.pop("422", None)  # FastAPI's own, which no path gives
            for statuses in ("4XX", "5XX"):
                answers[statuses] = {"description": "What went wrong", "content": _json("Error")}
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            if "stream" in schemas["$defs"].get(body.get("schema", {}).get("$ref", "").rpartition("/")[2], {}).get(
                "properties", {}
            ):
                answers["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    return told


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"{_SCHEMAS}{schema}"}}}
