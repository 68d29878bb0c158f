"""The coordinator's service in plain values: gRPC is one door to it, and others may be built beside that."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace

from coordinator.admission import Admission
from coordinator.allowance import Allowances
from coordinator.caller import CALLER, Caller
from coordinator.chat.families import require_tool_call_parser
from coordinator.chat.reasoning import behind_reasoning, tags_of
from coordinator.chat.template import ChatTemplate
from coordinator.completions import run_together
from coordinator.config import CoordinatorConfig
from coordinator.detokenizer import Detokenizer
from coordinator.generation import Generation
from coordinator.grpc_links import GrpcLinks
from coordinator.lives import Lives
from coordinator.observation import Observation
from coordinator.renderer import Renderer
from coordinator.request import settle
from coordinator.request_trace import gather_trace
from coordinator.route import Route
from coordinator.workers import Workers
from outrider import PROTOCOL_VERSION, __version__
from outrider.core.coordinate.events import Event, Started
from outrider.core.coordinate.round import RoundReporter
from outrider.core.coordinate.server_info import Replica, ServerInfo
from outrider.core.estimate.speculation_gate import SpeculationGate
from outrider.core.protocol.chat_prompt import ChatPrompt
from outrider.core.protocol.grammar import Grammar
from outrider.core.protocol.messages import NOT_TRACED, ModelInfo, TraceContext
from outrider.core.protocol.options import DEFAULT_OPTIONS, GenerationOptions, Prompt
from outrider.core.protocol.request_trace import RequestTrace
from outrider.core.protocol.validation import GRAMMAR_BYTES_MAX
from outrider.telemetry.setup import Telemetry


class GenerationService:
    """Generates. Every request is checked, counted against the limit, and observed here, by whichever door it came."""

    def __init__(self, config: CoordinatorConfig, workers: Workers, telemetry: Telemetry) -> None:
        self._config = config
        self._workers = workers
        self._telemetry = telemetry
        self._admission = Admission(config.max_requests)
        self._lives = Lives(config.max_request_seconds)
        self._allowances = Allowances()
        self._gate = SpeculationGate(adaptive=config.adaptive_speculation)
        telemetry.instruments.observe_requests(lambda: self._admission.num_running)
        telemetry.instruments.observe_gate(lambda: self._gate.is_open)
        self._renderer = Renderer()

    async def watch(self, on_change: Callable[[bool], None]) -> None:
        """As `Workers.watch`. What was started for this service ends with it."""
        try:
            await self._workers.watch(on_change)
        finally:
            await self._renderer.close()

    def end_all(self) -> None:
        """Ends every request in words that say how to go on: the coordinator is about to stop."""
        self._lives.end_all()

    async def generate(
        self,
        prompt: Prompt | ChatPrompt,
        options: GenerationOptions = DEFAULT_OPTIONS,
        *,
        caller: TraceContext = NOT_TRACED,
        deadline: float | None = None,
    ) -> AsyncGenerator[Event]:
        """Yields Started, then Tokens for each round of each completion, mixed, and Finished as each of them ends.
        A Round follows the Tokens of each round if `options` ask for reports.

        With `options.resume` only what the caller has not received: Started comes again, and nothing of completions
        that have ended.

        The trace continues the `caller`'s, if there is one. `deadline` is the caller's on the monotonic clock: the
        verifier puts sessions that have less time first; to end the iteration by then is up to the caller. Closing the
        iterator (`contextlib.aclosing`) cancels the request at both workers.

        What a token allows whoever asks (`coordinator/caller.py`) bounds the request. Raises InvalidRequestError with
        everything that is wrong with it, QueueFullError if too much runs, RateLimitError if whoever asks uses too much,
        and other OutriderErrors where it cannot be served.
        """
        asker = CALLER.get()
        self._allowances.require(asker)
        target, tokenizer = self._workers.require_target()
        chat_template = ""
        with self._admission.admitted(1, asker):  # while it is rendered and tokenized
            if isinstance(prompt, ChatPrompt):
                chat_template = self.chat_template().title(prompt.tools)
                text = await self.render(prompt)
                sampling = replace(options.sampling, grammar=self._grammar(options.sampling.grammar, prompt, text))
                prompt, options = text, replace(options, add_special_tokens=False, sampling=sampling)
            request = await settle(prompt, options, self._config, target, tokenizer, asker.max_tokens)
        if not self._config.share_prefix_cache:
            request = replace(request, cache_salt=asker.cache_salt)
        numbers = request.unfinished
        with self._admission.admitted(len(numbers), asker), self._spending(asker) as spend:
            spend(len(request.prompt_token_ids), 0)
            route = Route(self._workers, request, target)
            links = GrpcLinks(route)
            request_id = uuid.uuid4().hex
            with (
                Observation(
                    self._telemetry, request_id, request, target, caller, asker.name, chat_template
                ) as observation,
                self._lives.life() as interruption,
            ):
                route.on_placed = observation.on_placed
                generations = [
                    Generation(
                        request.completion(number),
                        session_id=f"{request_id}.{number}" if request.num_completions > 1 else request_id,
                        target=target,
                        decoder=await tokenizer.text_decoder(
                            request.stop, request.prompt_token_ids, request.received[number].token_ids
                        ),
                        links=links,
                        gate=self._gate,
                        max_run_ahead=self._config.max_run_ahead,
                        trace=observation.trace,
                        deadline=deadline,
                    )
                    for number in numbers
                ]
                if options.report_rounds:
                    for number, generation in enumerate(generations):
                        generation.report_by(RoundReporter(number, tokenizer.spell))
                yield Started(
                    request_id,
                    tuple(request.prompt_token_ids),
                    request.sampling.seed,
                    observation.trace_id,
                    target.batch_invariant,
                    target.identity_sha256,
                    target.kv_cache_dtype,
                )
                async with aclosing(run_together(generations, interruption)) as rounds:
                    async for index, emitted in rounds:
                        completion = numbers[index]
                        if emitted is not None:
                            spend(0, len(emitted.emit.token_ids))
                            yield emitted.tokens(completion)
                            if emitted.round is not None:
                                yield emitted.round
                            observation.on_round(completion, emitted)
                        else:
                            generation = generations[index]
                            finished, session = generation.finished(completion), generation.session
                            drafter = session.drafter.name.lower()
                            observation.on_finish(finished, session.statistics, generation.draft_model, drafter)
                            yield finished

    @contextmanager
    def _spending(self, asker: Caller) -> Iterator[Callable[[int, int], None]]:
        """Yields what is to be told of the prompt's and the answer's tokens as the asker uses them."""
        used = [0, 0]

        def spend(num_prompt_tokens: int, num_generated_tokens: int) -> None:
            used[0] += num_prompt_tokens
            used[1] += num_generated_tokens
            self._allowances.spend(asker, num_prompt_tokens + num_generated_tokens)

        try:
            yield spend
        finally:
            if asker.name:
                self._telemetry.instruments.count_usage(asker.name, *used)

    async def render(self, prompt: ChatPrompt) -> str:
        """What the target's chat template makes of a conversation: a text that has its special tokens. Raises what
        `Renderer.render` raises, and WorkerUnavailableError."""
        template = self._workers.require_chat_template()
        text = await self._renderer.render(template, prompt)
        if prompt.tools:
            self.tool_call_parser(template.source(prompt.tools))
        return text

    def _grammar(self, grammar: Grammar | None, conversation: ChatPrompt, prompt: str) -> Grammar | None:
        """The grammar of an answer to a conversation, which may reason before it, in the light of the whole prompt."""
        tags = tags_of(self.chat_template().source(conversation.tools))
        if grammar is None or tags is None or len(grammar.source) > GRAMMAR_BYTES_MAX:  # refused a little later
            return grammar
        return behind_reasoning(
            grammar,
            tags,
            prompt,
            token_ids=self.detokenizer().added_ids(tags),
            eos_token_ids=self.target().eos_token_ids,
        )

    def tool_call_parser(self, template: str) -> str:
        """The name of the family whose calls are looked for in answers to prompts of this template. Raises
        InvalidRequestError if it is not known."""
        return require_tool_call_parser(template, self._config.tool_call_parser)

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids that the target reads for `text`, be they more than its context has room for. Raises what
        `TargetTokenizer.encode` raises, and WorkerUnavailableError."""
        _, tokenizer = self._workers.require_target()
        return await tokenizer.encode(text, add_special_tokens=add_special_tokens)

    async def detokenize(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of token ids. Raises what `TargetTokenizer.decode` raises, and WorkerUnavailableError."""
        _, tokenizer = self._workers.require_target()
        return await tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    async def texts(
        self, stop: Sequence[str], prompt_token_ids: Sequence[int], received_token_ids: Sequence[int]
    ) -> Sequence[str]:
        """The text that became certain with each token that a client has received behind a prompt. Raises what
        `TargetTokenizer.texts` raises, and WorkerUnavailableError."""
        _, tokenizer = self._workers.require_target()
        return await tokenizer.texts(stop, prompt_token_ids, received_token_ids)

    async def tokens(self, token_ids: Sequence[int]) -> list[str]:
        """Each token as the target's vocabulary spells it. Raises what `TargetTokenizer.tokens` raises, and
        WorkerUnavailableError."""
        _, tokenizer = self._workers.require_target()
        return await tokenizer.tokens(token_ids)

    def target(self) -> ModelInfo:
        """The model that is served. Raises WorkerUnavailableError."""
        return self._workers.require_target()[0]

    def detokenizer(self) -> Detokenizer:
        """The target's way from ids to text. Raises WorkerUnavailableError."""
        return self._workers.require_target()[1].detokenizer

    def chat_template(self) -> ChatTemplate:
        """What makes prompts of conversations with the target. Raises WorkerUnavailableError."""
        return self._workers.require_chat_template()

    def max_draft_tokens(self, options: GenerationOptions) -> int:
        """Most draft tokens of a round under valid `options`; 0 if there is no speculation."""
        wanted = options.max_draft_tokens
        return (self._config.max_draft_tokens if wanted is None else wanted) if options.speculate else 0

    async def trace(self, name: str) -> RequestTrace:
        """What became of a request of whoever asks that is over, by its id or its trace's. Raises
        InvalidRequestError if nothing is remembered of it."""
        return await gather_trace(self._telemetry.ring, self._workers, name, CALLER.get())

    def server_info(self) -> ServerInfo:
        """What is served, and whether speculation is possible at present. Raises WorkerUnavailableError."""
        target, _ = self._workers.require_target()
        refusal = self._workers.drafter_refusal()
        return ServerInfo(
            version=__version__,
            protocol_version=PROTOCOL_VERSION,
            target=target,
            draft=self._workers.draft if refusal is None else None,
            target_only_reason="" if refusal is None or target.draft_model else refusal.text,
            num_running=self._admission.num_running,
            replicas=tuple(
                Replica(
                    address=replica.address,
                    service=replica.service,
                    serving=refusal is None,
                    problem="" if refusal is None else refusal.text,
                    model=replica.model,
                    load=replica.load,
                    num_own_sessions=replica.num_own_sessions,
                )
                for replica, refusal in self._workers
            ),
        )
