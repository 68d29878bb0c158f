"""Chat templates: published ones, where the folder beside the checkout has them, and small ones in others' shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from coordinator.chat.template import ChatTemplate

REAL = Path(__file__).parents[3] / "shared" / "tokenizers"

CHATML = """\
{%- macro show(content) -%}
{%- if content is string %}{{ content }}{% else %}
{%- for item in content %}{{ item.text }}{% if not loop.last %}|{% endif %}{% endfor %}
{%- endif %}
{%- endmacro -%}
{%- if tools %}<|im_start|>system
{{ tools | tojson(indent=2) }}<|im_end|>
{% endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {%- if loop.previtem.role != 'tool' %}<|im_start|>user
{% endif %}<tool_response>{{ show(message.content) }}</tool_response>
        {%- if loop.last or loop.nextitem.role != 'tool' %}<|im_end|>
{% endif %}
        {%- continue %}
    {%- endif %}
    {%- if message.role == 'assistant' %}<|im_start|>assistant
        {%- generation %}

{{ show(message.content) }}{% for call in message.tool_calls %}
<tool_call>{"name": {{ call.function.name | tojson }}, "arguments": {{ call.function.arguments | tojson }}}</tool_call>
{%- endfor %}<|im_end|>
{% endgeneration %}
    {%- else %}<|im_start|>{{ message.role }}
{{ show(message.content) }}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

LLAMA3 = """\
{{- bos_token }}
{%- set loop_messages = messages %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + (date_string or "none") + "\\n" }}
{%- if tools is not none %}
    {{- 'Answer with {"name": function name, "parameters": dictionary of argument name and its value}.\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
        {{- "\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}<|eot_id|>
{%- for message in loop_messages %}
    {%- if 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """\
{%- set ns = namespace(index=0, system="") %}
{%- if messages[0]["role"] == "system" %}{% set ns.system = messages[0]["content"] %}{% endif %}
{{- bos_token }}
{%- for message in messages if message["role"] != "system" %}
    {%- if message["role"] in ["user", "assistant"] and not message.tool_calls %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("Conversation roles must alternate user and assistant!") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and loop.last %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}{{ tool.function | tojson }}{% if not loop.last %}, {% endif %}{% endfor %}
            {{- "][/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {{- "[INST] " + (ns.system + "\\n\\n" if ns.system and loop.last else "") + message["content"] + "[/INST]" }}
    {%- elif message.tool_calls is defined and message.tool_calls %}
        {{- "[TOOL_CALLS] [" }}
        {%- for call in message.tool_calls %}
            {%- set out = call.function | tojson %}
            {%- if not call.id or call.id | length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- out[:-1] + ', "id": "' + call.id + '"}' + (", " if not loop.last else "") }}
        {%- endfor %}
        {{- "]" + eos_token }}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] + eos_token }}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content | string + ', "call_id": "' + message.tool_call_id + '"}' }}
        {{- "[/TOOL_RESULTS]" }}
    {%- endif %}
{%- endfor %}
"""

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


class Shape(NamedTuple):
    """What a template wants of messages; see `for_transformers`."""

    parts: bool = False
    objects: bool = True
    none: bool = False


SHAPES = {
    "qwen3": Shape(),
    "deepseek_v3": Shape(objects=False, none=True),
    "chatml": Shape(parts=True),
    "llama3": Shape(),
    "mistral": Shape(),
}


def template(name: str) -> ChatTemplate:
    """One of SHAPES; skips the test where it is a published one that is not there."""
    ours = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL}
    if name in ours:
        return ChatTemplate({"default": ours[name]}, SPECIAL)
    path = REAL / name / "tokenizer_config.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    config = json.loads(path.read_text(encoding="utf-8"))
    tokens = {key: config[key] for key in SPECIAL if config.get(key)}
    special = {key: token if isinstance(token, str) else token["content"] for key, token in tokens.items()}
    return ChatTemplate({"default": config["chat_template"]}, special)
