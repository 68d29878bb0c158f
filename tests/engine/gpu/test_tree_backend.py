"""Models on the `tree` backend: all histories, steps captured and not, with the kernels interpreted on a CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch

from outrider.engine.attention.interface import ModelFacts
from outrider.engine.attention.tree import PARTS_MAX, PARTS_PER_TOKEN, TreeAttention, parts_max
from outrider.engine.attention.tree_trial import tried
from outrider.engine.batch import CAPTURED_SIZES, CAPTURED_TOKENS_MAX, COMPILED_TOKENS_MAX, pack
from outrider.engine.gpu import launch, tree_attention
from outrider.engine.gpu.work_list import SPLIT_CELLS
from outrider.engine.jobs import LINE_END, Job, plan
from outrider.engine.load.probe import LayerFacts
from tests.engine import histories
from tests.engine.gpu.launches import Launches
from tests.engine.gpu.waiting import WaitsError, guarded
from tests.engine.histories import CPU, Rig, random_line
from tests.engine.tape import SMALL_SIZES, Tape, graphed
from tests.engine.tiny_models import FAMILIES

pytestmark = pytest.mark.usefixtures("interpreter", "willing")

META = torch.device("meta")
LAYER = LayerFacts(num_heads=4, num_kv_heads=2, key_size=24, value_size=16, window=None)


def rig_of(family: str, **options: object) -> Rig:
    rig = Rig(family, attention=TreeAttention.name, **options)  # type: ignore[arg-type]
    assert rig.engine.attention == "tree"
    return rig


def launches_of(rig: Rig, *, captured: bool = False) -> Counter[str]:
    """What a step launches: in captured ones moves too, whether there are any or not."""
    model = rig.engine._model
    num_layers, num_storages = len(model.facts.layers), len(model.cache.storages)
    each = {"add_and_normalize": 2, "rotate": 1, "gate": 1} if not model.not_fused else {"write": 2}
    wanted = Counter({name: num * num_layers for name, num in (each | {"attend": 1, "combine": 1}).items()})
    return wanted + Counter(add_and_normalize=int(not model.not_fused), move=num_storages * captured)


def replaying(rig: Rig, sizes: Sequence[int] = SMALL_SIZES) -> Tape:
    """From now on the rig's small steps are replayed from what the tape has heard of padding alone."""
    tape = Tape()
    graphed(rig.engine, tape, sizes)
    return tape


@pytest.mark.parametrize(("history", "family"), histories.by_family(FAMILIES, ["gemma3"]))
def test_steps_of_each_family(history: Callable[[Rig], None], family: str) -> None:
    history(rig_of(family))


def test_any_history_equals_a_fresh_start() -> None:
    """Of layers with a window and without, and few sessions: what lines do to slots is the other backends' matter too,
    and any tree over any cells that of the kernels' own tests."""
    histories.any_history_equals_a_fresh_start(rig_of("gemma3"), num_sessions=3)


def test_histories_of_single_sessions() -> None:
    histories.a_line_that_contradicts_what_is_held_is_fed_anew(rig_of("llama"))
    histories.a_long_prompt_is_fed_in_four_chunks_beside_another(rig_of("mistral"))
    histories.a_step_that_fails_half_way_leaves_no_trace(rig_of("llama"))
    histories.slots_are_bounded_and_forget(rig_of("llama", max_sessions=1))


@pytest.mark.parametrize(
    "history",
    [
        histories.a_beginning_that_another_session_has_computed,
        histories.blocks_that_lie_between_those_of_others,
        histories.a_session_that_had_to_forget_goes_on,
    ],
)
def test_histories_of_blocks(history: Callable[[Rig], None]) -> None:
    history(rig_of("gemma3", max_context=256))


@pytest.mark.parametrize("family", ["qwen3", "gpt_oss"])
def test_the_self_check_passes_what_is_right(family: str) -> None:
    """On fused layers and on a model's own."""
    histories.the_self_check_passes_what_is_right(family, CPU, torch.float32, TreeAttention.name)


def test_a_step_in_float16() -> None:
    histories.a_tree_equals_its_branches_alone(rig_of("llama", dtype=torch.float16))


def test_a_whole_model_traces_into_one_graph() -> None:
    histories.a_whole_model_traces_into_one_graph(rig_of("gpt2"))


@pytest.mark.parametrize("family", ["gemma3", "gemma2", "gpt_oss", "deepseek"])
def test_replayed_steps_of_each_kind(family: str, launches: Launches) -> None:
    rig = rig_of(family)
    tape = replaying(rig)
    histories.sessions_in_one_step_equal_each_alone(rig)
    assert tape.num_replays > 0
    num_replays = tape.num_replays
    histories.a_tree_equals_its_branches_alone(rig)
    assert tape.num_replays > num_replays
    grids = {(each.kernel, each.grid) for each in launches.log if each.kernel == "attend"}
    assert len(grids) == 1


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_launches_do_not_grow_with_the_sessions(family: str, launches: Launches) -> None:
    rig = rig_of(family)
    for num_sessions in (1, 3):
        jobs = [
            Job(rig.engine.acquire(), random_line(30 + index, seed=index), [LINE_END, 0, 0], [1, 2, 3], range(3))
            for index in range(num_sessions)
        ]
        launches.log.clear()
        rig.engine.step(jobs)
        assert launches.num == launches_of(rig)
        for job in jobs:
            rig.engine.release(job.slot)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_never_waits_for_its_device(family: str, launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors on the meta device have no content: whoever looks at one, or mixes it with the host's, fails.

    The first step is too large for what is captured, and in the second one a node that became a part of the line moves.
    """
    rig = rig_of(family, device=META, dtype=torch.bfloat16)
    replaying(rig)
    slot, other = rig.engine.acquire(), rig.engine.acquire()
    line = random_line(COMPILED_TOKENS_MAX + 2, seed=1)
    launches.log.clear()
    for captured in (False, True):
        jobs = [Job(slot, line, [LINE_END, LINE_END, 1], [1, 2, 3], wanted=range(-1, 3)), Job(other, [1, 2])]
        with guarded(monkeypatch, META.type) as guard:
            output = rig.engine.step(jobs)
        assert guard.num_copies == (1 if captured else 2)
        assert output.logits.shape == (5, rig.engine.vocab_size)
        assert output.logits.device == META
        assert launches.num == launches_of(rig, captured=captured)
        launches.log.clear()
        line.append(2)


def test_the_guard_sees_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    on_device, mask = torch.ones(3, device=META), torch.ones(3, dtype=torch.bool, device=META)
    waiting: list[Callable[[], object]] = [
        lambda: on_device.sum().item(),
        lambda: on_device[mask],
        lambda: mask.nonzero(),
        lambda: torch.repeat_interleave(mask.long()),
        lambda: torch.tensor([1.0, 2.0]).to(META),
        lambda: torch.tensor([1.0, 2.0]).to(META, non_blocking=True),
        lambda: on_device.copy_(torch.ones(3)),
        lambda: on_device.to("cpu"),
        lambda: torch.tensor([1.0, 2.0], device=META),
        lambda: on_device.new_tensor([1.0, 2.0]),
        lambda: on_device[[0, 2]],
        lambda: on_device[torch.tensor([0, 2])],
    ]
    for wait in waiting:
        for inference in (True, False):  # which sees some operations whole
            with torch.inference_mode(inference), guarded(monkeypatch, META.type), pytest.raises(WaitsError):
                wait()


def test_a_captured_step_moves_cells_itself(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = rig_of("llama")
    tape = replaying(rig)
    monkeypatch.setattr(rig.engine._model.cache, "move", fail)
    slot, line = rig.engine.acquire(), random_line(6, seed=3)
    rig.engine.step([Job(slot, line, [LINE_END, LINE_END, 1], [1, 2, 3], wanted=[0, 2])])
    for token_id in (2, 3):
        line.append(token_id)
    launches.log.clear()
    logits = rig.engine.step([Job(slot, line, [LINE_END], [4], wanted=[LINE_END, 0])]).logits
    rig.close(logits, rig.reference([*line, 4])[-2:])
    assert tape.num_replays == 2
    (moved,) = [each for each in launches.log if each.kernel == "move"]
    assert moved.arguments[1][0] == 2


def test_a_bucket_beyond_what_is_compiled_is_replayed(launches: Launches) -> None:
    rig = rig_of("llama")
    tape = replaying(rig, [2 * COMPILED_TOKENS_MAX])
    slot, line = rig.engine.acquire(), random_line(COMPILED_TOKENS_MAX + 1, seed=1)
    rig.close(rig.engine.step([Job(slot, line)]).logits[0], rig.reference(line)[-1])
    assert (tape.num_replays, rig.engine.path) == (1, "graph")
    assert launches.num["rotate"] > 0


def test_which_steps_are_captured() -> None:
    rig = rig_of("llama", max_context=512)
    attention = rig.engine._model.attention
    assert isinstance(attention, TreeAttention)

    def size(*lengths: int, num_tokens_min: int = 0) -> int | None:
        jobs = [Job(rig.engine.acquire(), [0] * length) for length in lengths]
        batch = pack([plan(job, max_tokens=512) for job in jobs], num_tokens_min)
        for job in jobs:
            rig.engine.release(job.slot)
        return attention.size_of(batch)

    assert size(5) == 8
    assert size(5, num_tokens_min=9) == 16
    assert size(1, 2, 3) == 8
    assert size(COMPILED_TOKENS_MAX) == COMPILED_TOKENS_MAX
    assert size(COMPILED_TOKENS_MAX + 1) == 2 * COMPILED_TOKENS_MAX
    assert size(CAPTURED_TOKENS_MAX) == CAPTURED_TOKENS_MAX
    assert size(CAPTURED_TOKENS_MAX + 1) is None
    assert attention.buckets == (256, 128, 64, 32, 16, 8, 4, 2, 1) == CAPTURED_SIZES[::-1]
    batch = pack([plan(Job(rig.engine.acquire(), [0]), max_tokens=1)])
    for num_cells, expected in ((PARTS_PER_TOKEN * SPLIT_CELLS, 1), (PARTS_PER_TOKEN * SPLIT_CELLS + 1, None)):
        batch.sessions = [batch.sessions[0]._replace(num_cells=num_cells)]
        assert attention.size_of(batch) == expected
    assert parts_max(CAPTURED_TOKENS_MAX) == PARTS_MAX


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_kernels_are_tried_at_start(dtype: torch.dtype) -> None:
    facts = ModelFacts([LAYER, LAYER._replace(num_kv_heads=4, value_size=24, window=3)], dtype, CPU)
    assert tried(TreeAttention, facts) == ""


def test_kernels_that_fail_or_err_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = ModelFacts([LAYER], torch.float32, CPU)
    too_large = facts._replace(layers=[LAYER._replace(key_size=2048)])
    assert "do not fit in the device's shared memory" in tried(TreeAttention, too_large)
    with monkeypatch.context() as patch:
        patch.setattr(tree_attention, "WORD_0", tree_attention.WORD_0 + 1)
        assert "compute something else than torch" in tried(TreeAttention, facts)
    monkeypatch.setattr(launch, "write", fail)
    assert tried(TreeAttention, facts) == "the kernels do not run here (RuntimeError: no such instruction)"


def fail(*_: object) -> None:
    raise RuntimeError("no such instruction\nat all")
