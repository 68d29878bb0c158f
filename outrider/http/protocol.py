"""What is no HTTP: uvicorn's protocol, which refuses it in the shape of all other errors, and so that it is heard."""

from __future__ import annotations

import json
from typing import Final

from uvicorn.protocols.http.h11_impl import H11Protocol

LINGERING_BYTES_MAX = 4 * 1024 * 1024
"""How much more of what is no HTTP is read, and thrown away: a client that still writes would not hear the answer."""

LINGERING_SECONDS = 2.0
"""Time that a refused client gets to hear the answer and close its connection."""

_ERROR: Final = {
    "message": "this is no HTTP request, or its line and headers are longer than 64 KiB",
    "type": "invalid_request_error",
    "param": None,
    "code": None,
}
_BODY: Final = json.dumps({"error": _ERROR}).encode()
_REFUSAL: Final = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
    % (len(_BODY), _BODY)
)


class HttpProtocol(H11Protocol):
    """One connection."""

    _num_lingering_bytes: int | None = None
    """Come since the refusal; None before it."""

    def data_received(self, data: bytes) -> None:
        """Takes what has come."""
        if self._num_lingering_bytes is None:
            super().data_received(data)
            return
        self._num_lingering_bytes += len(data)
        if self._num_lingering_bytes > LINGERING_BYTES_MAX:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuses what is no HTTP, unless an answer is under way, which breaks off."""
        self._num_lingering_bytes = 0
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
                return
        self.transport.write(_REFUSAL)
        self.loop.call_later(LINGERING_SECONDS, self.transport.close)
