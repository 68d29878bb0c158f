"""Ways in which a session comes by the logits of one line: they must not differ in a bit."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from outrider.engine.engine import Engine
from outrider.engine.jobs import LINE_END, Job

_CHUNK_TOKENS = 70
"""Line tokens of a step while a long text is read beside others: several steps for each."""


def single_steps(engine: Engine, line: Sequence[int], rows: Iterable[int]) -> Tensor:
    """The logits after some tokens of `line`, [R, V], each computed in a step of its own."""
    slot = engine.acquire()
    found: list[Tensor] = []
    for row in rows:
        if row:
            engine.step([Job(slot, line[:row])])
        found.append(engine.step([Job(slot, line[: row + 1])]).logits.clone())
    engine.release(slot)
    return torch.cat(found)


def in_company(
    engine: Engine,
    line: Sequence[int],
    others: Sequence[Sequence[int]],
    before: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """The logits after each token of `line`, [N, V], as trees of many sizes with other branches, beside sessions that
    read `others`. Each step is announced by the first row that it computes."""
    chance = random.Random(5)
    slot, beside = engine.acquire(), [engine.acquire() for _ in others]
    rows: list[Tensor] = []
    while len(rows) < len(line):
        before(len(rows))
        first = len(rows) + 1  # tokens before it are the line
        nodes = line[first : first + chance.randrange(12)]
        parents = [*range(LINE_END, len(nodes) - 1)]
        wrong = chance.randrange(4)
        job = Job(
            slot, line[:first], [*parents, *[LINE_END] * wrong], [*nodes, *[7] * wrong], range(LINE_END, len(nodes))
        )
        company = [
            Job(each, text[: 1 + chance.randrange(len(text))])
            for each, text in zip(beside, others, strict=True)
            if chance.random() < 0.7
        ]
        output = engine.step([*company, job])
        assert all(output.num_rows)
        rows += output.logits[-1 - len(nodes) :].clone().split(1)
    for each in (slot, *beside):
        engine.release(each)
    return torch.cat(rows[: len(line)])


def taken_over(engine: Engine, line: Sequence[int], rows: Iterable[int], others: Sequence[Sequence[int]]) -> Tensor:
    """The logits after some tokens of `line`, [R, V], each by a session that another engine has had until then: this
    one reads what is there, in pieces, beside sessions that read `others`, and goes on."""
    chance = random.Random(6)
    beside = [engine.acquire() for _ in others]
    found: list[Tensor] = []
    for number, row in enumerate(rows):
        slot = engine.acquire(shares=number % 2 == 0)  # every other one may find a beginning in the cache
        jobs = [Job(slot, line[: row + 1], [LINE_END, LINE_END], [5, 7])]
        jobs += [Job(each, text[: 1 + row % len(text)]) for each, text in zip(beside, others, strict=True)]
        chance.shuffle(jobs)
        while jobs:
            output = engine.step(jobs, _CHUNK_TOKENS)
            ended = [job for job, num_rows in zip(jobs, output.num_rows, strict=True) if num_rows]  # a row each
            found += [output.logits[at : at + 1].clone() for at, job in enumerate(ended) if job.slot is slot]
            jobs = [job for job, num_rows in zip(jobs, output.num_rows, strict=True) if num_rows is None]
        engine.release(slot)
    for each in beside:
        engine.release(each)
    return torch.cat(found)
