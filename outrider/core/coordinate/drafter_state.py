"""The states of a session's drafter: one table of what follows on what, and the diagram that is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final


class DrafterState(Enum):
    """Whether a drafter feeds the session."""

    NONE = 0
    """None was wanted."""
    ACTIVE = 1
    """One feeds it, or is being opened; none was lost before."""
    LOST = 2
    """One did, or might have but for a pause, and none does any more."""
    MISSED = 3
    """None ever did: there was none, or none took the session."""
    REPLACED = 4
    """One was lost, or speculation was paused; another feeds it now, or is being opened."""
    PAUSED = 5
    """One is wanted, but none is to feed it at present: speculation does not pay."""

    @property
    def is_feeding(self) -> bool:
        """Whether drafts are to be expected."""
        return self is _ACTIVE or self is _REPLACED


# Looked up once: before Python 3.12 each look at an enum's member is a call, and here it would be several per message.
_ACTIVE, _REPLACED = DrafterState.ACTIVE, DrafterState.REPLACED


class DrafterEvent(Enum):
    """What happens to a session's drafter."""

    REFUSES = 1
    """It does not take the session."""
    IS_LOST = 2
    """It had the session, and its stream failed, ended, or broke the protocol."""
    HAS_NO_SUCCESSOR = 3
    """No other is opened: there is none, or the session has had as many as it may."""
    PAUSES = 4
    """The speculation gate shuts: the drafter is closed, though nothing is wrong with it."""
    RESUMES = 5
    """The speculation gate opens: a drafter is opened."""


TRANSITIONS: Final[Mapping[DrafterState, Mapping[DrafterEvent, DrafterState]]] = {
    DrafterState.ACTIVE: {
        DrafterEvent.REFUSES: DrafterState.ACTIVE,
        DrafterEvent.IS_LOST: DrafterState.REPLACED,
        DrafterEvent.HAS_NO_SUCCESSOR: DrafterState.MISSED,
        DrafterEvent.PAUSES: DrafterState.PAUSED,
    },
    DrafterState.REPLACED: {
        DrafterEvent.REFUSES: DrafterState.REPLACED,
        DrafterEvent.IS_LOST: DrafterState.REPLACED,
        DrafterEvent.HAS_NO_SUCCESSOR: DrafterState.LOST,
        DrafterEvent.PAUSES: DrafterState.PAUSED,
    },
    DrafterState.PAUSED: {DrafterEvent.RESUMES: DrafterState.REPLACED},
    DrafterState.NONE: {},
    DrafterState.LOST: {},
    DrafterState.MISSED: {},
}
"""Events that a state does not list come late, from a stream that was given up, and change nothing."""


def diagram() -> str:
    """The table as a Mermaid state diagram, for docs/protocol.md."""
    lines = ["stateDiagram-v2", "    [*] --> NONE: speculation is off", "    [*] --> ACTIVE: a drafter is opened"]
    lines.append("    [*] --> PAUSED: the speculation gate is shut")
    for state, following in TRANSITIONS.items():
        words_of: dict[DrafterState, list[str]] = {}
        for event, after in following.items():
            words_of.setdefault(after, []).append(event.name.lower().replace("_", " "))
        lines += [f"    {state.name} --> {after.name}: {' or '.join(words)}" for after, words in words_of.items()]
    return "\n".join([*lines, ""])
