"""The product with weights in few bits: interpreted, it is that with the dense twin; and it compiles for GPUs.

No GPU has run it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from outrider.engine.gpu import launch, quantized_launch, quantized_product
from outrider.engine.quantized import linear
from outrider.engine.quantized.weight import QuantizedWeight
from tests.engine.gpu.interpreter import interpreted
from tests.engine.gpu.launches import logged
from tests.engine.gpu.test_compiled_kernels import ARCHITECTURES, Architecture, compiled, spilled_bytes
from tests.engine.quantized import fp8, int4, stored
from tests.engine.test_quantized import kept, logits

RANDOM = torch.Generator().manual_seed(5)


WEIGHTS = {
    "fp8, a scale for an output": lambda: fp8(20, 150, 1, 150),
    "fp8, in blocks": lambda: fp8(150, 200, 128, 128),
    "fp8, in small blocks": lambda: fp8(40, 72, 24, 32),
    "int4 in groups of 128": lambda: int4(24, 256, 128),
    "int4 in groups of 96": lambda: int4(24, 192, 96),
    "int4 in groups of 32": lambda: int4(40, 96, 32),
    "int4 in one group": lambda: int4(16, 160, 160),
    "int4, inputs in another order": lambda: int4(40, 192, 96, torch.randperm(192, generator=RANDOM)),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-3)])
def test_it_is_the_product_with_the_dense_twin(name: str, dtype: torch.dtype, tolerance: float) -> None:
    weight = WEIGHTS[name]()
    x = torch.randn(70 if name == "int4 in groups of 32" else 5, weight.num_inputs, generator=RANDOM).to(dtype)
    expected = x.double() @ weight.dequantized(torch.float64).T
    with interpreted(quantized_product):
        found = quantized_launch.product(x, *weight)
    assert found.dtype == dtype
    assert (found.double() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("layout", ["fp8 in blocks", "gptq, inputs in another order"])
def test_a_model_on_it_is_its_twin(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = stored(tmp_path, layout, "qwen3")
    few_bits = kept(tmp_path)
    monkeypatch.setattr(linear, "problem", lambda device: "")
    with interpreted(quantized_product):
        found = logits(few_bits)
    assert torch.allclose(found, logits(twin), atol=1e-4, rtol=1e-5)


def test_it_is_compared_with_torch_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, cpu = linear.problem.__wrapped__, torch.device("cpu")
    assert "use --device cuda" in tried(cpu)
    monkeypatch.setattr(linear, "triton_problem", lambda device: "")
    with interpreted(quantized_product):
        assert tried(cpu) == ""
        monkeypatch.setattr(quantized_product, "FP8_UNIT", 128.0)
        assert "compute something else than torch does here" in tried(cpu)


KINDS = ("fp8", "int4", "fp8", "int4, inputs in another order")
CASES = [*zip(KINDS, (9, 64, 64, 9), ARCHITECTURES, strict=True)]


@pytest.mark.parametrize(("kind", "num_rows", "architecture"), CASES, ids=str)
def test_it_compiles_for_real_layers(
    kind: str, num_rows: int, architecture: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = launch.Machine(num_processors=132, shared_bytes=architecture.shared_bytes)
    monkeypatch.setattr(launch, "machine", lambda device: machine)
    with torch.device("meta"):
        x = torch.empty(num_rows, 4096, dtype=torch.bfloat16)
        if kind == "fp8":
            weight = QuantizedWeight(
                torch.empty(14336, 4096, dtype=torch.float8_e4m3fn), torch.empty(112, 32), 128, 128
            )
        else:
            codes, zeros = (torch.empty(14336, size, dtype=torch.uint8) for size in (2048, 32))
            order = torch.empty(4096, dtype=torch.int64) if "order" in kind else None
            weight = QuantizedWeight(codes, torch.empty(14336, 32, dtype=torch.float16), 1, 128, zeros, order)
    with logged() as launches:
        quantized_launch.product(x, *weight)
    (each,) = launches.log
    kernel = compiled(each, architecture.capability)
    assert kernel.metadata.shared <= architecture.shared_bytes
    assert spilled_bytes(kernel.asm["cubin"], tmp_path) == 0
    assert (architecture.instruction if num_rows == 64 else "mma.sync") in kernel.asm["ptx"]
    assert "cp.async" in kernel.asm["ptx"]
