"""A guard over a step: it raises where a host would wait for its device, or where a captured step could not be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from outrider.engine import transfer
from outrider.engine.attention import tree
from outrider.engine.compile import device_levels

aten = torch.ops.aten

_DATA_DEPENDENT = {
    aten._local_scalar_dense,
    aten.item,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.unique_consecutive,
    aten.unique_dim,
    aten.bincount,
    aten.equal,
    aten.is_nonzero,
}
"""Operations whose result, or its shape, a host has to know: it waits for the device."""


_BUILDERS = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor}
"""What makes a tensor of the host's numbers. On a device that is a copy, which no operation tells."""


class WaitsError(AssertionError):
    """A host would wait."""


class _Calls(TorchFunctionMode):
    """Sees what a host hands over as numbers of its own."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        is_copy = any(isinstance(each, Tensor) for each in args[-1:])
        if func in _BUILDERS and result.device.type == self._device and not is_copy:
            raise WaitsError(f"{func.__name__} copies numbers of the host to the device")
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].device.type == self._device:
            indices = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(each, (list, range)) for each in indices):
                raise WaitsError("an index of the host's numbers is copied to the device")
        return result


class _Guard(TorchDispatchMode):
    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device
        self.pinned: list[Tensor] = []
        self.num_copies = 0

    def __torch_dispatch__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = any(each.device.type == self._device for each in given)
        if func.overloadpacket in _DATA_DEPENDENT and on_device:
            raise WaitsError(f"{func} has to know what is on the device")
        if func.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and on_device:
            indices = [each for each in args[1] if each is not None]
            if any(each.dtype in (torch.bool, torch.uint8) or each.device.type == "cpu" for each in indices):
                raise WaitsError(f"{func} by a mask or by an index of the host")
        if func.overloadpacket is aten.repeat_interleave and on_device and kwargs.get("output_size") is None:
            raise WaitsError(f"{func} has as many rows as its tensor says")
        named = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        is_queued = bool(named.get("non_blocking"))
        if func.overloadpacket in (aten.to, aten._to_copy):
            target = named["other"].device if "other" in named else named.get("device")
            self._check_copy(args[0], torch.device(target or args[0].device), is_queued)
        if func.overloadpacket is aten.copy_:
            self._check_copy(args[1], args[0].device, is_queued)
        return func(*args, **kwargs)

    def _check_copy(self, source: Tensor, device: torch.device, is_queued: bool) -> None:
        if source.device.type == device.type:
            return
        if device.type == "cpu":
            raise WaitsError("something is brought to the host")
        self.num_copies += 1
        if not is_queued:
            raise WaitsError("a copy to the device is waited for")
        if not any(source is each for each in self.pinned):
            raise WaitsError("a copy to the device is from memory that is not page-locked")


@contextmanager
def guarded(monkeypatch: Any, device: str) -> Iterator[_Guard]:
    """Meanwhile no operation may wait for `device`. What `transfer.staged` returns stands for page-locked memory."""
    guard = _Guard(device)

    def staged(content: Tensor, device: torch.device) -> Tensor:
        guard.pinned.append(content)
        return content

    with monkeypatch.context() as patch, guard, _Calls(device):
        for module in (transfer, tree, device_levels):
            patch.setattr(module, "staged", staged)
        yield guard
