"""The drafter without a model: sessions take turns window by window, and one that fails fails alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from draft_service.drafts import DraftEvent
from draft_service.ngram_drafter import WINDOW_EXPANSIONS_MAX, NgramDrafter, NgramDrafting
from outrider.core.propose.lookup import READ_TOKENS_MAX
from outrider.core.protocol.errors import SlotsExhaustedError
from outrider.core.protocol.messages import Commitment, DraftOpen, DraftWindow, Opened
from outrider.core.protocol.sampling import SamplingParams
from outrider.worker.outbox import Outbox

LOOP = [1, 2, 3, 4, 5] * 4
NUM_WINDOWS = 3


class Order(Outbox[DraftEvent]):
    """An outbox that tells whose windows came when."""

    def __init__(self, name: str, order: list[str]) -> None:
        super().__init__()
        self.name, self.order = name, order

    def put(self, event: DraftEvent, started_ns: int, ended_ns: int) -> None:
        assert started_ns <= ended_ns
        if isinstance(event, DraftWindow):
            self.order.append(self.name)
        super().put(event, started_ns, ended_ns)


def opening() -> DraftOpen:
    return DraftOpen(
        session_id="s",
        token_ids=LOOP,
        num_prompt_tokens=len(LOOP),
        sampling=SamplingParams(),
        max_run_ahead=WINDOW_EXPANSIONS_MAX * NUM_WINDOWS,
        tree_width=1,
        max_length=1000,
        vocab_size=50,
    )


async def everything(outbox: Outbox[DraftEvent]) -> list[DraftEvent]:
    events: list[DraftEvent] = []
    while (stamped := await outbox.take()) is not None:
        events.append(stamped.event)
    return events


async def test_sessions_take_turns_and_end_when_nothing_is_left_to_draft() -> None:
    drafter, order = NgramDrafter("me", max_sessions=2), list[str]()
    outboxes = [Order(name, order) for name in "ab"]
    sessions = [drafter.open(opening(), outbox) for outbox in outboxes]
    for session in sessions:
        drafter.finish(session)
    for outbox in outboxes:
        opened, *windows = await everything(outbox)
        assert opened == Opened(len(LOOP))
        token_ids = [token_id for window in windows if isinstance(window, DraftWindow) for token_id in window.token_ids]
        assert token_ids == (LOOP * 2)[: WINDOW_EXPANSIONS_MAX * NUM_WINDOWS]
    assert order == ["a", "b"] * NUM_WINDOWS


async def test_a_long_line_is_read_between_the_windows_of_others() -> None:
    drafter, order = NgramDrafter("me", max_sessions=2), list[str]()
    long = LOOP * (NUM_WINDOWS * READ_TOKENS_MAX // len(LOOP) + 1)
    outboxes = [Order(name, order) for name in "ab"]
    for outbox, line in zip(outboxes, (long, LOOP), strict=True):
        drafter.finish(drafter.open(replace(opening(), token_ids=line, max_length=10_000), outbox))
    for outbox in outboxes:
        assert len(await everything(outbox)) == 1 + NUM_WINDOWS
    assert order == ["b"] * NUM_WINDOWS + ["a"] * NUM_WINDOWS


async def test_a_session_that_fails_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    drafter, order = NgramDrafter("me", max_sessions=2), list[str]()
    draft = NgramDrafting.draft

    def failing(drafting: NgramDrafting) -> DraftWindow | None:
        if drafting is broken.drafting:
            raise RuntimeError("a fault of ours")
        return draft(drafting)

    monkeypatch.setattr(NgramDrafting, "draft", failing)
    outboxes = [Order(name, order) for name in "ab"]
    broken, whole = (drafter.open(opening(), outbox) for outbox in outboxes)
    drafter.finish(whole)
    assert len(await everything(outboxes[1])) == 1 + NUM_WINDOWS
    with pytest.raises(RuntimeError, match="a fault of ours"):
        await everything(outboxes[0])


async def test_a_closed_session_drafts_no_more_and_leaves_its_place() -> None:
    drafter, order = NgramDrafter("me", max_sessions=1), list[str]()
    changes: list[int] = []
    drafter.on_change = lambda: changes.append(drafter.load().num_sessions)
    session = drafter.open(opening(), Order("a", order))
    with pytest.raises(SlotsExhaustedError, match="all 1 sessions are taken"):
        drafter.open(opening(), Order("b", order))
    drafter.close(session)
    outbox = Order("c", order)
    drafter.commit(drafter.open(opening(), outbox), Commitment(len(LOOP), [1], rollback=False))
    await outbox.take()
    await outbox.take()
    assert set(order) == {"c"}
    assert changes == [1, 0, 1]
