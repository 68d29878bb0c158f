"""Masks in a worker's steps: sessions with a grammar and without share them, each as if it were alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from outrider.core.protocol.errors import StepFailedError
from outrider.core.protocol.messages import DraftWindow, VerifyOpen
from outrider.core.protocol.sampling import SamplingParams
from outrider.engine.sample.sampler import Row
from outrider.worker.masks import Constrained, MaskThread
from tests.engine.histories import random_line
from tests.engine.tiny_models import VOCAB_SIZE
from tests.worker.driven import ONE_SESSION_TOKENS, Bench, Session, alone, engine_of
from verify_service.verifier import VerifyStream

NUM_TOKENS = 24


class Rising:
    """A grammar of numbers: each token is above the one before it, or any of the first few after a large one."""

    def __init__(self) -> None:
        self.last = 0
        self.is_lost = False
        self.breaks_after = 10**6

    def _range(self, last: int) -> range:
        return range(5) if last > VOCAB_SIZE - 20 else range(last + 1, VOCAB_SIZE)

    def allows(self, path: Sequence[int]) -> bool:
        places = [self.last, *path]
        return all(after in self._range(before) for before, after in zip(places, path, strict=False))

    def forced(self, path: Sequence[int]) -> int | None:
        return None

    def commit(self, token_ids: Sequence[int]) -> None:
        assert self.allows(token_ids)
        self.last = token_ids[-1]
        self.breaks_after -= len(token_ids)

    def mask(self, path: Sequence[int]) -> bytes:
        if self.breaks_after <= 0:
            raise RuntimeError("too complex")
        return sum(1 << each for each in self._range([self.last, *path][-1])).to_bytes(8, "little")


def opened(bench: Bench, name: str, sampling: SamplingParams, grammar: Rising | None) -> Session:
    prompt = random_line(6, seed=len(name))
    opening = VerifyOpen(
        session_id=name,
        token_ids=prompt,
        num_prompt_tokens=len(prompt),
        sampling=sampling,
        max_length=len(prompt) + NUM_TOKENS,
        max_draft_tokens=8,
    )
    session = Session(bench.log, name, opening)
    session.verification = VerifyStream(opening, session.record, cast(Any, grammar))
    bench.verifier.open(session.verification)
    return session


def masked_alone(name: str, sampling: SamplingParams) -> list[int]:
    bench = Bench(engine_of(max_sessions=1))
    session = opened(bench, name, sampling, Rising())
    bench.run()
    return session.token_ids


SAMPLINGS = [
    SamplingParams(),
    SamplingParams(temperature=1.0, seed=3),
    SamplingParams(temperature=0.9, top_p=0.5, top_k=9, frequency_penalty=1.0, logit_bias=((2, 50.0),), seed=4),
]


async def test_sessions_with_and_without_a_grammar_share_steps() -> None:
    bench = Bench(engine_of(max_sessions=6))
    bound = [opened(bench, "b" * number, each, Rising()) for number, each in enumerate(SAMPLINGS, 1)]
    free = [opened(bench, "b" * number, each, None) for number, each in enumerate(SAMPLINGS, 1)]
    bench.run()
    assert any(len(fed) == 6 for fed in bench.passes)
    for number, sampling in enumerate(SAMPLINGS, 1):
        name = "b" * number
        assert bound[number - 1].token_ids == masked_alone(name, sampling)
        assert Rising().allows(bound[number - 1].token_ids)
        assert free[number - 1].token_ids == alone(random_line(6, seed=number), NUM_TOKENS, sampling)


async def test_every_node_of_a_tree_has_its_own_mask() -> None:
    sampling = SAMPLINGS[1]
    expected = masked_alone("tree", sampling)
    bench = Bench(engine_of(max_sessions=1))
    session = opened(bench, "tree", sampling, Rising())
    bench.run(until=lambda: bool(session.verdicts))
    known = len(session.token_ids)
    right, wrong = expected[known : known + 3], expected[known] + 1
    window = DraftWindow(len(bench.line_of(session)) - 1, 1, [0, 1, 2, 0, 4], [*right, wrong, wrong + 1], [-0.1] * 5)
    bench.graft(session, window)
    bench.run()
    assert session.token_ids == expected
    assert sum(verdict.num_accepted for verdict in session.verdicts) >= 3


async def test_a_preempted_session_goes_on_in_its_grammar() -> None:
    bench = Bench(engine_of(max_sessions=4, kv_tokens=ONE_SESSION_TOKENS))
    sessions = [opened(bench, "p" * number, SAMPLINGS[1], Rising()) for number in range(1, 4)]
    bench.run(until=lambda: all(session.verdicts for session in sessions))
    bench.verifier.runner.memory.forget(bench.seat_of(sessions[1]).slot)
    bench.run()
    for number, session in enumerate(sessions, 1):
        assert session.token_ids == masked_alone("p" * number, SAMPLINGS[1])


async def test_a_grammar_that_proves_too_complex_ends_its_session_alone() -> None:
    bench = Bench(engine_of())
    broken = Rising()
    broken.breaks_after = 5
    sessions = [opened(bench, "x", SAMPLINGS[0], broken), opened(bench, "yy", SAMPLINGS[1], Rising())]
    bench.run()
    assert isinstance(sessions[0].record.error, StepFailedError)
    assert len(sessions[0].token_ids) >= 5
    assert sessions[1].token_ids == masked_alone("yy", SAMPLINGS[1])
    assert bench.is_empty


def test_masks_stand_at_the_rows_of_the_parts_that_are_complete() -> None:
    state = cast(Any, Rising())
    rows = [Row(0, 5), Row(0, 6, (3,))]
    parts = [Constrained(1, state, rows), Constrained(2, state, rows[:1]), Constrained(4, state, rows)]
    with MaskThread().beside(parts) as masks:
        pass
    allowed = masks.of([3, 2, None, 1, 2])
    assert allowed is not None
    assert allowed.indices == [3, 4, 6, 7]
    assert [bytes(row.tolist()) for row in allowed.masks] == [state.mask(row.path) for row in rows] * 2
    with MaskThread().beside([]) as none:
        pass
    assert none.of([1]) is None
