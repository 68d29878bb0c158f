"""A forecast: what a target and its drafters would take, in memory, time and money, at a given load."""

from __future__ import annotations

import itertools
from typing import Final, NamedTuple

from outrider.core.protocol.errors import OutriderError
from outrider.plan.device import Device
from outrider.plan.shape import Shape
from outrider.plan.theory import LOOKAHEAD_MAX, asynchronous, expected_tokens, roofline

OVER_THE_FLOOR: Final = 1.3
"""Time of a step over the time that memory or arithmetic alone would take. Good engines are near it; measure yours."""

MEMORY_IN_USE: Final = 0.9
"""The part of a device's memory that weights, keys and values may fill; the rest is for activations and the runtime."""

DRAFTER_GAIN_MIN: Final = 0.03
"""One drafter more has to make everything sooner by this part, or the forecast does without it."""

ALL_REDUCE_SECONDS: Final = 15e-6
"""What devices of one machine are taken to need to add up a few tokens' activations: an assumption, not measured. Each
layer does it twice. Networks between machines take several times as long."""

DRAFTERS_MAX: Final = 64
"""Most drafters for one verifier that are tried."""


class NoRoomError(OutriderError):
    """A model does not fit its device."""


class Load(NamedTuple):
    """What is asked of one verifier."""

    num_sessions: int
    """At a time."""
    num_context_tokens: int
    """Of each: prompt, and what it has generated."""


class Engine(NamedTuple):
    """A model on a device, or divided over several of a kind."""

    shape: Shape
    device: Device
    number_bytes: float = 2.0
    """Bytes of a weight."""
    num_devices: int = 1
    """Each has a part of the weights, and of the heads' keys and values."""

    @property
    def devices(self) -> str:
        """What they are called."""
        return self.device.name if self.num_devices == 1 else f"{self.num_devices} x {self.device.name}"

    def memory_bytes(self, load: Load) -> float:
        """Of weights, keys and values."""
        kv_tokens = load.num_sessions * load.num_context_tokens
        return self.shape.weight_bytes(self.number_bytes) + kv_tokens * self.shape.kv_bytes_per_token

    def room(self) -> float:
        """Bytes that these may take."""
        return self.num_devices * self.device.gib * 2**30 * MEMORY_IN_USE

    def check_room(self, load: Load) -> None:
        """Raises NoRoomError if they take more, or if the heads do not divide."""
        if self.shape.num_kv_heads % self.num_devices:
            raise NoRoomError(
                f"{self.shape.name} has {self.shape.num_kv_heads} key-value heads, which do not divide over "
                f"{self.num_devices} devices; take a number that divides them"
            )
        needed, room = self.memory_bytes(load), self.room()
        if needed > room:
            kv_tokens = max(0.0, room - self.shape.weight_bytes(self.number_bytes)) / self.shape.kv_bytes_per_token
            raise NoRoomError(
                f"{self.shape.name} needs {needed / 2**30:.1f} GiB for weights and {load.num_sessions} sessions of "
                f"{load.num_context_tokens} tokens, and {self.devices} has {room / 2**30:.1f}: room for "
                f"{int(kv_tokens)} tokens in all; take a larger device, more of them, smaller weights, or less load"
            )

    def step_seconds(self, load: Load, tokens_per_session: float = 1.0) -> float:
        """One step in which each session has so many tokens.

        Weights, keys and values are read once; each token costs two operations a weight, or one a number of the cache.
        Several devices share both, and add up twice a layer.
        """
        num_tokens = load.num_sessions * tokens_per_session
        kv_numbers = load.num_context_tokens * self.shape.kv_bytes_per_token / 2
        reading = self.memory_bytes(load) / (self.device.gb_per_s * 1e9)
        computing = num_tokens * 2 * (self.shape.num_parameters + kv_numbers) / (self.device.tflops * 1e12)
        adding = 2 * self.shape.num_layers * ALL_REDUCE_SECONDS if self.num_devices > 1 else 0.0
        return max(reading, computing) / self.num_devices * OVER_THE_FLOOR + adding


class Way(NamedTuple):
    """One way to serve the load."""

    name: str
    num_drafters: int
    seconds_per_token: float
    """Of each session."""
    speed_up: float
    """Over the target alone."""
    usd_per_million: float | None
    """Tokens, at the prices that were told."""


class Forecast(NamedTuple):
    """All ways, and what they rest on."""

    target: Engine
    draft: Engine
    load: Load
    verify_seconds: float
    """A verify step, with its draft tokens."""
    draft_step: float
    """A draft step in verify steps, with the drafters that the forecast takes."""
    roofline: float
    """The speed-up that no single verifier exceeds."""
    ways: tuple[Way, Way, Way]
    """The target alone, the drafter on the target's device, and drafters on devices of their own."""

    @property
    def best(self) -> Way:
        """The way that gives tokens soonest; of ways within DRAFTER_GAIN_MIN the one with fewest devices."""
        soonest = min(way.seconds_per_token for way in self.ways)
        good = [way for way in self.ways if way.seconds_per_token <= soonest * (1.0 + DRAFTER_GAIN_MIN)]
        return min(good, key=lambda way: way.num_drafters)


class Prices(NamedTuple):
    """Dollars for an hour of each device; None where nobody told."""

    target: float | None = None
    draft: float | None = None


UNTOLD: Final = Prices()


def forecast(
    target: Engine, draft: Engine, load: Load, *, acceptance: float, delay_seconds: float, prices: Prices = UNTOLD
) -> Forecast:
    """Raises NoRoomError if a model does not fit its device.

    `acceptance` is the chance that a draft token is the target's; `delay_seconds` one way between the devices.
    """
    target.check_room(load)
    alone = target.step_seconds(load)
    lookahead = max(1, round(expected_tokens(acceptance, LOOKAHEAD_MAX)))
    verify = target.step_seconds(load, 1.0 + lookahead)

    def way(name: str, num_drafters: int, seconds: float) -> Way:
        usd = _usd_per_million(prices, target.num_devices, num_drafters, load.num_sessions / seconds)
        return Way(name, num_drafters, seconds, alone / seconds, usd)

    def apart(num_drafters: int) -> float:
        step = draft.step_seconds(_shared(load, num_drafters)) / verify
        return verify * asynchronous(acceptance, step, delay_seconds / verify)

    num_drafters = _fewest(load, draft)
    for more in range(num_drafters + 1, min(load.num_sessions, DRAFTERS_MAX) + 1):
        if apart(more) < apart(num_drafters) * (1.0 - DRAFTER_GAIN_MIN):
            num_drafters = more
    return Forecast(
        target,
        draft,
        load,
        verify,
        draft.step_seconds(_shared(load, num_drafters)) / verify,
        alone / (verify * roofline(acceptance)) if acceptance < 1.0 else float("inf"),
        (
            way("target alone", 0, alone),
            way("drafter on the target's device", 0, _together(target, draft, load, acceptance)),
            way("drafters on their own devices", num_drafters, apart(num_drafters)),
        ),
    )


def _shared(load: Load, num_drafters: int) -> Load:
    """What one of so many drafters has to do."""
    return load._replace(num_sessions=-(-load.num_sessions // num_drafters))


def _fewest(load: Load, draft: Engine) -> int:
    """Drafters that the load's keys and values need. Raises NoRoomError if one session is too much for one."""
    for num_drafters in itertools.count(1):
        share = _shared(load, num_drafters)
        if draft.memory_bytes(share) <= draft.room():
            return num_drafters
        if share.num_sessions == 1:
            draft.check_room(share)
    raise AssertionError("count() ends never")


def _together(target: Engine, draft: Engine, load: Load, acceptance: float) -> float:
    """Seconds per token of drafting and verifying in turn on the target's devices, the draft on one of them; infinite
    if there is no room."""
    drafting = draft._replace(device=target.device)
    if target.memory_bytes(load) + drafting.memory_bytes(load) > target.room():
        return float("inf")
    draft_seconds = drafting.step_seconds(load)
    return min(
        (lookahead * draft_seconds + target.step_seconds(load, 1.0 + lookahead))
        / expected_tokens(acceptance, lookahead)
        for lookahead in range(1, LOOKAHEAD_MAX + 1)
    )


def _usd_per_million(prices: Prices, num_targets: int, num_drafters: int, tokens_per_second: float) -> float | None:
    if prices.target is None or (num_drafters and prices.draft is None):
        return None
    per_hour = num_targets * prices.target + num_drafters * (prices.draft or 0.0)
    return per_hour / 3600.0 / tokens_per_second * 1e6 if tokens_per_second else None
