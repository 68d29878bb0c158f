"""A forward pass recorded and replayed without a GPU, by the rules of a CUDA graph.

While it is recorded, every operation of torch is noted with its arguments. A replay runs the same operations on the
same tensors: what Python decided while recording stays decided, and only what the tensors hold may tell one step from
another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from outrider.engine.attention.tree import TreeAttention
from outrider.engine.batch import CAPTURED_SIZES
from outrider.engine.compile.choice import ChoiceInGraph
from outrider.engine.compile.graphs import Pass, StepGraphs
from outrider.engine.engine import Engine

SMALL_SIZES = CAPTURED_SIZES[:5]
"""Token buckets up to 16 tokens."""

_WAITS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}
"""Operations for which a host waits for its device. They cannot be captured."""


class Listening(TorchDispatchMode):
    """Notes every operation; one that waits for its device raises RuntimeError."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], Sequence[Any], Mapping[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _WAITS:
            raise RuntimeError(f"{func} waits for the device")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result


class Tape:
    """Records passes, as `CudaRecorder` does; counts how often one was replayed."""

    def __init__(self) -> None:
        self.num_passes = 0
        self.num_replays = 0

    def __call__(self, run: Pass) -> Pass:
        self.num_passes += 1
        with Listening() as listening:
            logits = run()

        def replay() -> Tensor:
            self.num_replays += 1
            present: dict[int, Tensor] = {}
            for func, args, kwargs, result in listening.calls:
                now_args, now_kwargs = tree_map_only(Tensor, lambda each: present.get(id(each), each), (args, kwargs))
                renewed = func(*now_args, **now_kwargs)
                for old, new in zip(tree_leaves(result), tree_leaves(renewed), strict=True):
                    if isinstance(old, Tensor):
                        present[id(old)] = new
            return logits.copy_(present[id(logits)])  # in the same place each time

        return replay


def graphed(
    engine: Engine,
    record: Callable[[Pass], Pass],
    sizes: Sequence[int] = SMALL_SIZES,
    choice: ChoiceInGraph | None = None,
) -> StepGraphs:
    """From now on steps of `engine`, which attends by `tree`, are what `record` made of them, in those sizes."""
    model = engine.model
    assert isinstance(model.attention, TreeAttention)
    graphs = StepGraphs(model.decoder.run_static, model.attention, record, choice)
    with torch.inference_mode():
        for size in sizes:
            graphs.capture(size)
    model.forwards.insert(0, graphs)
    return graphs
