"""The bench of a device, but for the device: its rows, the floor, its rounds, its table, and the whole on a CPU."""

from __future__ import annotations

import io
import itertools
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from rich.console import Console

from bench.columns import MARK
from bench.compare.quote import misquoted, quote
from bench.gpu import device, kernels, pieces
from bench.gpu.clock import clock_of
from bench.gpu.floor import Reach, Row, floor_ms
from bench.gpu.loading import NoRoomError, loaded
from bench.gpu.options import TINY, DtypeName, GpuOptions, ShapeName
from bench.gpu.plan import Growth, plan
from bench.gpu.result import GOALS, Result, show
from bench.gpu.rounds import Rounds, choose, forced, most_committed
from bench.gpu.run import run
from bench.gpu.shapes import filled, pair_of, reads_of, skeleton
from bench.records import as_json, from_json
from outrider.cli.__main__ import main
from outrider.engine.batch import PackedBatch
from outrider.plan.shape import SHAPES

CPU = torch.device("cpu")

H200 = Reach(gb_per_s=4800.0, tflops=800.0)
"""As the review of the GPU path took it to be."""

OPTIONS = GpuOptions(
    device="cpu",
    shape=TINY,
    dtype=DtypeName.FLOAT32,
    sessions=(1, 3),
    tokens=(1, 6),
    draft_tokens=(2,),
    contexts=(40, 20),
    num_rounds=1,
)


class PlayedClock:
    """Each moment is so many ms after the one before, whatever was done meanwhile."""

    def __init__(self, step_ms: float) -> None:
        self._moments = itertools.count(step=step_ms)

    def now(self) -> float:
        return next(self._moments)

    def ms(self, first: float, last: float) -> float:
        return last - first


@pytest.fixture(scope="module")
def result() -> Result:
    """All of it on the CPU, but for the time."""
    return run(OPTIONS, Console(quiet=True), lambda _: PlayedClock(1.5))


# The floor.


@pytest.mark.parametrize(
    ("row", "expected_ms"),
    [
        *((Row(1, 9, 2048), 3.2), (Row(1, 9, 16384), 3.6), (Row(1, 32, 16384), 3.6)),
        *((Row(16, 1, 2048), 4.0), (Row(16, 9, 2048), 4.0), (Row(16, 9, 16384), 10.3)),
        *((Row(64, 1, 2048), 6.7), (Row(64, 9, 2048), 14.4), (Row(64, 32, 2048), 42.0)),
    ],
    ids=str,
)
def test_the_floor_of_a_target_of_8b(row: Row, expected_ms: float) -> None:
    """By hand for each: weights or products, then keys and values."""
    target = skeleton(pair_of(ShapeName.LLAMA).target, torch.bfloat16)
    reads = reads_of(target, SHAPES["llama-3.1-8b"].kv_bytes_per_token)
    assert reads.weight_bytes == pytest.approx(15.0e9, rel=1e-3)
    assert floor_ms(reads, row, H200) == pytest.approx(expected_ms, abs=0.06)


def test_the_floor_of_a_draft_counts_its_tied_embeddings_once() -> None:
    draft = skeleton(pair_of(ShapeName.LLAMA).draft, torch.bfloat16)
    reads = reads_of(draft, SHAPES["llama-3.2-1b"].kv_bytes_per_token)
    assert reads.weight_bytes == pytest.approx(2 * SHAPES["llama-3.2-1b"].num_parameters, rel=5e-3)
    assert floor_ms(reads, Row(1, 1, 2048), H200) == pytest.approx(0.53, abs=0.005)


@pytest.mark.parametrize(
    ("shape", "target", "draft"),
    [(ShapeName.LLAMA, "llama-3.1-8b", "llama-3.2-1b"), (ShapeName.QWEN3, "qwen3-8b", "qwen3-1.7b")],
)
def test_shapes_are_those_of_published_models(shape: ShapeName, target: str, draft: str) -> None:
    for config, name in zip(pair_of(shape), (target, draft), strict=True):
        num_weights = sum(weight.numel() for weight in skeleton(config, torch.bfloat16).parameters())
        assert num_weights == pytest.approx(SHAPES[name].num_parameters, rel=5e-3)
        assert (config.num_hidden_layers, config.num_key_value_heads, config.head_dim) == SHAPES[name][2:5]


def test_random_weights_follow_from_the_seed() -> None:
    config = pair_of(TINY).draft
    models = [filled(skeleton(config, torch.float32), CPU, seed) for seed in (1, 1, 2)]
    token_ids = torch.arange(9)[None]
    one, same, other = (model(input_ids=token_ids, use_cache=False).logits for model in models)
    assert torch.isfinite(one).all()
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    head: Any = models[0].get_output_embeddings()
    embedding: Any = models[0].get_input_embeddings()
    assert head.weight is embedding.weight


# The rows.


def test_rows_grow_by_context_and_those_without_room_are_named() -> None:
    growth = Growth(num_rounds=4, num_tokens=10)
    needed = growth.cells(100)
    planned = plan((3, 1), (9, 1), (1000, 100), growth, kv_tokens_max=3 * needed)
    assert planned.rows == [
        *(Row(1, 1, 100), Row(1, 9, 100), Row(3, 1, 100), Row(3, 9, 100)),
        *(Row(1, 1, 1000), Row(1, 9, 1000)),
    ]
    assert planned.no_room == [Row(3, 1, 1000), Row(3, 9, 1000)]
    assert planned.kv_tokens == max(3 * needed, growth.cells(1000))


def test_a_device_without_room_for_any_row_is_refused_in_words() -> None:
    crowded = replace(OPTIONS, sessions=(1 << 40,))
    with pytest.raises(NoRoomError, match="fewer --sessions"):
        loaded("target", pair_of(TINY).target, (1,), crowded, CPU)


# Rounds.


class Counting:
    """A forward pass that takes no batch, and counts the tokens of all that it is offered."""

    path = "counted"

    def __init__(self) -> None:
        self.num_tokens: list[int] = []

    def run(self, batch: PackedBatch) -> None:
        self.num_tokens.append(len(batch.token_ids))


@pytest.mark.parametrize("rate", [0.0, 0.6, 1.0])
def test_a_round_feeds_what_its_row_says_whatever_is_accepted(rate: float) -> None:
    row = Row(3, 6, 20)
    model = loaded("target", pair_of(TINY).target, (6,), OPTIONS, CPU)
    rounds = Rounds(model.engine, choose, forced(rate, 5), PlayedClock(1.0))
    rounds.prepare(row)
    counting = Counting()
    model.engine.model.forwards.insert(0, counting)
    lengths = [sum(map(len, rounds.lines))]
    for _ in range(4):
        taken = rounds.step(row)
        lengths.append(sum(map(len, rounds.lines)))
        assert lengths[-1] - lengths[-2] == taken.num_accepted + row.num_sessions
        if rate in (0.0, 1.0):
            assert taken.num_accepted == rate * row.num_sessions * 3  # six tokens: three levels below the line's end
    assert counting.num_tokens == [18] * 4
    assert max(len(line) for line in rounds.lines) <= 20 + 4 * most_committed(6)
    rounds.prepare(Row(1, 6, 12))
    assert [len(line) for line in rounds.lines] == [12, 0, 0]


def test_what_is_accepted_is_forced_by_a_rate_and_a_seed() -> None:
    num_levels, rate = 4, 0.7
    accepted = forced(rate, 1)
    found = [accepted(session, position, num_levels) for session in range(40) for position in range(100)]
    assert found == [forced(rate, 1)(session, position, 4) for session in range(40) for position in range(100)]
    expected = sum(rate**level for level in range(1, num_levels + 1))
    assert fmean(found) == pytest.approx(expected, abs=0.1)
    assert {forced(0.0, 1)(0, 0, 4), forced(1.0, 1)(0, 0, 4)} == {0, 4}


# The whole.


def test_every_row_is_measured_beside_its_floor(result: Result) -> None:
    assert {(each.role, *each.row) for each in result.rows} == {
        *(("target", *row) for row in itertools.product((1, 3), (1, 6), (20, 40))),
        *(("draft", sessions, 2, context) for sessions, context in itertools.product((1, 3), (20, 40))),
    }
    reach = Reach(result.gb_per_s, result.tflops)
    for each in result.rows:
        reads = reads_of(
            skeleton(pair_of(TINY)._asdict()[each.role], torch.float32), result.engines[each.role].kv_bytes_per_token
        )
        assert each.floor_ms == pytest.approx(floor_ms(reads, each.row, reach), rel=2e-3)
        assert (each.forward_ms, each.step_ms, each.attention_ms) == (1.5, 3.0, 0.0)
        assert each.path == "eager"
        assert each.kernels_per_layer is None
        assert (each.tokens_per_second is None) == (each.role == "draft")
    bare = [each.tokens_per_second for each in result.rows if each.role == "target" and each.num_tokens == 1]
    assert bare == [pytest.approx(each, rel=1e-3) for each in (1e3 / 3, 1e3, 1e3 / 3, 1e3)]
    assert not result.no_room


def test_the_parts_of_the_first_session_on_a_gpu_are_there(result: Result) -> None:
    names = [piece.name for piece in result.pieces]
    assert names[0] == "forward pass over 1 token: weights alone"
    assert [name for name in names if name.startswith("choice")] == [
        f"choice: {num_rows} rows, {about}" for about in pieces.CHOICES for num_rows in (9, 144, 576)
    ]
    assert [name for name in names if name.startswith("launch")] == [
        f"launch, {how} (eager): {what}"
        for how in ("as served", "told to be eager")
        for what in ("whole step", "until it is queued")
    ]
    assert all(math.isfinite(piece.ms) for piece in result.pieces)


def test_the_table_is_shown_kept_and_quoted(result: Result, tmp_path: Path) -> None:
    console = Console(record=True, width=118, file=io.StringIO())
    show(result, console)
    shown = console.export_text()
    assert "target 3 x 6, 40" in shown
    assert "these figures mean nothing" in shown
    assert "vLLM" not in shown
    assert "kernels" not in shown
    kept = json.loads(json.dumps(as_json(result)))
    assert from_json(Result, kept) == result
    file = tmp_path / "gpu-tiny.json"
    file.write_text(json.dumps(kept))
    page = quote(file, tmp_path)
    assert misquoted(page, tmp_path) == []
    assert "| draft 1 x 2, 20 |" in page


@pytest.mark.parametrize(("role", "goal"), GOALS.items())
def test_what_is_beyond_its_goal_is_marked(result: Result, role: str, goal: float) -> None:
    measured = next(each for each in result.rows if each.role == role)
    for ratio, misses in ((goal, False), (goal + 0.01, True)):
        judged = replace(result, rows=[replace(measured, floor_ms=1.0, step_ms=ratio, rival_ms=0.5)])
        console = Console(record=True, width=118, file=io.StringIO())
        show(judged, console)
        text = console.export_text()
        assert (f"{ratio:.2f}{MARK}" in text) == misses
        assert "0.50" in text
        assert f"{int(misses)} of 1 are beyond 1.4 (target) or 1.5 (draft)" in " ".join(text.split())


def test_the_hosts_clock_goes_on() -> None:
    clock = clock_of(CPU)
    first = clock.now()
    assert 0.0 <= clock.ms(first, clock.now()) <= clock.ms(first, clock.now())


# The device.


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "device_count", lambda: 0)
        yield


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("flags", ["", "--device cuda:1 --shape qwen3", "--device cpu"])
def test_where_there_is_no_gpu_it_says_what_it_needs(
    flags: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["outrider", "bench", "gpu", *flags.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    said = capfd.readouterr()
    assert said.out == ""
    [sentence] = said.err.splitlines()
    assert "finds none here; run it where there are an NVIDIA GPU, its driver and a torch that is built" in sentence


def test_what_a_result_says_of_its_machine(result: Result) -> None:
    assert {"processor", "cores", "torch", "triton", "device"} <= result.machine.keys()
    assert device.told("580.95.05, 700.00 W, 3201 MHz\n") == {
        "driver": "580.95.05",
        "power_limit": "700.00 W",
        "memory_clock": "3201 MHz",
    }


def test_copies_are_no_kernels() -> None:
    names = ["attend", "Memcpy HtoD (Pinned -> Device)", "nvjet_tst", "Memset (Device)", "attend"]
    assert kernels.num_among(names) == 3
    assert kernels.num_kernels(lambda: None, CPU) is None
