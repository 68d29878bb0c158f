"""A request's body: read within bounds, parsed, and refused in words."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Final, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from coordinator.openai.api_error import (
    CONTENT_TOO_LARGE,
    REQUEST_TIMEOUT,
    UNSUPPORTED_MEDIA_TYPE,
    ApiError,
)
from outrider.rpc.channels import MESSAGE_BYTES_MAX

BODY_BYTES_MAX = MESSAGE_BYTES_MAX
"""Most bytes of a body: what a gRPC message may have. JSON nested more than 200 deep is refused by its parser."""

DISCARDED_BYTES_MAX = 16 * BODY_BYTES_MAX
"""How much of a longer body is read before it is refused: a client that still writes would not hear the answer."""

BODY_SECONDS = 60
"""Time that a client gets to send a body, so that slow ones do not gather."""

VIOLATIONS_MAX = 8
"""Most faults of a body that an answer tells, as many as in a gRPC status."""

Int = Annotated[int, Field(ge=-(2**63), lt=2**64)]
"""An integer of 64 bits, signed or not; the service knows narrower bounds."""

B = TypeVar("B", bound="Body")


class Fields(BaseModel):
    """An object of a body. Null is as good as leaving a field out."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())

    changes_no_token: ClassVar[Collection[str]] = ()
    """Fields that OpenAI's own clients send and that may be ignored."""
    neutral: ClassVar[Mapping[str, Any]] = {}
    """Fields that are not supported, each with the value at which it asks for nothing."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """With the fields that are ignored, and those that may ask for nothing."""
        told = handler.resolve_ref_schema(handler(schema))
        told["additionalProperties"] = False
        told.setdefault("properties", {}).update(
            {name: {"description": "Ignored."} for name in cls.changes_no_token}
            | {name: {"enum": [value, None]} for name, value in cls.neutral.items()}
        )
        return told

    def check_unknown(self, prefix: str = "") -> None:
        """Raises ApiError for a field that would change the answer and is not supported, and for one nobody knows."""
        for name, value in (self.model_extra or {}).items():
            harmless = name in self.changes_no_token or (name in self.neutral and value == self.neutral[name])
            if value is not None and not harmless:
                field = f"{prefix}{name}"
                raise ApiError(
                    f"{field} is not supported here; leave it out", param=field, code="unsupported_parameter"
                )
        for name in type(self).model_fields:
            value = getattr(self, name)
            within = value if isinstance(value, list) else [value]
            if within and isinstance(within[0], Fields):  # then all of them are
                for each in within:
                    each.check_unknown(f"{prefix}{name}.")


class Body(Fields):
    """A whole body."""

    field_names: ClassVar[Mapping[str, str]] = {}
    """The body's names of the service's fields, where they differ."""

    model: str | None = None

    @property
    def names(self) -> Mapping[str, str]:
        """`field_names`, and those that depend on what the body holds."""
        return self.field_names


async def read_body(request: Request, kind: type[B]) -> B:
    """Raises ApiError, and ClientDisconnect if the client has left."""
    content = await _content(request)
    try:
        body = kind.model_validate_json(content)
    except ValidationError as error:
        raise _refusal(error) from error
    body.check_unknown()
    return body


async def _content(request: Request) -> bytes:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":  # any other one a browser would send on behalf of a stranger's page
        raise ApiError("send JSON, with the header content-type: application/json", status=UNSUPPORTED_MEDIA_TYPE)
    content = bytearray()
    num_bytes = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                num_bytes += len(chunk)
                if num_bytes <= BODY_BYTES_MAX:
                    content += chunk
                elif num_bytes > DISCARDED_BYTES_MAX:
                    break
    except TimeoutError as error:
        raise ApiError(f"the body did not arrive within {BODY_SECONDS} s", status=REQUEST_TIMEOUT) from error
    if num_bytes > BODY_BYTES_MAX:
        raise ApiError(f"the body is too long; at most {BODY_BYTES_MAX} bytes are allowed", status=CONTENT_TOO_LARGE)
    return bytes(content)


_JSON_FAULTS: Final = {"json_invalid", "model_type"}
"""Pydantic's words for a body that is no JSON, or no object."""


def _refusal(error: ValidationError) -> ApiError:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    if found[0]["type"] in _JSON_FAULTS and not found[0]["loc"]:
        return ApiError(f"the body is no JSON object: {found[0]['msg']}")
    told = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in found[:VIOLATIONS_MAX]]
    return ApiError("; ".join(told), param=str(found[0]["loc"][0]) if found[0]["loc"] else None)
