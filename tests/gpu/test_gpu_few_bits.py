"""Weights in few bits on a device: layers keep them, run fused, and compute what their dense twins compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from outrider.engine.engine import Engine
from outrider.engine.gpu.trial import CAPABILITY_MIN
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.load.folder import load_weights
from outrider.engine.quantized import linear
from outrider.engine.quantized.linear import kept_as
from tests.engine.histories import HALF_TOLERANCES, random_line
from tests.engine.quantized import LAYOUTS, stored
from tests.gpu.device import CUDA, on_cuda

pytestmark = on_cuda(CAPABILITY_MIN)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_that_keeps_them_is_its_twin(layout: str, dtype: str, tmp_path: Path) -> None:
    assert linear.problem(CUDA) == ""
    twin = stored(tmp_path, layout, "qwen3").to(CUDA)  # pyright: ignore[reportArgumentType]
    model = load_weights(tmp_path, device=CUDA, dtype=dtype)
    assert kept_as(model) == ("fp8" if layout.startswith("fp8") else "int4")
    engine = Engine(model, max_sessions=2, max_context=64, attention="tree", captured=True)
    assert engine.not_fused == ""
    assert list(engine.warm_up())
    line = random_line(9, seed=1)
    logits = engine.step([Job(engine.acquire(), line, [LINE_END], [3], range(LINE_END, 1))]).logits.float()
    assert engine.path == "graph"
    with torch.inference_mode():
        expected = twin(input_ids=torch.tensor([[*line, 3]], device=CUDA), use_cache=False).logits[0, -2:]
    assert (logits - expected).norm() <= HALF_TOLERANCES[getattr(torch, dtype)] * expected.norm()
