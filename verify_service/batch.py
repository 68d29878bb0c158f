"""A verify step as the engine and the sampler want it."""

from __future__ import annotations

from typing import Any

from outrider.core.protocol.tree import Node
from outrider.core.schedule.verify_step import VerifyPart
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.kv_cache.slots import Slot
from outrider.engine.sample.sampler import Row


def verify_job(slot: Slot, part: VerifyPart[Any], num_choices: int = 0) -> Job:
    """The job whose logits say what follows the line, and then what follows each node; `slot` is the part's own."""
    session, nodes = part.seated.session, part.nodes
    if not nodes:
        return Job(slot, session.token_ids, num_choices=num_choices)
    index_of: dict[Node | None, int] = {session.state.tree.root: LINE_END}
    for index, node in enumerate(nodes):
        index_of[node] = index
    return Job(
        slot,
        session.token_ids,
        [index_of[node.parent] for node in nodes],
        [node.token_id for node in nodes],
        range(LINE_END, len(nodes)),
        num_choices=num_choices,
    )


def verify_rows(part: VerifyPart[Any]) -> list[Row]:
    """The places of the tokens that follow, in the same order."""
    slot, root = part.seated.slot, part.seated.session.state.tree.root
    rows = [Row(slot, root.position + 1)]
    path_of: dict[Node | None, tuple[int, ...]] = {root: ()}
    for node in part.nodes:
        path = path_of[node] = (*path_of[node.parent], node.token_id)
        rows.append(Row(slot, node.position + 1, path))
    return rows
