"""The client that plays a coordinator guesses as a drafter would: by the protocol, and as often right as it says."""

from __future__ import annotations

import random

from bench.micro.verify_rounds import DRAFT_TOKENS_MAX, Guesses
from outrider.core.protocol.naming import Inbound
from outrider.core.protocol.tree import SpeculationTree

FIRST = 20
TEXT = random.Random(1).choices(range(100), k=400)


def test_windows_extend_what_stands_and_begin_anew_after_a_miss() -> None:
    tree = SpeculationTree(FIRST - 1, 7)
    inbound = Inbound(vocab_size=128, max_live_nodes=DRAFT_TOKENS_MAX)
    guesses = Guesses(TEXT, FIRST)
    num_right = num_guessed = 0
    while (end := tree.root.position) < FIRST + len(TEXT) - 1:
        if (window := guesses.window(end)) is not None:
            grafted = inbound.graft(tree, window)
            assert len(grafted.added) == len(window)
        left = TEXT[end + 1 - FIRST :]
        assert tree.num_live == max(min(DRAFT_TOKENS_MAX, len(left) - 1), 0)
        node, token_ids = tree.root, list[int]()
        for token_id in left:
            token_ids.append(token_id)
            num_guessed += bool(node.children)
            if (child := node.children.get(token_id)) is None:
                break
            num_right += 1
            node = child
        tree.commit(token_ids)
    assert 0.6 < num_right / num_guessed < 0.8
