"""A recurrent head behind a draft model: what it guesses, what it learns, and which rounds are best."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from outrider.core.protocol.sampling import SamplingParams
from outrider.engine.sample.sampler import Row, Sampler
from recipes.distill.acceptance import CHAIN, MASKS
from recipes.distill.draft import states
from recipes.distill.training import Batch
from recipes.distill.written import Text
from recipes.recurrent_head.drafting import TRAINED_CHAIN, accepted, drafted, mixed, right
from recipes.recurrent_head.head import KINDS, embeddings
from recipes.recurrent_head.price import best, products
from recipes.recurrent_head.training import Lessons, starts, train
from tests.recipes.test_distill import SMALL, small

FEW = 4
"""Tokens of a vocabulary in which every fourth guess is right by chance."""

TEXT = Text(torch.randint(FEW, (14,), generator=torch.Generator().manual_seed(0)).tolist(), 3, 0.8, seed=5)


@pytest.fixture(scope="module")
def draft() -> PreTrainedModel:
    return small(1, FEW).requires_grad_(False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_guesses_what_it_guesses_token_by_token(kind: str, draft: PreTrainedModel) -> None:
    torch.manual_seed(0)
    head, sampler = KINDS[kind](SMALL.width), Sampler(FEW, 1, draft.device)
    sampler.open(0, SamplingParams(temperature=TEXT.temperature, seed=TEXT.seed), (), ())
    found = right(head, draft, TEXT, 3)
    assert found.shape == (13, 3)
    for place in range(13):
        state = states(draft, torch.tensor([TEXT.token_ids[: place + 1]]))[0, -1]
        for depth in range(3):
            position = place + depth + 2
            if position >= len(TEXT.token_ids):
                assert not found[place, depth]
                continue
            state, out = head(state[None], embeddings(draft, torch.tensor([TEXT.token_ids[position - 1]])))
            state, logits = state[0], draft.lm_head(out)
            guess = sampler.choose(logits, [Row(0, position)])[0]
            assert found[place, depth] == (guess == TEXT.token_ids[position])
    assert 0 < found.sum() < found.numel() / 2


def test_a_head_goes_on_from_the_last_pass() -> None:
    first = torch.tensor([1, 0, 1, 1], dtype=torch.bool)
    table = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]], dtype=torch.bool)
    assert mixed(first, table, 1).int().tolist() == [[1, 1, 0], [0, 0, 1], [1, 1, 1], [1, 0, 0]]
    assert mixed(first, table, 3).int().tolist() == [[1, 0, 1, 1, 1], [0, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]


def test_every_way_is_measured_on_every_text(draft: PreTrainedModel) -> None:
    masked = small(1, FEW)
    masked.config.pard_token = FEW - 1
    heads = {kind: make(SMALL.width) for kind, make in KINDS.items()}
    found = accepted([TEXT, TEXT], lambda text: drafted(text, heads, draft, masked, 3), lambda *_: None)
    assert {way: sorted(shapes) for way, shapes in found.items()} == {
        **{way: [(1, 0), (2, 0), (3, 0)] for way in (CHAIN, TRAINED_CHAIN)},
        MASKS: [(1, 0), (1, 1), (1, 2)],
        **{kind: [(1, 1), (1, 2), (2, 1)] for kind in KINDS},
    }
    assert found[CHAIN] == found[TRAINED_CHAIN], "a model with a mask token that it never sees"
    assert found[MASKS][1, 0] == found[CHAIN][1, 0]


def test_each_place_has_a_token_to_guess_for_every_level() -> None:
    batch = Batch(torch.zeros(2, 9, dtype=torch.int64), torch.tensor([9, 6]), torch.ones(2), torch.arange(2))
    places = sorted(zip(*(each.tolist() for each in starts(batch, 3, step=0)), strict=True))
    assert places == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1)]


def test_heads_learn_what_the_target_would_say(draft: PreTrainedModel) -> None:
    torch.manual_seed(0)
    heads, losses = {kind: make(SMALL.width) for kind, make in KINDS.items()}, list[float]()
    before = draft.lm_head.weight.clone()
    lessons = Lessons(draft, small(0, FEW).requires_grad_(False), [TEXT], 3)
    train(heads, draft, small(0, FEW).requires_grad_(False), lessons, 60, lambda *told: losses.append(told[-1] or 0.0))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert torch.equal(draft.lm_head.weight, before)


def test_the_best_rounds_are_those_that_commit_most_for_their_time() -> None:
    lengths = {(1, 0): 1.8, (2, 0): 2.4, (1, 1): 2.2}
    assert best(lengths, 0.1, 0.5)[1:] == ((2, 0), 2.4)
    assert best(lengths, 1.0, 0.1) == (2.2 / 2.1, (1, 1), 2.2)
    assert best(lengths, 1.0, 1.0) == (1.8 / 2.0, (1, 0), 1.8)


def test_every_matrix_of_a_level_is_counted() -> None:
    counts = {kind: sum(each.weight.numel() for each in products([make(8)])) for kind, make in KINDS.items()}
    assert counts == {"mlp": 3 * 64, "gru": 7 * 64}
