"""The gRPC streams of a session, against a worker that says what it is told to."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import pytest

from coordinator import drafter_link
from coordinator.drafter_link import GrpcDrafterLink
from coordinator.verifier_link import GrpcVerifierLink
from outrider.core.coordinate.drafter_bandit import DrafterBandit
from outrider.core.coordinate.statistics import SpeculationStatistics
from outrider.core.protocol.errors import (
    OutriderError,
    SlotsExhaustedError,
    WorkerUnavailableError,
)
from outrider.core.protocol.messages import (
    Commitment,
    DraftWindow,
    EndDrafts,
    FinishReason,
    Opened,
    VerifyFinished,
)
from outrider.rpc.worker_client import DRAFT_SERVICE

from .linked import DRAFT_OPEN, VERDICT, VERIFY_OPEN, Peer, Serve, Served, listens, sayings, waits


def drafter(served: Served, bandit: DrafterBandit, statistics: SpeculationStatistics) -> GrpcDrafterLink:
    return GrpcDrafterLink(served.seat, bandit.begin("m", greedy=True), DRAFT_OPEN, statistics)


def fresh_drafter(served: Served) -> GrpcDrafterLink:
    return drafter(served, DrafterBandit(), SpeculationStatistics())


async def first_error(link: GrpcDrafterLink) -> tuple[list[DraftWindow], OutriderError]:
    windows: list[DraftWindow] = []
    with pytest.raises(OutriderError) as raised:
        windows.extend([window async for window in sayings(link)])
    return windows, raised.value


async def test_a_verifier_hears_commands_in_order_and_its_events_come_out(serve: Serve) -> None:
    window = DraftWindow(1, 1, [0], [3], [-0.5])
    heard: list[object] = []

    async def handle(peer: Peer) -> None:
        while len(heard) < 3:
            heard.append(await peer.hear())
        for event in (Opened(2), VERDICT, VerifyFinished(FinishReason.EOS)):
            await peer.say(event)
        await listens(peer)

    link = GrpcVerifierLink((await serve(handle)).seat)
    for command in (VERIFY_OPEN, window, EndDrafts()):
        link.offer(command)
    events = sayings(link)
    assert await anext(events) == Opened(2)
    assert not link.has_decided
    assert await anext(events) == VERDICT
    assert link.has_decided
    assert await anext(events) == VerifyFinished(FinishReason.EOS)
    assert heard == [VERIFY_OPEN, window, EndDrafts()]
    link.close()


async def test_a_verifier_that_refuses_raises_what_it_said(serve: Serve) -> None:
    async def handle(peer: Peer) -> None:
        raise SlotsExhaustedError("every slot is taken")

    link = GrpcVerifierLink((await serve(handle)).seat)
    link.offer(VERIFY_OPEN)
    with pytest.raises(SlotsExhaustedError, match="every slot is taken"):
        await anext(sayings(link))
    link.close()


async def test_a_verifier_that_ends_the_stream_without_a_word_is_lost(serve: Serve) -> None:
    async def handle(peer: Peer) -> None:
        await peer.hear()
        await peer.say(VERDICT)

    link = GrpcVerifierLink((await serve(handle)).seat)
    link.offer(VERIFY_OPEN)
    events = sayings(link)
    assert await anext(events) == VERDICT
    with pytest.raises(WorkerUnavailableError, match="ended the stream early"):
        await anext(events)
    link.close()


async def test_closing_a_verifiers_stream_frees_its_slot_and_the_seat(serve: Serve) -> None:
    served = await serve(listens)
    link = GrpcVerifierLink(served.seat)
    link.offer(VERIFY_OPEN)
    await asyncio.wait({asyncio.ensure_future(anext(sayings(link)))}, timeout=0.05)
    link.close()
    await served.worker.was_closed.wait()
    assert served.standing.num_leavings == 1


async def test_a_drafter_is_opened_and_hears_what_was_committed(serve: Serve) -> None:
    commitment = Commitment(2, [3], rollback=True, verify_ms=1.5)
    window = DraftWindow(1, 1, [0], [3], [-0.5], 2.0)
    heard: list[object] = []

    async def handle(peer: Peer) -> None:
        heard.append(await peer.hear())
        await peer.say(Opened(2))
        await peer.say(window)
        heard.append(await peer.hear())
        await peer.say(window)
        await listens(peer)

    link = fresh_drafter(await serve(handle, DRAFT_SERVICE))
    assert (link.model_name, link.is_open) == ("target", False)
    windows = sayings(link)
    assert await anext(windows) == window
    assert link.is_open
    link.send(commitment)
    assert await anext(windows) == window
    assert heard == [DRAFT_OPEN, commitment]
    link.close(failed=False)
    await windows.aclose()


async def test_a_drafter_that_refuses_has_not_had_the_session(serve: Serve) -> None:
    async def handle(peer: Peer) -> None:
        raise SlotsExhaustedError("every slot is taken")

    served, bandit = await serve(handle, DRAFT_SERVICE), DrafterBandit()
    before = bandit.worth("m", greedy=True)
    link = drafter(served, bandit, SpeculationStatistics())
    windows, error = await first_error(link)
    assert (windows, type(error), link.is_open) == ([], SlotsExhaustedError, False)
    link.close(failed=True)
    assert (served.standing.num_failures, served.standing.num_leavings) == (2, 1)
    assert bandit.worth("m", greedy=True) == before, "the trial did not take place"


async def test_an_opening_that_no_message_can_carry_gives_back_what_was_taken_for_the_session(serve: Serve) -> None:
    """The place at the drafter, the bandit's trial, and the breaker's probe: or it would get no session any more."""
    served, bandit = await serve(listens, DRAFT_SERVICE), DrafterBandit()
    breaker = served.standing.breaker
    breaker.fail(0.0)
    breaker.begin()
    before = bandit.worth("m", greedy=True)
    opening = replace(DRAFT_OPEN, max_run_ahead=-1)
    link = GrpcDrafterLink(served.seat, bandit.begin("m", greedy=True), opening, SpeculationStatistics())
    with pytest.raises(ValueError, match="range"):
        await anext(sayings(link))
    link.close(failed=True)
    assert served.standing.num_leavings == 1
    assert bandit.worth("m", greedy=True) == before
    assert breaker.refusal(math.inf) is None, "another probe may follow"
    other = fresh_drafter(served)
    other.close(failed=False)
    await served.worker.was_closed.wait()


async def test_an_opening_that_no_message_can_carry_is_heard_of_where_a_verifier_is_listened_to(serve: Serve) -> None:
    link = GrpcVerifierLink((await serve(listens)).seat)
    link.offer(replace(VERIFY_OPEN, max_draft_tokens=-1))
    link.offer(EndDrafts())
    with pytest.raises(ValueError, match="range"):
        await anext(sayings(link))
    link.close()


async def test_a_place_at_a_worker_whose_connection_is_closed_is_over_at_once(serve: Serve) -> None:
    served = await serve(listens)
    await served.standing.client.close()
    link = GrpcVerifierLink(served.seat)
    link.offer(VERIFY_OPEN)
    with pytest.raises(WorkerUnavailableError, match="closed"):
        await anext(sayings(link))
    link.close()
    assert served.standing.num_leavings == 1


async def opened_then_gone(peer: Peer) -> None:
    await peer.hear()
    await peer.say(Opened(2))


async def test_a_drafter_that_ends_its_stream_is_lost_and_that_counts_against_it(serve: Serve) -> None:
    served, bandit = await serve(opened_then_gone, DRAFT_SERVICE), DrafterBandit()
    link = drafter(served, bandit, SpeculationStatistics())
    _, error = await first_error(link)
    assert "ended the stream" in str(error)
    before = bandit.worth("m", greedy=True)
    link.close(failed=True)
    link.close(failed=True)
    assert served.standing.num_failures == 3, "closing twice counts once"
    assert bandit.worth("m", greedy=True) < before


async def test_what_a_session_gained_with_its_drafter_is_told_at_its_end(serve: Serve) -> None:
    served, bandit = await serve(waits, DRAFT_SERVICE), DrafterBandit()
    statistics = SpeculationStatistics(num_committed_tokens=10, num_rounds=10)
    link = drafter(served, bandit, statistics)
    statistics.num_committed_tokens += 32 * 6
    statistics.num_rounds += 32
    link.close(failed=False)
    assert served.standing.num_failures == 0
    assert bandit.worth("m", greedy=True) > 4.0, "6 tokens per round, with a prior of 2 as heavy"


async def test_a_drafter_that_does_not_read_is_given_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafter_link, "UNREAD_COMMITMENTS_MAX", 2)
    link = fresh_drafter(await serve(waits, DRAFT_SERVICE))
    for position in range(3):
        link.send(Commitment(position, [3], rollback=False))
    _, error = await first_error(link)
    assert "does not read what is committed" in str(error)
    link.close(failed=True)


async def test_closing_a_drafters_stream_frees_its_slot(serve: Serve) -> None:
    window = DraftWindow(1, 1, [0], [3], [-0.5])

    async def handle(peer: Peer) -> None:
        await peer.hear()
        await peer.say(window)
        await listens(peer)

    served = await serve(handle, DRAFT_SERVICE)
    link = fresh_drafter(served)
    windows = sayings(link)
    assert await anext(windows) == window
    link.close(failed=False)
    await served.worker.was_closed.wait()
    with pytest.raises(WorkerUnavailableError):
        await anext(windows)
    assert served.standing.num_leavings == 1
