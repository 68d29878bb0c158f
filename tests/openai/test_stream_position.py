"""How far a stream has come: rounds are cut where the client's part ends, and other tokens are found out."""

from __future__ import annotations

import pytest

from coordinator.openai.api_error import ApiError
from coordinator.openai.choices_position import ChoicesPosition
from coordinator.openai.completion import CompletionBody
from coordinator.openai.event_id import EventId, ToldChoice, ToldPrompt
from coordinator.openai.response_position import ResponsePosition
from coordinator.openai.responses_body import ResponsesBody
from outrider.core.coordinate.events import Started, Token, TokenOrigin, Tokens
from outrider.core.protocol.options import GenerationOptions
from tests.client.scripted import TARGET

BODY = CompletionBody(prompt="x", stream=True)
STARTED = Started("ab" * 16, (1, 2), 7, "")


def round_of(position: int, *token_ids: int) -> Tokens:
    tokens = tuple(Token(token_id, f"<{token_id}>", TokenOrigin.ACCEPTED, None) for token_id in token_ids)
    return Tokens(position, "".join(token.text for token in tokens), tokens, False, 8)


def position(last: bytes | None = None, num_prompts: int = 1) -> ChoicesPosition:
    found = ChoicesPosition(None if last is None else last.decode(), num_prompts, 1, BODY, TARGET)
    found.on_started(0, STARTED, 1000, STARTED.request_id)
    return found


def after(*token_ids: int, finished: bool = False) -> bytes:
    """The id of an event behind these tokens."""
    before = position()
    before.on_tokens(0, round_of(2, *token_ids))
    if finished:
        before.on_finished(0)
    return before.event_id


def test_an_id_says_what_it_was_made_of() -> None:
    choices = [ToldChoice(5, 2**32 - 1), ToldChoice(2**31 - 1, 0, finished=True, num_reported=2**31 - 1)]
    made = EventId(2**32 - 1, "0f" * 16, [ToldPrompt(2**64 - 1, b"12345678")], choices, is_last=True)
    assert EventId.decode(made.encode().decode(), 1, 2) == made
    assert len(made.encode()) < 100


@pytest.mark.parametrize(
    ("rounds", "told"),
    [
        ([round_of(2, 10, 11, 12, 13)], [(True, (10, 11, 12)), (False, (13,))]),
        ([round_of(2, 10, 11), round_of(4, 12, 13)], [(True, (10, 11)), (True, (12,)), (False, (13,))]),
        ([round_of(2, 10, 11, 12), round_of(5, 13)], [(True, (10, 11, 12)), (False, (13,))]),
    ],
)
def test_a_round_is_cut_where_the_clients_part_ends(rounds: list[Tokens], told: list[tuple[bool, tuple[int]]]) -> None:
    resumed = position(after(10, 11, 12))
    parts = [part for each in rounds for part in resumed.on_tokens(0, each)]
    assert [(is_had, tuple(token.token_id for token in part.tokens)) for part, is_had in parts] == told
    assert [part.position for part, _ in parts] == [
        2 + sum(len(earlier) for _, earlier in told[:index]) for index in range(len(told))
    ]
    assert "".join(part.text for part, _ in parts) == "<10><11><12><13>"
    assert resumed.event_id == after(10, 11, 12, 13), "as if it had never been cut"


def test_the_seed_is_the_one_that_was_in_force() -> None:
    options = position(after(10)).options(0, GenerationOptions(draw_seed=True))
    assert (options.draw_seed, options.sampling.seed) == (False, 7)
    assert position().options(0, GenerationOptions(draw_seed=True)).draw_seed


def test_an_end_is_told_once() -> None:
    ended = position(after(10, finished=True))
    ended.on_tokens(0, round_of(2, 10))
    assert ended.on_finished(0)
    cut = position(after(10))
    cut.on_tokens(0, round_of(2, 10))
    assert not cut.on_finished(0)


def test_other_tokens_are_found_out() -> None:
    with pytest.raises(ApiError, match="may choose otherwise"):
        position(after(10, 11)).on_tokens(0, round_of(2, 10, 12))
    with pytest.raises(ApiError, match="may choose otherwise"):
        position(after(10, 11)).on_tokens(0, round_of(2, 10, 12, 13))
    shorter = position(after(10, 11))
    shorter.on_tokens(0, round_of(2, 10))
    with pytest.raises(ApiError, match="may choose otherwise"):
        shorter.on_finished(0)
    longer = position(after(10, finished=True))
    longer.on_tokens(0, round_of(2, 10, 11))
    with pytest.raises(ApiError, match="may choose otherwise"):
        longer.on_finished(0)


def test_a_prompt_that_reads_otherwise_is_found_out() -> None:
    resumed = ChoicesPosition(after(10).decode(), 1, 1, BODY, TARGET)
    with pytest.raises(ApiError, match="reads otherwise by now"):
        resumed.on_started(0, Started("ab" * 16, (1, 3), 7, ""), 1000, "ab" * 16)


def test_a_count_of_choices_that_is_not_checked_yet_costs_nothing() -> None:
    ChoicesPosition(None, 64, 2**62, BODY, TARGET)
    with pytest.raises(ApiError, match="no id of this"):
        ChoicesPosition(after(10).decode(), 64, 2**62, BODY, TARGET)


def test_a_prompt_of_which_nothing_has_come_may_begin_anew() -> None:
    """The prompts of a list do not start at the same time, and each has a seed and a fingerprint of its own."""
    drawn, options = Started("cd" * 16, (3, 4), 8, ""), GenerationOptions(draw_seed=True)
    before = position(num_prompts=2)
    before.on_tokens(0, round_of(2, 10))
    resumed = position(before.event_id, num_prompts=2)
    assert [resumed.options(number, options).draw_seed for number in range(2)] == [False, True]
    resumed.on_started(1, drawn, 1000, STARTED.request_id)
    assert [is_had for number in range(2) for _, is_had in resumed.on_tokens(number, round_of(2, 10))] == [True, False]
    again = position(resumed.event_id, num_prompts=2)
    assert again.options(1, options).sampling.seed == 8
    with pytest.raises(ApiError, match="another request"):
        again.on_started(1, STARTED, 1000, STARTED.request_id)


def test_a_round_is_reported_once_and_one_that_was_not_is_reported() -> None:
    before = position()
    before.on_tokens(0, round_of(2, 10, 11))
    assert not before.on_reported(0)
    before.on_tokens(0, round_of(4, 12))
    not_reported = before.event_id
    assert not before.on_reported(0)
    for event_id, expected in ((not_reported, [True, False, False]), (before.event_id, [True, True, False])):
        resumed, found = position(event_id), list[bool]()
        for each in (round_of(2, 10), round_of(3, 11, 12), round_of(5, 13)):
            resumed.on_tokens(0, each)
            found.append(resumed.on_reported(0))
        assert found == expected


def response(last: bytes | None = None) -> ResponsePosition:
    body = ResponsesBody(input="x", stream=True)
    found = ResponsePosition(None if last is None else last.decode(), 1, 1, body, TARGET)
    found.on_started(0, STARTED, 1000, STARTED.request_id)
    return found


def test_a_response_is_told_in_events() -> None:
    first, second, other = (round_of(2, token_id).tokens[0] for token_id in (10, 11, 12))
    before = response()
    for _ in range(2):  # events before any token
        assert not before.on_event()
    before.on_token(first)
    assert not before.on_event()
    before.on_token(second)
    assert not before.on_event()
    resumed = response(before.event_id)
    found = [resumed.on_event(), resumed.on_event()]
    for token in (first, second):
        resumed.on_token(token)
        found.append(resumed.on_event())
    assert found == [True] * 4
    assert resumed.event_id == before.event_id
    assert not resumed.on_event()
    differing = response(before.event_id)
    for token in (first, other):
        differing.on_token(token)
        differing.on_event()
    differing.on_event()
    with pytest.raises(ApiError, match="may choose otherwise"):
        differing.on_event()
    with pytest.raises(ApiError, match="may choose otherwise"):
        response(before.event_id).on_finished()
