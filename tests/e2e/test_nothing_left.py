"""A generation that is over is gone at once, not when the interpreter next looks for rings of objects."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from coordinator import service
from coordinator.generation import Generation
from outrider.core.protocol.errors import SlotsExhaustedError
from tests.e2e.stack import Stack, load_tiny, save_tiny, stack
from tests.engine.tiny_models import build

SECONDS_MAX = 20.0
"""Longest that a generation's end may take to come through."""


class Gone:
    """Counts generations, and tells when all of them are gone."""

    def __init__(self) -> None:
        self.num_made = 0
        self._num_gone = 0
        self._changed = asyncio.Event()

    def watch(self, generation: Generation) -> None:
        """Counts one. Its session and its streams go with it."""
        self.num_made += 1
        weakref.finalize(generation, self._on_gone)

    async def all(self) -> None:
        """Returns when none is left; raises TimeoutError if one stays."""
        async with asyncio.timeout(SECONDS_MAX):
            while self._num_gone < self.num_made:
                self._changed.clear()
                await self._changed.wait()

    def _on_gone(self) -> None:
        self._num_gone += 1
        self._changed.set()


@pytest.fixture
def gone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gone]:
    """While the interpreter does not look for rings."""
    found = Gone()

    def watched(*arguments: Any, **settings: Any) -> Generation:
        generation = Generation(*arguments, **settings)
        found.watch(generation)
        return generation

    monkeypatch.setattr(service, "Generation", watched)
    gc.collect()
    gc.disable()
    yield found
    gc.enable()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return save_tiny(build("llama", layers=2), root / "target"), save_tiny(build("llama"), root / "draft")


@pytest.fixture
async def running(folders: tuple[Path, Path]) -> AsyncIterator[Stack]:
    async with stack(load_tiny(folders[0], max_sessions=2), load_tiny(folders[1])) as found:
        yield found


async def ask(running: Stack, prompt: int, max_tokens: int, *, speculate: bool = True) -> None:
    """Asks for an answer and hears it out."""
    async for _ in running.client.generate([prompt, 2, 3], max_tokens=max_tokens, ignore_eos=True, speculate=speculate):
        pass


@pytest.mark.parametrize("speculate", [True, False])
async def test_after_its_end(running: Stack, gone: Gone, speculate: bool) -> None:
    for prompt in range(1, 4):
        await ask(running, prompt, 12, speculate=speculate)
    await gone.all()
    assert gone.num_made == 3


async def test_after_the_client_has_left(running: Stack, gone: Gone) -> None:
    async with aclosing(running.client.generate([1, 2, 3], max_tokens=200, ignore_eos=True)) as events:
        async for _ in events:
            break
    await gone.all()
    assert gone.num_made == 1


async def test_after_a_refusal(running: Stack, gone: Gone) -> None:
    answers = await asyncio.gather(*(ask(running, prompt, 100) for prompt in range(1, 7)), return_exceptions=True)
    await gone.all()
    assert any(isinstance(each, SlotsExhaustedError) for each in answers)
