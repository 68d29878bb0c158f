"""Workers that play a verifier and a drafter on a clock, without a model: what coordinators cost shows beside nothing.

    python bench/micro/played_workers.py TARGET VERIFY_ADDRESS DRAFT_ADDRESS

The trees are real, and so are streams, windows and verdicts. The text is that of the prompts; which guesses are right
follows from their places.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    from outrider.rpc.environment import GRPC_ENVIRONMENT

    os.environ |= GRPC_ENVIRONMENT  # before what follows imports grpc

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import uvloop

from bench.prompts import load_prompts, tokenizer
from outrider import PROTOCOL_VERSION
from outrider.core.protocol.messages import (
    Commitment,
    DraftOpen,
    DraftWindow,
    FinishReason,
    ModelInfo,
    Opened,
    Verdict,
    VerifyCommand,
    VerifyFinished,
    VerifyOpen,
    WorkerLoad,
)
from outrider.core.protocol.naming import Inbound, Outbound
from outrider.core.protocol.tree import SpeculationTree
from outrider.core.protocol.validation import RUN_AHEAD_MAX
from outrider.rpc.server import Server, Service
from outrider.rpc.stream_kind import DRAFT, VERIFY
from outrider.telemetry.setup import set_up
from outrider.v1 import draft_pb2_grpc, verify_pb2, verify_pb2_grpc
from outrider.worker.outbox import Outbox
from outrider.worker.servicer import ModelServicer

_STEP_MS: Final = 2.5
_SESSION_MS: Final = 0.25
"""Time of a verify step, and what each session adds to it, about that of the bundled target on a core. A draft step
takes half."""

_RIGHT_OF_TEN: Final = 7
"""Of so many guesses, one after another, those that are right, as for sampled text of the bundled pair."""

_LEVELS: Final = 3
"""Of two nodes each, in a window."""

_WINDOWS: Final = 2
"""That a drafter sends in a round, and a verifier has before it decides the round: so every round is made of as many
messages, however busy the machine is."""

_DRAFT_TOKENS_MAX: Final = 8


class _Text:
    """What each line goes on with."""

    def __init__(self, folder: Path) -> None:
        self._ids = [each for prompt in load_prompts(None, None, tokenizer(folder)) for each in prompt]

    def token(self, position: int) -> int:
        return self._ids[position % len(self._ids)]

    def guesses(self, position: int) -> tuple[int, int]:
        """Two different ones, the likelier first: it is the right one or neither is."""
        right = self.token(position)
        is_right = position * 2_654_435_761 % 2**32 % 10 < _RIGHT_OF_TEN
        return (right, right ^ 1) if is_right else (right ^ 2, right ^ 1)


class _Verification:
    """A session at the verifier; see `ServedSession`."""

    def __init__(self, text: _Text, opening: VerifyOpen, outbox: Outbox[Any], vocab_size: int) -> None:
        self._text = text
        self._opening = opening
        self._outbox = outbox
        self._tree = SpeculationTree(len(opening.token_ids) - 1, opening.token_ids[-1])
        self._inbound = Inbound(vocab_size=vocab_size, max_live_nodes=RUN_AHEAD_MAX)
        self._is_over = False
        self._num_windows = 0
        """Since the last round."""
        outbox.put(Opened(len(opening.token_ids)), 0, 0)

    def take(self, command: VerifyCommand) -> None:
        if isinstance(command, DraftWindow):
            self._num_windows += 1
            self._inbound.graft(self._tree, command)

    def step(self, step_ms: float) -> None:
        """Decides a round, if all of its windows are there."""
        tree, text = self._tree, self._text
        if self._is_over or self._num_windows < _WINDOWS:
            return
        self._num_windows = 0
        position = tree.root.position + 1
        num_left = self._opening.max_length - position
        num_draft_tokens = min(tree.num_live, _DRAFT_TOKENS_MAX)
        node, token_ids = tree.root, list[int]()
        while len(token_ids) < min(num_draft_tokens, num_left):
            child = node.children.get(text.token(node.position + 1))
            if child is None:
                break
            node = child
            token_ids.append(node.token_id)
        num_accepted = len(token_ids)
        if num_accepted < num_left:
            token_ids.append(text.token(position + num_accepted))
        verdict = Verdict(
            position=position,
            token_ids=token_ids,
            num_accepted=num_accepted,
            num_draft_tokens=num_draft_tokens,
            bonus=not node.children,
            verify_ms=step_ms,
            wait_ms=0.1,
            probability_min=0.02,
        )
        tree.commit(token_ids)
        self._outbox.put(verdict, 0, 0)
        if len(token_ids) == num_left:
            self._is_over = True
            self._outbox.put(VerifyFinished(FinishReason.LENGTH), 0, 0)

    def finish(self) -> None: ...

    def record(self, stamped: object) -> None: ...

    def close(self, error: BaseException | None) -> None:
        self._is_over = True


class _Drafting:
    """A session at the drafter; see `ServedSession`."""

    def __init__(self, text: _Text, opening: DraftOpen, outbox: Outbox[Any]) -> None:
        self._text = text
        self._outbox = outbox
        self._tree = SpeculationTree(len(opening.token_ids) - 1, opening.token_ids[-1])
        self._outbound = Outbound()
        self._is_over = False
        self._num_due = _WINDOWS
        outbox.put(Opened(len(opening.token_ids)), 0, 0)

    def take(self, command: DraftOpen | Commitment) -> None:
        if isinstance(command, Commitment):
            self._tree.commit(command.token_ids)
            self._num_due = _WINDOWS

    def step(self, step_ms: float) -> None:
        """Drafts below the likeliest path, if a window is due."""
        if self._is_over or not self._num_due:
            return
        self._num_due -= 1
        tree = self._tree
        node = tree.root
        while node.children:
            node = next(iter(node.children.values()))
        drafted = []
        for _ in range(_LEVELS):
            guesses = self._text.guesses(node.position + 1)
            pair = [tree.attach(node, token_id, -0.4 - rank) for rank, token_id in enumerate(guesses)]
            drafted += pair
            assert pair[0] is not None
            node = pair[0]
        window = self._outbound.window(tree, drafted, step_ms)
        if window is not None:
            self._outbox.put(window, 0, 0)

    def finish(self) -> None: ...

    def record(self, stamped: object) -> None: ...

    def close(self, error: BaseException | None) -> None:
        self._is_over = True


class _Clock:
    """Steps all sessions of a worker, those of a step at once."""

    def __init__(self, part: float) -> None:
        """`part` of a verify step is how long a step takes."""
        self.sessions: list[Any] = []
        self._part = part
        self._loop = asyncio.get_running_loop()
        self._tick()

    def _tick(self) -> None:
        self.sessions = [session for session in self.sessions if not session._is_over]
        step_ms = self._part * (_STEP_MS + _SESSION_MS * len(self.sessions))
        for session in self.sessions:
            session.step(step_ms)
        self._loop.call_later(step_ms / 1000.0, self._tick)


class _PlayedVerifier(ModelServicer, verify_pb2_grpc.VerifyServiceServicer):
    NAME = "verify"

    def __init__(self, text: _Text, content: bytes) -> None:
        super().__init__(set_up("played", environ={}))
        self._text = text
        self._content = content
        self._clock = _Clock(1.0)

    async def Verify(self, request: Any, context: Any) -> None:
        await self._host(context, VERIFY, self._open)

    async def GetTokenizer(self, request: Any, context: Any) -> None:
        sha256 = hashlib.sha256(self._content).hexdigest()
        await context.write(
            verify_pb2.GetTokenizerResponse(chunk=self._content, num_bytes=len(self._content), sha256=sha256)
        )

    async def _open(self, opening: VerifyOpen, outbox: Outbox[Any]) -> _Verification:
        session = _Verification(self._text, opening, outbox, self._served().vocab_size)
        self._clock.sessions.append(session)
        return session


class _PlayedDrafter(ModelServicer, draft_pb2_grpc.DraftServiceServicer):
    NAME = "draft"

    def __init__(self, text: _Text) -> None:
        super().__init__(set_up("played", environ={}))
        self._text = text
        self._clock = _Clock(0.5)

    async def Draft(self, request: Any, context: Any) -> None:
        await self._host(context, DRAFT, self._open)

    async def _open(self, opening: DraftOpen, outbox: Outbox[Any]) -> _Drafting:
        session = _Drafting(self._text, opening, outbox)
        self._clock.sessions.append(session)
        return session


async def _serve(folder: Path, addresses: Sequence[str]) -> None:
    text, content = _Text(folder), (folder / "tokenizer.json").read_bytes()
    info = ModelInfo(
        name="played",
        model_type="llama",
        vocab_size=tokenizer(folder).get_vocab_size(),
        tokenizer_sha256=hashlib.sha256(content).hexdigest(),
        eos_token_ids=(),
        max_context=1 << 20,
        max_sessions=1024,
        num_parameters=1,
        dtype="bfloat16",
        device="cpu",
        protocol_version=PROTOCOL_VERSION,
        instance_id=str(os.getpid()),
        identity_sha256=hashlib.sha256(content).hexdigest(),
    )
    load = WorkerLoad(info.instance_id, 0, 0, 0, 1 << 24, 1 << 24, _STEP_MS)
    verifier, drafter = _PlayedVerifier(text, content), _PlayedDrafter(text)
    services = (
        Service("outrider.v1.VerifyService", verify_pb2_grpc.add_VerifyServiceServicer_to_server, verifier),
        Service("outrider.v1.DraftService", draft_pb2_grpc.add_DraftServiceServicer_to_server, drafter),
    )
    servers = [Server(service) for service in services]
    for servicer, server, address in zip((verifier, drafter), servers, addresses, strict=True):
        servicer.serve(info, lambda: load)
        await server.start(address)
        server.set_ready(True)
    await asyncio.to_thread(sys.stdin.buffer.read)  # whoever started them holds the other end until it is gone


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner_:
        runner_.run(_serve(Path(sys.argv[1]), sys.argv[2:]))
