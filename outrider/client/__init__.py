"""The Python client library: `GenerationClient`, the events that its generations yield, and answers made of them."""

from outrider.client.answer import Answer, Completion, gather
from outrider.client.client import GREEDY, GenerationClient
from outrider.client.events import (
    Event,
    Finished,
    GenerationMode,
    Replica,
    ServerInfo,
    Speculation,
    Started,
    Timings,
    Token,
    Tokens,
    Usage,
)
from outrider.core.protocol.messages import FinishReason, ModelInfo, TokenLogprobs, TokenOrigin, WorkerLoad
from outrider.core.protocol.sampling import SamplingParams

__all__ = [
    "GREEDY",
    "Answer",
    "Completion",
    "Event",
    "FinishReason",
    "Finished",
    "GenerationClient",
    "GenerationMode",
    "ModelInfo",
    "Replica",
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
    "WorkerLoad",
    "gather",
]
