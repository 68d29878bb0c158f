"""Choices that the last bits of logits would turn, on the bundled target. They fall alike wherever they are made, as
logits have the same bits there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from outrider.core.protocol.sampling import SamplingParams
from outrider.engine.compile.ahead import compile_ahead
from outrider.engine.engine import Engine
from outrider.engine.load.checkpoint import weights_sha256
from outrider.engine.load.folder import load_model
from outrider.engine.sample.sampler import Row, Sampler
from outrider.worker.compilation import package_path
from outrider.worker.config import default_compile_cache
from tests.engine import near_ties
from tests.engine.graphs_made_once import graph_made_once
from tests.engine.histories import random_line
from tests.engine.readings import in_company, single_steps, taken_over

pytestmark = pytest.mark.usefixtures("native_operators")

CPU = torch.device("cpu")
LINE, TIES = near_ties.line(), near_ties.recorded()
ROWS = sorted({tie.position - 1 for tie in TIES})
SLOTS = 64
OTHERS = [[token % 4096 for token in random_line(length, seed=length)] for length in (3, 40, 31)]


def engine(max_sessions: int = 4) -> Engine:
    model = load_model(near_ties.MODEL, device=CPU, dtype="float32")
    made = Engine(model, max_sessions=max_sessions, max_context=512)
    with graph_made_once(near_ties.MODEL):
        made.export()
    assert made.batch_invariant
    return made


@pytest.fixture(scope="module")
def first(native_operators: None) -> Engine:
    return engine()


@pytest.fixture(scope="module")
def alone(first: Engine) -> Tensor:
    """The logits after ROWS of LINE, [R, V], each computed in a step of its own."""
    torch.set_num_threads(1)
    return single_steps(first, LINE, ROWS)


def test_they_are_near_ties_and_the_sampler_decides_them_by_the_definition(alone: Tensor) -> None:
    logits = torch.zeros(len(LINE), alone.shape[-1])
    logits[ROWS] = alone
    best = near_ties.perturbed(logits, TIES).topk(2)
    assert len(TIES) > 2000
    assert (best.values[:, 0] - best.values[:, 1]).max() < 10 * near_ties.MARGIN
    sampler = Sampler(alone.shape[-1], SLOTS, CPU)
    chosen: list[int] = []
    for start in range(0, len(TIES), SLOTS):
        some = TIES[start : start + SLOTS]
        for slot, tie in enumerate(some):
            sampler.open(slot, SamplingParams(temperature=tie.temperature, seed=tie.seed), [1], [])
        rows = [Row(slot, tie.position) for slot, tie in enumerate(some)]
        chosen += sampler.choose(logits[[tie.position - 1 for tie in some]], rows)
    assert chosen == best.indices[:, 0].tolist()


def test_logits_have_the_same_bits_in_company(first: Engine, alone: Tensor) -> None:
    assert torch.equal(in_company(first, LINE, OTHERS)[ROWS], alone)


def test_logits_have_the_same_bits_after_failover(alone: Tensor) -> None:
    """Another engine reads what the first has committed, in pieces, beside other sessions and on other threads."""
    second = engine(max_sessions=7)
    in_company(second, OTHERS[1], OTHERS[2:])  # blocks have been in use
    assert torch.equal(taken_over(second, LINE, ROWS, OTHERS), alone)


@pytest.fixture(scope="module")
def package(native_operators: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one that `outrider run` has compiled, or a new one."""
    cached = package_path(default_compile_cache(), near_ties.MODEL, weights_sha256(near_ties.MODEL), "float32")
    if cached.exists():
        return cached
    if "OUTRIDER_TEST_COMPILED" not in os.environ:
        pytest.skip("the bundled target is not compiled here: run outrider run or make sweep")
    path = tmp_path_factory.mktemp("package") / "target.pt2"
    compile_ahead(load_model(near_ties.MODEL, device=CPU, dtype="float32"), path)
    return path


def test_logits_have_the_same_bits_across_the_switch_to_compiled(alone: Tensor, package: Path) -> None:
    moving = engine()

    def before(row: int) -> None:
        if row >= len(LINE) // 2 and moving.forward_pass == "native":
            moving.adopt(package)

    assert torch.equal(in_company(moving, LINE, OTHERS, before)[ROWS], alone)
    assert moving.forward_pass == "compiled"
