"""Models on the `tree` backend: all histories, steps captured and not, with the kernels interpreted on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from outrider.engine.attention.interface import ModelFacts
from outrider.engine.attention.tree import PARTS_PER_TOKEN, TreeAttention
from outrider.engine.attention.tree_trial import trial
from outrider.engine.batch import COMPILED_SIZES, COMPILED_TOKENS_MAX, pack
from outrider.engine.compile.graphs import StepGraphs
from outrider.engine.gpu import launch, tree_attention
from outrider.engine.gpu.work_list import SPLIT_CELLS
from outrider.engine.jobs import LINE_END, Job, plan
from outrider.engine.load.probe import LayerFacts
from tests.engine import histories
from tests.engine.gpu.launches import Launches, logged
from tests.engine.histories import CPU, Rig, random_line
from tests.engine.tape import Tape
from tests.engine.tiny_models import FAMILIES

pytestmark = pytest.mark.usefixtures("interpreter")

META = torch.device("meta")
LAUNCHES_PER_LAYER = {"write": 2, "attend": 1, "combine": 1}
LAYER = LayerFacts(num_heads=4, num_kv_heads=2, key_size=24, value_size=16, window=None, shapes_scores=False)


@pytest.fixture(autouse=True)
def willing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend takes any device."""
    monkeypatch.setattr(TreeAttention, "problem", classmethod(lambda cls, facts: ""))


@pytest.fixture
def launches() -> Iterator[Launches]:
    with logged() as found:
        yield found


def rig_of(family: str, **options: object) -> Rig:
    rig = Rig(family, attention=TreeAttention.name, **options)  # type: ignore[arg-type]
    assert rig.engine.attention == "tree"
    return rig


def replaying(rig: Rig) -> Tape:
    """From now on the rig's small steps are replayed from what the tape has heard of padding alone."""
    model, tape = rig.engine._model, Tape()
    graphs = StepGraphs(model.decoder.run_static, model.attention, tape)  # type: ignore[arg-type]
    with torch.inference_mode():
        for size in COMPILED_SIZES:
            graphs.capture(size)
    model.forwards.insert(0, graphs)
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


def test_a_step_in_float16() -> None:
    histories.a_tree_equals_its_branches_alone(rig_of("llama", dtype=torch.float16))


def test_a_whole_model_traces_into_one_graph() -> None:
    histories.a_whole_model_traces_into_one_graph(rig_of("llama"))


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
    """Four for each layer; and a captured step has one grid, whatever it holds."""
    rig = rig_of(family)
    num_layers = len(rig.engine._model.facts.layers)
    for num_sessions in (1, 3):
        jobs = [
            Job(rig.engine.acquire(), random_line(30 + index, seed=index), [LINE_END, 0, 0], [1, 2, 3], range(3))
            for index in range(num_sessions)
        ]
        launches.log.clear()
        rig.engine.step(jobs)
        assert launches.num == {name: num * num_layers for name, num in LAUNCHES_PER_LAYER.items()}
        for job in jobs:
            rig.engine.release(job.slot)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_never_waits_for_its_device(family: str, launches: Launches) -> None:
    """Tensors on the meta device have no content: whoever looks at one, or mixes it with the host's, fails."""
    rig = rig_of(family, device=META, dtype=torch.bfloat16)
    replaying(rig)
    slot, other = rig.engine.acquire(), rig.engine.acquire()
    line = random_line(COMPILED_TOKENS_MAX + 2, seed=1)
    launches.log.clear()
    for num_launches in (8, 8):
        jobs = [Job(slot, line, [LINE_END, LINE_END, 1], [1, 2, 3], wanted=range(-1, 3)), Job(other, [1, 2])]
        output = rig.engine.step(jobs)
        assert output.logits.shape == (5, rig.engine.vocab_size)
        assert output.logits.device == META
        assert len(launches.log) == num_launches
        launches.log.clear()
        line.append(2)


def test_which_steps_are_captured() -> None:
    rig = rig_of("llama", max_context=256)
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
    assert size(COMPILED_TOKENS_MAX + 1) is None
    batch = pack([plan(Job(rig.engine.acquire(), [0]), max_tokens=1)])
    for num_cells, expected in ((PARTS_PER_TOKEN * SPLIT_CELLS, 1), (PARTS_PER_TOKEN * SPLIT_CELLS + 1, None)):
        batch.sessions = [batch.sessions[0]._replace(num_cells=num_cells)]
        assert attention.size_of(batch) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_kernels_are_tried_at_start(dtype: torch.dtype) -> None:
    facts = ModelFacts([LAYER, LAYER._replace(num_kv_heads=4, value_size=24, window=3)], dtype, CPU)
    assert trial(TreeAttention, facts) == ""


def test_kernels_that_fail_or_err_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = ModelFacts([LAYER], torch.float32, CPU)
    too_large = facts._replace(layers=[LAYER._replace(key_size=2048)])
    assert "do not fit in the device's shared memory" in trial(TreeAttention, too_large)
    with monkeypatch.context() as patch:
        patch.setattr(tree_attention, "WORD_0", tree_attention.WORD_0 + 1)
        assert "compute something else than torch" in trial(TreeAttention, facts)
    monkeypatch.setattr(launch, "write", fail)
    assert trial(TreeAttention, facts) == "its kernels do not run here (RuntimeError: no such instruction)"


def fail(*_: object) -> None:
    raise RuntimeError("no such instruction\nat all")
