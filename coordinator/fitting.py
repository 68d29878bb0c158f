"""Model compatibility: which target and draft models may serve one line together."""

from __future__ import annotations

from outrider import PROTOCOL_VERSION
from outrider.core.protocol.messages import ModelInfo
from outrider.core.protocol.refusal import Refusal


def version_refusal(info: ModelInfo) -> Refusal | None:
    """Refuses a worker that speaks another version of the protocol."""
    if info.protocol_version == PROTOCOL_VERSION:
        return None
    return Refusal(
        f"the worker {info.name!r} speaks protocol version {info.protocol_version}, this coordinator version "
        f"{PROTOCOL_VERSION}; install the same release everywhere"
    )


def pair_refusal(target: ModelInfo, draft: ModelInfo) -> Refusal | None:
    """Refuses a draft model that gives token ids another meaning than the target.

    A drafter without a tokenizer gives ids no meaning and fits every target whose vocabulary it can count.
    """
    if not draft.tokenizer_sha256:
        if target.vocab_size <= draft.vocab_size:
            return None
        return Refusal(
            f"the drafter {draft.name!r} takes {draft.vocab_size} token ids and the target {target.name!r} has "
            f"{target.vocab_size}; serve a draft model of the target's family, or ask with speculation.enabled = false"
        )
    if target.tokenizer_sha256 == draft.tokenizer_sha256:
        return None
    return Refusal(
        f"the draft model {draft.name!r} ({draft.vocab_size} ids) and the target {target.name!r} "
        f"({target.vocab_size} ids) have different vocabularies; serve a draft of the target's family, write this one "
        "in the target's vocabulary (from a checkout: python -m recipes.transplant), or ask with speculation.enabled = "
        "false"
    )


def alike_refusal(target: ModelInfo, other: ModelInfo) -> Refusal | None:
    """Refuses a verifier to which a session of the target could not move with the same tokens.

    What both compute and the type of their weights count; name, context length, number of slots and device do not.
    """
    if _identity(target) == _identity(other):
        return None
    return Refusal(
        f"it serves {_described(other)} and the pool {_described(target)}, so no session could move between them; "
        "serve one target in all verifiers of a pool"
    )


def _identity(info: ModelInfo) -> tuple[object, ...]:
    computed = (info.identity_sha256, info.tokenizer_sha256, info.vocab_size, info.eos_token_ids)
    return (*computed, info.dtype, info.weights or "full", info.kv_cache_dtype or "auto")


def _described(info: ModelInfo) -> str:
    kept = [f"weights in {info.weights}"] if info.weights not in ("", "full") else []
    kept += [f"keys and values in {info.kv_cache_dtype}"] if info.kv_cache_dtype not in ("", "auto") else []
    words = ", ".join([f"{info.num_parameters} parameters", info.dtype, *kept, f"identity {info.identity_sha256[:8]}"])
    return f"{info.name!r} ({words})"
