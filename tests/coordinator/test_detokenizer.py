"""Streamed text is what tokenizers makes of all ids at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from coordinator import joint
from coordinator.detokenizer import Detokenizer, TextStream
from coordinator.joint import REPLACEMENT
from tests.coordinator.tokenizers import BUNDLED, BYTE_TOKENS, MADE_UP, REAL, real

detokenizer_of = cache(Detokenizer)

TEXTS = st.text(st.sampled_from("ab \n\té中\u0301😀<|>"), max_size=12)


def check(tokenizer: Tokenizer, token_ids: list[int], num_prompt_tokens: int) -> None:
    detokenizer = detokenizer_of(tokenizer)
    prompt_ids, generated = token_ids[:num_prompt_tokens], token_ids[num_prompt_tokens:]
    stream = detokenizer.after(prompt_ids)
    text = "".join(stream.push(token_id) for token_id in generated) + stream.rest()
    whole, prompt = tokenizer.decode(token_ids), tokenizer.decode(prompt_ids)
    if whole.startswith(prompt):
        assert prompt + text == whole
    else:  # the prompt ended within a character
        assert whole.endswith(text)
        assert whole.removesuffix(text) == prompt[: len(whole) - len(text)]
    alone = TextStream(detokenizer)
    assert "".join(alone.push(token_id) for token_id in token_ids) + alone.rest() == whole


@pytest.mark.parametrize("name", MADE_UP)
@given(data=st.data())
def test_prompt_and_text_are_the_decoding_of_all_ids(name: str, data: st.DataObject) -> None:
    tokenizer = MADE_UP[name]
    size = tokenizer.get_vocab_size()
    some = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=6), "vocabulary")
    token_ids = data.draw(st.lists(st.sampled_from([*some, size - 1, size - 2]), max_size=16), "token ids")
    check(tokenizer, token_ids, data.draw(st.integers(0, len(token_ids)), "prompt"))


@pytest.mark.parametrize("path", [BUNDLED, *REAL.values()], ids=["bundled", *REAL])
@given(data=st.data())
def test_so_they_are_with_real_vocabularies(path: Path, data: st.DataObject) -> None:
    tokenizer = real(path)
    size = tokenizer.get_vocab_size()
    if data.draw(st.booleans(), "of a text"):
        token_ids = tokenizer.encode(data.draw(TEXTS, "text")).ids
    else:
        token_ids = data.draw(st.lists(st.integers(0, size - 1) | st.integers(0, 300), max_size=12), "token ids")
    check(tokenizer, token_ids, data.draw(st.integers(0, len(token_ids)), "prompt"))


def streamed(tokenizer: Tokenizer, prompt: list[str], tokens: list[str]) -> list[str]:
    def ids(names: list[str]) -> list[int]:
        found = [tokenizer.token_to_id(name) for name in names]
        assert None not in found
        return found

    stream = detokenizer_of(tokenizer).after(ids(prompt))
    return [*(stream.push(token_id) for token_id in ids(tokens)), stream.rest()]


def test_the_first_token_keeps_its_space_after_a_prompt() -> None:
    llama = MADE_UP["byte fallback, as Llama 2"]
    assert streamed(llama, ["<s>", "b"], ["▁a"]) == [" a", ""]
    assert streamed(llama, ["<s>"], ["▁a"]) == ["a", ""]
    assert streamed(llama, [], ["▁", "▁a"]) == ["", " a", ""]


def test_a_prompt_that_ends_with_bytes_is_not_said_again() -> None:
    llama = MADE_UP["byte fallback, as Llama 2"]
    assert streamed(llama, ["b", "<0x0A>"], ["▁a"]) == [" a", ""]
    assert streamed(llama, ["b", "<0xC3>"], ["<0xA9>", "▁a"]) == ["", "é a", ""]


def test_a_character_that_can_never_be_completed_is_a_replacement_character() -> None:
    llama, level = MADE_UP["byte fallback, as Llama 2"], MADE_UP["byte level"]
    assert streamed(llama, ["b"], ["<0xC3>", "<0x41>", "b"]) == ["", 2 * REPLACEMENT, "b", ""]
    assert streamed(llama, ["b"], ["<0xE4>", "<0xB8>"]) == ["", "", 2 * REPLACEMENT]
    assert streamed(level, ["a"], ["ã", "a", "ã"]) == ["", f"{REPLACEMENT}a", "", REPLACEMENT]


def test_text_comes_with_the_token_that_completes_it() -> None:
    assert streamed(MADE_UP["byte level"], [], ["a", "ð", "Ł", "ĺ", "Ģ", "b"]) == ["a", "", "", "", "😀", "b", ""]
    assert streamed(MADE_UP["WordPiece"], ["a"], ["##b", "don", "."]) == ["b", " don", ".", ""]
    assert streamed(MADE_UP["Unigram"], ["▁a"], ["▁a", "b"]) == [" a", "b", ""]


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("byte level", "<s>"),
        ("byte level", "ã"),
        ("byte fallback, as Llama 2", BYTE_TOKENS[0xE4]),
        ("byte fallback, as Llama 2", BYTE_TOKENS[0x0A]),
    ],
)
def test_a_token_that_brings_no_text_costs_what_the_first_ones_did(
    name: str, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many came before it: what is decoded for each is counted, in tokens and in bytes."""
    num_decoded = 0

    def counted(decode: Callable[..., Any]) -> Callable[..., Any]:
        def count(content: Sequence[Any], *arguments: Any) -> Any:
            nonlocal num_decoded
            num_decoded += len(content)
            return decode(content, *arguments)

        return count

    tokenizer = MADE_UP[name]
    detokenizer = Detokenizer(tokenizer)
    whole = SimpleNamespace(id_to_token=tokenizer.id_to_token, decode=counted(tokenizer.decode))
    monkeypatch.setattr(detokenizer, "_tokenizer", whole)
    monkeypatch.setattr(joint, "utf_8_decode", counted(joint.utf_8_decode))
    stream, costs = TextStream(detokenizer), list[int]()
    for _ in range(400):
        before = num_decoded
        stream.push(tokenizer.token_to_id(token))
        costs.append(num_decoded - before)
    assert max(costs[8:]) <= max(costs[:8]) <= 8


@pytest.mark.parametrize("path", [BUNDLED, *REAL.values()], ids=["bundled", *REAL])
@given(text=TEXTS)
def test_the_bytes_of_single_tokens_are_together_those_of_the_text(path: Path, text: str) -> None:
    tokenizer = real(path)
    detokenizer = Detokenizer(tokenizer)
    token_ids = tokenizer.encode(text, add_special_tokens=False).ids
    content = b"".join(map(detokenizer.content, token_ids))
    assert content.decode() == tokenizer.decode(token_ids, skip_special_tokens=False)


def test_the_bytes_of_single_tokens_where_a_byte_is_a_token() -> None:
    tokenizer = MADE_UP["byte fallback, as Gemma"]
    found = [Detokenizer(tokenizer).content(tokenizer.token_to_id(name)) for name in ("▁a", "<0xE2>", "<s>")]
    assert found == [b" a", b"\xe2", b"<s>"]
