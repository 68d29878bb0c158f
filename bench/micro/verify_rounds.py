"""A verify service and a client that plays its coordinator: what a round costs the service's process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

from bench.processor_time import num_switches, used_by_thread_ns
from bench.stack.checkout import Checkout
from bench.stack.services import HOST, free_port
from outrider.cli.child import Child, Observer
from outrider.core.protocol.messages import DraftWindow, Opened, Verdict, VerifyCommand, VerifyFinished, VerifyOpen
from outrider.core.protocol.sampling import SamplingParams
from outrider.rpc.channels import open_channel
from outrider.rpc.multiplexer import Multiplexer
from outrider.rpc.stream_kind import VERIFY

DRAFT_TOKENS_MAX: Final = 6
"""How far ahead of the line the client guesses, one token after another."""

_RIGHT_OF_TEN: Final = 7
"""Of so many guesses those that are right, as for sampled text of the bundled pair."""

_LOG_PROB: Final = -0.3
"""What the client claims of each."""

_SAMPLING: Final = SamplingParams(temperature=0.8, seed=1)


class VerifyCost(NamedTuple):
    """What a round of one session costs the process, in microseconds of processor time."""

    device: float
    """The thread that computes."""
    main: float
    """The event loop."""
    others: float
    """Other threads, of which gRPC's poller is the busy one."""
    switches: float
    """How often one of its threads stopped running, by itself or not."""
    num_tokens: float
    """How many tokens it decided."""

    @property
    def process(self) -> float:
        """All of the processor time."""
        return self.device + self.main + self.others


class Guesses:
    """A chain of guesses below a line that will be as it is known to be, right as often as said above."""

    def __init__(self, text: Sequence[int], first: int) -> None:
        """From position `first` on the line will be `text`."""
        self._text = text
        self._first = first
        self._base = self._tip = first - 1
        self._last_id = 0

    def window(self, end: int) -> DraftWindow | None:
        """What is new to guess now that the line's last position is `end`; None if nothing is."""
        is_lost = not all(map(_is_right, range(self._base + 1, end + 1)))
        if is_lost or self._tip <= end:
            self._base = self._tip = end
        last = min(end + DRAFT_TOKENS_MAX, self._first + len(self._text) - 2)
        positions = range(self._tip + 1, last + 1)
        if not positions:
            return None
        first_id = self._last_id + 1
        first_parent = 0 if self._tip == end else self._last_id
        self._last_id, self._tip = self._last_id + len(positions), last
        parent_ids = [first_parent, *range(first_id, self._last_id)]
        token_ids = [self._text[each - self._first] ^ (not _is_right(each)) for each in positions]
        return DraftWindow(end, first_id, parent_ids, token_ids, [_LOG_PROB] * len(positions))


def _is_right(position: int) -> bool:
    return position * 2_654_435_761 % 2**32 % 10 < _RIGHT_OF_TEN


class VerifyStack:
    """One checkout's verify service, and the stream to it."""

    def __init__(
        self, process: int, multiplexer: Multiplexer[VerifyCommand, Opened | Verdict | VerifyFinished]
    ) -> None:
        self._process = process
        self._multiplexer = multiplexer
        self._texts: dict[tuple[int, ...], list[int]] = {}
        """How the prompts go on, by the target."""
        self._num_rounds = self._num_tokens = self._num_begun = 0
        self._all_begun = asyncio.Event()

    async def burst(self, prompts: Sequence[Sequence[int]], num_tokens: int, *, drafts: bool) -> VerifyCost:
        """Answers of so many tokens to all prompts at once, with windows of guesses or without any.

        What counts is the time from when all sessions have had their first verdict.
        """
        texts = [await self._text(prompt, num_tokens) if drafts else [] for prompt in prompts]
        self._num_begun = -len(prompts)
        self._all_begun.clear()
        sessions = [
            asyncio.create_task(self._decided(prompt, text, num_tokens))
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        await self._all_begun.wait()
        self._num_rounds = self._num_tokens = 0
        before, switches_before = used_by_thread_ns(self._process), num_switches(self._process)
        await asyncio.gather(*sessions)
        after, switches = used_by_thread_ns(self._process), num_switches(self._process) - switches_before
        used = {thread: ns - before.get(thread, 0) for thread, ns in after.items()}
        main = used.pop(self._process)
        device = max(used.values())
        num_rounds = self._num_rounds
        return VerifyCost(
            device / num_rounds / 1000.0,
            main / num_rounds / 1000.0,
            (sum(used.values()) - device) / num_rounds / 1000.0,
            switches / num_rounds,
            self._num_tokens / num_rounds,
        )

    async def _text(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        key = (*prompt, num_tokens)
        if key not in self._texts:
            self._texts[key] = await self._decided(prompt, [], num_tokens)
        return self._texts[key]

    async def _decided(self, prompt: Sequence[int], text: Sequence[int], num_tokens: int) -> list[int]:
        """What the target says after the prompt; `text`, if that is known, is guessed."""
        session = self._multiplexer.open()
        guesses = Guesses(text, len(prompt)) if text else None

        def take(event: Opened | Verdict | VerifyFinished) -> Verdict | None:
            if not isinstance(event, Verdict):
                return None
            if guesses is not None and (window := guesses.window(event.position + len(event.token_ids) - 1)):
                session.offer(window)
            return event

        opening = VerifyOpen(
            session_id=str(id(session)),
            token_ids=prompt,
            num_prompt_tokens=len(prompt),
            sampling=_SAMPLING,
            max_length=len(prompt) + num_tokens,
            ignore_eos=True,
            max_draft_tokens=DRAFT_TOKENS_MAX if text else 0,
            expect_drafts=bool(text),
        )
        session.offer(opening)
        decided: list[int] = []
        async for verdict in session.outcomes(take):
            if not decided:
                self._num_begun += 1
                if not self._num_begun:
                    self._all_begun.set()
            decided += verdict.token_ids
            self._num_rounds += 1
            self._num_tokens += len(verdict.token_ids)
        session.cancel()
        return decided


@asynccontextmanager
async def running(checkout: Checkout, target: Path, core: int) -> AsyncIterator[VerifyStack]:
    """The service on that core, compiled."""
    address = f"{HOST}:{free_port()}"
    flags = [f"--listen={address}", f"--model={target}", "--dtype=bfloat16", f"--cores={core}", "--compile=first"]
    service = Child(
        "verify",
        [*checkout.command("verify_service"), *flags, "--num-threads=1"],
        address=address,
        health_service="outrider.v1.VerifyService",
        observer=Observer(),
    )
    async with AsyncExitStack() as leaving:
        leaving.push_async_callback(service.kill)
        await service.start()
        await service.ready()
        channel = await leaving.enter_async_context(open_channel(address))
        multiplexer = Multiplexer(channel, VERIFY)
        leaving.push_async_callback(multiplexer.close)
        yield VerifyStack(service.process_id, multiplexer)
