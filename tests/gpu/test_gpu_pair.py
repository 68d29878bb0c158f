"""A whole pair on one CUDA device: both models' steps overlap on it, and the text is still the target's own."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("structlog", reason="workers log by structlog")
pytest.importorskip("llguidance", reason="workers parse grammars by llguidance")
pytest.importorskip("google", reason="workers are services")
pytest.importorskip("grpc", reason="workers are services")
pytest.importorskip("opentelemetry", reason="workers are services")
pytest.importorskip("prometheus_client", reason="workers are services")
pytest.importorskip("pydantic", reason="workers are services")
pytest.importorskip("pydantic_settings", reason="workers are services")

from outrider.core.protocol.sampling import SamplingParams
from outrider.engine.engine import Engine
from tests.e2e.pair import SAMPLINGS, Pair, all_at_once, bundled, prompts
from tests.engine.histories import built
from tests.engine.tiny_models import FAMILIES
from tests.gpu.device import CUDA, on_cuda

pytestmark = on_cuda()

samplings = pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])


@samplings
def test_the_bundled_pair_equals_its_target_alone(sampling: SamplingParams) -> None:
    num_tokens = 128
    with Pair.running(bundled("target", CUDA, "float32"), bundled("draft", CUDA, "float32")) as pair:
        alone = all_at_once(pair, prompts(), sampling, num_tokens=num_tokens, tree_width=0)
        for tree_width in (1, 3):
            together = all_at_once(pair, prompts(), sampling, num_tokens=num_tokens, tree_width=tree_width)
            assert [each.token_ids for each in together] == [each.token_ids for each in alone]
            assert sum(each.statistics.num_accepted_tokens for each in together) > 0
            assert sum(each.statistics.num_rollbacks for each in together) > 0
    assert {len(each.token_ids) for each in alone} == {num_tokens}


@samplings
def test_the_bundled_target_writes_the_same_on_both_devices(sampling: SamplingParams) -> None:
    texts: list[list[list[int]]] = []
    for device in (torch.device("cpu"), CUDA):
        with Pair.running(bundled("target", device, "float32"), bundled("draft", device, "float32")) as pair:
            generated = all_at_once(pair, prompts(), sampling, num_tokens=48, tree_width=2)
            texts.append([each.token_ids for each in generated])
    assert texts[0] == texts[1]


@samplings
@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_pairs_of_each_family_equal_their_target_alone(family: str, sampling: SamplingParams) -> None:
    """The draft is the same family with other weights: nearly every guess is wrong, and nothing changes."""
    target, draft = (
        Engine(built(family, CUDA, torch.float32, seed=seed), max_sessions=4, max_context=128) for seed in (0, 5)
    )
    few = [[start + 1, 7, 9, 3 + start] for start in range(4)]
    with Pair.running(target, draft) as pair:
        alone = all_at_once(pair, few, sampling, num_tokens=64, tree_width=0)
        together = all_at_once(pair, few, sampling, num_tokens=64, tree_width=2)
    assert [each.token_ids for each in together] == [each.token_ids for each in alone]
    assert {len(each.token_ids) for each in alone} == {64}


@samplings
def test_a_pair_in_bfloat16_runs_to_its_end(sampling: SamplingParams) -> None:
    """Near-ties may fall the other way there, so only the length is promised, and that the draft is of use."""
    with Pair.running(bundled("target", CUDA, "bfloat16"), bundled("draft", CUDA, "bfloat16")) as pair:
        together = all_at_once(pair, prompts(), sampling, num_tokens=128, tree_width=3)
    assert {len(each.token_ids) for each in together} == {128}
    assert sum(each.statistics.num_accepted_tokens for each in together) > len(together)
