"""Recent answers: the furthest agreement is found, the oldest token goes first, and no tenant finds another's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.core.propose.recent_answers import (
    MATCH_TOKENS,
    READ_TOKENS_MAX,
    RECENT_TENANTS_MAX,
    RecentAnswers,
    RecentAnswersByTenant,
)

ANSWERS = st.lists(st.lists(st.integers(0, 2), max_size=20), max_size=8)
CAPACITY = 40


def read(answers: RecentAnswers) -> None:
    before = -1
    while len(answers) != before:
        before = len(answers)
        answers.read()


def kept(added: list[list[int]], capacity: int) -> list[int | None]:
    """What a ring of that capacity holds, oldest first; None ends an answer."""
    tokens: list[int | None] = []
    for token_ids in added:
        if len(token_ids) > MATCH_TOKENS:
            tokens += [*token_ids, None]
    return tokens[-capacity:]


@given(added=ANSWERS, last=st.lists(st.integers(0, 2), max_size=12))
def test_the_newest_of_the_places_that_agree_furthest_is_found(added: list[list[int]], last: list[int]) -> None:
    answers = RecentAnswers(CAPACITY)
    for token_ids in added:
        answers.add(token_ids)
        read(answers)
    assert len(answers) <= CAPACITY
    tokens = kept(added, CAPACITY)
    total = sum(len(each) + 1 for each in added if len(each) > MATCH_TOKENS)
    first = total - len(tokens)

    def agreed(index: int) -> int:
        count = 0
        while count < min(len(last), index) and tokens[index - count - 1] == last[-count - 1]:
            count += 1
        return count

    places = [
        (agreed(index), first + index)
        for index, token_id in enumerate(tokens)
        if token_id is not None and agreed(index) >= MATCH_TOKENS
    ]
    # The ring compares the newest places alone, and of a passage whose beginning is forgotten it still knows the place.
    match = answers.find(last)
    if places and match is not None:
        newest = sorted(position for _, position in places)[-8:]
        best = max((num, position) for num, position in places if position in newest)
        assert match.num_agreed >= best[0]
        if match.num_agreed == best[0]:
            assert match.position == best[1]
        assert answers.token(match.position) == tokens[match.position - first]
    else:
        assert match is None or match.position - first < MATCH_TOKENS
        assert not places


def test_what_follows_the_longest_agreement_is_found_and_not_what_is_newer() -> None:
    answers = RecentAnswers()
    answers.add([9, 1, 2, 3, 4, 5])
    answers.add([8, 1, 2, 3, 4, 6])
    read(answers)
    for before, after in ((9, 5), (8, 6), (7, 6)):
        match = answers.find([before, 1, 2, 3, 4])
        assert match is not None
        assert answers.token(match.position) == after
    assert answers.find([2, 3, 4]) is None


def test_no_agreement_runs_from_one_answer_into_the_next() -> None:
    answers = RecentAnswers()
    answers.add([1, 2, 3, 4, 5])
    answers.add([6, 7, 8, 9, 10])
    read(answers)
    match = answers.find([1, 2, 3, 4])
    assert match is not None
    assert (answers.token(match.position), answers.token(match.position + 1)) == (5, None)
    assert answers.find([2, 3, 4, 5]) is None
    assert answers.find([5, 6, 7, 8]) is None


def test_what_begins_an_answer_is_not_taken_for_a_context_of_zeros() -> None:
    answers = RecentAnswers()
    answers.add([5, 6, 7, 8, 9])
    read(answers)
    assert answers.find([0, 0, 0, 5]) is None
    assert answers.find([0, 0, 0, 0]) is None


def test_a_long_answer_is_read_over_several_rounds_and_more_than_is_kept_is_not_read() -> None:
    answers = RecentAnswers(4 * READ_TOKENS_MAX)
    answers.add(range(1000, 1000 + 10 * READ_TOKENS_MAX))
    answers.read()
    assert len(answers) == READ_TOKENS_MAX
    for _ in range(2):
        answers.add(range(3 * READ_TOKENS_MAX))
    read(answers)
    assert len(answers) == 4 * READ_TOKENS_MAX
    assert answers.find([1100, 1101, 1102, 1103]) is None
    assert answers.find([1, 2, 3, 4]) is not None


def test_the_oldest_tokens_go_first() -> None:
    answers = RecentAnswers(12)
    for first in (10, 20, 30):
        answers.add(range(first, first + 5))
        read(answers)
    assert answers.find([10, 11, 12, 13]) is None
    assert answers.find([20, 21, 22, 23]) is not None
    assert answers.find([30, 31, 32, 33]) is not None


@pytest.mark.parametrize("has_common", [False, True])
def test_a_tenant_finds_its_own_answers_alone(has_common: bool) -> None:
    tenants = RecentAnswersByTenant(has_common=has_common)
    common = tenants.of("")
    assert (common is not None) == has_common
    ann, ben = tenants.of("ann"), tenants.of("ben")
    assert ann is not None
    assert ben is not None
    assert tenants.of("ann") is ann
    ann.add([1, 2, 3, 4, 5])
    for each in filter(None, (ann, ben, common)):
        read(each)
        assert (each.find([1, 2, 3, 4]) is not None) == (each is ann)


def test_of_too_many_tenants_the_one_that_was_away_longest_is_forgotten() -> None:
    tenants = RecentAnswersByTenant(has_common=False)
    first, second = tenants.of("0"), tenants.of("1")
    for number in range(2, RECENT_TENANTS_MAX):
        tenants.of(str(number))
    assert tenants.of("0") is first
    tenants.of("one more")
    assert tenants.of("0") is first
    assert tenants.of("1") is not second
