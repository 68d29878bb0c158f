"""One layer's caches, filled at random, over which batches attend in several ways; and batches of all shapes for it."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from outrider.engine.attention.by_session import SessionSteps
from outrider.engine.attention.masks import spans_and_masks
from outrider.engine.batch import PackedBatch, pack
from outrider.engine.jobs import LINE_END, Job, plan, settle
from outrider.engine.kv_cache.blocks import BlockPool
from outrider.engine.kv_cache.slots import Slot, SlotPool
from tests.engine.histories import random_line

CPU = torch.device("cpu")


class Layer:
    """Its slots' blocks do not stand in a row."""

    def __init__(
        self,
        *,
        window: int | None = None,
        num_heads: int = 6,
        num_kv_heads: int = 2,
        key_size: int = 24,
        value_size: int = 40,
        block_cells: int = 16,
        num_blocks: int = 100,
        max_context: int = 100,
        dtype: torch.dtype = torch.float32,
        device: torch.device = CPU,
    ) -> None:
        self.random = torch.Generator().manual_seed(3)
        self.dtype, self.device = dtype, device
        blocks = BlockPool(num_blocks, block_cells)
        taken = [blocks.take() for _ in range(num_blocks)]
        for block in random.Random(3).sample(taken, num_blocks):
            blocks.release([block])
        self.pool = SlotPool(24, max_context, blocks)
        self.window, self.num_heads, self.block_cells = window, num_heads, block_cells
        self.num_cells = (num_blocks + 1) * block_cells
        self.keys = self.noise(self.num_cells, num_kv_heads, key_size)
        self.values = self.noise(self.num_cells, num_kv_heads, value_size)

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random).to(self.device, self.dtype)

    def inputs(self, num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of so many tokens."""
        (num_kv_heads, key_size), value_size = self.keys.shape[1:], self.values.shape[2]
        return (
            self.noise(num_tokens, self.num_heads, key_size).transpose(0, 1),
            self.noise(num_tokens, num_kv_heads, key_size).transpose(0, 1),
            self.noise(num_tokens, num_kv_heads, value_size).transpose(0, 1),
        )

    def by_session(self, batch: PackedBatch) -> SessionSteps:
        spans, masks = spans_and_masks(batch, (self.window,))
        visible = masks[self.window].to(self.device)
        additive = torch.zeros(visible.shape, dtype=self.dtype, device=self.device)
        return SessionSteps(
            (self.keys.clone(),),
            (self.values.clone(),),
            (additive.masked_fill_(~visible, float("-inf")),),
            torch.tensor(batch.write_cells, device=self.device),
            spans,
            torch.tensor(batch.blocks, device=self.device),
            self.block_cells,
        )

    def held(self, line: list[int], parents: list[int] | None = None) -> Slot:
        """A slot that holds `line` and below it the nodes 0, 1, ... with those parents."""
        slot, parents = self.pool.acquire(), parents or []
        settle(plan(Job(slot, line, parents, range(len(parents)), wanted=range(len(parents))), max_tokens=10**6))
        return slot


def packed(layer: Layer, jobs: list[Job], num_padding: int = 0) -> PackedBatch:
    """All that `jobs` have to feed, and so much padding behind it."""
    batch = pack([plan(job, max_tokens=4096) for job in jobs])
    batch.pad(len(batch.token_ids) + num_padding, layer.num_cells - 1)
    return batch


def random_jobs(
    layer: Layer, rng: random.Random, *, num_sessions: int, max_new: int, max_nodes: int, max_held: int = 90
) -> list[Job]:
    """Lines of which up to `max_held` tokens are held and then up to `max_new` are not, with trees of which a part is
    held too.

    About half of the lines begin alike, so their slots have blocks in common.
    """
    jobs: list[Job] = []
    for _ in range(num_sessions):
        line = random_line(rng.randint(1, max_held), seed=rng.choice([0, rng.randrange(1, 99)]))
        num_new, num_nodes = rng.randint(0, max_new), rng.randint(0, max_nodes)
        straight = rng.random() < 0.3
        parents = [node - 1 if straight else rng.randint(LINE_END, node - 1) for node in range(num_nodes)]
        num_held = 0 if num_new else rng.randint(0, num_nodes)
        slot = layer.held(line, parents[:num_held])
        line = [*line, *random_line(num_new, seed=rng.randrange(99))]
        first_wanted = num_held if num_held < num_nodes and rng.random() < 0.5 else LINE_END
        jobs.append(Job(slot, line, parents, range(num_nodes), range(first_wanted, num_nodes)))
    return jobs
