"""The verifier's own guesses: the target's tokens all the same, with a drafter and without, in fewer rounds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from outrider.client import GenerationMode, Speculation
from outrider.core.propose.ngram import NgramTable
from outrider.core.protocol.errors import UnsupportedModelError
from outrider.core.protocol.sampling import SamplingParams
from outrider.worker.ngram_file import load_ngrams_of
from recipes.ngram_table import write
from tests.e2e.answers import Answer, ask
from tests.e2e.stack import MODELS, SILENT, RunningWorker, Stack, bundled, coordinator, load_tiny, save_tiny, worker
from tests.engine.tiny_models import build
from tests.worker.driven import FixedCurve
from verify_service.config import VerifyConfig
from verify_service.servicer import VerifyServicer

TOKENIZER = MODELS / "target" / "tokenizer.json"
PROMPT = "import os\n\n\ndef walk(path):\n" * 4
NUM_TOKENS = 64
SAMPLED = SamplingParams(temperature=0.8, seed=4)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@asynccontextmanager
async def generous() -> AsyncIterator[RunningWorker]:
    """A verifier that scores what it guesses, whatever a busy machine would measure: a token more costs it nothing."""
    async with worker(bundled("target")) as verify:
        assert isinstance(verify.servicer, VerifyServicer)
        verify.servicer._verifier.scheduler.policy.estimates.curve = FixedCurve(1e-3, 0.0)
        yield verify


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def alone() -> AsyncIterator[Stack]:
    """A verifier without any drafter."""
    async with generous() as verify, coordinator(verify.address, "") as stack:
        yield stack


def speculation(answer: Answer) -> Speculation:
    found = answer.finished.speculation
    assert 0 <= found.num_accepted_prompt_lookup_tokens <= found.num_prompt_lookup_tokens <= found.num_draft_tokens
    assert found.num_accepted_prompt_lookup_tokens <= found.num_accepted_tokens
    return found


@pytest.mark.parametrize("sampling", [SamplingParams(), SAMPLED])
async def test_without_a_drafter_the_text_is_the_targets_in_fewer_rounds(
    alone: Stack, sampling: SamplingParams
) -> None:
    arguments = {"max_tokens": NUM_TOKENS, "ignore_eos": True, "sampling": sampling}
    plain = await ask(alone.client, PROMPT, speculate=False, **arguments)
    assert (speculation(plain).num_draft_tokens, speculation(plain).num_rounds) == (0, NUM_TOKENS)
    answer = await ask(alone.client, PROMPT, **arguments)
    assert answer.token_ids == plain.token_ids
    assert answer.finished.mode is GenerationMode.TARGET_ONLY
    found = speculation(answer)
    assert found.num_prompt_lookup_tokens == found.num_draft_tokens
    assert found.num_accepted_prompt_lookup_tokens == found.num_accepted_tokens > 0
    assert found.num_drafted_nodes == 0


async def test_beside_a_drafter_both_kinds_of_guesses_are_told_apart(alone: Stack) -> None:
    plain = await ask(alone.client, PROMPT, max_tokens=NUM_TOKENS, ignore_eos=True, speculate=False)
    async with (
        generous() as verify,
        worker(bundled("draft"), draft=True) as draft,
        coordinator(verify.address, draft.address) as stack,
    ):
        answer = await ask(stack.client, PROMPT, max_tokens=NUM_TOKENS, ignore_eos=True)
    assert answer.token_ids == plain.token_ids
    found = speculation(answer)
    assert answer.finished.mode is GenerationMode.SPECULATIVE
    assert 0 < found.num_prompt_lookup_tokens <= found.num_draft_tokens


async def test_a_request_that_allows_no_draft_tokens_is_the_targets_alone(alone: Stack) -> None:
    answer = await ask(alone.client, PROMPT, max_tokens=8, ignore_eos=True, max_draft_tokens=0)
    assert speculation(answer).num_draft_tokens == 0


async def test_a_table_of_other_token_ids_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "ngrams.safetensors"
    write(path, ["import os\n" * 50], TOKENIZER, width=2, min_count=2)
    config = VerifyConfig(model="target", ngram_table=str(path))
    VerifyServicer(config, SILENT).begin(bundled("target"), raise_it)
    stranger = load_tiny(save_tiny(build("llama", layers=1), tmp_path / "target"))
    with pytest.raises(UnsupportedModelError, match="another vocabulary"):
        VerifyServicer(config, SILENT).begin(stranger, raise_it)


async def test_a_table_of_more_token_ids_than_the_model_has_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "ngrams.safetensors"
    write(path, ["import os\n" * 50], TOKENIZER, width=2, min_count=2)
    info = bundled("target").info
    assert NgramTable(static=load_ngrams_of(info, str(path))).probabilities(0) == {}
    with pytest.raises(UnsupportedModelError, match=f"of which '{info.name}' knows 4095"):
        load_ngrams_of(info._replace(vocab_size=info.vocab_size - 1), str(path))


async def test_a_verifier_that_shall_not_look_up_makes_no_tables() -> None:
    for ngram in ("on", "off"):
        servicer = VerifyServicer(VerifyConfig(model="target", ngram=ngram), SILENT)
        servicer.begin(bundled("target"), raise_it)
        assert (servicer._verifier.scheduler._ngram_table is None) == (ngram == "off")


def raise_it(error: BaseException) -> None:
    raise error
