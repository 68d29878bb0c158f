"""The fields that every request for text has, by OpenAI's and vLLM's names, and what they ask of the service."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from coordinator.openai.api_error import ApiError
from coordinator.openai.body import Body, Fields, Int
from coordinator.openai.output_format import OutputFormat, ResponseFormat, StructuredOutputs, formats, only_one
from outrider.core.protocol.options import GenerationOptions
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.validation import LOGIT_BIAS_ENTRIES_MAX

TEMPERATURE_DEFAULT = 1.0
"""OpenAI's. By gRPC it is 0."""

_TOKEN_ID_KEY: Final = re.compile(r"0|[1-9][0-9]{0,9}")

_TokenId = Annotated[int, Field(ge=0, lt=2**32)]
"""As wide as by gRPC; the service knows the vocabulary."""

_IGNORED: Final = (
    "metadata",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
)

_NEUTRAL: Final[Mapping[str, Any]] = {
    "allowed_token_ids": [],
    "bad_words": [],
    "include_stop_str_in_output": False,
    "length_penalty": 1,
    "min_tokens": 0,
    "priority": 0,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "use_beam_search": False,
}


class SpeculationFields(Fields):
    """How to speculate. It changes how soon tokens come, and no token."""

    enabled: bool | None = None
    max_draft_tokens: Int | None = None
    tree_width: Int | None = None
    detailed: bool | None = None
    """Whether the answer tells of each step."""
    report_rounds: bool | None = None
    """Whether the stream tells of each round what became of the guesses."""


class GenerationBody(Body):
    """A request for text. Bounds are the service's to check."""

    changes_no_token: ClassVar = _IGNORED
    neutral: ClassVar = _NEUTRAL

    temperature: float | None = None
    top_p: float | None = None
    top_k: Int | None = None
    """0 and, as in vLLM, -1 keep all."""
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=LOGIT_BIAS_ENTRIES_MAX)] | None = None
    seed: Int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Int] | None = None
    ignore_eos: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    speculation: SpeculationFields | None = None

    @property
    def max_tokens_in_force(self) -> int | None:
        """Most tokens to generate; None leaves it to the service."""
        raise NotImplementedError

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives beside each token's log-probability; None asks for no log-probabilities."""
        raise NotImplementedError

    @property
    def num_choices(self) -> int | None:
        """Continuations of each prompt; None is one."""
        return None

    def formats(self) -> Iterator[OutputFormat]:
        """All forms that are asked for. Raises ApiError."""
        if self.structured_outputs is not None:
            yield from self.structured_outputs.formats("structured_outputs")
        yield from formats("guided_", self.guided_json, self.guided_regex, self.guided_choice, self.guided_grammar)

    @property
    def output_format(self) -> OutputFormat | None:
        """What an answer must match; None for nothing. Raises ApiError."""
        return only_one([*self.formats()])

    @property
    def names(self) -> Mapping[str, str]:
        """See `Body`."""
        asked = self.output_format
        return {**super().names, **({} if asked is None else {"grammar": asked.field})}

    @property
    def temperature_in_force(self) -> float:
        """OpenAI's default where none is given."""
        return TEMPERATURE_DEFAULT if self.temperature is None else self.temperature

    @property
    def detailed(self) -> bool:
        """Whether the answer tells of each step of speculation."""
        return self.speculation is not None and self.speculation.detailed is True

    @property
    def reports_rounds(self) -> bool:
        """Whether the stream tells of each round."""
        return self.speculation is not None and self.speculation.report_rounds is True

    @property
    def streams_choices(self) -> bool:
        """Whether the answer is a stream of chunks, which may tell of rounds."""
        return False

    def options(self) -> GenerationOptions:
        """What the service is asked for. Raises ApiError."""
        speculation = self.speculation or SpeculationFields()
        if self.reports_rounds and not self.streams_choices:
            raise ApiError(
                "speculation.report_rounds needs a stream of completions or chat: set stream to true",
                param="speculation",
            )
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        return GenerationOptions(
            sampling=self._sampling(),
            draw_seed=self.seed is None,
            max_tokens=self.max_tokens_in_force,
            stop=tuple(stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos is True,
            num_logprobs=self.num_logprobs,
            speculate=speculation.enabled is not False,
            max_draft_tokens=speculation.max_draft_tokens,
            tree_width=speculation.tree_width,
            report_rounds=self.reports_rounds,
            num_completions=self.num_choices,
        )

    def _sampling(self) -> SamplingParams:
        names = ("top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        asked = self.output_format
        return SamplingParams(
            temperature=self.temperature_in_force,
            top_k=0 if self.top_k in {None, -1} else self.top_k or 0,
            logit_bias=tuple(sorted((_token_id(key), bias) for key, bias in (self.logit_bias or {}).items())),
            grammar=None if asked is None else asked.grammar,
            **given,
        )


class StreamOptions(Fields):
    """How to stream."""

    changes_no_token: ClassVar = ("include_obfuscation",)
    neutral: ClassVar = {"continuous_usage_stats": False}

    include_usage: bool | None = None


class PredictedText(Fields):
    """A part of a prediction."""

    type: Literal["text"]
    text: str


class PredictionFields(Fields):
    """What the answer will mostly be: OpenAI's Predicted Outputs."""

    type: Literal["content"]
    content: str | list[PredictedText]

    @property
    def text(self) -> str:
        """All of it."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChoicesBody(GenerationBody):
    """A request for one or several choices, which may be streamed: of completions and of chat."""

    n: Int | None = None
    max_tokens: Int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    response_format: ResponseFormat | None = None
    prediction: PredictionFields | None = None
    received_token_ids: list[list[_TokenId]] | None = None
    """Of each choice what the client has, when it sends the id of its last event with it: nothing of that is written
    anew. Their number is bounded by the body's."""

    def formats(self) -> Iterator[OutputFormat]:
        """See `GenerationBody`."""
        if self.response_format is not None:
            yield from self.response_format.formats("response_format")
        yield from super().formats()

    def options(self) -> GenerationOptions:
        """See `GenerationBody`."""
        return replace(super().options(), prediction="" if self.prediction is None else self.prediction.text)

    @property
    def max_tokens_in_force(self) -> int | None:
        return self.max_tokens

    @property
    def num_choices(self) -> int | None:
        return self.n

    @property
    def streams_choices(self) -> bool:
        return self.stream is True

    @property
    def include_usage(self) -> bool:
        """Whether the last chunk of a stream tells the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage is True


def _token_id(key: str) -> int:
    if not _TOKEN_ID_KEY.fullmatch(key):
        raise ApiError(f"logit_bias: {key[:20]!r} is no token id", param="logit_bias")
    return int(key)
