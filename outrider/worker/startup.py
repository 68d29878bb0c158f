"""From a model's name to an engine that is proved to compute it."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch
import transformers

from outrider import PROTOCOL_VERSION
from outrider.core.protocol.errors import UnsupportedModelError
from outrider.core.protocol.messages import ModelInfo, PortableTokenizer
from outrider.core.protocol.vocabulary import vocabulary_sha256
from outrider.engine.engine import Engine
from outrider.engine.load import self_check
from outrider.engine.load.checkpoint import weights_sha256
from outrider.engine.load.division import check_division
from outrider.engine.load.folder import check_folder, eos_token_ids, resolve_folder
from outrider.engine.load.identity import model_name, model_sha256
from outrider.engine.load.tokenizer import portable_tokenizer
from outrider.engine.parallel.ranks import Ranks
from outrider.engine.quantized.linear import kept_as
from outrider.engine.transfer import on
from outrider.worker.building import build
from outrider.worker.compilation import package_path
from outrider.worker.config import WorkerConfig
from outrider.worker.execution import not_taken, running, said, unproven
from outrider.worker.forward_pass import captures, compiles, take_up, why_not_compiled
from outrider.worker.joining import device_of, join
from outrider.worker.memory import check_weights, limit_bytes
from outrider.worker.threads import take_threads


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A worker's model, ready to step."""

    engine: Engine
    info: ModelInfo
    folder: Path
    tokenizer: PortableTokenizer
    package: Path | None = None
    """Where the compiled forward pass is still to be made; None if it is in use, or not wanted, or not possible."""
    ranks: Ranks | None = None
    """Of a model over several devices, of which this process has the first; they are dismissed at the end."""
    beside: LoadedModel | None = None
    """The other model of a process that serves by two."""


def load(config: WorkerConfig) -> LoadedModel:
    """Loads and checks the configured model; logs its progress. Blocks for as long as that takes.

    Raises UnsupportedModelError with what to do instead, and OutriderError if it cannot have its cores.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    take_threads(config)
    device = _device(config.device) if config.num_ranks == 1 else device_of(config)
    with on(device):
        return _load(config, device)


def _load(config: WorkerConfig, device: torch.device) -> LoadedModel:
    log = structlog.get_logger()
    folder = resolve_folder(config.model)
    name = model_name(folder)
    num_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors") if path.is_file())
    log.info("loading model", model=name, megabytes=round(num_bytes / 1e6, 1), device=str(device))
    started = time.monotonic()
    check_folder(folder, config.weights)
    if config.num_ranks > 1:
        check_division(folder, config.num_ranks)
    elif device.type == "cpu" and not config.drafts:  # a drafter may keep them in eight bits
        check_weights(folder, config.dtype, limit_bytes(device))
    tokenizer = portable_tokenizer(folder)
    compiled = compiles(config, device)
    captured = captures(config, device)
    ranks = join(config) if config.num_ranks > 1 else None
    built = build(config, folder, device, compiled=captured and compiled, captured=captured, ranks=ranks)
    engine, weight_bytes = built.engine, built.weight_bytes
    weights, weights_in = weights_sha256(folder), kept_as(built.model)
    text_config = built.model.config.get_text_config()
    end_tokens = eos_token_ids(built.model)
    not_compiled: list[str] = []
    package = None
    if captured:
        not_compiled = why_not_compiled(engine, config.compile)
    elif compiled:
        dtype = str(engine.dtype).removeprefix("torch.")
        package = package_path(config.compile_cache, folder, weights, dtype, weights_in)
    package = take_up(engine, config, package, built.reference)
    if built.exact:
        effect = self_check.effect(engine, built.exact)
        log.warning(
            "narrower keys and values: tokens are not exactly the target's own",
            kv_cache_dtype=config.kv_cache_dtype,
            largest_logit_difference=round(effect.largest_difference, 4),
            same_greedy_choices=round(effect.same_choices, 4),
        )
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
        parameters=built.num_parameters,
        attention=engine.attention,
        seconds=round(time.monotonic() - started, 2),
    )
    info = ModelInfo(
        name=name,
        model_type=text_config.model_type,
        vocab_size=engine.vocab_size,
        tokenizer_sha256=vocabulary_sha256(tokenizer.json),
        eos_token_ids=end_tokens,
        max_context=engine.max_context,
        max_sessions=config.max_sessions,
        num_parameters=built.num_parameters,
        dtype=str(engine.dtype).removeprefix("torch."),
        device=str(engine.device),
        protocol_version=PROTOCOL_VERSION,
        instance_id=uuid.uuid4().hex,
        identity_sha256=model_sha256(folder, weights, tokenizer.json),
        memory_limit_bytes=memory_limit,
        kv_cache_bytes=kv_cache,
        not_taken=tuple(not_taken(engine, built.facts, not_compiled, weights_in)),
        weights=weights_in,
        kv_cache_dtype=config.kv_cache_dtype,
        unproven=unproven(device),
    )
    info = running(info, engine)
    log.info("runs on", **said(info))
    return LoadedModel(engine, info, folder, tokenizer, package, ranks)


def report(engine: Engine) -> None:
    """Logs what holds for the forward pass that is in use by now. Nobody else may have begun."""
    with on(engine.device):
        depends = self_check.depends_on_batch(engine)
    structlog.get_logger().info(
        "forward pass",
        attention=engine.attention,
        logits_depend_on_batch=depends,
        batch_invariant=engine.batch_invariant,
    )


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UnsupportedModelError(f"{name!r} is no device; use cpu, cuda or cuda:0") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UnsupportedModelError(f"--device {name}: torch sees no CUDA device here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise UnsupportedModelError(f"--device {name}: the last CUDA device here is cuda:{count - 1}")
    return device
