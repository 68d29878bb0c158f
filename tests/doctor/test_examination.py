"""`outrider doctor` at running services: it measures them, and tells when their answers differ."""

from __future__ import annotations

import io
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import pytest
from rich.console import Console

from outrider.cli import doctor
from outrider.cli.calibration import calibrate, judge
from outrider.cli.doctor import examine_server, findings_object, print_findings
from outrider.cli.up_options import UpOptions
from outrider.client import Credentials
from outrider.doctor.finding import Finding, Level
from tests.e2e.stack import bundled, coordinator, worker
from tests.telemetry.prometheus import free_port


async def test_a_healthy_pair_is_measured() -> None:
    async with (
        worker(bundled("target")) as verify,
        worker(bundled("draft"), draft=True) as draft,
        coordinator(verify.address, draft.address) as stack,
    ):
        found = [each async for each in examine_server(stack.address, 0.0, Credentials(), Console(file=io.StringIO()))]
        pairs = await calibrate(stack.address, 0.0, Credentials())
    by_subject = {each.subject: each for each in found}
    assert by_subject["verify worker"].text.startswith("target, 12.2 M parameters, float32 on cpu")
    assert by_subject["draft worker"].level is Level.GOOD
    assert by_subject["tokens"].text == "the same with speculation and without, 1 answers of 64"
    assert "times the target alone" in by_subject["gain"].text
    assert findings_object(found)["findings"][0]["level"] == "good"

    ours, alone = pairs[0]
    (completion,) = alone.completions
    other = replace(alone, completions=(replace(completion, token_ids=completion.token_ids[:-1]),))
    differing, _ = judge([(ours, other)])
    assert differing.level is Level.PROBLEM
    assert "1 of 1 answers differ" in differing.text


@pytest.mark.parametrize(("is_taken", "level"), [(True, Level.NOTE), (False, Level.GOOD)])
async def test_a_port_that_somebody_has_is_noted(is_taken: bool, level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COORDINATOR_PORT", "DRAFT_PORT", "VERIFY_PORT"):
        monkeypatch.setattr(doctor, name, free_port())
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        port = somebody.getsockname()[1]
        monkeypatch.setattr(doctor, "HTTP_PORT", port if is_taken else free_port())
        # What comes after the ports would start services.
        async with aclosing(doctor.examine(UpOptions(target="", draft=None), 0.0, Console())) as found:
            ports = await anext(each async for each in found if each.subject == "ports")
    assert ports.level is level
    assert (str(port) in ports.text) is is_taken


async def test_findings_are_lines_and_a_problem_is_no_health() -> None:
    async def found(*findings: Finding) -> AsyncIterator[Finding]:
        for each in findings:
            yield each

    out = Console(file=io.StringIO(), record=True, width=100)
    assert await print_findings(found(Finding(Level.GOOD, "cores", "2")), out)
    assert not await print_findings(found(Finding(Level.PROBLEM, "pair", "\x1b[31mno", "start it")), out)
    text = out.export_text()
    assert "✓ cores" in text
    assert "\x1b" not in text
    assert "→ start it" in text
