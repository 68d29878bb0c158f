"""`python -m tests.forkserver.server SOCKET`: has imported what the services import, and forks them when asked.

An interpreter that imports torch and transformers takes seconds, a fork of one that has takes milliseconds. It has one
thread, no server and no device, so that a fork of it may become anything. Each message on the socket asks for one
process, whose id is the answer. By then that process is nobody's child here: who asks is about to adopt it.
"""

from __future__ import annotations

import atexit
import gc
import os
import runpy
import socket
import sys
import threading
import traceback
from importlib import import_module
from typing import Any, NamedTuple, NoReturn

from tests.forkserver.order import ORDER_BYTES_MAX, Order

IMPORTED = (
    "bench.rivals.ruled",
    "bench.stack.control",
    "bench.stack.forced",
    "bench.stack.measured_runner",
    "coordinator.openai.app",
    "coordinator.page.site",
    "coordinator.servicer",
    "coordinator.worker_connection",
    "draft_service.model_servicer",
    "draft_service.without_model",
    "outrider.http.server",
    "outrider.worker.scraping",
    "outrider.worker.serving",
    "tests.parallel.divided",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen3.modeling_qwen3",
    "verify_service.servicer",
)
"""What the modules in `process.FORKED` import before they read their flags or soon after."""


class Asked(NamedTuple):
    """What a forked process is to become."""

    order: Order
    streams: list[int]
    """Standard input, output and error."""


def asked(asking: socket.socket) -> Asked | None:
    """Returns in each process that is forked, with what it is asked for, and in this one when nobody asks any more."""
    while True:
        message, streams, _, _ = socket.recv_fds(asking, ORDER_BYTES_MAX, 3)
        if not message:
            return None
        telling, told = os.pipe()
        if (between := os.fork()) == 0:
            if (process := os.fork()) == 0:
                os.close(telling)
                os.close(told)
                return Asked(Order.from_json(message), streams)
            os.write(told, process.to_bytes(4, "little"))
            os._exit(0)  # so that the process has no parent but the one that adopts it
        os.waitpid(between, 0)
        asking.send(os.read(telling, 4))
        for each in (telling, told, *streams):
            os.close(each)


def become(order: Order, streams: list[int]) -> None:
    """What an interpreter does that is started with that command."""
    if order.new_session:
        os.setsid()
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
        os.close(stream)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.chdir(order.folder)
    os.environ.clear()
    os.environ.update(order.environment)
    sys.argv = list(order.arguments)
    run: Any = runpy.run_path if sys.argv[0].endswith(".py") else runpy.run_module
    if run is runpy.run_path:
        run(sys.argv[0], run_name="__main__")
    else:
        run(sys.argv[0], run_name="__main__", alter_sys=True)


def status_of(found: Asked) -> int:
    """Becomes what is asked for. Returns what an interpreter would exit with."""
    try:
        become(*found)
    except SystemExit as left:
        if left.code is None or isinstance(left.code, int):
            return left.code or 0
        print(left.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def leave(status: int) -> NoReturn:
    """Ends a fork as `multiprocessing` ends one: what was imported is not freed object by object."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    """Forks until nobody asks any more; in a fork, what it is asked for."""
    for name in IMPORTED:
        import_module(name)
    gc.collect()
    gc.freeze()  # a fork that looks through these for rings would copy them
    with socket.socket(fileno=int(sys.argv[1])) as asking:
        found = asked(asking)
    if found is not None:
        leave(status_of(found))


if __name__ == "__main__":
    main()
