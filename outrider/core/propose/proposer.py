"""The one protocol for where a session's guesses come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from outrider.core.protocol.tree import Node

CERTAIN: Final = 1.0
"""Probability of a token besides which nothing may follow: the one that is believed as it stands."""


class Proposer(Protocol):
    """Guesses what follows the line of one session, below any path of undecided tokens.

    Its owner decides everything else. A verifier asks it below the leaves of what its drafter has sent, and keeps the
    answers for one round (`verify/overlay.py`). A drafter asks it below the nodes that it expands, and sends the
    answers on. Neither believes a probability as it stands: it is sorted into a bin of the proposer's own
    (`estimate/confidence.py`), and how often guesses of that bin are right is learned. So a proposer need not be
    calibrated, but what it calls more probable should be right more often. Only what it calls `CERTAIN` is taken for
    that.

    **When it is asked.** `prepare` once before the guesses of a round or a window, then `propose` any number of times,
    then `commit` once tokens are decided. A round may be called off, and then begins again; a session may end at any
    time.

    **What it must not do.** Wait, read a clock or do I/O. Change the nodes that it is shown, or keep them beyond the
    next commit. Answer differently to the same question before the next commit: whoever asks may ask twice, or keep the
    first answer. Be slow: it works on the thread that steps all sessions, some microseconds for a question.

    **What is untrusted.** Nodes come from a drafter, which may have sent any path: any token ids of the vocabulary, in
    any order. What was committed is the target's own. The owner in turn trusts neither the number of guesses nor their
    order, and leaves out token ids beyond its vocabulary where a proposer may know others.

    **Models.** A draft model does not implement this: it is asked below many nodes of many sessions at once, since that
    is what a forward pass does. Its step returns for each node token ids, best first, and for each a confidence in the
    model's own unit: margins of perturbed logits (`Sampler.propose`). `DraftEstimates` is told how to sort that
    confidence into bins, and `DraftSession.expand` takes the answers, a model's as an n-gram table's. A parallel
    model answers for several places in a row at once: `expand` takes its further answers as `ahead`. One that reads
    hidden states differs in its step alone.
    """

    def prepare(self) -> bool:
        """A round begins: catches up with the line, for a millisecond at most. Returns whether it has anything to say.

        If not, it is not asked in this round.
        """
        ...

    def propose(self, root: Node, node: Node) -> Mapping[int, float]:
        """The probability, above 0 and at most 1, of each token that may come after `node`; empty if it knows none.

        `root` stands for the line's last token; the path from below it to `node` has not been decided.
        """
        ...

    def commit(self, token_ids: Sequence[int]) -> None:
        """These tokens were decided after all before. The session's line holds them already."""
        ...
