"""A target over two hosts by torchrun, started as `k8s/overlays/multi-host` starts it: the text of one process.

As root the second host is a network namespace; otherwise both are this one. `make test-hosts` runs this: torchrun and
its ranks import torch four times.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.stack.namespace import Namespace, NoNamespaceError, namespace
from outrider.cli.child import Child, Observer
from outrider.core.protocol.sampling import SamplingParams
from tests.e2e.answers import ask
from tests.e2e.stack import coordinator, free_address, load_tiny, save_tiny, worker
from tests.engine.tiny_models import build

pytestmark = pytest.mark.skipif("OUTRIDER_TEST_HOSTS" not in os.environ, reason="run make test-hosts")

OVERLAY = Path(__file__).parents[2] / "k8s" / "overlays" / "multi-host" / "verify.yaml"
LEADER, FOLLOWER = (
    yaml.safe_load(OVERLAY.read_text())["spec"]["leaderWorkerTemplate"][template]["spec"]["containers"][0]
    for template in ("leaderTemplate", "workerTemplate")
)
"""The containers of the pods that have number 0 and another."""
PROMPT = [1, 2, 3]
LONG: dict[str, Any] = {"max_tokens": 60, "ignore_eos": True, "sampling": SamplingParams(temperature=0.9, seed=4)}


@pytest.fixture
async def other_host() -> AsyncIterator[Namespace | None]:
    async with contextlib.AsyncExitStack() as leaving:
        try:
            other = await leaving.enter_async_context(namespace())
        except NoNamespaceError:
            other = None
        yield other


def node(number: int, address: str, leader: str, port: str, other: Namespace | None) -> Child:
    """What the pod of that number runs, with one rank in the place of its four."""
    values = {"LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": str(number), "LWS_LEADER_ADDRESS": leader}
    python, dash_m, *command = (FOLLOWER if number else LEADER)["command"]
    assert (python, dash_m) == ("python", "-m")
    command = [re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], part) for part in command]
    command = [re.sub("^(--nproc-per-node)=.*", r"\1=1", part) for part in command]
    command = [re.sub("^(--master-port)=.*", rf"\1={port}", part) for part in command]
    return Child(
        f"node {number}",
        other.command(command) if other is not None else command,
        address=address,
        health_service="outrider.v1.VerifyService",
        observer=Observer(),
    )


async def test_the_text_of_two_hosts_is_that_of_one_process(
    tmp_path: Path, other_host: Namespace | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny(build("qwen3"), tmp_path / "target")
    address, leader = free_address(), "127.0.0.1" if other_host is None else other_host.home
    settings = {
        **{"OUTRIDER_MODEL": folder, "OUTRIDER_LISTEN": address, "OUTRIDER_TENSOR_PARALLEL": 2},
        **{"OUTRIDER_NUM_THREADS": 1, "OUTRIDER_MAX_CONTEXT": 256, "OUTRIDER_COMPILE": "off"},
        "GLOO_SOCKET_IFNAME": "lo" if other_host is None else other_host.wire,
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    port = free_address().rpartition(":")[2]
    first, second = (node(number, address, leader, port, host) for number, host in ((0, None), (1, other_host)))
    try:
        await first.start()
        for name in {each["name"] for each in LEADER["env"]} - {each["name"] for each in FOLLOWER["env"]}:
            monkeypatch.delenv(name, raising=False)
        await second.start()
        async with worker(load_tiny(folder)) as whole:
            async with coordinator(whole.address, "") as over_one:
                expected = (await ask(over_one.client, PROMPT, **LONG)).token_ids
            await first.ready()
            async with coordinator(address, "") as over_two:
                assert (await ask(over_two.client, PROMPT, **LONG)).token_ids == expected
        await first.stop()
        await second.end
    finally:
        for each in (first, second):
            await each.stop()
