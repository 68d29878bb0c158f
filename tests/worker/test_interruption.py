"""What arrives while a drafter's device is at work ends a run, in the midst of a level if it makes that void."""

from __future__ import annotations

from collections.abc import Callable

from draft_service.model_servicer import DeviceDrafts
from outrider.core.protocol.messages import Commitment
from outrider.engine.device_thread import DeviceThread
from tests.engine.histories import random_line
from tests.worker.driven import Drafts, engine_of


async def test_a_rollback_or_an_end_makes_void_what_is_drafted_for_that_session_alone() -> None:
    drafts = Drafts(engine_of())
    drafter = drafts.drafter
    own, other = (drafts.open(random_line(5, seed=seed)) for seed in range(2))
    served = DeviceDrafts(drafter, DeviceThread(drafter, print, drafts.engine.device))

    def is_void(command: Callable[[], None], only: object = own) -> bool:
        interruption = drafter.arrivals.interruption(only)
        command()
        num_arrived, num_void = interruption.arrivals.tolist()
        assert num_arrived > interruption.num_read
        return num_void != interruption.num_void

    committed, rolled_back = (Commitment(5, [1], rollback) for rollback in (False, True))
    assert not is_void(lambda: served.commit(own, committed))
    assert is_void(lambda: served.commit(own, rolled_back))
    assert not is_void(lambda: served.commit(own, rolled_back), only=None)
    assert not is_void(lambda: served.commit(other, rolled_back))
    assert not is_void(lambda: served.finish(own))
    assert is_void(lambda: served.close(own))
