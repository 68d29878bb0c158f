"""Where protobuf ends: total conversions between messages and the core's values.

`encode_*` takes a value of the core and cannot fail on one that passed validation. `decode_*` takes what a peer sent
and raises ProtocolViolationError, in words, where a message says nothing (an unset oneof, an unspecified or unknown
enum value). Bounds are not checked here: `core/protocol/validation.py` and `core/protocol/naming.py` do that
for every entry alike.

The public stream's messages are `encode_generate_request` and `encode_event`, those of the workers' streams
`encode_draft_command`, `encode_draft_event`, `encode_verify_command`, `encode_verify_event` and
their counterparts. A message of a worker's stream may be given to be filled: one that was added to a message of many
needs no copy. Windows, verdicts and commitments are lists of numbers from end to end: no object is made per node.
"""

from outrider.rpc.wire.draft import (
    decode_draft_command,
    decode_draft_event,
    encode_draft_command,
    encode_draft_event,
)
from outrider.rpc.wire.generation import (
    decode_event,
    decode_generate_request,
    decode_server_info,
    encode_event,
    encode_generate_request,
    encode_server_info,
)
from outrider.rpc.wire.parts import (
    decode_drafted,
    decode_finish_reason,
    decode_load,
    decode_model_info,
    decode_sampling,
    decode_token_logprobs,
    decode_token_origin,
    decode_trace,
    encode_drafted,
    encode_finish_reason,
    encode_load,
    encode_model_info,
    encode_sampling,
    encode_token_logprobs,
    encode_token_origin,
    encode_trace,
)
from outrider.rpc.wire.trace import decode_request_trace, decode_spans, encode_request_trace, encode_spans
from outrider.rpc.wire.verify import (
    decode_verify_command,
    decode_verify_event,
    encode_verify_command,
    encode_verify_event,
)

__all__ = [
    "decode_draft_command",
    "decode_draft_event",
    "decode_drafted",
    "decode_event",
    "decode_finish_reason",
    "decode_generate_request",
    "decode_load",
    "decode_model_info",
    "decode_request_trace",
    "decode_sampling",
    "decode_server_info",
    "decode_spans",
    "decode_token_logprobs",
    "decode_token_origin",
    "decode_trace",
    "decode_verify_command",
    "decode_verify_event",
    "encode_draft_command",
    "encode_draft_event",
    "encode_drafted",
    "encode_event",
    "encode_finish_reason",
    "encode_generate_request",
    "encode_load",
    "encode_model_info",
    "encode_request_trace",
    "encode_sampling",
    "encode_server_info",
    "encode_spans",
    "encode_token_logprobs",
    "encode_token_origin",
    "encode_trace",
    "encode_verify_command",
    "encode_verify_event",
]
