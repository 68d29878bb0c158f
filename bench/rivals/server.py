"""Another system's HTTP server as processes of its own, which rest while something else is measured."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from outrider.core.protocol.errors import OutriderError

START_SECONDS = 1800.0
"""Longest that a server may take to answer: on two cores that thirty others share, vLLM takes a quarter of an hour."""

STOP_SECONDS = 30.0
"""Time from SIGTERM to SIGKILL."""

_PAUSE_SECONDS = 0.5
"""Between two questions whether a server that starts answers: nothing else tells of that."""

_GREETING_SECONDS = 3.0
"""How long it may take to say that it is there."""

_LOG_TAIL_LINES = 20
"""How many last lines of its log are told of a server that died: the end of a traceback."""

_HOST = "127.0.0.1"


class RivalDiedError(OutriderError):
    """A server ended, or did not answer."""


class RivalServer:
    """One server. While it is paused its workers, which may spin when they have nothing to do, take no time."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.log = log
        self.address = f"http://{_HOST}:{port}"
        self.process_id = process.pid
        """The first of its processes, and their group."""
        self._process = process

    def wait_until_ready(self) -> None:
        """Returns when it answers. Raises RivalDiedError."""
        wait = threading.Event()
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError, http.client.HTTPException):
                self._greet()
                return
            wait.wait(_PAUSE_SECONDS)
        tail = "\n".join(f"  {line}" for line in self.log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])
        raise RivalDiedError(f"{self.log.stem} does not answer; the last lines of {self.log}:\n{tail}")

    def _greet(self) -> None:
        """Returns when it has answered that it is there. Raises OSError or HTTPException."""
        urllib.request.urlopen(f"{self.address}/health", timeout=_GREETING_SECONDS).close()

    def pause(self) -> None:
        """Stops all of its processes until `resume`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets them go on."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ends all of its processes."""
        self.resume()
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process_id, number)


Server = TypeVar("Server", bound=RivalServer)


@contextlib.contextmanager
def server_process(
    kind: type[Server], command: Sequence[str], log: Path, environment: Mapping[str, str]
) -> Iterator[Server]:
    """Starts `command` with a host and a port of its own and the variables of `environment`; does not wait until it is
    ready. Its output goes to `log`."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port = probe.getsockname()[1]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--host", _HOST, "--port", str(port)],
            cwd=log.parent,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = kind(process, port, log)
    with _ending_with_this_process(process.pid):
        try:
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def _ending_with_this_process(group: int) -> Iterator[None]:
    """Has another process end the `group` should this one be killed meanwhile: what is stopped could not end itself."""
    command = [sys.executable, "-c", _END_GROUP, str(group)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as watcher:
        try:
            yield
        finally:
            watcher.kill()


_END_GROUP = "import os, signal, sys; sys.stdin.read(); os.killpg(int(sys.argv[1]), signal.SIGKILL)"
"""The system closes standard input when whoever holds its other end is gone."""
