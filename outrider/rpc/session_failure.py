"""Why a session of a stream failed, as a message: the error of one session, where a status would end them all."""

from __future__ import annotations

from outrider.core.protocol.errors import FieldViolation, InvalidRequestError, OutriderError, WorkerUnavailableError
from outrider.rpc.status import MESSAGE_TEXT_BYTES_MAX, clipped, log_unexpected, named_error, shown_violations, told
from outrider.v1 import common_pb2


def encode_failure(error: BaseException, session: int = 0) -> common_pb2.SessionFailed:
    """What the peer of a session is told of the `error` that ended it. An unexpected one goes to the log, too."""
    log_unexpected(error)
    code, reason, text, _ = told(error)
    violations = shown_violations(error) if isinstance(error, InvalidRequestError) else ()
    return common_pb2.SessionFailed(
        session=session,
        code=code.value[0],
        reason=reason,
        text=clipped(text, MESSAGE_TEXT_BYTES_MAX),
        violations=[common_pb2.FieldViolation(field=field, description=each) for field, each in violations],
    )


def decode_failure(message: common_pb2.SessionFailed) -> OutriderError:
    """The error that a peer means: of the class that it raised, with its text."""
    violations = [FieldViolation(each.field, each.description) for each in message.violations]
    error = named_error(message.reason, message.text, violations)
    return error or WorkerUnavailableError("the service ended the session without a reason that is known; try again")
