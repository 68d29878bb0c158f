"""The speculation gate against worlds whose costs are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

import pytest

from outrider.core.estimate.speculation_gate import SpeculationGate

Costs = Callable[[bool, int], tuple[float, float]]
"""By the gate's position and the number running: tokens per round and seconds per round."""


def costs(speculating: tuple[float, float], alone: float) -> Costs:
    return lambda is_open, num_running: speculating if is_open else (1.0, alone)


class Client:
    """`num_running` completions that have rounds in turn, with the scatter of real ones."""

    def __init__(self, gate: SpeculationGate, num_running: int, *, greedy: bool = False, seed: int = 0) -> None:
        self.gate = gate
        self.num_running = num_running
        self.greedy = greedy
        self.rng = Random(seed)
        for _ in range(num_running):
            gate.begin(greedy=greedy)
            gate.start()

    def leave(self) -> None:
        for _ in range(self.num_running):
            self.gate.end(greedy=self.greedy)

    def run(self, num_tokens: int, costs: Costs) -> tuple[float, float]:
        """Seconds that so many tokens took in all, and the share of them that came while the gate was open."""
        total = made = made_open = 0.0
        while made < num_tokens:
            tokens_mean, seconds = costs(self.gate.is_open, self.num_running)
            tokens = 1
            while self.rng.random() < 1.0 - 1.0 / tokens_mean:
                tokens += 1
            seconds *= self.rng.lognormvariate(-0.02, 0.2)  # their mean is 1
            made += tokens
            made_open += tokens * self.gate.is_open
            total += seconds
            self.gate.observe(tokens, seconds)
        return total, made_open / made


@pytest.mark.parametrize("num_running", [1, 3, 24])
@pytest.mark.parametrize("gain", [0.5, 0.75, 0.9, 1.1, 1.3, 2.0, 4.0])
def test_the_better_way_is_found_and_kept(num_running: int, gain: float) -> None:
    tokens_mean, alone = 1.6, 0.01
    world = costs((tokens_mean, alone * tokens_mean / gain), alone)
    client = Client(SpeculationGate(), num_running, seed=num_running)
    client.run(12_000 + 600 * num_running, world)
    seconds, share_open = client.run(60_000 + 4_000 * num_running, world)
    if not 0.85 < gain < 1.15:  # what is nearly as good may be mistaken for better once
        assert (share_open > 0.95) if gain > 1.0 else (share_open < 0.05)
    best = (60_000 + 4_000 * num_running) * alone / max(gain, 1.0)
    assert seconds < 1.02 * best


def test_the_first_seconds_cost_little_where_speculation_pays() -> None:
    client = Client(SpeculationGate(), 1)
    _, share_open = client.run(2_000, costs((2.0, 0.01), 0.01))
    assert share_open > 0.98


def test_a_machine_that_changes_is_followed() -> None:
    client = Client(SpeculationGate(), 16)
    client.run(40_000, costs((2.0, 0.01), 0.01))
    assert client.gate.is_open
    _, share_open = client.run(300_000, costs((1.2, 0.02), 0.01))
    assert share_open < 0.5
    assert not client.gate.is_open
    _, share_open = client.run(300_000, costs((2.0, 0.01), 0.01))
    assert share_open > 0.5


def test_each_load_is_learned_apart() -> None:
    world = by_load({1: 1.6, 16: 0.53})
    gate = SpeculationGate()
    for _ in range(6):
        for num_running in (1, 16):
            client = Client(gate, num_running)
            client.run(8_000, world)
            client.leave()
    client = Client(gate, 1)
    client.run(64, world)
    assert client.run(1_000, world)[1] > 0.9
    client.leave()
    client = Client(gate, 16)
    client.run(512, world)
    assert client.run(8_000, world)[1] < 0.1


def test_greedy_and_sampled_are_learned_apart() -> None:
    gate = SpeculationGate()
    for greedy, world in ((True, costs((3.0, 0.01), 0.01)), (False, costs((1.1, 0.02), 0.01))):
        client = Client(gate, 8, greedy=greedy)
        client.run(40_000, world)
        assert gate.is_open == greedy
        client.leave()
    client = Client(gate, 8, greedy=True)
    assert client.run(2_000, costs((3.0, 0.01), 0.01))[1] > 0.9


def test_a_load_that_no_trial_has_seen_goes_as_the_next_smaller_one_that_has() -> None:
    gate = SpeculationGate()
    losing = costs((1.1, 0.02), 0.01)
    for num_running in (2, 32):  # met on the way, and left again
        client = Client(gate, num_running)
        client.run(100, losing)
        client.leave()
    assert gate.is_open
    client = Client(gate, 8)
    client.run(40_000, losing)
    client.leave()
    client = Client(gate, 32)
    client.run(1_000, losing)
    assert not gate.is_open


def test_the_reason_says_what_was_measured() -> None:
    client = Client(SpeculationGate(), 8)
    assert client.gate.reason == ""
    reasons: set[str] = set()
    for _ in range(2_000):
        client.run(8, costs((1.0, 0.02), 0.01))
        reasons.add(client.gate.reason)
    assert "the target is being tried without drafts, to see whether they pay at this load" in reasons
    assert any("do not pay at this load: a token takes " in reason for reason in reasons)
    assert not client.gate.is_open


def test_one_round_that_never_came_is_no_verdict() -> None:
    client = Client(SpeculationGate(), 4)
    client.run(20_000, costs((2.0, 0.01), 0.01))
    client.gate.observe(1, 3600.0)
    assert client.run(2_000, costs((2.0, 0.01), 0.01))[1] > 0.9


def test_a_gate_that_does_not_adapt_stays_open() -> None:
    client = Client(SpeculationGate(adaptive=False), 8)
    assert client.run(20_000, costs((1.0, 0.05), 0.01))[1] == 1.0


def test_a_burst_is_judged_as_the_load_that_it_is_before_its_first_token() -> None:
    """Else drafters read the prompts of all of it, while the few that run decide whether that pays."""
    gate = SpeculationGate()
    many = Client(gate, 64)
    many.run(50_000, costs((1.6, 0.03), 0.01))
    assert not gate.is_open
    many.leave()
    one = Client(gate, 1)
    one.run(12_000, costs((1.6, 0.008), 0.01))
    assert gate.is_open
    burst = Client(gate, 63)
    assert not gate.is_open
    burst.leave()
    one.run(100, costs((1.6, 0.008), 0.01))
    assert gate.is_open


def test_that_guesses_do_not_pay_at_a_large_load_says_nothing_of_a_small_one() -> None:
    gate = SpeculationGate()
    many = Client(gate, 64)
    many.run(50_000, costs((1.6, 0.03), 0.01))
    many.leave()
    one = Client(gate, 1)
    one.run(60, costs((1.6, 0.008), 0.01))  # the load falls within so many tokens
    _, share_open = one.run(60, costs((1.6, 0.008), 0.01))
    assert share_open == 1.0
    _, share_open = one.run(2_000, costs((1.6, 0.008), 0.01))
    assert share_open > 0.9


def by_load(gains: Mapping[int, float]) -> Costs:
    """So many times the tokens per second with speculation, by the number running."""
    return lambda is_open, num_running: (1.6, 0.01 * 1.6 / gains[num_running]) if is_open else (1.0, 0.01)


def learned(gains: Mapping[int, float], *nums_running: int) -> SpeculationGate:
    """Has seen loads that lasted."""
    gate = SpeculationGate()
    for num_running in nums_running:
        client = Client(gate, num_running)
        client.run(2_000 * num_running, by_load(gains))
        client.leave()
    return gate


def test_a_load_above_one_that_gains_little_begins_shut_and_is_tried() -> None:
    gains = {1: 1.07, 8: 0.83, 16: 1.3}
    client = Client(learned(gains, 1), 8)
    assert client.gate.reason.startswith("drafts are not expected to pay at this load: at a smaller one a token takes ")
    assert client.run(1_000, by_load(gains))[1] == 0.0
    assert client.run(1_000, by_load(gains))[1] > 0.0
    client = Client(learned(gains, 1), 16)
    assert client.run(1_000, by_load(gains))[1] == 0.0
    assert client.run(10_000, by_load(gains))[1] > 0.7  # what was expected was wrong


def test_a_load_above_one_that_gains_much_begins_open() -> None:
    gains = {1: 2.0, 4: 1.5}
    client = Client(learned(gains, 1), 4)
    assert client.run(3_000, by_load(gains))[1] > 0.9


def test_a_gain_goes_on_falling_as_it_fell() -> None:
    gains = {1: 3.0, 4: 1.2, 8: 0.9}
    assert learned(gains, 1, 4).is_open
    client = Client(learned(gains, 1, 4), 8)
    assert client.run(1_000, by_load(gains))[1] == 0.0
    gains[4] = 2.0
    assert Client(learned(gains, 1, 4), 8).gate.is_open


def test_a_load_between_two_is_between_them() -> None:
    gains = {1: 1.5, 2: 1.3, 8: 0.8, 16: 0.6}
    for num_running, is_open in ((8, False), (2, True)):
        client = Client(learned(gains, 1, 16), num_running)
        client.run(100, by_load(gains))  # the load falls within so many tokens
        assert client.gate.is_open == is_open


def test_a_load_below_one_that_gains_is_not_tried_soon() -> None:
    gains = {2: 1.6, 16: 1.4}
    gate = learned(gains, 16)
    client = Client(gate, 2)
    client.run(100, by_load(gains))  # the load falls within so many tokens
    assert client.run(900, by_load(gains))[1] == 1.0


def test_a_trial_that_the_end_of_a_burst_cuts_off_goes_on_with_the_next_one() -> None:
    losing = costs((1.6, 0.02), 0.01)
    gate = SpeculationGate()
    shares: list[float] = []
    for seed in range(8):
        burst = Client(gate, 8, seed=seed)
        shares.append(burst.run(200, losing)[1])
        burst.leave()
        one = Client(gate, 1, greedy=True)  # another kind of load
        one.run(60, losing)
        one.leave()
    assert shares[0] == 1.0
    assert shares[-1] == 0.0


def test_rounds_beside_many_prompts_tell_nothing_unless_there_are_always_some() -> None:
    def shut_after(num_waiting: int, num_tokens: int) -> bool:
        gate = SpeculationGate()
        for _ in range(num_waiting):
            gate.begin(greedy=False)
        client = Client(gate, 8 - num_waiting)
        client.run(num_tokens, costs((1.6, 0.02), 0.01))
        return not gate.is_open

    assert shut_after(num_waiting=2, num_tokens=400)
    assert not shut_after(num_waiting=3, num_tokens=400)
    assert shut_after(num_waiting=3, num_tokens=1_000)


def test_who_leaves_without_a_token_does_not_wait_any_more() -> None:
    gate = SpeculationGate()
    for _ in range(100):
        gate.begin(greedy=False)
        gate.end(greedy=False, has_started=False)
    client = Client(gate, 8)
    client.run(400, costs((1.6, 0.02), 0.01))
    assert not gate.is_open


def test_the_last_loads_tell_of_the_next_one_after_any_time() -> None:
    gains = {1: 1.0, 8: 0.6}
    gate = learned(gains, 1, 8)
    for _ in range(3):
        client = Client(gate, 8)
        assert client.run(300, by_load(gains))[1] == 0.0
        client.leave()
