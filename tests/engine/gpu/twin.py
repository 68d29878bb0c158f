"""What the kernels have to compute: each token over the cells that its batch says it sees, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from outrider.engine.attention.interface import LayerCall
from outrider.engine.batch import PackedBatch
from outrider.engine.gpu.launch import DeviceWork, Scoring, attention, write
from outrider.engine.gpu.work_list import work_list
from tests.engine.layers import Layer


def seen(batch: PackedBatch, window: int | None) -> list[list[int]]:
    """Of each token the cells in the KV cache. A line's cells are its positions, and a path's follow them."""
    found: list[list[int]] = [[] for _ in batch.token_ids]
    for session in batch.sessions:
        blocks = batch.blocks[session.first_block :]
        for token in range(session.first_token, session.end_token):
            path = batch.path_cells[batch.path_offsets[token] : batch.path_offsets[token + 1]]
            cells = [*range(batch.limits[token]), *path][-(window or 10**9) :]
            found[token] = [
                blocks[cell // batch.block_cells] * batch.block_cells + cell % batch.block_cells for cell in cells
            ]
    return found


class Ran:
    """A batch that the kernels have run over a layer: its output, [N, H, value_size], and the caches."""

    def __init__(self, layer: Layer, batch: PackedBatch, inputs: tuple[Tensor, ...], call: LayerCall, tokens: int):
        query, key, value = inputs
        self.keys, self.values = layer.keys.clone(), layer.values.clone()
        work = work_list(batch, (layer.window,), tokens)
        numbers = torch.frombuffer(work.numbers, dtype=torch.int32).to(layer.device)
        on_device = DeviceWork(work.layout, numbers, work.num_parts, tokens)
        write(key, self.keys, on_device)
        write(value, self.values, on_device)
        self.output = attention(query, self.keys, self.values, on_device, 0, Scoring(*call[1:]))


def expected(layer: Layer, batch: PackedBatch, inputs: tuple[Tensor, ...], call: LayerCall) -> Ran:
    """The same in float64, by the definition."""
    query, key, value = (each.double() for each in inputs)
    ran = Ran.__new__(Ran)
    ran.keys, ran.values = layer.keys.double(), layer.values.double()
    cells = torch.tensor(batch.write_cells)
    ran.keys[cells], ran.values[cells] = key.transpose(0, 1), value.transpose(0, 1)
    num_heads, num_tokens, _ = query.shape
    group = num_heads // key.shape[0]
    ran.output = query.new_zeros(num_tokens, num_heads, value.shape[2])
    for token, places in enumerate(seen(batch, layer.window)):
        if not places:
            continue
        keys, values = (each[places].repeat_interleave(group, 1) for each in (ran.keys, ran.values))  # [C, H, size]
        scores = torch.einsum("hd,chd->hc", query[:, token], keys) * call.scale
        if call.softcap:
            scores = call.softcap * torch.tanh(scores / call.softcap)
        if call.sinks is not None:
            scores = torch.cat([scores, call.sinks.double()[:, None]], 1)
        weights = scores.softmax(-1)[:, : len(places)]
        ran.output[token] = torch.einsum("hc,chd->hd", weights, values)
    return ran
