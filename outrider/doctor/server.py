"""Running services: what their coordinator says of itself and of its workers."""

from __future__ import annotations

from collections.abc import Iterator

from outrider.core.coordinate.server_info import ServerInfo
from outrider.core.protocol.messages import ModelInfo
from outrider.doctor.finding import Finding, Level

_MIB = 2**20


def look_at_server(info: ServerInfo, version: str) -> Iterator[Finding]:
    """What the coordinator says of itself and of its workers. `version` is this installation's."""
    if info.version == version:
        yield Finding(Level.GOOD, "versions", f"{info.version} here and there")
    else:
        yield Finding(
            Level.NOTE,
            "versions",
            f"{version} here, {info.version} at the coordinator",
            "install the same release everywhere",
        )
    for replica in info.replicas:
        kind = "verify" if "Verify" in replica.service else "draft"
        if replica.problem or replica.model is None:
            yield Finding(
                Level.PROBLEM,
                f"{kind} worker",
                f"{replica.address}: {replica.problem or 'has never answered'}",
                "start it, or take its address from the coordinator's --verify or --draft",
            )
            continue
        model = replica.model
        text = (
            f"{model.name}, {model.num_parameters / 1e6:.3g} M parameters, {_numbers(model)} on {model.device}, "
            f"{model.max_sessions} sessions of {model.max_context} tokens, KV cache of "
            f"{model.kv_cache_bytes / _MIB:.0f} MiB"
        )
        if model.draft_model:
            text += f", drafts for itself with {model.draft_model}"
        yield Finding(Level.GOOD, f"{kind} worker", text)
        if model.unproven:
            yield Finding(
                Level.NOTE,
                f"{kind} worker",
                f"on {model.device}: {model.unproven}",
                "see docs/models.md, what no GPU has run; `outrider bench gpu` measures its steps there",
            )
        if kind == "verify" and model.kv_cache_dtype not in ("", "auto"):
            yield Finding(
                Level.NOTE,
                "exactness",
                f"keys and values are kept in {model.kv_cache_dtype}, so tokens are not exactly the target's own",
                "--kv-cache-dtype auto, with room for half as many tokens",
            )
        if kind == "verify" and not model.batch_invariant:
            yield Finding(
                Level.NOTE,
                "exactness",
                "logits may depend in their last bits on what shares a step, so a near-tie may fall otherwise",
                "on a CPU: --dtype float32 with the native operators; see docs/models.md, types of numbers",
            )
    if info.target_only_reason:
        yield Finding(Level.PROBLEM, "pair", info.target_only_reason, "requests run by the target alone until then")


def _numbers(model: ModelInfo) -> str:
    return model.dtype if model.weights in ("", "full") else f"weights in {model.weights}, {model.dtype}"
