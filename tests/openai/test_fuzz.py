"""Whatever the OpenAPI document allows, and whatever it does not, is answered or refused in OpenAI's shape.

`make fuzz-http` asks fifty times as often.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import pytest_asyncio
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation

from tests.openai.conftest import Served, until_idle

pytestmark = pytest.mark.asyncio(loop_scope="package")

UNHURRIED = (
    HealthCheck.too_slow,
    HealthCheck.filter_too_much,
    HealthCheck.data_too_large,
    HealthCheck.large_base_example,
)
"""Bodies are large, and the machine may be busy."""

NUM_CASES = settings().max_examples // 10
"""For each path and kind of case: 10 by hypothesis's own profile."""

SECONDS_MAX = 60
"""Longest that an answer may take before the test gives up: a fault, not a measurement."""

BODILESS = ("/healthz", "/readyz", "/version", "/v1/models", "/v1/models/{model}")
"""What is asked for with nothing that could be wrong."""

WITH_BODY = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/tokenize", "/detokenize")


Operations = dict[str, APIOperation[Any, Any, Any, Any]]


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def operations(served: Served) -> Operations:
    """By path."""
    schema = await asyncio.to_thread(schemathesis.openapi.from_url, f"{served.url}/openapi.json")
    found = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    return {operation.path: operation for operation in found}


def ask(operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode) -> None:
    """NUM_CASES times; raises what a test raises."""

    @settings(max_examples=NUM_CASES, deadline=None, suppress_health_check=UNHURRIED, database=None)
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Case) -> None:
        if isinstance(case.body, dict) and {"prompt", "messages", "input"} & case.body.keys():
            for name in ("max_tokens", "max_output_tokens", "max_completion_tokens"):
                asked = case.body.get(name)
                if isinstance(asked, int):
                    case.body[name] = min(asked, 2)
                elif asked is None and name == "max_tokens" and operation.path != "/v1/responses":
                    case.body[name] = 2
        response = case.call(timeout=SECONDS_MAX)
        assert response.status_code < 500, case.as_curl_command()
        if response.status_code >= 400:
            (error,) = json.loads(response.content).values()
            assert error.keys() == {"message", "type", "param", "code"}
            assert error["message"], case.as_curl_command()

    check()


async def test_the_document_names_every_path(operations: Operations) -> None:
    assert tuple(operations) == (*BODILESS, *WITH_BODY)


@pytest.mark.parametrize(
    ("path", "mode"),
    [(path, GenerationMode.POSITIVE) for path in (*BODILESS, *WITH_BODY)]
    + [(path, GenerationMode.NEGATIVE) for path in WITH_BODY],
)
async def test_no_case_breaks_the_server(
    served: Served, operations: Operations, path: str, mode: GenerationMode
) -> None:
    await asyncio.to_thread(ask, operations[path], mode)
    await until_idle(served)
