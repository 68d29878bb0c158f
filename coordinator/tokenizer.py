"""The target's tokenizer at the coordinator: text to token ids and back, nothing of it slow on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer

from coordinator.detokenizer import Detokenizer
from coordinator.longest_token import longest_token_bytes
from coordinator.text import TextDecoder
from outrider.core.protocol.errors import FieldViolation, InvalidRequestError, QueueFullError
from outrider.core.protocol.validation import PROMPT_BYTES_MAX

T = TypeVar("T")

ENCODERS_MAX = 2
"""Threads that tokenize, so that one long prompt does not hold up the next. Each holds a third of a kilobyte for a byte
of its prompt at most; more threads would take the processors from the event loop."""

ENCODING_MAX = 4 * PROMPT_BYTES_MAX
"""Bytes of text, and token ids, that are with the encoders or wait for one; more are refused. A megabyte takes an
encoder about a second."""

INLINE_MAX = 512
"""Bytes of text, or token ids, that are done at once: they take a quarter of a millisecond, and the way to another
thread and back takes half as long again."""

BOUNDARY_TOKENS = 16
"""Last tokens of a prompt beside which a text that continues it is tokenized: words are seldom longer."""

PROMPT_INLINE_MAX = 4096
"""Token ids of a prompt that are looked at on the event loop, for how the text after them begins. Mostly that takes a
few microseconds, at worst three for each id."""


class TargetTokenizer:
    """Encodes and decodes by the tokenizer of the target. A few threads do what is long, outside of the interpreter's
    lock, while the event loop serves others."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Takes a second or two for a large vocabulary."""
        self._tokenizer = tokenizer
        self.detokenizer = Detokenizer(tokenizer)
        self._encoders = ThreadPoolExecutor(ENCODERS_MAX, "encoder")
        self._sizes: WeakKeyDictionary[Future[Any], int] = WeakKeyDictionary()
        """Of all that the encoders do or will do; they alone keep it, until it is done."""
        self._prompt_reader = ThreadPoolExecutor(1, "prompt-reader")
        """Apart from the encoders, because it seldom has much to do and they may have."""
        self.longest_token_bytes = longest_token_bytes(tokenizer)
        """See the function of that name."""

    async def encode(
        self, text: str, *, add_special_tokens: bool = True, num_tokens_max: int | None = None
    ) -> list[int]:
        """The ids that the target reads for `text`, with the special tokens that its tokenizer adds, or without.

        Raises InvalidRequestError for a text that makes more than `num_tokens_max` tokens, which its bytes mostly tell,
        that has more than PROMPT_BYTES_MAX bytes, or that is no Unicode; QueueFullError if too much waits already.
        """
        num_bytes = self._checked(text, num_tokens_max)
        return await self._run(num_bytes, lambda: self._encode(text, add_special_tokens, num_tokens_max))

    async def encode_after(self, prompt_token_ids: Sequence[int], text: str, field: str) -> list[int]:
        """The ids of a `text` that continues a prompt, as a model would write them behind it: many tokenizers spell a
        text's first word otherwise than the same word within a text.

        Raises what `encode` raises, about `field`.
        """
        end = prompt_token_ids[-BOUNDARY_TOKENS:]
        return await self._run(self._checked(text, None, field), lambda: self._encode_after(end, text, field))

    async def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of token ids. Raises InvalidRequestError for ids that the tokenizer does not have or that are more
        than PROMPT_BYTES_MAX, QueueFullError if too much waits already."""
        _check_number(token_ids)
        return await self._run(len(token_ids), lambda: self._decode(token_ids, skip_special_tokens))

    async def tokens(self, token_ids: Sequence[int]) -> list[str]:
        """Each token as the vocabulary spells it. Raises what `decode` raises."""
        _check_number(token_ids)
        return await self._run(len(token_ids), lambda: [self._token(token_id) for token_id in token_ids])

    async def text_decoder(
        self, stop: Sequence[str], prompt_token_ids: Sequence[int], received_token_ids: Sequence[int] = ()
    ) -> TextDecoder:
        """What turns the tokens after a prompt, and after those that the client has `received`, into text.

        The text continues that of the prompt: both together are what the tokenizer makes of all ids. Raises
        InvalidRequestError if the received tokens go on behind a stop string.
        """
        return (await self._received(stop, prompt_token_ids, received_token_ids))[0]

    async def texts(
        self, stop: Sequence[str], prompt_token_ids: Sequence[int], received_token_ids: Sequence[int]
    ) -> Sequence[str]:
        """The text that became certain with each of the tokens that the client has received.

        Raises what `text_decoder` raises.
        """
        return (await self._received(stop, prompt_token_ids, received_token_ids))[1]

    async def _received(
        self, stop: Sequence[str], prompt_token_ids: Sequence[int], received_token_ids: Sequence[int]
    ) -> tuple[TextDecoder, Sequence[str]]:
        if len(prompt_token_ids) + len(received_token_ids) <= PROMPT_INLINE_MAX:
            return self._receive(stop, prompt_token_ids, received_token_ids)
        return await asyncio.get_running_loop().run_in_executor(
            self._prompt_reader, self._receive, stop, prompt_token_ids, received_token_ids
        )

    def _receive(
        self, stop: Sequence[str], prompt_token_ids: Sequence[int], received_token_ids: Sequence[int]
    ) -> tuple[TextDecoder, Sequence[str]]:
        decoder = TextDecoder(self.detokenizer.after(prompt_token_ids), stop, self.detokenizer.special)
        texts: list[str] = []
        for token_id in received_token_ids:
            if decoder.stopped:
                raise _invalid("resume", "goes on behind a stop string, which ends the completion")
            texts.append(decoder.push(token_id))
        return decoder, texts

    def spell(self, token_id: int) -> str:
        """How a token reads alone; bytes that are no whole character read U+FFFD."""
        return self.detokenizer.content(token_id).decode(errors="replace")

    def _checked(self, text: str, num_tokens_max: int | None, field: str = "text") -> int:
        """Bytes of `text`, which are not too many."""
        try:
            num_bytes = len(text) if len(text) > PROMPT_BYTES_MAX else len(text.encode())
        except UnicodeEncodeError as error:
            raise _invalid(field, "has half of a surrogate pair; send whole characters") from error
        if num_bytes > PROMPT_BYTES_MAX:
            raise _invalid(field, f"has more than {PROMPT_BYTES_MAX} bytes; send less, or token ids")
        longest = self.longest_token_bytes
        if num_tokens_max is not None and longest is not None and num_bytes > num_tokens_max * longest:
            raise _invalid(
                "text",
                f"has {num_bytes} bytes; the context has room for {num_tokens_max} tokens, which are at most "
                f"{num_tokens_max * longest} bytes",
            )
        return num_bytes

    async def _run(self, size: int, work: Callable[[], T]) -> T:
        if size <= INLINE_MAX:
            return work()
        # It counts until an encoder is rid of it, also where nobody waits for it any more.
        sizes = [each for future, each in self._sizes.items() if not future.done()]
        if sum(sizes) + size > ENCODING_MAX:
            raise QueueFullError(f"{len(sizes)} long texts wait to be tokenized; try again later")
        future = self._encoders.submit(work)
        self._sizes[future] = size
        return await asyncio.wrap_future(future)

    def _encode_after(self, prompt_end: Sequence[int], text: str, field: str) -> list[int]:
        """What is behind the ids of the prompt's end where `text` is behind its text."""
        before = self._tokenizer.decode(list(prompt_end), skip_special_tokens=False)
        ids_before, ids = self._encode(before, False, None, field), self._encode(before + text, False, None, field)
        num_before = len(ids_before)
        # Otherwise a token lies across the boundary, which a model that reads the prompt's own ids cannot write.
        return ids[num_before:] if ids[:num_before] == ids_before else self._encode(text, False, None, field)

    def _encode(
        self, text: str, add_special_tokens: bool, num_tokens_max: int | None, field: str = "text"
    ) -> list[int]:
        # In a batch of one: `encode` would keep offsets, which cost half of its time, and drop them under the lock.
        try:
            (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        except (KeyboardInterrupt, SystemExit):  # a short text is encoded on the main thread
            raise
        except BaseException as error:  # tokenizers raises whatever it met, and panics with what is no Exception
            raise _invalid(field, f"the target's tokenizer fails on it: {error}") from error
        if num_tokens_max is not None and len(encoding) > num_tokens_max:
            raise _invalid("text", f"has {len(encoding)} tokens; the context leaves room for at most {num_tokens_max}")
        return encoding.ids  # a list, which is made under the lock

    def _decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        for token_id in token_ids:
            self._token(token_id)
        # In a batch of one: `decode` would hold the lock.
        return self._tokenizer.decode_batch([list(token_ids)], skip_special_tokens=skip_special_tokens)[0]

    def _token(self, token_id: int) -> str:
        token = self._tokenizer.id_to_token(token_id) if 0 <= token_id < 2**32 else None
        if token is None:
            raise _invalid("token_ids", f"token id {token_id} is not in the tokenizer's vocabulary")
        return token


def _check_number(token_ids: Sequence[int]) -> None:
    if len(token_ids) > PROMPT_BYTES_MAX:
        raise _invalid("token_ids", f"has {len(token_ids)} ids; at most {PROMPT_BYTES_MAX} are allowed")


def _invalid(field: str, description: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation(field, description)])
