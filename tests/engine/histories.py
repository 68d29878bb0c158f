"""What sessions go through on an engine, and what their logits must then be: those of transformers on the whole text.

Each history takes a rig, so that it runs on any device and in any type. The tests that run them stand elsewhere.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from outrider.core.protocol.errors import SlotsExhaustedError
from outrider.engine.attention.registry import AUTO
from outrider.engine.engine import Engine
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.kv_cache.slots import Slot
from outrider.engine.load import self_check
from outrider.engine.load.probe import probe_layers
from tests.engine.tiny_models import VOCAB_SIZE, build

CPU = torch.device("cpu")

TOLERANCE = 2e-4
"""For float32, absolute and relative. Logits of these models are of the order of 10; sums in another order differ by
far less than this."""

HALF_TOLERANCES: Mapping[torch.dtype, float] = {torch.bfloat16: 0.15, torch.float16: 0.02}
"""Largest difference of logits in the types of 16 bits: its norm relative to theirs. Twice what the worst of the tiny
families shows; their random weights magnify rounding."""

HALF_FAMILIES = ("llama", "qwen3", "mistral", "gpt2", "gemma3", "gemma2", "deepseek")
"""Families that a rounding changes by a rounding. In gpt_oss it can send a token to another expert."""


_REFERENCES_MAX = 8192
"""Lines whose logits are kept: a history asks for the same ones whatever computes beside it. Some megabytes."""


class Rig:
    """An engine and, for comparison, the same model under transformers' own attention."""

    def __init__(
        self,
        family: str,
        *,
        device: torch.device = CPU,
        dtype: torch.dtype = torch.float32,
        max_sessions: int = 4,
        max_context: int = 128,
        attention: str = AUTO,
        captured: bool = False,
    ) -> None:
        self.engine = Engine(
            built(family, device, dtype),
            max_sessions=max_sessions,
            max_context=max_context,
            captured=captured,
            attention=attention,
        )
        self._model = family, device, dtype
        self._tolerance = HALF_TOLERANCES.get(dtype)

    def reference(self, token_ids: list[int]) -> Tensor:
        """The logits after each token, [len(token_ids), V]."""
        return _reference(*self._model, tuple(token_ids))

    def close(self, actual: Tensor, expected: Tensor) -> None:
        """Fails unless rounding explains how two tensors of logits differ."""
        if self._tolerance is None:
            torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=TOLERANCE)
            return
        actual, expected = actual.float(), expected.float()
        assert (actual - expected).norm() <= self._tolerance * expected.norm()


def built(family: str, device: torch.device, dtype: torch.dtype, *, seed: int = 0) -> PreTrainedModel:
    """A tiny model as a worker loads it: weights in `dtype`, buffers such as rotary frequencies in float32."""
    model = build(family, seed=seed)
    model.to(device)  # pyright: ignore[reportArgumentType]
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


@cache
def _transformers(family: str, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """What no test touches."""
    return built(family, device, dtype)


@lru_cache(_REFERENCES_MAX)
def _reference(family: str, device: torch.device, dtype: torch.dtype, token_ids: tuple[int, ...]) -> Tensor:
    with torch.inference_mode():
        input_ids = torch.tensor([token_ids], device=device)
        return _transformers(family, device, dtype)(input_ids=input_ids, use_cache=False).logits[0]


def random_line(length: int, seed: int) -> list[int]:
    """The same token ids for the same seed; a longer line begins with the shorter one."""
    return [_random_token(seed, index) for index in range(length)]


@cache
def _random_token(seed: int, index: int) -> int:
    return random.Random(f"{seed}/{index}").randrange(VOCAB_SIZE)


def by_family(tree: Iterable[str], others: Iterable[str]) -> list[Any]:
    """Pairs of a history and a family: the tree for each of `tree`, for it depends on how layers attend, and batches,
    whose packing does not, for each of `others`."""
    pairs = [(a_tree_equals_its_branches_alone, family) for family in tree]
    packed = sessions_in_one_step_equal_each_alone, masks_of_every_width_stand_side_by_side
    pairs += [(history, family) for history in packed for family in others]
    return [pytest.param(history, family, id=f"{history.__name__}-{family}") for history, family in pairs]


def a_tree_equals_its_branches_alone(rig: Rig) -> None:
    engine = rig.engine
    slot = engine.acquire()
    line = random_line(20, seed=1)
    engine.step([Job(slot, line[:12])])
    # 20 -+- 3 - 4 - 5 - 6
    #     +- 7 - 8
    #          - 9
    parents = [LINE_END, 0, 1, 2, LINE_END, 4, 4]
    job = Job(slot, line, parents, [3, 4, 5, 6, 7, 8, 9], wanted=range(-1, 7))
    logits = engine.step([job]).logits
    trunk_and_first = rig.reference([*line, 3, 4, 5, 6])
    rig.close(logits[0], trunk_and_first[19])
    rig.close(logits[1:5], trunk_and_first[20:24])
    rig.close(logits[5:7], rig.reference([*line, 7, 8])[20:22])
    rig.close(logits[7], rig.reference([*line, 7, 9])[21])


def sessions_in_one_step_equal_each_alone(rig: Rig) -> None:
    engine = rig.engine
    lines = [random_line(length, seed=length) for length in (1, 9, 17)]
    slots = [engine.acquire() for _ in lines]
    engine.step([Job(slots[1], lines[1][:8]), Job(slots[2], lines[2][:3])])
    jobs = [Job(slot, line, [LINE_END], [5], wanted=[LINE_END, 0]) for slot, line in zip(slots, lines, strict=True)]
    output = engine.step(jobs)
    assert output.num_rows == [2, 2, 2]
    for index, line in enumerate(lines):
        rig.close(output.logits[2 * index : 2 * index + 2], rig.reference([*line, 5])[-2:])


def masks_of_every_width_stand_side_by_side(rig: Rig) -> None:
    """Sessions whose cells fill whole blocks of a kernel, between others whose cells do not."""
    engine = rig.engine
    lines = [random_line(length, seed=length) for length in (5, 14, 30, 31)]
    slots = [engine.acquire() for _ in lines]
    for step in range(4):
        logits = engine.step(
            [
                Job(slot, line, [LINE_END, LINE_END], [5, 6], wanted=[LINE_END, 0, 1])
                for slot, line in zip(slots, lines, strict=True)
            ]
        ).logits
        for index, line in enumerate(lines):
            rig.close(logits[3 * index : 3 * index + 2], rig.reference([*line, 5])[-2:])
            rig.close(logits[3 * index + 2], rig.reference([*line, 6])[-1])
            line.append(10 + step)


def any_history_equals_a_fresh_start(rig: Rig, num_sessions: int = 12) -> None:
    """Lines that grow along the fed trees and beside them, held nodes that survive, moves in the slot."""
    engine = rig.engine
    for seed in range(num_sessions):
        rng = random.Random(seed)
        slot = engine.acquire()
        line = random_line(rng.randint(1, 12), seed)
        for _ in range(10):
            parents: list[int] = []
            token_ids: list[int] = []
            for node in range(rng.randint(0, 6)):
                parent = rng.randint(-1, node - 1)
                token_id = rng.randrange(4)
                if (parent, token_id) not in zip(parents, token_ids, strict=True):
                    parents.append(parent if parent < len(parents) else LINE_END)
                    token_ids.append(token_id)
            children = set(zip(parents, token_ids, strict=True))
            if len(children) < len(parents):
                continue
            wanted = sorted(rng.sample(range(-1, len(parents)), rng.randint(1, len(parents) + 1)))
            logits = engine.step([Job(slot, line, parents, token_ids, wanted)]).logits
            for row, node in enumerate(wanted):
                path: list[int] = []
                while node != LINE_END:
                    path.insert(0, token_ids[node])
                    node = parents[node]
                rig.close(logits[row], rig.reference([*line, *path])[-1])
            line.extend(rng.randrange(4) for _ in range(rng.randint(0, 3)))
        engine.release(slot)


def a_line_that_contradicts_what_is_held_is_fed_anew(rig: Rig) -> None:
    engine = rig.engine
    slot = engine.acquire()
    engine.step([Job(slot, random_line(10, seed=1), [LINE_END, 0], [1, 2], wanted=[1])])
    other = random_line(10, seed=1)[:6] + random_line(5, seed=2)
    rig.close(engine.step([Job(slot, other)]).logits[0], rig.reference(other)[-1])


def a_long_prompt_is_fed_in_four_chunks_beside_another(rig: Rig) -> None:
    """With 50 tokens, at 16 tokens a step, of which the other takes 3, 1, 1 and 1."""
    engine = rig.engine
    long, short = engine.acquire(), engine.acquire()
    long_line, short_line = random_line(50, seed=4), random_line(3, seed=5)
    for num_long_rows in (None, None, None, 1):
        output = engine.step([Job(short, short_line), Job(long, long_line)], 16)
        assert output.num_rows == [1, num_long_rows]
        rig.close(output.logits[0], rig.reference(short_line)[-1])
        short_line.append(1)
        if num_long_rows:
            rig.close(output.logits[1], rig.reference(long_line)[-1])


def a_step_that_fails_half_way_leaves_no_trace(rig: Rig) -> None:
    """Half way: cells have moved, and a Llama's layers have written their keys and values."""
    engine = rig.engine
    slot, other = engine.acquire(), engine.acquire()
    line, other_line = random_line(10, seed=6), random_line(4, seed=7)
    engine.step([Job(slot, line, [LINE_END, LINE_END, 1], [1, 2, 3], wanted=[0, 2]), Job(other, other_line)])
    line.append(2)
    other_line.append(5)
    jobs = [Job(slot, line, [LINE_END], [3], wanted=[0]), Job(other, other_line)]

    def fail(*_: object) -> None:
        raise RuntimeError("half way")

    second_product = engine._model.decoder.model.get_submodule("model.layers.1.self_attn.o_proj")
    with second_product.register_forward_pre_hook(fail), pytest.raises(RuntimeError, match="half way"):
        engine.step(jobs)
    logits = engine.step(jobs).logits
    rig.close(logits[0], rig.reference([*line, 3])[-1])
    rig.close(logits[1], rig.reference(other_line)[-1])


def slots_are_bounded_and_forget(rig: Rig) -> None:
    """With room for one session."""
    engine = rig.engine
    slot = engine.acquire()
    with pytest.raises(SlotsExhaustedError, match="--max-sessions"):
        engine.acquire()
    engine.step([Job(slot, random_line(8, seed=7))])
    engine.release(slot)
    line = random_line(8, seed=8)
    rig.close(engine.step([Job(engine.acquire(), line)]).logits[0], rig.reference(line)[-1])


def a_beginning_that_another_session_has_computed(rig: Rig) -> None:
    """Two blocks of it. The other session ends, and the one that it has helped goes on."""
    num_shared = 2 * rig.engine.blocks.block_cells
    first, second = rig.engine.acquire(), rig.engine.acquire()
    line = random_line(num_shared + 8, seed=1)
    _run_to_the_end(rig, Job(first, line))
    other = [*line[: num_shared + 3], *random_line(9, seed=2)]
    check_fork(rig, _run_to_the_end(rig, forked(second, other)), other)
    assert second.num_cached_tokens == num_shared
    assert first.blocks[:2] == second.blocks[:2]
    assert rig.engine.blocks.num_tokens_found == num_shared
    rig.engine.release(first)
    other.append(3)
    check_fork(rig, rig.engine.step([forked(second, other)]).logits, other)


def blocks_that_lie_between_those_of_others(rig: Rig) -> None:
    """Sessions that grow side by side take blocks in turn. Lines go along the fed trees and beside them."""
    block_cells = rig.engine.blocks.block_cells
    lines = [random_line(block_cells - missing, seed=missing) for missing in (6, 3, 1)]
    slots = [rig.engine.acquire() for _ in lines]
    for slot, line in zip(slots, lines, strict=True):
        _run_to_the_end(rig, Job(slot, line))
    for step in range(20):
        logits = rig.engine.step([forked(slot, line) for slot, line in zip(slots, lines, strict=True)]).logits
        for index, line in enumerate(lines):
            if step % 4 == index:
                check_fork(rig, logits[4 * index : 4 * index + 4], line)
            line.extend(([5], [3, 4], [3, 7], [9])[(step + index) % 4])
    in_a_row = [slot.blocks == list(range(slot.blocks[0], slot.blocks[0] + len(slot.blocks))) for slot in slots]
    assert sum(in_a_row) <= 1


def a_session_that_had_to_forget_goes_on(rig: Rig) -> None:
    blocks = rig.engine.blocks
    slot, line = rig.engine.acquire(), random_line(2 * blocks.block_cells + 8, seed=1)
    before = _run_to_the_end(rig, forked(slot, line))
    rig.engine.forget(slot)
    assert (slot.blocks, slot.cached_prefix, slot.cells) == ([], [], {})
    assert blocks.num_available == blocks.num_blocks
    rig.close(rig.engine.step([forked(slot, line)]).logits, before)
    assert slot.num_cached_tokens == 2 * blocks.block_cells
    line.extend([3, 4, 6])
    check_fork(rig, rig.engine.step([forked(slot, line)]).logits, line)


def _run_to_the_end(rig: Rig, job: Job) -> Tensor:
    while True:
        output = rig.engine.step([job])
        if output.num_rows != [None]:
            return output.logits


def forked(slot: Slot, line: list[int]) -> Job:
    """A tree of two branches below `line`, whose every token's logits are wanted."""
    return Job(slot, line, [LINE_END, 0, LINE_END], [3, 4, 5], wanted=range(LINE_END, 3))


def check_fork(rig: Rig, logits: Tensor, line: list[int]) -> None:
    """Fails unless `logits` are those of `forked`."""
    rig.close(logits[:3], rig.reference([*line, 3, 4])[-3:])
    rig.close(logits[3], rig.reference([*line, 5])[-1])


def a_whole_model_traces_into_one_graph(rig: Rig) -> None:
    """No graph break: the attention is one opaque operator, and its caches are written as a side effect."""
    engine = rig.engine
    model = engine._model.decoder.model
    slot = engine.acquire()
    line = random_line(6, seed=9)
    engine.step([Job(slot, line[:5])])
    torch._dynamo.reset()  # graphs of other tests count against the compiler's limit
    model.forward = torch.compile(model.forward, backend="aot_eager", fullgraph=True)
    job = Job(slot, line, [LINE_END, LINE_END], [1, 2], wanted=[LINE_END, 0, 1])
    logits = engine.step([job]).logits
    rig.close(logits[:2], rig.reference([*line, 1])[-2:])
    rig.close(logits[2], rig.reference([*line, 2])[-1])
    line.append(2)
    rig.close(engine.step([Job(slot, line)]).logits[0], rig.reference(line)[-1])


def the_self_check_passes_what_is_right(
    family: str, device: torch.device, dtype: torch.dtype, attention: str = AUTO
) -> None:
    model = built(family, device, dtype)
    expected = self_check.reference(model, probe_layers(model), 64)
    self_check.check(Engine(model, max_sessions=1, max_context=64, attention=attention), expected)
