"""`python -m coordinator.chat`: renders conversations, in a process whose time and memory the system bounds.

A template comes out of a model's folder. Jinja's sandbox keeps it from reaching anything, but not from looping for ever
or filling memory, and no thread of the coordinator could be stopped doing that.

The argument is the processor time of one conversation in seconds, after which the system ends the process. Messages in
and out are JSON behind their length in four bytes; the process ends when its input does.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from typing import Any

from coordinator.chat.template import ChatTemplate
from outrider.core.protocol.errors import InvalidRequestError

MEMORY_BYTES_MAX = 256 * 1024**2
"""Address space of the process: three times what the longest prompt takes."""


def main(seconds_max: float) -> None:
    """Answers until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the coordinator too, which may drain
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    while header := sys.stdin.buffer.read(4):
        request = json.loads(sys.stdin.buffer.read(int.from_bytes(header)))
        signal.setitimer(signal.ITIMER_PROF, seconds_max)
        answer = json.dumps(_answer(request)).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(len(answer).to_bytes(4) + answer)
        sys.stdout.buffer.flush()


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    template = ChatTemplate(request["templates"], request["special_tokens"])
    try:
        return {"prompt": template.render(**request["conversation"])}
    except InvalidRequestError as error:
        return {"violations": error.violations}


if __name__ == "__main__":
    main(float(sys.argv[1]))
