"""What one tenant has asked is not seen by another: not in guesses, and not in what a worker has read."""

from __future__ import annotations

import pytest

from coordinator.admission import Admission
from coordinator.allowance import Allowances
from coordinator.caller import Caller
from draft_service.ngram_drafter import NgramDrafting
from outrider.core.draft.estimates import DraftEstimates
from outrider.core.estimate.confidence import NGRAM_PROBABILITIES, ngram_bin
from outrider.core.propose.ngram import NgramTable
from outrider.core.protocol.errors import QueueFullError, RateLimitError
from outrider.core.protocol.messages import DraftOpen
from outrider.core.protocol.sampling import SamplingParams
from outrider.token_file import TokenEntry

SECRET = [7, 8, 9, 10, 11, 12, 13, 14]


def drafted(token_ids: list[int], salt: str, estimates: DraftEstimates) -> list[int]:
    """What a drafter without a model guesses for a session."""
    opening = DraftOpen(
        session_id=salt,
        token_ids=token_ids,
        num_prompt_tokens=len(token_ids),
        sampling=SamplingParams(),
        max_run_ahead=16,
        tree_width=1,
        max_length=200,
        vocab_size=100,
        cache_salt=salt,
    )
    drafting = NgramDrafting(opening, estimates, NgramTable())
    while not drafting.prepare():
        pass
    window = drafting.draft()
    return [] if window is None else list(window.token_ids)


def test_guesses_come_of_a_sessions_own_line_alone() -> None:
    estimates = DraftEstimates(NGRAM_PROBABILITIES, ngram_bin)
    assert set(drafted([*SECRET, *SECRET, *SECRET[:4]], "ann", estimates)) & set(SECRET[4:])
    assert not set(drafted([1, 2, 3, 1, 2, 3, *SECRET[:4]], "ben", estimates)) & set(SECRET[4:])


def caller(name: str, **limits: int) -> Caller:
    return Caller(TokenEntry(name=name, sha256="0" * 64, **limits))


def test_one_callers_completions_leave_room_for_another() -> None:
    admission = Admission(3)
    ann, ben = caller("ann", max_completions=2), caller("ben")
    with admission.admitted(2, ann):
        with pytest.raises(RateLimitError), admission.admitted(1, ann):
            pytest.fail("it was admitted")
        with admission.admitted(1, ben), pytest.raises(QueueFullError):
            admission.require_room(1, ben)
    with admission.admitted(2, ann):
        assert admission.num_running == 2
    assert admission.num_running == 0


def test_an_allowance_grows_back_by_the_minute() -> None:
    now = 0.0
    allowances = Allowances(lambda: now)
    ann = caller("ann", tokens_per_minute=60)
    allowances.require(ann)
    allowances.spend(ann, 100)
    with pytest.raises(RateLimitError) as caught:
        allowances.require(ann)
    assert caught.value.retry_seconds == 41
    allowances.require(caller("ben", tokens_per_minute=60))
    now = 40.0
    with pytest.raises(RateLimitError):
        allowances.require(ann)
    now = 41.0
    allowances.require(ann)
    now = 10_000.0  # no more than a minute's tokens gather
    allowances.spend(ann, 60)
    with pytest.raises(RateLimitError):
        allowances.require(ann)


def test_who_has_no_limit_is_not_counted() -> None:
    allowances = Allowances(lambda: 0.0)
    allowances.spend(caller("ann"), 10**9)
    allowances.require(caller("ann"))
