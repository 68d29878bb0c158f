"""Where text ends."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders

from coordinator.detokenizer import Detokenizer
from coordinator.text import UNCERTAIN_MAX, TextDecoder
from coordinator.tokenizer import TargetTokenizer
from tests.coordinator.tokenizers import BUNDLED, MADE_UP, made_up

LETTERS = made_up(["a", "b", "\n"], decoders.Fuse(), special=("<s>", "<t>"))


@pytest.fixture(scope="module")
def bundled() -> Tokenizer:
    return Tokenizer.from_file(str(BUNDLED))


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def named(tokenizer: Tokenizer, *tokens: str) -> list[int]:
    return [tokenizer.token_to_id(token) for token in tokens]


async def text_of(tokenizer: Tokenizer, token_ids: Sequence[int], stop: Sequence[str]) -> tuple[str, bool]:
    decoder = await TargetTokenizer(tokenizer).text_decoder(stop, ())
    pieces: list[str] = []
    for token_id in token_ids:
        pieces.append(decoder.push(token_id))
        if decoder.stopped:
            break
    return "".join(pieces) + decoder.finish(), decoder.stopped


async def test_a_stop_string_that_is_a_special_token_ends_the_text(bundled: Tokenizer) -> None:
    end = bundled.token_to_id("<|endoftext|>")
    token_ids = [*ids(bundled, "one two"), end, *ids(bundled, " three")]
    assert await text_of(bundled, token_ids, ["<|endoftext|>"]) == ("one two", True)
    assert await text_of(bundled, token_ids, ["nowhere"]) == ("one two three", False)


async def test_the_text_held_back_comes_before_a_special_token(bundled: Tokenizer) -> None:
    end = bundled.token_to_id("<|endoftext|>")
    token_ids = [*ids(bundled, "one two"), end]
    assert await text_of(bundled, token_ids, ["two three", "<|endoftext|>"]) == ("one two", True)
    half = ids(bundled, "é")[0]
    assert await text_of(bundled, [half, end], ["<|endoftext|>"]) == ("\N{REPLACEMENT CHARACTER}", True)


async def test_its_letters_end_the_text_too(bundled: Tokenizer) -> None:
    letters = [bundled.token_to_id(letter) for letter in "a<|endoftext|>b"]
    assert await text_of(bundled, letters, ["<|endoftext|>"]) == ("a", True)


async def test_a_stop_string_is_found_across_tokens_and_at_the_end_of_a_run_of_bytes() -> None:
    llama = MADE_UP["byte fallback, as Llama 2"]
    token_ids = named(llama, "b", "<0x0A>", "<0x0A>", "▁a")
    assert await text_of(llama, token_ids, ["\n\n"]) == ("b", True)
    assert await text_of(llama, token_ids[:3], ["\n\n"]) == ("b", True)
    assert await text_of(llama, token_ids, ["b\n\n a"]) == ("", True)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["\n<s>"], ("ab", True)),
        (["<s>a"], ("ab\n", True)),
        (["\n<s>a<t>"], ("ab", True)),
        (["<s><t>"], ("ab\nab", False)),
        (["<t>\n", "b<s>"], ("ab\nab", False)),
        (["<s>b", "\na"], ("ab", True)),  # no text shows what is between the letters of the second one
        (["<s>", "b\n"], ("a", True)),
    ],
)
async def test_a_stop_string_may_name_special_tokens_beside_text(stop: list[str], expected: tuple[str, bool]) -> None:
    """As the ends of turns in templates do."""
    assert await text_of(LETTERS, named(LETTERS, "a", "b", "\n", "<s>", "a", "<t>", "b"), stop) == expected


async def test_text_that_is_not_certain_yet_stands_before_a_special_token() -> None:
    llama = MADE_UP["byte fallback, as Llama 2"]
    token_ids = named(llama, "b", "<0x0A>", "<s>", "▁a")
    assert await text_of(llama, token_ids, ["\n<s>"]) == ("b", True)
    assert await text_of(llama, token_ids, ["<s>\n"]) == ("b\n a", False)
    assert await text_of(llama, token_ids, ["<s> a"]) == ("b\n", True)
    assert await text_of(llama, named(llama, "b", "<0xC3>", "<s>", "<0xA9>"), ["<s>é", "é<s>"]) == ("bé", False)


def test_special_tokens_beside_bytes_without_end_cost_what_the_first_ones_did() -> None:
    """What is looked at with each of them is counted, in characters."""
    llama = MADE_UP["byte fallback, as Llama 2"]
    byte, special = named(llama, "<0x41>", "<s>")
    stream = Detokenizer(llama).after(())
    decoder = TextDecoder(stream, ["<s>x"], Detokenizer(llama).special)
    looked_at: list[int] = []
    rest = stream.rest

    def counted() -> str:
        looked_at[-1] += len(text := rest())
        return text

    stream.rest = counted
    for _ in range(4 * UNCERTAIN_MAX):
        looked_at.append(0)
        assert decoder.push(byte) + decoder.push(special) == ""
    assert max(looked_at) <= UNCERTAIN_MAX
    assert decoder.finish() == "A" * len(looked_at)


@given(
    token_ids=st.lists(st.sampled_from(named(LETTERS, "a", "b", "<s>", "<t>")), max_size=9),
    stop=st.lists(st.lists(st.sampled_from(["a", "b", "<s>", "<t>"]), min_size=1, max_size=3).map("".join), max_size=3),
)
def test_text_ends_before_the_first_stop_string_to_be_met(token_ids: list[int], stop: list[str]) -> None:
    """Of those that are met with one token, before the one that begins first."""
    shown = whole = ""
    begins: list[int] = []
    for token_id in token_ids:
        name = LETTERS.id_to_token(token_id)
        whole += name
        shown += "" if name.startswith("<") else name
        begins = [shown.find(each) for each in stop if each in shown]
        begins += [len(re.sub("<.>", "", whole[: whole.find(each)])) for each in stop if each in whole]
        if begins:
            break
    expected = shown[: min(begins)] if begins else shown, bool(begins)
    assert asyncio.run(text_of(LETTERS, token_ids, stop)) == expected
