"""Resumption: what a client may say that it has of an answer."""

from __future__ import annotations

import pytest

from coordinator.config import CoordinatorConfig
from coordinator.request import settle
from coordinator.tokenizer import TargetTokenizer
from outrider.core.protocol.errors import InvalidRequestError, ModelMismatchError
from outrider.core.protocol.options import GenerationOptions
from outrider.core.protocol.resume import NOTHING_RECEIVED, ReceivedCompletion, Resume

from .script import TARGET, letters

TOKENIZER = TargetTokenizer(letters())
CONFIG = CoordinatorConfig()  # pyright: ignore[reportCallIssue]
HERE = TARGET.identity_sha256
ENDED = ReceivedCompletion(finished=True)


def received(*token_ids: int) -> ReceivedCompletion:
    return ReceivedCompletion(token_ids=token_ids)


async def test_a_request_goes_on_behind_what_was_received() -> None:
    options = GenerationOptions(
        num_completions=3, max_tokens=4, resume=Resume([received(4, 5), ENDED, received()], HERE)
    )
    request = await settle([1, 2], options, CONFIG, TARGET, TOKENIZER)
    assert list(request.unfinished) == [0, 2]
    assert request.completion(0).received == (received(4, 5),)
    assert request.max_length == 6, "tokens that were received count"


async def test_what_does_not_resume_has_received_nothing() -> None:
    request = await settle([1], GenerationOptions(num_completions=2), CONFIG, TARGET, TOKENIZER)
    assert list(request.received) == [NOTHING_RECEIVED] * 2


@pytest.mark.parametrize("ending", [received(4, 5, 0), received(4, 9), received(4, 5, 6, 7)])
async def test_the_last_token_may_be_the_end(ending: ReceivedCompletion) -> None:
    options = GenerationOptions(max_tokens=4, stop_token_ids=(9,), resume=Resume([ending], HERE))
    assert list((await settle([1], options, CONFIG, TARGET, TOKENIZER)).unfinished) == [0]


@pytest.mark.parametrize(
    ("resume", "words"),
    [
        ([received(4, 5, 6, 7, 8)], "has 5 tokens; max_tokens is 4"),
        ([received(26)], "token id 26 is out of range"),
        ([received(0, 4)], "goes on behind a token that ends the completion"),
        ([received(9, 4)], "goes on behind a token that ends the completion"),
        ([], "has 0 entries; the request has 1 completions"),
        ([received(), received()], "has 2 entries; the request has 1 completions"),
        ([ENDED], "nothing is left to resume"),
        ([ReceivedCompletion(token_ids=[4], finished=True), received()], "must be left out: the completion has ended"),
        ([ReceivedCompletion(num_cached_prompt_tokens=2)], "must be at most 1, the tokens of the prompt"),
    ],
)
async def test_what_cannot_have_been_received_is_refused(resume: list[ReceivedCompletion], words: str) -> None:
    options = GenerationOptions(max_tokens=4, stop_token_ids=(9,), resume=Resume(resume, HERE))
    with pytest.raises(InvalidRequestError, match=words):
        await settle([1], options, CONFIG, TARGET, TOKENIZER)


async def test_end_of_text_tokens_may_be_ignored() -> None:
    options = GenerationOptions(ignore_eos=True, resume=Resume([received(0, 4)], HERE))
    assert (await settle([1], options, CONFIG, TARGET, TOKENIZER)).received == [received(0, 4)]


async def test_the_seed_must_be_said() -> None:
    options = GenerationOptions(draw_seed=True, resume=Resume([received(4)], HERE))
    with pytest.raises(InvalidRequestError, match="must be that of `started`"):
        await settle([1], options, CONFIG, TARGET, TOKENIZER)


async def test_a_text_may_read_otherwise_by_now() -> None:
    options = GenerationOptions(resume=Resume([received(4)], HERE))
    with pytest.raises(InvalidRequestError, match="needs the prompt as token_ids"):
        await settle("b", options, CONFIG, TARGET, TOKENIZER)


async def test_another_target_does_not_go_on() -> None:
    options = GenerationOptions(resume=Resume([received(4)], "of another"))
    with pytest.raises(ModelMismatchError, match="another target than 'target'"):
        await settle([1], options, CONFIG, TARGET, TOKENIZER)


async def test_the_text_goes_on_where_it_was() -> None:
    decoder = await TOKENIZER.text_decoder(["ef"], [1], [3, 4])
    assert decoder.push(6) == "eg", "what was held back comes"
    assert (await TOKENIZER.text_decoder(["ef"], [1], [3, 4, 5])).stopped
    with pytest.raises(InvalidRequestError, match="goes on behind a stop string"):
        await TOKENIZER.text_decoder(["ef"], [1], [3, 4, 5, 6])
