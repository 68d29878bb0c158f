"""A verify session within a constraint: what is forbidden is not scored, and what is forced needs no draft."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.core.protocol.messages import DraftWindow
from outrider.core.verify.session import VerifySession
from tests.core.rounds import chain_window, choose, verify_session

PHRASE = [1, 2, 3, 1, 2, 4]


class Phrase:
    """The text is a phrase, again and again; after each 2 anything may stand in its place."""

    def __init__(self) -> None:
        self.committed: list[int] = []

    def allows(self, path: Sequence[int]) -> bool:
        text = [*self.committed, *path]
        return all(
            token_id == PHRASE[place % 6] or (place and text[place - 1] == 2) for place, token_id in enumerate(text)
        )

    def forced(self, path: Sequence[int]) -> int | None:
        text = [*self.committed, *path]
        return None if text and text[-1] == 2 else PHRASE[len(text) % 6]

    def commit(self, token_ids: Sequence[int]) -> None:
        self.committed += token_ids


def constrained(**fields: object) -> tuple[VerifySession, Phrase]:
    constraint = Phrase()
    return verify_session(constraint=constraint, **fields), constraint  # type: ignore[arg-type]


def tokens(session: VerifySession) -> list[int]:
    return [node.token_id for node in choose(session)]


def test_what_is_forced_is_guessed_without_drafts_up_to_the_next_choice() -> None:
    session, constraint = constrained()
    assert tokens(session) == [1, 2]
    decision = session.decide(choose(session), [1, 2, 7])
    assert (decision.token_ids, decision.num_accepted, decision.num_prompt_lookup) == ([1, 2, 7], 2, 2)
    assert constraint.committed == [1, 2, 7]
    assert tokens(session) == [1, 2]


def test_what_is_forced_stands_below_drafts_and_in_no_table() -> None:
    session, _ = constrained()
    session.graft(chain_window(1, 2, 3))
    assert tokens(session) == [1, 2, 3, 1, 2]


def test_certain_guesses_stand_whatever_was_learned_of_others() -> None:
    session, _ = constrained(line=[8, 9] * 6, ngrams=True)
    assert tokens(session) == [1, 2]
    for _ in range(5):
        session.decide(choose(session)[:2], [1, 2, 5])
        assert tokens(session)[:2] == [1, 2]


def test_forbidden_drafts_and_what_stands_below_them_are_dropped() -> None:
    session, constraint = constrained(max_draft_tokens=20)
    # Below the root 1 and 5, below 1 the tokens 2 and 6, below 2 anything, below 5 and 6 what is right but for them.
    window = DraftWindow(2, 1, [0, 0, 1, 1, 3, 3, 2, 4], [1, 5, 2, 6, 3, 50, 2, 3], [-0.1] * 8)
    grafted = session.graft(window)
    assert [node.token_id for node in grafted.added] == [1, 2, 3, 50]
    assert session.tree.num_live == 4
    assert sorted(tokens(session)) == sorted([1, 2, 3, 50, 1, 2, 1, 2])
    late = session.graft(DraftWindow(2, 9, [2, 5], [2, 1], [-0.1] * 2))
    assert (len(late.added), late.num_stale) == (1, 1)
    session.decide(choose(session)[:2], [1, 2, 50])
    assert constraint.committed == [1, 2, 50]


def test_looked_up_guesses_stay_within_the_constraint() -> None:
    session, _ = constrained(line=[1, 2, 3, 4] * 5, ngrams=True)
    assert tokens(session)[:4] == [1, 2, 3, 1]
    assert 4 not in tokens(session)


def test_without_draft_tokens_nothing_is_guessed() -> None:
    session, _ = constrained(max_draft_tokens=0)
    assert tokens(session) == []
