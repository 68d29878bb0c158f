"""Small steps as CUDA graphs: every kernel of a forward pass is recorded once and replayed by one call.

Why: docs/decisions/0011-cuda-graphs.md; why a step is its number of tokens: docs/decisions/0038-token-buckets.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from outrider.engine.attention.tree import TreeAttention, TreeStep
from outrider.engine.batch import PackedBatch
from outrider.engine.compile.choice import ChoiceInGraph

Pass = Callable[[], Tensor]
"""A forward pass over what lies in the static buffer: the logits of all its rows, [N, V]. What it returns is held, so
that no other pass takes its place."""

_NUM_TRIAL_RUNS = 2
"""Passes before one is captured: compilers compile, libraries choose kernels and take their workspaces at the first;
the second shows that they are done."""


class CudaRecorder:
    """Captures forward passes of one device as CUDA graphs.

    They share one pool of memory: a pass leaves nothing behind but its logits, and no two run at once, so each may use
    what the others use. The logits are held, so that no other graph takes their place.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Pass) -> Pass:
        """Captures `run`; what is returned replays it on the stream that is then the current one.

        Trial runs and capture go over one and the same side stream, as torch wants it, so the workspace that cuBLAS
        keeps for a stream exists before the capture. Other threads may use the device meanwhile: only this thread's
        calls can spoil the capture.

        Raises RuntimeError if `run` does what cannot be captured, such as waiting for the device.
        """
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(_NUM_TRIAL_RUNS):
                    run()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                logits = run()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay


class StepGraphs:
    """The captured forward passes of one model, one for each token bucket. It is a `Forward`."""

    path = "graph"

    def __init__(
        self,
        forward: Callable[[TreeStep], Tensor],
        attention: TreeAttention,
        record: Callable[[Pass], Pass],
        choice: ChoiceInGraph | None = None,
    ) -> None:
        """`forward` computes the logits [N, V] of a step; `record` turns a pass into one that is replayed. With
        `choice` the passes choose tokens, too."""
        self.forward = forward
        self._attention = attention
        self.record = record
        self.choice = choice
        self.best: Tensor | None = None
        """What the latest pass chose from its rows, [2, R, width], if it was to do so for each; the caller's own. See
        `ChoiceInGraph.best`."""
        self._passes: dict[int, Pass] = {}

    @property
    def buckets(self) -> Sequence[int]:
        """The numbers of tokens that are worth capturing, in the order in which to do it."""
        return self._attention.buckets

    def capture(self, num_tokens: int) -> None:
        """Records the pass over that many tokens, one of `buckets`, from nothing but padding: it writes to the scratch
        cell alone. The KV cache stays where it is from now on. Raises RuntimeError if that cannot be."""
        self._attention.load(PackedBatch(), num_tokens)
        self._passes[num_tokens] = self.record(partial(self._read_and_run, num_tokens))

    def run(self, batch: PackedBatch) -> Tensor | None:
        """See `Forward`; None if the batch fits no captured pass.

        Copy, replay and whatever reads the logits are queued on one stream, so none overtakes another, and the host
        waits for none. The logits are a copy: the next replay overwrites its own.
        """
        size = self._attention.size_of(batch)
        if size is None or size not in self._passes:
            return None
        num_rows = len(batch.rows)
        self._attention.load(batch, size)
        logits = self._passes[size]()
        self.best = None
        if self.choice is not None and batch.row_choices and all(batch.row_choices):
            self.best = self.choice.best(len(logits))[:, :num_rows].clone()
        return logits[:num_rows].clone()

    def _read_and_run(self, size: int) -> Tensor:
        step = self._attention.read(size)
        logits = self.forward(step)
        if self.choice is not None:
            self.choice.choose(logits, step)
        return logits
