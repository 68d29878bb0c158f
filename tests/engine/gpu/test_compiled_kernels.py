"""The kernels compile for the GPUs that are in use, without one: with tensor cores, within memory and registers.

What is compiled is what `launch.py` launches for layers of real models, on tensors without content. No GPU has run any
of it.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from outrider.core.estimate.confidence import MARGIN_EDGES
from outrider.core.protocol.validation import TREE_WIDTH_MAX
from outrider.engine.attention.tree import parts_max
from outrider.engine.gpu import cell_moves, choice, launch, launcher, layer_kernels, quantized_launch
from outrider.engine.gpu.advance import between
from outrider.engine.gpu.frontiers import frontiers
from outrider.engine.gpu.work_list import Layout, tile_tokens
from outrider.engine.sampling_tables import SamplingTables
from tests.engine.gpu.launches import Launch, Launches, kernel_of, logged
from tests.engine.quantized import fp8, int4

META = torch.device("meta")


class Architecture(NamedTuple):
    """A kind of GPU."""

    capability: int
    shared_bytes: int
    """Largest shared memory of one program, by NVIDIA's CUDA C++ Programming Guide, table of compute capabilities."""
    instruction: str
    """Of its tensor cores, at the start of its name in PTX."""


ARCHITECTURES = [
    Architecture(80, 163 << 10, "mma.sync"),
    Architecture(89, 99 << 10, "mma.sync"),
    Architecture(90, 227 << 10, "wgmma"),
    Architecture(100, 227 << 10, "tcgen05"),
]


class Heads(NamedTuple):
    """Shapes of a model's layers."""

    num_heads: int
    num_kv_heads: int
    size: int


LLAMA_8B = Heads(32, 8, 128)
LLAMA_1B = Heads(32, 8, 64)
GEMMA = Heads(8, 4, 256)
GEMMA_2_27B = Heads(32, 16, 128)
GPT_OSS = Heads(64, 8, 64)
QWEN3_32B = Heads(64, 8, 128)


def launched(
    heads: Heads,
    dtype: torch.dtype,
    machine: launch.Machine,
    monkeypatch: pytest.MonkeyPatch,
    cell_dtype: torch.dtype | None = None,
    *,
    softcap: float = 0.0,
    has_sinks: bool = False,
) -> Launches:
    """The launches of one layer in a captured step over 16 tokens."""
    monkeypatch.setattr(launch, "machine", lambda device: machine)
    num_tokens = 16
    layout = Layout(num_tokens, 1)
    numbers = torch.empty(layout.end(parts_max(num_tokens), 99), dtype=torch.int32, device=META)
    work = launch.DeviceWork(
        layout, numbers, parts_max(num_tokens), tile_tokens([heads.num_heads // heads.num_kv_heads], heads.size)
    )
    query, key, value = (
        torch.empty(num_tokens, count, heads.size, dtype=dtype, device=META).transpose(0, 1)
        for count in (heads.num_heads, heads.num_kv_heads, heads.num_kv_heads)
    )
    key_cache, value_cache = (torch.empty(4096, *heads[1:], dtype=cell_dtype or dtype, device=META) for _ in range(2))
    with logged() as launches:
        launch.write(key, key_cache, work)
        launch.write(value, value_cache, work)
        sinks = torch.empty(heads.num_heads, dtype=dtype, device=META) if has_sinks else None
        launch.attention(query, key_cache, value_cache, work, 0, launch.Scoring(0.1, softcap, sinks))
    return launches


def launched_between(hidden: int, inner: int, heads: Heads) -> Launches:
    """The launches of a captured step beside those of attention: of one layer, with norms of heads, and of moves."""
    num_tokens = 16
    layout = Layout(num_tokens, 1)
    numbers = torch.empty(layout.end(1, 1), dtype=torch.int32, device=META)
    work = launch.DeviceWork(layout, numbers, 1, 16)

    def some(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=torch.bfloat16, device=META)

    norm = layer_kernels.Norm(some(hidden), 1e-6)
    head_norm = layer_kernels.Norm(some(heads.size), 1e-6)
    cache = some(4096, *heads[1:])
    with logged() as launches:
        layer_kernels.add_norm(some(num_tokens, hidden), some(num_tokens, hidden), norm)
        layer_kernels.rotate_and_write(
            some(num_tokens, (heads.num_heads + 2 * heads.num_kv_heads) * heads.size),
            some(num_tokens, heads.size),
            some(num_tokens, heads.size),
            (head_norm, head_norm),
            cache,
            cache,
            work,
        )
        layer_kernels.gated(some(num_tokens, 2 * inner))
        cell_moves.move_cells(some(64, 4096, *heads[1:]), numbers[layout.first_move :])
    return launches


def launched_at_the_end(vocab_size: int) -> Launches:
    """The launches of a captured step that choose, and those between two levels of a draft."""
    tables = SamplingTables.of(64, META)
    slots, positions, widths = torch.empty(3, 256, dtype=torch.int32, device=META)
    rows = choice.Rows(slots, positions, widths, tables.vocab_sizes)
    logits = torch.empty(256, vocab_size, dtype=torch.bfloat16, device=META)
    best = torch.empty(2, 256, TREE_WIDTH_MAX, dtype=torch.float64, device=META)
    layout = Layout(256, 2)
    numbers = torch.empty(layout.end(1, 1), dtype=torch.int32, device=META)
    work = launch.DeviceWork(layout, numbers, 1, 16)
    room = frontiers(64, 256, 16, MARGIN_EDGES, [None, 512], META)
    with logged() as launches:
        choice.choose(logits, tables.shaping, tables.seeds, rows, best)
        for expands, takes in ((False, True), (True, True), (True, False)):
            between(room, best, work, 0, expands=expands, takes=takes)
    return launches


def launched_after_a_step(vocab_size: int) -> Launches:
    """The launches that choose where the step does not."""
    tables = SamplingTables.of(64, META)
    rows = torch.empty(2, 256, dtype=torch.int64, device=META)
    with logged() as launches:
        choice.best_tokens(
            torch.empty(256, vocab_size, dtype=torch.bfloat16, device=META), tables.shaping, tables.seeds, rows, 1
        )
    return launches


def all_launches(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """Of each kernel at least one."""
    machine = launch.Machine(num_processors=132, shared_bytes=227 << 10)
    log = launched(LLAMA_8B, torch.bfloat16, machine, monkeypatch).log
    log += launched(GPT_OSS, torch.bfloat16, machine, monkeypatch, softcap=50.0, has_sinks=True).log
    log += launched_between(256, 512, LLAMA_1B).log + launched_at_the_end(5000).log + launched_after_a_step(5000).log
    x = torch.empty(3, 256, dtype=torch.bfloat16, device=META)
    with logged() as launches:
        for weight in (fp8(64, 256, 128, 128), int4(64, 256, 128)):
            quantized_launch.product(x, *(each.to(META) if isinstance(each, Tensor) else each for each in weight))
    return log + launches.log


_TYPES = {
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
}


def compiled(launch: Launch, capability: int) -> Any:
    kernel = kernel_of(launch.kernel)
    arguments: Mapping[str, Any] = dict(zip(kernel.arg_names, launch.arguments, strict=False)) | dict(launch.options)
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        value = arguments[name]
        if value is None or kernel.params[index].is_constexpr:
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = f"*{_TYPES[value.dtype]}"
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32" if isinstance(value, int) else "fp32"
            if isinstance(value, int) and value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    options = {name: arguments[name] for name in ("num_warps", "num_stages", "enable_fp_fusion") if name in arguments}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def spilled_bytes(cubin: bytes, folder: Path) -> int:
    """What a thread keeps outside of registers: by NVIDIA's tool, which Triton brings along, of what would be run."""
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(file)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (stack,) = re.findall(r"STACK:(\d+)", told)
    return int(stack)


CASES = [
    *((LLAMA_8B, architecture) for architecture in ARCHITECTURES),
    *((GEMMA, architecture) for architecture in ARCHITECTURES),
    *((GEMMA_2_27B, architecture) for architecture in ARCHITECTURES),
    *((GPT_OSS, architecture) for architecture in ARCHITECTURES),
]


OLD_TRITON_BYTES = 16
"""Four numbers of a thread, which Triton 3.6 leaves out of registers on architecture 8.9 at heads of 64 numbers."""


@pytest.mark.parametrize(("heads", "architecture"), CASES, ids=lambda each: "-".join(map(str, each[:3])))
def test_attention_of_real_layers(
    heads: Heads, architecture: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    softcap = 50.0 if heads is GEMMA_2_27B else 0.0
    leaves_some = triton.__version__.startswith("3.6.") and (architecture.capability, heads.size) == (89, 64)
    # With one processor `write` and `combine` take the most rows that they may.
    machine = launch.Machine(num_processors=1, shared_bytes=architecture.shared_bytes)
    found = launched(heads, torch.bfloat16, machine, monkeypatch, softcap=softcap, has_sinks=heads is GPT_OSS)
    for each in found.log:
        kernel = compiled(each, architecture.capability)
        assert kernel.metadata.shared <= architecture.shared_bytes
        assert spilled_bytes(kernel.asm["cubin"], tmp_path) <= (OLD_TRITON_BYTES if leaves_some else 0)
        if each.kernel == "attend":
            instruction = architecture.instruction if each.options["ROWS"] >= 64 else "mma.sync"
            assert instruction in kernel.asm["ptx"]
            if each.options["num_stages"] > 1:
                assert "cp.async" in kernel.asm["ptx"]  # pages are on their way while others are computed


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: str(each.capability))
def test_what_is_between_the_products_of_real_layers(
    architecture: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With one processor a program takes the most rows that it may.
    monkeypatch.setattr(launch, "machine", lambda device: launch.Machine(1, architecture.shared_bytes))
    log = launched_between(5120, 25600, QWEN3_32B).log
    assert [each.kernel for each in log] == ["add_and_normalize", "rotate", "gate", "move"]
    for each in log:
        kernel = compiled(each, architecture.capability)
        assert kernel.metadata.shared <= architecture.shared_bytes
        assert spilled_bytes(kernel.asm["cubin"], tmp_path) == 0


SCALAR_BYTES = 16
"""Two numbers of a program that has dozens of them, where a session has one program a level."""


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: str(each.capability))
def test_the_choice_at_the_end_of_a_captured_step(architecture: Architecture, tmp_path: Path) -> None:
    log = launched_at_the_end(151936).log
    assert [each.kernel for each in log] == ["scan", "decide", *["advance"] * 3]
    for each in log:
        kernel = compiled(each, architecture.capability)
        assert kernel.metadata.shared <= architecture.shared_bytes
        allowed = SCALAR_BYTES if each.kernel == "advance" else 0
        assert spilled_bytes(kernel.asm["cubin"], tmp_path) <= allowed


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: str(each.capability))
def test_the_choice_after_a_step(architecture: Architecture, tmp_path: Path) -> None:
    log = launched_after_a_step(151936).log
    assert [each.kernel for each in log] == ["scan", "decide"]
    for each in log:
        kernel = compiled(each, architecture.capability)
        assert kernel.metadata.shared <= architecture.shared_bytes
        assert spilled_bytes(kernel.asm["cubin"], tmp_path) == 0


def test_every_product_and_every_sum_is_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each says so, which keeps compiler and assembler from making one of two. What fuses is a logarithm, whose
    program says that itself."""
    fusing = set()
    for each in all_launches(monkeypatch):
        assert each.options["enable_fp_fusion"] is launcher.FUSES  # which is said in one place
        ptx = compiled(each, 90).asm["ptx"]
        assert not re.search(r"\b(mul|add|sub)(\.ftz)?\.f(32|64)\b", ptx)
        if re.search(r"\bfma\.", ptx):
            fusing.add(each.kernel)
    assert fusing == {"scan", "decide"}
