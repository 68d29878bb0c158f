"""Which attention backend is chosen, which are refused in words, and that each computes the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.attention.interface import ModelFacts
from outrider.engine.attention.native import NativeAttention
from outrider.engine.attention.registry import AUTO, select
from outrider.engine.attention.tree import TreeAttention
from outrider.engine.engine import Engine
from outrider.engine.gpu.work_list import PAGE_CELLS
from outrider.engine.jobs import Job
from outrider.engine.load.probe import LayerFacts
from tests.engine import histories
from tests.engine.histories import CPU, Rig, random_line
from tests.engine.tiny_models import FAMILIES, build

LAYER = LayerFacts(num_heads=4, num_kv_heads=2, key_size=64, value_size=64, window=None)
ON_CPU = ModelFacts([LAYER], torch.float32, CPU)
ON_GPU = ModelFacts([LAYER], torch.bfloat16, torch.device("cuda"))


@pytest.mark.parametrize("kernels_work", [True, False])
def test_what_auto_chooses(kernels_work: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU there is the one kernel, and the one path where it does not work."""

    def problem(cls: object, facts: ModelFacts) -> str:
        return "" if kernels_work and facts.device.type == "cuda" else "no kernels here"

    monkeypatch.setattr(TreeAttention, "problem", classmethod(problem))
    for facts, name, block_size in (
        (ON_CPU, "torch", 16),
        (ON_GPU, *(("tree", PAGE_CELLS) if kernels_work else ("torch", 16))),
    ):
        backend = select(AUTO, facts)
        assert (backend.name, backend.block_size(facts)) == (name, block_size)
        assert select(name, facts) is backend


@pytest.mark.parametrize(
    ("name", "facts", "reason"),
    [
        ("paged", ON_GPU, "none of that name; use one of auto, tree, torch, native"),
        ("tree", ON_CPU, "kernels in Triton run on GPUs; use --device cuda"),
        ("native", ON_GPU, "use --device cpu"),
    ],
)
def test_a_name_that_cannot_work_is_refused_in_words(name: str, facts: ModelFacts, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"--attention-backend {name}\b.*{reason}"):
        select(name, facts)


def test_an_engine_refuses_too() -> None:
    with pytest.raises(UnsupportedModelError, match="--attention-backend tree"):
        Engine(build("llama"), max_sessions=1, max_context=64, attention=TreeAttention.name)


def test_without_the_kernels_steps_are_neither_compiled_nor_captured() -> None:
    rig = Rig("llama")
    rig.engine = Engine(build("llama"), max_sessions=1, max_context=64, attention="torch", compiled=True, captured=True)
    assert not rig.engine.captures
    assert list(rig.engine.warm_up()) == []
    line = random_line(5, seed=1)
    rig.close(rig.engine.step([Job(rig.engine.acquire(), line)]).logits[0], rig.reference(line)[-1])
    assert (rig.engine.forward_pass, rig.engine.path) == ("eager", "eager")


@pytest.mark.usefixtures("native_operators")
@pytest.mark.parametrize(("history", "family"), histories.by_family(FAMILIES, ["gemma3"]))
def test_native_steps_of_each_family_without_a_compiled_pass(history: Callable[[Rig], None], family: str) -> None:
    rig = Rig(family)
    rig.engine = Engine(build(family), max_sessions=4, max_context=128, attention=NativeAttention.name)
    assert rig.engine.attention == "native"
    history(rig)
