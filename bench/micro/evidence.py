"""What the draft model says of each token that the target chooses, how often that is right, and what n-grams would add.

    python -m bench.micro.evidence

The target writes its answers first, alone. Then the drafter's own session guesses each of their tokens in turn, from
the line as it stands, and what it says is sorted into the cells that it learns of. No clock is involved.
What is printed is quoted in docs/experiments/0009-expected-gain.md and 0013-ngrams.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from tokenizers import Tokenizer

from bench.columns import default_console, new_table
from bench.compare.measuring import sampling_of
from bench.micro.ngrams import TEMPERATURES
from bench.micro.steps import load_engine
from bench.prompts import load_prompts
from bench.simulate.replay import complete, write
from draft_service.batch import expansion_job, expansion_row
from draft_service.config import DraftConfig
from outrider.core.draft.session import DraftSession
from outrider.core.estimate.confidence import claim_bin, margin_bin
from outrider.core.propose.ngram import NgramTable
from outrider.core.protocol.errors import OutriderError
from outrider.core.protocol.messages import Commitment, DraftOpen
from outrider.core.protocol.validation import RUN_AHEAD_MAX
from outrider.engine.engine import Engine
from outrider.engine.load.folder import tokenizer_file
from outrider.engine.sample.sampler import Sampler

NUM_RANKS = 2
"""The draft model's first guesses, of which it is told what their margins and log-probabilities are worth."""

Rights = Counter[tuple[int, bool]]
"""How many guesses of a cell there were, right ones and wrong ones."""


class Evidence:
    """What was said of the tokens of some answers."""

    def __init__(self) -> None:
        self.num_places = 0
        self.by_cell: Rights = Counter()
        """By rank and margin, as the drafter's session learns of them."""
        self.by_log_prob: list[Rights] = [Counter() for _ in range(NUM_RANKS)]
        """For each rank, by buckets of the draft model's log-probability at the temperature of the text."""
        self.holding: Counter[str] = Counter()
        """Places in which guesses held the target's token, by whose guesses and how many."""

    def by_margin(self, rank: int) -> Rights:
        """By buckets of margin, of the draft model's guesses of that rank, 0 the first."""
        confidence_bins = range(margin_bin(rank, 0.0), margin_bin(rank, math.inf) + 1)
        return Counter({key: count for key, count in self.by_cell.items() if key[0] in confidence_bins})


def main(
    target: Annotated[Path, typer.Option(help="Folder of the model whose text it is.")] = Path("models/target"),
    draft: Annotated[Path, typer.Option(help="Folder of the draft model.")] = Path("models/draft"),
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    num_prompts: Annotated[int, typer.Option(min=1, help="Prompts: beginnings of held-out source files.")] = 24,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 64,
    weights: Annotated[str, typer.Option(help="The drafter's --weights: auto, full or int8.")] = "auto",
) -> None:
    """Tell what the evidence for guesses is worth, greedy and sampled."""
    console = default_console()
    try:
        prompts = load_prompts(None, num_prompts, Tokenizer.from_file(str(tokenizer_file(target))))
    except OutriderError as error:
        console.print(str(error), style="red")
        raise typer.Exit(2) from error
    with torch.inference_mode():
        writer = load_engine(target, dtype, compiled=True)
        drafter = load_engine(draft, dtype, compiled=True, kind=DraftConfig, weights=weights)
        found = {
            temperature: gather(drafter, prompts, write(writer, prompts, temperature, max_tokens), temperature)
            for temperature in TEMPERATURES
        }
    show(found, console)


def gather(
    draft: Engine, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], temperature: float
) -> Evidence:
    """What is said of each token of the answers, which `write` has drawn at that temperature."""
    evidence = Evidence()
    sampler = Sampler(draft.vocab_size, draft.max_sessions, draft.device)
    for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        opening = DraftOpen(
            session_id="",
            token_ids=prompt,
            num_prompt_tokens=len(prompt),
            sampling=sampling_of(temperature, index),
            max_run_ahead=RUN_AHEAD_MAX,
            tree_width=0,
            max_length=len(prompt) + len(answer),
            vocab_size=draft.vocab_size,
        )
        ngrams, slot = NgramTable(prompt), draft.acquire()
        session = DraftSession(opening)
        sampler.open(slot.index, opening.sampling, prompt, [])
        for token_id in answer:
            root = session.take()
            logits = complete(draft, expansion_job(slot, session, [root])).logits
            rows = [expansion_row(slot.index, session, root)]
            [guesses], [margins] = sampler.propose(logits, rows, session.width)
            session.expand(root, guesses, margins)
            evidence.num_places += 1
            proposals = root.proposals or ()
            evidence.by_cell.update((confidence_bin, guess == token_id) for guess, confidence_bin in proposals)
            log_probs = (logits[0].double() / (temperature or 1.0)).log_softmax(-1)
            for guess, by_log_prob in zip(guesses, evidence.by_log_prob, strict=False):
                by_log_prob[claim_bin(log_probs[guess].item()), guess == token_id] += 1
            repeated = [guess.token_id for guess in ngrams.guesses(ngrams.context, 1)]
            evidence.holding.update(name for name, held in _by_guesser(guesses, repeated).items() if token_id in held)
            session.commit(Commitment(position=len(session.line), token_ids=[token_id], rollback=False))
            ngrams.commit([token_id])
        draft.release(slot)
    return evidence


def information(rights: Rights) -> float:
    """Mutual information in nats between a guess's cell and whether it is right.

    It is that of the counts as they stand, which is too much by about (cells - 1) / (2 guesses): 0.004 for 14 cells and
    1536 guesses (Miller, Note on the bias of information estimates, 1955).
    """
    by_cell, by_right = Counter[int](), Counter[bool]()
    for (confidence_bin, right), count in rights.items():
        by_cell[confidence_bin] += count
        by_right[right] += count
    total = rights.total()
    return math.fsum(
        count / total * math.log(count * total / (by_cell[confidence_bin] * by_right[right]))
        for (confidence_bin, right), count in rights.items()
    )


def show(found: Mapping[float, Evidence], console: Console) -> None:
    """Prints, by temperature, whose guesses hold the target's token, and what tells so beforehand."""
    columns = [f"temperature {temperature:g}" for temperature in found]
    num_places = " and ".join(str(evidence.num_places) for evidence in found.values())
    table = new_table(f"share of {num_places} places in which the target's token is there", *columns)
    for name in _by_guesser([], []):
        table.add_row(name, *(f"{each.holding[name] / each.num_places:.3f}" for each in found.values()))
    console.print(table)
    table = new_table("nats told about whether a guess is right", *columns)
    for rank in range(NUM_RANKS):
        margins = (information(each.by_margin(rank)) for each in found.values())
        log_probs = (information(each.by_log_prob[rank]) for each in found.values())
        table.add_row(f"guess {rank + 1}: its margin", *(f"{nats:.3f}" for nats in margins))
        table.add_row(f"guess {rank + 1}: its log-probability", *(f"{nats:.3f}" for nats in log_probs))
    console.print(table)


def _by_guesser(guesses: Sequence[int], repeated: Sequence[int]) -> dict[str, Sequence[int]]:
    """Whose guesses may hold a token: of the draft model's and of the n-grams' first one."""
    return {
        "the draft model's first guess": guesses[:1],
        "the table's first guess": repeated,
        "one of the two": [*guesses[:1], *repeated],
        "one of the draft model's first two": guesses[:2],
        "one of the draft model's first two, or the table's first": [*guesses[:2], *repeated],
        "one of the draft model's first three": guesses[:3],
    }


if __name__ == "__main__":
    typer.run(main)
