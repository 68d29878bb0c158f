"""The client against a real server: what it sends, what it yields, what it raises."""

from __future__ import annotations

import socket
from contextlib import aclosing

import pytest

from outrider.client import (
    NO_RETRY,
    Event,
    Finished,
    FinishReason,
    GenerationClient,
    GenerationMode,
    Replica,
    SamplingParams,
    Speculation,
    Started,
    Timings,
    Token,
    TokenLogprobs,
    TokenOrigin,
    Tokens,
    Usage,
    gather,
)
from outrider.core.protocol.errors import (
    FieldViolation,
    InvalidRequestError,
    ProtocolViolationError,
    SlotsExhaustedError,
    WorkerUnavailableError,
)
from outrider.rpc import wire
from outrider.rpc.channels import MESSAGE_BYTES_MAX
from outrider.v1 import common_pb2
from outrider.v1 import generation_pb2 as pb
from tests.client.scripted import (
    DRAFT,
    LOAD,
    ROUNDS,
    TARGET,
    TEXT,
    TWO,
    ScriptedCoordinator,
    finished,
    serving,
    started,
    tokens,
)

SPECULATION = Speculation(
    num_rounds=3,
    num_draft_tokens=8,
    num_accepted_tokens=2,
    num_rollbacks=1,
    num_drafted_nodes=9,
    num_stale_nodes=4,
    acceptance_length=2.0,
    acceptance_histogram=(1, 2),
    num_rejections=2,
    num_recovered_token_hits=1,
    num_bonuses=1,
    num_bonus_hits=0,
    num_prompt_lookup_tokens=5,
    num_accepted_prompt_lookup_tokens=1,
)


async def test_the_events_are_plain_values_in_order() -> None:
    async with serving(ScriptedCoordinator()) as address, GenerationClient(address) as client:
        events = [event async for event in client.generate("import os\n")]
    assert events[0] == Started("r1", (5, 6), 7, "f" * 32)
    assert events[2] == Tokens(
        position=3,
        text="walk(",
        tokens=(Token(11, "walk", TokenOrigin.ACCEPTED, None), Token(12, "(", TokenOrigin.BONUS, None)),
        rolled_back=False,
        num_draft_tokens=2,
    )
    assert [event.rolled_back for event in events if isinstance(event, Tokens)] == [False, False, True]
    assert events[-1] == Finished(
        reason=FinishReason.LENGTH,
        mode=GenerationMode.DEGRADED,
        mode_reason="the drafter left",
        text="!",
        usage=Usage(2, 6, 1),
        speculation=SPECULATION,
        timings=Timings(40.0, 500.0, 300.0, 20.0, 100.0),
    )
    assert isinstance(events[-1], Finished)
    assert events[-1].speculation.acceptance_rate == 0.25
    assert "".join(event.text for event in events if not isinstance(event, Started)) == TEXT


async def test_a_request_arrives_as_it_was_made() -> None:
    coordinator = ScriptedCoordinator()
    sampling = SamplingParams(temperature=0.5, top_k=40, logit_bias=((3, -2.0),), seed=2**64 - 1)
    async with serving(coordinator) as address, GenerationClient(address) as client:
        async for _ in client.generate(
            [5, 6],
            sampling=sampling,
            max_tokens=12,
            stop=["\n\n", "def"],
            stop_token_ids=[1],
            ignore_eos=True,
            num_logprobs=0,
            speculate=False,
            max_draft_tokens=4,
            tree_width=2,
        ):
            pass
    (request,) = coordinator.requests
    assert request == pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=[5, 6]),
        sampling=wire.encode_sampling(sampling),
        max_tokens=12,
        stop=["\n\n", "def"],
        stop_token_ids=[1],
        ignore_eos=True,
        num_logprobs=0,
        speculation=pb.SpeculationParams(enabled=False, max_draft_tokens=4, tree_width=2),
    )


async def test_a_text_may_have_its_special_tokens_already() -> None:
    coordinator = ScriptedCoordinator()
    async with serving(coordinator) as address, GenerationClient(address) as client:
        async for _ in client.generate("<s>x", add_special_tokens=False):
            pass
    (request,) = coordinator.requests
    assert request.HasField("add_special_tokens")
    assert not request.add_special_tokens


async def test_what_is_not_said_is_not_sent() -> None:
    coordinator = ScriptedCoordinator()
    async with serving(coordinator) as address, GenerationClient(address) as client:
        async for _ in client.generate("", draw_seed=True):
            pass
    (request,) = coordinator.requests
    assert request.WhichOneof("prompt") == "text"
    assert not request.HasField("add_special_tokens")
    assert not request.sampling.HasField("seed")
    assert not request.HasField("max_tokens")
    assert not request.HasField("num_logprobs")
    assert not request.speculation.HasField("tree_width")


async def test_log_probabilities_come_with_their_tokens() -> None:
    logprobs = common_pb2.TokenLogprobs(logprob=-0.5, top_token_ids=[10, 4], top_logprobs=[-0.5, -1.5])
    script = [started(), tokens(2, (10, "a", pb.TOKEN_ORIGIN_TARGET), logprobs=[logprobs]), finished(1)]
    async with serving(ScriptedCoordinator(script)) as address, GenerationClient(address) as client:
        events = [event async for event in client.generate("x", num_logprobs=2)]
    assert isinstance(events[1], Tokens)
    assert events[1].tokens[0].logprobs == TokenLogprobs(-0.5, (10, 4), (-0.5, -1.5))


async def test_completions_come_mixed_and_each_ends_by_itself() -> None:
    coordinator = ScriptedCoordinator(TWO)
    async with serving(coordinator) as address, GenerationClient(address) as client:
        events = [event async for event in client.generate("x", num_completions=2)]
    assert coordinator.requests[0].num_completions == 2
    assert [event.completion for event in events if not isinstance(event, Started)] == [0, 1, 1, 1, 0, 0]
    assert [event.completion for event in events if isinstance(event, Finished)] == [1, 0]
    async with serving(ScriptedCoordinator(TWO[:-1])) as address, GenerationClient(address) as client:
        with pytest.raises(WorkerUnavailableError, match="without saying why"):
            async for _ in client.generate("x", num_completions=2):
                pass


async def test_an_answer_is_gathered_by_completion() -> None:
    seen: list[Event] = []
    async with serving(ScriptedCoordinator(TWO)) as address, GenerationClient(address) as client:
        answer = await gather(client.generate("x", num_completions=2), seen.append)
    assert len(seen) == len(TWO)
    assert answer.started.prompt_token_ids == (5, 6)
    first, second = answer.completions
    assert (first.text, first.token_ids, first.seed) == ("first ends", (20, 21), 2**64 - 1)
    assert (second.text, second.token_ids, second.seed) == ("second ends early!", (30, 31, 32), 0)
    assert (first.finished.completion, second.finished.completion) == (0, 1)
    assert answer.speculation == Speculation(
        num_rounds=6,
        num_draft_tokens=16,
        num_accepted_tokens=4,
        num_rollbacks=2,
        num_drafted_nodes=18,
        num_stale_nodes=8,
        acceptance_length=2.0,
        acceptance_histogram=(2, 4),
        num_rejections=4,
        num_recovered_token_hits=2,
        num_bonuses=2,
        num_bonus_hits=0,
        num_prompt_lookup_tokens=10,
        num_accepted_prompt_lookup_tokens=2,
    )


async def test_one_gathered_answer_has_its_log_probabilities() -> None:
    logprobs = common_pb2.TokenLogprobs(logprob=-0.5, top_token_ids=[10], top_logprobs=[-0.5])
    script = [started(), tokens(2, (10, "a", pb.TOKEN_ORIGIN_TARGET), logprobs=[logprobs]), finished(1)]
    async with serving(ScriptedCoordinator(script)) as address, GenerationClient(address) as client:
        (completion,) = (await gather(client.generate("x", num_logprobs=1))).completions
    assert completion.logprobs == (TokenLogprobs(-0.5, (10,), (-0.5,)),)
    assert completion.text == "a!"


async def test_a_gathered_answer_raises_what_ended_it() -> None:
    script = [*ROUNDS[:2], SlotsExhaustedError("every slot is taken; try again later")]
    async with serving(ScriptedCoordinator(script)) as address, GenerationClient(address, retry=NO_RETRY) as client:
        with pytest.raises(SlotsExhaustedError):
            await gather(client.generate("x"))


async def test_a_refusal_is_the_error_that_the_server_raised() -> None:
    refusal = InvalidRequestError([FieldViolation("max_tokens", "must be at least 1")])
    async with serving(ScriptedCoordinator([refusal])) as address, GenerationClient(address) as client:
        with pytest.raises(InvalidRequestError) as raised:
            await anext(client.generate("x", max_tokens=0))
    assert raised.value.violations == refusal.violations


async def test_an_error_in_the_midst_comes_after_the_tokens_before_it() -> None:
    script = [*ROUNDS[:2], SlotsExhaustedError("every slot is taken; try again later")]
    async with serving(ScriptedCoordinator(script)) as address, GenerationClient(address, retry=NO_RETRY) as client:
        events = client.generate("x")
        assert isinstance(await anext(events), Started)
        assert isinstance(await anext(events), Tokens)
        with pytest.raises(SlotsExhaustedError, match="every slot is taken"):
            await anext(events)


async def test_nobody_there_is_said_in_words() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with GenerationClient(f"127.0.0.1:{unused.getsockname()[1]}") as client:
            with pytest.raises(WorkerUnavailableError, match="cannot be reached"):
                await anext(client.generate("x"))
            with pytest.raises(WorkerUnavailableError, match="cannot be reached"):
                await client.server_info()


async def test_a_deadline_ends_a_generation() -> None:
    async with serving(ScriptedCoordinator([started(), ...])) as address, GenerationClient(address) as client:
        with pytest.raises(WorkerUnavailableError, match="in time"):
            async for _ in client.generate("x", timeout_s=0.2):
                pass


async def test_leaving_early_cancels_the_call() -> None:
    coordinator = ScriptedCoordinator([*ROUNDS[:2], ...])
    async with serving(coordinator) as address, GenerationClient(address) as client:
        async with aclosing(client.generate("x")) as events:
            async for event in events:
                if isinstance(event, Tokens):
                    break
        await coordinator.left.wait()


@pytest.mark.parametrize(
    ("script", "error", "text"),
    [
        (ROUNDS[:2], WorkerUnavailableError, "without saying why"),
        ([pb.GenerateResponse()], ProtocolViolationError, "does not know"),
        ([pb.GenerateResponse(finished=pb.GenerateFinished())], ProtocolViolationError, "generation mode 0"),
        (ROUNDS[1:], ProtocolViolationError, "begin"),
        ([started(), started()], ProtocolViolationError, "begin"),
        ([tokens(2, (1, "a", pb.TOKEN_ORIGIN_UNSPECIFIED))], ProtocolViolationError, "token origin 0"),
    ],
)
async def test_a_server_that_breaks_the_protocol_is_told_apart(
    script: list[object], error: type[Exception], text: str
) -> None:
    async with serving(ScriptedCoordinator(script)) as address, GenerationClient(address) as client:
        with pytest.raises(error, match=text):
            async for _ in client.generate("x"):
                pass


@pytest.mark.parametrize(
    "unsendable",
    [
        {"prompt": [-1]},
        {"prompt": [2**32]},
        {"prompt": "\udc80"},
        {"prompt": "x", "max_tokens": -1},
        {"prompt": "x" * MESSAGE_BYTES_MAX},
        {"prompt": [2**31] * (MESSAGE_BYTES_MAX // 5)},
    ],
    ids=["negative", "large", "surrogate", "max_tokens", "long text", "many ids"],
)
async def test_what_cannot_be_sent_is_an_invalid_request(unsendable: dict[str, object]) -> None:
    async with GenerationClient("127.0.0.1:1") as client:
        with pytest.raises(InvalidRequestError, match="cannot be sent"):
            await anext(client.generate(**unsendable))  # pyright: ignore[reportArgumentType]


async def test_server_info() -> None:
    coordinator = ScriptedCoordinator()
    async with serving(coordinator) as address, GenerationClient(address) as client:
        info = await client.server_info()
        assert (info.version, info.protocol_version, info.num_running) == ("1.2.3", 1, 3)
        assert (info.target, info.draft, info.target_only_reason) == (TARGET, DRAFT, "")
        assert info.replicas == (
            Replica("10.0.0.1:50052", "outrider.v1.VerifyService", True, "", TARGET, LOAD, 3),
            Replica("10.0.0.2:50051", "outrider.v1.DraftService", False, "cannot be reached", None, None, 0),
        )
        coordinator.draft = None
        info = await client.server_info()
        assert (info.draft, info.target_only_reason) == (None, "no drafter")
