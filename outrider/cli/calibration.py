"""Calibration: the same requests with speculation and by the target alone, in turn, and what that tells."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Final

from outrider.cli.generate import explanations, generate
from outrider.cli.request import Request
from outrider.client import Answer, Credentials, GenerationOptions, SamplingParams
from outrider.doctor.finding import Finding, Level

CALIBRATION_SECONDS = 10.0
"""How long answers with and without speculation alternate."""

_PROMPTS: Final = (
    "import os\n\n\ndef walk(path):\n",
    "class Queue:\n    def __init__(self, maxsize=0):\n",
    "The outrider came back before noon and said that",
    "# Parse the arguments\nparser = argparse.ArgumentParser(",
)
_ANSWER_TOKENS = 64


async def calibrate(address: str, seconds: float, credentials: Credentials) -> list[tuple[Answer, Answer]]:
    """Answers to the same requests, with speculation and by the target alone, in turn as long as it takes."""
    options = GenerationOptions(sampling=SamplingParams(seed=0), max_tokens=_ANSWER_TOKENS, ignore_eos=True)
    requests = [Request(prompt, options) for prompt in _PROMPTS]
    await _ask(requests[0], address, credentials, alone_first=False)  # what happens for the first time is not measured
    pairs: list[tuple[Answer, Answer]] = []
    end = time.monotonic() + seconds
    while not pairs or time.monotonic() <= end:
        turn, number = divmod(len(pairs), len(requests))
        pairs.append(await _ask(requests[number], address, credentials, alone_first=turn % 2 == 1))
    return pairs


async def _ask(request: Request, address: str, credentials: Credentials, *, alone_first: bool) -> tuple[Answer, Answer]:
    """The answer with speculation and that of the target alone, whichever is asked for first."""
    asked = [request, request.by_target_alone(0)]
    order = (1, 0) if alone_first else (0, 1)
    answers = {each: await generate(asked[each], address, credentials=credentials) for each in order}
    return answers[0], answers[1]


def judge(pairs: Sequence[tuple[Answer, Answer]]) -> Iterator[Finding]:
    """Whether the tokens are the same, and what speculation gains, with the reason."""
    same = sum(_token_ids(ours) == _token_ids(alone) for ours, alone in pairs)
    if same == len(pairs):
        yield Finding(
            Level.GOOD, "tokens", f"the same with speculation and without, {same} answers of {_ANSWER_TOKENS}"
        )
    else:
        yield Finding(
            Level.PROBLEM,
            "tokens",
            f"{len(pairs) - same} of {len(pairs)} answers differ with speculation and without",
            "see `exactness` above; if it is good, this is a fault of Outrider: please report it",
        )
    ours_ms, alone_ms = (_ms_per_token([pair[side] for pair in pairs]) for side in (0, 1))
    gain = alone_ms / ours_ms
    text = (
        f"{gain:.2f} times the target alone: {ours_ms:.3g} ms a token in place of {alone_ms:.3g}, greedy, one request "
        "at a time"
    )
    why = explanations(*pairs[-1])[0].sentences
    yield Finding(Level.GOOD if gain > 1.0 else Level.NOTE, "gain", text, " ".join(why) if gain <= 1.0 else "")


def _ms_per_token(answers: Sequence[Answer]) -> float:
    """Of each token after an answer's first."""
    finished = [each.completions[0].finished for each in answers]
    spent_ms = sum(each.timings.total_ms - each.timings.first_token_ms for each in finished)
    return spent_ms / sum(each.usage.num_generated_tokens - 1 for each in finished)


def _token_ids(answer: Answer) -> Sequence[int]:
    (only,) = answer.completions
    return only.token_ids
