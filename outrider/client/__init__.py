"""The Python client library: `GenerationClient`, the events that its generations yield, and answers made of them."""

from outrider.client.answer import Answer, Completion, gather
from outrider.client.client import GenerationClient
from outrider.client.credentials import NO_CREDENTIALS, Credentials
from outrider.client.retry import NO_RETRY, Retry
from outrider.client.sync import SyncGenerationClient
from outrider.core.coordinate.events import Event, Finished, GenerationMode, Started, Timings, Token, Tokens, Usage
from outrider.core.coordinate.round import DraftStep, NodeFate, Round, RoundNode
from outrider.core.coordinate.server_info import Replica, ServerInfo
from outrider.core.coordinate.statistics import Speculation
from outrider.core.protocol.chat_prompt import ChatPrompt
from outrider.core.protocol.grammar import Grammar, GrammarKind
from outrider.core.protocol.messages import FinishReason, ModelInfo, TokenLogprobs, TokenOrigin, WorkerLoad
from outrider.core.protocol.options import GREEDY, GenerationOptions
from outrider.core.protocol.sampling import SamplingParams
from outrider.rpc.tls_files import TlsFiles
from outrider.rpc.transport import Transport

__all__ = [
    "GREEDY",
    "NO_CREDENTIALS",
    "NO_RETRY",
    "Answer",
    "ChatPrompt",
    "Completion",
    "Credentials",
    "DraftStep",
    "Event",
    "FinishReason",
    "Finished",
    "GenerationClient",
    "GenerationMode",
    "GenerationOptions",
    "Grammar",
    "GrammarKind",
    "ModelInfo",
    "NodeFate",
    "Replica",
    "Retry",
    "Round",
    "RoundNode",
    "SamplingParams",
    "ServerInfo",
    "Speculation",
    "Started",
    "SyncGenerationClient",
    "Timings",
    "TlsFiles",
    "Token",
    "TokenLogprobs",
    "TokenOrigin",
    "Tokens",
    "Transport",
    "Usage",
    "WorkerLoad",
    "gather",
]
