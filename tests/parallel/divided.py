"""Rank 0 inside the test's own process, and rank 1 beside it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from outrider.engine.load import folder as folder_module
from outrider.engine.parallel.ranks import Ranks
from tests.forkserver.process import forking
from verify_service.config import VerifyConfig

NUM_RANKS = 2
CPU = torch.device("cpu")


def divided(folder: Path | str) -> VerifyConfig:
    """The settings of a target over two ranks."""
    settings = {"model": str(folder), "num_threads": 1, "max_sessions": 8, "max_context": 128, "compile": "off"}
    return VerifyConfig.model_validate({**settings, "tensor_parallel": NUM_RANKS})


def keep_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on quantized weights are kept on a CPU, too, unless they shall be whole."""
    monkeypatch.setattr(folder_module, "_keeps", lambda weights, device: weights != "full")


class Pair(NamedTuple):
    """Two ranks."""

    ranks: Ranks
    """This process' place."""
    other: subprocess.Popen[bytes]


@contextmanager
def pair(folders: list[Path]) -> Iterator[Pair]:
    """Both ranks have met; the other one builds the models of `folders`, one after the other, and follows."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    command = [sys.executable, "-m", "tests.parallel.follower", str(store.port), *map(str, folders)]
    with forking():
        other = subprocess.Popen(command)
    try:
        yield Pair(Ranks(0, NUM_RANKS, CPU, store), other)
    finally:
        other.kill()
        other.wait()
        if dist.is_initialized():
            dist.destroy_process_group()
