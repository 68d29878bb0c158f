"""A grammar begins after a tag, wherever tokens cut it, and whatever stands before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from outrider.core.protocol.grammar import Grammar, GrammarKind
from outrider.grammar.state import GrammarState
from outrider.grammar.tag import Tag

from .texts import EOS, VOCAB_SIZE, allowed, compiled, holds, vocabulary

REGEX = r"[0-9]{1,3};"


def cuts(text: bytes, longest: int) -> Iterator[list[bytes]]:
    """All ways to cut a text into parts of at most so many bytes."""
    if not text:
        yield []
    for end in range(1, min(longest, len(text)) + 1):
        for rest in cuts(text[end:], longest):
            yield [text[:end], *rest]


@pytest.mark.parametrize("tag", ["</think>", "aab", "abab", "=", "éß"])
@pytest.mark.parametrize("before", ["", "x", "a", "aa", "aba", "</thin", "é"])
def test_it_is_found_over_all_cuts(tag: str, before: str) -> None:
    content = (before + tag + "12;").encode()
    end = content.index(tag.encode()) + len(tag.encode())
    for parts in cuts(content[: end + 2], 3 if len(content) > 10 else len(content)):
        search, state, found, num_read = Tag(tag.encode()), 0, None, 0
        for part in parts:
            state, inside = search.follow(state, part)
            if inside is not None:
                found = num_read + inside
                break
            num_read += len(part)
        assert found == end, parts


@pytest.mark.parametrize("tag", ["</think>", "aab", "=", " ="])
@pytest.mark.parametrize("before", ["", "ä</", "aa"])
def test_the_grammar_holds_from_there_on_over_all_cuts_into_tokens(tag: str, before: str) -> None:
    grammar = compiled(Grammar(GrammarKind.REGEX, REGEX, tag))
    ids_of = {content: token_id for token_id, content in enumerate(vocabulary().token_bytes) if token_id != EOS}
    num_cuts = 0
    for parts in cuts((before + tag + "12;").encode(), 6):
        if not all(part in ids_of for part in parts):
            continue
        num_cuts += 1
        state, path = GrammarState(grammar), list[int]()
        for part in parts:
            mask = state.mask(path)
            assert holds(mask, ids_of[part]), parts
            assert not holds(mask, EOS)
            assert not state.allows([*path, EOS])
            path.append(ids_of[part])
            assert state.allows(path)
        assert allowed(state.mask(path)) == {EOS}
    assert num_cuts >= 2


def test_tokens_that_go_on_after_the_tag_as_the_grammar_does_not_are_forbidden() -> None:
    grammar = compiled(Grammar(GrammarKind.REGEX, "[0-9]+", "="))
    contents = vocabulary().token_bytes
    mask = allowed(GrammarState(grammar).mask(()))
    for token_id in range(1, VOCAB_SIZE):
        _, tag, rest = contents[token_id].partition(b"=")
        assert (token_id in mask) is (not tag or not rest or rest.isdigit()), contents[token_id]
    assert EOS not in mask
    assert any(b"=" in contents[token_id][:-1] for token_id in range(VOCAB_SIZE))
