"""On a CPU the KV cache takes memory as it is written to, and not before."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch
from torch import Tensor

from outrider.engine.engine import Engine
from outrider.engine.jobs import Job
from tests.engine.tiny_models import build

PAGEMAP = Path("/proc/self/pagemap")
MAX_SESSIONS, MAX_CONTEXT = 64, 65536
LINE_TOKENS = 4096


@pytest.mark.skipif(not PAGEMAP.exists(), reason="only Linux tells which pages are in memory")
def test_memory_grows_with_use_alone() -> None:
    engine = Engine(build("llama"), max_sessions=MAX_SESSIONS, max_context=MAX_CONTEXT)
    storages = engine._model.cache.storages
    bound = sum(storage.nbytes for storage in storages)
    assert bound > 2**30
    assert resident_bytes(storages) == 0
    line = [1 + at % 60 for at in range(LINE_TOKENS)]
    slot = engine.acquire()
    seen: list[int] = []
    for num_tokens in (16, 1024, LINE_TOKENS):
        while engine.step([Job(slot, line[:num_tokens])]).num_rows == [None]:
            pass
        seen.append(resident_bytes(storages))
    needed = LINE_TOKENS * engine.kv_bytes_per_token
    assert seen[0] < seen[1] < seen[2]
    assert needed / 2 < seen[2] < 4 * needed  # pages are larger than cells, and huge ones much


def resident_bytes(storages: list[Tensor]) -> int:
    """How much of the storages is in memory."""
    num_pages = 0
    with PAGEMAP.open("rb", buffering=0) as pagemap:
        for storage in storages:
            pagemap.seek(storage.data_ptr() // mmap.PAGESIZE * 8)
            entries = bytearray(pagemap.read(-(-storage.nbytes // mmap.PAGESIZE) * 8))
            num_pages += int((torch.frombuffer(entries, dtype=torch.int64) < 0).sum())  # the sign: it is in memory
    return num_pages * mmap.PAGESIZE
