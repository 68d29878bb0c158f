"""Distilling a draft: losses, masks, acceptance, and runs that can be stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

from outrider.core.protocol.sampling import SamplingParams
from outrider.engine.engine import Engine
from outrider.engine.jobs import Job
from outrider.engine.load.folder import load_model
from outrider.engine.sample.sampler import Row, Sampler
from recipes.demo_pair.pair import llama_config
from recipes.demo_pair.recipe import RecipeError, Shape
from recipes.demo_pair.training import MISS_WEIGHT
from recipes.distill import draft as drafts
from recipes.distill import training, written
from recipes.distill.acceptance import CHAIN, MASKS, Acceptance, Drafter, added, measure, rounds
from recipes.distill.loss import chain_weights, costs, length_weights
from recipes.distill.masks import KEPT_MIN, dropped, everywhere
from recipes.distill.options import Loss, Options
from recipes.distill.training import Batch, Objective, batch_of
from recipes.distill.written import Text, Writer

SMALL = Shape(num_layers=2, width=32, num_heads=2, mlp_width=64, learning_rate=1e-2)
CPU = torch.device("cpu")
VOCAB_SIZE = 64


def small(seed: int, vocab_size: int = VOCAB_SIZE) -> LlamaForCausalLM:
    """An untrained model that is sure enough of itself to differ from another."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(llama_config(SMALL, vocab_size)).eval()
    model.lm_head.weight.data.mul_(20)
    return model


@pytest.fixture(scope="module")
def target() -> LlamaForCausalLM:
    return small(0)


@pytest.fixture(scope="module")
def draft() -> PreTrainedModel:
    """One with a mask token, in a vocabulary that has grown by it."""
    model = small(1)
    drafts.give_mask_token(model, VOCAB_SIZE)
    return model


@pytest.fixture(scope="module")
def texts() -> list[Text]:
    model = small(0)
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = None
    writer = Writer(model, max_context=64, cache=None)
    return writer.write([[1, 2, 3], [4], [5, 6], [7, 8, 9, 10], [11, 12]], 20, seed=3)


# What a guess costs.


def test_losses_are_what_their_names_say() -> None:
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)).double()
    aim, guess = logits.log_softmax(-1)
    p, q = aim.exp(), guess.exp()
    forward, reverse = (p * (p / q).log()).sum(-1), (q * (q / p).log()).sum(-1)
    misses = (p - q).abs().sum(-1) / 2
    expected = {
        Loss.FORWARD_KL: forward,
        Loss.REVERSE_KL: reverse,
        Loss.TOTAL_VARIATION: misses,
        Loss.FORWARD_KL_AND_MISSES: forward + MISS_WEIGHT * misses,
    }
    assert set(expected) == set(Loss)
    for loss, divergence in expected.items():
        found = costs(loss, aim, guess)
        torch.testing.assert_close(found.divergence, divergence)
        torch.testing.assert_close(found.acceptance, 1 - misses)
        torch.testing.assert_close(costs(loss, aim, aim).divergence, torch.zeros(5).double(), atol=1e-12, rtol=0)


def test_a_guess_weighs_what_it_adds_to_the_accepted_length() -> None:
    acceptance = torch.rand(3, 5, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    length = acceptance.cumprod(-1).sum()
    (slope,) = torch.autograd.grad(length, acceptance)
    torch.testing.assert_close(length_weights(acceptance.detach()), slope)


def test_a_chains_guess_weighs_in_all_chains_that_it_stands_in() -> None:
    acceptance = torch.rand(2, 7, generator=torch.Generator().manual_seed(0)).double()
    found = chain_weights(acceptance, 3)
    for text, row in enumerate(acceptance):
        ahead = torch.cat((row, torch.zeros(2).double()))
        for place in range(7):
            beginnings = [place - depth for depth in range(3) if place >= depth]
            weights = [length_weights(ahead[begin : begin + 3])[place - begin] for begin in beginnings]
            assert found[text, place].item() == pytest.approx(sum(weights).item() / len(weights))


# Masks.


def test_each_depth_drops_some_of_the_one_before_it_and_none_lacks_those_before_it() -> None:
    masks = dropped(100, 6, 0.5, torch.Generator().manual_seed(0))
    kept = {(int(place), int(depth)) for place, depth in zip(masks.places, masks.depths, strict=True)}
    assert len(kept) == len(masks.places)
    assert {place + depth < 100 and 1 <= depth < 6 for place, depth in kept} == {True}
    assert all(depth == 1 or (place, depth - 1) in kept for place, depth in kept)
    counts = masks.depths.bincount()[1:]
    shares = torch.tensor([0.5, 0.25, KEPT_MIN, KEPT_MIN, KEPT_MIN])
    assert ((counts - 100 * shares).abs() <= 5).all()  # but for those that would stand beyond the text
    assert len(everywhere(100, 6).places) == sum(100 - depth for depth in range(1, 6))


def test_a_mask_sees_the_text_to_its_place_and_its_own_before_it() -> None:
    masks = everywhere(5, 3)
    tokens = [(place, 0) for place in range(5)] + list(zip(masks.places.tolist(), masks.depths.tolist(), strict=True))
    assert masks.positions.tolist() == [place + depth for place, depth in tokens]
    for row, (place, depth) in enumerate(tokens):
        for column, (other, other_depth) in enumerate(tokens):
            sees = other <= place if other_depth == 0 else other == place and other_depth <= depth
            assert masks.visible[row, column].item() == sees


def test_masks_of_many_places_are_computed_as_each_place_alone(draft: PreTrainedModel) -> None:
    text = torch.randint(VOCAB_SIZE, (2, 12), generator=torch.Generator().manual_seed(0))
    masks = dropped(12, 4, 0.7, torch.Generator().manual_seed(1))
    packed = drafts.states(draft, text, masks)
    mask = drafts.mask_token(draft)
    for place in range(12):
        alone = torch.cat((text[:, : place + 1], torch.full((2, 3), mask)), -1)
        expected = drafts.states(draft, alone)  # at the positions that follow, each seeing all before it
        torch.testing.assert_close(packed[:, place], expected[:, place], atol=1e-5, rtol=1e-4)
        for index in (masks.places == place).nonzero().flatten().tolist():
            depth = int(masks.depths[index])
            torch.testing.assert_close(packed[:, 12 + index], expected[:, place + depth], atol=1e-5, rtol=1e-4)


def test_the_engine_computes_masks_as_nodes_below_a_line(draft: PreTrainedModel, tmp_path: Path) -> None:
    mask = drafts.mask_token(draft)
    assert mask is not None
    draft.save_pretrained(tmp_path)
    engine = Engine(load_model(tmp_path, device=CPU, dtype="float32"), max_sessions=1, max_context=64)
    line = [3, 1, 4, 1, 5]
    output = engine.step([Job(engine.acquire(), line, (-1, 0, 1), (mask,) * 3, (-1, 0, 1, 2))])
    expected = draft(input_ids=torch.tensor([[*line, mask, mask, mask]])).logits[0, 4:]
    torch.testing.assert_close(output.logits, expected, atol=1e-4, rtol=1e-4)


def test_a_mask_token_is_an_id_that_no_text_has() -> None:
    padded = small(0, vocab_size=100)
    drafts.give_mask_token(padded, 90)
    assert (drafts.mask_token(padded), padded.config.vocab_size) == (90, 100)
    grown = small(0)
    before = grown(input_ids=torch.tensor([[1, 2]])).logits
    drafts.give_mask_token(grown, VOCAB_SIZE)
    assert (drafts.mask_token(grown), grown.config.vocab_size) == (VOCAB_SIZE, 128)
    assert torch.equal(grown(input_ids=torch.tensor([[1, 2]])).logits[..., :VOCAB_SIZE], before)
    drafts.give_mask_token(grown, 5)
    assert drafts.mask_token(grown) == VOCAB_SIZE
    for wrong in (128, -1, "a", True):
        grown.config.pard_token = wrong
        with pytest.raises(RecipeError, match="must be an id below 128"):
            drafts.give_mask_token(grown, VOCAB_SIZE)


# The objective.


@pytest.mark.parametrize("by_length", [False, True])
def test_the_objective_compares_each_guess_with_the_target_at_the_place_it_stands_for(
    target: LlamaForCausalLM, draft: PreTrainedModel, by_length: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(parallel=True, depths=3, keep=0.6, by_length=by_length, loss=Loss.FORWARD_KL)
    token_ids = torch.randint(VOCAB_SIZE, (2, 9), generator=torch.Generator().manual_seed(0))
    batch = Batch(token_ids, torch.tensor([9, 6]), torch.tensor([0.8, 1.0]), torch.tensor([0, 1]))
    masks = dropped(8, 3, 0.6, torch.Generator().manual_seed(7))
    totals = {False: [0.0, 0.0], True: [0.0, 0.0]}
    for text, (length, temperature) in enumerate(zip((9, 6), (0.8, 1.0), strict=True)):
        given = draft.lm_head(drafts.states(draft, token_ids[text : text + 1, :-1], masks))[0, :, :VOCAB_SIZE]
        aim = (target(input_ids=token_ids[text : text + 1, :-1]).logits[0] / temperature).log_softmax(-1)
        guess = (given / temperature).log_softmax(-1)
        where = masks.positions.tolist()
        found = [costs(Loss.FORWARD_KL, aim[place][None], row[None]) for place, row in zip(where, guess, strict=True)]
        accepted = [
            each.acceptance.item() if place < length - 1 else 0.0 for place, each in zip(where, found, strict=True)
        ]
        chains = chain_weights(torch.tensor([accepted[:8]]), 3)[0]
        for index, (place, each) in enumerate(zip(where, found, strict=True)):
            if place >= length - 1:
                continue
            weight = 1.0
            if by_length and index < 8:
                weight = chains[index].item()
            elif by_length:
                begin, depth = int(masks.places[index - 8]), int(masks.depths[index - 8])
                row = torch.zeros(3)
                row[0] = found[begin].acceptance.item()
                for other, (where_to, deep) in enumerate(zip(masks.places, masks.depths, strict=True)):
                    if where_to == begin:
                        row[deep] = accepted[8 + other]
                weight = length_weights(row)[depth].item()
            total = totals[index >= 8]
            total[0] += weight * each.divergence.item()
            total[1] += weight
    expected = sum(cost / weight for cost, weight in totals.values())
    monkeypatch.setattr(training, "dropped", lambda *_: masks)
    for piece_tokens in (5, 512):
        monkeypatch.setattr(training, "PIECE_TOKENS", piece_tokens)
        assert Objective(target, options, VOCAB_SIZE)(draft, batch, 0).item() == pytest.approx(expected, rel=1e-4)


def test_batches_take_every_text_once_a_pass(texts: list[Text]) -> None:
    seen = [length for step in range(5) for length in batch_of(texts * 2, 2, step, seed=0).lengths.tolist()]
    assert sorted(seen) == sorted(2 * [len(text.token_ids) for text in texts])
    assert seen != [length for step in range(5, 10) for length in batch_of(texts * 2, 2, step, seed=0).lengths.tolist()]


def test_the_target_reads_each_text_once_and_as_if_it_were_alone(
    target: LlamaForCausalLM, texts: list[Text], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def counted(model: PreTrainedModel, token_ids: Tensor) -> Tensor:
        read.append(token_ids.shape[1])
        return drafts.states(model, token_ids)

    monkeypatch.setattr(training, "states", counted)
    for most, times in ((1 << 20, 1), (0, 4)):
        monkeypatch.setattr(training, "KEPT_BYTES_MAX", most)
        reader = training.Reader(target)
        read.clear()
        for step in range(10):  # four passes over five texts
            batch = batch_of(texts, 2, step, seed=0)
            found = reader.read(batch)
            assert found.shape[:2] == (2, batch.token_ids.shape[1] - 1)
            for row, place in zip(found, batch.places.tolist(), strict=True):
                alone = drafts.states(target, torch.tensor([texts[place].token_ids[:-1]]))[0]
                assert torch.equal(row[: len(alone)], alone)
        assert len(read) == 5 * times


# What the target writes.


def test_the_target_writes_what_its_noise_chooses(target: LlamaForCausalLM, texts: list[Text]) -> None:
    sampler = Sampler(VOCAB_SIZE, 1, CPU)
    assert [len(text.token_ids) - text.num_given for text in texts] == [20] * 5
    assert {text.temperature for text in texts} == {0.0, 0.8, 1.0}
    assert len({text.seed for text in texts}) == 5
    for text in texts:
        sampler.open(0, SamplingParams(temperature=text.temperature, seed=text.seed), (), ())
        logits = target(input_ids=torch.tensor([text.token_ids[:-1]])).logits[0, text.num_given - 1 :]
        rows = [Row(0, position) for position in range(text.num_given, len(text.token_ids))]
        assert sampler.choose(logits, rows) == list(text.token_ids[text.num_given :])


def test_a_text_ends_where_the_target_ends_it(texts: list[Text]) -> None:
    ending = small(0)
    ending.generation_config.eos_token_id = ends = [texts[1].token_ids[4], texts[3].token_ids[9]]
    writer = Writer(ending, max_context=64, cache=None)
    found = writer.write([text.token_ids[: text.num_given] for text in texts], 20, seed=3)
    for text, whole in zip(found, texts, strict=True):
        answer = list(whole.token_ids[whole.num_given :])
        length = min((answer.index(end) + 1 for end in ends if end in answer), default=20)
        assert list(text.token_ids[text.num_given :]) == answer[:length]
    assert any(len(text.token_ids) - text.num_given < 20 for text in found)


def test_texts_survive_a_file(texts: list[Text], tmp_path: Path) -> None:
    written.save(texts, tmp_path / "texts.safetensors")
    assert written.load(tmp_path / "texts.safetensors") == [
        text._replace(token_ids=[*text.token_ids]) for text in texts
    ]


# Acceptance.


def by_hand(draft: PreTrainedModel, text: Text, num_depths: int, way: str) -> Acceptance:
    """Rounds as a drafter and a verifier would do them: guesses are made one by one, and compared."""
    sampler = Sampler(VOCAB_SIZE, 1, CPU)
    sampler.open(0, SamplingParams(temperature=text.temperature, seed=text.seed), (), ())
    line, num_rounds, accepted = list(text.token_ids[: text.num_given]), 0, [0] * num_depths
    mask = drafts.mask_token(draft)

    def guess(logits: Tensor, position: int) -> int:
        return sampler.choose(logits[None, :VOCAB_SIZE], [Row(0, position)])[0]

    while len(line) + num_depths <= len(text.token_ids):
        guesses: list[int] = []
        if way == CHAIN:
            for depth in range(num_depths):
                logits = draft(input_ids=torch.tensor([[*line, *guesses]])).logits[0, -1]
                guesses.append(guess(logits, len(line) + depth))
        else:
            logits = draft(input_ids=torch.tensor([[*line, *[mask] * (num_depths - 1)]])).logits[0, -num_depths:]
            guesses = [guess(row, len(line) + depth) for depth, row in enumerate(logits)]
        true = list(text.token_ids[len(line) : len(line) + num_depths])
        num_right = next((depth for depth in range(num_depths) if guesses[depth] != true[depth]), num_depths)
        for depth in range(num_right):
            accepted[depth] += 1
        num_rounds += 1
        line = list(text.token_ids[: len(line) + num_right + 1])
    return Acceptance(num_rounds, tuple(accepted))


@pytest.mark.parametrize("way", [CHAIN, MASKS])
def test_acceptance_is_what_rounds_one_by_one_accept(target: LlamaForCausalLM, texts: list[Text], way: str) -> None:
    like_the_target = small(0)  # so that guesses are right, now and then several in a row
    drafts.give_mask_token(like_the_target, VOCAB_SIZE)
    with torch.no_grad():
        like_the_target.lm_head.weight += torch.randn(like_the_target.lm_head.weight.shape) * 0.2
    found = measure(Drafter(like_the_target, VOCAB_SIZE), texts, (CHAIN, MASKS), 3, lambda *_: None)
    for temperature, acceptance in found[way].items():
        some = [text for text in texts if text.temperature == temperature]
        expected = added(by_hand(like_the_target, text, 3, way) for text in some)
        assert acceptance == expected
        assert acceptance.length == pytest.approx(1 + sum(expected.num_accepted) / expected.num_rounds)
    assert sum(sum(acceptance.num_accepted) for acceptance in found[way].values()) > 0


def test_rounds_that_the_text_cuts_off_do_not_count() -> None:
    hits = torch.tensor([[1, 1], [1, 1], [0, 1], [1, 0], [1, 1], [1, 0]], dtype=torch.bool)
    # Behind two given tokens: place 1 accepts both, place 4 both; place 7 is beyond.
    assert rounds(hits, num_given=2) == Acceptance(2, (2, 2))
    assert rounds(hits, num_given=3) == Acceptance(2, (1, 0))
    assert rounds(hits, num_given=6) == Acceptance(0, (0, 0))
    assert rounds(hits, num_given=6).length == 1.0
