"""The client without asyncio: the same one, on an event loop of its own in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Generator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from outrider.client.answer import Answer, gather
from outrider.client.client import GenerationClient
from outrider.client.credentials import NO_CREDENTIALS, Credentials
from outrider.client.retry import DEFAULT_RETRY, Retry
from outrider.core.coordinate.events import Event
from outrider.core.coordinate.server_info import ServerInfo
from outrider.core.protocol.chat_prompt import ChatPrompt
from outrider.core.protocol.options import DEFAULT_OPTIONS, GenerationOptions, OptionFields, Prompt

T = TypeVar("T")


class SyncGenerationClient:
    """`GenerationClient` for programs without an event loop. Several threads may use one.

    with SyncGenerationClient("127.0.0.1:50050") as client:
        for event in client.generate("import os", max_tokens=64):
            if isinstance(event, Tokens):
                print(event.text, end="", flush=True)
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        credentials: Credentials = NO_CREDENTIALS,
        *,
        retry: Retry = DEFAULT_RETRY,
    ) -> None:
        """See `GenerationClient`."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="outrider-client", daemon=True)
        self._thread.start()

        async def make() -> GenerationClient:
            return GenerationClient(addresses, credentials, retry=retry)

        self._client = self._wait(make())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends all calls. The client is of no use afterwards."""
        if self._loop.is_closed():
            return
        self._wait(self._client.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def generate(
        self,
        prompt: Prompt | ChatPrompt,
        options: GenerationOptions = DEFAULT_OPTIONS,
        *,
        timeout_s: float | None = None,
        **changes: Unpack[OptionFields],
    ) -> Generator[Event]:
        """See `GenerationClient.generate`. Closing the generator (`contextlib.closing`) cancels the generation."""
        events = self._client.generate(prompt, options, timeout_s=timeout_s, **changes)

        async def following() -> Event | None:
            return await anext(events, None)

        try:
            while (event := self._wait(following())) is not None:
                yield event
        finally:
            if not self._loop.is_closed():
                self._wait(events.aclose())

    def gather(
        self,
        prompt: Prompt | ChatPrompt,
        options: GenerationOptions = DEFAULT_OPTIONS,
        *,
        timeout_s: float | None = None,
        **changes: Unpack[OptionFields],
    ) -> Answer:
        """The whole answer. Raises what `generate` raises."""
        return self._wait(gather(self._client.generate(prompt, options, timeout_s=timeout_s, **changes)))

    def server_info(self, *, timeout_s: float | None = None) -> ServerInfo:
        """See `GenerationClient.server_info`."""
        return self._wait(self._client.server_info(timeout_s=timeout_s))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is cancelled where waiting for it is interrupted, as by Ctrl-C."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise
