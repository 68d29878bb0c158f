"""Without a C compiler kernels are launched by calls of libcuda: the right ones, with the right bytes.

A stand-in for libcuda notes them. What loads and launches for real is a GPU's driver, and none has been asked.
"""

from __future__ import annotations

import ctypes
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel

from outrider.engine.compile.just_in_time import compiler_problem
from outrider.engine.gpu import driver as gpu_driver
from outrider.engine.gpu import launch, launcher
from outrider.engine.gpu.driver import Launcher, Libcuda, LibcudaDriver
from tests.engine.gpu import test_compiled_kernels
from tests.engine.gpu.launches import KERNELS, Launch, forget_compiled, kernel_of
from tests.engine.gpu.test_compiled_kernels import LLAMA_1B, LLAMA_8B, all_launches, launched

CPU = torch.device("cpu")
STREAM = 0x57
DEVICE = 3
SHARED_BYTES = 227 << 10


class StandIn:
    """A libcuda that notes what it is told; see `libcuda.cpp`."""

    def __init__(self, path: Path) -> None:
        self._library = library = ctypes.CDLL(str(path))
        library.declare.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_int))
        library.kernel_of.restype = library.attributes_set.restype = ctypes.c_char_p
        library.numbers_of.restype = ctypes.POINTER(ctypes.c_uint32)
        library.stream_of.restype = library.current_context.restype = ctypes.c_void_p
        self.fail = library.fail

    def declare(self, function: int, sizes: list[int]) -> None:
        self._library.declare(function, len(sizes), (ctypes.c_int * len(sizes))(*sizes))

    @property
    def context(self) -> int:
        return self._library.current_context()

    @property
    def num_loaded(self) -> int:
        return self._library.num_loaded()

    @property
    def attributes(self) -> list[str]:
        return self._library.attributes_set().decode().splitlines()

    def launches(self) -> Iterator[tuple[str, list[int], int, bytes]]:
        """Kernel, grid and block and bytes of shared memory, stream, what the kernel was given."""
        for index in range(self._library.num_launches()):
            room = ctypes.create_string_buffer(4096)
            num_bytes = self._library.parameters_of(index, room)
            name, numbers = self._library.kernel_of(index).decode(), self._library.numbers_of(index)[:7]
            yield name, numbers, self._library.stream_of(index), room.raw[:num_bytes]


def parameter_sizes(cubin: bytes, folder: Path) -> list[int]:
    """Bytes of each parameter of a kernel, as its machine code says."""
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-elf", str(file)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"EIATTR_KPARAM_INFO.*?Ordinal\s*:\s*(0x\w+).*?Size\s*:\s*(0x\w+)", told, re.DOTALL)
    sizes = {int(ordinal, 16): int(size, 16) for ordinal, size in found}
    return [sizes[ordinal] for ordinal in range(len(sizes))]


@pytest.fixture
def libcuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A machine with a GPU of architecture 9.0, as far as is asked, and without any compiler."""
    if problem := compiler_problem(CPU):
        pytest.skip(problem)
    library = tmp_path / "libcuda.so"
    source = Path(__file__).with_name("libcuda.cpp")
    subprocess.run(["g++", "-std=c++17", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    stand_in = StandIn(library)
    monkeypatch.setattr(gpu_driver, "_LIBRARY", str(library))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: DEVICE)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    properties = SimpleNamespace(shared_memory_per_block_optin=SHARED_BYTES)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: STREAM, raising=False)
    monkeypatch.setattr(test_compiled_kernels, "META", CPU)
    load = Libcuda.load_binary

    def load_and_declare(self: Libcuda, name: str, kernel: bytes, *others: int) -> tuple[int, int, int, int, int]:
        found = load(self, name, kernel, *others)
        stand_in.declare(found[1], parameter_sizes(kernel, tmp_path))
        return found

    monkeypatch.setattr(Libcuda, "load_binary", load_and_declare)
    monkeypatch.setattr(triton.runtime.driver, "_active", None)
    launcher._take_driver.cache_clear()
    forget_compiled()
    yield stand_in
    forget_compiled()
    assert stand_in.num_loaded == 0 or not hasattr(CompiledKernel, "__del__")  # older Tritons never unload
    launcher._take_driver.cache_clear()


def given(told: Launch) -> bytes:
    """What a kernel has to get: what it was called with but constants, and two addresses of memory that it does not
    want."""
    kernel = kernel_of(told.kernel)
    arguments = dict(zip(kernel.arg_names, told.arguments, strict=False)) | dict(told.options)
    found = b""
    for parameter in kernel.params:
        value: Any = arguments[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            continue
        if isinstance(value, Tensor):
            found += struct.pack("<Q", value.data_ptr())
        elif isinstance(value, int):
            found += struct.pack("<i" if -(2**31) <= value < 2**31 else "<q", value)
        else:
            found += struct.pack("<f", value)
    return found + bytes(16)


def test_every_kernel_gets_what_it_was_called_with(libcuda: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    log = all_launches(monkeypatch)
    assert {each.kernel for each in log} == {name for names in KERNELS.values() for name in names}
    assert isinstance(triton.runtime.driver.active, LibcudaDriver)
    found = list(libcuda.launches())
    for told, (kernel, numbers, stream, parameters) in zip(log, found, strict=True):
        assert kernel == told.kernel
        assert numbers[:3] == [*told.grid, 1, 1][:3]
        assert numbers[3:6] == [32 * told.options.get("num_warps", 4), 1, 1]
        assert stream == STREAM
        assert parameters == given(told)
    assert libcuda.context == 0xC0 + DEVICE  # which had none


def test_more_shared_memory_than_all_have_is_asked_for(libcuda: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = launch.Machine(num_processors=132, shared_bytes=SHARED_BYTES)
    launched(LLAMA_8B, torch.bfloat16, machine, monkeypatch)
    shared = {kernel: numbers[6] for kernel, numbers, _, _ in libcuda.launches()}
    assert shared["attend"] > 48 << 10 > shared["combine"]
    assert libcuda.attributes == [f"attend 8 {shared['attend']}"]


def test_what_fails_is_said_in_the_drivers_words(libcuda: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = launch.Machine(num_processors=132, shared_bytes=SHARED_BYTES)
    launched(LLAMA_1B, torch.bfloat16, machine, monkeypatch)
    libcuda.fail(700)
    with pytest.raises(RuntimeError, match=r"cuLaunchKernel: out of order \(700\)"):
        launched(LLAMA_1B, torch.bfloat16, machine, monkeypatch)
    libcuda.fail(0)
    with pytest.raises(RuntimeError, match=r"cuModuleLoadData: out of order \(200\)"):
        Libcuda().call("cuModuleLoadData", ctypes.byref(ctypes.c_void_p()), b"no kernel")


def test_nothing_is_launched_without_programs(libcuda: StandIn) -> None:
    Launcher(LibcudaDriver(), SOURCE, METADATA)(0, 1, 1, STREAM, 0, None, None, None, None, 5)
    assert list(libcuda.launches()) == []


SOURCE = SimpleNamespace(signature={"count": "i32"})
METADATA = SimpleNamespace(
    name="kernel",
    num_ctas=1,
    launch_cooperative_grid=False,
    launch_pdl=False,
    global_scratch_size=0,
    profile_scratch_size=0,
    num_warps=4,
    target=SimpleNamespace(warp_size=32),
    shared=0,
)


@pytest.mark.parametrize(
    "other", [{"num_ctas": 2}, {"launch_pdl": True}, {"launch_cooperative_grid": True}, {"global_scratch_size": 64}]
)
def test_a_launch_of_a_special_kind_is_refused_in_words(other: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="kernel wants scratch memory, or a launch of a special kind; install gcc"):
        Launcher(LibcudaDriver(), SOURCE, SimpleNamespace(**(vars(METADATA) | other)))


def test_arguments_of_other_types_are_refused_in_words() -> None:
    with pytest.raises(RuntimeError, match="arguments of type bf16 are launched by Triton's own launchers alone"):
        Launcher(LibcudaDriver(), SimpleNamespace(signature={"x": "*fp32", "y": "bf16"}), METADATA)


def test_where_there_is_a_compiler_triton_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "compiler_problem", lambda: "")
    monkeypatch.setattr(triton.runtime.driver, "_active", None)
    launcher._take_driver.cache_clear()
    launched_with: list[dict[str, Any]] = []
    launcher.run({(1,): lambda **options: launched_with.append(options)}, (1,), SIZE=2)
    assert triton.runtime.driver._active is None
    assert launched_with == [{"enable_fp_fusion": False, "SIZE": 2}]
    launcher._take_driver.cache_clear()
