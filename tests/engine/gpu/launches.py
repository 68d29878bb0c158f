"""What is launched: stands between those who launch kernels and the kernels, without a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves

from outrider.engine.gpu import advance, cell_moves, choice, layer_kernels, quantized_product, tree_attention
from tests.engine.tape import Listening

KERNELS = {
    tree_attention: ("write", "attend", "combine"),
    layer_kernels: ("add_and_normalize", "rotate", "gate"),
    cell_moves: ("move",),
    choice: ("scan", "decide"),
    advance: ("advance",),
    quantized_product: ("multiply",),
}
"""By the module that they are in."""


def kernel_of(name: str) -> Any:
    """The kernel of that name."""
    return next(getattr(module, name) for module, names in KERNELS.items() if name in names)


def forget_compiled() -> None:
    """Has Triton forget what it has compiled and loaded in this process, so that another driver may load it."""
    for names in KERNELS.values():
        for name in names:
            kernel_of(name).device_caches.clear()


class Launch(NamedTuple):
    """One launch."""

    kernel: str
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]


class Launches:
    """A log of launches."""

    def __init__(self) -> None:
        self.log: list[Launch] = []

    @property
    def num(self) -> Counter[str]:
        """Of each kernel."""
        return Counter(launch.kernel for launch in self.log)


class _Logged:
    def __init__(self, launches: Launches, name: str, kernel: Any) -> None:
        self._launches, self._name, self._kernel = launches, name, kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            self._launches.log.append(Launch(self._name, grid, arguments, options))
            devices = {leaf.device.type for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)}
            assert len(devices) == 1, "a kernel was handed tensors of several devices"
            if devices == {"cpu"}:
                with _disable_current_modes():  # the interpreter's own operations are not the step's
                    self._kernel[grid](*arguments, **options)

        def launch_on_tape(*arguments: Any, **options: Any) -> None:
            launch(*arguments, **options)
            mode = _get_current_dispatch_mode()
            if isinstance(mode, Listening):
                mode.calls.append((launch, arguments, options, None))

        return launch_on_tape


@contextmanager
def logged() -> Iterator[Launches]:
    """Meanwhile notes the launches, also on the tape that is listening. On meta tensors nothing runs."""
    launches = Launches()
    kernels = [(module, name, getattr(module, name)) for module, names in KERNELS.items() for name in names]
    for module, name, kernel in kernels:
        setattr(module, name, _Logged(launches, name, kernel))
    try:
        yield launches
    finally:
        for module, name, kernel in kernels:
            setattr(module, name, kernel)
