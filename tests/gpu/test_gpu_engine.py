"""The ragged engine computes on a CUDA device what transformers computes there. See `histories` for the tolerances."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.engine import Engine
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.load import self_check
from outrider.engine.load.folder import load_model
from outrider.engine.load.probe import probe_layers
from tests.engine import histories
from tests.engine.histories import HALF_FAMILIES, HALF_TOLERANCES, Rig, built, random_line
from tests.engine.tiny_models import FAMILIES, build
from tests.gpu.device import CUDA, never_waiting, on_cuda

pytestmark = on_cuda()

WITH_LONG_CONTEXT = tuple(family for family in FAMILIES if family != "gpt2")
"""Families whose positions go beyond two of a GPU's blocks."""

BACKENDS = ("auto", "torch")
"""The kernels where they work, and what serves where they do not."""

half_types = pytest.mark.parametrize("dtype", HALF_TOLERANCES, ids=str)


@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tree_of_each_family_equals_its_branches_alone(family: str, attention: str) -> None:
    histories.a_tree_equals_its_branches_alone(Rig(family, device=CUDA, attention=attention))


@half_types
@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("family", HALF_FAMILIES)
def test_a_tree_in_16_bits_equals_its_branches_alone(family: str, attention: str, dtype: torch.dtype) -> None:
    histories.a_tree_equals_its_branches_alone(Rig(family, device=CUDA, dtype=dtype, attention=attention))


@pytest.mark.parametrize("family", FAMILIES)
def test_sessions_in_one_step_equal_each_alone(family: str) -> None:
    histories.sessions_in_one_step_equal_each_alone(Rig(family, device=CUDA))


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_of_every_width_stand_side_by_side(family: str) -> None:
    histories.masks_of_every_width_stand_side_by_side(Rig(family, device=CUDA))


@half_types
@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("family", HALF_FAMILIES)
def test_masks_of_every_width_stand_side_by_side_in_16_bits(family: str, attention: str, dtype: torch.dtype) -> None:
    histories.masks_of_every_width_stand_side_by_side(Rig(family, device=CUDA, dtype=dtype, attention=attention))


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral", "gpt2"])
def test_any_history_equals_a_fresh_start(family: str) -> None:
    histories.any_history_equals_a_fresh_start(Rig(family, device=CUDA))


def test_a_line_that_contradicts_what_is_held_is_fed_anew() -> None:
    histories.a_line_that_contradicts_what_is_held_is_fed_anew(Rig("llama", device=CUDA))


def test_a_long_prompt_is_fed_in_chunks_beside_others() -> None:
    histories.a_long_prompt_is_fed_in_four_chunks_beside_another(Rig("gemma3", device=CUDA))


def test_a_step_that_fails_half_way_leaves_no_trace() -> None:
    histories.a_step_that_fails_half_way_leaves_no_trace(Rig("llama", device=CUDA))


@pytest.mark.parametrize("family", WITH_LONG_CONTEXT)
def test_a_beginning_that_another_session_has_computed(family: str) -> None:
    histories.a_beginning_that_another_session_has_computed(Rig(family, device=CUDA, max_context=600))


@pytest.mark.parametrize("family", WITH_LONG_CONTEXT)
def test_blocks_that_lie_between_those_of_others(family: str) -> None:
    histories.blocks_that_lie_between_those_of_others(Rig(family, device=CUDA, max_context=600))


@pytest.mark.parametrize("family", WITH_LONG_CONTEXT)
def test_a_session_that_had_to_forget_goes_on(family: str) -> None:
    histories.a_session_that_had_to_forget_goes_on(Rig(family, device=CUDA, max_context=600))


def test_slots_are_bounded_and_forget() -> None:
    histories.slots_are_bounded_and_forget(Rig("llama", device=CUDA, max_sessions=1))


def test_caches_that_find_no_room_are_refused_in_words() -> None:
    with pytest.raises(UnsupportedModelError, match="lower --kv-memory, --max-sessions or --max-context"):
        Engine(built("llama", CUDA, torch.float32), max_sessions=1, max_context=10**10)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_self_check_passes_what_is_right(family: str) -> None:
    histories.the_self_check_passes_what_is_right(family, CUDA, torch.float32)


@half_types
@pytest.mark.parametrize("family", HALF_FAMILIES)
def test_the_self_check_passes_what_is_right_in_16_bits(family: str, dtype: torch.dtype) -> None:
    histories.the_self_check_passes_what_is_right(family, CUDA, dtype)


def test_the_self_check_finds_what_is_wrong() -> None:
    other = built("llama", CUDA, torch.float32, seed=1)
    expected = self_check.reference(other, probe_layers(other), 64)
    with pytest.raises(UnsupportedModelError, match="off by"):
        self_check.check(Engine(built("llama", CUDA, torch.float32), max_sessions=1, max_context=64), expected)


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma3"])
def test_a_whole_model_traces_into_one_graph(family: str) -> None:
    histories.a_whole_model_traces_into_one_graph(Rig(family, device=CUDA))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TOLERANCES], ids=str)
@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("family", HALF_FAMILIES)
def test_a_step_never_waits_for_the_device(family: str, attention: str, dtype: torch.dtype) -> None:
    engine = Rig(family, device=CUDA, dtype=dtype, attention=attention).engine
    slot, other = engine.acquire(), engine.acquire()
    line = random_line(5, seed=1)
    with never_waiting():
        engine.step([Job(slot, line, [LINE_END, LINE_END, 1], [1, 2, 3], wanted=range(-1, 3))])
        line.append(2)
        output = engine.step([Job(slot, line, [LINE_END], [3], wanted=[0]), Job(other, random_line(20, seed=2))])
    assert output.num_rows == [1, 1]
    assert output.logits.device == engine.device == CUDA


def test_a_folder_is_loaded_onto_the_device(tmp_path: Path) -> None:
    build("qwen3").save_pretrained(tmp_path)
    model = load_model(tmp_path, device=CUDA, dtype="bfloat16")
    assert {tensor.device for tensor in (*model.parameters(), *model.buffers())} == {CUDA}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
