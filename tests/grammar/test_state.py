"""Masks, guesses and forced tokens on any path equal those of who has read nothing but that path."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from outrider.core.protocol.grammar import Grammar, GrammarKind
from outrider.grammar.state import GrammarState

from .texts import EOS, PERSON, TREE, VOCAB_SIZE, allowed, compiled, json_schema, vocabulary

GRAMMARS = [
    json_schema(PERSON),
    json_schema(PERSON, "=> "),
    Grammar(GrammarKind.REGEX, r"(ja|nein|jawohl)( [0-9]{2,5})?"),
    Grammar(GrammarKind.LARK, TREE),
    json_schema({"$ref": "#/$defs/l", "$defs": {"l": {"anyOf": [{"type": "null"}, {"items": {"$ref": "#/$defs/l"}}]}}}),
]


def fresh(grammar: Grammar, path: Sequence[int]) -> GrammarState:
    """A state that has read nothing but the path, and was never asked anything."""
    state = GrammarState(compiled(grammar))
    state.commit(path)
    return state


@pytest.mark.parametrize("grammar", GRAMMARS, ids=range(len(GRAMMARS)))
def test_a_walk_over_a_tree_is_as_each_path_by_itself(grammar: Grammar) -> None:
    chance = random.Random(1)
    state, line = GrammarState(compiled(grammar)), list[int]()
    paths: list[tuple[int, ...]] = [(), tuple(vocabulary().tokenizer.tokenize_str(grammar.begins_after))]
    for _ in range(120):
        path = chance.choice(paths)
        alone = fresh(grammar, [*line, *path])
        mask = state.mask(path)
        assert mask == alone.mask(())
        forced = state.forced(path)
        assert forced == alone.forced(())
        possible = allowed(mask)
        if forced is not None:
            assert possible == {forced}
        for token_id in chance.sample(range(VOCAB_SIZE), 20):
            assert state.allows((*path, token_id)) is (token_id in possible)
        if not possible:
            assert path[-1:] == (EOS,)
            continue
        short = sorted(possible - {EOS}, key=lambda each: len(vocabulary().token_bytes[each]))[:40] or [EOS]
        paths.append((*path, chance.choice(short)))
        committed = paths[-1][:2]
        if len(paths) > 12 and EOS not in committed:
            left = state.fork()
            state.commit(committed)
            assert left.mask(()) == fresh(grammar, line).mask(())
            line += committed
            paths = [path[len(committed) :] for path in paths if path[:2] == committed]
    assert not state.is_lost


def test_a_text_ends_where_it_is_complete_and_must_end_where_nothing_else_follows() -> None:
    state = GrammarState(compiled(Grammar(GrammarKind.REGEX, "ab?")))
    a, b = (vocabulary().tokenizer.tokenize_str(each)[0] for each in "ab")
    assert not state.allows([EOS])
    assert {EOS, b} <= allowed(state.mask([a]))
    assert state.allows([a, EOS])
    assert not state.allows([a, EOS, a])
    assert allowed(state.mask([a, EOS])) == set()
    assert allowed(state.mask([a, b])) == {EOS}
    last = GrammarState(compiled(Grammar(GrammarKind.REGEX, "ab?")), eos_last=True)
    assert allowed(last.mask([a])) == {b}
    assert not last.allows([a, EOS])
    assert allowed(last.mask([a, b])) == {EOS}
    assert last.allows([a, b, EOS])


def test_ids_that_the_tokenizer_does_not_know_are_never_allowed_inside() -> None:
    state = GrammarState(compiled(Grammar(GrammarKind.REGEX, "(.|\n)*")))
    assert max(allowed(state.mask(()))) < 4096


def test_a_line_that_leaves_its_grammar_is_lost() -> None:
    state = GrammarState(compiled(Grammar(GrammarKind.REGEX, "[0-9]+")))
    state.commit(vocabulary().tokenizer.tokenize_str("12x"))
    assert state.is_lost
    assert state.allows([5])
    assert state.forced(()) is None
    with pytest.raises(RuntimeError, match="has left its grammar"):
        state.mask(())


def test_what_is_forced_runs_to_where_there_is_a_choice() -> None:
    state = GrammarState(compiled(Grammar(GrammarKind.REGEX, "(der die|das Haus)")))
    path = vocabulary().tokenizer.tokenize_str("das")
    written: list[int] = []
    while (token_id := state.forced((*path, *written))) is not None:
        written.append(token_id)
    assert vocabulary().tokenizer.decode_str(written) == " Haus"
    assert allowed(state.mask((*path, *written))) == {EOS}
