"""A conversation over gRPC: the target's own template makes the prompt, and the tokens are those of that text."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from outrider.client import ChatPrompt, GenerationOptions, gather
from outrider.core.protocol.errors import InvalidRequestError
from outrider.telemetry import names
from outrider.telemetry.setup import set_up
from tests.e2e.stack import MODELS, coordinator, load_tiny, stack, worker

TEMPLATE = (
    "{% for message in messages %}{{ eos_token }}# {{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ eos_token }}# {{ name or 'assistant' }}:{% endif %}"
)
MESSAGES = [{"role": "user", "content": "é 👩‍👩‍👧"}, {"role": "assistant", "content": "import"}]


def templates_told(reader: InMemoryMetricReader) -> set[str]:
    """The chat templates whose drafts are counted."""
    data = reader.get_metrics_data()
    assert data is not None
    metrics = [
        metric for resource in data.resource_metrics for scope in resource.scope_metrics for metric in scope.metrics
    ]
    (scored,) = (metric.data.data_points for metric in metrics if metric.name == names.METRIC_SCORED_TOKENS)
    return {str((point.attributes or {})[names.CHAT_TEMPLATE]) for point in scored}


async def test_a_conversation_is_the_text_that_the_template_makes_of_it(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(MODELS / "draft", tmp_path / "model"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    said = "<|endoftext|># user: é 👩‍👩‍👧\n<|endoftext|># assistant: import"
    prompts = {
        f"{said}\n<|endoftext|># assistant:": ChatPrompt(messages=MESSAGES),
        f"{said}\n<|endoftext|># me:": ChatPrompt(messages=MESSAGES, chat_template_kwargs={"name": "me"}),
        said: ChatPrompt(messages=MESSAGES, add_generation_prompt=False, continue_final_message=True),
    }
    options = GenerationOptions(max_tokens=6)
    reader = InMemoryMetricReader()
    telemetry = set_up("coordinator", environ={}, metric_reader=reader)
    async with stack(load_tiny(folder), None, telemetry=telemetry) as running:
        for text, prompt in prompts.items():
            assert await running.service.render(prompt) == text
            expected = await gather(running.client.generate(text, options, add_special_tokens=False))
            answer = await gather(running.client.generate(prompt, options))
            assert answer.started.prompt_token_ids == expected.started.prompt_token_ids
            assert answer.completions[0].token_ids == expected.completions[0].token_ids
        assert templates_told(reader) == {"", running.service.chat_template().title()}
        with pytest.raises(InvalidRequestError, match="messages: must not be empty"):
            await gather(running.client.generate(ChatPrompt(messages=[]), options))


async def test_a_target_without_a_template_says_so(tmp_path: Path) -> None:
    async with stack(load_tiny(MODELS / "draft"), None) as running:
        with pytest.raises(InvalidRequestError, match=r"no chat template, .* use completions"):
            await gather(running.client.generate(ChatPrompt(messages=MESSAGES)))


async def test_tools_are_offered_where_their_calls_can_be_told(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(MODELS / "draft", tmp_path / "model"))
    (folder / "chat_template.jinja").write_text("{{ tools | tojson }}")
    prompt = ChatPrompt(messages=MESSAGES, tools=[{"type": "function", "function": {"name": "f"}}])
    async with worker(load_tiny(folder)) as verify:
        async with coordinator(verify.address, "") as running:
            with pytest.raises(InvalidRequestError, match="does not tell how the model writes calls"):
                await running.service.render(prompt)
        async with coordinator(verify.address, "", tool_call_parser="mistral") as running:
            assert "function" in await running.service.render(prompt)
            assert running.service.tool_call_parser("{{ tools }}") == "mistral"
