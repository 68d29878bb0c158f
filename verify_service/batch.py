"""A verify step as the engine and the sampler want it."""

from __future__ import annotations

from typing import Any

from outrider.core.schedule.subtree import subtree
from outrider.core.schedule.verify_step import VerifyPart
from outrider.engine.jobs import Job
from outrider.engine.kv_cache.slots import Slot
from outrider.engine.sample.sampler import Row


def verify_job(slot: Slot, part: VerifyPart[Any], num_choices: int = 0) -> Job:
    """The job whose logits say what follows the line, and then what follows each node; `slot` is the part's own."""
    state = part.session.state
    tree = subtree(state.tree.root, [state.tree.root, *part.nodes])
    return Job(slot, state.line.token_ids, *tree, num_choices=num_choices)


def verify_rows(part: VerifyPart[Any]) -> list[Row]:
    """The places of the tokens that follow, in the same order."""
    root = part.session.state.tree.root
    path_of: dict[int, tuple[int, ...]] = {id(root): ()}
    rows = [Row(part.slot, root.position + 1, ())]
    for node in part.nodes:
        path = path_of[id(node)] = (*path_of[id(node.parent)], node.token_id)
        rows.append(Row(part.slot, node.position + 1, path))
    return rows
