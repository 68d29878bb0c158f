"""Scripts that drive a generation over links in memory, and what came of each line.

A script is a text of blocks: commands, a line of four dashes, and what the generation did because of them. Commands:

    start prompt=1,2,3 max-tokens=16 verifiers=2 drafters=2 stop=ef   begin; what is left out has these values, no stop
    start received=4,5      begin where another coordinator was lost, after it had given out so much
    start own=tiny          begin; all verifiers but the last draft for themselves with the model `tiny`
    start reports=yes       begin; each round is followed by its report: node after parent, letter and fate
    draft 4,5 [below 2]     the drafter sends a chain, from the line's end as it knows it or below its node 2
    draft 99                ids beyond the vocabulary of 26 break the protocol
    own draft 4,5           the verifier drafts a chain for itself, from the line's end
    verdict +2 9            the verifier accepts two draft tokens and adds token 9; `verdict +2` adds none
    repeat verdict          it says the last verdict again
    claim 9,9 at 3          it says that tokens stand there, of no drafts, whatever its tree has
    finish length           it ends the session: eos, length or stop_token
    lose verifier           its connection breaks
    damage verifier         bits of what it says flip on the way
    refuse verifier         it has no room
    overflow verifier       it gives up on a reader that is too slow
    end verifier            it ends the stream without a word
    hold verifiers          none of them reads what is sent from here on, until `release verifiers`
    lose drafter            its connection breaks; before it has taken the session that is a refusal
    end drafter             it ends the stream without a word
    break drafter           something of ours fails while its session is heard
    shut gate               speculation does not pay; a generation asks after its next round
    open gate               it pays again
    leave                   the client goes away

Tokens are letters: 1 is b, 2 is c; 0, the letter a, is the end of text. What is seen is what each worker hears
(`v1 < ...`), what is closed, what is emitted, and how the generation ended. `python -m tests.coordinator.script` writes
what the scripts give now: commit the difference only if you understand it.
"""

from __future__ import annotations

import asyncio
import string
from contextlib import aclosing
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer, decoders, models

from coordinator.detokenizer import Detokenizer, TextStream
from coordinator.generation import Generation
from coordinator.request import GenerationRequest
from coordinator.text import TextDecoder
from outrider.core.coordinate.round import Round, RoundReporter
from outrider.core.estimate.speculation_gate import SpeculationGate
from outrider.core.protocol.errors import (
    DamagedMessageError,
    OutriderError,
    QueueFullError,
    SlotsExhaustedError,
    WorkerUnavailableError,
)
from outrider.core.protocol.messages import NOT_TRACED, FinishReason, ModelInfo, Verdict, VerifyFinished
from outrider.core.protocol.resume import ReceivedCompletion
from outrider.core.protocol.sampling import SamplingParams

from .memory import VOCAB_SIZE, MemoryDrafter, MemoryLinks, MemoryVerifier

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.txt"))

DASHES = "----"

SETTLING_TURNS = 50
"""Turns of the event loop after which everything that follows from a command has come about."""

TARGET = ModelInfo("target", "llama", VOCAB_SIZE, "", (0,), 64, 4, 0, "float32", "cpu", 2, "")

MAX_RUN_AHEAD = 16


class Block(NamedTuple):
    """Commands of a script and what came of them."""

    comments: list[str]
    commands: list[str]
    outcome: list[str]


def read(text: str) -> list[Block]:
    """The blocks of a script. They are parted by empty lines."""
    return [_block(part.splitlines()) for part in text.strip().split("\n\n")]


def written(blocks: list[Block]) -> str:
    """The script that `read` reads so."""
    return "\n\n".join("\n".join([*b.comments, *b.commands, DASHES, *b.outcome]) for b in blocks) + "\n"


async def play(blocks: list[Block]) -> list[Block]:
    """The same blocks with what came of them now."""
    stage = Stage()
    try:
        return [Block(block.comments, block.commands, await stage.play(block.commands)) for block in blocks]
    finally:
        await stage.end()


class HandGate(SpeculationGate):
    """Opens and shuts by hand."""

    @property
    def reason(self) -> str:
        return "" if self.is_open else "it does not pay"


class Stage:
    """One generation, its links, and what is seen of it."""

    def __init__(self) -> None:
        self._seen: list[str] = []
        self._running: asyncio.Task[None] | None = None
        self._last_verdict: Verdict | None = None
        self._gate = HandGate(adaptive=False)

    async def play(self, commands: list[str]) -> list[str]:
        """Carries out commands, one after another, and tells what was seen."""
        for command in commands:
            self._obey(command.split())
            for _ in range(SETTLING_TURNS):
                await asyncio.sleep(0)
        seen, self._seen = self._seen, []
        return seen

    async def end(self) -> None:
        """Leaves nothing running."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        assert asyncio.all_tasks() == {asyncio.current_task()}, "a task was left running"

    def _obey(self, words: list[str]) -> None:
        match words:
            case ["start", *settings]:
                self._start(dict(setting.split("=", 1) for setting in settings))
            case ["draft", token_ids]:
                self._draft(token_ids, 0)
            case ["draft", token_ids, "below", parent_id]:
                self._draft(token_ids, int(parent_id))
            case ["own", "draft", token_ids]:
                self._verifier.draft(_ids(token_ids))
            case ["verdict", num_accepted, *next_token]:
                self._last_verdict = self._verifier.decide(
                    int(num_accepted), int(next_token[0]) if next_token else None
                )
                self._verifier.inbox.say(self._last_verdict)
            case ["repeat", "verdict"]:
                assert self._last_verdict is not None
                self._verifier.inbox.say(self._last_verdict)
            case ["claim", token_ids, "at", position]:
                self._verifier.inbox.say(
                    Verdict(position=int(position), token_ids=_ids(token_ids), num_accepted=0, num_draft_tokens=0)
                )
            case ["finish", reason]:
                self._verifier.inbox.say(VerifyFinished(FinishReason[reason.upper()]))
            case ["lose", "verifier"]:
                self._verifier.inbox.say(WorkerUnavailableError("the connection broke"))
            case ["damage", "verifier"]:
                self._verifier.inbox.say(DamagedMessageError("bits flipped"))
            case ["refuse", "verifier"]:
                self._verifier.inbox.say(SlotsExhaustedError("every slot is taken"))
            case ["overflow", "verifier"]:
                self._verifier.inbox.say(QueueFullError("the reader is too slow"))
            case ["end", "verifier"]:
                self._verifier.inbox.say(None)
            case ["hold", "verifiers"]:
                self._links.verifiers_read.clear()
            case ["release", "verifiers"]:
                self._links.verifiers_read.set()
            case ["lose", "drafter"]:
                self._drafter.inbox.say(WorkerUnavailableError("the connection broke"))
            case ["drain", "drafter"]:
                self._drafter.is_handed_over = True
                self._drafter.inbox.say(WorkerUnavailableError("it is about to stop"))
            case ["end", "drafter"]:
                self._drafter.inbox.say(None)
            case ["break", "drafter"]:
                self._drafter.inbox.say(KeyError("a fault of ours"))
            case ["shut", "gate"]:
                self._gate.is_open = False
            case ["open", "gate"]:
                self._gate.is_open = True
            case ["leave"]:
                assert self._running is not None
                self._running.cancel()
            case _:
                raise ValueError(f"no such command: {' '.join(words)}")

    @property
    def _verifier(self) -> MemoryVerifier:
        return self._links.verifiers[-1]

    @property
    def _drafter(self) -> MemoryDrafter:
        return self._links.drafters[-1]

    def _draft(self, token_ids: str, parent_id: int) -> None:
        self._drafter.is_open = True
        self._drafter.inbox.say(self._drafter.guess(_ids(token_ids), parent_id))

    def _start(self, settings: dict[str, str]) -> None:
        prompt = _ids(settings.pop("prompt", "1,2,3"))
        num_drafters = int(settings.pop("drafters", "2"))
        speculate = settings.pop("speculate", "yes") == "yes"
        stop = settings.pop("stop", "")
        received = _ids(settings.pop("received")) if "received" in settings else []
        request = GenerationRequest(
            prompt_token_ids=prompt,
            sampling=SamplingParams(),
            max_length=len(prompt) + int(settings.pop("max-tokens", "16")),
            stop=(stop,) if stop else (),
            stop_token_ids=frozenset(),
            ignore_eos=False,
            num_logprobs=None,
            speculate=speculate,
            max_draft_tokens=8,
            tree_width=0,
            num_completions=1,
            received=(ReceivedCompletion(token_ids=received),),
        )
        own_draft_model = settings.pop("own", "")
        self._links = MemoryLinks(int(settings.pop("verifiers", "2")), num_drafters, self._see, own_draft_model)
        reporter = RoundReporter(0, chr) if settings.pop("reports", "no") == "yes" else None
        assert not settings, f"no such settings: {settings}"
        decoder = TextDecoder(TextStream(Detokenizer(letters())), request.stop)
        for token_id in received:
            decoder.push(token_id)
        generation = Generation(
            request,
            session_id="s",
            target=TARGET,
            decoder=decoder,
            links=self._links,
            gate=self._gate,
            max_run_ahead=MAX_RUN_AHEAD,
            trace=NOT_TRACED,
        )
        if reporter is not None:
            generation.report_by(reporter)
        self._running = asyncio.create_task(self._run(generation))

    def _see(self, line: str) -> None:
        self._seen.append(line)

    async def _run(self, generation: Generation) -> None:
        try:
            async with aclosing(generation.run()) as rounds:
                async for emitted in rounds:
                    tokens = emitted.tokens(0)
                    given = " ".join(f"{token.token_id}:{token.origin.name.lower()}" for token in tokens.tokens)
                    rolled_back = ", rolled back" if tokens.rolled_back else ""
                    self._see(f"emit {given} at {tokens.position} {tokens.text!r}{rolled_back}")
                    if emitted.round is not None:
                        self._see(_told(emitted.round))
        except OutriderError as error:
            self._see(f"raised {type(error).__name__}: {error}")
            return
        finished = generation.finished(0)
        why = f" ({finished.mode_reason})" if finished.mode_reason else ""
        if generation.session.drafts_in_turn:
            why += f" by the verifier with {generation.draft_model}"
        counts = f"{finished.usage.num_generated_tokens} tokens in {finished.speculation.num_rounds} rounds"
        ending = f", {finished.text!r} at the end" if finished.text else ""
        self._see(f"finished by {finished.reason.name.lower()}, {finished.mode.name.lower()}{why}: {counts}{ending}")


def letters() -> Tokenizer:
    """A tokenizer whose token i is the letter of that number."""
    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(string.ascii_lowercase)}, "a"))
    tokenizer.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer


def _told(report: Round) -> str:
    nodes = " ".join(f"{each.parent}>{each.token_id}:{each.fate.name.lower()}" for each in report.nodes)
    steps = " ".join(f"{step.num_nodes} by d{step.drafter}" for step in report.draft_steps)
    reason = f" ({report.mode_reason})" if report.mode_reason else ""
    return f"round {report.number} by v{report.verifier}, drafted {steps or 'nothing'}: {nodes or 'no nodes'}{reason}"


def _ids(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _block(lines: list[str]) -> Block:
    dashes = lines.index(DASHES) if DASHES in lines else len(lines)
    before, outcome = lines[:dashes], lines[dashes + 1 :]
    comments = [line for line in before if line.startswith("#")]
    return Block(comments, [line for line in before if not line.startswith("#")], outcome)


if __name__ == "__main__":
    for path in SCRIPTS:
        path.write_text(written(asyncio.run(play(read(path.read_text(encoding="utf-8"))))), encoding="utf-8")
