"""DraftService with a draft model: the drafter steps on a device thread, to which everything is handed over."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import structlog

from draft_service.config import AUTO, OFF
from draft_service.drafter import Drafter, DraftStream
from draft_service.drafts import DraftEvent
from draft_service.servicer import DraftServicer
from outrider.core.estimate.foresight import POSITIONS_AUTO
from outrider.core.protocol.errors import InvalidRequestError, QueueFullError, UnsupportedModelError
from outrider.core.protocol.messages import Commitment, DraftOpen
from outrider.core.schedule.policy import DraftPolicy
from outrider.engine.device_thread import DeviceThread, Work
from outrider.engine.engine import Engine
from outrider.engine.load.mask_token import mask_token_id
from outrider.grammar.state import GrammarState
from outrider.telemetry.setup import Telemetry
from outrider.worker.device_servicer import DeviceServicer
from outrider.worker.outbox import Outbox
from outrider.worker.startup import LoadedModel
from outrider.worker.step_runner import StepRunner

_log = structlog.get_logger()


class DeviceDrafts:
    """A drafter as the event loop speaks to it; see `Drafts`."""

    def __init__(self, drafter: Drafter, device: DeviceThread) -> None:
        self._drafter = drafter
        self._device = device

    def open(self, opening: DraftOpen, outbox: Outbox[DraftEvent], grammar: GrammarState | None = None) -> DraftStream:
        """See `Drafts.open`. Guesses stay within `grammar`."""
        session = DraftStream(opening, outbox, grammar)
        self._submit(partial(self._drafter.open, session))
        return session

    def commit(self, session: DraftStream, commitment: Commitment) -> None:
        """See `Drafts.commit`. What is drafted where the line has gone another way is not worth a further operator."""
        outdated = session if commitment.rollback else None
        self._submit(partial(self._drafter.commit, session, commitment), outdated=outdated)

    def finish(self, session: DraftStream) -> None:
        """See `Drafts.finish`."""
        self._submit(partial(self._drafter.finish, session))

    def close(self, session: DraftStream) -> None:
        """See `Drafts.close`."""
        self._submit(partial(self._drafter.close, session), self._device.submit_close, outdated=session)

    def _submit(
        self, work: Work, submit: Callable[[Work], None] | None = None, outdated: DraftStream | None = None
    ) -> None:
        """Has the drafter do `work` next, which ends a run in progress after its present level, or in the midst of it
        if it drafts for nobody but `outdated`."""
        arrivals = self._drafter.arrivals

        def take_up() -> None:
            arrivals.take_up()
            work()

        (submit or self._device.submit)(take_up)
        arrivals.announce(outdated)


class ModelDraftServicer(DraftServicer, DeviceServicer):
    """The service as a worker with a model starts it."""

    _drafter: Drafter
    _device_drafts: DeviceDrafts

    def __init__(
        self,
        telemetry: Telemetry,
        policy: DraftPolicy | None = None,
        parallel: str = AUTO,
        runner: Callable[[Engine], StepRunner] = StepRunner,
    ) -> None:
        """`parallel` is the setting of that name. For the others see `Drafter`."""
        super().__init__(telemetry)
        self._policy = policy or DraftPolicy()
        self._parallel = parallel
        self._runner = runner

    def begin(self, loaded: LoadedModel, on_death: Callable[[BaseException], None]) -> DeviceThread:
        """See `WorkerServicer.begin`. Raises UnsupportedModelError if the model cannot draft in parallel and has to."""
        self._choose_parallel(loaded)
        self._drafter = Drafter(loaded.engine, self._policy, self._runner)
        device = self._take_over(loaded, self._drafter, on_death)
        self._device_drafts = DeviceDrafts(self._drafter, device)
        self.draft_by(self._device_drafts)
        return device

    def _choose_parallel(self, loaded: LoadedModel) -> None:
        mask_token = None if self._parallel == OFF else mask_token_id(loaded.folder, loaded.engine.vocab_size)
        if mask_token is not None:
            num_positions = POSITIONS_AUTO if self._parallel == AUTO else int(self._parallel)
            self._policy.draft_in_parallel(mask_token, num_positions)
            _log.info("drafting in parallel", positions=num_positions, mask_token=mask_token)
        elif self._parallel in (AUTO, OFF):
            _log.info("drafting one place a pass", parallel=self._parallel)
        else:
            raise UnsupportedModelError(
                f"--parallel {self._parallel}: {loaded.folder / 'config.json'} names no mask token, so the model "
                f"drafts for one place a pass; use --parallel {AUTO}, or a checkpoint of a parallel draft model (PARD)"
            )

    async def _open(self, opening: DraftOpen, outbox: Outbox[DraftEvent]) -> DraftStream:
        """With a grammar that cannot be compiled here the model guesses freely: that changes no token."""
        output = opening.token_ids[opening.num_prompt_tokens :]
        try:
            grammar = await self._grammars.state(opening.sampling.grammar, output)
        except (InvalidRequestError, QueueFullError) as error:
            _log.info("drafting without the grammar", session=opening.session_id, reason=str(error))
            grammar = None
        return self._device_drafts.open(opening, outbox, grammar)
