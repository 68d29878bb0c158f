"""How much memory a worker gives to keys and values."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.worker import memory
from outrider.worker.config import KV_MEMORY_PATTERN
from tests.e2e.stack import load_tiny, save_tiny
from tests.engine.tiny_models import build

CPU = torch.device("cpu")
GIB = 2**30


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> int:
    """What the device has left."""
    monkeypatch.setattr(memory, "available_bytes", lambda device: 8 * GIB)
    return 8 * GIB


@pytest.mark.parametrize(
    ("setting", "num_bytes"),
    [("2GiB", 2 * GIB), ("500MB", 500_000_000), ("1.5 gib", 3 * GIB // 2), ("64KiB", 65536), ("50%", 4 * GIB)],
)
def test_a_size_or_a_share(left: int, setting: str, num_bytes: int) -> None:
    assert re.match(KV_MEMORY_PATTERN, setting)
    assert memory.kv_bytes(setting, CPU, 1) == num_bytes


def test_left_to_itself_it_takes_what_could_be_needed_or_a_share(left: int) -> None:
    assert memory.kv_bytes("auto", CPU, GIB) == GIB
    assert memory.kv_bytes("auto", CPU, 100 * GIB) == 2 * GIB
    assert memory.kv_bytes("auto", torch.device("cuda"), 100 * GIB) == 4 * GIB


@pytest.mark.parametrize("setting", ["", "2", "lots", "-1GiB", "GiB", "5 %%", "auto "])
def test_what_is_no_size_is_refused(setting: str) -> None:
    assert not re.match(KV_MEMORY_PATTERN, setting)


def test_some_of_this_machine_is_left() -> None:
    assert memory.available_bytes(CPU) > 0


def test_a_worker_has_the_memory_that_it_was_given(tmp_path: Path) -> None:
    """One layer of two heads of eight: 128 bytes a token."""
    folder = save_tiny(build("llama", layers=1), tmp_path)
    engine = load_tiny(folder, kv_memory="1MiB", max_context=100).engine
    assert engine.kv_bytes_per_token == 128
    assert engine.blocks.num_blocks * engine.blocks.block_cells == 2**20 // 128


def test_memory_for_less_than_one_session_is_refused_in_words(tmp_path: Path) -> None:
    folder = save_tiny(build("llama", layers=1), tmp_path)
    with pytest.raises(UnsupportedModelError, match="raise --kv-memory or lower --max-context"):
        load_tiny(folder, kv_memory="1KiB")
