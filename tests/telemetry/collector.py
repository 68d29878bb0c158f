"""A plain OTLP receiver on the loopback interface: no more than HTTP and OpenTelemetry's own messages."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Self

POLL_SECONDS = 0.01
"""How soon it sees that it is to end."""


class Collector(HTTPServer):
    """Keeps what is posted to it, by path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), CollectorHandler)
        self.received: dict[str, list[bytes]] = {}

    @property
    def environ(self) -> dict[str, str]:
        """The variables that lead to it."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.server_port}", "NO_PROXY": "127.0.0.1"}

    @classmethod
    @contextmanager
    def serving(cls) -> Iterator[Self]:
        """One that answers while the context is entered."""
        with cls() as server:
            thread = threading.Thread(target=server.serve_forever, args=(POLL_SECONDS,))
            thread.start()
            try:
                yield server
            finally:
                server.shutdown()
                thread.join()


class CollectorHandler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.setdefault(self.path, []).append(body)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass
