"""From a shape to an engine over a model of random weights, with room for as many rows as fit the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedConfig

from bench.gpu.floor import Reads
from bench.gpu.options import GpuOptions
from bench.gpu.plan import Growth, Plan, plan
from bench.gpu.result import Engine as Said
from bench.gpu.rounds import NUM_WARM_UPS, most_committed
from bench.gpu.shapes import filled, num_bytes, reads_of, skeleton
from outrider.core.protocol.errors import OutriderError
from outrider.engine.attention.interface import model_facts
from outrider.engine.compile.just_in_time import compiler_problem
from outrider.engine.engine import Engine
from outrider.engine.load.folder import DTYPES
from outrider.worker.execution import not_taken, token_choice
from outrider.worker.forward_pass import why_not_compiled
from outrider.worker.memory import GPU_SHARE, room_bytes


class NoRoomError(OutriderError):
    """A model, or every one of its rows, finds no room on the device."""


class Loaded(NamedTuple):
    """A model that can be measured."""

    engine: Engine
    reads: Reads
    plan: Plan
    said: Said


def loaded(
    role: str, config: PreTrainedConfig, tokens: Sequence[int], options: GpuOptions, device: torch.device
) -> Loaded:
    """The model of `config`, for steps of so many `tokens`, as a worker would run it. Raises NoRoomError."""
    model = skeleton(config, DTYPES[options.dtype])
    weight_bytes, free = num_bytes(model), room_bytes(device, 0, 1.0)
    name = f"the {role} of --shape {options.shape}"
    if weight_bytes > free:
        raise NoRoomError(
            f"{name} has {weight_bytes / 1e9:.1f} GB of weights, and {device} has {free / 1e9:.1f} GB free; take a "
            "device with more"
        )
    model = filled(model, device, options.seed)
    facts = model_facts(model)
    kv_tokens_max = int(room_bytes(device, weight_bytes, GPU_SHARE)) // facts.kv_bytes_per_token
    growth = Growth(NUM_WARM_UPS + options.num_rounds, most_committed(max(tokens)))
    planned = plan(options.sessions, tokens, options.contexts, growth, kv_tokens_max)
    if not planned.rows:
        raise NoRoomError(
            f"beside the weights of {name}, {device} has room for {kv_tokens_max} tokens of keys and values, and no "
            "row is content with that; ask for shorter --contexts or fewer --sessions"
        )
    captured = device.type == "cuda"
    engine = Engine(
        model,
        max_sessions=max(row.num_sessions for row in planned.rows),
        max_context=max(row.num_context_tokens for row in planned.rows) + growth.line_tokens,
        kv_tokens=planned.kv_tokens,
        compiled=captured and not compiler_problem(device),
        captured=captured,
    )
    if role == "draft":
        engine.draft_levels()
    not_compiled = why_not_compiled(engine, "auto") if captured else []
    reads = reads_of(model, engine.kv_bytes_per_token)
    said = Said(
        model=f"{config.model_type} of {sum(weight.numel() for weight in model.parameters()) / 1e6:.1f}M weights",
        weight_gb=reads.weight_bytes / 1e9,
        kv_bytes_per_token=engine.kv_bytes_per_token,
        attention=engine.attention,
        forward_pass=engine.forward_pass,
        token_choice=token_choice(device),
        not_taken=list(not_taken(engine, facts, not_compiled)),
    )
    return Loaded(engine, reads, planned, said)
