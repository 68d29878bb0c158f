"""From a model's name to an engine that is proved to compute it."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch
import transformers
from transformers import PreTrainedModel

from outrider import PROTOCOL_VERSION
from outrider.core.protocol.errors import UnsupportedModelError
from outrider.core.protocol.messages import ModelInfo, PortableTokenizer
from outrider.core.protocol.vocabulary import vocabulary_sha256
from outrider.engine import native
from outrider.engine.attention.interface import ModelFacts, model_facts
from outrider.engine.attention.native import NativeAttention
from outrider.engine.engine import Engine
from outrider.engine.kv_cache.slots import TREE_CELLS_MAX
from outrider.engine.load import self_check
from outrider.engine.load.checkpoint import weights_sha256
from outrider.engine.load.folder import check_folder, eos_token_ids, load_weights, resolve_folder
from outrider.engine.load.identity import model_name, model_sha256
from outrider.engine.load.positions import check_positions
from outrider.engine.load.tokenizer import portable_tokenizer
from outrider.worker.compilation import package_path
from outrider.worker.config import WorkerConfig
from outrider.worker.forward_pass import compiles, take_up, warm_up
from outrider.worker.memory import Demand, kv_bytes, limit_bytes, room_bytes


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A worker's model, ready to step."""

    engine: Engine
    info: ModelInfo
    folder: Path
    tokenizer: PortableTokenizer
    package: Path | None = None
    """Where the compiled forward pass is still to be made; None if it is in use, or not wanted, or not possible."""


def load(config: WorkerConfig) -> LoadedModel:
    """Loads and checks the configured model; logs its progress. Blocks for as long as that takes.

    Raises UnsupportedModelError with what to do instead.
    """
    log = structlog.get_logger()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(config.num_threads)
    device = _device(config.device)
    folder = resolve_folder(config.model)
    name = model_name(folder)
    num_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    log.info("loading model", model=name, megabytes=round(num_bytes / 1e6, 1), device=str(device))
    started = time.monotonic()
    check_folder(folder)
    tokenizer = portable_tokenizer(folder)
    model = load_weights(folder, device=device, dtype=config.dtype)
    weights = weights_sha256(folder)
    check_positions(model)
    text_config = model.config.get_text_config()
    max_context = min(config.max_context, getattr(text_config, "max_position_embeddings", None) or config.max_context)
    facts = model_facts(model)
    reference = self_check.reference(model, facts.layers, max_context)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    end_tokens = eos_token_ids(model)
    compiled = compiles(config, device)
    weight_bytes = _weight_bytes(model, packed=device.type == "cpu")
    if config.attention_backend == NativeAttention.name and device.type == "cpu":
        native.load(config.compile_cache)
    engine = Engine(
        model,
        max_sessions=config.max_sessions,
        max_context=max_context,
        kv_tokens=_kv_tokens(config, facts, max_context, weight_bytes),
        compiled=compiled and device.type != "cpu",
        pad_tokens=config.pad_tokens,
        attention=config.attention_backend,
    )
    package = None
    if compiled and device.type != "cpu":
        warm_up(engine, config.compile)
    elif compiled:
        package = package_path(config.compile_cache, folder, weights, str(engine.dtype).removeprefix("torch."))
    package = take_up(engine, config, package, reference)
    kv_tokens = engine.blocks.num_blocks * engine.blocks.block_cells
    memory_limit, kv_cache = limit_bytes(device), kv_tokens * engine.kv_bytes_per_token
    log.info(
        "memory",
        limit_megabytes=round(memory_limit / 1e6, 1),
        weights_megabytes=round(weight_bytes / 1e6, 1),
        kv_megabytes_max=round(kv_cache / 1e6, 1),
        kv_tokens_max=kv_tokens,
    )
    log.info(
        "model ready",
        parameters=num_parameters,
        attention=engine.attention,
        seconds=round(time.monotonic() - started, 2),
    )
    info = ModelInfo(
        name=name,
        model_type=text_config.model_type,
        vocab_size=engine.vocab_size,
        tokenizer_sha256=vocabulary_sha256(tokenizer.json),
        eos_token_ids=end_tokens,
        max_context=max_context,
        max_sessions=config.max_sessions,
        num_parameters=num_parameters,
        dtype=str(engine.dtype).removeprefix("torch."),
        device=str(engine.device),
        protocol_version=PROTOCOL_VERSION,
        instance_id=uuid.uuid4().hex,
        identity_sha256=model_sha256(folder, weights, tokenizer.json),
        memory_limit_bytes=memory_limit,
        kv_cache_bytes=kv_cache,
        batch_invariant=engine.batch_invariant,
    )
    return LoadedModel(engine, info, folder, tokenizer, package)


def report(engine: Engine) -> None:
    """Logs what holds for the forward pass that is in use by now. Nobody else may have begun."""
    depends = self_check.depends_on_batch(engine)
    structlog.get_logger().info(
        "forward pass",
        attention=engine.attention,
        logits_depend_on_batch=depends,
        batch_invariant=engine.batch_invariant,
    )


def _weight_bytes(model: PreTrainedModel, *, packed: bool) -> int:
    """What the weights take; twice that where the native operators have them `packed`, too."""
    num_bytes = sum(parameter.nbytes for parameter in model.parameters())
    return 2 * num_bytes if packed else num_bytes


def _kv_tokens(config: WorkerConfig, facts: ModelFacts, max_context: int, weight_bytes: int) -> int:
    """For how many tokens there shall be keys and values."""
    bytes_per_token = facts.kv_bytes_per_token
    session = (max_context + TREE_CELLS_MAX) * bytes_per_token
    room = room_bytes(facts.device, weight_bytes, config.memory_share)
    return kv_bytes(config.kv_memory, room, Demand(session, config.max_sessions * session)) // bytes_per_token


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UnsupportedModelError(f"{name!r} is no device; use cpu, cuda or cuda:0") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UnsupportedModelError(f"--device {name}: torch sees no CUDA device here; use --device cpu")
    return device
