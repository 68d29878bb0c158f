"""The completions of one request: generations at the same time, whose rounds come out one by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from coordinator.emission import EmittedTokens
from coordinator.generation import Generation
from coordinator.interleave import Interruption, interleaved


def run_together(
    generations: Sequence[Generation], interruption: Interruption | None = None
) -> AsyncGenerator[tuple[int, EmittedTokens | None]]:
    """Yields each round with its completion's number as it comes, and None in place of a round when one has ended.

    The second and all later ones start when the first has read the prompt, so that they find it read. Raises what the
    first of them to fail raises, or what the `interruption` is set to, and then runs none of the others on.
    """
    prompt_is_read = asyncio.Event()

    async def rounds(number: int, generation: Generation) -> AsyncGenerator[EmittedTokens]:
        if number > 0:
            await prompt_is_read.wait()
        async with aclosing(generation.run()) as emitting:
            async for emitted in emitting:
                prompt_is_read.set()
                yield emitted
        prompt_is_read.set()

    return interleaved([rounds(number, generation) for number, generation in enumerate(generations)], interruption)
