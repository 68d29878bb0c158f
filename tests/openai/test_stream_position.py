"""How far a stream has come: rounds are cut where the client's part ends, and other tokens are found out."""

from __future__ import annotations

import pytest

from coordinator.openai.api_error import ApiError
from coordinator.openai.completion import CompletionBody
from coordinator.openai.event_id import EventId, ToldChoice
from coordinator.openai.stream_position import StreamPosition
from outrider.core.coordinate.events import Started, Token, TokenOrigin, Tokens
from outrider.core.protocol.options import GenerationOptions
from tests.client.scripted import TARGET

BODY = CompletionBody(prompt="x", stream=True)
STARTED = Started("ab" * 16, (1, 2), 7, "")


def round_of(position: int, *token_ids: int) -> Tokens:
    tokens = tuple(Token(token_id, f"<{token_id}>", TokenOrigin.ACCEPTED, None) for token_id in token_ids)
    return Tokens(position, "".join(token.text for token in tokens), tokens, False, 8)


def position(last: bytes | None = None, num_choices: int = 1) -> StreamPosition:
    found = StreamPosition(None if last is None else last.decode(), num_choices, BODY, TARGET)
    found.on_started(STARTED, 1000, STARTED.request_id)
    return found


def after(*token_ids: int, finished: bool = False) -> bytes:
    """The id of an event behind these tokens."""
    before = position()
    before.on_tokens(0, round_of(2, *token_ids))
    if finished:
        before.on_finished(0)
    return before.event_id


def test_an_id_says_what_it_was_made_of() -> None:
    choices = [ToldChoice(5, 2**32 - 1), ToldChoice(2**31 - 1, 0, finished=True)]
    made = EventId(2**32 - 1, 2**64 - 1, "0f" * 16, b"12345678", choices, is_last=True)
    assert EventId.decode(made.encode().decode(), 2) == made
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
    options = position(after(10)).options(GenerationOptions(draw_seed=True))
    assert (options.draw_seed, options.sampling.seed) == (False, 7)
    assert position().options(GenerationOptions(draw_seed=True)).draw_seed


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
    resumed = StreamPosition(after(10).decode(), 1, BODY, TARGET)
    with pytest.raises(ApiError, match="reads otherwise by now"):
        resumed.on_started(Started("ab" * 16, (1, 3), 7, ""), 1000, "ab" * 16)


def test_a_count_of_choices_that_is_not_checked_yet_costs_nothing() -> None:
    StreamPosition(None, 2**62, BODY, TARGET)
    with pytest.raises(ApiError, match="no id of this"):
        StreamPosition(after(10).decode(), 2**62, BODY, TARGET)
