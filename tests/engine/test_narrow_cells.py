"""A KV cache in eight bits: the engine computes what a model over such keys and values computes, and says how far that
is from the model's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.attention.interface import ModelFacts, model_facts
from outrider.engine.attention.native import NativeAttention
from outrider.engine.attention.registry import select
from outrider.engine.engine import Engine
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.kv_cache.cells import FP8, stored
from outrider.engine.kv_cache.slots import Move
from outrider.engine.load import self_check
from outrider.engine.load.probe import LayerFacts, probe_layers
from tests.e2e.stack import load_tiny, save_tiny
from tests.engine.histories import random_line
from tests.engine.tiny_models import MAX_CONTEXT, build

LAYER = LayerFacts(num_heads=4, num_kv_heads=2, key_size=64, value_size=64, window=None)
ON_CPU = ModelFacts([LAYER], torch.float32, torch.device("cpu"), kv_cache_dtype=FP8)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "deepseek"])
def test_it_computes_what_the_model_computes_over_such_cells(family: str) -> None:
    """Windows, soft-capping, sinks, and keys and values of different sizes."""
    model = build(family)
    layers = probe_layers(model)
    narrow = self_check.reference(model, layers, MAX_CONTEXT, FP8)
    exact = self_check.reference(model, layers, MAX_CONTEXT)
    engine = Engine(model, max_sessions=2, max_context=MAX_CONTEXT, kv_cache_dtype=FP8)
    self_check.check(engine, narrow)
    with pytest.raises(UnsupportedModelError, match="logits are off by"):
        self_check.check(engine, exact)
    found = self_check.effect(engine, exact)
    assert 1e-3 < found.largest_difference < 1.0
    assert 0.5 < found.same_choices <= 1.0
    assert not engine.batch_invariant


def test_cells_of_the_models_type_have_no_effect() -> None:
    model = build("llama")
    exact = self_check.reference(model, probe_layers(model), MAX_CONTEXT)
    found = self_check.effect(Engine(model, max_sessions=1, max_context=MAX_CONTEXT), exact)
    assert found.largest_difference < 1e-4
    assert found.same_choices == 1.0


def test_a_token_is_the_same_in_whatever_pieces_its_line_came() -> None:
    engine = Engine(build("llama"), max_sessions=2, max_context=MAX_CONTEXT, kv_cache_dtype=FP8)
    line = random_line(50, seed=1)
    whole, pieces = engine.acquire(shares=False), engine.acquire(shares=False)
    expected = engine.step([Job(whole, line)]).logits[0]
    engine.step([Job(pieces, line[:20])])
    engine.step(
        [Job(pieces, line[:30], [LINE_END, LINE_END, 1], [7, line[30], line[31]], wanted=range(3))]
    )  # a branch wins
    found = engine.step([Job(pieces, line)]).logits[0]
    assert torch.allclose(found, expected, atol=1e-4)


def test_a_cell_takes_a_byte_and_moves_as_it_is() -> None:
    model = build("llama")
    assert (
        model_facts(model)._replace(kv_cache_dtype=FP8).kv_bytes_per_token * 4 == model_facts(model).kv_bytes_per_token
    )
    cache = Engine(model, max_sessions=1, max_context=MAX_CONTEXT, kv_cache_dtype=FP8).model.cache
    cache.keys[1][3] = torch.full((2, 8), -1.5).to(FP8)
    cache.move([Move(3, 5)])
    assert cache.keys[1][5].float().eq(-1.5).all()
    assert cache.keys[1].dtype == FP8


def test_beyond_its_largest_number_a_cell_takes_that() -> None:
    found = stored(torch.tensor([1e6, -1e6, 0.3, 0.0]), FP8).float()
    assert found.tolist() == [448.0, -448.0, 0.3125, 0.0]


def test_who_reads_no_such_cells_is_refused_in_words() -> None:
    with pytest.raises(
        UnsupportedModelError, match="model's own type alone; use torch or tree, or --kv-cache-dtype auto"
    ):
        select(NativeAttention.name, ON_CPU)


def test_the_start_says_what_it_does_to_tokens(tmp_path: Path) -> None:
    folder = save_tiny(build("llama", layers=1), tmp_path)
    with capture_logs() as logs:
        info = load_tiny(folder, kv_cache_dtype="fp8").info
    [said] = [log for log in logs if log["event"].startswith("narrower keys and values")]
    assert 0.0 < said["largest_logit_difference"] < 1.0
    assert 0.5 < said["same_greedy_choices"] <= 1.0
    assert (info.kv_cache_dtype, info.weights, info.attention) == ("fp8", "full", "torch")
    assert not info.batch_invariant
