"""Compiler: grammars of requests, each tried in a process apart and then compiled in a thread, for one vocabulary."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import structlog

from outrider.core.protocol.errors import QueueFullError, UnsupportedModelError
from outrider.core.protocol.grammar import Grammar
from outrider.grammar import trial
from outrider.grammar.compiled import CompiledGrammar, refusal
from outrider.grammar.state import GrammarState
from outrider.grammar.vocabulary import Vocabulary

COMPILED_MAX = 64
"""Grammars that are kept for the next request with them; a grammar of usual size takes some hundred kilobytes."""

COMPILING_MAX = 64
"""Grammars that are compiled or wait for it; more are refused. One takes milliseconds, at worst a second and a half."""


class GrammarCompiler:
    """Compiles for the tokenizer of one model. To be used on one event loop."""

    def __init__(self, tokenizer_json: bytes, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        """Costs nothing: the vocabulary is read when the first grammar comes."""
        self._told = {
            "tokenizer_json": tokenizer_json.decode(),
            "vocab_size": vocab_size,
            "eos_token_ids": [token_id for token_id in eos_token_ids if token_id < vocab_size],
        }
        self._thread = ThreadPoolExecutor(1, "grammar-compiler")
        self._compiled: OrderedDict[Grammar, CompiledGrammar] = OrderedDict()
        """The one used last at the end."""
        self._compiling: dict[Grammar, asyncio.Future[CompiledGrammar]] = {}
        self._vocabulary: Vocabulary | None = None
        self._process: subprocess.Popen[bytes] | None = None

    async def state(
        self, grammar: Grammar | None, output_token_ids: Sequence[int], *, eos_last: bool = False
    ) -> GrammarState | None:
        """Where a session stands that has written `output_token_ids`; None without a grammar. See `GrammarState`.

        Raises InvalidRequestError for a grammar that cannot be used, or that the output is not of; QueueFullError.
        """
        if grammar is None:
            return None
        state = GrammarState(await self._compile(grammar), eos_last=eos_last)
        if output_token_ids:
            await asyncio.get_running_loop().run_in_executor(self._thread, state.commit, output_token_ids)
        if state.is_lost:
            raise refusal(grammar, "the output so far is not of this grammar; begin again")
        return state

    async def _compile(self, grammar: Grammar) -> CompiledGrammar:
        if (compiled := self._compiled.get(grammar)) is not None and not compiled.is_worn_out:
            self._compiled.move_to_end(grammar)
            return compiled
        if (compiling := self._compiling.get(grammar)) is None:
            if len(self._compiling) >= COMPILING_MAX:
                raise QueueFullError(f"{COMPILING_MAX} grammars wait to be compiled; try again later")
            compiling = asyncio.get_running_loop().run_in_executor(self._thread, self._tried_and_compiled, grammar)
            self._compiling[grammar] = compiling
            compiling.add_done_callback(lambda done: self._keep(grammar, done))
        return await asyncio.shield(compiling)

    def _keep(self, grammar: Grammar, compiling: asyncio.Future[CompiledGrammar]) -> None:
        del self._compiling[grammar]
        if compiling.cancelled() or compiling.exception() is not None:
            return
        self._compiled[grammar] = compiling.result()
        if len(self._compiled) > COMPILED_MAX:
            self._compiled.popitem(last=False)

    def _tried_and_compiled(self, grammar: Grammar) -> CompiledGrammar:
        """Compiler thread only."""
        try:
            vocabulary = self._vocabulary = self._vocabulary or Vocabulary(**self._told)
        except UnsupportedModelError as error:
            raise refusal(grammar, f"{error}; leave the grammar out, or ask for another model") from error
        complaint = self._complaint(grammar)
        if complaint:
            raise refusal(grammar, complaint)
        return CompiledGrammar(grammar, vocabulary)

    def _complaint(self, grammar: Grammar) -> str:
        """What the trial process says; it is started where there is none."""
        process = self._process = self._process or self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(trial.message({"kind": grammar.kind, "source": grammar.source}))
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if answer:
            return json.loads(answer)
        self._process = None
        status = process.wait()
        structlog.get_logger().warning("a grammar was too much for the trial process", kind=grammar.kind, status=status)
        return "takes too long to compile, or is nested too deeply; ask for less, or give its parts bounds"

    def _started(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", trial.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdin is not None
        process.stdin.write(trial.message(self._told))
        return process
