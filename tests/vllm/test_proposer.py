"""The proposer against Outrider's own drafters, with vLLM's side played."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from outrider.cli.certificates import make_certificates
from outrider.core.protocol.errors import UnsupportedModelError
from outrider.settings import BadSettingsError
from outrider.vllm import RemoteProposer
from outrider.vllm.proposer import THREAD_NAME

from .pooled import NUM_SPECULATIVE_TOKENS, Batch, Drafter, ModelConfig, ParallelConfig, VllmConfig, ngram_drafter

Begin = Callable[..., Awaitable[Batch]]


@pytest.fixture
async def begin(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Begin]:
    """Makes a batch whose proposer has found the drafters, which serve on this loop: it must not be blocked. A step
    waits as long as a busy machine may need."""
    monkeypatch.setenv("OUTRIDER_VLLM_WAIT_MS", "1000")
    proposers: list[RemoteProposer] = []

    async def start(*drafters: Drafter, config: VllmConfig | None = None) -> Batch:
        monkeypatch.setenv("OUTRIDER_DRAFT", ",".join(each.address for each in drafters) or "127.0.0.1:1")
        proposer = RemoteProposer(config or VllmConfig())
        proposers.append(proposer)
        await asyncio.to_thread(proposer.load_model)
        return Batch(proposer)

    yield start
    for proposer in proposers:
        await asyncio.to_thread(proposer.close)


async def test_what_the_drafter_guesses_is_proposed(begin: Begin) -> None:
    async with ngram_drafter() as drafter:
        batch = await begin(drafter)
        batch.add(0)
        await batch.until(lambda: batch.num_accepted[0] >= 4 * NUM_SPECULATIVE_TOKENS)
        assert any(thread.name == THREAD_NAME for thread in threading.enumerate())
        assert len(batch.lines[0]) == 1 + batch.num_steps + batch.num_accepted[0]


async def test_sixteen_rows_that_move_keep_their_drafts(begin: Begin) -> None:
    chance = random.Random(1)
    async with ngram_drafter() as drafter:
        batch = await begin(drafter)
        for request in range(16):
            batch.add(request)
        await batch.until(lambda: drafter.drafter.load().num_sessions == 16)
        for _ in range(24):
            await batch.step()
            batch.arrange(chance.sample(sorted(batch.lines), 16))
        await batch.until(lambda: min(batch.num_accepted.values()) >= NUM_SPECULATIVE_TOKENS)
        assert drafter.drafter.load().num_sessions == 16


async def test_without_a_drafter_there_are_no_drafts_and_no_error(begin: Begin) -> None:
    batch = await begin()
    batch.add(0)
    for _ in range(20):
        await batch.step()
    assert (batch.num_accepted[0], len(batch.lines[0])) == (0, 21)


async def test_another_drafter_takes_over_when_one_is_lost(begin: Begin) -> None:
    async with AsyncExitStack() as stack:
        drafters = [await stack.enter_async_context(ngram_drafter()) for _ in range(2)]
        batch = await begin(*drafters)
        batch.add(0)
        await batch.until(lambda: batch.num_accepted[0] > 0)
        (used,) = [each for each in drafters if each.drafter.load().num_sessions]
        await used.stop()
        num_before = batch.num_accepted[0]
        await batch.until(lambda: batch.num_accepted[0] >= num_before + 4 * NUM_SPECULATIVE_TOKENS)


async def test_a_lost_drafter_costs_drafts_alone(begin: Begin) -> None:
    async with ngram_drafter() as drafter:
        batch = await begin(drafter)
        batch.add(0)
        await batch.until(lambda: batch.num_accepted[0] > 0)
        await drafter.stop()
        for _ in range(8):
            await batch.step()
        assert len(batch.lines[0]) == 1 + batch.num_steps + batch.num_accepted[0]


async def test_a_line_that_steps_leave_out_is_given_up(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTRIDER_VLLM_KEEP_SECONDS", "0")
    async with ngram_drafter() as drafter:
        batch = await begin(drafter)
        batch.add(0)
        batch.add(1)
        await batch.until(lambda: min(batch.num_accepted.values()) > 0)
        assert drafter.drafter.load().num_sessions == 2
        batch.remove(0)
        await batch.until(lambda: drafter.drafter.load().num_sessions == 1)


async def test_a_drafter_of_another_vocabulary_gets_no_line(begin: Begin) -> None:
    class Larger(ModelConfig):
        def get_vocab_size(self) -> int:
            return 2**31 - 1

    async with ngram_drafter() as drafter:
        batch = await begin(drafter, config=VllmConfig(model_config=Larger()))
        batch.add(0)
        for _ in range(12):
            await batch.step()
        assert batch.num_accepted[0] == 0
        assert drafter.drafter.load().num_sessions == 0


@pytest.mark.parametrize("name", ["coordinator", "verify"])
async def test_drafters_let_in_by_certificate(
    name: str, begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM stands where a coordinator would; who has another name gets no drafts."""
    make_certificates(tmp_path)
    own = {setting: str(tmp_path / file) for setting, file in (("tls_cert", "draft.pem"), ("tls_key", "draft.key"))}
    for setting, file in (("CERT", f"{name}.pem"), ("KEY", f"{name}.key"), ("CA", "ca.pem")):
        monkeypatch.setenv(f"OUTRIDER_TLS_{setting}", str(tmp_path / file))
    async with ngram_drafter(tls_ca=str(tmp_path / "ca.pem"), **own) as drafter:
        batch = await begin(drafter)
        batch.add(0)
        if name == "coordinator":
            await batch.until(lambda: batch.num_accepted[0] > 0)
        else:
            for _ in range(12):
                await batch.step()
            assert batch.num_accepted[0] == 0


async def test_a_rank_whose_drafts_nobody_asks_for_makes_none(begin: Begin) -> None:
    batch = await begin(config=VllmConfig(parallel_config=ParallelConfig(rank=1, tensor_parallel_size=2)))
    assert not any(thread.name == THREAD_NAME for thread in threading.enumerate())
    batch.add(0)
    await batch.step()


async def test_what_is_no_row_is_no_error(begin: Begin) -> None:
    batch = await begin()
    assert batch._proposer.propose([[1], []], [4], {}) == [[], []]  # pyright: ignore


def test_bad_settings_are_said_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTRIDER_DRAFT", "somewhere")
    monkeypatch.setenv("OUTRIDER_TLS_CA", "/nonexistent.pem")
    with pytest.raises(BadSettingsError, match="write host:port or dns:///name:port"):
        RemoteProposer(VllmConfig())


def test_a_target_whose_ids_mean_nothing_known_is_refused() -> None:
    config = VllmConfig(model_config=ModelConfig(tokenizer="/nonexistent"))
    with pytest.raises(UnsupportedModelError, match="has no tokenizer"):
        RemoteProposer(config)
    assert not any(thread.name == THREAD_NAME for thread in threading.enumerate())
