"""Structured output: the text is of its grammar, and speculation changes no token of it."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import jsonschema
import pytest
import pytest_asyncio

from outrider.client import FinishReason, GenerationClient, Grammar, GrammarKind, SamplingParams, Tokens
from outrider.core.protocol.errors import InvalidRequestError
from tests.e2e.answers import Answer, ask, ask_all
from tests.e2e.schemas import SCHEMAS
from tests.e2e.stack import MODELS, RunningWorker, Stack, bundled, coordinator, load_tiny, worker

PROMPT = "import json\n\nrecord = "
MAX_TOKENS = 160
TEMPERATURES = (0.0, 0.8, 1.3)
SEEDS = range(5)
AT_ONCE = 24


class Triple(NamedTuple):
    """One case of the table."""

    schema: str
    seed: int
    temperature: float

    @property
    def sampling(self) -> SamplingParams:
        grammar = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMAS[self.schema]))
        return SamplingParams(temperature=self.temperature, seed=self.seed, grammar=grammar)


PRINTED = "printed nicely"
"""The schema of the longest texts."""
TRIPLES = [
    Triple(*each) for each in itertools.product([each for each in SCHEMAS if each != PRINTED], SEEDS, TEMPERATURES)
]
assert len(TRIPLES) >= 200


class Services(NamedTuple):
    """One target, and coordinators with a drafter and without."""

    drafting: Stack
    alone: Stack
    verify: RunningWorker


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def services() -> AsyncIterator[Services]:
    async with AsyncExitStack() as running:
        verify = await running.enter_async_context(worker(bundled("target")))
        draft = await running.enter_async_context(worker(bundled("draft"), draft=True))
        drafting = await running.enter_async_context(coordinator(verify.address, draft.address))
        alone = await running.enter_async_context(coordinator(verify.address, ""))
        yield Services(drafting, alone, verify)


async def asked(client: GenerationClient, triples: list[Triple], **options: Any) -> list[Answer]:
    """The answers to all of them, some at a time. Widths go round."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(index: int, triple: Triple) -> Answer:
        async with turns:
            return await ask(
                client,
                PROMPT,
                sampling=triple.sampling,
                max_tokens=MAX_TOKENS,
                **{"tree_width": 1 + index % 8, **options},
            )

    return await asyncio.gather(*(one(index, triple) for index, triple in enumerate(triples)))


@pytest.mark.asyncio(loop_scope="module")
async def test_texts_are_of_their_schemas_and_those_of_the_target_alone(services: Services) -> None:
    """Without temperature the target alone is asked once for all seeds."""
    distinct = [triple for triple in TRIPLES if triple.temperature or triple.seed == SEEDS[0]]
    alone = dict(zip(distinct, await asked(services.alone.client, distinct, speculate=False), strict=True))
    for triple, answer in alone.items():
        assert answer.finished.reason is FinishReason.EOS, triple
        jsonschema.validate(json.loads(answer.text), SCHEMAS[triple.schema])
    drafted = await asked(services.drafting.client, TRIPLES)
    looked_up = await asked(services.alone.client, TRIPLES[::8])
    same = [triple if triple.temperature else triple._replace(seed=SEEDS[0]) for triple in TRIPLES]
    expected = [alone[triple].token_ids for triple in same]
    assert [answer.token_ids for answer in drafted] == expected
    assert [answer.token_ids for answer in looked_up] == expected[::8]
    for answers in (drafted, looked_up):
        assert sum(answer.finished.speculation.num_accepted_tokens for answer in answers) > 0


async def started(client: GenerationClient, triple: Triple, has_begun: asyncio.Event) -> list[int]:
    """The tokens of one answer; sets the event when the first have come."""
    token_ids: list[int] = []
    async for event in client.generate(PROMPT, sampling=triple.sampling, max_tokens=MAX_TOKENS, tree_width=3):
        if isinstance(event, Tokens):
            has_begun.set()
            token_ids += [token.token_id for token in event.tokens]
    return token_ids


LONG = [Triple(PRINTED, seed, temperature) for seed in SEEDS[:3] for temperature in TEMPERATURES[1:]]


@pytest.mark.asyncio(loop_scope="module")
async def test_losing_the_drafter_midway_changes_no_token(services: Services) -> None:
    expected = [answer.token_ids for answer in await asked(services.alone.client, LONG, speculate=False)]
    has_begun = asyncio.Event()
    async with (
        worker(load_tiny(MODELS / "draft"), draft=True) as draft,
        coordinator(services.verify.address, draft.address) as running,
    ):
        asking = asyncio.gather(*(started(running.client, triple, has_begun) for triple in LONG))
        await has_begun.wait()
        await draft.server.stop(None)
        assert await asking == expected


@pytest.mark.asyncio(loop_scope="module")
async def test_losing_the_verifier_midway_changes_no_token(services: Services) -> None:
    has_begun = asyncio.Event()
    async with (
        worker(load_tiny(MODELS / "draft")) as first,
        worker(load_tiny(MODELS / "draft")) as second,
        coordinator(f"{first.address},{second.address}", "") as running,
    ):
        expected = [answer.token_ids for answer in await asked(running.client, LONG, speculate=False)]
        asking = asyncio.gather(*(started(running.client, triple, has_begun) for triple in LONG))
        await has_begun.wait()
        await first.server.stop(None)
        assert await asking == expected
        assert running.serving() == {second.address}


@pytest.mark.asyncio(loop_scope="module")
async def test_completions_are_what_each_request_alone_gives(services: Services) -> None:
    triple = Triple(PRINTED, 3, 1.0)
    together = await ask_all(
        services.drafting.client, PROMPT, sampling=triple.sampling, max_tokens=MAX_TOKENS, num_completions=4
    )
    alone = await asked(
        services.alone.client, [triple._replace(seed=3 + number) for number in range(4)], speculate=False
    )
    assert [each.token_ids for each in together] == [each.token_ids for each in alone]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_grammar_after_a_tag_leaves_what_comes_before_as_it_is(services: Services) -> None:
    grammar = Grammar(GrammarKind.REGEX, " ?[0-9]{2,4};", "=")
    for seed in range(4):
        sampling = SamplingParams(temperature=0.8, seed=seed, grammar=grammar)
        free = await ask(services.alone.client, "x", sampling=SamplingParams(temperature=0.8, seed=seed), max_tokens=90)
        for width in (0, 1, 4):
            answer = await ask(
                services.drafting.client, "x", sampling=sampling, max_tokens=90, speculate=width > 0, tree_width=width
            )
            before, tag, after = answer.text.partition("=")
            assert free.text.startswith(before) or answer.finished.reason is FinishReason.LENGTH
            if answer.finished.reason is FinishReason.EOS:
                assert tag
                assert after.strip().removesuffix(";").isdigit()


@pytest.mark.asyncio(loop_scope="module")
async def test_end_of_text_that_is_ignored_comes_where_nothing_else_may(services: Services) -> None:
    sampling = SamplingParams(grammar=Grammar(GrammarKind.REGEX, "[ab]{0,12}"))
    answer = await ask(services.drafting.client, PROMPT, sampling=sampling, max_tokens=50, ignore_eos=True)
    assert answer.finished.reason is FinishReason.EOS
    assert len(answer.text) == 12


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("kind", "source", "field", "said"),
    [
        (GrammarKind.JSON_SCHEMA, '{"type": "strin"}', "json_schema", "Invalid type: strin"),
        (GrammarKind.JSON_SCHEMA, '{"type":', "json_schema", "EOF"),
        (GrammarKind.JSON_SCHEMA, '{"oneOf": [{"minimum": 1}, {"minimum": 2}]}', "json_schema", "oneOf"),
        (GrammarKind.REGEX, "(a", "regex", "unclosed group"),
        (GrammarKind.LARK, "start: missing", "lark", "missing"),
        (GrammarKind.LARK, "x: y", "lark", "start"),
        (
            GrammarKind.LARK,
            "start: R0\n" + "".join(f"R{i}: R{i + 1}\n" for i in range(5000)) + 'R5000: "a"',
            "lark",
            "nested too deeply",
        ),
    ],
)
async def test_a_grammar_that_cannot_be_used_is_refused_in_words_before_anything_is_read(
    services: Services, kind: GrammarKind, source: str, field: str, said: str
) -> None:
    with pytest.raises(InvalidRequestError, match=said) as caught:
        await ask(services.drafting.client, PROMPT, sampling=SamplingParams(grammar=Grammar(kind, source)))
    assert [each.field for each in caught.value.violations] == [f"sampling.grammar.{field}"]
    assert services.verify.loaded.engine.num_free_slots == services.verify.loaded.engine.max_sessions
