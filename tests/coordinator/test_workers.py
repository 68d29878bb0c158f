"""Both pools in memory: which target is served, who fits it, and what is said when nobody does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs
from tokenizers import Tokenizer, models, normalizers

from coordinator.workers import Workers
from outrider.core.protocol.errors import WorkerUnavailableError
from outrider.telemetry.setup import set_up
from tests.coordinator.scripted_worker import MODEL, ScriptedWorker

TOKENIZER = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).to_str().encode()
VERIFIERS, DRAFTERS = ("10.0.0.1:1", "10.0.0.2:1"), ("10.0.1.1:1", "10.0.1.2:1")
DRAFT = MODEL._replace(name="draft", num_parameters=10)


class Watching:
    """Two verifiers and two drafters."""

    def __init__(self) -> None:
        self.scripted = {address: ScriptedWorker() for address in (*VERIFIERS, *DRAFTERS)}
        for worker in self.scripted.values():
            worker.tokenizer = TOKENIZER
        self.workers = Workers(
            ",".join(VERIFIERS),
            ",".join(DRAFTERS),
            set_up("test", environ={}).instruments,
            lambda address, service: self.scripted[address],
        )
        self.ready = False
        self._changed = asyncio.Event()

    def on_change(self, ready: bool) -> None:
        self.ready = ready
        self._changed.set()

    async def serve(self, address: str, **facts: object) -> None:
        """A worker begins to serve; returns when the coordinator has taken it in (it parses tokenizers in a thread)."""
        self._changed.clear()
        index = (VERIFIERS + DRAFTERS).index(address)
        model = (MODEL if address in VERIFIERS else DRAFT)._replace(instance_id=str(index), **facts)
        await self.scripted[address].serve(model)
        await self._changed.wait()

    def refusal(self, address: str) -> str:
        return next(str(refusal) for replica, refusal in self.workers if replica.address == address)


@pytest.fixture
async def watching() -> AsyncIterator[Watching]:
    watching = Watching()
    task = asyncio.create_task(watching.workers.watch(watching.on_change))
    await asyncio.wait({task}, timeout=0)
    yield watching
    task.cancel()
    await asyncio.wait({task})
    assert all(worker.is_closed for worker in watching.scripted.values())


async def test_generations_are_possible_with_a_target_and_an_answer_of_the_drafters(watching: Watching) -> None:
    with pytest.raises(WorkerUnavailableError, match=r"no verify service serves .*it has not answered yet"):
        watching.workers.require_target()
    await watching.serve(VERIFIERS[0])
    assert not watching.ready, "a drafter may be about to answer"
    await watching.serve(DRAFTERS[1])
    assert watching.ready
    target, tokenizer = watching.workers.require_target()
    assert (target.name, await tokenizer.encode("b")) == ("target", [1])
    assert watching.workers.require_chat_template().render([{"role": "user", "content": "a"}]) == "<s>"
    assert watching.workers.drafter_refusal() is None


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"model": {"type": "NotYetInvented"}}, id="unknown"),
        pytest.param({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "YWJj"}}, id="panic"),
    ],
)
async def test_a_tokenizer_that_cannot_be_parsed_is_said_in_log_and_answer(
    watching: Watching, changes: dict[str, object]
) -> None:
    content = {**json.loads(TOKENIZER), **changes}
    watching.scripted[VERIFIERS[0]].tokenizer = json.dumps(content).encode()
    with capture_logs() as logs:
        await watching.serve(VERIFIERS[0])
    assert [each["event"] for each in logs] == ["worker cannot be used"]
    assert "tokenizer.json cannot be parsed by tokenizers" in logs[0]["reason"]
    with pytest.raises(WorkerUnavailableError, match=r"10\.0\.0\.1:1: its tokenizer\.json cannot be parsed"):
        watching.workers.require_target()
    await watching.serve(VERIFIERS[1])
    assert watching.workers.require_target()[0].name == "target"
    assert "cannot be parsed" in watching.refusal(VERIFIERS[0])


async def test_a_tokenizer_that_cannot_be_fetched_is_said_too(watching: Watching) -> None:
    watching.scripted[VERIFIERS[0]].tokenizer = WorkerUnavailableError("it arrived damaged")
    await watching.serve(VERIFIERS[0])
    with pytest.raises(WorkerUnavailableError, match="it arrived damaged"):
        watching.workers.require_target()


async def test_a_verifier_that_comes_back_with_another_spelling_is_read_anew(watching: Watching) -> None:
    """Its vocabulary is the same, and so is all else that it says of itself but what it computes."""
    worker = watching.scripted[VERIFIERS[0]]
    await watching.serve(VERIFIERS[0])
    assert await watching.workers.require_target()[1].encode("B") == [0], "unknown"
    watching._changed.clear()
    await worker.cease()
    await watching._changed.wait()
    lowering = Tokenizer.from_buffer(TOKENIZER)
    lowering.normalizer = normalizers.Lowercase()
    worker.tokenizer = lowering.to_str().encode()
    await watching.serve(VERIFIERS[0], identity_sha256="b" * 64)
    assert await watching.workers.require_target()[1].encode("B") == [1]
    await watching.serve(VERIFIERS[1], identity_sha256="c" * 64)
    assert "no session could move between them" in watching.refusal(VERIFIERS[1])


async def test_a_verifier_of_another_target_gets_no_sessions(watching: Watching) -> None:
    await watching.serve(VERIFIERS[0])
    await watching.serve(VERIFIERS[1], dtype="bfloat16")
    assert [replica.address for replica in watching.workers.usable(watching.workers.verifiers)] == [VERIFIERS[0]]
    assert "no session could move between them" in watching.refusal(VERIFIERS[1])


async def test_a_target_is_batch_invariant_if_all_that_serve_it_are(watching: Watching) -> None:
    await watching.serve(VERIFIERS[0], batch_invariant=True)
    assert watching.workers.require_target()[0].batch_invariant
    await watching.serve(VERIFIERS[1], batch_invariant=False, max_context=64)
    assert not watching.workers.require_target()[0].batch_invariant


async def test_a_target_drafts_for_itself_if_all_that_serve_it_do(watching: Watching) -> None:
    await watching.serve(VERIFIERS[0], draft_model="tiny")
    assert watching.workers.require_target()[0].draft_model == "tiny"
    await watching.serve(VERIFIERS[1], draft_model="")
    assert watching.workers.require_target()[0].draft_model == ""


async def test_only_a_pool_without_any_fitting_drafter_is_a_mismatch(watching: Watching) -> None:
    workers = watching.workers
    await watching.serve(VERIFIERS[0])
    await watching.serve(DRAFTERS[0], tokenizer_sha256="b" * 64)
    assert workers.drafter_mismatch() is None, "the other drafter may fit"
    refusal = workers.drafter_refusal()
    assert refusal is not None
    assert "10.0.1.2:1: it has not answered yet" in refusal.text
    assert "different vocabularies" in refusal.text
    await watching.serve(DRAFTERS[1], tokenizer_sha256="b" * 64)
    mismatch = workers.drafter_mismatch()
    assert mismatch is not None
    assert mismatch == workers.drafter_refusal()
    assert "different vocabularies" in mismatch.text


async def test_without_draft_services_there_is_nothing_to_wait_for() -> None:
    worker = ScriptedWorker()
    worker.tokenizer = TOKENIZER
    workers = Workers(VERIFIERS[0], "", set_up("test", environ={}).instruments, lambda address, service: worker)
    assert str(workers.drafter_refusal()) == "no draft service is configured"
    assert workers.draft_answered
    assert workers.draft is None
