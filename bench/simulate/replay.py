"""Policies on the target's own text: real draft model, real sessions, a clock that is told what things take.

The target writes its answers first, alone. Then each mode speculates on them: what the draft model guesses is computed,
how long that takes is not measured. So a run says what a policy is worth for a pair of models, alike on every machine,
where timings scatter by several percent.

`python -m bench.simulate.replay` prints the tables that docs/experiments/0009-expected-gain.md quotes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from tokenizers import Tokenizer

from bench.columns import new_table
from bench.compare.measuring import sampling_of
from bench.flags import with_flags
from bench.micro.steps import load_engine
from bench.prompts import load_prompts
from bench.rivals.modes import COMPILED, PADDED, RIVALS, Mode, choose_modes
from bench.rivals.ruled import policy_of
from bench.rivals.rules import FREE_CREDIT
from bench.simulate.virtual import Outcome, Speculation, Times, VirtualPair
from draft_service.batch import expansion_job, expansion_row
from draft_service.config import DraftConfig
from outrider.core.draft.session import DraftSession
from outrider.core.propose.ngram import NgramTable
from outrider.core.propose.ngram_static import StaticNgrams
from outrider.core.protocol.errors import OutriderError
from outrider.core.protocol.line import Line
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.tree import Node
from outrider.engine.engine import Engine, StepOutput
from outrider.engine.jobs import Job
from outrider.engine.load.folder import tokenizer_file
from outrider.engine.sample.sampler import Row, Sampler
from outrider.worker.ngram_file import load_ngrams

NUM_LEARNING = 2
"""Answers from which a mode learns what steps take and guesses are worth; they do not count."""


class UnreplayableModeError(OutriderError):
    """The virtual clock knows no difference that the mode makes."""


class Replay:
    """An answer of the target, and the draft model's guesses of it."""

    def __init__(self, draft: Engine, prompt: Sequence[int], answer: Sequence[int], sampling: SamplingParams) -> None:
        self.prompt, self.sampling = prompt, sampling
        self.length = len(prompt) + len(answer)
        self.vocab_size = draft.vocab_size
        self._answer = answer
        self._draft = draft
        self._sampler = Sampler(draft.vocab_size, draft.max_sessions, draft.device)
        self._slot = draft.acquire()
        self._sampler.open(self._slot.index, sampling, prompt, [])

    def next_token(self, line: Line, node: Node) -> int:
        """See `Text.next_token`: the same on every path."""
        index = node.position + 1 - len(self.prompt)
        return self._answer[index] if index < len(self._answer) else 0

    def propose(self, session: DraftSession, nodes: Sequence[Node]) -> list[tuple[list[int], list[float]]]:
        """See `Text.propose`."""
        output = complete(self._draft, expansion_job(self._slot, session, nodes))
        rows = [expansion_row(self._slot.index, session, node) for node in nodes]
        proposals = self._sampler.propose(output.logits, rows, session.width)
        return list(zip(*proposals, strict=True))

    def close(self) -> None:
        """Gives the draft model's slot back."""
        self._draft.release(self._slot)


@dataclass(frozen=True, slots=True, kw_only=True)
class Milliseconds:
    """What things take on the clock. The defaults are those of the wide pair."""

    verify_ms: Annotated[float, typer.Option(help="A target step of one token.")] = 18.0
    verify_guess_ms: Annotated[float, typer.Option(help="What each guess adds to it.")] = 0.15
    rest_ms: Annotated[float, typer.Option(help="Between a verdict and the next target step.")] = 1.0
    draft_ms: Annotated[float, typer.Option(help="A draft step.")] = 0.7
    draft_node_ms: Annotated[float, typer.Option(help="What each node adds to it.")] = 0.03
    pause_ms: Annotated[float, typer.Option(help="Between two draft steps.")] = 0.2
    delay_ms: Annotated[float, typer.Option(help="A message between drafter and verifier.")] = 1.0

    @property
    def times(self) -> Times:
        """As the clock takes them."""
        return Times(
            draft=lambda num_nodes: self.draft_ms + self.draft_node_ms * num_nodes,
            verify=lambda num_nodes: self.verify_ms + self.verify_guess_ms * num_nodes,
            delay=self.delay_ms,
            pause=self.pause_ms,
            rest=self.rest_ms,
        )


@with_flags
def main(
    milliseconds: Milliseconds,
    target: Annotated[Path, typer.Option(help="Folder of the model whose text it is.")] = Path("models/target"),
    draft: Annotated[Path, typer.Option(help="Folder of the draft model.")] = Path("models/draft"),
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    modes: Annotated[str, typer.Option(help="Modes of `outrider bench` that run on the virtual clock.")] = (
        "outrider,no_tree,no_wait,no_choice,no_ngram,no_outcomes,sync,amusd"
    ),
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.0,
    num_prompts: Annotated[int, typer.Option(min=NUM_LEARNING + 1)] = 24,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 64,
    ngram_table: Annotated[Path | None, typer.Option(help="The verifier's --ngram-table.")] = None,
) -> None:
    """Replays modes over the target's own answers on a virtual clock. The default times are those of the wide pair."""
    console = Console()
    try:
        chosen = [mode for mode in choose_modes(modes.split(",")) if mode.speculate]
        for mode in chosen:
            _speculation(mode)
        static = load_ngrams(ngram_table).table if ngram_table is not None else None
        prompts = load_prompts(None, num_prompts, Tokenizer.from_file(str(tokenizer_file(target))))
    except OutriderError as error:
        console.print(str(error), style="red")
        raise typer.Exit(2) from error
    with torch.inference_mode():
        answers = write(load_engine(target, dtype, compiled=True), prompts, temperature, max_tokens)
        drafter = load_engine(draft, dtype, compiled=True, kind=DraftConfig)
        outcomes = {
            mode.name: replay(mode, drafter, prompts, answers, temperature, milliseconds.times, static)
            for mode in chosen
        }
    title = f"{num_prompts - NUM_LEARNING} answers at temperature {temperature:g}, on the virtual clock"
    table = new_table(title, "ms/token", "x target", "a round", "overlap")
    for name, outcome in outcomes.items():
        table.add_row(
            name,
            f"{outcome.time_per_token:.3f}",
            f"{(milliseconds.verify_ms + milliseconds.rest_ms) / outcome.time_per_token:.2f}",
            f"{outcome.acceptance_length:.2f}",
            f"{outcome.overlap:.0%}",
        )
    console.print(table)


def write(target: Engine, prompts: Sequence[Sequence[int]], temperature: float, max_tokens: int) -> list[list[int]]:
    """The target's answers, the i-th drawn as `outrider bench` draws it."""
    answers: list[list[int]] = []
    for index, prompt in enumerate(prompts):
        sampler = Sampler(target.vocab_size, target.max_sessions, target.device)
        slot, line = target.acquire(), list(prompt)
        sampler.open(slot.index, sampling_of(temperature, index), prompt, [])
        for _ in range(max_tokens):
            line += sampler.choose(complete(target, Job(slot, line)).logits, [Row(slot.index, len(line))])
        target.release(slot)
        answers.append(line[len(prompt) :])
    return answers


def replay(
    mode: Mode,
    draft: Engine,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    temperature: float,
    times: Times,
    static: StaticNgrams | None = None,
) -> Outcome:
    """What `mode` comes to over all answers but the first NUM_LEARNING, which it learns from.

    The verifier's n-gram tables stand above `static`.
    """
    policy = policy_of(mode.policy)
    outcomes: list[Outcome] = []
    for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        text = Replay(draft, prompt, answer, sampling_of(temperature, index))
        pair = VirtualPair(text, times, _speculation(mode), policy, partial(NgramTable, static=static))
        outcomes.append(pair.run())
        text.close()
    counted = outcomes[NUM_LEARNING:]
    time = math.fsum(outcome.time_per_token for outcome in counted)
    return Outcome(
        time / len(counted),
        math.fsum(outcome.overlap * outcome.time_per_token for outcome in counted) / time,
        len(counted) / math.fsum(1.0 / outcome.acceptance_length for outcome in counted),
    )


def _speculation(mode: Mode) -> Speculation:
    """The settings of the mode's coordinator. Raises UnreplayableModeError."""
    if mode.external or mode.pair != COMPILED or (mode.policy is not None and mode.policy.name == PADDED):
        raise UnreplayableModeError(f"mode {mode.name!r} is a matter of engines: measure it with `outrider bench`")
    if mode.coordinator == RIVALS:
        return Speculation(tree_width=1, run_ahead=FREE_CREDIT, max_draft_tokens=FREE_CREDIT)
    return Speculation(tree_width=1) if mode.in_chain else Speculation()


def complete(engine: Engine, job: Job) -> StepOutput:
    """The job to its end, whose line may be longer than one step reads."""
    while True:
        output = engine.step([job])
        if output.num_rows[0] is not None:
            return output


if __name__ == "__main__":
    typer.run(main)
