"""Prompts are those of transformers; what cannot be a prompt is refused in words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from coordinator.chat.messages import MESSAGES_MAX
from coordinator.chat.template import ChatTemplate
from outrider.core.protocol.errors import InvalidRequestError
from tests.chat.conversations import PLAIN, TOOLS, WEATHER, Case, for_transformers, user
from tests.chat.templates import SHAPES, SPECIAL, template

CASES = {**PLAIN, **TOOLS}


def rendered(template: ChatTemplate, case: Case) -> str:
    return template.render(
        case.messages,
        case.tools,
        add_generation_prompt=case.add_generation_prompt,
        continue_final_message=case.continue_final_message,
        chat_template_kwargs=case.kwargs,
    )


@cache
def tokenizer_with(source: str, bos_token: str | None, eos_token: str | None) -> PreTrainedTokenizerFast:
    """Transformers' tokenizer with a chat template, and words that do not matter."""
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    return PreTrainedTokenizerFast(
        tokenizer_object=words, chat_template=source, bos_token=bos_token, eos_token=eos_token
    )


def by_transformers(template: ChatTemplate, case: Case, messages: list[dict[str, Any]]) -> str:
    options: dict[str, Any] = {
        "add_generation_prompt": case.add_generation_prompt,
        "continue_final_message": case.continue_final_message,
        **case.kwargs,
    }
    source = template.source(case.tools)
    if any(message["content"] is None for message in messages):
        # apply_chat_template drops what is none, on which DeepSeek's own template then fails.
        return render_jinja_template([messages], case.tools, None, source, **template.special_tokens, **options)[0][0]
    tokenizer = tokenizer_with(source, *map(template.special_tokens.get, SPECIAL))
    return str(tokenizer.apply_chat_template(messages, tools=case.tools, tokenize=False, **options))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("title", CASES)
def test_prompts_are_those_of_transformers(name: str, title: str) -> None:
    case = CASES[title]
    found = template(name)
    messages = for_transformers(case, **SHAPES[name]._asdict())
    if name == "deepseek_v3":
        case = case._replace(tools=None)  # it has no place for them
    try:
        expected = by_transformers(found, case, messages)
    except jinja2.TemplateError as error:
        with pytest.raises(InvalidRequestError, match=re.escape(str(error))):
            rendered(found, case)
    else:
        assert rendered(found, case) == expected


def test_most_conversations_have_a_prompt() -> None:
    for name in ("qwen3", "deepseek_v3"):
        prompts = {rendered(template(name), CASES[title]._replace(tools=None)) for title in CASES}
        assert len(prompts) >= 30


REFUSED: Mapping[str, tuple[dict[str, Any], str]] = {
    "no messages": ({"messages": []}, "must not be empty"),
    "too many messages": ({"messages": [user("a")] * (MESSAGES_MAX + 1)}, "at most 4096 are allowed"),
    "a message that is none": ({"messages": ["hello"]}, r"messages\[0\]: must be an object with a role"),
    "a message without role": ({"messages": [{"content": "a"}]}, r"messages\[0\]: must be an object with a role"),
    "an image": (
        {"messages": [user([{"type": "image_url", "image_url": {"url": "x"}}])]},
        r"messages\[0\].content\[0\]: is of type 'image_url'; only text is served",
    ),
    "a part of no kind": (
        {"messages": [user([{"type": ["text"], "text": "a"}])]},
        r"content\[0\]: is of type .'text'.; only text",
    ),
    "content that is no text": ({"messages": [user(5)]}, "must be a string or a list of parts"),
    "a part without text": ({"messages": [user([{"type": "text"}])]}, r"content\[0\].text: must be a string"),
    "arguments that are no JSON": (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{oops"}}]}]},
        r"tool_calls\[0\].function.arguments: must be a JSON object",
    ),
    "a call without a function": (
        {"messages": [{"role": "assistant", "tool_calls": [{"name": "f"}]}]},
        r"tool_calls\[0\]: must be an object with a function",
    ),
    "a variable that is set elsewhere": (
        {"messages": [user("a")], "chat_template_kwargs": {"messages": [], "chat_template": ""}},
        "must not hold chat_template, messages",
    ),
    "continuing and beginning": (
        {"messages": [user("a")], "continue_final_message": True},
        "excludes add_generation_prompt",
    ),
}


@pytest.mark.parametrize("title", REFUSED)
def test_what_is_no_conversation_is_refused(title: str) -> None:
    arguments, words = REFUSED[title]
    with pytest.raises(InvalidRequestError, match=words):
        template("chatml").render(**arguments)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "text", "name", "x"]), inner, max_size=3)
    ),
    max_leaves=4,
)
PARTS = st.lists(st.fixed_dictionaries({"type": st.just("text") | JSON, "text": st.text(max_size=3) | JSON}) | JSON)
CALLS = st.lists(
    st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": st.just("f") | JSON, "arguments": JSON}) | JSON})
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool"]) | JSON},
        optional={"content": PARTS | JSON, "tool_calls": CALLS | JSON, "reasoning": JSON, "name": JSON},
    )
    | JSON,
    max_size=3,
)


@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral"])
@settings(max_examples=30)
@given(messages=MESSAGES, continues=st.booleans())
def test_whatever_is_sent_becomes_a_prompt_or_a_refusal(name: str, messages: Any, continues: bool) -> None:
    with suppress(InvalidRequestError):
        template(name).render(messages, add_generation_prompt=not continues, continue_final_message=continues)


BROKEN: Mapping[str, tuple[str, str]] = {
    "says so itself": ("{{ raise_exception('only one turn') }}", "template refuses them: only one turn"),
    "is no Jinja": ("{% for %}", "template cannot be read"),
    "misses something": ("{{ messages[0].name.first }}", "fails on them .UndefinedError"),
    "adds what does not add up": ("{{ 1 + messages }}", "fails on them .TypeError"),
    "divides by zero": ("{{ 1 / 0 }}", "fails on them .ZeroDivisionError"),
    "calls itself for ever": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails on them .RecursionError"),
    "is nested without end": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "template cannot be read"),
    "counts too far": ("{% for a in range(10**9) %}{% endfor %}", "fails on them .OverflowError"),
    "writes without end": ("{% for a in range(99999) %}{{ 'x' * 99999 }}{% endfor %}", "may have 1048576 bytes"),
    "reaches for Python's insides": ("{{ messages.__class__.__mro__ }}", "fails on them .SecurityError"),
    "reaches through a function": ("{{ raise_exception.__globals__.os }}", "fails on them .SecurityError"),
    "reaches through a format": ("{{ '{0.__class__.__mro__}'.format(messages) }}", "fails on them .SecurityError"),
    "keeps what is hidden": ("{% set ns = namespace(__class__=1) %}", "fails on them .SecurityError"),
    "changes what it was given": ("{{ messages.append(1) }}", "fails on them .SecurityError"),
    "hides the final message": ("{{ messages[0].content | upper }}", "does not show the final message"),
}


@pytest.mark.parametrize("title", BROKEN)
def test_a_template_that_fails_is_a_refusal_in_words(title: str) -> None:
    source, words = BROKEN[title]
    with pytest.raises(InvalidRequestError, match=words):
        ChatTemplate({"default": source}).render(
            [user("a")], add_generation_prompt=False, continue_final_message=title == "hides the final message"
        )


def test_a_model_without_a_template_is_for_completions() -> None:
    with pytest.raises(InvalidRequestError, match=r"no chat template, .* use completions"):
        ChatTemplate({}).render([user("a")])


def test_a_message_without_text_cannot_be_continued() -> None:
    found = ChatTemplate({"default": "{% if messages[0].content is none %}a call{% endif %}"})
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    assert found.render([call]) == "a call"
    with pytest.raises(InvalidRequestError, match="the final message has no content"):
        found.render([call], add_generation_prompt=False, continue_final_message=True)


def test_tools_without_a_place_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"tools: .* no place for tools"):
        ChatTemplate({"default": "{{ messages[0].content }}"}).render([user("a")], [WEATHER])


def test_a_template_for_tools_is_taken_where_there_are_tools() -> None:
    found = ChatTemplate({"default": "plain", "tool_use": "{{ tools[0].function.name }}"})
    assert found.render([user("a")]) == "plain"
    assert found.render([user("a")], [WEATHER]) == "get_weather"


def test_a_templates_title_changes_with_its_name_and_its_text() -> None:
    found = ChatTemplate({"default": "plain", "tool_use": "{{ tools[0].function.name }}"})
    titles = found.title(), found.title([WEATHER]), ChatTemplate({"default": "plain "}).title()
    assert len({*titles}) == 3
    assert [title.split("-")[0] for title in titles] == ["default", "tool_use", "default"]
    assert ChatTemplate({"default": "plain"}).title([WEATHER]) == found.title()


def test_strings_become_parts_for_a_template_that_knows_parts_alone() -> None:
    source = (
        "{% for message in messages %}{% for part in message['content'] %}<{{ part.text }}>{% endfor %}{% endfor %}"
    )
    assert ChatTemplate({"default": source}).render([user("ab"), user([{"type": "text", "text": "c"}])]) == "<ab><c>"


def test_the_filters_and_functions_of_transformers_are_there() -> None:
    source = (
        "{{ {'b': '<é>', 'a': 1} | tojson(sort_keys=true, separators=(',', ':')) }}"
        "{{ strftime_now('%Y') | length }}"
        "{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ dict(x=1).x }}"
        "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}\n"
        "  {% if true %}\nlast{% endif %}"
    )
    case = Case([user("a")])
    found = ChatTemplate({"default": source})
    assert rendered(found, case) == by_transformers(found, case, [user("a")]) == '{"a":1,"b":"<é>"}42101last'
