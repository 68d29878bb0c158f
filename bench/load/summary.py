"""What the passes of one mode at one point come to, and what one mode is to another."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from bench.compare.resampling import compare_passes
from bench.load.answer import Answer
from bench.load.loads import LoadSpan
from bench.load.measuring import Pass, Step
from bench.load.objective import Objective
from bench.load.percentiles import percentile, percentiles
from bench.load.result import Answers, LongPrompts, Percentiles, Ratio, Room, Stall, Steps, Summary


def summarize(
    passes: Sequence[Pass], reference: Sequence[Pass], objective: Objective, *, asks_drafter: bool
) -> Summary:
    """Throughput, times, and what the verifier did. `reference` are the same passes of the target alone."""
    answers = [answer for each in passes for answer in each.answers]
    complete = [answer for answer in answers if answer.complete]
    num_tokens = sum(answer.num_tokens for answer in complete)
    num_rounds = sum(answer.num_rounds for answer in complete)
    steps = [step for each in passes for step in each.steps if step.size.num_rows]
    return Summary(
        num_answers=len(answers),
        num_refused=len(answers) - len(complete),
        num_degraded=sum(answer.degraded for answer in complete),
        num_undrafted=sum(answer.undrafted for answer in complete) if asks_drafter else None,
        num_tokens=num_tokens,
        tokens_per_second=_tokens_per_second(passes, complete),
        goodput=sum(answer.keeps(objective) for answer in answers) / len(answers),
        first_token_ms=_percentiles([(answer.first_token_ms, 1) for answer in complete]),
        inter_token_ms=_percentiles([each for answer in complete for each in answer.inter_token_ms()]),
        max_gap_ms=_percentiles([(answer.max_gap_ms, 1) for answer in complete]),
        acceptance_length=num_tokens / num_rounds if num_rounds else None,
        num_draft_tokens=sum(answer.num_draft_tokens for answer in complete),
        num_accepted_tokens=sum(answer.num_accepted_tokens for answer in complete),
        num_cached_prompt_tokens=sum(answer.num_cached_prompt_tokens for answer in complete),
        num_steps=len(steps),
        steps=_steps(steps, sum(each.seconds for each in passes)),
        room=_room([span for each in passes for span in each.loads]),
        long_prompts=_long_prompts(passes),
        num_identical=identity(passes, reference),
        speed_up=compare(reference, passes),
    )


def _percentiles(observations: Sequence[tuple[float, int]]) -> Percentiles | None:
    found = percentiles(observations)
    return None if found is None else Percentiles(**found)


def _tokens_per_second(passes: Sequence[Pass], complete: Sequence[Answer]) -> float:
    """In a closed loop all clients are busy at all times, so their number divided by the mean time of an answer is the
    rate of answers (Little's law). Where requests come by themselves, it is what came out while they were answered."""
    num_tokens = sum(answer.num_tokens for answer in complete)
    if passes[0].point.loop == "closed":
        seconds = sum(answer.total_ms for answer in complete) / 1000.0
        return passes[0].point.load * num_tokens / seconds if seconds else 0.0
    return num_tokens / sum(each.seconds for each in passes)


def _steps(steps: Sequence[Step], seconds: float) -> Steps | None:
    if not steps:
        return None
    return Steps(
        step_ms=median(step.milliseconds for step in steps),
        sessions_per_step=sum(step.size.num_sessions for step in steps) / len(steps),
        tokens_per_step=sum(step.size.num_rows for step in steps) / len(steps),
        padding_per_step=sum(step.size.num_padding_tokens for step in steps) / len(steps),
        busy=sum(step.milliseconds for step in steps) / 1000.0 / seconds,
    )


def _room(spans: Sequence[LoadSpan]) -> Room | None:
    seconds = sum(span.seconds for span in spans)
    if not seconds:
        return None
    return Room(
        kv_use=sum(span.seconds * span.kv_use for span in spans) / seconds,
        kv_use_max=max(span.kv_use for span in spans),
        num_queued_max=max(span.load.num_queued for span in spans),
    )


def _long_prompts(passes: Sequence[Pass]) -> LongPrompts | None:
    if not passes[0].point.long_prompt:
        return None
    answers = [answer for each in passes for answer in each.long_answers if answer.complete]
    return LongPrompts(len(answers), _percentiles([(answer.first_token_ms, 1) for answer in answers]))


def stall(quiet: Sequence[Pass], beside_long: Sequence[Pass]) -> Stall | None:
    """The 99th percentile of times between tokens beside long prompts, as a multiple of that without: over all passes,
    and the least and the largest of a single pass. None if a pass has no such times."""
    each = [(_inter_token_p99([a]), _inter_token_p99([b])) for a, b in zip(quiet, beside_long, strict=True)]
    ratios = [b / a for a, b in each if a and b]
    all_quiet, all_beside = _inter_token_p99(quiet), _inter_token_p99(beside_long)
    if not all_quiet or not all_beside or len(ratios) < len(each):
        return None
    return Stall(all_beside / all_quiet, (min(ratios), max(ratios)))


def _inter_token_p99(passes: Sequence[Pass]) -> float | None:
    times = [time for each in passes for answer in each.answers if answer.complete for time in answer.inter_token_ms()]
    return percentile(times, 0.99) if times else None


def compare(slow: Sequence[Pass], fast: Sequence[Pass]) -> Ratio | None:
    """How much longer the requests took in the one mode than in the other, over those that both answered; in a closed
    loop that is the ratio of throughputs. None if there are no such requests."""
    pairs = [
        [(a.total_ms, b.total_ms) for a, b in zip(one.answers, other.answers, strict=True) if a.complete and b.complete]
        for one, other in zip(slow, fast, strict=True)
    ]
    if not any(pairs):
        return None
    interval = compare_passes(pairs)
    return Ratio(interval.value, (interval.low, interval.high))


def identity(passes: Sequence[Pass], reference: Sequence[Pass]) -> int:
    """How many answers are token for token those of `reference`."""
    return sum(
        mine.complete and theirs.complete and list(mine.token_ids) == list(theirs.token_ids)
        for one, other in zip(passes, reference, strict=True)
        for mine, theirs in zip(one.answers, other.answers, strict=True)
    )


def answers_of(each: Pass) -> Answers:
    """The times of a pass's answers."""
    return Answers(
        **each.point._asdict(),
        mode=each.mode,
        number=each.number,
        first_token_ms=[answer.first_token_ms if answer.complete else None for answer in each.answers],
        total_ms=[answer.total_ms if answer.complete else None for answer in each.answers],
        num_tokens=[answer.num_tokens for answer in each.answers],
    )
