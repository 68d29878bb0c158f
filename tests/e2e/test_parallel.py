"""Parallel draft models: checkpoints laid out as PARD's are load, draft and are replaced; the text is the target's."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from draft_service.config import DraftConfig
from draft_service.model_servicer import ModelDraftServicer
from outrider.client import Finished, GenerationMode, Started, Tokens
from outrider.core.protocol.errors import UnsupportedModelError
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.schedule.policy import DraftPolicy
from outrider.engine.engine import STEP_TOKENS_MAX
from outrider.engine.jobs import Job
from outrider.worker.startup import LoadedModel
from tests.e2e.answers import ask
from tests.e2e.stack import SILENT, coordinator, load_tiny, save_tiny, stack, worker
from tests.engine.tiny_models import VOCAB_SIZE, build

MASK = VOCAB_SIZE - 1
PROMPT = [7, 9, 9, 4, 30, 2, 2]
SAMPLINGS = (
    SamplingParams(),
    SamplingParams(temperature=0.8, seed=5),
    SamplingParams(temperature=0.8, seed=6, top_p=0.9, top_k=30, frequency_penalty=0.3),
)
NUM_TOKENS = 24
STEP_SECONDS = 0.01
"""Of a target that shall still be at work when its drafter has gone."""


def saved(family: str, folder: Path, **entries: object) -> Path:
    """A target, or with `entries` of its config.json a draft model that computes the same."""
    model = build(family, layers=2)
    for name, value in entries.items():
        setattr(model.config, name, value)
    return save_tiny(model, folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_tiny(saved("llama", tmp_path_factory.mktemp("tiny")), max_sessions=2)


def configured(folder: Path, entries: dict[str, object]) -> Path:
    """A folder whose config.json has these entries."""
    (folder / "config.json").write_text(json.dumps(entries))
    return folder


class Watched:
    """A loaded model, and how many mask tokens its steps were asked for."""

    def __init__(self, loaded: LoadedModel, step_seconds: float = 0.0) -> None:
        self.loaded = loaded
        self.num_masks = self.num_steps = 0
        step = loaded.engine.step

        def noting(jobs: Sequence[Job], max_line_tokens: int = STEP_TOKENS_MAX) -> Any:
            self.num_masks += sum(job.num_masks for job in jobs)
            self.num_steps += 1
            time.sleep(step_seconds)
            return step(jobs, max_line_tokens)

        loaded.engine.step = noting  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(("family", "attention"), [("qwen3", "native"), ("llama", "torch")])
async def test_the_text_is_the_targets(tmp_path: Path, family: str, attention: str) -> None:
    target = Watched(load_tiny(saved(family, tmp_path / "target"), attention_backend=attention), STEP_SECONDS)
    folder = saved(family, tmp_path / "draft", pard_token=MASK)
    assert json.loads((folder / "config.json").read_text())["pard_token"] == MASK
    draft = Watched(load_tiny(folder, attention_backend=attention))
    num_accepted = 0
    async with stack(target.loaded, draft.loaded) as running:
        for sampling in SAMPLINGS:
            arguments = {"sampling": sampling, "max_tokens": NUM_TOKENS, "ignore_eos": True}
            alone, *together = await asyncio.gather(
                ask(running.client, PROMPT, **arguments, speculate=False),
                *(ask(running.client, PROMPT, **arguments, tree_width=width) for width in (1, 3, 0)),
            )
            for answer in together:
                assert answer.token_ids == alone.token_ids
                assert answer.finished.mode is GenerationMode.SPECULATIVE
                num_accepted += answer.finished.speculation.num_accepted_tokens
    assert draft.num_masks > draft.num_steps, "it drafted one place a pass"
    assert num_accepted > 0


@pytest.mark.parametrize("begins_in_parallel", [True, False])
async def test_a_drafter_of_one_kind_takes_over_from_one_of_the_other(tmp_path: Path, begins_in_parallel: bool) -> None:
    target = Watched(load_tiny(saved("qwen3", tmp_path / "target")), STEP_SECONDS)
    parallel = Watched(load_tiny(saved("qwen3", tmp_path / "parallel", pard_token=MASK)))
    ordinary = Watched(load_tiny(saved("qwen3", tmp_path / "ordinary")))
    first, second = (parallel, ordinary) if begins_in_parallel else (ordinary, parallel)
    async with (
        worker(target.loaded) as verify,
        worker(first.loaded, draft=True) as one,
        worker(second.loaded, draft=True) as other,
        coordinator(verify.address, f"{one.address},{other.address}") as running,
    ):
        await running.until_serving(verify.address, one.address, other.address)
        arguments: dict[str, Any] = {"sampling": SAMPLINGS[1], "max_tokens": 60, "ignore_eos": True}
        alone = await ask(running.client, PROMPT, **arguments, speculate=False)
        num_steps = second.num_steps
        token_ids: list[int] = []
        async with aclosing(running.client.generate(PROMPT, **arguments)) as events:
            assert isinstance(await anext(events), Started)
            async for event in events:
                if isinstance(event, Tokens):
                    if not token_ids:
                        assert first.num_steps > 0
                        await one.server.stop(None)
                    token_ids += [token.token_id for token in event.tokens]
        assert isinstance(event, Finished)
        assert token_ids == alone.token_ids
        assert (event.mode, event.mode_reason) == (GenerationMode.SPECULATIVE, "")
        assert second.num_steps > num_steps
    assert ordinary.num_masks == 0
    assert parallel.num_masks > 0


@pytest.mark.parametrize(
    ("entries", "parallel", "num_positions"),
    [
        ({"pard_token": MASK}, "auto", 12),
        ({"ptd_token_id": 3}, "auto", 12),
        ({"pard_token": MASK}, "4", 4),
        ({"pard_token": MASK}, "off", 1),
        ({}, "auto", 1),
        ({"pard_token": VOCAB_SIZE}, "off", 1),
    ],
)
async def test_the_setting_and_the_checkpoint_decide(
    tiny: LoadedModel, tmp_path: Path, entries: dict[str, object], parallel: str, num_positions: int
) -> None:
    policy = DraftPolicy()
    config = DraftConfig(model=str(configured(tmp_path, entries)), parallel=parallel)
    servicer = ModelDraftServicer(SILENT, policy, config.parallel)
    with capture_logs() as logs:
        servicer.begin(replace(tiny, folder=tmp_path), lambda death: None)
    expected = "drafting in parallel" if num_positions > 1 else "drafting one place a pass"
    assert expected in [line["event"] for line in logs]
    assert policy.estimates.num_positions == num_positions
    assert (policy.mask_token_id is not None) == (num_positions > 1)


@pytest.mark.parametrize(
    ("entries", "parallel", "words"),
    [({}, "4", "names no mask token"), ({"pard_token": VOCAB_SIZE}, "auto", "below the vocabulary's size")],
)
async def test_what_cannot_be_done_is_refused_with_what_to_do(
    tiny: LoadedModel, tmp_path: Path, entries: dict[str, object], parallel: str, words: str
) -> None:
    loaded = replace(tiny, folder=configured(tmp_path, entries))
    with pytest.raises(UnsupportedModelError, match=words) as refusal:
        ModelDraftServicer(SILENT, parallel=parallel).begin(loaded, lambda death: None)
    assert "--parallel" in str(refusal.value)
