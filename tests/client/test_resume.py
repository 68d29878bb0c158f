"""The client when a coordinator is lost: another one goes on, each token comes once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

import pytest

from outrider.client import (
    NO_RETRY,
    Answer,
    Event,
    GenerationClient,
    Retry,
    SamplingParams,
    Started,
    gather,
)
from outrider.client.retry import PAUSE_SECONDS_MAX, RETRY_AFTER_SECONDS_MAX, Patience
from outrider.core.protocol.errors import (
    FieldViolation,
    InvalidRequestError,
    ModelMismatchError,
    OutriderError,
    ProtocolViolationError,
    SlotsExhaustedError,
    StepFailedError,
    WorkerUnavailableError,
)
from outrider.rpc.server import Server, Service
from outrider.rpc.status import ServicerContext, rpc_errors
from outrider.v1 import common_pb2, generation_pb2_grpc
from outrider.v1 import generation_pb2 as pb

PROMPT = (5, 6)
SEED = 11
NUM_TOKENS = 8
AT_ONCE = Retry(pause_seconds=0.0)
"""As ever, but without pauses, so that no test waits."""


def answer_events(request: pb.GenerateRequest) -> list[pb.GenerateResponse]:
    """What a coordinator says: the tokens of each completion, a function of its number and the position, behind those
    that the client has."""
    num_completions = request.num_completions or 1
    received = request.resume.completions if request.HasField("resume") else [pb.ReceivedCompletion()] * num_completions
    events = [
        pb.GenerateResponse(
            started=pb.GenerateStarted(
                request_id="r", prompt_token_ids=PROMPT, seed=SEED, target_identity_sha256="the target"
            )
        )
    ]
    for number, has in enumerate(received):
        if has.finished:
            continue
        for index in range(len(has.token_ids), NUM_TOKENS):
            events.append(
                pb.GenerateResponse(
                    tokens=pb.GeneratedTokens(
                        position=len(PROMPT) + index,
                        text=f"{number}.{index} ",
                        tokens=[
                            pb.GeneratedToken(
                                token_id=100 * number + index, text=f"{number}.{index} ", origin=pb.TOKEN_ORIGIN_BONUS
                            )
                        ],
                        num_draft_tokens=2,
                        completion=number,
                        num_cached_prompt_tokens=1 if index == 0 else 0,
                    )
                )
            )
        num_rounds = NUM_TOKENS - len(has.token_ids)
        events.append(
            pb.GenerateResponse(
                finished=pb.GenerateFinished(
                    reason=common_pb2.FINISH_REASON_LENGTH,
                    mode=pb.GENERATION_MODE_SPECULATIVE,
                    text="!",
                    usage=pb.Usage(
                        num_prompt_tokens=len(PROMPT),
                        num_generated_tokens=NUM_TOKENS,
                        num_cached_prompt_tokens=has.num_cached_prompt_tokens if has.token_ids else 1,
                    ),
                    speculation=pb.SpeculationStatistics(
                        num_rounds=num_rounds,
                        num_draft_tokens=2 * num_rounds,
                        num_bonuses=num_rounds,
                        acceptance_length=1.0 if num_rounds else 0.0,
                        acceptance_histogram=[num_rounds] if num_rounds else [],
                    ),
                    completion=number,
                )
            )
        )
    return events


class Coordinator(generation_pb2_grpc.GenerationServiceServicer):
    """Says what is asked for. Its first calls end early: after so many events each, by an error or otherwise."""

    def __init__(self, *endings: tuple[int, object]) -> None:
        self.requests: list[pb.GenerateRequest] = []
        self._endings = list(endings)
        self.server: Server | None = None

    @rpc_errors
    async def Generate(self, request: pb.GenerateRequest, context: ServicerContext) -> None:
        self.requests.append(request)
        num_events, ending = self._endings.pop(0) if self._endings else (None, None)
        for event in answer_events(request)[:num_events]:
            await context.write(event)
        if isinstance(ending, Exception):
            raise ending
        if ending == "stop":
            assert self.server is not None
            self.stopping = asyncio.create_task(self.server.stop(None))
            await asyncio.Event().wait()
        if ending == "wait":
            await asyncio.Event().wait()


@asynccontextmanager
async def serving(coordinator: Coordinator, listen: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """The address at which it is served."""
    server = coordinator.server = Server(
        Service(
            "outrider.v1.GenerationService",
            generation_pb2_grpc.add_GenerationServiceServicer_to_server,
            coordinator,
        )
    )
    port = await server.start(listen)
    server.set_ready(True)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def ask(coordinators: Sequence[Coordinator], seen: list[Event], num_completions: int = 1) -> Answer:
    """The answer of the first of them and its successors."""
    async with AsyncExitStack() as stack:
        addresses = [await stack.enter_async_context(serving(each)) for each in coordinators]
        client = await stack.enter_async_context(GenerationClient(addresses, retry=AT_ONCE))
        sampling = SamplingParams(temperature=1.0)
        answering = client.generate("x", num_completions=num_completions, sampling=sampling, draw_seed=True)
        return await gather(answering, seen.append)


def check(answer: Answer, seen: list[Event], num_completions: int = 1) -> None:
    """It is what one coordinator would have said."""
    assert [type(event) for event in seen].count(Started) == 1
    assert isinstance(seen[0], Started)
    for number, completion in enumerate(answer.completions):
        assert completion.token_ids == tuple(100 * number + index for index in range(NUM_TOKENS))
        assert completion.text == "".join(f"{number}.{index} " for index in range(NUM_TOKENS)) + "!"
        told = completion.finished.speculation
        assert (told.num_rounds, told.num_draft_tokens, told.num_bonuses) == (NUM_TOKENS, 2 * NUM_TOKENS, NUM_TOKENS)
        assert (told.acceptance_length, told.acceptance_histogram) == (1.0, (NUM_TOKENS,))
        assert completion.finished.usage.num_cached_prompt_tokens == 1
    assert len(answer.completions) == num_completions


LOSSES: dict[str, object] = {
    "its server stops": "stop",
    "no verifier is left": WorkerUnavailableError("all verifiers were lost"),
    "it has no room": SlotsExhaustedError("every slot is taken"),
}


@pytest.mark.parametrize("num_events", [0, 1, 2, 5, NUM_TOKENS + 1])
async def test_another_coordinator_goes_on(num_events: int) -> None:
    first, second = Coordinator((num_events, "stop")), Coordinator()
    seen: list[Event] = []
    check(await ask([first, second], seen), seen)
    (request,) = second.requests
    if num_events == 0:
        assert request.text == "x"
        assert not request.HasField("resume")
        return
    assert list(request.token_ids.ids) == list(PROMPT), "the prompt as the target read it"
    assert request.sampling.seed == SEED
    assert request.resume.target_identity_sha256 == "the target"
    (received,) = request.resume.completions
    assert list(received.token_ids) == list(range(num_events - 1))


@pytest.mark.parametrize("ending", LOSSES.values(), ids=LOSSES)
async def test_whatever_is_no_fault_of_the_request_is_survived(ending: object) -> None:
    seen: list[Event] = []
    check(await ask([Coordinator((3, ending)), Coordinator((2, ending)), Coordinator()], seen), seen)


async def test_what_has_ended_is_not_asked_for_again() -> None:
    first, second = Coordinator((NUM_TOKENS + 4, "stop")), Coordinator()
    seen: list[Event] = []
    check(await ask([first, second], seen, num_completions=2), seen, num_completions=2)
    ended, cut = second.requests[0].resume.completions
    assert (ended.finished, list(ended.token_ids)) == (True, [])
    assert list(cut.token_ids) == [100, 101]
    assert cut.num_cached_prompt_tokens == 1


async def test_a_loss_behind_the_last_word_is_none() -> None:
    first, second = Coordinator((NUM_TOKENS + 2, "stop")), Coordinator()
    seen: list[Event] = []
    check(await ask([first, second], seen), seen)
    assert not second.requests


async def test_the_same_coordinator_goes_on_when_it_is_back() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    seen: list[Event] = []
    async with AsyncExitStack() as stack:
        first, again = Coordinator((4, "wait")), Coordinator()
        lost = await stack.enter_async_context(AsyncExitStack())
        await lost.enter_async_context(serving(first, address))
        client = await stack.enter_async_context(GenerationClient(address))

        async def restart() -> None:
            await lost.aclose()
            await stack.enter_async_context(serving(again, address))

        restarting: list[asyncio.Task[None]] = []

        def watch(event: Event) -> None:
            seen.append(event)
            if len(seen) == 4:
                restarting.append(asyncio.create_task(restart()))

        check(await gather(client.generate("x"), watch), seen)
        await restarting[0]
        assert len(again.requests) == 1


FAULTS: dict[str, OutriderError] = {
    "the request": InvalidRequestError([FieldViolation("max_tokens", "must be at least 1")]),
    "a forward pass": StepFailedError("a forward pass failed"),
    "the protocol": ProtocolViolationError("this is not allowed here"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_what_would_fail_again_is_raised(fault: OutriderError) -> None:
    second = Coordinator()
    with pytest.raises(type(fault)):
        await ask([Coordinator((2, fault)), second], [])
    assert not second.requests


async def test_a_deadline_bounds_all_tries_together() -> None:
    async with AsyncExitStack() as stack:
        addresses = [
            await stack.enter_async_context(serving(each)) for each in (Coordinator((3, "wait")), Coordinator())
        ]
        client = await stack.enter_async_context(GenerationClient(addresses))
        with pytest.raises(WorkerUnavailableError, match="in time"):
            await gather(client.generate("x", timeout_s=0.2))


async def test_leaving_is_no_loss() -> None:
    first, second = Coordinator((3, "wait")), Coordinator()
    async with (
        serving(first) as one,
        serving(second) as two,
        GenerationClient(f"{one}, {two}") as client,
        aclosing(client.generate("x")) as events,
    ):
        assert isinstance(await anext(events), Started)
    assert not second.requests


async def test_a_coordinator_of_another_target_is_left_out() -> None:
    other = ModelMismatchError("another target began this answer")
    elsewhere, fitting = Coordinator((0, other)), Coordinator()
    seen: list[Event] = []
    check(await ask([Coordinator((3, "stop")), elsewhere, fitting], seen), seen)
    assert (len(elsewhere.requests), len(fitting.requests)) == (1, 1)
    with pytest.raises(ModelMismatchError):
        await ask([Coordinator((3, WorkerUnavailableError("all verifiers were lost")), (0, other))], [])


async def test_nobody_left_is_said_after_so_many_tries() -> None:
    endless = [(2, WorkerUnavailableError("all verifiers were lost"))] + [
        (0, WorkerUnavailableError(f"failure {number}")) for number in range(1, 3)
    ]
    coordinator = Coordinator(*endless)
    retry = Retry(pause_seconds=0.0, tries_max=1)
    async with serving(coordinator) as address, GenerationClient(address, retry=retry) as client:
        with pytest.raises(WorkerUnavailableError, match="failure 1"):
            await gather(client.generate("x"))
    assert len(coordinator.requests) == 2


async def test_nothing_is_tried_again_where_that_is_not_wanted() -> None:
    coordinator = Coordinator((2, WorkerUnavailableError("all verifiers were lost")))
    async with serving(coordinator) as address, GenerationClient(address, retry=NO_RETRY) as client:
        with pytest.raises(WorkerUnavailableError, match="all verifiers were lost"):
            await gather(client.generate("x"))
    assert len(coordinator.requests) == 1


def repeated(events: list[pb.GenerateResponse]) -> list[pb.GenerateResponse]:
    return [*events[:3], events[2], *events[3:]]


def gap(events: list[pb.GenerateResponse]) -> list[pb.GenerateResponse]:
    return [*events[:3], *events[4:]]


def other_seed(events: list[pb.GenerateResponse]) -> list[pb.GenerateResponse]:
    return [pb.GenerateResponse(started=pb.GenerateStarted(prompt_token_ids=PROMPT, seed=SEED + 1)), *events[1:]]


@pytest.mark.parametrize(
    ("wrong", "words"), [(repeated, "repeated tokens"), (gap, "repeated tokens"), (other_seed, "another answer")]
)
async def test_who_goes_on_elsewhere_is_found_out(
    wrong: Callable[[list[pb.GenerateResponse]], list[pb.GenerateResponse]], words: str
) -> None:
    class Wrong(Coordinator):
        @rpc_errors
        async def Generate(self, request: pb.GenerateRequest, context: ServicerContext) -> None:
            for event in wrong(answer_events(request)):
                await context.write(event)

    with pytest.raises(ProtocolViolationError, match=words):
        await ask([Coordinator((3, "stop")), Wrong()], [])


async def test_the_first_that_answers_tells_what_is_served() -> None:
    class Telling(Coordinator):
        @rpc_errors
        async def GetServerInfo(
            self, request: pb.GetServerInfoRequest, context: ServicerContext
        ) -> pb.GetServerInfoResponse:
            return pb.GetServerInfoResponse(version="1.2.3")

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{unused.getsockname()[1]}"
        async with serving(Telling()) as address, GenerationClient([nobody, address]) as client:
            assert (await client.server_info()).version == "1.2.3"


def test_pauses_grow_and_differ() -> None:
    retry = Retry()
    for num_failures, longest in ((1, 0.1), (2, 0.2), (3, 0.4), (40, PAUSE_SECONDS_MAX), (10**6, PAUSE_SECONDS_MAX)):
        pauses = {retry.pause(num_failures, 0.0) for _ in range(20)}
        assert len(pauses) > 1
        assert all(longest / 2 <= pause <= longest for pause in pauses)
    assert 7.0 < retry.pause(1, 7.0) <= 7.1, "never sooner than was asked for"
    assert retry.pause(1, 1e9) <= RETRY_AFTER_SECONDS_MAX + 0.1


def test_patience_ends() -> None:
    fresh = Patience(Retry(tries_to_begin=2), 2)
    assert [fresh.lasts(0.0) for _ in range(4)] == [True, True, True, False]
    begun = Patience(Retry(seconds_max=10.0, tries_max=5), 1)
    begun.on_event()
    assert begun.lasts(100.0)
    assert begun.lasts(109.0)
    assert not begun.lasts(110.0), "so long nothing new has come"
    begun.on_event()
    assert begun.lasts(120.0)
    assert begun.lasts(120.0)
    assert not begun.lasts(120.0), "so often has the answer been cut off"
