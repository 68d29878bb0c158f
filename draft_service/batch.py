"""A draft step as the engine and the sampler want it."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.core.draft.session import DraftSession
from outrider.core.protocol.tree import Node, path_tokens
from outrider.core.schedule.subtree import subtree
from outrider.engine.jobs import Job
from outrider.engine.kv_cache.slots import Slot
from outrider.engine.sample.sampler import Row


def expansion_job(slot: Slot, state: DraftSession, nodes: Sequence[Node]) -> Job:
    """The job whose logits say what comes below each of `nodes`, one row each in their order.

    The nodes stand in the tree of `state`, the root among them or not; `slot` is the session's own.
    """
    return Job(slot, state.line.token_ids, *subtree(state.tree.root, nodes))


def expansion_row(slot: int, state: DraftSession, node: Node, num_masks: int = 0) -> Row:
    """The place of a token below `node`, or `num_masks` places further on, with the path there from the end of the line
    of `state` if that matters, as far as it is known."""
    return Row(slot, node.position + 1 + num_masks, path_tokens(state.tree.root, node) if state.needs_path else ())
