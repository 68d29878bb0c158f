"""The ragged engine computes what transformers computes, whatever is packed, branched, rolled back or resumed."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from outrider.core.errors import SlotsExhaustedError, UnsupportedModelError
from outrider.engine import engine as engine_module
from outrider.engine import self_check
from outrider.engine.batch import pack
from outrider.engine.engine import Engine
from outrider.engine.jobs import LINE_END, Job, plan
from tests.engine.tiny_models import FAMILIES, VOCAB_SIZE, build

TOLERANCE = 2e-4
"""Logits of these models are of the order of 10; fp32 sums in another order differ by far less than this."""


def reference(model: PreTrainedModel, token_ids: list[int]) -> Tensor:
    """The logits after each token by transformers' own attention, [len(token_ids), V]."""
    with torch.inference_mode():
        return model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0]


def random_line(length: int, seed: int) -> list[int]:
    return [random.Random(f"{seed}/{index}").randrange(VOCAB_SIZE) for index in range(length)]


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=TOLERANCE)


def engine_of(family: str, max_sessions: int = 4) -> tuple[Engine, PreTrainedModel]:
    return Engine(build(family), max_sessions=max_sessions, max_context=128), build(family)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tree_of_each_family_equals_its_branches_alone(family: str) -> None:
    engine, model = engine_of(family)
    slot = engine.acquire()
    line = random_line(20, seed=1)
    engine.step([Job(slot, line[:12])])
    # 20 -+- 3 - 4 - 5 - 6
    #     +- 7 - 8
    #          - 9
    parents = [LINE_END, 0, 1, 2, LINE_END, 4, 4]
    job = Job(slot, line, parents, [3, 4, 5, 6, 7, 8, 9], wanted=range(-1, 7))
    logits = engine.step([job]).logits
    trunk_and_first = reference(model, [*line, 3, 4, 5, 6])
    close(logits[0], trunk_and_first[19])
    close(logits[1:5], trunk_and_first[20:24])
    close(logits[5:7], reference(model, [*line, 7, 8])[20:22])
    close(logits[7], reference(model, [*line, 7, 9])[21])


@pytest.mark.parametrize("family", FAMILIES)
def test_sessions_in_one_step_equal_each_alone(family: str) -> None:
    engine, model = engine_of(family)
    lines = [random_line(length, seed=length) for length in (1, 9, 17)]
    slots = [engine.acquire() for _ in lines]
    engine.step([Job(slots[1], lines[1][:8]), Job(slots[2], lines[2][:3])])
    jobs = [Job(slot, line, [LINE_END], [5], wanted=[LINE_END, 0]) for slot, line in zip(slots, lines, strict=True)]
    output = engine.step(jobs)
    assert output.num_rows == [2, 2, 2]
    for index, line in enumerate(lines):
        close(output.logits[2 * index : 2 * index + 2], reference(model, [*line, 5])[-2:])


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral"])
def test_any_history_equals_a_fresh_start(family: str) -> None:
    """Lines that grow along and beside the fed trees, held nodes that survive, moves in the slot: logits as if fresh."""
    engine, model = engine_of(family)
    for seed in range(12):
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
                close(logits[row], reference(model, [*line, *path])[-1])
            line.extend(rng.randrange(4) for _ in range(rng.randint(0, 3)))
        engine.release(slot)


def test_a_line_that_contradicts_what_is_held_is_fed_anew() -> None:
    engine, model = engine_of("llama")
    slot = engine.acquire()
    engine.step([Job(slot, random_line(10, seed=1), [LINE_END, 0], [1, 2], wanted=[1])])
    other = random_line(10, seed=1)[:6] + random_line(5, seed=2)
    close(engine.step([Job(slot, other)]).logits[0], reference(model, other)[-1])


def test_only_what_is_not_held_is_fed() -> None:
    engine, _ = engine_of("llama")
    slot = engine.acquire()
    line = random_line(10, seed=3)
    engine.step([Job(slot, line, [LINE_END, 0, LINE_END], [1, 2, 3], wanted=[LINE_END, 0, 1, 2])])
    line.extend([1, 2, 9])
    feed = plan(Job(slot, line), max_tokens=512)
    assert (feed.token_ids, feed.positions) == ([9], [12])
    assert slot.cells == {}


def test_a_long_prompt_is_fed_in_chunks_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "STEP_TOKENS_MAX", 16)
    engine, model = engine_of("gemma3")
    long, short = engine.acquire(), engine.acquire()
    long_line, short_line = random_line(50, seed=4), random_line(3, seed=5)
    results: list[int | None] = []
    for _ in range(4):
        output = engine.step([Job(long, long_line), Job(short, short_line)])
        results.append(output.num_rows[0])
        assert output.num_rows[1] == 1
        close(output.logits[-1], reference(model, short_line)[-1])
        short_line.append(1)
    assert results == [None, None, None, 1]
    close(output.logits[0], reference(model, long_line)[-1])


def test_a_failed_step_leaves_no_trace() -> None:
    engine, model = engine_of("llama")
    slot = engine.acquire()
    line = random_line(10, seed=6)
    engine.step([Job(slot, line)])
    with pytest.raises(IndexError):
        engine.step([Job(slot, line, [LINE_END], [VOCAB_SIZE + 5], wanted=[0])])
    line.append(2)
    close(engine.step([Job(slot, line)]).logits[0], reference(model, line)[-1])


def test_slots_are_bounded_and_forget() -> None:
    engine, model = engine_of("llama", max_sessions=1)
    slot = engine.acquire()
    with pytest.raises(SlotsExhaustedError, match="--max-sessions"):
        engine.acquire()
    engine.step([Job(slot, random_line(8, seed=7))])
    engine.release(slot)
    line = random_line(8, seed=8)
    close(engine.step([Job(engine.acquire(), line)]).logits[0], reference(model, line)[-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_self_check_passes_what_is_right(family: str) -> None:
    model = build(family)
    expected = self_check.reference_logits(model)
    self_check.check(Engine(model, max_sessions=1, max_context=64), expected)


def test_the_self_check_finds_what_is_wrong() -> None:
    model = build("llama")
    expected = self_check.reference_logits(build("llama", seed=1))
    with pytest.raises(UnsupportedModelError, match="off by"):
        self_check.check(Engine(model, max_sessions=1, max_context=64), expected)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            lambda: BloomForCausalLM(BloomConfig(vocab_size=61, hidden_size=32, n_layer=2, n_head=4)), id="bloom"
        ),
        pytest.param(
            lambda: MambaForCausalLM(MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2)), id="mamba"
        ),
        pytest.param(
            lambda: RecurrentGemmaForCausalLM(
                RecurrentGemmaConfig(
                    vocab_size=61,
                    hidden_size=32,
                    num_hidden_layers=3,
                    num_attention_heads=2,
                    head_dim=16,
                    pad_token_id=0,
                )
            ),
            id="recurrent_gemma",
        ),
    ],
)
def test_models_without_the_attention_interface_are_refused_in_words(model) -> None:
    with pytest.raises(UnsupportedModelError, match="attention"):
        Engine(model().eval(), max_sessions=1, max_context=64)


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma3"])
def test_a_whole_model_traces_into_one_graph(family: str) -> None:
    """No graph break: the attention is one opaque operator, and its caches are written as a side effect."""
    engine, model = engine_of(family)
    ragged = engine._model
    slot = engine.acquire()
    line = random_line(6, seed=9)
    engine.step([Job(slot, line[:5])])
    ragged._model.forward = torch.compile(ragged._model.forward, backend="aot_eager", fullgraph=True)
    job = Job(slot, line, [LINE_END, LINE_END], [1, 2], wanted=[LINE_END, 0, 1])
    logits = engine.step([job]).logits
    close(logits[:2], reference(model, [*line, 1])[-2:])
    close(logits[2], reference(model, [*line, 2])[-1])
    line.append(2)
    close(engine.step([Job(slot, line)]).logits[0], reference(model, line)[-1])


def test_batches_have_few_shapes() -> None:
    engine, _ = engine_of("llama")
    slot = engine.acquire()
    feeds = [plan(Job(slot, random_line(5, seed=0)), max_tokens=512)]
    batch = pack(feeds, (None,), scratch_cell=99)
    assert batch.token_ids.shape == (1, 8)
    assert batch.write_cells.tolist() == [0, 1, 2, 3, 4, 99, 99, 99]
    assert batch.num_rows == 1
