"""An answer in choices: what completions and chat have in common, whole and streamed."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from coordinator.interleave import interleaved
from coordinator.openai.api_error import explained
from coordinator.openai.choice import Choice, Piece
from coordinator.openai.choices_position import ChoicesPosition
from coordinator.openai.connection import COMMENT, DONE, data, first_headers
from coordinator.openai.event_id import needs_stream
from coordinator.openai.generation_body import ChoicesBody
from coordinator.openai.reported_round import ReportedRound, reported
from coordinator.openai.steps import Steps, metrics, mode, timings
from coordinator.service import GenerationService
from outrider.core.coordinate.events import Event, Finished, Started, Token, Tokens
from outrider.core.coordinate.round import Round
from outrider.core.protocol.chat_prompt import ChatPrompt
from outrider.core.protocol.messages import ModelInfo, TokenOrigin, TraceContext
from outrider.core.protocol.options import GenerationOptions, Prompt


class Shape(Protocol):
    """How one of OpenAI's interfaces writes choices."""

    id_prefix: str
    whole_object: str
    chunk_object: str

    def echo(self, choice: Choice) -> str:
        """The text in front of a choice's own."""
        ...

    def text(self, event: Tokens) -> str:
        """A round's text."""
        ...

    def chunk_choice(self, piece: Piece) -> dict[str, Any] | None:
        """A piece of a choice in a stream, as far as the interfaces differ; None if it has nothing to tell."""
        ...

    def whole_choice(self, choice: Choice, text: str, tokens: Sequence[Token]) -> dict[str, Any]:
        """A whole choice, as far as the interfaces differ."""
        ...

    def root(self, choice: Choice) -> dict[str, Any]:
        """What stands beside the choices of a whole answer, or of the chunk that is a choice's first."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request, ready for the service."""

    prompts: Sequence[Prompt | ChatPrompt]
    options: GenerationOptions
    body: ChoicesBody
    caller: TraceContext
    last_event_id: str | None = None
    """What the client says that it has of the answer, which was streamed before."""


class Answer:
    """The answer to one request."""

    def __init__(self, service: GenerationService, target: ModelInfo, asked: Asked, shape: Shape) -> None:
        """Raises ApiError if the answer cannot be continued where its client says."""
        self._service = service
        self._target = target
        self._asked = asked
        self._shape = shape
        self._created = int(time.time())
        self._request_id = ""
        self._headers: dict[str, str] = {}
        self._choices: dict[int, Choice] = {}
        self._position: ChoicesPosition | None = None
        if asked.body.stream:
            self._position = ChoicesPosition(
                asked.last_event_id, len(asked.prompts), self._num_completions, asked.body, target
            )
            if (had := self._position.had) is not None:
                self._created, self._request_id = had.created, had.request_id
        elif asked.last_event_id is not None or asked.body.received_token_ids is not None:
            raise needs_stream()

    async def whole(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The answer in one piece, and its headers. Raises ApiError."""
        texts: dict[int, list[str]] = defaultdict(list)
        tokens: dict[int, list[Token]] = defaultdict(list)
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                assert isinstance(piece, Piece), "reports are refused"
                texts[piece.choice.index].append(piece.text)
                tokens[piece.choice.index] += piece.tokens
        choices = [self._choices[index] for index in sorted(self._choices)]
        told = [
            self._choice(choice, self._shape.whole_choice(choice, "".join(texts[choice.index]), tokens[choice.index]))
            for choice in choices
        ]
        root = self._root(self._shape.whole_object, told)
        root |= {"usage": self._usage(), "metrics": None, **self._shape.root(choices[0])}
        if len(choices) == 1:
            root |= self._told_of(choices[0])
        how = mode([choice.finished for choice in choices if choice.finished is not None])
        return root | {"speculation": how.body}, self.headers() | how.headers

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The answer as server-sent events, one for each round of each choice. Raises ApiError."""
        shape, include_usage = self._shape, self._asked.body.include_usage
        may_be_silent = self._position is not None and self._position.is_written_anew
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                if isinstance(piece, ReportedRound):
                    root = self._root(shape.chunk_object, []) | {"outrider": {"round": piece._asdict()}}
                    yield data(root, self._event_id)
                    continue
                choice = piece.choice
                told = shape.chunk_choice(piece)
                if told is None or piece.is_had:
                    if piece.is_had and may_be_silent:  # writing anew what the client has may take a while
                        may_be_silent = False
                        yield COMMENT
                    continue
                root = self._root(shape.chunk_object, [self._choice(choice, told)])
                if piece.is_first:
                    root |= shape.root(choice)
                if choice.finished is not None:
                    root |= {**self._told_of(choice), "speculation": mode([choice.finished]).body}
                if include_usage:
                    root["usage"] = None
                yield data(root, self._event_id)
        if include_usage and not (self._position is not None and self._position.on_last()):
            root = self._root(shape.chunk_object, [])
            (only, *others) = self._choices.values()
            yield data(root | {"usage": self._usage(), **({} if others else self._told_of(only))}, self._event_id)
        yield DONE

    def headers(self) -> dict[str, str]:
        """Headers that are known when the first piece is."""
        return self._headers

    async def _pieces(self) -> AsyncGenerator[Piece | ReportedRound]:
        """Raises ApiError."""
        asked, service = self._asked, self._service
        with explained(asked.body.names):
            streams = [
                service.generate(prompt, self._options(number), caller=asked.caller)
                for number, prompt in enumerate(asked.prompts)
            ]
            async with aclosing(interleaved(streams)) as events:
                async for prompt, event in events:
                    for piece in self._on_event(prompt, event) if event is not None else ():
                        yield piece
                    if isinstance(event, Started):
                        for piece in await self._received(prompt, event):
                            yield piece

    def _on_event(self, prompt: int, event: Event) -> Iterable[Piece | ReportedRound]:
        if isinstance(event, Started):
            self._request_id = self._request_id or event.request_id
            if self._position is not None:
                self._position.on_started(prompt, event, self._created, self._request_id)
            self._headers = self._headers or first_headers(event)
            for completion in range(self._num_completions):
                index = prompt * self._num_completions + completion
                self._choices[index] = Choice(index, prompt, completion, event, self._steps())
            return
        choice = self._choices[prompt * self._num_completions + event.completion]
        if isinstance(event, Round):
            assert choice.latest is not None
            if self._position is None or not self._position.on_reported(choice.index):
                yield reported(choice.index, choice.latest, event)
            return
        echo = "" if choice.has_begun else self._shape.echo(choice)
        if isinstance(event, Finished):
            choice.finished = event
            is_had = self._position is not None and self._position.on_finished(choice.index)
            yield choice.piece(echo + event.text, (), is_had=is_had)
            return
        choice.steps.on_round(event)
        choice.latest = event
        yield from self._on_tokens(choice, event, echo)

    def _on_tokens(self, choice: Choice, event: Tokens, echo: str) -> Iterable[Piece]:
        parts = [(event, False)] if self._position is None else self._position.on_tokens(choice.index, event)
        for part, is_had in parts:
            yield choice.piece(echo + self._shape.text(part), part.tokens, is_had=is_had)
            echo = ""

    async def _received(self, prompt: int, started: Started) -> Sequence[Piece]:
        """What the client has of a prompt's choices and brings: nothing that is to be told, and all that what follows
        depends on."""
        pieces: list[Piece] = []
        for choice in self._choices_of(prompt):
            token_ids = () if self._position is None else self._position.received(choice.index)
            if token_ids:
                texts = await self._service.texts(self._asked.options.stop, started.prompt_token_ids, token_ids)
                choice.steps.num_received = len(token_ids)
                pieces += self._on_tokens(choice, _as_round(started, token_ids, texts), self._shape.echo(choice))
        return pieces

    def _choices_of(self, prompt: int) -> Iterable[Choice]:
        first = prompt * self._num_completions
        return (self._choices[index] for index in range(first, first + self._num_completions))

    def _options(self, prompt: int) -> GenerationOptions:
        options = self._asked.options
        return options if self._position is None else self._position.options(prompt, options)

    @property
    def _event_id(self) -> bytes:
        return b"" if self._position is None else self._position.event_id

    @property
    def _num_completions(self) -> int:
        return self._asked.options.num_completions or 1

    def _steps(self) -> Steps:
        return Steps(self._service.max_draft_tokens(self._asked.options), detailed=self._asked.body.detailed)

    def _root(self, kind: str, choices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"{self._shape.id_prefix}{self._request_id}",
            "object": kind,
            "created": self._created,
            "model": self._target.name,
            "system_fingerprint": f"fp_{self._target.identity_sha256[:16]}",
            "choices": choices,
        }

    @staticmethod
    def _choice(choice: Choice, told: Mapping[str, Any]) -> dict[str, Any]:
        return {"index": choice.index, **told, **({} if choice.finished is None else {"seed": choice.seed})}

    @staticmethod
    def _told_of(choice: Choice) -> dict[str, Any]:
        """What is told of a choice that is finished where it stands alone."""
        assert choice.finished is not None
        return {"metrics": metrics(choice.finished, choice.steps), "timings": timings(choice.finished, choice.steps)}

    def _usage(self) -> dict[str, Any]:
        """Token counts of all choices; those of a prompt count once."""
        first = [choice for choice in self._choices.values() if choice.completion == 0]
        usages = [choice.finished.usage for choice in first if choice.finished is not None]
        num_prompt_tokens = sum(usage.num_prompt_tokens for usage in usages)
        num_cached = sum(usage.num_cached_prompt_tokens for usage in usages)
        num_generated = sum(
            choice.finished.usage.num_generated_tokens
            for choice in self._choices.values()
            if choice.finished is not None
        )
        return {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": num_generated,
            "total_tokens": num_prompt_tokens + num_generated,
            "prompt_tokens_details": {"cached_tokens": num_cached},
            **self._predicted(),
        }

    def _predicted(self) -> dict[str, Any]:
        """What became of the prediction, over all choices, if there was one."""
        if self._asked.body.prediction is None:
            return {}
        usages = [choice.finished.usage for choice in self._choices.values() if choice.finished is not None]
        return {
            "completion_tokens_details": {
                "accepted_prediction_tokens": sum(usage.num_accepted_prediction_tokens for usage in usages),
                "rejected_prediction_tokens": sum(usage.num_rejected_prediction_tokens for usage in usages),
            }
        }


def _as_round(started: Started, token_ids: Sequence[int], texts: Sequence[str]) -> Tokens:
    """The first tokens behind the prompt, whose texts are known and nothing else."""
    tokens = tuple(
        Token(token_id, text, TokenOrigin.TARGET, None) for token_id, text in zip(token_ids, texts, strict=True)
    )
    return Tokens(len(started.prompt_token_ids), "".join(texts), tokens, rolled_back=False, num_draft_tokens=0)
