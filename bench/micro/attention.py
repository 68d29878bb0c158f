"""What a layer's attention takes on a CPU, by context and number of tokens, with blocks in a row and scattered.

`python -m bench.micro.attention` prints a table. Before each call the memory of a layer's weights is read, and layers
take turns, so keys and values come from as far away as in a step. The least of many calls is told: other work on the
machine adds to all the others.
"""

from __future__ import annotations

import random
import time
from typing import Annotated, NamedTuple

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from outrider.engine import native
from outrider.engine.attention.native import described
from outrider.engine.batch import PackedBatch, pack
from outrider.engine.jobs import LINE_END, Job, plan, settle
from outrider.engine.kv_cache.blocks import BlockPool
from outrider.engine.kv_cache.slots import TREE_CELLS_MAX, SlotPool
from outrider.engine.kv_cache.tensors import KVCache
from outrider.engine.load.probe import LayerFacts
from outrider.worker.config import WorkerConfig

NUM_LAYERS = 6
BLOCK_CELLS = 16
WEIGHT_BYTES = 2_700_000
"""Of one layer of the bundled target, as it is read: bfloat16 in twelve bits."""
NUM_ROUNDS = 40
NUM_IN_A_ROW = 4
"""Passes over all layers in a round; the first finds what the other order of blocks left in the caches."""


class Shape(NamedTuple):
    """Of a layer."""

    num_heads: int
    num_kv_heads: int
    head_size: int


def main(
    heads: Annotated[int, typer.Option(help="Heads of a layer.", min=1)] = 6,
    kv_heads: Annotated[int, typer.Option(help="Key heads of a layer.", min=1)] = 6,
    head_size: Annotated[int, typer.Option(help="Numbers of a head.", min=1)] = 64,
    context: Annotated[str, typer.Option(help="Lengths of the line, with commas.")] = "128,768,2000",
    tokens: Annotated[str, typer.Option(help="Tokens of the step, with commas.")] = "1,2,4,8,16",
    threads: Annotated[int, typer.Option(help="Threads.", min=1)] = 1,
) -> None:
    """Measures attention over bfloat16."""
    native.load(WorkerConfig.model_fields["compile_cache"].get_default(call_default_factory=True))
    torch.set_num_threads(threads)
    table = Table(title=f"{heads} heads of {head_size}, {kv_heads} key heads, {threads} threads: least us of a layer")
    for heading in ("context", "tokens", "in a row", "scattered"):
        table.add_column(heading, justify="right")
    for num_context in map(int, context.split(",")):
        for num_tokens in map(int, tokens.split(",")):
            found = least_us(Shape(heads, kv_heads, head_size), num_context, num_tokens)
            table.add_row(str(num_context), str(num_tokens), *(f"{us:.1f}" for us in found))
    Console().print(table)


def least_us(shape: Shape, num_context: int, num_tokens: int) -> list[float]:
    """Microseconds of a layer, the mean over layers of each one's least: with blocks in a row, and scattered."""
    num_blocks = -(-(num_context + TREE_CELLS_MAX) // BLOCK_CELLS)
    facts = LayerFacts(shape.num_heads, shape.num_kv_heads, shape.head_size, shape.head_size, None)
    cache = KVCache([facts] * NUM_LAYERS, num_blocks, BLOCK_CELLS, torch.bfloat16, torch.device("cpu"))
    for storage in cache.storages:
        storage.normal_()
    number = id(cache)
    torch.ops.outrider_native.set_caches(number, cache.keys, cache.values, [0] * NUM_LAYERS, BLOCK_CELLS)
    descriptions = [
        described(number, _batch(num_context, num_tokens, num_blocks, scattered=scattered))
        for scattered in (False, True)
    ]
    inputs = [
        torch.randn(num_tokens, num_heads, shape.head_size).bfloat16().transpose(0, 1)
        for num_heads in (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)
    ]
    weights = [torch.zeros(WEIGHT_BYTES // 8, dtype=torch.int64) for _ in range(NUM_LAYERS)]
    least = [[float("inf")] * NUM_LAYERS for _ in descriptions]
    for _ in range(NUM_ROUNDS):
        for description, found in zip(descriptions, least, strict=True):
            for _ in range(NUM_IN_A_ROW):
                for layer in range(NUM_LAYERS):
                    weights[layer].sum()
                    found[layer] = min(found[layer], _call_us(inputs, description, layer))
    torch.ops.outrider_native.forget_caches(number)
    return [sum(found) / NUM_LAYERS for found in least]


def _call_us(inputs: list[Tensor], description: Tensor, layer: int) -> float:
    started = time.perf_counter_ns()
    torch.ops.outrider_native.ragged_attention.default(*inputs, description, layer, 0.125, 0.0, None)
    return (time.perf_counter_ns() - started) / 1000.0


def _batch(num_context: int, num_tokens: int, num_blocks: int, *, scattered: bool) -> PackedBatch:
    """The line's last token, read anew, and a chain of drafts below it."""
    blocks = BlockPool(num_blocks, BLOCK_CELLS)
    if scattered:
        taken = [blocks.take() for _ in range(num_blocks)]
        blocks.release(random.Random(1).sample(taken, num_blocks))
    slot, line = SlotPool(1, num_context, blocks).acquire(), list(range(num_context))
    settle(plan(Job(slot, line), max_tokens=num_context))
    num_drafts = num_tokens - 1
    parents = [LINE_END, *range(num_drafts - 1)][:num_drafts]
    chain = Job(slot, line, parents, range(num_drafts), range(LINE_END, num_drafts))
    return pack([plan(chain, max_tokens=num_tokens)])


if __name__ == "__main__":
    typer.run(main)
