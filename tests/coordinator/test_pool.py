"""A pool in memory: which replicas there are, and which of them get sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest

from coordinator import pool as pool_module
from coordinator.pool import Pool
from coordinator.replica import Replica
from coordinator.resolution import Endpoint, parse_endpoints
from outrider.core.protocol.messages import ModelInfo
from outrider.core.protocol.refusal import Refusal
from outrider.rpc.worker_client import VERIFY_SERVICE
from tests.coordinator.scripted_worker import MODEL, ScriptedWorker, settled


class Cluster:
    """Workers by address, and what DNS says."""

    def __init__(self, endpoints: str) -> None:
        self.workers: dict[str, ScriptedWorker] = {}
        self.names: dict[str, Sequence[str] | OSError] = {}
        self.num_changes = 0
        self.pool = Pool(
            VERIFY_SERVICE,
            parse_endpoints(endpoints),
            admit=self._admit,
            on_change=self._on_change,
            on_seats=lambda replica, change: None,
            connect=self._connect,
            resolver=self._resolve,
        )

    def replica(self, address: str) -> Replica:
        return next(replica for replica in self.pool if replica.address == address)

    @property
    def addresses(self) -> list[str]:
        return [replica.address for replica in self.pool]

    @property
    def serving(self) -> list[str]:
        return [replica.address for replica in self.pool.serving]

    async def _admit(self, replica: Replica, info: ModelInfo) -> Refusal | None:
        return None

    def _on_change(self) -> None:
        self.num_changes += 1

    def _connect(self, address: str, service: str) -> ScriptedWorker:
        assert service == VERIFY_SERVICE
        return self.workers.setdefault(address, ScriptedWorker())

    async def _resolve(self, endpoint: Endpoint) -> Sequence[str]:
        answer = self.names[endpoint.host]
        if isinstance(answer, OSError):
            raise answer
        return answer


@pytest.fixture
async def clusters() -> AsyncIterator[list[Cluster]]:
    """Those that a test makes are stopped after it."""
    made: list[Cluster] = []
    yield made
    for cluster in made:
        await cluster.pool.stop()
        assert all(worker.is_closed for worker in cluster.workers.values())


async def started(clusters: list[Cluster], endpoints: str, **names: Sequence[str] | OSError) -> Cluster:
    cluster = Cluster(endpoints)
    cluster.names = names
    clusters.append(cluster)
    cluster.pool.start()
    await settled()
    return cluster


def model(instance_id: str) -> ModelInfo:
    return MODEL._replace(instance_id=instance_id)


async def test_literal_addresses_are_replicas_at_once(clusters: list[Cluster]) -> None:
    cluster = await started(clusters, "10.0.0.1:1,10.0.0.2:1")
    assert (cluster.addresses, cluster.serving) == (["10.0.0.1:1", "10.0.0.2:1"], [])
    assert not cluster.pool.has_answered
    await cluster.workers["10.0.0.2:1"].serve()
    assert cluster.serving == ["10.0.0.2:1"]
    assert cluster.pool.has_answered
    assert cluster.pool.refusals == [Refusal("10.0.0.1:1: it has not answered yet")]


async def test_a_pool_has_answered_when_all_were_asked_in_vain(clusters: list[Cluster]) -> None:
    cluster = await started(clusters, "10.0.0.1:1,verify:1", verify=OSError(-2, "unknown name"))
    assert not cluster.pool.has_answered
    await cluster.workers["10.0.0.1:1"].cease()
    assert cluster.pool.has_answered
    assert [refusal.text for refusal in cluster.pool.refusals] == [
        "the name 'verify' cannot be resolved (unknown name)",
        "10.0.0.1:1: it is loading or draining",
    ]


async def test_one_process_under_two_addresses_gets_sessions_once(clusters: list[Cluster]) -> None:
    cluster = await started(clusters, "10.0.0.1:1,10.0.0.2:1")
    for address in cluster.addresses:
        await cluster.workers[address].serve()
    assert cluster.serving == ["10.0.0.1:1"]
    assert cluster.pool.refusal_of(cluster.replica("10.0.0.1:1")) is None
    twin = cluster.pool.refusal_of(cluster.replica("10.0.0.2:1"))
    assert twin == Refusal("it is the same process as 10.0.0.1:1")
    await cluster.workers["10.0.0.1:1"].cease()
    assert cluster.serving == ["10.0.0.2:1"]


async def test_a_process_that_is_not_trusted_gets_no_sessions_by_any_address_until_it_restarts(
    clusters: list[Cluster],
) -> None:
    cluster = await started(clusters, "10.0.0.1:1,10.0.0.2:1,10.0.0.3:1")
    for address in ("10.0.0.1:1", "10.0.0.2:1"):
        await cluster.workers[address].serve()
    await cluster.workers["10.0.0.3:1"].serve(MODEL._replace(instance_id="another"))
    cluster.replica("10.0.0.1:1").distrust("it said 5 tokens for 2")
    assert cluster.serving == ["10.0.0.3:1"]
    for address in ("10.0.0.1:1", "10.0.0.2:1"):
        assert "said what cannot be true" in str(cluster.pool.refusal_of(cluster.replica(address)))
    await cluster.workers["10.0.0.1:1"].cease()
    await cluster.workers["10.0.0.1:1"].serve()
    assert cluster.serving == ["10.0.0.3:1"], "the same process, serving again"
    for address in ("10.0.0.1:1", "10.0.0.2:1"):
        await cluster.workers[address].serve(MODEL._replace(instance_id="restarted"))
    assert cluster.serving == ["10.0.0.1:1", "10.0.0.3:1"]


async def test_a_name_is_resolved_again_as_soon_as_a_replica_of_it_is_lost(clusters: list[Cluster]) -> None:
    cluster = await started(clusters, "verify:1", verify=["10.0.0.1:1"])
    await cluster.workers["10.0.0.1:1"].serve()
    cluster.names["verify"] = ["10.0.0.2:1"]
    await settled()
    assert cluster.addresses == ["10.0.0.1:1"], "nothing says yet that the name has changed"
    await cluster.workers["10.0.0.1:1"].cease()
    assert cluster.addresses == ["10.0.0.2:1"]
    assert cluster.workers["10.0.0.1:1"].is_closed


async def test_a_retired_replica_stays_until_its_last_session_has_ended(clusters: list[Cluster]) -> None:
    cluster = await started(clusters, "verify:1", verify=["10.0.0.1:1", "10.0.0.2:1"])
    leaving, lost = cluster.replica("10.0.0.1:1"), cluster.workers["10.0.0.2:1"]
    await cluster.workers["10.0.0.1:1"].serve()
    seats = [leaving.take(10), leaving.take(10)]
    cluster.names["verify"] = ["10.0.0.3:1"]
    await lost.cease()
    assert cluster.addresses == ["10.0.0.1:1", "10.0.0.3:1"]
    assert cluster.serving == []
    assert "its sessions may finish" in str(cluster.pool.refusal_of(leaving))
    seats[0].leave()
    assert cluster.addresses == ["10.0.0.1:1", "10.0.0.3:1"]
    seats[1].leave()
    await settled()
    assert cluster.addresses == ["10.0.0.3:1"]
    assert cluster.workers["10.0.0.1:1"].is_closed


async def test_a_name_server_that_is_down_takes_no_worker_with_it(clusters: list[Cluster]) -> None:
    cluster = await started(clusters, "verify:1", verify=["10.0.0.1:1", "10.0.0.2:1"])
    await cluster.workers["10.0.0.1:1"].serve()
    cluster.names["verify"] = OSError(-3, "temporary failure")
    await cluster.workers["10.0.0.2:1"].cease()
    assert cluster.serving == ["10.0.0.1:1"]
    assert Refusal("the name 'verify' cannot be resolved (temporary failure)") in cluster.pool.refusals
    cluster.names["verify"] = ["10.0.0.1:1"]
    await cluster.workers["10.0.0.2:1"].cease()
    assert (cluster.addresses, cluster.pool.refusals) == (["10.0.0.1:1"], [])


async def test_an_address_of_two_names_is_one_replica(clusters: list[Cluster]) -> None:
    cluster = await started(clusters, "10.0.0.1:1,verify:1", verify=["10.0.0.1:1", "10.0.0.2:1"])
    assert cluster.addresses == ["10.0.0.1:1", "10.0.0.2:1"]


async def test_a_name_with_too_many_addresses_is_cut_off(
    clusters: list[Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "REPLICAS_MAX", 2)
    cluster = await started(clusters, "verify:1", verify=[f"10.0.0.{n}:1" for n in range(1, 6)])
    assert cluster.addresses == ["10.0.0.1:1", "10.0.0.2:1"]
