"""From a checked folder to an engine, by the same passes on every rank of a model."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine import native
from outrider.engine.attention.interface import ModelFacts, model_facts
from outrider.engine.attention.native import NativeAttention
from outrider.engine.engine import Engine
from outrider.engine.kv_cache.cells import CELL_TYPES
from outrider.engine.kv_cache.slots import TREE_CELLS_MAX
from outrider.engine.load import self_check
from outrider.engine.load.division import divide
from outrider.engine.load.folder import load_weights
from outrider.engine.load.positions import check_positions
from outrider.engine.parallel.ranks import Ranks
from outrider.engine.quantized.linear import keep_in_eight_bits, num_parameters, weight_tensors
from outrider.engine.quantized.part import Part
from outrider.worker.config import AUTO_KV_MEMORY, WorkerConfig
from outrider.worker.forward_pass import drafts_in_eight_bits
from outrider.worker.joining import place_of
from outrider.worker.memory import Demand, kv_bytes, room_bytes
from outrider.worker.step_peak import step_peak_bytes


class Built(NamedTuple):
    """An engine, and what it was built of."""

    engine: Engine
    model: PreTrainedModel
    facts: ModelFacts
    reference: list[self_check.Passage]
    """What transformers says of some passages."""
    exact: list[self_check.Passage]
    """The same with keys and values in the model's own type, where the KV cache has a narrower one; else none."""
    num_parameters: int
    """Of the whole model."""
    weight_bytes: int
    """That this process holds."""


def build(
    config: WorkerConfig,
    folder: Path,
    device: torch.device,
    *,
    compiled: bool = False,
    captured: bool = False,
    ranks: Ranks | None = None,
) -> Built:
    """Loads the weights of a folder, or this rank's part of them, and builds an engine over them.

    All `ranks` call it at a time: whatever runs the model here runs on all of them. For `compiled` and `captured` see
    `Engine`. Raises UnsupportedModelError.
    """
    if ranks is None:
        model = load_weights(folder, device=device, dtype=config.dtype, weights=config.weights)
    else:  # what a CPU has of weights are pages of their files until they are cut
        part = Part(ranks.rank, ranks.num_ranks)
        whole = load_weights(folder, device=device, dtype=config.dtype, weights=config.weights, part=part)
        model = divide(whole, device, ranks.num_ranks)
    parameters = num_parameters(model)
    if ranks is None and drafts_in_eight_bits(config, device, model.dtype):
        keep_in_eight_bits(model)
    check_positions(model)
    text_config = model.config.get_text_config()
    max_context = min(config.max_context, getattr(text_config, "max_position_embeddings", None) or config.max_context)
    if max_context < 2:
        raise UnsupportedModelError(
            f"the model takes {max_context} token (max_position_embeddings), which leaves no room for an answer; take "
            "the config.json that belongs to its weights"
        )
    cell_dtype = CELL_TYPES[config.kv_cache_dtype]
    facts = model_facts(model)._replace(kv_cache_dtype=cell_dtype)
    reference = self_check.reference(model, facts.layers, max_context, cell_dtype)
    exact = [] if cell_dtype is None else self_check.reference(model, facts.layers, max_context)
    on_cpu = device.type == "cpu"
    weight_bytes = sum(_own(each).nbytes for each in weight_tensors(model))
    if on_cpu and ranks is None:
        weight_bytes *= 2  # the native operators have them packed, too
    if on_cpu and config.attention_backend == NativeAttention.name:
        native.load(config.compile_cache)
    peak = step_peak_bytes(model, config.max_sessions) if ranks is None and config.kv_memory == AUTO_KV_MEMORY else None
    kv_tokens = _kv_tokens(config, facts, max_context, weight_bytes, peak)
    engine = Engine(
        model,
        max_sessions=config.max_sessions,
        max_context=max_context,
        kv_tokens=kv_tokens if ranks is None else ranks.smallest(kv_tokens),
        compiled=compiled,
        captured=captured,
        pad_tokens=config.pad_tokens,
        attention=config.attention_backend,
        kv_cache_dtype=cell_dtype,
        announce=None if ranks is None else ranks.announce,
    )
    if config.drafts:
        engine.draft_levels()
    if ranks is not None:
        ranks.loaded()
    return Built(engine, model, facts, reference, exact, parameters, weight_bytes)


def _own(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _kv_tokens(config: WorkerConfig, facts: ModelFacts, max_context: int, weight_bytes: int, peak: int | None) -> int:
    """For how many tokens there shall be keys and values."""
    bytes_per_token = facts.kv_bytes_per_token
    session = (max_context + TREE_CELLS_MAX) * bytes_per_token
    num_local = place_of(config).num_local_ranks
    room = room_bytes(facts.device, weight_bytes * num_local, config.memory_share / num_local)
    demand = Demand(session, config.max_sessions * session)
    return kv_bytes(config.kv_memory, room, demand, peak) // bytes_per_token
