"""Which attention backend is chosen, which are refused in words, and that each computes the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.attention import paged
from outrider.engine.attention.interface import ModelFacts
from outrider.engine.attention.native import NativeAttention
from outrider.engine.attention.paged import PAGE_CELLS
from outrider.engine.attention.registry import AUTO, select
from outrider.engine.attention.static import StaticAttention
from outrider.engine.engine import Engine
from outrider.engine.load.probe import LayerFacts
from tests.engine import histories
from tests.engine.histories import CPU, Rig
from tests.engine.tiny_models import FAMILIES, build
from tests.engine.varlen import Varlen

LAYER = LayerFacts(num_heads=4, num_kv_heads=2, key_size=64, value_size=64, window=None, shapes_scores=False)
ON_CPU = ModelFacts([LAYER], torch.float32, CPU)
ON_GPU = ModelFacts([LAYER], torch.bfloat16, torch.device("cuda"))


@pytest.fixture
def paging_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose GPU has the kernel of `paged`."""
    monkeypatch.setattr("outrider.engine.attention.paged.runs_on", lambda device: device.type == "cuda")


@pytest.mark.usefixtures("paging_gpu")
@pytest.mark.parametrize(
    ("facts", "name", "block_size"),
    [
        (ON_CPU, "torch", 16),
        (ON_GPU, "paged", PAGE_CELLS),
        (ON_GPU._replace(dtype=torch.float32), "torch", 16),
        (ON_GPU._replace(layers=[LAYER._replace(shapes_scores=True)]), "torch", 16),
        (ON_GPU._replace(captures=True), "static", PAGE_CELLS),
        (ON_GPU._replace(captures=True, dtype=torch.float32), "static", 16),
    ],
)
def test_what_auto_chooses(facts: ModelFacts, name: str, block_size: int) -> None:
    backend = select(AUTO, facts)
    assert (backend.name, backend.block_size(facts)) == (name, block_size)
    assert select(name, facts) is backend


@pytest.mark.parametrize(
    ("name", "facts", "reason"),
    [
        ("flash", ON_CPU, "none of that name; use one of auto, tree, static, paged, torch, native"),
        ("tree", ON_CPU, "its kernels run on GPUs; use --device cuda"),
        ("paged", ON_CPU, "its kernel takes 16-bit types"),
        ("paged", ON_CPU._replace(dtype=torch.bfloat16), "needs a CUDA device .*; or use auto"),
        ("static", ON_CPU, "needs --device cuda and --compile auto or on"),
        ("native", ON_GPU, "use --device cpu"),
    ],
)
def test_a_name_that_cannot_work_is_refused_in_words(name: str, facts: ModelFacts, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"--attention-backend {name}\b.*{reason}"):
        select(name, facts)


def varlen_of_2_11(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: object = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """The signature of torch 2.11."""
    raise AssertionError("a kernel that reads no blocks was called")


def test_a_torch_whose_kernel_reads_no_blocks_is_served_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged, "varlen_attn", varlen_of_2_11)
    assert paged.lacking(varlen_of_2_11) == ["enable_gqa", "seqused_k", "block_table", "num_splits"]
    assert select(AUTO, ON_GPU).name == "torch"
    large_steps = select(AUTO, ON_GPU._replace(captures=True))
    assert (large_steps.name, large_steps.block_size(ON_GPU)) == ("static", 16)
    with pytest.raises(UnsupportedModelError, match=r"paged cannot .*takes no enable_gqa or .* in 2\..*a newer torch"):
        select("paged", ON_GPU)


def test_the_kernel_of_the_installed_torch_is_looked_at() -> None:
    """Stands for both sides of the matrix: newer releases take all keywords, 2.11 takes none."""
    assert paged.lacking(varlen_attn) in ([], paged.lacking(varlen_of_2_11))
    assert paged.lacking(Varlen().__call__) == []


def test_an_engine_refuses_too() -> None:
    with pytest.raises(UnsupportedModelError, match="--attention-backend static"):
        Engine(build("llama"), max_sessions=1, max_context=64, attention=StaticAttention.name)


@pytest.mark.usefixtures("native_operators")
@pytest.mark.parametrize(("history", "family"), histories.by_family(FAMILIES, ["gemma3"]))
def test_native_steps_of_each_family_without_a_compiled_pass(history: Callable[[Rig], None], family: str) -> None:
    rig = Rig(family)
    rig.engine = Engine(build(family), max_sessions=4, max_context=128, attention=NativeAttention.name)
    assert rig.engine.attention == "native"
    history(rig)
