"""The pages of faults name a test for each, and every one exists."""

from __future__ import annotations

import re

import pytest

from .pages import PAGES
from .test_docs import code, defined_in

FIRST_HEADERS = {"docs/reliability.md": "fault", "docs/faults.md": "what fails"}
"""The pages, and what the first of three columns is called in each table: fault, what comes of it, its tests."""

PROOF = re.compile(r"tests/(\w+/)+test_\w+\.py::test_\w+|tests/chaos/phases\.py::\w+")


def table_rows(page: str) -> list[list[str]]:
    """The cells of every row of every table."""
    rows = [line for line in PAGES[page].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]


@pytest.mark.parametrize("page", FIRST_HEADERS)
def test_every_fault_has_a_test_that_exists(page: str) -> None:
    found = [row for row in table_rows(page) if row[0] != FIRST_HEADERS[page]]
    headed = re.findall(r"^\| (.+?) \|.*\n\|---", PAGES[page], flags=re.M)
    assert set(headed) == {FIRST_HEADERS[page]}
    assert len(found) > 20
    for fault, outcome, proofs in found:
        assert outcome, fault
        named = [span for span in code(proofs) if "::" in span]
        assert named, f"no test proves that {fault}"
        for span in named:
            file, _, name = span.partition("::")
            assert PROOF.fullmatch(span), span
            assert name in defined_in(file), f"{span} does not exist"
