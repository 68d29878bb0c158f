"""How a process that drafts for itself loads its two models."""

from __future__ import annotations

import pytest

from outrider.settings import BadSettingsError
from outrider.worker import config
from tests.e2e.stack import MODELS
from verify_service.config import VerifyConfig
from verify_service.own_drafter import draft_settings, target_settings

TARGET, DRAFT = str(MODELS / "target"), str(MODELS / "draft")


def test_without_a_draft_model_nothing_changes() -> None:
    alone = VerifyConfig(model=TARGET)
    assert draft_settings(alone) is None
    assert target_settings(alone) is alone


def test_on_a_cpu_both_have_all_threads_and_divide_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "num_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    asked = VerifyConfig(model=TARGET, draft_model=DRAFT, memory_share=0.5, max_sessions=7, weights="int4")
    target, draft = target_settings(asked), draft_settings(asked)
    assert draft is not None
    assert (target.model, draft.model) == (TARGET, DRAFT)
    assert (target.num_threads, draft.num_threads) == (8, 8)
    assert (target.max_sessions, draft.max_sessions) == (7, 7)
    assert target.memory_share + draft.memory_share == pytest.approx(0.5)
    assert (target.weights, draft.weights) == ("int4", "auto")
    told = VerifyConfig(model=TARGET, draft_model=DRAFT, num_threads=3)
    assert target_settings(told).num_threads == 3


def test_what_cannot_be_is_refused_in_words() -> None:
    with pytest.raises(BadSettingsError, match="--draft-model: there is no model folder"):
        VerifyConfig.checked(model=TARGET, draft_model="/nowhere/at/all")
    with pytest.raises(BadSettingsError, match=r"--draft-model: .* start draft services"):
        VerifyConfig.checked(model=TARGET, draft_model=DRAFT, tensor_parallel=2)
