"""The drafter of a verifier that drafts for itself: how its model is loaded, and that it fits the target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from draft_service.config import OFF, DraftConfig
from draft_service.drafter import Drafter
from outrider.core.protocol.errors import UnsupportedModelError
from outrider.core.protocol.messages import ModelInfo
from outrider.core.schedule.policy import DraftPolicy
from outrider.engine.engine import Engine
from outrider.worker.config import WorkerConfig, num_threads_of
from outrider.worker.startup import LoadedModel
from outrider.worker.step_runner import StepRunner
from verify_service.config import VerifyConfig

DRAFT_SHARE = 0.2
"""The draft model's part of the memory for keys and values. Both hold the same tokens, and for one of them a draft
model of a tenth of the parameters has a fifth of the keys and values or less."""

_OWN_FORMATS = frozenset({"fp8", "int4"})
"""What `weights` says of the target's folder alone."""


def draft_settings(config: VerifyConfig) -> DraftConfig | None:
    """How the draft model is loaded: as the target, by the settings that both have; None if there is none."""
    if not config.draft_model:
        return None
    shared = target_settings(config).model_dump(include=WorkerConfig.model_fields.keys() - {"model", "ngram_table"})
    if config.weights in _OWN_FORMATS:
        shared["weights"] = "auto"
    shared["memory_share"] = config.memory_share * DRAFT_SHARE
    return DraftConfig.model_validate(shared | {"model": config.draft_model, "parallel": OFF})


def target_settings(config: VerifyConfig) -> VerifyConfig:
    """How the target is loaded: on a CPU for as many threads as it may have, since no other worker takes any, and with
    the memory that the draft model leaves. A GPU tells by itself what is free."""
    if not config.draft_model or config.device != "cpu":
        return config
    changes: dict[str, Any] = {"memory_share": config.memory_share * (1.0 - DRAFT_SHARE)}
    if "num_threads" not in config.model_fields_set:
        changes["num_threads"] = num_threads_of(config.cores, 1)
    return config.model_copy(update=changes)


def own_drafter(draft: LoadedModel, target: ModelInfo, runner: Callable[[Engine], StepRunner]) -> Drafter:
    """A drafter that works in turn with a verifier of `target`. A parallel draft model drafts one place a pass.

    Raises UnsupportedModelError if the two speak of other tokens.
    """
    if draft.info.tokenizer_sha256 != target.tokenizer_sha256:
        raise UnsupportedModelError(
            f"--draft-model {draft.info.name} has another tokenizer than {target.name}; take a draft model of the "
            "target's family, or start a draft service for it, whose tokens the coordinator translates"
        )
    return Drafter(draft.engine, DraftPolicy(in_turn=True), runner)
