"""Links in memory: workers that say what they are told to say, and write down what they hear."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection
from typing import Generic, TypeVar

from coordinator.links import Worker
from outrider.core.coordinate.statistics import SpeculationStatistics
from outrider.core.protocol.errors import WorkerUnavailableError
from outrider.core.protocol.messages import (
    Commitment,
    DraftOpen,
    DraftWindow,
    EndDrafts,
    Opened,
    Verdict,
    VerifyCommand,
    VerifyFinished,
    VerifyOpen,
)
from outrider.core.protocol.naming import Inbound
from outrider.core.protocol.tree import SpeculationTree

VOCAB_SIZE = 26

Event = TypeVar("Event")
Outcome = TypeVar("Outcome")


class MemoryWorker:
    """One worker of a pool."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.is_trusted = True


class _Inbox(Generic[Event]):
    """What a worker says, in order, until its stream ends."""

    def __init__(self) -> None:
        self._said: asyncio.Queue[Event | Exception | None] = asyncio.Queue()

    def say(self, event: Event | Exception | None) -> None:
        """An error, or None for nothing more, ends the stream."""
        self._said.put_nowait(event)

    async def outcomes(self, take: Callable[[Event], Outcome | None]) -> AsyncGenerator[Outcome]:
        while (event := await self._said.get()) is not None:
            if isinstance(event, Exception):
                raise event
            if (outcome := take(event)) is not None:
                yield outcome


class MemoryVerifier:
    """See `VerifierLink`. It mirrors the tree, so that its verdicts are those of a verifier."""

    def __init__(
        self, worker: MemoryWorker, reads: asyncio.Event, note: Callable[[str], None], draft_model: str = ""
    ) -> None:
        """It reads while `reads` is set; until then whoever sends waits."""
        self.worker = worker
        self.draft_model = draft_model
        self._reads = reads
        self.has_decided = False
        self.is_handed_over = False
        self.inbox: _Inbox[Opened | Verdict | VerifyFinished] = _Inbox()
        self.is_closed = self._is_left = False
        self._note = note
        self._inbound = Inbound(vocab_size=VOCAB_SIZE, max_live_nodes=256)

    @property
    def has_room(self) -> bool:
        return self._reads.is_set()

    async def room(self) -> None:
        await self._reads.wait()

    def offer(self, command: VerifyCommand) -> None:
        match command:
            case VerifyOpen():
                self._tree = SpeculationTree(len(command.token_ids) - 1, command.token_ids[-1])
                drafts = "expects drafts" if command.expect_drafts else "expects no drafts"
                self._limit = command.max_draft_tokens
                alone = ", none verified" if not self._limit else ""
                self._note(f"{self.worker.address} < open {_ids(command.token_ids)}, {drafts}{alone}")
            case DraftWindow():
                self._inbound.graft(self._tree, command)
                self._note(f"{self.worker.address} < drafted {_nodes(command)}")
            case EndDrafts():
                self._note(f"{self.worker.address} < drafts ended")

    async def outcomes(
        self, take: Callable[[Opened | Verdict | VerifyFinished], Outcome | None]
    ) -> AsyncGenerator[Outcome]:
        def hear(event: Opened | Verdict | VerifyFinished) -> Outcome | None:
            self.has_decided = self.has_decided or isinstance(event, Verdict)
            return take(event)

        async for outcome in self.inbox.outcomes(hear):
            yield outcome
        if not self._is_left:
            raise WorkerUnavailableError("the verify service ended the stream early; try again")

    def leave(self) -> None:
        self._is_left = True
        self.inbox.say(None)

    def distrust(self, reason: str) -> None:
        self._note(f"{self.worker.address} distrusted: {reason}")
        self.worker.is_trusted = False

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self._note(f"{self.worker.address} closed")

    def draft(self, token_ids: list[int]) -> None:
        """It drafts a chain for itself, in place of what it has."""
        tree = self._tree
        parent_ids = range(len(token_ids))
        window = DraftWindow(tree.root.position, 1, parent_ids, token_ids, [-0.1] * len(token_ids))
        Inbound(vocab_size=VOCAB_SIZE, max_live_nodes=256).graft(tree, window)

    def decide(self, num_accepted: int, next_token: int | None) -> Verdict:
        """A round that scores all nodes, accepts so many along the first children, and adds the next token."""
        tree = self._tree
        num_draft_tokens, position, node = tree.num_live if self._limit else 0, tree.root.position + 1, tree.root
        accepted: list[int] = []
        for _ in range(num_accepted):
            node = next(iter(node.children.values()))
            accepted.append(node.token_id)
        bonus = next_token is not None and num_draft_tokens > 0 and not node.children
        token_ids = accepted if next_token is None else [*accepted, next_token]
        tree.commit(token_ids)
        return Verdict(
            position=position,
            token_ids=token_ids,
            num_accepted=num_accepted,
            num_draft_tokens=num_draft_tokens,
            bonus=bonus,
        )


class MemoryDrafter:
    """See `DrafterLink`."""

    def __init__(self, worker: MemoryWorker, opening: DraftOpen, note: Callable[[str], None]) -> None:
        self.worker = worker
        self.model_name = f"model of {worker.address}"
        self.is_open = False
        self.is_handed_over = False
        self.inbox: _Inbox[DraftWindow] = _Inbox()
        self.is_closed = False
        self._note = note
        self._end = len(opening.token_ids) - 1
        self._last_id = 0
        note(f"{worker.address} < open {_ids(opening.token_ids)}, credit {opening.max_run_ahead}")

    def send(self, commitment: Commitment) -> None:
        self._end = commitment.position + len(commitment.token_ids) - 1
        what = "rollback" if commitment.rollback else "commit"
        self._note(f"{self.worker.address} < {what} {_ids(commitment.token_ids)} at {commitment.position}")

    async def outcomes(self, take: Callable[[DraftWindow], Outcome | None]) -> AsyncGenerator[Outcome]:
        async for outcome in self.inbox.outcomes(take):
            yield outcome
        raise WorkerUnavailableError("the draft service ended the stream")

    def close(self, *, failed: bool) -> None:
        if not self.is_closed:
            self.is_closed = True
            self.inbox.say(None)
            self._note(f"{self.worker.address} closed{', its fault' if failed else ''}")

    def guess(self, token_ids: list[int], parent_id: int) -> DraftWindow:
        """A chain below a node of its own, or below the end of the line as it knows it (0)."""
        first_id = self._last_id + 1
        self._last_id += len(token_ids)
        parent_ids = [parent_id, *range(first_id, self._last_id)]
        return DraftWindow(self._end, first_id, parent_ids, token_ids, [-0.1] * len(token_ids))


class MemoryLinks:
    """See `Links`. Workers are taken in order; those to avoid are left out."""

    def __init__(
        self, num_verifiers: int, num_drafters: int, note: Callable[[str], None], own_draft_model: str = ""
    ) -> None:
        """With an `own_draft_model` all verifiers but the last draft for themselves."""
        self.verifiers: list[MemoryVerifier] = []
        """Streams that were opened."""
        self.drafters: list[MemoryDrafter] = []
        self.verifiers_read = asyncio.Event()
        self.verifiers_read.set()
        self._verify_pool = [MemoryWorker(f"v{number}") for number in range(1, num_verifiers + 1)]
        self._draft_pool = [MemoryWorker(f"d{number}") for number in range(1, num_drafters + 1)]
        self._note = note
        self._own_draft_model = own_draft_model

    def verifier(self, num_tokens: int, avoid: Collection[Worker]) -> MemoryVerifier:
        worker = _first(self._verify_pool, avoid, "no verify service is left")
        own_draft_model = "" if worker is self._verify_pool[-1] else self._own_draft_model
        link = MemoryVerifier(worker, self.verifiers_read, self._note, own_draft_model)
        self.verifiers.append(link)
        return link

    def drafter(
        self, opening: DraftOpen, verifier: Worker, avoid: Collection[Worker], statistics: SpeculationStatistics
    ) -> MemoryDrafter:
        link = MemoryDrafter(_first(self._draft_pool, avoid, "no draft service is left"), opening, self._note)
        self.drafters.append(link)
        return link


def _first(pool: list[MemoryWorker], avoid: Collection[Worker], none_left: str) -> MemoryWorker:
    found = next((worker for worker in pool if worker.is_trusted and worker not in avoid), None)
    if found is None:
        raise WorkerUnavailableError(none_left)
    return found


def _ids(token_ids: Collection[int]) -> str:
    return ",".join(map(str, token_ids))


def _nodes(window: DraftWindow) -> str:
    """Each node as `id:token`, below its parent's id or the committed token at the window's base."""
    nodes = zip(window.parent_ids, window.token_ids, strict=True)
    return " ".join(
        f"{node_id}:{token_id}<{parent_id or f'@{window.base}'}"
        for node_id, (parent_id, token_id) in enumerate(nodes, window.first_id)
    )
