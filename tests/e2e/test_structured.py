"""Structured output of the bundled pair over HTTP: of the form that was asked for, and what the target alone writes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from pydantic import BaseModel, ConfigDict, Field

from tests.e2e.stack import bundled, stack
from tests.openai.conftest import http_at

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Parameter(BaseModel):
    """Of a function."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern="^[a-z_]{1,12}$")]
    kind: Literal["int", "str", "bool"]
    default: Annotated[int, Field(ge=-9, le=9)] | None


class Function(BaseModel):
    """What is asked for."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern="^[a-z_]{1,12}$")]
    parameters: Annotated[list[Parameter], Field(min_length=1, max_length=3)]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def client() -> AsyncIterator[AsyncOpenAI]:
    async with (
        stack(bundled("target"), bundled("draft")) as running,
        http_at(running) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


async def told(client: AsyncOpenAI, prompt: str, **fields: Any) -> Any:
    asked: dict[str, Any] = {"model": "target", "prompt": prompt, "max_tokens": 300, "temperature": 0.6}
    return await client.completions.create(**asked, **fields)


@pytest.mark.parametrize("seed", range(3))
async def test_json_of_a_schema_is_what_the_target_alone_writes(client: AsyncOpenAI, seed: int) -> None:
    prompt, form = "def walk(top, topdown=True):\n", {"guided_json": Function.model_json_schema()}
    wide = await told(client, prompt, seed=seed, extra_body=form | {"speculation": {"tree_width": 4}})
    alone = await told(client, prompt, seed=seed, extra_body=form | {"speculation": {"enabled": False}})
    assert wide.choices[0].text == alone.choices[0].text
    assert wide.choices[0].finish_reason == "stop"
    assert Function.model_validate_json(wide.choices[0].text)
    assert wide.model_extra["metrics"]["speculative_decoding"]["num_accepted_draft_tokens"] > 0
    stream = await told(client, prompt, seed=seed, extra_body=form, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == wide.choices[0].text


@pytest.mark.parametrize(
    ("form", "regex"),
    [
        ({"guided_choice": ["yes", "no", "maybe (so)"]}, r"yes|no|maybe \(so\)"),
        ({"guided_regex": r"[0-9]{4}-[0-9]{2}"}, r"[0-9]{4}-[0-9]{2}"),
        (
            {"guided_grammar": 'start: "(" item ("," item){2} ")"\nitem: /[a-z]{1,4}/'},
            r"\([a-z]{1,4}(,[a-z]{1,4}){2}\)",
        ),
    ],
)
async def test_other_forms(client: AsyncOpenAI, form: dict[str, Any], regex: str) -> None:
    assert re.fullmatch(regex, (await told(client, "x = ", seed=1, extra_body=form)).choices[0].text)
