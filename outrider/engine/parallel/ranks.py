"""Ranks: the processes of one model, a device each. Rank 0 says what a step is; the others take it with it.

torch.distributed carries it. What a step is goes over connections of their own that may be silent for long; what the
layers exchange goes over those of transformers' plan, where a rank that does not answer is lost. Ranks trust one
another; `docs/security.md` says who can reach their sockets.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.batch import PackedBatch
from outrider.engine.kv_cache.slots import Move
from outrider.engine.parallel.announcement import decode, encode

LOADING_SECONDS = 1800.0
"""Longest that ranks wait for one another until they have loaded: as long as storage takes for large weights."""

STEP_SECONDS = 60.0
"""Longest that one rank waits for another within a step. One that has not come by then is lost: a prompt's chunk takes
a second or two where it takes long."""

_IDLE = timedelta(days=365)
"""How long a rank waits for the next step: no request may come for days. A connection that breaks ends it at once."""

_HEAD_NUMBERS = 1024
"""Integers of the buffer in which a step is broadcast, its length among them; a second one holds what is over. That is
a round over a dozen sessions, and 8 KiB on the wire whatever the step."""


class Ranks:
    """This process' place among the ranks. Only the device thread announces or hears steps."""

    def __init__(self, rank: int, num_ranks: int, device: torch.device, store: Store | None = None) -> None:
        """Meets the others at `store`, or where the variables MASTER_ADDR and MASTER_PORT say. There are `num_ranks`,
        and this one computes on `device`.

        Raises UnsupportedModelError if they do not come together.
        """
        self.rank = rank
        self.num_ranks = num_ranks
        on_gpu = device.type == "cuda"
        try:
            if store is None:  # torch looks for other keys in a store that it has opened than in one that it is given
                store, *_ = next(rendezvous("env://", rank, num_ranks))
            dist.init_process_group(
                "nccl" if on_gpu else "gloo",
                store=store,
                rank=rank,
                world_size=num_ranks,
                timeout=timedelta(seconds=LOADING_SECONDS),
                device_id=device if on_gpu else None,
            )
            self._announcements: Any = dist.new_group(backend="gloo", timeout=_IDLE)
            self._lifeline: Any = dist.new_group(backend="gloo", timeout=_IDLE)
        except (RuntimeError, ValueError) as error:
            raise UnsupportedModelError(
                f"the {num_ranks} ranks of --tensor-parallel did not come together ({type(error).__name__}: {error}); "
                "see what the others say, and that each can reach rank 0 and has a device"
            ) from error
        self._is_ending = False

    def smallest(self, number: int) -> int:
        """The smallest of what the ranks say; all of them ask."""
        found = torch.tensor(number)
        dist.all_reduce(found, dist.ReduceOp.MIN, group=self._lifeline)
        return int(found.item())

    def loaded(self) -> None:
        """All have loaded: from now on none waits longer than STEP_SECONDS for another, but for the next step. All of
        them call it."""
        dist.barrier(group=self._lifeline)
        within_a_step = timedelta(seconds=STEP_SECONDS)
        dist.distributed_c10d._set_pg_timeout(within_a_step)
        if self.rank == 0:  # who announces waits until the others listen
            dist.distributed_c10d._set_pg_timeout(within_a_step, self._announcements)

    def announce(self, moves: Sequence[Move], batch: PackedBatch) -> None:
        """Tells the others what rank 0 computes next."""
        self._broadcast(encode(moves, batch))

    def dismiss(self) -> None:
        """Tells the others that there are no more steps. Rank 0 does so at its end."""
        self._is_ending = True
        self._broadcast([])

    def steps(self) -> Iterator[tuple[list[Move], PackedBatch]]:
        """What rank 0 announces, until it dismisses. Raises RuntimeError if rank 0 is lost."""
        while numbers := self._heard():
            yield decode(numbers)

    def watch(self, on_loss: Callable[[int], None]) -> None:
        """Calls `on_loss` with the number of each other rank that is gone before it was dismissed, on a thread."""
        for rank in range(self.num_ranks):
            if rank != self.rank:
                threading.Thread(target=self._watch, args=(rank, on_loss), name=f"rank {rank}", daemon=True).start()

    def _watch(self, rank: int, on_loss: Callable[[int], None]) -> None:
        try:
            dist.recv(torch.zeros(1), src=rank, group=self._lifeline)  # which it never sends
        except RuntimeError:
            if not self._is_ending:
                on_loss(rank)

    def _broadcast(self, numbers: Sequence[int]) -> None:
        told = _tensor([len(numbers), *numbers])
        head = torch.zeros(_HEAD_NUMBERS, dtype=torch.int64)
        head[: len(told)] = told[:_HEAD_NUMBERS]
        self._pass_on(head)
        if len(told) > _HEAD_NUMBERS:
            self._pass_on(told[_HEAD_NUMBERS:])

    def _heard(self) -> list[int]:
        head = torch.zeros(_HEAD_NUMBERS, dtype=torch.int64)
        self._pass_on(head)
        length, *numbers = head.tolist()
        if length <= len(numbers):
            return numbers[:length]
        rest = torch.zeros(length - len(numbers), dtype=torch.int64)
        self._pass_on(rest)
        return numbers + rest.tolist()

    def _pass_on(self, buffer: Tensor) -> None:
        dist.broadcast(buffer, src=0, group=self._announcements)


def _tensor(numbers: Sequence[int]) -> Tensor:
    return torch.frombuffer(array("q", numbers), dtype=torch.int64)
