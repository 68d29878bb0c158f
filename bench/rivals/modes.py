"""What is compared: ours, ours with a feature off, and other systems' rules on the same engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.rivals.rules import FREE_CREDIT
from outrider.core.protocol.errors import OutriderError

LOOKAHEADS = (1, 2, 3, 4, 6, 8)
"""Lookaheads of drafting and verifying in turn; the best one counts."""

WINDOWS = (2, 3, 4, 6, 8)
"""Window lengths of PEARL; its authors take about the ratio of step times, so the best one counts here too."""

AMUSD_DRAFTS = 2
"""Drafts that AMUSD's verifier waits for, in its authors' code."""


PADDED = "padded"
"""The policy that pads all rounds of a step to the longest, and the mode that does nothing else than production."""


class UnknownModeError(OutriderError):
    """A mode was asked for that does not exist."""


class PolicyName(NamedTuple):
    """A policy of `ruled.py`, as a worker is told of it."""

    name: str
    parameter: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """One way to produce the target's text."""

    name: str
    about: str
    """What it is, in a few words for a table's legend."""
    family: str = ""
    """Modes of a family differ in one number, and only the best of them counts; empty: it stands alone."""
    in_chain: bool = False
    """Whether it drafts chains, so that its roofline is that of a chain."""
    pair: str = ""
    """Which pair of workers it runs on: PAIRS has what sets them apart."""
    coordinator: tuple[str, ...] = ()
    """Flags of its coordinator."""
    policy: PolicyName | None = None
    """Another system's rule, or ours with a feature off; None: ours."""
    speculate: bool = True
    external: bool = False
    """Whether it is not a mode of our services."""
    version: str = ""
    """Of another system: which one it is, and how it is started."""

    @property
    def asks_drafter(self) -> bool:
        """Whether its answers want a drafter of their coordinator."""
        return self.speculate and not self.external and self.pair not in (ALL_CORES, COLOCATED)


ABLATIONS: Mapping[str, str] = {
    "no_wait": "that never waits for drafts",
    "no_choice": "that scores all there is, up to the most that a round may",
    "no_ngram": "whose verifier guesses nothing by itself",
    "no_outcomes": "that drafts on below the likeliest guesses alone",
    "no_rhythm": "that sends what is worth a message at once, whenever the next round begins",
}
"""Ours with one policy off; see `ruled.py`."""

COMPILED, EAGER, ALL_CORES, COLOCATED, NGRAM, TLS = "", "eager", "all cores", "colocated", "ngram", "tls"

PAIRS: Mapping[str, str] = {
    COMPILED: "as it is",
    EAGER: "forward passes not compiled",
    ALL_CORES: "the target alone on every core",
    COLOCATED: "the draft model in the verifier's process, both on every core",
    NGRAM: "n-grams in the place of a draft model",
    TLS: "TLS between all services and to the client",
}
"""The pairs of worker processes. Modes on the same pair share engine, caches and warm-up."""


OPEN_GATE = "--adaptive-speculation=false"
"""Flag of a coordinator whose speculation gate stays open. What it learns of one mode would be wrong of another."""

RIVALS = (OPEN_GATE, f"--max-run-ahead={FREE_CREDIT}", f"--max-draft-tokens={FREE_CREDIT}", "--tree-width=1")
"""Flags of the coordinator for other systems' rules, which bound themselves."""


def _all_modes() -> Iterable[Mode]:
    yield Mode(name="target", about="the target alone, on the same engine and services", speculate=False)
    yield Mode(
        name="target_all_cores",
        about="the target alone, on the cores of both workers",
        pair=ALL_CORES,
        speculate=False,
    )
    yield Mode(name="outrider", about="everything on")
    yield Mode(
        name="no_tree", about="outrider with chains for trees", coordinator=(OPEN_GATE, "--tree-width=1"), in_chain=True
    )
    yield Mode(name="no_gate", about="outrider that never lets the target decode alone", coordinator=(OPEN_GATE,))
    for name, about in ABLATIONS.items():
        yield Mode(name=name, about=f"outrider {about}", policy=PolicyName(name), coordinator=(OPEN_GATE,))
    yield Mode(name="ngram_alone", about="outrider with n-grams in the place of a draft model", pair=NGRAM)
    yield Mode(name="outrider_tls", about="outrider with TLS everywhere, and certificates at both ends", pair=TLS)
    yield Mode(name="no_compile", about="outrider with forward passes not compiled", pair=EAGER)
    yield Mode(
        name="target_no_compile",
        about="the target alone with forward passes not compiled",
        pair=EAGER,
        speculate=False,
    )
    for lookahead in LOOKAHEADS:
        yield Mode(
            name=f"sync_{lookahead}",
            family="sync",
            about=f"drafting and verifying in turn, {lookahead} drafts each",
            coordinator=RIVALS,
            policy=PolicyName("synchronous", lookahead),
            in_chain=True,
        )
    for lookahead in LOOKAHEADS:
        yield Mode(
            name=f"colocated_{lookahead}",
            family="colocated",
            about=f"drafting in the verifier's own process in turn, {lookahead} drafts each, on all cores",
            pair=COLOCATED,
            coordinator=RIVALS,
            policy=PolicyName("synchronous", lookahead),
            in_chain=True,
        )
    yield Mode(
        name="amusd",
        about=f"AMUSD's rule: a chain without rest, verified when {AMUSD_DRAFTS} drafts wait",
        coordinator=RIVALS,
        policy=PolicyName("amusd", AMUSD_DRAFTS),
        in_chain=True,
    )
    for window in WINDOWS:
        yield Mode(
            name=f"pearl_{window}",
            family="pearl",
            about=f"PEARL's rule with windows of {window}",
            coordinator=RIVALS,
            policy=PolicyName("pearl", window),
            in_chain=True,
        )
    yield Mode(
        name=PADDED,
        about="outrider with all rounds of a step padded to the longest, inputs and caches",
        policy=PolicyName(PADDED),
        coordinator=(OPEN_GATE,),
    )
    for lookahead in LOOKAHEADS:
        yield Mode(
            name=f"padded_sync_{lookahead}",
            family="padded_sync",
            about=f"drafting and verifying in turn, {lookahead} drafts each, padded likewise",
            coordinator=RIVALS,
            policy=PolicyName(PADDED, lookahead),
            in_chain=True,
        )
    yield Mode(name="transformers", about="transformers' generate, on all cores", external=True)
    yield Mode(
        name="transformers_assisted",
        about="transformers' assisted generation with the same draft, on all cores",
        external=True,
    )


MODES: Mapping[str, Mode] = {mode.name: mode for mode in _all_modes()}

GROUPS: Mapping[str, Sequence[str]] = {
    "default": (
        *("target", "target_all_cores", "outrider", "sync", "colocated", "amusd", "pearl"),
        *("transformers", "transformers_assisted"),
    ),
    "ablations": ("no_tree", "no_gate", *ABLATIONS, "no_compile"),
    "load": ("target", "target_all_cores", "outrider", "no_gate", PADDED, "colocated_1", "colocated_2", "colocated_4"),
    "all": tuple(MODES),
}
"""Names that stand for several modes; the name of a family stands for all of it."""


def choose_modes(names: Sequence[str]) -> list[Mode]:
    """The modes that `names` stand for, each once; `target` is always among them, as everything is compared with it.

    Raises UnknownModeError.
    """
    chosen: dict[str, Mode] = {"target": MODES["target"]}
    for name in names:
        for each in _expanded(name):
            chosen[each] = MODES[each]
    return list(chosen.values())


def choose_own_modes(names: Sequence[str]) -> list[Mode]:
    """The same where only our services can be measured. Raises UnknownModeError."""
    modes = choose_modes(names)
    if strangers := [mode.name for mode in modes if mode.external]:
        raise UnknownModeError(f"only modes of our services can be put under load, not {', '.join(strangers)}")
    return modes


def choose_rival_of_target(name: str) -> Mode:
    """The one of them that is called so, and is not the target alone. Raises UnknownModeError."""
    target, *others = choose_own_modes([name])
    if [each.name for each in others] != [name]:
        raise UnknownModeError(f"{name!r} is not one mode to compare with {target.name!r}")
    return others[0]


def _expanded(name: str) -> Iterable[str]:
    if name in MODES:
        return (name,)
    family = [mode.name for mode in MODES.values() if mode.family == name]
    if family:
        return family
    if name in GROUPS:
        return [each for inner in GROUPS[name] for each in _expanded(inner)]
    families = dict.fromkeys(mode.family for mode in MODES.values() if mode.family)
    known = ", ".join([*GROUPS, *families, *MODES])
    raise UnknownModeError(f"there is no mode {name!r}; there are {known}")
