"""The `outrider generate` command as a process of its own: its standard output, its JSON, its exit codes."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import NamedTuple

import pytest

from outrider.core.protocol.errors import FieldViolation, InvalidRequestError, SlotsExhaustedError
from outrider.v1 import common_pb2
from outrider.v1 import generation_pb2 as pb
from tests.client.scripted import ROUNDS, TEXT, TWO, ScriptedCoordinator, finished, serving, started, tokens


class Ended(NamedTuple):
    """What a command left behind."""

    exit_code: int
    out: str
    err: str


async def outrider(*arguments: str) -> Ended:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "outrider.cli",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def test_json_is_one_object_with_everything() -> None:
    async with serving(ScriptedCoordinator()) as address:
        ended = await outrider("generate", "import os", "--json", "--address", address)
    assert (ended.exit_code, ended.err) == (0, "")
    assert ended.out.count("\n") == 1
    assert json.loads(ended.out) == {
        "text": TEXT,
        "token_ids": [10, 11, 12, 13, 14, 15],
        "prompt_token_ids": [5, 6],
        "batch_invariant": False,
        "finish_reason": "length",
        "mode": "degraded",
        "reason": "the drafter left",
        "explanation": [
            "The drafter was lost on the way, and the target went on alone: the drafter left.",
            "The target accepted 2 of 8 draft tokens (25%): acceptance falls off at depth 2, where 0 of the 2 rounds "
            "that came so far accepted a token.",
        ],
        "seed": 7,
        "usage": {
            "num_prompt_tokens": 2,
            "num_generated_tokens": 6,
            "num_cached_prompt_tokens": 1,
            "num_accepted_prediction_tokens": 0,
            "num_rejected_prediction_tokens": 0,
        },
        "speculation": {
            "num_rounds": 3,
            "num_draft_tokens": 8,
            "num_accepted_tokens": 2,
            "num_rollbacks": 1,
            "num_drafted_nodes": 9,
            "num_stale_nodes": 4,
            "acceptance_length": 2.0,
            "acceptance_rate": 0.25,
            "acceptance_histogram": [1, 2],
            "num_rejections": 2,
            "num_recovered_token_hits": 1,
            "num_bonuses": 1,
            "num_bonus_hits": 0,
            "num_prompt_lookup_tokens": 5,
            "num_accepted_prompt_lookup_tokens": 1,
            "num_prediction_tokens": 0,
            "num_accepted_prediction_tokens": 0,
        },
        "timings": {
            "first_token_ms": 40.0,
            "total_ms": 500.0,
            "verify_ms": 300.0,
            "verify_wait_ms": 20.0,
            "draft_ms": 100.0,
        },
    }


async def test_explain_tells_what_the_answer_has_and_compares_when_asked() -> None:
    lost = "The drafter was lost on the way, and the target went on alone: the drafter left."
    coordinator = ScriptedCoordinator()
    async with serving(coordinator) as address:
        plain = await outrider("explain", "import os", "--max-tokens", "9", "--address", address)
        compared = await outrider("explain", "import os", "--compare", "--json", "--address", address)
        coordinator.script = TWO
        two = await outrider("explain", "x", "--completions", "2", "--address", address)
        two_objects = await outrider("explain", "x", "--completions", "2", "--json", "--address", address)
    assert (plain.exit_code, plain.err) == (0, "")
    assert plain.out.splitlines()[0] == lost
    assert "2 of 8 draft tokens" in plain.out
    told = json.loads(compared.out)
    assert (told["pays"], told["explanation"][0]) == (False, lost)
    assert told["explanation"][1] == "It made 2.00 tokens a round, 92 ms a token, and 92 ms by the target alone."
    assert [request.speculation.enabled for request in coordinator.requests] == [True, True, False, True, True]
    assert coordinator.requests[0].max_tokens == 9
    assert coordinator.requests[2].sampling.seed == 7
    assert [line for line in two.out.splitlines() if line.startswith("Completion")] == [
        "Completion 0:",
        "Completion 1:",
    ]
    assert [each["pays"] for each in json.loads(two_objects.out)["completions"]] == [False, False]


async def test_json_carries_log_probabilities_when_asked() -> None:
    logprobs = common_pb2.TokenLogprobs(logprob=-0.1, top_token_ids=[10, 4], top_logprobs=[-0.1, -float("inf")])
    begun = started(batch_invariant=True)
    script = [begun, tokens(2, (10, "a", pb.TOKEN_ORIGIN_TARGET), logprobs=[logprobs]), finished(1)]
    coordinator = ScriptedCoordinator(script)
    async with serving(coordinator) as address:
        ended = await outrider("generate", "x", "--json", "--logprobs", "2", "--address", address)
    assert coordinator.requests[0].num_logprobs == 2
    answer = json.loads(ended.out)
    assert answer["logprobs"] == [{"logprob": -0.1, "top_token_ids": [10, 4], "top_logprobs": [-0.1, None]}]
    assert answer["batch_invariant"] is True


async def test_completions_are_a_list_however_many() -> None:
    for number, script in ((2, TWO), (1, ROUNDS)):
        async with serving(ScriptedCoordinator(script)) as address:
            ended = await outrider("generate", "x", "--json", "--completions", str(number), "--address", address)
        answer = json.loads(ended.out)
        assert answer["prompt_token_ids"] == [5, 6]
        assert answer["batch_invariant"] is False
        assert len(answer["completions"]) == number
        if number == 2:
            first, second = answer["completions"]
            assert (first["text"], first["seed"]) == ("first ends", 2**64 - 1)
            assert (second["text"], second["seed"]) == ("second ends early!", 0)
            assert second["token_ids"] == [30, 31, 32]


async def test_every_flag_arrives_in_the_request() -> None:
    coordinator = ScriptedCoordinator()
    flags = (
        "--token-ids 5,6 --max-tokens 12 --temperature 0.5 --top-p 0.75 --top-k 40 --min-p 0.25 "
        "--repetition-penalty 1.5 --presence-penalty 0.5 --frequency-penalty -0.5 --seed 18446744073709551615 "
        "--stop a --stop b --ignore-eos --target-only --max-draft-tokens 4 --tree-width 2 --completions 1 "
        "--logprobs 3 --json"
    )
    async with serving(coordinator) as address:
        ended = await outrider("generate", *flags.split(), "--address", address)
    assert ended.exit_code == 0, ended.err
    assert coordinator.requests == [
        pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=[5, 6]),
            sampling=common_pb2.SamplingParams(
                temperature=0.5,
                top_p=0.75,
                top_k=40,
                min_p=0.25,
                repetition_penalty=1.5,
                presence_penalty=0.5,
                frequency_penalty=-0.5,
                seed=2**64 - 1,
            ),
            max_tokens=12,
            stop=["a", "b"],
            ignore_eos=True,
            num_logprobs=3,
            speculation=pb.SpeculationParams(enabled=False, max_draft_tokens=4, tree_width=2),
            num_completions=1,
        )
    ]


async def test_the_default_is_greedy_with_a_seed_of_the_server() -> None:
    coordinator = ScriptedCoordinator()
    async with serving(coordinator) as address:
        await outrider("generate", "x", "--json", "--address", address)
    (request,) = coordinator.requests
    assert request.sampling.temperature == 0.0
    assert not request.sampling.HasField("seed")
    assert request.speculation.enabled


async def test_without_json_the_text_alone_is_on_standard_output() -> None:
    async with serving(ScriptedCoordinator()) as address:
        ended = await outrider("generate", "import os", "--address", address)
    assert (ended.exit_code, ended.out) == (0, TEXT + "\n")
    assert "acceptance length" in ended.err
    assert ended.err.endswith("The drafter was lost on the way, and the target went on alone: the drafter left.\n")


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (InvalidRequestError([FieldViolation("max_tokens", "must be at least 1")]), 2),
        (SlotsExhaustedError("every slot is taken; try again later"), 1),
    ],
)
async def test_an_error_leaves_standard_output_empty(error: Exception, exit_code: int) -> None:
    async with serving(ScriptedCoordinator([error])) as address:
        ended = await outrider("generate", "x", "--json", "--address", address)
    assert ended == Ended(exit_code, "", f"error: {error}\n")


async def test_nobody_there_names_the_address_and_the_remedy() -> None:
    ended = await outrider("generate", "x", "--address", "127.0.0.1:1")
    assert (ended.exit_code, ended.out) == (1, "")
    assert "127.0.0.1:1" in ended.err
    assert "outrider up" in ended.err


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("x", "--token-ids", "1"),
        ("--token-ids", "1,x"),
        ("x", "--seed", "-1"),
        ("x", "--top-k", "y"),
        ("x", "--completions", "0"),
    ],
)
async def test_flags_that_make_no_sense_are_a_usage_error(arguments: tuple[str, ...]) -> None:
    ended = await outrider("generate", *arguments)
    assert (ended.exit_code, ended.out) == (2, "")
    assert "Usage:" in ended.err
