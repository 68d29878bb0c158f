"""Triton's driver for CUDA where there is no C compiler: what it has in C is done by calls of libcuda.

Triton makes a kernel by itself, to the last instruction. A C compiler it wants for modules that load and launch what it
made, by a few functions of NVIDIA's driver. Here `ctypes` calls the same functions. What that takes the host more, a
captured step feels once, when it is recorded. No GPU has run this.
"""

# pyright: reportMissingImports=false
# Triton comes with torch for GPUs alone.
from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_uint, c_uint64, c_void_p
from functools import cached_property, partial
from typing import Any

import torch
from triton.backends.driver import GPUDriver
from triton.backends.nvidia.driver import CudaDriver

_TYPES = {
    "i1": ctypes.c_int8,
    "i8": ctypes.c_int8,
    "i16": ctypes.c_int16,
    "i32": ctypes.c_int32,
    "i64": ctypes.c_int64,
    "u1": ctypes.c_uint8,
    "u8": ctypes.c_uint8,
    "u16": ctypes.c_uint16,
    "u32": ctypes.c_uint32,
    "u64": ctypes.c_uint64,
    "fp32": ctypes.c_float,
    "fp64": ctypes.c_double,
}
"""What a kernel takes besides pointers, by Triton's names."""

_SCRATCH = ("global_scratch_size", "profile_scratch_size")
"""Of memory that is handed to every kernel, behind what is its own, if Triton knows of it. None of ours wants any."""

_SHARED_BYTES = 48 << 10
"""Shared memory that a program gets without asking."""

# Of cuda.h.
_MAX_THREADS_PER_BLOCK, _LOCAL_SIZE_BYTES, _NUM_REGS, _MAX_DYNAMIC_SHARED_SIZE_BYTES = 0, 3, 4, 8
_PREFER_SHARED = 1

_LIBRARY = "libcuda.so.1"
_HANDLE = ctypes.POINTER(c_void_p)

_FUNCTIONS = {
    "cuCtxGetCurrent": (_HANDLE,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuDevicePrimaryCtxRetain": (_HANDLE, c_int),
    "cuModuleLoadData": (_HANDLE, c_char_p),
    "cuModuleUnload": (c_void_p,),
    "cuModuleGetFunction": (_HANDLE, c_void_p, c_char_p),
    "cuFuncGetAttribute": (ctypes.POINTER(c_int), c_int, c_void_p),
    "cuFuncSetAttribute": (c_void_p, c_int, c_int),
    "cuFuncSetCacheConfig": (c_void_p, c_int),
    "cuLaunchKernel": (c_void_p, *[c_uint] * 7, c_void_p, _HANDLE, _HANDLE),
}
"""What is called, and what it takes."""


class Libcuda:
    """The functions of NVIDIA's driver that kernels need. It stands in for Triton's `CudaUtils`."""

    @cached_property
    def _library(self) -> ctypes.CDLL:
        library = ctypes.CDLL(_LIBRARY)  # torch for CUDA has loaded it before
        library.cuGetErrorString.argtypes = (c_int, ctypes.POINTER(c_char_p))
        for name, types in _FUNCTIONS.items():
            getattr(library, name).argtypes = types
        return library

    def call(self, name: str, *arguments: Any) -> None:
        """Raises RuntimeError, in the driver's words, if it fails, and OSError where there is no driver."""
        if status := getattr(self._library, name)(*arguments):
            words = c_char_p()
            self._library.cuGetErrorString(status, byref(words))
            raise RuntimeError(f"{name}: {(words.value or b'an error without a name').decode()} ({status})")

    def enter(self, device: int) -> None:
        """Makes torch's context of `device` this thread's, if it has none yet."""
        context = c_void_p()
        self.call("cuCtxGetCurrent", byref(context))
        if not context:
            self.call("cuDevicePrimaryCtxRetain", byref(context), device)
            self.call("cuCtxSetCurrent", context)

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        """Loads a kernel that may take `shared` bytes: module, function, registers, words beside them, most threads."""
        module, function = c_void_p(), c_void_p()
        self.enter(device)
        self.call("cuModuleLoadData", byref(module), kernel)
        self.call("cuModuleGetFunction", byref(function), module, name.encode())
        if shared > _SHARED_BYTES:
            self.call("cuFuncSetCacheConfig", function, _PREFER_SHARED)
            self.call("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)
        registers, local_bytes, threads = (
            self._attribute(function, each) for each in (_NUM_REGS, _LOCAL_SIZE_BYTES, _MAX_THREADS_PER_BLOCK)
        )
        return module.value or 0, function.value or 0, registers, local_bytes // 4, threads

    def unload_module(self, module: int) -> None:
        """Gives back what `load_binary` has taken."""
        self.call("cuModuleUnload", module)

    def get_device_properties(self, device: int) -> dict[str, int]:
        """What Triton asks of them."""
        return {"max_shared_mem": torch.cuda.get_device_properties(device).shared_memory_per_block_optin}

    def _attribute(self, function: c_void_p, attribute: int) -> int:
        found = c_int()
        self.call("cuFuncGetAttribute", byref(found), attribute, function)
        return found.value


class Launcher:
    """Launches one kernel. It stands in for Triton's `CudaLauncher`."""

    def __init__(self, driver: LibcudaDriver, source: Any, metadata: Any) -> None:
        """`source` and `metadata` are of Triton's compiler. Raises RuntimeError for what no kernel of ours is."""
        self._driver = driver
        self._types = [None if each == "constexpr" else _type(each) for each in source.signature.values()]
        scratch = [getattr(metadata, name) for name in _SCRATCH if hasattr(metadata, name)]
        special = metadata.num_ctas != 1, metadata.launch_cooperative_grid, metadata.launch_pdl
        if any(scratch) or any(special):
            raise RuntimeError(f"{metadata.name} wants scratch memory, or a launch of a special kind; install gcc")
        self._scratch = [c_uint64(0) for _ in scratch]
        self._num_threads = metadata.num_warps * metadata.target.warp_size
        self._shared = metadata.shared

    def __call__(self, grid_x: int, grid_y: int, grid_z: int, stream: int, function: int, *told: Any) -> None:
        """As Triton calls it. `told` begins with four things for profilers; the kernel's arguments follow."""
        arguments = told[4:]
        if not grid_x * grid_y * grid_z:
            return
        taken = [kind(_value(each)) for kind, each in zip(self._types, arguments, strict=True) if kind is not None]
        taken += self._scratch
        places = (c_void_p * len(taken))(*map(ctypes.addressof, taken))
        libcuda = self._driver.utils
        libcuda.enter(self._driver.get_current_device())
        grid = grid_x, grid_y, grid_z
        libcuda.call("cuLaunchKernel", function, *grid, self._num_threads, 1, 1, self._shared, stream, places, None)


class LibcudaDriver(CudaDriver):
    """See the module."""

    def __init__(self) -> None:
        """Asks torch for devices and streams, as Triton's own does, which would compile here."""
        GPUDriver.__init__(self)
        self.utils = Libcuda()
        self.launcher_cls = partial(Launcher, self)


def _type(name: str) -> Any:
    if name.startswith("*"):
        return c_uint64
    if name not in _TYPES:
        raise RuntimeError(f"arguments of type {name} are launched by Triton's own launchers alone; install gcc")
    return _TYPES[name]


def _value(argument: Any) -> Any:
    return argument.data_ptr() if isinstance(argument, torch.Tensor) else argument
