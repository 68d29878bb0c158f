"""What `docs/operating.md` has an operator write and start: services by TLS, with tokens, and Prometheus beside."""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from outrider.cli.certificates import make_certificates
from outrider.token_file import TokenEntry, new_token, sha256_of, write_tokens
from tests.house.pages import PAGES, ROOT, blocks
from tests.telemetry.prometheus import free_port, needs_prometheus, process

PAGE = PAGES["docs/operating.md"]
LINES = [line for block in blocks(PAGE, "sh") for line in block.replace("\\\n", "").splitlines()]
ADDRESS = re.compile(r"127\.0\.0\.1:\d+")
SCRAPED_SECONDS_MAX = 200.0
"""Longest that services may take here to start and Prometheus to find them."""


class Page:
    """The page with a free port in the place of each that it names, the same for the same."""

    def __init__(self) -> None:
        self._moved: dict[str, str] = {}

    def moved(self, text: str) -> str:
        """The text with those ports."""
        return ADDRESS.sub(lambda found: self._moved.setdefault(found[0], f"127.0.0.1:{free_port()}"), text)

    def line(self, start: str) -> str:
        """The only command that begins so."""
        (found,) = (line for line in LINES if line.startswith(start))
        return self.moved(found)

    def module(self, name: str) -> list[str]:
        """The command line of a service, for the interpreter of the tests."""
        _, *arguments = shlex.split(self.line(f"python -m {name} "))
        return [sys.executable, *arguments]


async def targets(client: httpx.AsyncClient, url: str) -> dict[str, dict[str, Any]]:
    """What Prometheus says of each job; nothing as long as it does not answer."""
    try:
        answer = await client.get(f"{url}/api/v1/targets")
    except httpx.TransportError:
        return {}
    return {each["labels"]["job"]: each for each in answer.json()["data"]["activeTargets"]} if answer.is_success else {}


@needs_prometheus
@pytest.mark.usefixtures("forked")
async def test_prometheus_scrapes_by_tls_what_the_page_starts(tmp_path: Path) -> None:
    page = Page()
    make_certificates(tmp_path / "certificates")
    token = new_token()
    write_tokens(tmp_path / "tokens.json", [TokenEntry(name="prometheus", sha256=sha256_of(token))])
    (tmp_path / "prometheus.token").write_text(f"{token}\n")
    (tmp_path / "k8s").symlink_to(ROOT / "k8s")
    (written,) = blocks(PAGE, "yaml")
    config = yaml.safe_load(page.moved(written))
    config["global"]["scrape_interval"] = "1s"
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    # There is no verifier here. Where its address leads to another service, the name in the certificate tells.
    jobs["outrider-verify"]["static_configs"] = jobs["outrider-draft"]["static_configs"]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    for start in ("sed ", "promtool "):
        async with process("/bin/sh", "-c", page.line(start), cwd=tmp_path) as check:
            assert await check.wait() == 0, start
    assert yaml.safe_load((tmp_path / "alerts.rules.yml").read_text())["groups"]
    drafter, coordinator = page.module("draft_service"), page.module("coordinator")
    drafter[drafter.index("models/draft")] = "ngram"  # without torch
    at = f"127.0.0.1:{free_port()}"
    async with (
        process(*drafter, cwd=tmp_path),
        process(*coordinator, cwd=tmp_path),
        process(*shlex.split(page.line("prometheus ")), f"--web.listen-address={at}", cwd=tmp_path),
        httpx.AsyncClient() as client,
        asyncio.timeout(SCRAPED_SECONDS_MAX),
    ):
        found = dict[str, dict[str, Any]]()
        while not (
            {job for job, each in found.items() if each["health"] == "up"} == {"outrider-coordinator", "outrider-draft"}
            and "certificate is valid for outrider-draft" in found["outrider-verify"]["lastError"]
        ):
            await asyncio.sleep(0.3)
            found = await targets(client, f"http://{at}")
