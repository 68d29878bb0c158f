"""The page of faults names a test for each, and every one exists."""

from __future__ import annotations

import re

from .pages import PAGES
from .test_docs import code, defined_in

PAGE = PAGES["docs/reliability.md"]

TABLES = 4
"""Processes, links, peers, clients."""


def faults() -> list[list[str]]:
    """The cells of every row of every table."""
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]


def test_every_fault_has_a_test_that_exists() -> None:
    found = faults()
    headers = [row for row in found if row[0] == "fault"]
    assert len(headers) == TABLES
    assert len(found) > 20
    for fault, outcome, proofs in (row for row in found if row[0] != "fault"):
        assert outcome, fault
        named = [span for span in code(proofs) if "::" in span]
        assert named, f"no test proves that {fault}"
        for span in named:
            file, _, name = span.partition("::")
            assert re.fullmatch(r"tests/(\w+/)+(test_\w+|phases)\.py", file), span
            assert name in defined_in(file), f"{span} does not exist"
