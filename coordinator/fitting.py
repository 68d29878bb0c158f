"""Which models may serve one line together."""

from __future__ import annotations

from outrider import PROTOCOL_VERSION
from outrider.core.protocol.errors import ModelMismatchError
from outrider.core.protocol.messages import ModelInfo


def check_version(info: ModelInfo) -> None:
    """Raises ModelMismatchError unless the worker speaks this protocol."""
    if info.protocol_version != PROTOCOL_VERSION:
        raise ModelMismatchError(
            f"the worker {info.name!r} speaks protocol version {info.protocol_version}, this coordinator version "
            f"{PROTOCOL_VERSION}; install the same release everywhere"
        )


def check_pair(target: ModelInfo, draft: ModelInfo) -> None:
    """Raises ModelMismatchError unless both models give every token id the same meaning.

    A drafter without a tokenizer gives ids no meaning at all and fits every target whose ids it can count.
    """
    if not draft.tokenizer_sha256:
        if target.vocab_size > draft.vocab_size:
            raise ModelMismatchError(
                f"the drafter {draft.name!r} takes {draft.vocab_size} token ids and the target {target.name!r} has "
                f"{target.vocab_size}; serve a draft model of the target's family, or ask with speculation.enabled = "
                "false"
            )
    elif target.tokenizer_sha256 != draft.tokenizer_sha256:
        raise ModelMismatchError(
            f"the draft model {draft.name!r} ({draft.vocab_size} ids) and the target {target.name!r} "
            f"({target.vocab_size} ids) have different vocabularies; serve a draft of the target's family, or ask with "
            "speculation.enabled = false"
        )


def check_alike(target: ModelInfo, other: ModelInfo) -> None:
    """Raises ModelMismatchError unless a session may move from one of these verifiers to the other.

    Both must give the same tokens, so what they compute and the type of the weights count; name, size of context, slots
    and device do not.
    """
    if _identity(target) != _identity(other):
        raise ModelMismatchError(
            f"it serves {_described(other)} and the pool {_described(target)}, so no session could move between them; "
            "serve one target in all verifiers of a pool"
        )


def _identity(info: ModelInfo) -> tuple[object, ...]:
    return (info.identity_sha256, info.tokenizer_sha256, info.vocab_size, info.eos_token_ids, info.dtype)


def _described(info: ModelInfo) -> str:
    return f"{info.name!r} ({info.num_parameters} parameters, {info.dtype}, identity {info.identity_sha256[:8]})"
