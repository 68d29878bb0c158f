"""The page's files: read once, and answered with the headers that a browser needs to keep to itself."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request
from fastapi.responses import Response

FOLDER: Final = Path(__file__).parent / "static"

_FILES: Final = {"/" if path.name == "index.html" else f"/page/{path.name}": path for path in sorted(FOLDER.iterdir())}

PATHS: Final = frozenset(url.encode() for url in _FILES)
"""What a browser asks for before it can show a token. The files are the same for everybody."""

_MEDIA_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

_HEADERS: Final = {
    # Nothing but this server's own files runs, is shown or is asked, and nobody frames the page.
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",  # asked again each time, answered by 304 unless the server is another version
}


class File:
    """One file of the page."""

    def __init__(self, path: Path) -> None:
        self._content = path.read_bytes()
        self._media_type = _MEDIA_TYPES[path.suffix]
        self._tag = f'"{hashlib.sha256(self._content).hexdigest()[:16]}"'

    async def answer(self, request: Request) -> Response:
        """The file, or that the browser's copy is still good."""
        headers = {**_HEADERS, "etag": self._tag}
        if self._tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(self._content, media_type=self._media_type, headers=headers)


def add_page(app: FastAPI) -> None:
    """Answers `/` with the page, and `/page/NAME` with what it is made of. There are no other paths, so none to escape
    by."""
    for url, path in _FILES.items():
        app.add_route(url, File(path).answer, methods=["GET"], include_in_schema=False)
