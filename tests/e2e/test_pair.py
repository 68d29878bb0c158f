"""A pair of workers writes what the target alone writes, with nothing between them but the session."""

from __future__ import annotations

import pytest

from tests.e2e.pair import SAMPLINGS, Pair, all_at_once, bundled, prompts
from tests.engine.histories import CPU


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("weights", ["full", "int8"])
def test_the_bundled_pair_equals_its_target_alone(weights, sampling) -> None:
    """Whatever the drafter keeps its weights in."""
    with Pair.running(bundled("target", CPU, "float32"), bundled("draft", CPU, "float32", weights=weights)) as pair:
        alone = all_at_once(pair, prompts(), sampling, num_tokens=24, tree_width=0)
        together = all_at_once(pair, prompts(), sampling, num_tokens=24, tree_width=3)
    assert [each.token_ids for each in together] == [each.token_ids for each in alone]
    assert {len(each.token_ids) for each in alone} == {24}
    assert sum(each.statistics.num_accepted_tokens for each in together) > 0
    assert sum(each.statistics.num_rollbacks for each in together) > 0
    assert {each.statistics.num_draft_tokens for each in alone} == {0}
