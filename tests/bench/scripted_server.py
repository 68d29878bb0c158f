"""Plays another system's server for the tests: `python scripted_server.py ... --host H --port P` answers greetings and
completions as OpenAI's interface has them, after some time in which it is loading. A script it runs as Python would.

With `--version`, `--help` or `-c` it says what llama.cpp's server or a Python with vLLM would, and ends.
"""

from __future__ import annotations

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HELP = """
--spec-type none,draft-simple,ngram-simple,ngram-mod
                                        comma-separated list of types of speculative decoding to use
--spec-draft-n-max N                    number of tokens to draft for speculative decoding
--spec-draft-sampling {greedy,probabilistic}
                                        how the draft is sampled
-cram, --cache-ram N                    set the maximum cache size in MiB
"""


class Handler(BaseHTTPRequestHandler):
    """Says so many words as tokens are asked for; the text tells what it was asked, and who says it."""

    num_greetings = 0
    num_questions = 0

    def do_GET(self) -> None:
        Handler.num_greetings += 1
        self.send_response(503 if Handler.num_greetings == 1 else 200)
        self.end_headers()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Handler.num_questions += 1
        told = json.dumps(
            {"pid": os.getpid(), "arguments": sys.argv[1:], "asked": asked, "number": Handler.num_questions}
        )
        self.send_response(200)
        self.end_headers()
        events: list[dict[str, Any]] = [{"choices": [{"text": told}]}]
        events += [{"choices": [{"text": " word"}]} for _ in range(asked["max_tokens"] - 1)]
        events.append({"choices": [], "usage": {"completion_tokens": asked["max_tokens"]}})
        for event in events:
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps quiet."""


def main() -> None:
    """See above."""
    arguments = sys.argv[1:]
    if "--version" in arguments:
        print("version: 4242 (abcdef)\nbuilt with some compiler", file=sys.stderr)
    elif "--help" in arguments:
        print(HELP)
    elif arguments[0].endswith(".py"):
        os.execv(sys.executable, [sys.executable, *arguments])
    elif arguments[0] == "-c":
        print("4.2.0\n/some/where/libiomp5.so")
    elif "--dies" in arguments:
        sys.exit("cannot load the model")
    else:
        host, port = (arguments[arguments.index(flag) + 1] for flag in ("--host", "--port"))
        ThreadingHTTPServer((host, int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main()
