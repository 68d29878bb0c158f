"""A session's drafters, one after another: what they guess goes to the verifier, and what was committed to them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol, assert_never

import structlog

from coordinator.links import DrafterLink, Worker
from outrider.core.coordinate.session import DrafterLost, OpenDrafter, Session
from outrider.core.coordinate.statistics import SpeculationStatistics
from outrider.core.protocol.errors import OutriderError, WorkerUnavailableError
from outrider.core.protocol.messages import Commitment, DraftOpen, DraftWindow, EndDrafts

RELAY_END_SECONDS = 1.0
"""Longest that the relay is given to see that its sessions are over: it takes a round of the event loop or two."""

_log = structlog.get_logger()


class Decider(Protocol):
    """Whoever decides the session's line, and wants drafts for it."""

    @property
    def worker(self) -> Worker:
        """Where it is."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether it takes anything at present."""
        ...

    def offer(self, command: DraftWindow | EndDrafts) -> None:
        """Takes what was drafted, or how drafting goes on."""
        ...


class Deciders(Protocol):
    """Those who decide a session, one after another."""

    is_over: bool
    """Whether the session is over."""

    @property
    def present(self) -> Decider | None:
        """The one that knows the session, if there is one at present."""
        ...

    async def ready(self) -> Decider | None:
        """The same, once there is one and it has room; None if the session is over before."""
        ...


class DrafterLinks(Protocol):
    """Opens sessions at drafters that have room: the part of `Links` that has to do with drafters."""

    def drafter(
        self, opening: DraftOpen, verifier: Worker, avoid: Collection[Worker], statistics: SpeculationStatistics
    ) -> DrafterLink:
        """See `Links.drafter`."""
        ...


class DrafterRelay:
    """Once the session is open at a verifier, this is the one writer of its stream."""

    def __init__(
        self,
        session: Session,
        links: DrafterLinks,
        verifiers: Deciders,
        opening: DraftOpen,
    ) -> None:
        """`opening` is that of the first drafter; later ones begin at the end of the line."""
        self.on_window: Callable[[Worker, DraftWindow], None] | None = None
        """Is told of every window that the session has taken."""
        self.model_name = ""
        """Name of the drafter's model, the latest one's if there were several; empty if there was none."""
        self._session = session
        self._links = links
        self._verifiers = verifiers
        self._opening = opening
        self._are_drafts_expected = True
        """By the verifier, as far as this has told it."""
        self._link: DrafterLink | None = None
        self._avoided: set[Worker] = set()
        """Those that the session has had and lost."""
        self._reopening: OpenDrafter | None = None
        """What speculation resumes with, before that is done."""
        self._is_turned = asyncio.Event()
        """Set when a pause has ended: speculation resumes, or the session is over."""
        self._num_behind = 0
        """Windows of the present drafter that wait until they can be relayed."""
        self._is_closed = False
        self._task: asyncio.Task[None] | None = None

    def open(self, verifier: Worker) -> None:
        """Opens the first drafter, for a session at `verifier`, unless that is done or none is wanted."""
        if self._link is None and self._reopening is None and self._session.hears_drafter:
            self._open(verifier, self._opening.max_run_ahead, "")

    def start(self) -> None:
        """Begins to relay, if there is a drafter or may be one, and that has not begun."""
        if self._task is None and (self._link is not None or self._session.is_paused):
            self._are_drafts_expected = not self._session.is_paused
            self._task = asyncio.create_task(self._relay())

    def send(self, commitment: Commitment) -> None:
        """Tells the drafter what was committed."""
        if self._link is not None:
            self._link.send(commitment)

    def pause(self, reason: str) -> None:
        """Closes the drafter, and leaves all guesses to the verifier until `resume`."""
        if self._session.on_paused(reason):
            self._reopening = None
            self._is_turned.clear()
            self._leave()

    def resume(self) -> None:
        """Opens a drafter again after a pause."""
        self._reopening = self._session.on_resumed()
        if self._reopening is not None:
            self._is_turned.set()

    def close(self) -> None:
        """The session is over: the drafter frees its slot."""
        self._is_closed = True
        self._is_turned.set()
        self._leave()

    async def end(self) -> None:
        """Waits for the relay's end. Call it when the drafter is closed and the verifiers are over: that ends it.

        It is cancelled if it does not end.
        """
        task, self._task = self._task, None
        if task is None:
            return
        _, unfinished = await asyncio.wait({task}, timeout=RELAY_END_SECONDS)
        if unfinished:
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def _relay(self) -> None:
        while not self._is_closed:
            if (link := self._link) is not None:
                await self._listen(link)
                if self._link is link:
                    return
            elif self._reopening is not None:
                await self._reopen()
            elif self._session.is_paused:
                await self._end_drafts()
                await self._is_turned.wait()
            else:
                return

    async def _listen(self, link: DrafterLink) -> None:
        """Relays what one drafter sends, to its end."""
        self._num_behind = 0

        def relay(window: DraftWindow) -> DraftWindow | None:
            verifier = self._verifiers.present
            if self._num_behind or verifier is None or not verifier.has_room:
                self._num_behind += 1
                return window
            if self._link is link:
                self._obey(self._take(window, link.worker), verifier)
            return None

        try:
            async with aclosing(link.outcomes(relay)) as late:
                async for window in late:
                    verifier = await self._verifiers.ready()
                    if verifier is None or self._link is not link:
                        return
                    self._num_behind -= 1
                    self._obey(self._take(window, link.worker), verifier)
        except Exception as error:
            if self._link is not link or self._verifiers.is_over:
                return
            reason = self._told(error, link)
            if (verifier := await self._verifiers.ready()) is not None and self._link is link:
                self._obey(self._on_loss(link, reason), verifier)

    def _told(self, error: Exception, link: DrafterLink) -> str:
        """Why a drafter is lost, for the client and, unless that is nobody's fault, for the log."""
        session_id, address = self._opening.session_id, link.worker.address
        if not isinstance(error, OutriderError):
            _log.error("unexpected error at a drafter", session=session_id, address=address, exc_info=error)
            return "something went wrong on the way to the drafter; the coordinator's log has the reason"
        if self._session.finish_reason is None and not link.is_handed_over:
            _log.warning("drafter lost", session=session_id, address=address, reason=str(error))
        return str(error)

    def _on_loss(self, link: DrafterLink, reason: str) -> DrafterLost | None:
        if link.is_handed_over:
            return self._session.on_drafter_handed_over(reason)
        return self._session.on_drafter_lost(reason) if link.is_open else self._session.on_drafter_refused(reason)

    def _take(self, window: DraftWindow, drafter: Worker) -> DraftWindow | DrafterLost | None:
        on_window, is_heard = self.on_window, self._session.hears_drafter
        outcome = self._session.on_drafted(window)
        if on_window is not None and is_heard and (outcome is None or isinstance(outcome, DraftWindow)):
            on_window(drafter, window)
        return outcome

    async def _end_drafts(self) -> None:
        """For the time of a pause: the windows after it tell the verifier that there are drafts again."""
        if self._are_drafts_expected and (verifier := await self._verifiers.ready()) is not None:
            self._are_drafts_expected = False
            verifier.offer(EndDrafts())

    async def _reopen(self) -> None:
        """Resumes speculation, unless it was paused again meanwhile."""
        if (verifier := await self._verifiers.ready()) is not None:
            reopening, self._reopening = self._reopening, None
            self._are_drafts_expected = True
            self._obey(reopening, verifier)

    def _obey(self, outcome: DraftWindow | DrafterLost | None, verifier: Decider) -> None:
        match outcome:
            case None:
                pass
            case DraftWindow():
                verifier.offer(outcome)
            case EndDrafts():
                self._give_up()
                verifier.offer(outcome)
            case OpenDrafter(credit, reason):
                self._give_up()
                none_left = self._open(verifier.worker, credit, reason)
                if none_left is not None:
                    verifier.offer(none_left)
            case _:
                assert_never(outcome)

    def _give_up(self) -> None:
        if self._link is not None and not self._link.is_handed_over:
            self._avoided.add(self._link.worker)
            self._link.close(failed=True)
            self._link = None
        self._leave()  # one that was about to stop may be had again when it is back

    def _leave(self) -> None:
        if self._link is not None:
            self._link.close(failed=False)
            self._link = None

    def _open(self, verifier: Worker, credit: int, lost_reason: str) -> EndDrafts | None:
        """Opens a drafter at the end of the line. `lost_reason` is why the one before is gone, empty for the first.

        Returns what the verifier is to be told if there is none.
        """
        opening = replace(self._opening, token_ids=tuple(self._session.line.token_ids), max_run_ahead=credit)
        try:
            link = self._links.drafter(opening, verifier, self._avoided, self._session.statistics)
        except WorkerUnavailableError as none_left:
            return self._session.on_no_drafter(lost_reason or str(none_left))
        self.model_name = link.model_name
        self._link = link
        return None
