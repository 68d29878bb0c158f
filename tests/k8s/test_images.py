"""What each Dockerfile copies and installs starts its service in an empty environment. `make test-images` runs this."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from .conftest import Manifests
from .image_tree import PREFIX, make_tree, variables_of
from .test_dockerfiles import FOLDERS, REPOSITORY, only, stages

pytestmark = [
    pytest.mark.skipif("OUTRIDER_TEST_IMAGES" not in os.environ, reason="it installs: run make test-images"),
    pytest.mark.timeout(3_600),
]

START_SECONDS_MAX = 300.0
"""Longest that a start may take here; it reads and computes the bundled pair."""

CALLED = {"coordinator": "outrider generate", "verify": "hf download"}
"""Commands that the guide and the job which fetches models call in an image."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def status(port: int, path: str) -> int:
    """What a GET is answered; 0 as long as nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


@pytest.mark.parametrize("name", FOLDERS)
def test_the_service_starts_from_what_the_image_holds(base: Manifests, tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    make_tree(REPOSITORY, stages(name), root)
    door = free_port()
    variables = base.environment(name) | {"OUTRIDER_LISTEN": "127.0.0.1:0"}
    variables |= {"OUTRIDER_HTTP" if name == "coordinator" else "OUTRIDER_METRICS": f"127.0.0.1:{door}"}
    variables = {key: value.replace("/app/models", f"{root}/app/models") for key, value in variables.items()}
    environment = variables_of(stages(name), root) | variables | {"HOME": str(tmp_path)}
    # Without a worker a coordinator lives and is not ready.
    path = "/healthz" if name == "coordinator" else "/readyz"
    entrypoint = json.loads(only(name, "ENTRYPOINT"))
    command = [f"{root}{PREFIX}/bin/{entrypoint[0]}", *entrypoint[1:]]
    with subprocess.Popen(command, cwd="/", env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + START_SECONDS_MAX
            while (answered := status(door, path)) != http.client.OK and process.poll() is None:
                assert time.monotonic() < deadline, f"not ready: {answered}"
                time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            _, told = process.communicate(timeout=60)
        finally:
            process.kill()
    assert answered == http.client.OK, told
    assert process.returncode == 0, told
    imported = subprocess.run(
        [command[0], "-c", f"import {FOLDERS[name]} as it; print(it.__file__)"],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert imported.stdout.startswith(str(root)), "a package from elsewhere was started"
    if name in CALLED:
        program, command = CALLED[name].split()
        subprocess.run([f"{root}{PREFIX}/bin/{program}", command, "--help"], cwd="/", env=environment, check=True)
