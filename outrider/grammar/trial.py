"""Trial: what a process of its own finds out about a grammar before anybody relies on it.

Compilers recurse, and expressions grow: some short grammars take a compiler minutes, gigabytes, or its stack, and with
it the process. So they are tried where that harms nobody, by `python -m outrider.grammar.trial`: it reads messages from
standard input, first of the vocabulary and then of each grammar, and answers each with a line.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import sys
import threading
from typing import Any, BinaryIO, Final

from llguidance import LLMatcher

from outrider.core.protocol.grammar import GrammarKind
from outrider.grammar.compiled import compiled_matcher
from outrider.grammar.vocabulary import Vocabulary

PROCESSOR_SECONDS_MAX = 0.75
"""Processor time for one grammar, so that a refusal comes within a second. Of a published service's largest schemas
none takes more than 0.4 s."""

GROWTH_BYTES_MAX = 512 * 1024 * 1024
"""Memory for grammars, besides that of the vocabulary."""

STACK_BYTES = 1024 * 1024
"""Of the thread that tries: an eighth of what a worker's threads have, so that what is not too deep for it is far from
too deep for them."""

TRIED_TOKENS = 32
"""Tokens of a text that are written by chance: what is too complex mostly shows by then."""

LENGTH_BYTES: Final = 4
"""A message is its length, big-endian in so many bytes, and JSON."""


def main() -> None:
    """Tries grammars until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(STACK_BYTES)
    trial = threading.Thread(target=_serve, args=(sys.stdin.buffer, sys.stdout.buffer))
    trial.start()
    trial.join()


def message(content: Any) -> bytes:
    """A message for this process."""
    text = json.dumps(content).encode()
    return len(text).to_bytes(LENGTH_BYTES, "big") + text


def _serve(commands: BinaryIO, answers: BinaryIO) -> None:
    vocabulary: Vocabulary | None = None
    while head := commands.read(LENGTH_BYTES):
        command = json.loads(commands.read(int.from_bytes(head, "big")))
        if vocabulary is None:
            vocabulary = Vocabulary(**command)
            _bound_memory()
            continue
        signal.setitimer(signal.ITIMER_PROF, PROCESSOR_SECONDS_MAX)
        answer = _try(vocabulary, GrammarKind(command["kind"]), command["source"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _bound_memory() -> None:
    if sys.platform != "linux":
        return
    with open("/proc/self/statm", encoding="ascii") as statm:
        num_held = int(statm.read().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (num_held + GROWTH_BYTES_MAX, num_held + GROWTH_BYTES_MAX))


def _try(vocabulary: Vocabulary, kind: GrammarKind, source: str) -> str:
    """What is wrong with the grammar; empty if nothing was found."""
    try:
        matcher = compiled_matcher(vocabulary, kind, source)
    except ValueError as error:
        return f"cannot be compiled: {error}"
    chance = random.Random(0)
    for _ in range(TRIED_TOKENS):
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        if matcher.is_error() or not mask:
            break
        if matcher.is_stopped():
            return ""
        matcher.consume_token(_drawn(mask, chance))
    return _complaint(matcher) if matcher.is_error() else ""


def _drawn(mask: int, chance: random.Random) -> int:
    """One of the token ids that `mask` allows."""
    place = chance.randrange(mask.bit_length())
    above = mask >> place
    return place + (above & -above).bit_length() - 1


def _complaint(matcher: LLMatcher) -> str:
    reason = matcher.get_error().partition("\n")[0]
    return f"is too complex, or leaves nothing to write ({reason}); ask for less, or give its parts bounds"


if __name__ == "__main__":
    main()
