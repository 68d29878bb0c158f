"""`outrider up --in-turn`: two processes and the bundled pair, no drafter, and what everybody is told of it."""

from __future__ import annotations

from openai import AsyncOpenAI

from outrider.cli.up import Running, services
from outrider.cli.up_options import UpOptions, choose_models
from outrider.client import GenerationClient, GenerationMode, SamplingParams, gather

PROMPT = "import os\n\n\ndef walk("


async def test_answers_that_are_drafted_in_turn_are_the_targets_own_and_say_how_they_were_made() -> None:
    target, draft, _ = choose_models(None, None, None, no_draft=False)
    options = UpOptions(target=target, draft=draft, port=0, verify_port=0, http_port=0, in_turn=True, compiled="off")
    async with services(options) as running:
        assert running.draft is None
        async with GenerationClient(running.coordinator) as client:
            for temperature in (0.0, 0.8):
                await ask_both_ways(client, SamplingParams(temperature=temperature, seed=7))
        await see_what_is_served(running)


async def ask_both_ways(client: GenerationClient, sampling: SamplingParams) -> None:
    answer = await gather(client.generate(PROMPT, max_tokens=64, sampling=sampling))
    alone = await gather(client.generate(PROMPT, max_tokens=64, sampling=sampling, speculate=False))
    (ours,), (theirs,) = answer.completions, alone.completions
    assert ours.token_ids == theirs.token_ids
    assert (ours.finished.mode, ours.finished.mode_reason) == (GenerationMode.SPECULATIVE, "")
    assert theirs.finished.mode is GenerationMode.TARGET_ONLY
    assert alone.speculation.num_draft_tokens == 0


async def see_what_is_served(running: Running) -> None:
    async with GenerationClient(running.coordinator) as client:
        info = await client.server_info()
    assert (info.target.draft_model, info.draft, info.target_only_reason) == ("draft", None, "")
    async with AsyncOpenAI(base_url=f"http://{running.http}/v1", api_key="none") as http:
        (listed,) = [model async for model in http.models.list()]
    assert listed.model_extra is not None
    assert listed.model_extra["outrider"]["draft_model"] == "draft"
    assert listed.model_extra["outrider"]["target_only_reason"] == ""
