"""vLLM's steps, timed by a Python that has vLLM: a model of random weights, and nothing of ours.

`python -P vllm_steps.py JOB` takes a `Job` as JSON. Behind ANSWER, among vLLM's own lines, it prints "steps_ms", one
for each row, and "num_drafted", how many tokens were drafted for a session's step on the average.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any, TypedDict

ANSWER = "outrider: "
"""What the line with the answer begins with."""

NUM_STEPS = 20
"""By so many tokens, and as many steps, the answers differ whose times are compared."""

PREFILL_TOKENS = 8192
"""Most tokens of a step while prompts are read."""

_SPARE_STEPS = 8
"""What the shorter answer has beyond the steps that read the prompts: then all sessions answer at once for a while."""

_KNOWN_TOKENS = 8
"""Different tokens of a text, which is made of them over and over: every one of them has been there before."""


class Job(TypedDict):
    """What is timed. vLLM is started for one number of tokens."""

    folder: str
    """With config.json."""
    dtype: str
    num_tokens: int
    """Of each session in a step."""
    rows: list[tuple[int, int]]
    """Sessions, and tokens of context of each."""


def num_answered(row: tuple[int, int]) -> int:
    """Tokens of the shorter answers."""
    num_sessions, num_context_tokens = row
    return -(-num_sessions * num_context_tokens // PREFILL_TOKENS) + _SPARE_STEPS


def flags(job: Job) -> dict[str, Any]:
    """With which vLLM is started.

    Drafts are n-grams, which take nothing of the device; none is accepted, so that each step gives each session one
    token, and the number of steps is known. A step takes as long whatever becomes of its drafts.
    """
    num_drafts = job["num_tokens"] - 1
    speculation = {
        "method": "ngram",
        "num_speculative_tokens": num_drafts,
        "prompt_lookup_min": 1,
        "prompt_lookup_max": 1,
        "rejection_sample_method": "synthetic",
        "synthetic_acceptance_rates": [0.0] * num_drafts,
    }
    return {
        "model": job["folder"],
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "dtype": job["dtype"],
        "max_num_seqs": max(num_sessions for num_sessions, _ in job["rows"]),
        "max_model_len": max(row[1] + num_answered(row) for row in job["rows"]) + NUM_STEPS + job["num_tokens"],
        "max_num_batched_tokens": PREFILL_TOKENS,
        "enable_prefix_caching": False,
        "disable_log_stats": False,
        **({"speculative_config": speculation} if num_drafts else {}),
    }


def main(job: Job) -> None:
    """Prints what the rows take."""
    vllm: Any = importlib.import_module("vllm")
    model = vllm.LLM(**flags(job))
    steps_ms = [_step_ms(vllm, model, row, drafts=job["num_tokens"] > 1) for row in job["rows"]]
    counts = {metric.name: metric.value for metric in model.get_metrics() if hasattr(metric, "value")}
    num_steps = counts.get("vllm:spec_decode_num_drafts", 0)
    num_drafted = counts.get("vllm:spec_decode_num_draft_tokens", 0)
    answer = {"steps_ms": steps_ms, "num_drafted": num_drafted / num_steps if num_steps else 0.0}
    print(f"{ANSWER}{json.dumps(answer)}", flush=True)


def _step_ms(vllm: Any, model: Any, row: tuple[int, int], *, drafts: bool) -> float:
    """The difference of two answers' times by that of their lengths: reading the prompts drops out."""
    num_sessions, num_context_tokens = row
    prompts = [
        {"prompt_token_ids": [1 + (session + place) % _KNOWN_TOKENS for place in range(num_context_tokens)]}
        for session in range(num_sessions)
    ]
    limits = {"allowed_token_ids": list(range(1, 1 + _KNOWN_TOKENS))} if drafts else {}

    def seconds(num_tokens: int) -> float:
        params = vllm.SamplingParams(
            temperature=0.8, ignore_eos=True, max_tokens=num_tokens, detokenize=False, **limits
        )
        started = time.perf_counter()
        model.generate(prompts, sampling_params=params, use_tqdm=False)
        return time.perf_counter() - started

    short, long = num_answered(row), num_answered(row) + NUM_STEPS
    seconds(long)  # kernels are made and chosen
    return (min(seconds(long) for _ in range(2)) - min(seconds(short) for _ in range(2))) / NUM_STEPS * 1e3


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
