"""Several completions of one prompt: each is what a request for it alone gives, and they begin and end together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from outrider.client import FinishReason, GenerationMode, Started, Token, Tokens, gather
from outrider.core.coordinate.session import DrafterLost, Session
from outrider.core.protocol.errors import InvalidRequestError, QueueFullError, StepFailedError
from outrider.core.protocol.messages import DraftWindow, VerifyOpen
from outrider.core.protocol.sampling import SamplingParams, completion_seed
from outrider.core.protocol.tree import Node
from outrider.core.protocol.validation import check_verify_open
from outrider.engine.engine import STEP_TOKENS_MAX, Engine, StepOutput
from outrider.engine.jobs import Job
from outrider.telemetry import names
from outrider.telemetry.setup import set_up
from tests.e2e.answers import Answer, ask, ask_all
from tests.e2e.stack import Stack, bundled, coordinator, load_tiny, save_tiny, stack, worker
from tests.engine.tiny_models import build

TEXT = "def walk(top, topdown=True):\n"
SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, seed=2**64 - 2)
"""Its third completion has seed 0."""
NUM_TOKENS = 40
PROMPT = [1, 2, 3]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def pair() -> AsyncIterator[Stack]:
    async with stack(bundled("target"), bundled("draft")) as running:
        yield running


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return save_tiny(build("llama", layers=2), root / "target"), save_tiny(build("llama", layers=1), root / "draft")


async def one_by_one(running: Stack, prompt: str, sampling: SamplingParams, number: int, **more: Any) -> list[Answer]:
    """What requests for each completion alone give."""
    return [
        await ask(running.client, prompt, sampling=replace(sampling, seed=completion_seed(sampling.seed, i)), **more)
        for i in range(number)
    ]


def tokens_of(answer: Answer) -> list[Token]:
    return [token for tokens in answer.rounds for token in tokens.tokens]


@pytest.mark.asyncio(loop_scope="module")
async def test_each_completion_is_what_its_seed_alone_gives(pair: Stack) -> None:
    together = await ask_all(pair.client, TEXT, sampling=SAMPLED, max_tokens=NUM_TOKENS, num_completions=3)
    alone = await one_by_one(pair, TEXT, SAMPLED, 3, max_tokens=NUM_TOKENS)
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert len({tuple(answer.token_ids) for answer in together}) == 3
    assert {answer.finished.mode for answer in together} == {GenerationMode.SPECULATIVE}
    target_only = await ask_all(
        pair.client, TEXT, sampling=SAMPLED, max_tokens=NUM_TOKENS, num_completions=3, speculate=False
    )
    assert [answer.token_ids for answer in target_only] == [answer.token_ids for answer in alone]


@pytest.mark.asyncio(loop_scope="module")
async def test_greedy_completions_are_all_the_same(pair: Stack) -> None:
    together = await ask_all(pair.client, TEXT, max_tokens=NUM_TOKENS, num_completions=3)
    alone = await ask(pair.client, TEXT, max_tokens=NUM_TOKENS)
    assert [answer.token_ids for answer in together] == [alone.token_ids] * 3


@pytest.mark.asyncio(loop_scope="module")
async def test_a_stop_string_ends_each_completion_where_it_stands(pair: Stack) -> None:
    arguments = {"max_tokens": NUM_TOKENS, "stop": ["(", "\n\n"]}
    together = await ask_all(pair.client, TEXT, sampling=SAMPLED, num_completions=4, **arguments)
    alone = await one_by_one(pair, TEXT, SAMPLED, 4, **arguments)
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert [answer.finished.reason for answer in together] == [answer.finished.reason for answer in alone]
    assert FinishReason.STOP_STRING in {answer.finished.reason for answer in together}
    assert len({len(answer.token_ids) for answer in together}) > 1


@pytest.mark.asyncio(loop_scope="module")
async def test_log_probabilities_belong_to_their_completion(pair: Stack) -> None:
    together = await ask_all(pair.client, TEXT, sampling=SAMPLED, max_tokens=12, num_logprobs=2, num_completions=3)
    alone = await one_by_one(pair, TEXT, SAMPLED, 3, max_tokens=12, num_logprobs=2)
    for ours, theirs in zip(together, alone, strict=True):
        for token, other in zip(tokens_of(ours), tokens_of(theirs), strict=True):
            assert token.logprobs is not None
            assert other.logprobs is not None
            assert token.logprobs.logprob == pytest.approx(other.logprobs.logprob, abs=1e-4)
            assert token.logprobs.top_token_ids == other.logprobs.top_token_ids


@pytest.mark.asyncio(loop_scope="module")
async def test_the_client_gathers_them_with_their_seeds(pair: Stack) -> None:
    answer = await gather(pair.client.generate(TEXT, sampling=SAMPLED, max_tokens=8, num_completions=3))
    for completion in answer.completions:
        alone = await ask(pair.client, TEXT, sampling=replace(SAMPLED, seed=completion.seed), max_tokens=8)
        assert list(completion.token_ids) == alone.token_ids
    assert answer.completions[2].seed == 0


@pytest.mark.asyncio(loop_scope="module")
async def test_a_long_prompt_is_read_once(pair: Stack) -> None:
    prompt = "".join(f"names[{i}] = {i * i}\n" for i in range(40))
    answers = await ask_all(pair.client, prompt, sampling=SAMPLED, max_tokens=8, num_completions=3)
    usages = [answer.finished.usage for answer in answers]
    assert usages[0].num_prompt_tokens > 200
    assert usages[0].num_cached_prompt_tokens == 0
    for usage in usages[1:]:
        assert usage.num_prompt_tokens - 64 < usage.num_cached_prompt_tokens < usage.num_prompt_tokens


async def test_leaving_in_the_middle_frees_every_slot(folders: tuple[Path, Path]) -> None:
    async with AsyncExitStack() as running:
        verify = await running.enter_async_context(worker(load_tiny(folders[0])))
        draft = await running.enter_async_context(worker(load_tiny(folders[1]), draft=True))
        coordinate = await running.enter_async_context(coordinator(verify.address, draft.address))
        events = coordinate.client.generate(PROMPT, max_tokens=250, ignore_eos=True, num_completions=5)
        async with aclosing(events):
            assert isinstance(await anext(events), Started)
            begun: set[int] = set()
            while len(begun) < 5:
                event = await anext(events)
                assert isinstance(event, Tokens)
                begun.add(event.completion)
            assert (await coordinate.client.server_info()).num_running == 5
        await verify.all_slots_free()
        await draft.all_slots_free()
        assert (await ask(coordinate.client, PROMPT, max_tokens=4)).token_ids
        assert (await coordinate.client.server_info()).num_running == 0


class PickyEngine(Engine):
    """An engine that cannot go on behind one token that no prompt has."""

    poison = -1

    def step(self, jobs: Sequence[Job], max_line_tokens: int = STEP_TOKENS_MAX) -> StepOutput:
        if any(self.poison in job.line for job in jobs):
            raise RuntimeError("poisoned")
        return super().step(jobs, max_line_tokens)


async def test_one_completion_that_fails_ends_the_request(folders: tuple[Path, Path]) -> None:
    loaded = load_tiny(folders[0])
    engine = PickyEngine(build("llama", layers=2), max_sessions=8, max_context=200)
    async with worker(replace(loaded, engine=engine)) as verify, coordinator(verify.address, "") as running:
        arguments = {"sampling": SamplingParams(temperature=1.0, seed=3), "max_tokens": 60, "ignore_eos": True}
        answers = await ask_all(running.client, PROMPT, num_completions=3, **arguments)
        others = {*PROMPT, *answers[0].token_ids, *answers[2].token_ids}
        engine.poison = next(token_id for token_id in answers[1].token_ids[:-1] if token_id not in others)
        with pytest.raises(StepFailedError):
            await ask_all(running.client, PROMPT, num_completions=3, **arguments)
        await verify.all_slots_free()
        assert (await running.client.server_info()).num_running == 0
        assert (await ask(running.client, PROMPT, **arguments)).token_ids == answers[0].token_ids


async def test_each_completion_counts_against_the_most_allowed(folders: tuple[Path, Path]) -> None:
    async with worker(load_tiny(folders[0])) as verify, coordinator(verify.address, "", max_requests=3) as running:
        for number in (0, 4, 17, 2**31):
            with pytest.raises(InvalidRequestError, match="between 1 and 3") as refused:
                await ask_all(running.client, PROMPT, num_completions=number)
            assert [violation.field for violation in refused.value.violations] == ["num_completions"]
        events = running.client.generate(PROMPT, max_tokens=250, ignore_eos=True, num_completions=2)
        async with aclosing(events):
            await anext(events)
            with pytest.raises(QueueFullError, match="2 completions are running"):
                await ask_all(running.client, PROMPT, max_tokens=4, num_completions=2)
            assert (await ask(running.client, PROMPT, max_tokens=4)).token_ids


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> list[VerifyOpen]:
    """Every opening that reaches a verifier of this process."""
    seen: list[VerifyOpen] = []

    def check(opening: VerifyOpen, vocab_size: int, max_context: int) -> None:
        seen.append(opening)
        check_verify_open(opening, vocab_size, max_context)

    monkeypatch.setattr("verify_service.servicer.check_verify_open", check)
    return seen


@pytest.mark.asyncio(loop_scope="module")
async def test_the_verifier_hears_of_the_deadline(pair: Stack, openings: list[VerifyOpen]) -> None:
    await ask(pair.client, TEXT, max_tokens=2)
    await ask_all(pair.client, TEXT, max_tokens=2, num_completions=2, timeout_s=500.0)
    without, *bounded = openings
    assert without.time_left_ms is None
    assert len(bounded) == 2
    for opening in bounded:
        assert opening.time_left_ms is not None
        assert 0 < opening.time_left_ms <= 505_000  # gRPC rounds a deadline up to three digits
    assert [opening.session_id[-2:] for opening in bounded] == [".0", ".1"]


class Widths(Session):
    """A session that remembers the most children that a node had."""

    seen: list[int] = []  # noqa: RUF012

    def on_drafted(self, window: DraftWindow) -> DraftWindow | DrafterLost | None:
        outcome = super().on_drafted(window)
        nodes: list[Node] = [self.tree.root, *self.tree.live_nodes()]
        Widths.seen.append(max(len(node.children) for node in nodes))
        return outcome


@pytest.mark.asyncio(loop_scope="module")
async def test_the_tree_is_as_wide_as_the_request_says(pair: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.generation.Session", Widths)
    for tree_width in (1, 3):
        Widths.seen.clear()
        await ask(pair.client, TEXT, sampling=SAMPLED, max_tokens=NUM_TOKENS, tree_width=tree_width)
        assert max(Widths.seen) == tree_width


@pytest.mark.asyncio(loop_scope="module")
async def test_no_round_scores_more_than_the_request_allows(pair: Stack, openings: list[VerifyOpen]) -> None:
    few = await ask(pair.client, TEXT, sampling=SAMPLED, max_tokens=NUM_TOKENS, max_draft_tokens=2)
    assert max(tokens.num_draft_tokens for tokens in few.rounds) in (1, 2)
    none = await ask(pair.client, TEXT, sampling=SAMPLED, max_tokens=NUM_TOKENS, max_draft_tokens=0)
    off = await ask(pair.client, TEXT, sampling=SAMPLED, max_tokens=NUM_TOKENS, speculate=False)
    for answer in (none, off):
        assert answer.finished.mode is GenerationMode.TARGET_ONLY
        assert answer.finished.mode_reason == ""
        assert answer.finished.speculation.num_drafted_nodes == 0
        assert answer.token_ids == few.token_ids
    assert [(opening.max_draft_tokens, opening.expect_drafts) for opening in openings] == [
        (2, True),
        (0, False),
        (0, False),
    ]


async def test_one_span_tells_of_all_completions() -> None:
    exporter = InMemorySpanExporter()
    telemetry = set_up("coordinator", environ={"OUTRIDER_TRACE_DETAIL": "round"}, span_exporter=exporter)
    async with worker(bundled("target")) as verify, coordinator(verify.address, "", telemetry=telemetry) as running:
        answers = await ask_all(running.client, TEXT, sampling=SAMPLED, max_tokens=10, num_completions=3)
    spans = exporter.get_finished_spans()
    (root,) = [span for span in spans if span.name == names.request_span("target")]
    said = dict(root.attributes or {})
    assert said[names.GEN_AI_REQUEST_CHOICE_COUNT] == 3
    assert said[names.GEN_AI_RESPONSE_FINISH_REASONS] == tuple(
        answer.finished.reason.name.lower() for answer in answers
    )
    num_tokens = tuple(len(answer.token_ids) for answer in answers)
    assert said[names.GEN_AI_USAGE_OUTPUT_TOKENS] == sum(num_tokens)
    assert said[names.COMPLETIONS_NUM_OUTPUT_TOKENS] == num_tokens
    assert said[names.COMPLETIONS_NUM_ROUNDS] == num_tokens
    assert said[names.COMPLETIONS_MODES] == ("GENERATION_MODE_TARGET_ONLY",) * 3
    assert said[names.MODE] == "GENERATION_MODE_TARGET_ONLY"
    rounds = [dict(span.attributes or {}) for span in spans if span.name == names.SPAN_ROUND]
    for completion in range(3):
        own = [said[names.ROUND_INDEX] for said in rounds if said[names.ROUND_COMPLETION] == completion]
        assert own == list(range(num_tokens[completion]))
