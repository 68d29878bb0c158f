"""The Python client library: `GenerationClient` and the events that its generations yield."""

from outrider.client.client import GREEDY, GenerationClient
from outrider.client.events import (
    Event,
    Finished,
    GenerationMode,
    ServerInfo,
    Speculation,
    Started,
    Timings,
    Token,
    Tokens,
    Usage,
)
from outrider.core.messages import FinishReason, ModelInfo, TokenLogprobs, TokenOrigin
from outrider.core.sampling import SamplingParams

__all__ = [
    "GREEDY",
    "Event",
    "FinishReason",
    "Finished",
    "GenerationClient",
    "GenerationMode",
    "ModelInfo",
    "SamplingParams",
    "ServerInfo",
    "Speculation",
    "Started",
    "Timings",
    "Token",
    "TokenLogprobs",
    "TokenOrigin",
    "Tokens",
    "Usage",
]
