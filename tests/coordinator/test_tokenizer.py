"""Text to token ids and back beside an event loop that never waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any, cast
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from coordinator.config import CoordinatorConfig
from coordinator.request import settle
from coordinator.service import GenerationService
from coordinator.tokenizer import ENCODERS_MAX, ENCODING_MAX, INLINE_MAX, PROMPT_INLINE_MAX, TargetTokenizer
from coordinator.workers import Workers
from outrider.core.protocol.errors import InvalidRequestError, QueueFullError
from outrider.core.protocol.options import DEFAULT_OPTIONS, GenerationOptions
from outrider.core.protocol.validation import PROMPT_BYTES_MAX
from outrider.telemetry.setup import set_up
from tests.coordinator.script import TARGET
from tests.coordinator.test_text import of_bytes
from tests.coordinator.tokenizers import BUNDLED, real

CONFIG = CoordinatorConfig(max_requests=2)  # pyright: ignore[reportCallIssue]
LONG = "x" * (INLINE_MAX + 1)
TURNS = 100


class Slow:
    """A real tokenizer that works when it may, and encodes the beginning of what is very long."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.may_work = threading.Event()
        self.threads: list[str] = []
        self._tokenizer = tokenizer

    def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
        self._wait()
        return self._tokenizer.encode_batch_fast([text[: len(LONG)] for text in texts], **options)

    def id_to_token(self, token_id: int) -> str | None:
        self._wait()
        return self._tokenizer.id_to_token(token_id)

    def _wait(self) -> None:
        self.threads.append(threading.current_thread().name)
        assert self.may_work.wait(60)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@pytest.fixture
def slow() -> Iterator[Slow]:
    slow = Slow(of_bytes())
    yield slow
    slow.may_work.set()


@pytest.fixture(scope="module")
def bundled() -> TargetTokenizer:
    """It puts <|endoftext|>, id 0, in front."""
    return TargetTokenizer(real(BUNDLED))


def target(slow: Slow) -> TargetTokenizer:
    return TargetTokenizer(cast("Tokenizer", slow))


async def turns() -> None:
    """The event loop runs."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


def words(error: pytest.ExceptionInfo[InvalidRequestError]) -> str:
    ((_, description),) = error.value.violations
    return description


async def test_the_event_loop_runs_while_a_long_text_is_encoded(slow: Slow) -> None:
    encoding = asyncio.create_task(target(slow).encode(LONG))
    await turns()
    assert not encoding.done()
    slow.may_work.set()
    assert await encoding == [slow.token_to_id("x")] * len(LONG)


async def test_a_short_text_is_encoded_at_once(slow: Slow) -> None:
    slow.may_work.set()
    assert len(await target(slow).encode(LONG[:-1])) == INLINE_MAX
    assert slow.threads == [threading.current_thread().name]


async def test_a_few_threads_encode_and_what_waits_for_them_is_bounded(slow: Slow) -> None:
    tokenizer = target(slow)
    largest = "x" * PROMPT_BYTES_MAX
    encodings = [asyncio.create_task(tokenizer.encode(largest)) for _ in range(ENCODING_MAX // PROMPT_BYTES_MAX)]
    await turns()
    with pytest.raises(QueueFullError, match=f"{len(encodings)} long texts wait"):
        await tokenizer.encode(LONG)
    slow.may_work.set()
    assert {len(token_ids) for token_ids in await asyncio.gather(*encodings)} == {len(LONG)}
    assert len(set(slow.threads)) == ENCODERS_MAX
    assert len(await tokenizer.encode(LONG)) == len(LONG), "they have made room"


async def test_what_nobody_waits_for_counts_until_its_encoder_is_free(slow: Slow) -> None:
    tokenizer = target(slow)
    encodings = [asyncio.create_task(tokenizer.encode("x" * PROMPT_BYTES_MAX)) for _ in range(4)]
    await turns()
    for encoding in encodings:
        encoding.cancel()
    await asyncio.wait(encodings)
    more = [asyncio.create_task(tokenizer.encode("x" * PROMPT_BYTES_MAX)) for _ in range(2)]
    await turns()
    with pytest.raises(QueueFullError):
        await tokenizer.encode(LONG)
    slow.may_work.set()
    await asyncio.gather(*more)
    assert len(slow.threads) == ENCODERS_MAX + 2, "what had not begun never did"


async def test_requests_that_are_tokenized_count_as_running(slow: Slow) -> None:
    class Serving:
        def require_target(self) -> Any:
            return TARGET._replace(max_context=4096), target(slow)

    service = GenerationService(CONFIG, cast("Workers", Serving()), set_up("test", environ={}))
    starting = [asyncio.create_task(anext(service.generate(LONG))) for _ in range(2)]
    await turns()
    with pytest.raises(QueueFullError, match="2 completions are running"):
        await anext(service.generate([1]))
    for each in starting:
        each.cancel()
    await asyncio.wait(starting)
    with pytest.raises(InvalidRequestError):  # they have made room
        await anext(service.generate([]))


async def test_the_event_loop_runs_while_a_long_prompt_is_looked_at(slow: Slow) -> None:
    half, rest = slow.encode("é").ids
    prompt = [half] * PROMPT_INLINE_MAX + [half]
    looking = asyncio.create_task(target(slow).text_decoder((), prompt))
    await turns()
    assert not looking.done()
    slow.may_work.set()
    assert (await looking).push(rest) == "é"


async def test_a_text_that_cannot_fit_is_refused_by_its_bytes(slow: Slow) -> None:
    """Without being encoded: the tokenizer may not."""
    with pytest.raises(InvalidRequestError) as refused:
        await target(slow).encode("é" * 300, num_tokens_max=599)
    assert words(refused) == "has 600 bytes; the context has room for 599 tokens, which are at most 599 bytes"
    with pytest.raises(InvalidRequestError) as refused:
        await target(slow).encode("é" * (PROMPT_BYTES_MAX // 2 + 1))
    assert words(refused) == f"has more than {PROMPT_BYTES_MAX} bytes; send less, or token ids"


async def test_a_text_that_may_fit_is_refused_by_its_tokens(bundled: TargetTokenizer) -> None:
    small = TARGET._replace(vocab_size=4096, max_context=4)
    with pytest.raises(InvalidRequestError, match="text: has 4 tokens; the context leaves room for at most 3"):
        await settle("def main(", DEFAULT_OPTIONS, CONFIG, small, bundled)


async def test_half_a_character_is_refused_in_words(bundled: TargetTokenizer) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        await bundled.encode("\ud83d")
    assert "half of a surrogate pair" in words(refused)


async def test_a_text_that_the_tokenizer_fails_on_is_refused_in_words() -> None:
    tokenizer = TargetTokenizer(
        Tokenizer.from_str(
            '{"version":"1.0","model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"?"},"added_tokens":[]}'
        )
    )
    for text in ("b", LONG):
        with pytest.raises(InvalidRequestError) as refused:
            await tokenizer.encode(text)
        assert "the target's tokenizer fails on it" in words(refused)


def test_what_ends_the_process_is_no_fault_of_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted = Slow(of_bytes())
    monkeypatch.setattr(interrupted, "encode_batch_fast", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        TargetTokenizer(cast("Tokenizer", interrupted)).encode("a").send(None)


async def test_special_tokens_are_added_unless_the_text_has_them(bundled: TargetTokenizer) -> None:
    large = TARGET._replace(vocab_size=4096, max_context=4096)

    async def prompt_of(text: str, options: GenerationOptions = DEFAULT_OPTIONS) -> list[int]:
        return list((await settle(text, options, CONFIG, large, bundled)).prompt_token_ids)

    plain, without = await prompt_of("def main("), GenerationOptions(add_special_tokens=False)
    assert plain[0] == 0
    assert await prompt_of("def main(", without) == plain[1:]
    assert await prompt_of("<|endoftext|>def main(", without) == plain, "a special token in the text is read as one"
    assert await prompt_of("<|endoftext|>def main(") == [0, *plain]


async def test_ids_become_text_with_or_without_special_tokens(bundled: TargetTokenizer) -> None:
    token_ids = await bundled.encode("def é\n")
    assert await bundled.decode(token_ids, skip_special_tokens=False) == "<|endoftext|>def é\n"
    assert await bundled.decode(token_ids, skip_special_tokens=True) == "def é\n"
    assert await bundled.decode(token_ids * INLINE_MAX, skip_special_tokens=True) == "def é\n" * INLINE_MAX
    assert (await bundled.tokens(token_ids))[:2] == ["<|endoftext|>", "def"]


@pytest.mark.parametrize("token_id", [-1, 4096, 2**32, 2**70])
async def test_ids_that_are_none_are_named(bundled: TargetTokenizer, token_id: int) -> None:
    for token_ids in ([1, token_id], [1] * INLINE_MAX + [token_id]):
        for refused in (bundled.decode(token_ids, skip_special_tokens=False), bundled.tokens(token_ids)):
            with pytest.raises(InvalidRequestError, match=f"token id {token_id} is not in"):
                await refused
    with pytest.raises(InvalidRequestError, match=f"at most {PROMPT_BYTES_MAX} are allowed"):
        await bundled.decode([1] * (PROMPT_BYTES_MAX + 1), skip_special_tokens=False)


@given(text=st.text(max_size=40), repeat=st.sampled_from([1, 60]))
def test_ids_are_those_of_the_tokenizer(bundled: TargetTokenizer, text: str, repeat: int) -> None:
    expected = real(BUNDLED).encode(text * repeat).ids
    assert asyncio.run(bundled.encode(text * repeat)) == expected


async def test_a_text_that_continues_a_prompt_is_spelled_as_within_a_text() -> None:
    """As Llama's tokenizers put a space in front of a text, and not in front of what follows a line's end."""
    spaced = Tokenizer(models.BPE({"▁": 0, "a": 1, "b": 2, "▁a": 3, "\n": 4, "ab": 5}, [("▁", "a"), ("a", "b")]))
    spaced.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    spaced.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer = TargetTokenizer(spaced)
    assert await tokenizer.encode("a") == [3]
    assert await tokenizer.encode_after([3, 4], "ab", "prediction") == [5]
    assert await tokenizer.encode_after([3], " a", "prediction") == [3]
    # A token across the boundary is none that can be written behind it.
    assert await tokenizer.encode_after([4, 1], "b", "prediction") == await tokenizer.encode("b")


def test_prompt_and_continuation_are_spelled_as_one_text_where_no_token_lies_across() -> None:
    tokenizer = TargetTokenizer(real(BUNDLED))

    async def encoded(before: str, text: str) -> tuple[list[int], list[int], list[int]]:
        prompt = await tokenizer.encode(before, add_special_tokens=False)
        both = await tokenizer.encode(before + text, add_special_tokens=False)
        return prompt, both, await tokenizer.encode_after(prompt, text, "prediction")

    @given(st.text(max_size=40), st.text(max_size=40))
    def check(before: str, text: str) -> None:
        prompt, both, after = asyncio.run(encoded(before, text))
        if both[: len(prompt)] == prompt:
            assert after == both[len(prompt) :]
        assert real(BUNDLED).decode(after) == text

    check()


async def test_what_is_wrong_with_a_prediction_names_it() -> None:
    tokenizer = TargetTokenizer(real(BUNDLED))
    for text in ("x" * (PROMPT_BYTES_MAX + 1), "\ud800"):
        with pytest.raises(InvalidRequestError) as refused:
            await tokenizer.encode_after([1], text, "speculation.prediction")
        assert [violation.field for violation in refused.value.violations] == ["speculation.prediction"]
