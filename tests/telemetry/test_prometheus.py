"""A real Prometheus: rules fire for what they are meant for, and the dashboard finds data in a running stack."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from outrider.client import Credentials, GenerationClient
from outrider.token_file import TokenEntry, new_token, sha256_of, write_tokens
from tests.e2e.stack import MODELS
from tests.telemetry.prometheus import free_port, needs_prometheus, process

K8S = Path(__file__).parents[2] / "k8s"
MONITORING = K8S / "monitoring"
ALERTS = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["spec"]
QUERIES = {
    target["expr"]: panel["title"]
    for panel in json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    for target in panel["targets"]
}
SCALED = {
    trigger["metadata"]["query"]: f"autoscaling of {name}"
    for name in ("draft", "verify")
    for found in yaml.safe_load_all((K8S / "components" / "autoscaling" / f"{name}.yaml").read_text())
    for trigger in found["spec"]["triggers"]
}

_PAIR = '{gen_ai_request_model="target",outrider_draft_model="draft"}'
_OF = 'outrider_scored_tokens_total{gen_ai_request_model="target",outrider_draft_model="draft",%s}'
_GREEDY, _SAMPLED = 'outrider_sampling="greedy"', 'outrider_sampling="sampled"'


def scored(labels: str, *, before: int, since: int) -> dict[str, str]:
    """Of 600 draft tokens a minute how many are accepted, in eight hours and in two more."""
    return {
        _OF % f'{labels},outrider_outcome="{outcome}"': (
            f"0+{first}x480 {480 * first + then}+{then}x119" if then != first else f"0+{first}x600"
        )
        for outcome, first, then in (("accepted", before, since), ("rejected", 600 - before, 600 - since))
    }


_MODE = 'outrider_completions_total{instance="c:8080",outrider_mode="GENERATION_MODE_%s"}'
_REQUESTS = 'gen_ai_server_request_duration_seconds_count{instance="c:8080"%s}'

FIRING: dict[str, tuple[dict[str, str], str]] = {
    "OutriderAcceptanceCollapsed": (
        {
            f"outrider_spec_decode_num_draft_tokens_total{_PAIR}": "0+600x600",
            f"outrider_spec_decode_num_accepted_tokens_total{_PAIR}": "0+480x480 230520+120x119",
        },
        "10h",
    ),
    "OutriderTenantAcceptanceCollapsed": (
        scored(f'outrider_token_name="ann",{_GREEDY}', before=480, since=120),
        "10h",
    ),
    "OutriderTemplateAcceptanceCollapsed": (
        scored(f'outrider_chat_template="default-01234567",{_GREEDY}', before=480, since=120),
        "10h",
    ),
    "OutriderSpeculationPaused": ({'outrider_speculation_paused{instance="c:8080"}': "1x90"}, "80m"),
    "OutriderDegraded": ({_MODE % "DEGRADED": "0+3x60", _MODE % "SPECULATIVE": "0+9x60"}, "40m"),
    "OutriderSessionsMove": (
        {'outrider_replica_moves_total{instance="c:8080",outrider_replica_service="v"}': "0+5x60"},
        "20m",
    ),
    "OutriderRequestsFail": (
        {_REQUESTS % "": "0+90x60", _REQUESTS % ',error_type="WorkerUnavailableError"': "0+10x60"},
        "30m",
    ),
    "OutriderQueueGrows": ({'outrider_num_requests_waiting{instance="v:9464"}': "4x60"}, "20m"),
    "OutriderKvCacheFull": ({'outrider_kv_cache_usage_perc{instance="v:9464"}': "0.99x60"}, "20m"),
    "OutriderDown": ({'up{job="outrider",instance="v:9464"}': "0x60"}, "20m"),
}
"""For each alert series that make it fire, a sample a minute, and when it does."""

_COLLAPSE = FIRING["OutriderAcceptanceCollapsed"][0]
_TENANT = 'outrider_token_name="ann",'
_TEMPLATE = 'outrider_chat_template="default-01234567",'


def sampled_since(labels: str) -> dict[str, str]:
    """For eight hours all is greedy and most of it accepted, and then all is sampled and little is."""
    return {
        _OF % f'{labels}{_GREEDY},outrider_outcome="accepted"': "0+480x480 230400x120",
        _OF % f'{labels}{_GREEDY},outrider_outcome="rejected"': "0+120x480 57600x120",
        _OF % f'{labels}{_SAMPLED},outrider_outcome="accepted"': "0x480 120+120x119",
        _OF % f'{labels}{_SAMPLED},outrider_outcome="rejected"': "0x480 480+480x119",
    }


CAUSES: dict[str, tuple[str, dict[str, str], str]] = {
    "more is sampled": (
        "OutriderAcceptanceCollapsed",
        _COLLAPSE
        | {
            _OF % f'{_GREEDY},outrider_outcome="accepted"': "0+600x480 288000x120",
            _OF % f'{_SAMPLED},outrider_outcome="accepted"': "0x480 600+600x119",
        },
        "higher temperatures",
    ),
    "a template that was not there a day ago": (
        "OutriderAcceptanceCollapsed",
        {
            f"outrider_spec_decode_num_draft_tokens_total{_PAIR}": "0+600x1500",
            f"outrider_spec_decode_num_accepted_tokens_total{_PAIR}": "0+480x1440 691320+120x59",
            _OF % f'outrider_chat_template="default-01234567",{_GREEDY},outrider_outcome="accepted"': "0+600x1440",
            _OF % f'outrider_chat_template="default-89abcdef",{_GREEDY},outrider_outcome="accepted"': (
                "_x1440 0+600x60"
            ),
        },
        "a new chat template",
    ),
    "nothing that can be seen": ("OutriderAcceptanceCollapsed", _COLLAPSE, "other prompts or another draft model"),
    "one tenant's prompts": (
        "OutriderTenantAcceptanceCollapsed",
        scored(f"{_TENANT}{_GREEDY}", before=480, since=120),
        "other prompts",
    ),
    "one tenant samples": ("OutriderTenantAcceptanceCollapsed", sampled_since(_TENANT), "higher temperatures"),
    "other conversations": (
        "OutriderTemplateAcceptanceCollapsed",
        scored(f"{_TEMPLATE}{_GREEDY}", before=480, since=120),
        "other conversations",
    ),
    "conversations sample": ("OutriderTemplateAcceptanceCollapsed", sampled_since(_TEMPLATE), "higher temperatures"),
}
"""What happens, whose alert fires, and the cause that it tells."""

QUIET = {
    f"outrider_spec_decode_num_draft_tokens_total{_PAIR}": "0+600x600",
    f"outrider_spec_decode_num_accepted_tokens_total{_PAIR}": "0+480x600",
    'outrider_speculation_paused{instance="c:8080"}': "0x600",
    _MODE % "SPECULATIVE": "0+9x600",
    'outrider_replica_moves_total{instance="c:8080",outrider_replica_service="v"}': "1x600",
    **scored(f'outrider_token_name="ann",outrider_chat_template="default-01234567",{_GREEDY}', before=480, since=400),
    _REQUESTS % "": "0+100x600",
    _REQUESTS % ',error_type="InvalidRequestError"': "0+50x600",
    'outrider_num_requests_waiting{instance="v:9464"}': "0x600",
    'outrider_kv_cache_usage_perc{instance="v:9464"}': "0.5x600",
    'up{job="outrider",instance="v:9464"}': "1x600",
}
"""A healthy stack, whose clients send what is refused now and then."""


def rules_test(folder: Path, case: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """With what is recorded, and of the alerts those that the case asks for: each is worked out minute by minute."""
    asked = {each["alertname"] for each in case["alert_rule_test"]}
    groups = [
        group | {"rules": [rule for rule in group["rules"] if "record" in rule or rule["alert"] in asked]}
        for group in ALERTS["groups"]
    ]
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    (folder / "test.yaml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [case]})
    )
    command = ("promtool", "test", "rules", "test.yaml")
    environment = os.environ | {"GOGC": "off"}  # it ends before its garbage is worth collecting
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def silence(series: dict[str, str], times: Iterable[str], alerts: Iterable[str]) -> dict[str, Any]:
    """At each of those times none of these alerts fires."""
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [
            {"eval_time": time, "alertname": alert, "exp_alerts": []} for time, alert in product(times, alerts)
        ],
    }


def alert_rules() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for group in ALERTS["groups"] for rule in group["rules"] if "alert" in rule}


@needs_prometheus
@pytest.mark.parametrize("alert", FIRING)
def test_an_alert_fires(alert: str, tmp_path: Path) -> None:
    series, time = FIRING[alert]
    result = rules_test(tmp_path, silence(series, [time], [alert]))
    assert result.returncode == 1, "promtool expected silence, and found an alert"
    told = result.stdout + result.stderr
    assert "exp:[]" in told, told
    assert f'Labels:{{alertname="{alert}"' in told, told


@needs_prometheus
@pytest.mark.parametrize("happens", CAUSES)
def test_an_alert_tells_the_likely_cause(happens: str, tmp_path: Path) -> None:
    alert, series, cause = CAUSES[happens]
    time = "25h" if any("x1440" in values for values in series.values()) else "10h"
    result = rules_test(tmp_path, silence(series, [time], [alert]))
    told = result.stdout + result.stderr
    assert re.findall(r'Labels:\{alertname="(\w+)", cause="([^"]+)"', told) == [(alert, cause)], told


@needs_prometheus
def test_of_a_collapse_that_all_share_tenants_and_templates_say_nothing(tmp_path: Path) -> None:
    series = _COLLAPSE | scored(f'{_TENANT}outrider_chat_template="default-01234567",{_GREEDY}', before=480, since=120)
    alerts = ("OutriderTenantAcceptanceCollapsed", "OutriderTemplateAcceptanceCollapsed")
    result = rules_test(tmp_path, silence(series, ["10h"], alerts))
    assert result.returncode == 0, result.stdout + result.stderr


@needs_prometheus
def test_a_healthy_stack_is_left_alone(tmp_path: Path) -> None:
    result = rules_test(tmp_path, silence(QUIET, ("2h", "9h"), alert_rules()))
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_has_series_that_make_it_fire() -> None:
    assert set(FIRING) == set(alert_rules())


async def until_answered(client: httpx.AsyncClient, url: str) -> None:
    async with asyncio.timeout(200):
        while True:
            try:
                if (await client.get(url)).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.3)


@needs_prometheus
@pytest.mark.usefixtures("forked")
async def test_the_dashboards_and_the_autoscalers_queries_find_data_in_a_running_stack(tmp_path: Path) -> None:
    verify, draft, grpc, http, verify_metrics, draft_metrics, prometheus = (free_port() for _ in range(7))
    python, address = sys.executable, "127.0.0.1:{}".format
    scraped = {"coordinator": http, "verify": verify_metrics, "draft": draft_metrics}
    token = new_token()
    write_tokens(tmp_path / "tokens.json", [TokenEntry(name="ann", sha256=sha256_of(token))])
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(ALERTS))
    (tmp_path / "prometheus.yaml").write_text(
        yaml.safe_dump(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(tmp_path / "rules.yaml")],
                "scrape_configs": [
                    {
                        "job_name": f"outrider-{service}",
                        "static_configs": [{"targets": [address(port)]}],
                        "authorization": {"credentials": token},
                    }
                    for service, port in scraped.items()
                ],
            }
        )
    )
    worker = ("--compile=off", "--num-threads=1")
    async with (
        process(
            *(python, "-m", "verify_service", f"--model={MODELS / 'target'}", f"--listen={address(verify)}"),
            *(f"--metrics={address(verify_metrics)}", *worker),
        ),
        process(
            *(python, "-m", "draft_service", f"--model={MODELS / 'draft'}", f"--listen={address(draft)}"),
            *(f"--metrics={address(draft_metrics)}", *worker),
        ),
        process(
            *(python, "-m", "coordinator", f"--verify={address(verify)}", f"--draft={address(draft)}"),
            *(f"--listen={address(grpc)}", f"--http={address(http)}", "--adaptive-speculation=false"),
            f"--tokens={tmp_path / 'tokens.json'}",
        ),
        process(
            *(
                "prometheus",
                f"--config.file={tmp_path / 'prometheus.yaml'}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                "--enable-feature=exemplar-storage",
            ),
            f"--web.listen-address={address(prometheus)}",
        ),
        httpx.AsyncClient(timeout=60, headers={"authorization": f"Bearer {token}"}) as client,
    ):
        for port in (draft_metrics, verify_metrics, http):
            await until_answered(client, f"http://{address(port)}/readyz")
        await until_answered(client, f"http://{address(prometheus)}/-/ready")
        missing, answers = QUERIES | SCALED, set[str]()
        body = {"model": "target", "prompt": "def main(", "max_tokens": 60, "ignore_eos": True}
        for _ in range(60):
            answer = await client.post(f"http://{address(http)}/v1/completions", json=body)
            assert answer.status_code == httpx.codes.OK, answer.text
            answers.add(answer.headers["x-request-id"])
            for query in list(missing):
                asked = {"query": query.replace("$__rate_interval", "10s")}
                found = await client.get(f"http://{address(prometheus)}/api/v1/query", params=asked)
                if found.json()["data"]["result"]:
                    del missing[query]
            if not missing:
                break
            await asyncio.sleep(0.3)
        assert not missing
        prometheus_api = f"http://{address(prometheus)}/api/v1"
        groups = (await client.get(f"{prometheus_api}/rules")).json()["data"]["groups"]
        assert {rule["name"]: rule["health"] for group in groups for rule in group["rules"]} == dict.fromkeys(
            [rule.get("alert", rule.get("record")) for group in ALERTS["groups"] for rule in group["rules"]], "ok"
        )
        asked = {"query": "gen_ai_server_time_to_first_token_seconds_bucket", "start": "0", "end": "9e9"}
        (shown, *_) = (await client.get(f"{prometheus_api}/query_exemplars", params=asked)).json()["data"]
        trace_id = shown["exemplars"][-1]["labels"]["trace_id"]
        credentials = Credentials(token=token)
        async with GenerationClient(address(grpc), credentials) as ours:
            request, *_ = (await ours.trace(trace_id)).spans
        assert request.attributes["gen_ai.response.id"] in answers
