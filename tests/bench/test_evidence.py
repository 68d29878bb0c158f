"""What is said of the target's tokens beforehand is counted where it was said."""

from __future__ import annotations

import io
import math
from collections import Counter

import pytest
import torch
from rich.console import Console

from bench.micro.evidence import Evidence, gather, information, show
from bench.simulate.replay import write
from outrider.core.estimate.confidence import margin_bin
from outrider.engine.engine import Engine
from tests.engine.tiny_models import VOCAB_SIZE, build

PROMPTS = [[(7 * index + shift) % VOCAB_SIZE for index in range(12)] * 2 for shift in range(3)]
NUM_TOKENS = 24


def engine() -> Engine:
    return Engine(build("llama"), max_sessions=1, max_context=160)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_where_the_draft_is_the_target_what_it_says_decides(temperature: float) -> None:
    draft = engine()
    with torch.inference_mode():
        answers = write(engine(), PROMPTS, temperature, NUM_TOKENS)
        evidence = gather(draft, PROMPTS, answers, temperature)
    num_places = evidence.num_places
    assert num_places == len(PROMPTS) * NUM_TOKENS
    assert evidence.holding["the draft model's first guess"] == evidence.holding["one of the two"] == num_places
    for rank in range(2):
        for rights in (evidence.by_margin(rank), evidence.by_log_prob[rank]):
            assert sum(count for (_, right), count in rights.items() if right == (rank == 0)) == num_places
            assert rights.total() == num_places
    assert draft.num_free_slots == 1


def test_information_is_all_or_nothing_or_between() -> None:
    assert information(Counter({(0, True): 5, (1, False): 5})) == pytest.approx(math.log(2))
    assert information(Counter({(0, True): 3, (0, False): 6, (1, True): 1, (1, False): 2})) == pytest.approx(0.0)
    assert 0.0 < information(Counter({(0, True): 4, (0, False): 1, (1, True): 1, (1, False): 4})) < math.log(2)
    assert information(Counter({(0, True): 5})) == 0.0


def test_tables_say_how_often_and_how_much_is_told() -> None:
    evidence = Evidence()
    evidence.num_places = 4
    evidence.holding["one of the two"] = 3
    evidence.by_cell.update({(margin_bin(0, 0.3), True): 2, (margin_bin(0, 2.2), False): 2})
    console = Console(record=True, width=118, file=io.StringIO())
    show({0.8: evidence}, console)
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["one", "of", "the", "two", "0.750"] in lines
    assert ["guess", "1:", "its", "margin", "0.693"] in lines
