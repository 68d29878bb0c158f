"""A drafter and a verifier, each on its device thread, with the coordinator's session between them and no wire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer

from draft_service.drafter import Drafter, DraftStream
from draft_service.model_servicer import DeviceDrafts
from outrider.core.coordinate.session import Session
from outrider.core.coordinate.statistics import SpeculationStatistics
from outrider.core.protocol.messages import DraftOpen, DraftWindow, Opened, Verdict, VerifyFinished, VerifyOpen
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.schedule.policy import VerifyPolicy
from outrider.engine.device_thread import DeviceThread
from outrider.engine.engine import Engine
from outrider.engine.load.folder import load_model
from outrider.engine.quantized.linear import keep_in_eight_bits
from outrider.worker.outbox import Outbox
from verify_service.verifier import Verifier, VerifyStream

MAX_RUN_AHEAD = 24
MAX_DRAFT_TOKENS = 8
SAMPLINGS = (
    SamplingParams(),
    SamplingParams(
        temperature=0.8,
        top_p=0.95,
        top_k=50,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.1,
        seed=11,
    ),
)
"""Greedy, and everything that shapes a distribution."""

_MODELS = Path(__file__).parents[2] / "models"
_PROMPTS = (
    "import os\n\n\ndef walk(",
    "class Queue:\n    def __init__(self, maxsize=0):\n",
    "def dumps(obj, *, skipkeys=False, ensure_ascii=True, check_circular=True,\n",
    '    """Return a list of all lines',
    "for name in sorted(names):\n    if name.startswith('_'):\n        continue\n",
    "x",
)


@dataclass(frozen=True, slots=True)
class Generated:
    """One generation."""

    token_ids: list[int]
    statistics: SpeculationStatistics


class Pair:
    """Both workers. Make one with `running`."""

    def __init__(self, target: Engine, draft: Engine, policy: VerifyPolicy | None = None) -> None:
        self._vocab_size = target.vocab_size
        self._verifier = Verifier(target, (), policy=policy)
        self._drafter = Drafter(draft)
        self._deaths: list[BaseException] = []
        self._verify_thread = DeviceThread(self._verifier, self._deaths.append, target.device)
        self._draft_thread = DeviceThread(self._drafter, self._deaths.append, draft.device)
        self._drafts = DeviceDrafts(self._drafter, self._draft_thread)

    @classmethod
    @contextmanager
    def running(cls, target: Engine, draft: Engine, policy: VerifyPolicy | None = None) -> Iterator[Pair]:
        """A pair whose device threads run while the context is entered. `policy` is the verifier's."""
        pair = cls(target, draft, policy)
        pair._verify_thread.start()
        pair._draft_thread.start()
        try:
            yield pair
        finally:
            pair._verify_thread.stop()
            pair._draft_thread.stop()
            assert not pair._deaths

    async def generate(
        self, prompt: Sequence[int], *, sampling: SamplingParams, num_tokens: int, tree_width: int
    ) -> Generated:
        """Continues a prompt by exactly `num_tokens`; `tree_width` 0 is the target alone."""
        drafts = tree_width > 0
        session = Session(prompt, vocab_size=self._vocab_size, max_run_ahead=MAX_RUN_AHEAD, drafting=drafts)
        verification = VerifyStream(
            VerifyOpen(
                session_id="",
                token_ids=prompt,
                num_prompt_tokens=len(prompt),
                sampling=sampling,
                max_length=len(prompt) + num_tokens,
                max_draft_tokens=MAX_DRAFT_TOKENS if drafts else 0,
                expect_drafts=drafts,
            ),
            Outbox(),
        )
        drafting = DraftStream(
            DraftOpen(
                session_id="",
                token_ids=prompt,
                num_prompt_tokens=len(prompt),
                sampling=sampling,
                max_run_ahead=MAX_RUN_AHEAD,
                tree_width=max(tree_width, 1),
                max_length=len(prompt) + num_tokens,
                vocab_size=self._vocab_size,
            ),
            Outbox(),
        )
        relay = asyncio.create_task(self._relay(session, verification, drafting)) if drafts else None
        self._verify_thread.submit(partial(self._verifier.open, verification))
        try:
            while session.finish_reason is None:
                stamped = await verification.outbox.take()
                assert stamped is not None
                match stamped.event:
                    case Verdict() as verdict:
                        outcome = session.on_verdict(verdict)
                        if outcome is not None and outcome.commitment is not None:
                            self._drafts.commit(drafting, outcome.commitment)
                    case VerifyFinished(reason):
                        session.on_stopped(reason)
                    case Opened():
                        pass
        finally:
            self._verify_thread.submit_close(partial(self._verifier.close, verification))
            self._drafts.close(drafting)
            if relay is not None and not relay.cancel():
                relay.result()
        return Generated(session.line.token_ids[len(prompt) :], session.statistics)

    async def _relay(self, session: Session, verification: VerifyStream, drafting: DraftStream) -> None:
        self._draft_thread.submit(partial(self._drafter.open, drafting))
        while (stamped := await drafting.outbox.take()) is not None:
            if isinstance(stamped.event, DraftWindow):
                relayed = session.on_drafted(stamped.event)
                if relayed is not None:
                    assert isinstance(relayed, DraftWindow), "an honest drafter was given up"
                    self._verify_thread.submit(partial(self._verifier.graft, verification, relayed, time.monotonic()))


def bundled(name: str, device: torch.device, dtype: str, *, weights: str = "full") -> Engine:
    """An engine over one of the bundled models, "target" or "draft", its linear layers in int8 if `weights` say so."""
    model = load_model(_MODELS / name, device=device, dtype=dtype)
    if weights == "int8":
        keep_in_eight_bits(model)
    return Engine(model, max_sessions=len(_PROMPTS), max_context=512)


def prompts() -> list[list[int]]:
    """Beginnings of what the bundled pair is about, as token ids."""
    tokenizer = Tokenizer.from_file(str(_MODELS / "target" / "tokenizer.json"))
    return [tokenizer.encode(text).ids for text in _PROMPTS]


def all_at_once(
    pair: Pair, prompts: Iterable[Sequence[int]], sampling: SamplingParams, *, num_tokens: int, tree_width: int
) -> list[Generated]:
    """All prompts continued at the same time, so that their steps mix as they happen to."""

    async def gather() -> list[Generated]:
        return await asyncio.gather(
            *(
                pair.generate(prompt, sampling=sampling, num_tokens=num_tokens, tree_width=tree_width)
                for prompt in prompts
            )
        )

    return asyncio.run(gather())
