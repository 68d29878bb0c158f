"""The ragged engine computes what transformers computes, whatever is packed, branched, rolled back or resumed."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.attention.masks import MASK_ALIGNMENT, NO_MASK, spans_and_masks
from outrider.engine.attention.native import described
from outrider.engine.batch import pack
from outrider.engine.engine import Engine
from outrider.engine.jobs import LINE_END, Job, plan
from outrider.engine.kv_cache.slots import TREE_CELLS_MAX
from outrider.engine.load import self_check
from outrider.engine.load.probe import probe_layers
from tests.engine import histories
from tests.engine.histories import CPU, HALF_FAMILIES, HALF_TOLERANCES, Rig, random_line
from tests.engine.tiny_models import FAMILIES, VOCAB_SIZE, build

META = torch.device("meta")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tree_of_each_family_equals_its_branches_alone(family: str) -> None:
    histories.a_tree_equals_its_branches_alone(Rig(family))


@pytest.mark.parametrize("dtype", HALF_TOLERANCES, ids=str)
@pytest.mark.parametrize("family", HALF_FAMILIES)
def test_a_tree_in_16_bits_equals_its_branches_alone(family: str, dtype: torch.dtype) -> None:
    histories.a_tree_equals_its_branches_alone(Rig(family, dtype=dtype))


@pytest.mark.parametrize("family", FAMILIES)
def test_sessions_in_one_step_equal_each_alone(family: str) -> None:
    histories.sessions_in_one_step_equal_each_alone(Rig(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_of_every_width_stand_side_by_side(family: str) -> None:
    histories.masks_of_every_width_stand_side_by_side(Rig(family))


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral"])
def test_any_history_equals_a_fresh_start(family: str) -> None:
    histories.any_history_equals_a_fresh_start(Rig(family))


def test_a_line_that_contradicts_what_is_held_is_fed_anew() -> None:
    histories.a_line_that_contradicts_what_is_held_is_fed_anew(Rig("llama"))


def test_only_what_is_not_held_is_fed() -> None:
    engine = Rig("llama").engine
    slot = engine.acquire()
    line = random_line(10, seed=3)
    engine.step([Job(slot, line, [LINE_END, 0, LINE_END], [1, 2, 3], wanted=[LINE_END, 0, 1, 2])])
    line.extend([1, 2, 9])
    feed = plan(Job(slot, line), max_tokens=512)
    assert (feed.token_ids, feed.positions) == ([9], [12])
    assert slot.cells == {}


def test_a_long_prompt_is_fed_in_chunks_beside_others() -> None:
    histories.a_long_prompt_is_fed_in_four_chunks_beside_another(Rig("gemma3"))


def test_a_failed_step_leaves_no_trace() -> None:
    rig = Rig("llama")
    slot = rig.engine.acquire()
    line = random_line(10, seed=6)
    rig.engine.step([Job(slot, line)])
    with pytest.raises(IndexError):
        rig.engine.step([Job(slot, line, [LINE_END], [VOCAB_SIZE + 5], wanted=[0])])
    line.append(2)
    rig.close(rig.engine.step([Job(slot, line)]).logits[0], rig.reference(line)[-1])


def test_a_step_that_fails_half_way_leaves_no_trace() -> None:
    histories.a_step_that_fails_half_way_leaves_no_trace(Rig("llama"))


def test_a_tree_beyond_its_slot_is_refused_and_harms_no_neighbour() -> None:
    rig = Rig("llama", max_sessions=2)
    slots = [rig.engine.acquire() for _ in range(2)]
    line = random_line(10, seed=7)
    for slot in slots:
        rig.engine.step([Job(slot, line)])
    chain = range(LINE_END, 2 * TREE_CELLS_MAX)
    for slot in slots:
        with pytest.raises(ValueError, match="keep lines within the context"):
            rig.engine.step([Job(slot, line, chain[:-1], [1] * (len(chain) - 1), wanted=[0])])
    line.append(2)
    for slot in slots:
        rig.close(rig.engine.step([Job(slot, line)]).logits[0], rig.reference(line)[-1])


def test_slots_are_bounded_and_forget() -> None:
    histories.slots_are_bounded_and_forget(Rig("llama", max_sessions=1))


def test_caches_that_find_no_room_are_refused_in_words() -> None:
    with pytest.raises(UnsupportedModelError, match="lower --kv-memory, --max-sessions or --max-context"):
        Engine(build("llama"), max_sessions=1, max_context=10**13)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_self_check_passes_what_is_right(family: str) -> None:
    histories.the_self_check_passes_what_is_right(family, CPU, torch.float32)


def test_the_self_check_finds_what_is_wrong() -> None:
    model = build("llama")
    other = build("llama", seed=1)
    expected = self_check.reference(other, probe_layers(other), 64)
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
                    head_dim=16,  # pyright: ignore[reportCallIssue]
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
    histories.a_whole_model_traces_into_one_graph(Rig(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_never_waits_for_its_device(family: str) -> None:
    """Tensors on the meta device have no content: whoever looks at one, or mixes it with the host's, fails."""
    engine = Rig(family, device=META, dtype=torch.bfloat16).engine
    slot, other = engine.acquire(), engine.acquire()
    line = random_line(5, seed=1)
    engine.step([Job(slot, line, [LINE_END, LINE_END, 1], [1, 2, 3], wanted=range(-1, 3))])
    line.append(2)
    output = engine.step([Job(slot, line, [LINE_END], [3], wanted=[0]), Job(other, random_line(20, seed=2))])
    assert output.num_rows == [1, 1]
    assert output.logits.device == engine.device == META


def test_padding_sees_nothing_and_writes_where_nobody_reads() -> None:
    slot = Rig("llama").engine.acquire()
    batch = pack([plan(Job(slot, random_line(5, seed=0)), max_tokens=512)])
    batch.pad(8, scratch_cell=99)
    assert batch.write_cells == [0, 1, 2, 3, 4, 99, 99, 99]
    assert (batch.blocks, batch.block_cells) == ([0], 16)
    assert batch.limits == [1, 2, 3, 4, 5, 0, 0, 0]
    assert batch.path_offsets == [0] * 9
    assert len(batch.token_ids) == len(batch.positions) == 8
    assert [tuple(session) for session in batch.sessions] == [(0, 5, 0, 5)]


def test_a_batch_grows_with_the_context_by_its_blocks_alone() -> None:
    engine = Rig("llama").engine
    sizes: list[int] = []
    for length in (5, 150):
        slot, line = engine.acquire(), random_line(length, seed=length)
        engine.step([Job(slot, line)])
        job = Job(slot, line, [LINE_END, 0, 0, LINE_END], [1, 2, 3, 4], wanted=range(LINE_END, 4))
        batch = pack([plan(job, max_tokens=512)])
        sizes.append(described(0, batch).numel())
        assert batch.path_cells == [length, length, length + 1, length, length + 2, length + 3]
    assert sizes == [sizes[0], sizes[0] - len(range(0, 5 + 4, 16)) + len(range(0, 150 + 4, 16))]


def test_masks_stand_where_kernels_may_read_them() -> None:
    engine = Rig("llama", max_sessions=5).engine
    jobs = [Job(engine.acquire(), random_line(length, seed=length)) for length in (3, 5, 1, 16, 17)]
    spans, masks = spans_and_masks(pack([plan(job, max_tokens=512) for job in jobs]), (None, 4))
    offsets = spans[:, -1].tolist()
    assert offsets[2] == NO_MASK
    assert all(offset % MASK_ALIGNMENT == 0 for offset in offsets if offset != NO_MASK)
    assert len({mask.numel() for mask in masks.values()}) == 1
    assert masks[None].sum() == sum(length * (length + 1) // 2 for length in (3, 5, 16, 17))
