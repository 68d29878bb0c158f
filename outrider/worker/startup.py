"""From a model's name to an engine that is proved to compute it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
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
from outrider.engine import library, native
from outrider.engine.attention.interface import ModelFacts, model_facts
from outrider.engine.attention.native import NativeAttention
from outrider.engine.attention.registry import AUTO
from outrider.engine.batch import COMPILED_TOKENS_MAX
from outrider.engine.compile.just_in_time import compiler_problem
from outrider.engine.engine import Engine
from outrider.engine.kv_cache.slots import TREE_CELLS_MAX
from outrider.engine.load import self_check
from outrider.engine.load.checkpoint import weights_sha256
from outrider.engine.load.folder import check_folder, eos_token_ids, load_weights, resolve_folder
from outrider.engine.load.identity import model_name, model_sha256
from outrider.engine.load.positions import check_positions
from outrider.engine.load.tokenizer import portable_tokenizer
from outrider.worker.compilation import cache_problem, package_path
from outrider.worker.config import WorkerConfig
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
    graphs = compiled and device.type != "cpu"
    captures = device.type == "cuda" and config.compile != "off"
    engine = Engine(
        model,
        max_sessions=config.max_sessions,
        max_context=max_context,
        kv_tokens=_kv_tokens(config, facts, max_context, weight_bytes),
        compiled=graphs,
        captures=captures,
        pad_tokens=config.pad_tokens,
        attention=config.attention_backend,
    )
    if graphs or captures:
        warm_up(engine, config.compile)
    package, is_adopted = None, False
    if compiled and not graphs:
        dtype = str(engine.dtype).removeprefix("torch.")
        package = package_path(config.compile_cache, folder, weights, dtype)
        is_adopted = _adopted(engine, package, reference)
        if is_adopted or _hindered(config, cache_problem(config.compile_cache)):
            package = None
    if not is_adopted:
        if device.type == "cpu" and config.attention_backend in (AUTO, NativeAttention.name):
            use_native(engine, config.compile_cache)
        self_check.check(engine, reference)
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


def warm_up(engine: Engine, choice: str) -> None:
    """Compiles the engine's small steps; logs its progress. Where that fails, they run eagerly if `choice` is auto.

    Raises UnsupportedModelError if it fails and `choice` is on.
    """
    log = structlog.get_logger()
    started = time.monotonic()
    try:
        for size in engine.warm_up():
            log.info("compiled", tokens=size, of=COMPILED_TOKENS_MAX, seconds=round(time.monotonic() - started, 1))
    except UnsupportedModelError as error:
        if choice == "on":
            raise
        log.warning("not compiled", reason=str(error))
        engine.run_eagerly()


def use_native(engine: Engine, cache: Path) -> None:
    """Runs the engine on the native operators from now on; where they cannot, says why, and it stays on torch's."""
    log = structlog.get_logger()
    if library.find(cache) is None:
        log.info("building the native operators, once for this machine")
    try:
        native.load(cache)
        engine.export()
    except UnsupportedModelError as error:
        log.warning("logits depend on the batch", reason=str(error))


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


def compiles(config: WorkerConfig, device: torch.device) -> bool:
    """Whether forward passes are compiled. Raises UnsupportedModelError if they cannot be and have to."""
    if config.compile == "off":
        return False
    problem = compiler_problem(device)
    if device.type == "cpu" and config.attention_backend not in (AUTO, NativeAttention.name):
        problem = f"a compiled forward pass on a CPU attends by native, not by {config.attention_backend}"
    return not _hindered(config, problem)


def _hindered(config: WorkerConfig, problem: str) -> bool:
    """Whether there is a problem with compiling; logs it. Raises UnsupportedModelError if there must be none."""
    if problem and config.compile == "on":
        raise UnsupportedModelError(f"--compile on: {problem}; or use --compile off")
    if problem:
        structlog.get_logger().warning("not compiled", reason=problem)
    return bool(problem)


def _adopted(engine: Engine, package: Path, reference: Sequence[self_check.Passage]) -> bool:
    """Whether the engine runs `package` from now on. One that is there and does not work is logged."""
    if not package.exists():
        return False
    try:
        native.load(package.parent)
        engine.adopt(package)
        self_check.check(engine, reference)
    except UnsupportedModelError as error:
        structlog.get_logger().warning("the compiled package is of no use", package=package.name, reason=str(error))
        engine.run_eagerly()
        return False
    return True


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UnsupportedModelError(f"{name!r} is no device; use cpu, cuda or cuda:0") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UnsupportedModelError(f"--device {name}: torch sees no CUDA device here; use --device cpu")
    return device
