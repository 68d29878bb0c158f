"""What a worker's steps run on: which parts of the engine compute them, and why no faster ones do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from outrider.core.protocol.messages import ModelInfo
from outrider.engine import native
from outrider.engine.attention.interface import ModelFacts
from outrider.engine.attention.registry import BACKENDS
from outrider.engine.engine import Engine
from outrider.engine.gpu import launcher
from outrider.engine.gpu.trial import triton_problem
from outrider.engine.quantized import linear
from outrider.engine.sample import fused


def running(info: ModelInfo, engine: Engine) -> ModelInfo:
    """`info`, which tells of the engine as it runs at present."""
    return info._replace(
        attention=engine.attention,
        forward_pass=engine.forward_pass,
        token_choice=token_choice(engine.device) + (", in graphs" if engine.chooses else ""),
        batch_invariant=engine.batch_invariant,
    )


def token_choice(device: torch.device) -> str:
    """What chooses tokens on `device`."""
    if native.available(device):
        return "native"
    return "torch" if fused.problem(device) else "triton"


def not_taken(engine: Engine, facts: ModelFacts, not_compiled: Sequence[str], weights: str = "full") -> Iterator[str]:
    """On a GPU: each faster part that is not in use, and why. `not_compiled` says it of the forward pass; `weights` are
    what `kept_as` says."""
    if facts.device.type == "cpu":
        return
    for name, backend in BACKENDS.items():
        if name == engine.attention:
            break
        if problem := backend.problem(facts):
            yield f"attention {name}: {problem}"
    if not triton_problem(facts.device) and (problem := launcher.compiler_problem()):
        yield f"launchers of Triton, without which nothing is compiled and kernels go by libcuda: {problem}"
    if engine.not_fused:
        yield f"fused layers: {engine.not_fused}"
    yield from (f"forward pass: {problem}" for problem in not_compiled)
    if engine.no_levels:
        yield f"levels of a draft: {engine.no_levels}"
    if weights != "full" and (problem := linear.problem(facts.device)):
        yield f"products of weights in {weights}: {problem}"
    if problem := fused.problem(facts.device):
        yield f"choice of tokens: {problem}"


UNPROVEN = "no GPU has run this release: its kernels ran in Triton's interpreter, everything else on CPUs"
"""Until a GPU has."""


def unproven(device: torch.device) -> str:
    """What the code that runs on `device` was tested on, where not on its like; empty on a CPU."""
    return "" if device.type == "cpu" else UNPROVEN


def said(info: ModelInfo) -> dict[str, Any]:
    """The start-up line."""
    return {
        "attention": info.attention,
        "forward_pass": info.forward_pass,
        "token_choice": info.token_choice,
        "weights": info.weights,
        "kv_cache_dtype": info.kv_cache_dtype,
        **({"not_taken": list(info.not_taken)} if info.not_taken else {}),
        **({"unproven": info.unproven} if info.unproven else {}),
    }
