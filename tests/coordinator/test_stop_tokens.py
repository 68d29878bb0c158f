"""Where text ends."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from coordinator.tokenizer import TargetTokenizer
from tests.coordinator.tokenizers import BUNDLED, MADE_UP


@pytest.fixture(scope="module")
def bundled() -> Tokenizer:
    return Tokenizer.from_file(str(BUNDLED))


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


async def text_of(tokenizer: Tokenizer, token_ids: list[int], stop: list[str]) -> tuple[str, bool]:
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
    token_ids = [llama.token_to_id(token) for token in ("b", "<0x0A>", "<0x0A>", "▁a")]
    assert await text_of(llama, token_ids, ["\n\n"]) == ("b", True)
    assert await text_of(llama, token_ids[:3], ["\n\n"]) == ("b", True)
    assert await text_of(llama, token_ids, ["b\n\n a"]) == ("", True)
