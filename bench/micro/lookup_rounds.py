"""Rounds of verify sessions whose target writes a known text, and the time that their look-ups take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from outrider.core.propose.lookup import Ngrams
from outrider.core.propose.ngram import NgramTable
from outrider.core.propose.ngram_static import StaticNgrams
from outrider.core.propose.recent_answers import RecentAnswers
from outrider.core.protocol.messages import VerifyOpen
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.tree import Node, path_tokens
from outrider.core.verify.estimates import VerifyEstimates
from outrider.core.verify.selection import most_probable
from outrider.core.verify.session import VerifySession
from outrider.worker.config import default_compile_cache
from outrider.worker.lookups import native_lookups, ngram_tables

DRAFT_TOKENS_MAX = 16
"""Most guesses that a round scores, as a coordinator asks for."""

STEP_SECONDS = ((1, 1.7e-3), (2, 1.8e-3), (4, 2.0e-3), (8, 2.4e-3), (16, 3.4e-3), (32, 5.5e-3))
"""What steps of so many tokens take: the bundled target on a CPU, about."""

_NO_TOKEN = -1
"""What the target chooses off its path."""


class Round(NamedTuple):
    """What one round took, in microseconds."""

    in_tables: float
    in_all: float
    """Selection and decision with all that they ask."""
    num_nodes: int
    """Guesses that were scored."""
    num_tokens: int
    """Tokens that were committed."""


class Clocked:
    """A table, and the time that is spent in it."""

    def __init__(self, table: Ngrams) -> None:
        self._table = table
        self.seconds = 0.0

    def read(self, token_ids: Sequence[int]) -> None:
        """See `Ngrams`; not counted, since a round seldom reads."""
        self._table.read(token_ids)

    def commit(self, token_ids: Sequence[int]) -> None:
        """See `Ngrams`."""
        started = time.perf_counter()
        self._table.commit(token_ids)
        self.seconds += time.perf_counter() - started

    def after(self, root: Node, node: Node) -> Mapping[int, float]:
        """See `Ngrams`."""
        started = time.perf_counter()
        found = self._table.after(root, node)
        self.seconds += time.perf_counter() - started
        return found


def measure(texts: Sequence[tuple[Sequence[int], Sequence[int]]], static: StaticNgrams | None) -> dict[str, object]:
    """Microseconds per round with tables in Python and in machine code, which write each text by turns."""
    native = native_lookups(default_compile_cache())
    makers = {"python": partial(NgramTable, static=static)} | (
        {} if native is None else {"native": ngram_tables(native, static)}
    )
    learned = {name: estimates_of_steps() for name in makers}
    rounds: dict[str, list[Round]] = {name: [] for name in makers}
    for prompt, output in texts:
        for name, maker in makers.items():
            rounds[name] += write(prompt, output, maker, learned[name])
    return {
        name: {
            "num_rounds": len(each),
            "tables_median": round(statistics.median(one.in_tables for one in each), 1),
            "tables_mean": round(statistics.fmean(one.in_tables for one in each), 1),
            "round_median": round(statistics.median(one.in_all for one in each), 1),
        }
        for name, each in rounds.items()
    }


def estimates_of_steps() -> VerifyEstimates:
    """Of a verifier whose steps take STEP_SECONDS."""
    estimates = VerifyEstimates()
    estimates.restart(STEP_SECONDS)
    return estimates


def write(
    prompt: Sequence[int],
    output: Sequence[int],
    maker: Callable[[], Ngrams],
    estimates: VerifyEstimates,
    recent: RecentAnswers | None = None,
) -> Iterator[Round]:
    """The rounds of a session in which the target goes on with `output`."""
    table = Clocked(maker())
    session = VerifySession(
        VerifyOpen(
            session_id="",
            token_ids=prompt,
            num_prompt_tokens=len(prompt),
            sampling=SamplingParams(temperature=0.0),
            max_length=len(prompt) + len(output),
            max_draft_tokens=DRAFT_TOKENS_MAX,
        ),
        vocab_size=1 << 20,
        eos_token_ids=(),
        max_live_nodes=64,
        estimates=estimates,
        ngram_table=lambda: table,
        recent=recent,
    )
    while (done := session.line.num_generated_tokens) < len(output):
        table.seconds = 0.0
        started = time.perf_counter()
        nodes = most_probable([session.candidates], estimates.curve).nodes[0]
        selected = time.perf_counter()
        choices = [chosen(session, node, output[done:]) for node in (session.tree.root, *nodes)]
        chosen_at = time.perf_counter()
        decision = session.decide(nodes, choices)
        seconds = time.perf_counter() - chosen_at + selected - started
        yield Round(table.seconds * 1e6, seconds * 1e6, len(nodes), len(decision.token_ids))
    if session.recall is not None:
        session.recall.end()


def chosen(session: VerifySession, node: Node, rest: Sequence[int]) -> int:
    """What a target that goes on with `rest` chooses after `node`."""
    path = path_tokens(session.tree.root, node)
    return rest[len(path)] if len(path) < len(rest) and list(rest[: len(path)]) == path else _NO_TOKEN
