"""The attention kernels over cells of eight bits: interpreted, they do as torch; and they compile for GPUs that know
such numbers. No GPU has run them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from outrider.engine.attention.interface import ModelFacts
from outrider.engine.attention.tree import TreeAttention
from outrider.engine.attention.tree_trial import tried
from outrider.engine.gpu import launch
from outrider.engine.kv_cache.cells import FP8
from outrider.engine.load.probe import LayerFacts
from tests.engine.gpu.test_compiled_kernels import (
    ARCHITECTURES,
    LLAMA_1B,
    compiled,
    launched,
    spilled_bytes,
)

LAYER = LayerFacts(num_heads=6, num_kv_heads=2, key_size=16, value_size=16, window=None)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_kernels_read_and_write_them_as_torch_does(dtype: torch.dtype) -> None:
    facts = ModelFacts([LAYER, LAYER._replace(window=3)], dtype, torch.device("cpu"), kv_cache_dtype=FP8)
    assert tried(TreeAttention, facts) == ""


def test_they_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = next(each for each in ARCHITECTURES if each.capability == 90)
    machine = launch.Machine(num_processors=1, shared_bytes=architecture.shared_bytes)
    launches = {each.kernel: each for each in launched(LLAMA_1B, torch.bfloat16, machine, monkeypatch, FP8).log}
    for each in (launches["write"], launches["attend"]):
        kernel = compiled(each, architecture.capability)
        assert kernel.metadata.shared <= architecture.shared_bytes
        assert spilled_bytes(kernel.asm["cubin"], tmp_path) == 0
