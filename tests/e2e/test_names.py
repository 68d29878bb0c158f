"""Workers by name: what a name stands for is asked again, and at once when a connection breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import coordinator.pool
from coordinator.config import CoordinatorConfig
from coordinator.resolution import Endpoint, parse_endpoints, resolve
from outrider.client import Finished, Started, Tokens
from outrider.core.protocol.errors import WorkerUnavailableError
from tests.e2e.answers import ask
from tests.e2e.stack import coordinator as coordinator_at
from tests.e2e.stack import load_tiny, save_tiny, worker
from tests.engine.tiny_models import build

PROMPT = [1, 2, 3]
NAME = "dns:///verifiers.test:50052"
NEVER_SECONDS = 3600.0


class Names:
    """A name server of the test's own."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: Sequence[str] = addresses
        self.is_down = False
        self.num_asked = 0
        self.asked = asyncio.Condition()

    async def resolve(self, endpoint: Endpoint) -> Sequence[str]:
        assert (endpoint.host, endpoint.port) == ("verifiers.test", 50052)
        async with self.asked:
            self.num_asked += 1
            self.asked.notify_all()
        if self.is_down:
            raise OSError(-3, "Temporary failure in name resolution")
        return self.addresses

    async def until_asked(self, num_times: int) -> None:
        async with self.asked:
            await self.asked.wait_for(lambda: self.num_asked >= num_times)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(build("llama"), tmp_path_factory.mktemp("tiny") / "target")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are asked often, so that no test waits for the clock."""
    monkeypatch.setattr(coordinator.pool, "RESOLVE_SECONDS", 0.05)


@pytest.mark.usefixtures("quick")
async def test_what_a_name_comes_to_stand_for_is_used_and_what_it_ceases_to_is_drained(folder: Path) -> None:
    async with worker(load_tiny(folder)) as first, worker(load_tiny(folder)) as second:
        names = Names(first.address)
        async with coordinator_at(NAME, "", resolver=names.resolve) as running:
            await running.until_serving(first.address)
            async with aclosing(running.client.generate(PROMPT, max_tokens=250, ignore_eos=True)) as events:
                assert isinstance(await anext(events), Started)
                names.addresses = (first.address, second.address)
                await running.until_serving(first.address, second.address)
                names.addresses = (second.address,)
                await running.until_serving(second.address)
                num_tokens = 0
                async for event in events:
                    last = event
                    num_tokens += len(event.tokens) if isinstance(event, Tokens) else 0
            assert isinstance(last, Finished)
            assert num_tokens == 250
            await running.until(lambda _: [replica.address for replica, _ in running.workers] == [second.address])
            assert (await ask(running.client, PROMPT, max_tokens=4)).token_ids
            assert first.loaded.engine.num_free_slots == first.loaded.engine.max_sessions


@pytest.mark.usefixtures("quick")
async def test_a_name_server_that_is_down_takes_no_worker_with_it(folder: Path) -> None:
    async with worker(load_tiny(folder)) as verify:
        names = Names(verify.address)
        async with coordinator_at(NAME, "", resolver=names.resolve) as running:
            names.is_down = True
            await names.until_asked(names.num_asked + 3)
            assert running.serving() == {verify.address}
            assert (await ask(running.client, PROMPT, max_tokens=4)).token_ids


async def test_a_name_that_is_not_known_is_said_in_words() -> None:
    names = Names()
    names.is_down = True
    async with coordinator_at(NAME, "", resolver=names.resolve, wait_for_target=False) as running:
        await names.until_asked(1)
        await running.until(lambda workers: workers.verifiers.has_answered)
        with pytest.raises(WorkerUnavailableError, match=r"verifiers\.test.*cannot be resolved"):
            await ask(running.client, PROMPT)


async def test_a_broken_connection_asks_again_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator.pool, "RESOLVE_SECONDS", NEVER_SECONDS)
    async with worker(load_tiny(folder)) as second, worker(load_tiny(folder)) as first:
        names = Names(first.address)
        async with coordinator_at(NAME, "", resolver=names.resolve) as running:
            await running.until_serving(first.address)
            names.addresses = (second.address,)
            await first.server.stop(None)
            await running.until_serving(second.address)
            assert (await ask(running.client, PROMPT, max_tokens=4)).token_ids


async def test_one_process_under_two_addresses_is_one_replica(folder: Path) -> None:
    async with worker(load_tiny(folder), listen="0.0.0.0:0") as verify:
        port = verify.address.rpartition(":")[2]
        addresses = [f"127.0.0.1:{port}", f"127.0.0.2:{port}"]
        async with coordinator_at(",".join(addresses), "") as running:
            await running.until(lambda _: all(replica.is_serving for replica, _ in running.workers))
            problems = {replica.address: problem for replica, problem in running.workers}
            assert sorted(map(bool, problems.values())) == [False, True]
            assert any("same process" in str(problem) for problem in problems.values())


async def test_the_systems_resolver_finds_this_machine() -> None:
    assert "127.0.0.1:50052" in await resolve(Endpoint("127.0.0.1", 50052))
    assert await resolve(Endpoint("::1", 50052)) == ["[::1]:50052"]
    with pytest.raises(OSError, match=r".+"):
        await resolve(Endpoint("no-such-name.invalid", 50052))


def test_addresses_are_read() -> None:
    assert parse_endpoints("127.0.0.1:50052, dns:///verify.default.svc:9,[::1]:7,,") == [
        Endpoint("127.0.0.1", 50052),
        Endpoint("verify.default.svc", 9),
        Endpoint("::1", 7),
    ]
    assert parse_endpoints("") == []
    assert [endpoint.is_literal for endpoint in parse_endpoints("10.0.0.1:1,localhost:1,[::1]:1")] == [
        True,
        False,
        True,
    ]
    assert list(map(str, parse_endpoints("a:1,[::1]:2"))) == ["a:1", "[::1]:2"]


@pytest.mark.parametrize(
    "text", ["localhost", ":50052", "host:", "host:0", "host:65536", "::1:50052", "http://host:1", "unix:/tmp/x", "a:b"]
)
def test_what_is_no_address_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match="write host:port"):
        parse_endpoints(text)
    with pytest.raises(ValidationError, match="write host:port"):
        CoordinatorConfig(draft=f"127.0.0.1:1,{text}")


@pytest.mark.parametrize("settings", [{"verify": ""}, {"verify": " , "}])
def test_a_coordinator_needs_a_verifier(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="at least one verify service"):
        CoordinatorConfig(**settings)
