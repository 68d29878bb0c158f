"""What a client of the HTTP interface is told of an error: OpenAI's shape, and the status that its libraries expect."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import grpc

from outrider.core.protocol.errors import FieldViolation, InvalidRequestError, UnauthenticatedError
from outrider.rpc.status import told

BAD_REQUEST = 400
UNAUTHORIZED = 401
FORBIDDEN = 403
NOT_FOUND = 404
METHOD_NOT_ALLOWED = 405
REQUEST_TIMEOUT = 408
CONTENT_TOO_LARGE = 413
UNSUPPORTED_MEDIA_TYPE = 415
TOO_MANY_REQUESTS = 429
INTERNAL_SERVER_ERROR = 500
SERVICE_UNAVAILABLE = 503

MESSAGE_CHARACTERS_MAX = 4000
"""Most characters of an error's message: eight faults with a compiler's words about each."""

PARAM_CHARACTERS_MAX = 200
"""Most characters of the name of a field at fault."""

INVALID_REQUEST = "invalid_request_error"
"""OpenAI's `type` of whatever the caller did wrong."""

_RATE_LIMIT = "rate_limit_error"
_SERVER_ERROR = "server_error"

_STATUS_AND_TYPE: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: (BAD_REQUEST, INVALID_REQUEST),
    grpc.StatusCode.PERMISSION_DENIED: (FORBIDDEN, INVALID_REQUEST),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (TOO_MANY_REQUESTS, _RATE_LIMIT),
    grpc.StatusCode.UNAVAILABLE: (SERVICE_UNAVAILABLE, _SERVER_ERROR),
    grpc.StatusCode.DEADLINE_EXCEEDED: (REQUEST_TIMEOUT, _SERVER_ERROR),
    grpc.StatusCode.DATA_LOSS: (SERVICE_UNAVAILABLE, _SERVER_ERROR),
}
"""By the gRPC status of the same error; any other one is an INTERNAL_SERVER_ERROR."""

_log = logging.getLogger(__name__)


class ApiError(Exception):
    """Ends a request with a status and a body that are written for the client."""

    def __init__(
        self,
        message: str,
        *,
        status: int = BAD_REQUEST,
        type: str = INVALID_REQUEST,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`param` is the field at fault, `code` a word for programs. Clients' own words are in both: they are cut."""
        super().__init__(message)
        message = message[:MESSAGE_CHARACTERS_MAX]
        param = None if param is None else param[:PARAM_CHARACTERS_MAX]
        self.status = status
        self.headers = headers or {}
        self.body: dict[str, Any] = {"error": {"message": message, "type": type, "param": param, "code": code}}


def model_not_found(model: str, served: str) -> ApiError:
    """The request names another model than the one that is served."""
    return ApiError(
        f"the model {model!r} does not exist; {served!r} is served here",
        status=NOT_FOUND,
        param="model",
        code="model_not_found",
    )


def api_error(error: Exception, field_names: Mapping[str, str]) -> ApiError:
    """What the client is told of `error`. `field_names` has the client's name of a field where it is not the service's.

    An error that was not written to be shown goes to the log with its traceback.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InvalidRequestError):
        found = [_renamed(violation, field_names) for violation in error.violations]
        message = "; ".join(f"{field}: {description}" for field, description in found)
        return ApiError(message, param=found[0].field)
    if isinstance(error, UnauthenticatedError):
        headers = {"www-authenticate": "Bearer", "x-should-retry": "false"}
        return ApiError(str(error), status=UNAUTHORIZED, code="invalid_api_key", headers=headers)
    code, reason, text, retry_seconds = told(error)
    status, kind = _STATUS_AND_TYPE.get(code, (INTERNAL_SERVER_ERROR, _SERVER_ERROR))
    if status == INTERNAL_SERVER_ERROR:
        _log.error("a request over HTTP failed", exc_info=error)
    # OpenAI's client libraries would send again whatever fails with a status from 500 on.
    again = {"retry-after": str(retry_seconds)} if retry_seconds is not None else {"x-should-retry": "false"}
    return ApiError(text, status=status, type=kind, code=reason.lower(), headers=again)


@contextmanager
def explained(field_names: Mapping[str, str]) -> Iterator[None]:
    """Around the work for one request: whatever it raises becomes an ApiError."""
    try:
        yield
    except Exception as error:
        raise api_error(error, field_names) from error


def _renamed(violation: FieldViolation, field_names: Mapping[str, str]) -> FieldViolation:
    field = violation.field.removeprefix("sampling.")
    whole = field_names.get(field.partition(".")[0], field)
    return FieldViolation(field_names.get(field, whole), violation.description)
