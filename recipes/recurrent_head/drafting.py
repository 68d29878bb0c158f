"""What rounds accept of a text, whoever drafts them: passes of the draft model, a head behind them, or mask tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from outrider.core.protocol.sampling import SamplingParams
from outrider.engine.sample.sampler import Row, Sampler
from recipes.distill.acceptance import CHAIN, MASKS, Acceptance, Drafter, added, chained, rounds
from recipes.distill.draft import logits, states
from recipes.distill.written import Text
from recipes.progress import Report
from recipes.recurrent_head.head import Heads, embeddings, unrolled

Shape = tuple[int, int]
"""Of a round: passes of the draft model, and levels of a head, or mask tokens, behind the last one."""

Accepted = dict[str, dict[Shape, dict[float, Acceptance]]]
"""By the way of drafting, shape and temperature."""

TRAINED_CHAIN = "chain of the run"
"""The chain of the run's own draft model, whose mask tokens are MASKS."""


@torch.inference_mode()
def right(head: nn.Module, draft: PreTrainedModel, text: Text, num_levels: int) -> Tensor:
    """Whether the head's guesses at each place of a text of T tokens are the tokens that stand there, [T - 1, D].

    At depth j, from 0, it has been given the j + 1 tokens behind the place, with the noise of the text. Beyond the text
    none is right.
    """
    vocab_size = draft.config.get_text_config().vocab_size
    sampler = Sampler(vocab_size, 1, draft.device)
    sampler.open(0, SamplingParams(temperature=text.temperature, seed=text.seed), (), ())
    token_ids = torch.tensor(text.token_ids)
    num_places = len(token_ids) - 1
    hidden = states(draft, token_ids[None, :-1])[0]
    given = functional.pad(token_ids[1:], (0, num_levels)).unfold(0, num_levels, 1)[:num_places]  # [P, D]
    guessed = functional.pad(token_ids[2:], (0, num_levels), value=-1).unfold(0, num_levels, 1)[:num_places]
    found = logits(draft, unrolled(head, hidden, embeddings(draft, given)), vocab_size)  # [P, D, V]
    rows = [Row(0, place + depth + 2) for place in range(num_places) for depth in range(num_levels)]
    return torch.tensor(sampler.choose(found.flatten(0, 1), rows)).view_as(guessed) == guessed


def mixed(first: Tensor, table: Tensor, num_passes: int) -> Tensor:
    """Whether guesses are right, [P, K + D], of K passes of the draft model and then all levels of a head: `first` [P]
    tells it of a pass at each place, `table` [P, D] of the levels behind it."""
    from_last = functional.pad(table[num_passes - 1 :], (0, 0, 0, min(num_passes - 1, len(table))))
    return torch.cat((chained(first, num_passes), from_last), -1)


def drafted(
    text: Text, heads: Heads, draft: PreTrainedModel, parallel: PreTrainedModel, num_depths: int
) -> Iterator[tuple[str, Shape, Tensor]]:
    """All ways of drafting a text in rounds of up to `num_depths` guesses, and whether these are right."""
    vocab_size = draft.config.get_text_config().vocab_size
    first = Drafter(draft, vocab_size).right(text, 1)[:, 0]
    at_once = Drafter(parallel, vocab_size).right(text, num_depths)
    for num in range(1, num_depths + 1):
        yield CHAIN, (num, 0), chained(first, num)
        yield TRAINED_CHAIN, (num, 0), chained(at_once[:, 0], num)
        yield MASKS, (1, num - 1), at_once[:, :num]
    for kind, head in heads.items():
        table = right(head, draft, text, num_depths - 1)
        for passes in range(1, num_depths):
            for levels in range(1, num_depths - passes + 1):
                yield kind, (passes, levels), mixed(first, table[:, :levels], passes)


def accepted(
    texts: Sequence[Text], drafted: Callable[[Text], Iterable[tuple[str, Shape, Tensor]]], report: Report
) -> Accepted:
    """What rounds accept of the texts."""
    parts: dict[str, dict[Shape, dict[float, list[Acceptance]]]] = {}
    for number, text in enumerate(texts, 1):
        for way, shape, hits in drafted(text):
            of = parts.setdefault(way, {}).setdefault(shape, {})
            of.setdefault(text.temperature, []).append(rounds(hits, text.num_given))
        report(number, len(texts), None)
    return {
        way: {shape: {at: added(each) for at, each in sorted(of.items())} for shape, of in shapes.items()}
        for way, shapes in parts.items()
    }
