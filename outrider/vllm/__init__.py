"""Draft pool for vLLM: a proposer that has Outrider's drafters guess ahead for vLLM's own engine."""

from outrider.vllm.config import PoolConfig
from outrider.vllm.proposer import RemoteProposer

__all__ = ["PoolConfig", "RemoteProposer"]
