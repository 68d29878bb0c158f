"""A target over two ranks, in the processes that the service starts: the text of one process, and what its end is."""

from __future__ import annotations

import asyncio
import os
import re
import select
import signal
from collections import Counter
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any

import pytest

from outrider.client import Tokens
from outrider.core.protocol.sampling import SamplingParams
from tests.e2e.answers import ask
from tests.e2e.stack import coordinator, load_tiny, save_tiny, worker, worker_process
from tests.engine.tiny_models import build

pytestmark = pytest.mark.usefixtures("forked")

PROMPT = [1, 2, 3]
LONG: dict[str, Any] = {"max_tokens": 120, "ignore_eos": True, "sampling": SamplingParams(temperature=0.9, seed=4)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return save_tiny(build("qwen3"), root / "target"), save_tiny(build("qwen3", layers=1), root / "draft")


def divided_worker(folder: Path) -> AbstractAsyncContextManager[tuple[asyncio.subprocess.Process, str]]:
    """A verify worker of two ranks."""
    return worker_process("verify_service", folder, "--tensor-parallel=2", "--num-threads=1", "--max-context=256")


def children(process: int) -> list[int]:
    """The processes that it has started."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = re.fullmatch(r"(\d+) \(.*\) \S (\d+) .*\n", path.read_text(), re.DOTALL)
            if fields and int(fields[2]) == process:
                found.append(int(fields[1]))
    return found


async def test_the_text_is_that_of_one_process_and_goes_on_elsewhere_when_a_rank_is_killed(
    folders: tuple[Path, Path], seats: Counter[str]
) -> None:
    async with (
        divided_worker(folders[0]) as (process, divided),
        worker(load_tiny(folders[0])) as whole,
        worker(load_tiny(folders[1]), draft=True) as draft,
    ):
        async with coordinator(whole.address, draft.address) as over_one:
            expected = (await ask(over_one.client, PROMPT, **LONG)).token_ids
        async with coordinator(divided, draft.address) as over_two:
            assert (await ask(over_two.client, PROMPT, **LONG)).token_ids == expected
        async with coordinator(f"{divided},{whole.address}", draft.address) as over_both:
            await over_both.until_serving(divided, whole.address, draft.address)
            seats.clear()
            token_ids: list[int] = []
            async for event in over_both.client.generate(PROMPT, **LONG):
                if isinstance(event, Tokens):
                    token_ids += [token.token_id for token in event.tokens]
                    if process.returncode is None:
                        (other,) = children(process.pid)
                        os.kill(other, signal.SIGKILL)
                        assert await process.wait() == 1
            assert token_ids == expected
            assert (seats[divided], seats[whole.address]) == (1, 1)


async def test_the_other_ranks_end_with_the_first(folders: tuple[Path, Path]) -> None:
    async with divided_worker(folders[0]) as (process, _):
        (other,) = children(process.pid)
        handle = os.pidfd_open(other)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert select.select([handle], [], [])[0] == [handle]
