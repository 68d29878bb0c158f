"""How much of a draft's guesses the target accepts, on text that the target wrote.

The noise of a text's seed chose its tokens, and a drafter guesses with the same noise. So a guess is accepted if it is
the token that stands there, and a text can be drafted and verified again without the target: this is what serving does
with chains of K guesses, round by round.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from outrider.core.protocol.sampling import SamplingParams
from outrider.engine.sample.sampler import Row, Sampler
from recipes.distill.draft import logits, states
from recipes.distill.masks import everywhere
from recipes.distill.written import Text
from recipes.progress import Report


class Acceptance(NamedTuple):
    """Rounds of K guesses, and how many accepted at least as many, by depth from 1."""

    num_rounds: int
    num_accepted: tuple[int, ...]

    @property
    def length(self) -> float:
        """Tokens committed per round, the target's own included."""
        return 1 + sum(self.num_accepted) / max(self.num_rounds, 1)

    @property
    def by_depth(self) -> list[float]:
        """Part of the rounds that accepted as many guesses or more, by depth from 1."""
        return [each / max(self.num_rounds, 1) for each in self.num_accepted]


def added(parts: Iterable[Acceptance]) -> Acceptance:
    """The rounds of all parts, of which there is at least one."""
    rounds, accepted = zip(*parts, strict=True)
    return Acceptance(sum(rounds), tuple(map(sum, zip(*accepted, strict=True))))


class Drafter:
    """A draft model that guesses as a drafter does."""

    def __init__(self, draft: PreTrainedModel, vocab_size: int) -> None:
        """It guesses among the `vocab_size` tokens of its target."""
        self._draft = draft
        self._vocab_size = vocab_size
        self._sampler = Sampler(vocab_size, 1, draft.device)

    @torch.inference_mode()
    def right(self, text: Text, num_depths: int) -> Tensor:
        """Whether the guess in one pass at each place of a text of T tokens, at each depth, is the token that stands
        there, [T - 1, K]. The first is made at the text's token, the others at masks; beyond the text none is right."""
        self._sampler.open(0, SamplingParams(temperature=text.temperature, seed=text.seed), (), ())
        num_places = len(text.token_ids) - 1
        true = torch.tensor(text.token_ids[1:])
        masks = everywhere(num_places, num_depths)
        token_ids = torch.tensor([text.token_ids[:-1]], device=self._draft.device)
        hidden = states(self._draft, token_ids, masks if num_depths > 1 else None)[0]
        rows = [Row(0, position) for position in (masks.positions + 1).tolist()]
        guesses = torch.tensor(self._sampler.choose(logits(self._draft, hidden, self._vocab_size), rows))
        table = torch.zeros(num_places, num_depths, dtype=torch.bool)
        table[:, 0] = guesses[:num_places] == true
        table[masks.places, masks.depths] = guesses[num_places:] == true[masks.stands_for]
        return table


Measured = dict[str, dict[float, Acceptance]]
"""By the way of drafting, `CHAIN` or `MASKS`, and the temperature of the texts."""

CHAIN = "chain"
"""One guess a pass, each below the one before it."""

MASKS = "masks"
"""All guesses in one pass."""


def as_json(measured: Measured) -> str:
    """For a file."""
    return json.dumps(measured)


def from_json(text: str) -> Measured:
    """What `as_json` wrote."""
    return {
        way: {float(temperature): Acceptance(rounds, tuple(accepted)) for temperature, (rounds, accepted) in of.items()}
        for way, of in json.loads(text).items()
    }


def measure(drafter: Drafter, texts: Sequence[Text], ways: Sequence[str], num_depths: int, report: Report) -> Measured:
    """Drafts all texts anew in rounds of `num_depths` guesses, in each of the `ways`."""
    found: dict[str, dict[float, list[Acceptance]]] = {way: {} for way in ways}
    for number, text in enumerate(texts, 1):
        tables = drafter.right(text, num_depths if MASKS in ways else 1)
        for way in ways:
            hits = chained(tables[:, 0], num_depths) if way == CHAIN else tables
            found[way].setdefault(text.temperature, []).append(rounds(hits, text.num_given))
        report(number, len(texts), None)
    return {way: {each: added(parts) for each, parts in sorted(of.items())} for way, of in found.items()}


def rounds(hits: Tensor, num_given: int) -> Acceptance:
    """Rounds over a text of T tokens behind `num_given` given ones, of `hits` [T - 1, K]: whether the guess at a place
    and depth is right. Rounds that the text's end would cut off do not count."""
    num_places, num_depths = hits.shape
    leading = hits.int().cumprod(-1)  # [T - 1, K]
    place, found, num_rounds = num_given - 1, torch.zeros(num_depths, dtype=torch.int64), 0
    while place + num_depths <= num_places:
        found += leading[place]
        num_rounds += 1
        place += int(leading[place].sum()) + 1
    return Acceptance(num_rounds, tuple(found.tolist()))


def chained(first: Tensor, num_depths: int) -> Tensor:
    """Whether each guess of the chain from each place is right, [T - 1, K], of whether the first ones are, [T - 1].

    A guess counts below right ones alone, so it is what is guessed behind the text itself. Beyond the text none is.
    """
    return functional.pad(first, (0, num_depths - 1)).unfold(0, num_depths, 1)
