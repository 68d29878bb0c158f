"""The real vLLM with the draft pool: `make test-vllm`, which says by VLLM_PYTHON where it is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from bench.prompts import load_prompts, tokenizer
from bench.rivals.vllm_server import VllmServer, drafter_process, vllm_server

VLLM_PYTHON = os.environ.get("VLLM_PYTHON", "")
MODELS = Path(__file__).parents[2] / "models"
NUM_SPECULATIVE_TOKENS = 5
SHORT, LONG = 64, 128
"""Lengths of answers: vLLM takes a tenth of a second for a token on a busy machine, and the drafters, on the same cores
as its spinning workers, need a while for a prompt."""

SILENCE_SECONDS = "20"
"""A busy machine's silence is no fault of a drafter."""

pytestmark = [
    pytest.mark.skipif(not VLLM_PYTHON, reason="make test-vllm runs it, in an environment that has vLLM"),
    pytest.mark.timeout(1800),
]


class Question(NamedTuple):
    """What is asked."""

    prompt: tuple[int, ...]
    max_tokens: int


class Pooled(NamedTuple):
    """vLLM with two drafters."""

    server: VllmServer
    drafters: Sequence[subprocess.Popen[bytes]]


def questions() -> list[Question]:
    """Sixteen of their own, then CACHED and LASTING."""
    prompts = [tuple(prompt) for prompt in load_prompts(None, 16, tokenizer(MODELS / "target"))]
    return [*(Question(prompt, SHORT) for prompt in prompts), CACHED, LASTING]


_PROMPTS = [tuple(prompt) for prompt in load_prompts(None, 3, tokenizer(MODELS / "target"))]
CACHED = Question(_PROMPTS[0] + _PROMPTS[1] + _PROMPTS[2], LONG)
"""Longer than a block of vLLM's cache, which has 128 tokens on a CPU."""
LASTING = Question(_PROMPTS[2], LONG)


def ask(server: VllmServer, asked: Sequence[Question], at_a_time: int) -> list[str]:
    with ThreadPoolExecutor(at_a_time) as pool:
        return list(pool.map(lambda question: server.complete(question.prompt, question.max_tokens), asked))


class Answered(NamedTuple):
    """Both, after vLLM alone has said what it says."""

    alone: Mapping[Question, str]
    pooled: Pooled


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answered]:
    """The servers start at the same time, since that takes minutes; vLLM alone ends before the other is asked."""
    folder, python, draft = tmp_path_factory.mktemp("vllm"), Path(sys.executable), MODELS / "draft"
    vllm, target, asked = Path(VLLM_PYTHON), MODELS / "target", questions()
    speculation = {
        "method": "custom_class",
        "model": "outrider.vllm.RemoteProposer",
        "num_speculative_tokens": NUM_SPECULATIVE_TOKENS,
    }
    with (
        drafter_process(python, draft, folder / "first.log", "--compile=off") as (first, one),
        drafter_process(python, draft, folder / "second.log", "--compile=off") as (second, other),
        vllm_server(
            vllm,
            target,
            folder / "pooled.log",
            speculation,
            OUTRIDER_DRAFT=f"{one},{other}",
            OUTRIDER_SILENCE_SECONDS=SILENCE_SECONDS,
        ) as server,
    ):
        with vllm_server(vllm, target, folder / "alone.log") as alone:
            alone.wait_until_ready()
            texts = dict(zip(asked, ask(alone, asked, len(asked)), strict=True))
        server.wait_until_ready()
        yield Answered(texts, Pooled(server, (first, second)))


@pytest.fixture
def alone(answered: Answered) -> Mapping[Question, str]:
    """What vLLM says by itself."""
    return answered.alone


@pytest.fixture
def pooled(answered: Answered) -> Pooled:
    """vLLM with the pool."""
    return answered.pooled


def counted(before: Mapping[str, float], after: Mapping[str, float], name: str) -> float:
    return after.get(name, 0.0) - before.get(name, 0.0)


def test_the_text_is_that_of_vllm_alone_in_fewer_steps(pooled: Pooled, alone: Mapping[Question, str]) -> None:
    asked, before = questions()[:3], pooled.server.counts()
    assert ask(pooled.server, asked, 1) == [alone[question] for question in asked]
    after = pooled.server.counts()
    num_tokens = counted(before, after, "generation_tokens")
    num_accepted = counted(before, after, "spec_decode_num_accepted_tokens")
    num_drafts = counted(before, after, "spec_decode_num_drafts")
    assert num_tokens == 3 * SHORT
    assert 0 < num_accepted <= counted(before, after, "spec_decode_num_draft_tokens")
    assert num_drafts <= counted(before, after, "spec_decode_num_draft_tokens") <= NUM_SPECULATIVE_TOKENS * num_drafts
    by_position = [
        counted(before, after, f"spec_decode_num_accepted_tokens_per_pos_{position}")
        for position in range(NUM_SPECULATIVE_TOKENS)
    ]
    assert sum(by_position) == num_accepted
    assert num_tokens > counted(before, after, "iteration_tokens_total_count"), "tokens per step"


def test_sixteen_requests_at_a_time(pooled: Pooled, alone: Mapping[Question, str]) -> None:
    asked, before = questions()[:16], pooled.server.counts()
    assert ask(pooled.server, asked, 16) == [alone[question] for question in asked]
    assert counted(before, pooled.server.counts(), "spec_decode_num_accepted_tokens") > 0


def test_a_prompt_that_vllm_has_cached(pooled: Pooled, alone: Mapping[Question, str]) -> None:
    before = pooled.server.counts()
    assert ask(pooled.server, [CACHED, CACHED], 1) == [alone[CACHED]] * 2
    after = pooled.server.counts()
    assert counted(before, after, "prefix_cache_hits") > 0
    assert counted(before, after, "spec_decode_num_accepted_tokens") > 0


def test_a_drafter_killed_midway_is_replaced_and_the_last_one_is_done_without(
    pooled: Pooled, alone: Mapping[Question, str]
) -> None:
    server = pooled.server
    for drafter in pooled.drafters:
        with ThreadPoolExecutor(1) as pool:
            before = server.counts()
            answer = pool.submit(server.complete, LASTING.prompt, LASTING.max_tokens)
            while not counted(before, server.counts(), "spec_decode_num_accepted_tokens"):
                assert not answer.done(), "no draft was accepted"
            drafter.kill()
            drafter.wait()
            assert answer.result() == alone[LASTING]
    before = server.counts()
    assert ask(server, [LASTING], 1) == [alone[LASTING]]
    assert counted(before, server.counts(), "spec_decode_num_draft_tokens") == 0
