"""The threads that share the native operators' work: the same bits on any number of them, and nothing while idle."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from outrider.engine import library
from outrider.engine.compile.linear import PackedLinear
from outrider.worker.config import WorkerConfig
from tests.engine.test_linear import layer, noise

pytestmark = pytest.mark.usefixtures("native_operators")

ROWS = noise(5, 1024, dtype=torch.float32)


@pytest.fixture(scope="module")
def product(native_operators: None) -> PackedLinear:
    return PackedLinear(layer(1024, 3000, torch.float32))


@pytest.fixture(scope="module")
def alone(product: PackedLinear) -> Tensor:
    torch.set_num_threads(1)
    return product(ROWS)


def test_any_number_of_threads_makes_the_same_bits(product: PackedLinear, alone: Tensor) -> None:
    for num_threads in (2, 7, 3, 1, 40, 2):
        torch.set_num_threads(num_threads)
        for _ in range(20):
            assert torch.equal(product(ROWS), alone)


def test_several_callers_at_once_each_get_their_own(product: PackedLinear, alone: Tensor) -> None:
    torch.set_num_threads(3)

    def call(caller: int) -> bool:
        rows = ROWS[caller:]
        return all(torch.equal(product(rows), alone[caller:]) for _ in range(50))

    with ThreadPoolExecutor(4) as callers:
        assert all(callers.map(call, range(4)))


def test_a_thread_does_what_others_have_not_begun(product: PackedLinear, alone: Tensor) -> None:
    """However many there are, on however few cores: most come late, and find all done."""
    torch.set_num_threads(64)
    for _ in range(100):
        assert torch.equal(product(ROWS), alone)


def test_threads_sleep_while_there_is_nothing_to_do(product: PackedLinear) -> None:
    torch.set_num_threads(4)
    product(ROWS)
    before = time.process_time()
    time.sleep(0.4)
    assert time.process_time() - before < 0.2, "four threads would have spun for a second and more"


def test_a_fork_has_a_team_of_its_own() -> None:
    run_alone("""
run()
child = os.fork()
if child == 0: os._exit(0 if bool((run() == 512).all()) else 1)
assert os.waitpid(child, 0)[1] == 0
""")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_a_borrowed_core_has_one_thread_which_stands_back() -> None:
    run_alone("""
core = max(os.sched_getaffinity(0))
torch.ops.outrider_native.set_cores(2, [core])
known = {*os.listdir("/proc/self/task")}
assert bool((run() == 512).all())
on_core = []
for task in {*os.listdir("/proc/self/task")} - known:
    while os.getpriority(os.PRIO_PROCESS, int(task)) < 10: time.sleep(0.001)
    on_core.append(os.sched_getaffinity(int(task)) == {core})
several = len(os.sched_getaffinity(0)) > 1
assert sorted(on_core) == [not several, True], on_core
""")


def run_alone(script: str) -> None:
    """Runs it in a process of its own, which has `run()`, a product of ones on three threads."""
    built = library.find(WorkerConfig.model_fields["compile_cache"].get_default(call_default_factory=True))
    prelude = f"""
import ctypes, os, time, torch
ctypes.CDLL({str(built)!r}, ctypes.RTLD_GLOBAL)
torch.set_num_threads(3)
x, panels = torch.ones(2, 512), torch.ones(64, 512, 16)
def run(): return torch.ops.outrider_native.linear(x, panels, None, 1024)
"""
    subprocess.run([sys.executable, "-c", prelude + script], check=True, timeout=120)
