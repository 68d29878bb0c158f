"""`python -m tests.parallel.follower PORT FOLDER...`: rank 1 of 2, which follows over one model after the other."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch._C._distributed_c10d import TCPStore

from outrider.engine.parallel.ranks import Ranks
from outrider.worker.building import build
from tests.parallel.divided import CPU, NUM_RANKS, divided, keep_as_on_a_gpu

if __name__ == "__main__":
    torch.set_num_threads(1)
    keep_as_on_a_gpu(pytest.MonkeyPatch())
    store = TCPStore("127.0.0.1", int(sys.argv[1]))
    ranks = Ranks(1, NUM_RANKS, CPU, store)
    for folder in sys.argv[2:]:
        build(divided(folder), Path(folder), CPU, ranks=ranks).engine.follow(ranks.steps())
