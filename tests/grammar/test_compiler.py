"""The compiler: what it keeps, shares and refuses, and what is too much for a process."""

from __future__ import annotations

import asyncio

import pytest
from llguidance import LLParserLimits

from outrider.core.protocol.errors import InvalidRequestError, QueueFullError
from outrider.core.protocol.grammar import Grammar, GrammarKind
from outrider.grammar import compiled, compiler
from outrider.grammar.compiler import GrammarCompiler

from .texts import EOS, PERSON, TOKENIZER, VOCAB_SIZE, allowed, json_schema, vocabulary

TOO_DEEP = Grammar(GrammarKind.LARK, "start: R0\n" + "".join(f"R{i}: R{i + 1}\n" for i in range(5000)) + 'R5000: "a"')


def fresh(content: bytes | None = None) -> GrammarCompiler:
    return GrammarCompiler(content or TOKENIZER.read_bytes(), VOCAB_SIZE, [EOS, VOCAB_SIZE + 7])


def regex(source: str) -> Grammar:
    return Grammar(GrammarKind.REGEX, source)


@pytest.mark.asyncio
async def test_a_state_has_followed_the_output_so_far() -> None:
    compiling = fresh()
    assert await compiling.state(None, [1, 2]) is None
    begun = await compiling.state(regex("(ab|ac)d"), vocabulary().tokenizer.tokenize_str("a"))
    assert begun is not None
    written = {vocabulary().token_bytes[token_id] for token_id in allowed(begun.mask(()))}
    assert {b"b", b"c"} <= written <= {b"b", b"c", b"bd", b"cd"}
    with pytest.raises(InvalidRequestError, match="output so far is not of this grammar"):
        await compiling.state(regex("(ab|ac)d"), vocabulary().tokenizer.tokenize_str("x"))


@pytest.mark.asyncio
async def test_what_kills_the_trial_process_is_refused_and_the_next_grammar_is_not() -> None:
    compiling = fresh()
    for _ in range(2):
        with pytest.raises(InvalidRequestError, match="nested too deeply; ask for less") as caught:
            await compiling.state(TOO_DEEP, [])
        assert caught.value.violations[0].field == "sampling.grammar.lark"
        assert await compiling.state(json_schema(PERSON), []) is not None


@pytest.mark.asyncio
async def test_what_takes_a_processor_too_long_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="takes too long to compile"):
        await fresh().state(regex("(a*)*" * 20_000), [])


@pytest.mark.asyncio
async def test_what_shows_to_be_too_complex_on_the_way_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="too complex"):
        await fresh().state(regex("((a{1,1000}){1,1000}){1,1000}"), [])


@pytest.mark.asyncio
async def test_a_long_reason_keeps_both_its_ends() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await fresh().state(regex("(" * 5000 + "a"), [])
    text = caught.value.violations[0].description
    assert len(text) < 600
    assert text.startswith("cannot be compiled")
    assert " ... " in text


@pytest.mark.asyncio
async def test_a_tokenizer_that_has_no_grammars_refuses_them_in_words() -> None:
    with pytest.raises(InvalidRequestError, match="leave the grammar out, or ask for another model"):
        await fresh(b'{"version": "1.0", "model": {"type": "Unigram", "vocab": [], "unk_id": null}}').state(
            regex("a"), []
        )
    with pytest.raises(InvalidRequestError, match="no end-of-text token"):
        await GrammarCompiler(TOKENIZER.read_bytes(), VOCAB_SIZE, []).state(regex("a"), [])


@pytest.mark.asyncio
async def test_the_same_grammar_is_compiled_once_and_the_one_used_longest_ago_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Grammar] = []
    make = compiler.CompiledGrammar

    def counted(grammar: Grammar, its_vocabulary: object) -> object:
        made.append(grammar)
        return make(grammar, its_vocabulary)  # type: ignore[arg-type]

    monkeypatch.setattr(compiler, "CompiledGrammar", counted)
    monkeypatch.setattr(compiler, "COMPILED_MAX", 2)
    compiling = fresh()
    await asyncio.gather(*(compiling.state(regex("a"), []) for _ in range(3)))
    assert made == [regex("a")]
    for source in ("b", "a", "c", "a", "b"):
        await compiling.state(regex(source), [])
    assert made == [regex(source) for source in "abcb"]


@pytest.mark.asyncio
async def test_who_leaves_does_not_take_the_grammar_from_who_waits_and_too_many_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiler, "COMPILING_MAX", 1)
    compiling = fresh()
    leaving, staying = (asyncio.create_task(compiling.state(regex("a"), [])) for _ in range(2))
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError, match="wait to be compiled"):
        await compiling.state(regex("b"), [])
    leaving.cancel()
    assert await staying is not None
    assert await compiling.state(regex("b"), []) is not None


@pytest.mark.asyncio
async def test_what_has_met_a_limit_is_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    compiling, text = fresh(), vocabulary().tokenizer.tokenize_str('{"name":"abcdefgh","kind":"dog","ages":[1]}')
    with monkeypatch.context() as narrow:
        narrow.setattr(compiled, "_LIMITS", LLParserLimits(max_lexer_states=80, verbose_errors=False))
        limited = await compiling.state(json_schema(PERSON), [])
    assert limited is not None
    with pytest.raises(RuntimeError, match="cannot be followed"):
        _ = [limited.mask(text[:place]) for place in range(len(text))]
    assert limited.is_lost
    again = await compiling.state(json_schema(PERSON), text)
    assert again is not None
    assert allowed(again.mask(())) == {EOS}
