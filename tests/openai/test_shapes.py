"""How answers are written: tool calls and reasoning, steps of speculation, the names of tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, cast

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from coordinator.chat.families import require_tool_call_parser
from coordinator.chat.template import ChatTemplate
from coordinator.detokenizer import Detokenizer
from coordinator.openai.chat_body import ChatBody
from coordinator.openai.chat_shape import ChatShape
from coordinator.openai.choice import Choice
from coordinator.openai.connection import first_headers
from coordinator.openai.conversation import Conversation
from coordinator.openai.logprobs import chat_logprobs, completion_logprobs
from coordinator.openai.response_writer import ResponseWriter
from coordinator.openai.responses_body import ResponsesBody
from coordinator.openai.steps import Steps, mode
from coordinator.service import GenerationService
from outrider.core.coordinate.events import Finished, GenerationMode, Started, Timings, Token, Tokens, Usage
from outrider.core.coordinate.statistics import Speculation
from outrider.core.protocol.messages import FinishReason, ModelInfo, TokenLogprobs, TokenOrigin

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}{{ tools }}<think></think><tool_call>"
TOOLS: list[Any] = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
ANSWER = '<think>\nhm</think>\n\nSo:\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
THINK_ID, END_ID = 256, 257
STARTED = Started("r", (1, 2, 3), 7, "")
LOGPROBS = TokenLogprobs(-1.0, (104, 200), (-1.0, float("-inf")))


def byte_tokenizer() -> Tokenizer:
    """Token i is byte i; the tags of reasoning are special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    printable = [ord(each) for each in alphabet if ord(each) < 256]
    order = [*printable, *sorted(set(range(256)) - set(printable))]
    tokenizer = Tokenizer(models.WordLevel(dict(zip(alphabet, order, strict=True)), unk_token=alphabet[0]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<think>", special=True), AddedToken("</think>", special=True)])
    return tokenizer


class Service:
    """As much of the service as a conversation asks for."""

    def chat_template(self) -> ChatTemplate:
        return ChatTemplate({"default": TEMPLATE})

    def detokenizer(self) -> Detokenizer:
        return Detokenizer(byte_tokenizer())

    def tool_call_parser(self, template: str) -> str:
        return require_tool_call_parser(template)


def conversation(tools: Sequence[Any] | None) -> Conversation:
    return Conversation(cast("GenerationService", Service()), [{"role": "user", "content": "x"}], tools)


def rounds(text: str, size: int) -> list[Tokens]:
    """The text's bytes as tokens in rounds, its tags as the special tokens, which no text shows."""
    ids: list[int] = []
    for part in re.split("(</?think>)", text):
        ids += {"<think>": [THINK_ID], "</think>": [END_ID]}.get(part, [*part.encode()])
    tokens = [Token(each, chr(each) if each < 128 else "", TokenOrigin.ACCEPTED, LOGPROBS) for each in ids]
    parts = [tuple(tokens[start : start + size]) for start in range(0, len(tokens), size)]
    return [Tokens(0, "".join(each.text for each in part), part, False, 0) for part in parts]


def finished(reason: FinishReason = FinishReason.EOS, **changes: Any) -> Finished:
    timings = Timings(10.0, 110.0, 0.0, 0.0, 0.0)
    told = {"text": "", "speculation": Speculation(), "mode_reason": "", **changes}
    return Finished(reason=reason, mode=GenerationMode.SPECULATIVE, usage=Usage(3, 11, 1), timings=timings, **told)


def chunks(
    body: dict[str, Any], answer: str, size: int, reason: FinishReason = FinishReason.EOS
) -> list[dict[str, Any]]:
    """What a chat's stream has of one choice."""
    shape = ChatShape(ChatBody.model_validate({"messages": [], **body}), conversation(body.get("tools")))
    choice = Choice(0, 0, 0, STARTED, Steps(0, detailed=False))
    found = [shape.chunk_choice(choice.piece(shape.text(event), event.tokens)) for event in rounds(answer, size)]
    choice.finished = finished(reason)
    return [each for each in (*found, shape.chunk_choice(choice.piece("", ()))) if each is not None]


def whole(body: dict[str, Any], answer: str) -> dict[str, Any]:
    shape = ChatShape(ChatBody.model_validate({"messages": [], **body}), conversation(body.get("tools")))
    choice = Choice(0, 0, 0, STARTED, Steps(0, detailed=False), finished=finished())
    return shape.whole_choice(choice, "".join(map(shape.text, rounds(answer, 3))), ())


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 1000])
def test_tool_calls_and_reasoning_are_told_apart_however_many_tokens_a_round_has(size: int) -> None:
    told = whole({"tools": TOOLS}, ANSWER)
    assert told["finish_reason"] == "tool_calls"
    message = told["message"]
    assert (message["reasoning_content"], message["content"]) == ("hm", "So:")
    (call,) = message["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "add")
    assert json.loads(call["function"]["arguments"]) == {"a": 1}
    deltas = [each["delta"] for each in chunks({"tools": TOOLS}, ANSWER, size)]
    assert [each for each in deltas if "role" in each] == deltas[:1]
    assert "".join(each.get("content") or "" for each in deltas) == "So:"
    assert "".join(each.get("reasoning_content") or "" for each in deltas) == "hm"
    calls = [part for each in deltas for part in each.get("tool_calls", ())]
    assert [part["index"] for part in calls] == [0] * len(calls)
    assert "".join(part["function"]["arguments"] for part in calls) == call["function"]["arguments"]
    assert [part["function"]["name"] for part in calls if "id" in part] == ["add"]


def test_the_last_chunk_says_why_it_ended() -> None:
    assert [each["finish_reason"] for each in chunks({"tools": TOOLS}, ANSWER, 1000)] == [None, "tool_calls"]
    cut = chunks({"tools": TOOLS}, ANSWER[:-20], 1000, FinishReason.LENGTH)
    assert cut[-1]["finish_reason"] == "length"
    assert whole({}, "Hi")["finish_reason"] == "stop"


def test_without_tools_a_call_is_content() -> None:
    message = whole({}, ANSWER)["message"]
    assert message["content"].startswith("So:\n<tool_call>")
    assert "tool_calls" not in message


def test_nothing_is_sent_of_a_round_whose_text_is_held_back() -> None:
    assert [each["delta"].get("content") for each in chunks({"tools": TOOLS}, "a <tool_c", 1)][:1] == ["a"]
    assert len(chunks({"tools": TOOLS}, "<tool_c", 1)) == 1
    assert len(chunks({"tools": TOOLS, "logprobs": True}, "<tool_c", 1)) == 8


def test_a_response_has_an_item_for_reasoning_and_one_for_the_message() -> None:
    body = ResponsesBody.model_validate({"input": "x", "include": ["message.output_text.logprobs"]})
    target = cast("ModelInfo", type("Target", (), {"name": "target"}))
    writer = ResponseWriter(body, target, conversation(None), STARTED, Steps(0, detailed=False), created=1000)
    events = [*writer.begin()]
    for token in rounds("<think>hm</think>So.", 1):
        events += writer.on_token(token)
    events += writer.end(finished())
    kinds = [event["type"].removeprefix("response.") for event in events]
    deltas = "".join(event["delta"] for event in events if "delta" in event)
    assert deltas == "hmSo."
    assert [kind for number, kind in enumerate(kinds) if kind != kinds[number - 1]] == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    reasoning, message = events[-1]["response"]["output"]
    assert (reasoning["type"], reasoning["content"][0]["text"]) == ("reasoning", "hm")
    assert (message["type"], message["content"][0]["text"]) == ("message", "So.")
    assert [event.get("output_index") for event in events[2:-1]] == [0] * 7 + [1] * 8
    assert events[-1]["response"]["usage"]["output_tokens_details"] == {"reasoning_tokens": 3}


def test_log_probabilities_in_both_shapes() -> None:
    detokenizer = Detokenizer(byte_tokenizer())
    tokens = [Token(104, "h", TokenOrigin.ACCEPTED, LOGPROBS), Token(200, "", TokenOrigin.BONUS, LOGPROBS)]
    first, second = chat_logprobs(tokens, detokenizer)["content"]
    assert (first["token"], first["bytes"], first["logprob"]) == ("h", [104], -1.0)
    assert [each["logprob"] for each in first["top_logprobs"]] == [-1.0, -9999.0]
    assert (second["token"], second["bytes"]) == ("\N{REPLACEMENT CHARACTER}", [200])
    assert completion_logprobs(tokens, detokenizer, 5) == {
        "tokens": ["h", "bytes:\\xc8"],
        "token_logprobs": [-1.0, -1.0],
        "top_logprobs": [{"h": -1.0, "bytes:\\xc8": -9999.0}, {"bytes:\\xc8": -9999.0, "h": -1.0}],
        "text_offset": [5, 6],
    }


def test_steps_are_rounds_that_scored_drafts() -> None:
    steps = Steps(3, detailed=True)
    for num_drafted, num_accepted in ((0, 0), (3, 2), (2, 0), (3, 1)):
        origins = [TokenOrigin.ACCEPTED] * num_accepted + [TokenOrigin.RECOVERED]
        steps.on_round(Tokens(0, "", tuple(Token(1, "", each, None) for each in origins), False, num_drafted))
    speculation = Speculation(
        num_rounds=4, num_draft_tokens=8, num_accepted_tokens=5, acceptance_histogram=(2, 0, 1, 1)
    )
    assert steps.speculative_decoding(finished(speculation=speculation)) == {
        "mean_acceptance_length": pytest.approx(1 + 5 / 3),
        "draft_acceptance_rate": 5 / 8,
        "acceptance_histogram": [1, 0, 1, 1],
        "num_spec_steps": 3,
        "num_accepted_draft_tokens": 5,
        "num_draft_tokens": 8,
        "num_spec_tokens": 3,
        "per_step_accepted": [2, 0, 3],  # a stop string hid two of the last step's
        "per_step_drafted": [3, 2, 3],
    }
    assert Steps(0, detailed=False).speculative_decoding(finished()) is None


@pytest.mark.parametrize(("batch_invariant", "told"), [(True, "true"), (False, "false")])
def test_the_first_headers_say_who_was_asked_and_whether_its_tokens_depend_on_others(
    batch_invariant: bool, told: str
) -> None:
    found = first_headers(Started("r", (1,), 7, "", batch_invariant))
    assert found == {"x-request-id": "r", "x-outrider-batch-invariant": told}


@pytest.mark.parametrize(("kv_cache_dtype", "told"), [("auto", None), ("", None), ("fp8", "fp8")])
def test_the_first_headers_say_where_keys_and_values_are_rounded(kv_cache_dtype: str, told: str | None) -> None:
    found = first_headers(Started("r", (1,), 7, "", kv_cache_dtype=kv_cache_dtype))
    assert found.get("x-outrider-kv-cache-dtype") == told


def test_a_reason_is_one_line_of_ascii_in_a_header() -> None:
    told = mode([finished(), finished(mode_reason="no\ndrafter \N{EM DASH} " + "x" * 1000)])
    assert told.body["mode_reason"].startswith("no\ndrafter \N{EM DASH}")
    assert told.body["explanation"][0].startswith("The drafter paused on the way")
    assert told.headers["x-outrider-mode-reason"].startswith("no drafter ? x")
    assert len(told.headers["x-outrider-mode-reason"]) == 512
