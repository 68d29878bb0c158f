"""Token ids become text that is certain, and text ends at a stop string."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from coordinator.detokenizer import Detokenizer, TextStream
from coordinator.text import TextDecoder

from .script import letters


def of_bytes() -> Tokenizer:
    """A tokenizer whose tokens are single bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer


def decoder_of(tokenizer: Tokenizer, *stop: str) -> TextDecoder:
    return TextDecoder(TextStream(Detokenizer(tokenizer)), stop)


def pieces(decoder: TextDecoder, token_ids: list[int]) -> list[str]:
    """The text that becomes certain with each token, and what comes at the end."""
    return [*map(decoder.push, token_ids), decoder.finish()]


def test_each_token_gives_its_text_at_once() -> None:
    assert pieces(decoder_of(letters()), [1, 2, 3]) == ["b", "c", "d", ""]


def test_half_a_character_is_held_back_until_it_is_whole() -> None:
    tokenizer = of_bytes()
    assert pieces(decoder_of(tokenizer), tokenizer.encode("xé€!").ids) == ["x", "", "é", "", "", "€", "!", ""]


def test_bytes_that_never_become_a_character_are_said_to_be_so() -> None:
    tokenizer = of_bytes()
    (told, held) = pieces(decoder_of(tokenizer), tokenizer.encode("é").ids[:1])
    assert (told, held) == ("", "\ufffd")


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (("fg",), ["d", "e", "", "", ""]),
        (("zz", "ef"), ["d", "", "", "", ""]),
        (("d",), ["", "", "", "", ""]),
        (("gh",), ["d", "e", "f", "", "g"]),
        (("efx",), ["d", "", "", "efg", ""]),
    ],
)
def test_what_may_begin_a_stop_string_is_held_back(stop: tuple[str, ...], expected: list[str]) -> None:
    decoder = decoder_of(letters(), *stop)
    found: list[str] = []
    for token_id in (3, 4, 5, 6):
        found.append("" if decoder.stopped else decoder.push(token_id))
    assert [*found, decoder.finish()] == expected
    assert decoder.stopped == any(each in "defg" for each in stop)


def test_after_a_stop_string_nothing_is_left_to_say() -> None:
    decoder = decoder_of(letters(), "de")
    assert [decoder.push(2), decoder.push(3), decoder.push(4)] == ["c", "", ""]
    assert decoder.stopped
    assert decoder.finish() == ""


def test_of_two_stop_strings_that_end_with_one_token_the_first_place_counts() -> None:
    decoder = decoder_of(letters(), "ef", "cdef")
    assert "".join(map(decoder.push, (1, 2, 3, 4, 5))) == "b"
    assert decoder.stopped
