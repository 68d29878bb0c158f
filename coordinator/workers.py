"""The two workers as the coordinator knows them: reachable or not, and whether they fit each other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc.aio
import structlog
from tokenizers import Tokenizer

from outrider import PROTOCOL_VERSION
from outrider.core.errors import ModelMismatchError, OutriderError, WorkerUnavailableError
from outrider.core.messages import ModelInfo
from outrider.rpc.channels import open_channel
from outrider.rpc.workers import DRAFT_SERVICE, VERIFY_SERVICE, fetch_tokenizer, until_reconnected, watch_model

_log = structlog.get_logger()


class Workers:
    """Watches both workers and says what is possible at present."""

    def __init__(self, verify_address: str, draft_address: str, on_change: Callable[[bool], None]) -> None:
        """`on_change` is called on the event loop with whether generations are possible, at each change.

        They are when the target is known and the drafter has been asked once, so that the first request has it.
        """
        self.verify_channel: grpc.aio.Channel = open_channel(verify_address)
        self.draft_channel: grpc.aio.Channel | None = open_channel(draft_address) if draft_address else None
        self.target: ModelInfo | None = None
        self.draft: ModelInfo | None = None
        self.tokenizer: Tokenizer | None = None
        self._on_change = on_change
        self.draft_answered = self.draft_channel is None
        """Whether the drafter has been asked once, or there is none to ask."""
        self._tokenizer_sha256 = ""
        self._target_problem = f"the verify service at {verify_address} cannot be reached yet"
        self._draft_problem = (
            f"the draft service at {draft_address} cannot be reached"
            if draft_address
            else "no draft service is configured"
        )
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins to watch. Needs a running event loop."""
        self._tasks.append(asyncio.create_task(self._watch_target()))
        if self.draft_channel is not None:
            self._tasks.append(asyncio.create_task(self._watch_draft(self.draft_channel)))

    async def stop(self) -> None:
        """Ends the watches and closes the channels."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for channel in (self.verify_channel, self.draft_channel):
            if channel is not None:
                await channel.close()

    def require_target(self) -> tuple[ModelInfo, Tokenizer]:
        """The target and its tokenizer. Raises WorkerUnavailableError."""
        if self.target is None or self.tokenizer is None:
            raise WorkerUnavailableError(f"{self._target_problem}; try again when it serves")
        return self.target, self.tokenizer

    def draft_problem(self) -> str:
        """Why no drafter can be used at present; empty if one can.

        Raises ModelMismatchError if the configured pair does not fit: that is a mistake to mend, not a state to pass.
        """
        if self.draft is None:
            return self._draft_problem
        if self.target is not None:
            check_pair(self.target, self.draft)
        return ""

    async def _watch_target(self) -> None:
        while True:
            try:
                async for info in watch_model(self.verify_channel, VERIFY_SERVICE):
                    _check_version(info)
                    if info is not None and info.tokenizer_sha256 != self._tokenizer_sha256:
                        self.tokenizer = Tokenizer.from_buffer(await fetch_tokenizer(self.verify_channel))
                        self._tokenizer_sha256 = info.tokenizer_sha256
                    self.target = info
                    self._report("verify service", info)
                    self._tell()
            except OutriderError as error:
                self._target_problem = str(error)
                self.target = None
                _log.error("the verify service cannot be used", reason=str(error))
                self._tell()
            await until_reconnected(self.verify_channel)

    async def _watch_draft(self, channel: grpc.aio.Channel) -> None:
        while True:
            try:
                async for info in watch_model(channel, DRAFT_SERVICE):
                    _check_version(info)
                    self.draft = info
                    self._report("draft service", info)
                    self.draft_answered = True
                    self._tell()
            except OutriderError as error:
                self._draft_problem = str(error)
                self.draft = None
                _log.error("the draft service cannot be used", reason=str(error))
                self.draft_answered = True
                self._tell()
            await until_reconnected(channel)

    def _tell(self) -> None:
        self._on_change(self.target is not None and self.draft_answered)

    def _report(self, service: str, info: ModelInfo | None) -> None:
        if info is None:
            _log.warning("worker not serving", service=service)
            return
        _log.info("worker found", service=service, model=info.name, device=info.device)
        if self.target is not None and self.draft is not None:
            try:
                check_pair(self.target, self.draft)
            except ModelMismatchError as mismatch:
                _log.error("the pair does not fit", reason=str(mismatch))


def check_pair(target: ModelInfo, draft: ModelInfo) -> None:
    """Raises ModelMismatchError unless both models give every token id the same meaning.

    A drafter without a tokenizer gives ids no meaning at all and fits every target whose ids it can count.
    """
    if not draft.tokenizer_sha256:
        if target.vocab_size > draft.vocab_size:
            raise ModelMismatchError(
                f"the drafter {draft.name!r} takes {draft.vocab_size} token ids and the target {target.name!r} has "
                f"{target.vocab_size}; serve a draft model of the target's family, or ask with speculation.enabled = "
                "false"
            )
    elif target.tokenizer_sha256 != draft.tokenizer_sha256:
        raise ModelMismatchError(
            f"the draft model {draft.name!r} ({draft.vocab_size} ids) and the target {target.name!r} "
            f"({target.vocab_size} ids) have different vocabularies; serve a draft of the target's family, or ask with "
            "speculation.enabled = false"
        )


def _check_version(info: ModelInfo | None) -> None:
    if info is not None and info.protocol_version != PROTOCOL_VERSION:
        raise ModelMismatchError(
            f"the worker {info.name!r} speaks protocol version {info.protocol_version}, this coordinator version "
            f"{PROTOCOL_VERSION}; install the same release everywhere"
        )
