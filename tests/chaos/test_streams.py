"""Commands in any order, legal and illegal, of a session at either kind of worker: state machines, real services."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from outrider.core.protocol.messages import DraftWindow
from outrider.core.protocol.naming import Inbound
from outrider.core.protocol.tree import SpeculationTree, path_tokens
from outrider.rpc import wire
from outrider.rpc.stream_kind import DRAFT, VERIFY, StreamKind
from outrider.v1 import common_pb2, draft_pb2, verify_pb2
from tests.engine.tiny_models import VOCAB_SIZE

from .by_hand import PROMPT, REFUSALS, Workers

NODES_MAX = 6
"""In one window: many windows stay below the credit."""

UNDECODABLE = b"\x0a\xff\xff\xff\xff\x7f"

QUICK = settings(
    max_examples=15, stateful_step_count=12, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip

COMMITS_MAX = 12
"""Of at most five tokens each: they stay within the session's length."""

WAIT_SECONDS = 0.003
"""Some steps of a tiny model."""

token_ids = st.integers(0, VOCAB_SIZE - 1)

CODES = {code.value[0]: code for code in grpc.StatusCode}


class Machine(RuleBasedStateMachine):
    """What both streams have in common: a command that is illegal ends the session in words, and it alone."""

    kind: StreamKind[Any, Any]
    method: str
    ends_by_itself: bool
    """Whether a session comes to its end without another command. When it does is chance: no rule may depend on it."""
    BREACHES: tuple[str, ...]
    """Kinds of illegal commands that this stream has."""
    workers: Workers
    said: Counter[str]
    """Illegal commands by kind."""
    heard: Counter[str]
    """Those of them that were refused."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = self.workers.stream(self.method)
        self.is_open = False
        self.is_over = False
        self.failed: grpc.StatusCode | None = None
        """What the session has failed with."""
        self.opened_with = b""

    @property
    def takes_commands(self) -> bool:
        return self.is_open and not self.is_over

    @property
    def takes_opening(self) -> bool:
        return not self.is_open and not self.is_over

    @precondition(lambda self: self.is_over)
    @rule()
    def another_stream(self) -> None:
        self.stream = self.workers.stream(self.method)
        self.is_open = self.is_over = False
        self.failed = None

    @precondition(lambda self: self.takes_opening)
    @rule(data=st.data())
    def open(self, data: st.DataObject) -> None:
        """Mostly as it should be."""
        opening = self.opening(data)
        match data.draw(st.sampled_from(["legal"] * 8 + ["no opening", "bad opening"])):
            case "legal":
                self.legal(opening)
                self.is_open = True
            case "no opening":
                self.refused("no opening", data.draw(st.sampled_from([self.empty(), UNDECODABLE])))
            case _:
                opening.open.token_ids.append(VOCAB_SIZE)
                self.refused("bad opening", self.wrapped(opening))

    @precondition(lambda self: self.takes_commands)
    @rule(data=st.data())
    def break_a_rule(self, data: st.DataObject) -> None:
        """A command that is illegal here."""
        match data.draw(st.sampled_from(["undecodable", "no command", "second opening", *self.BREACHES])):
            case "undecodable":
                self.refused("undecodable", UNDECODABLE)
            case "no command":
                self.refused("no command", self.empty())
            case "second opening":
                self.refused("second opening", self.opened_with)
            case breach:
                self.refused(breach, self.wrapped(self.breach(breach, data)))

    @precondition(lambda self: self.takes_commands)
    @rule()
    def leave(self) -> None:
        self.stream.cancel()
        self.is_over = True

    @precondition(lambda self: self.takes_commands)
    @rule()
    def close(self) -> None:
        """Ends the session and then the stream."""
        self.is_over = True
        assert self.stream.write(self.kind.commands_type(closed=[0]).SerializeToString())
        self.stream.half_close()
        assert self.rest() is grpc.StatusCode.OK

    @precondition(lambda self: self.takes_commands)
    @rule()
    def half_close(self) -> None:
        self.is_over = True
        self.stream.half_close()
        assert self.rest() is grpc.StatusCode.OK

    @precondition(lambda self: self.takes_commands)
    @rule()
    def wait(self) -> None:
        self.stream.wait(WAIT_SECONDS)
        self.look()

    def legal(self, command: verify_pb2.VerifyCommand | draft_pb2.DraftCommand) -> None:
        """Sends a command that must not end the session."""
        assert self.stream.write(self.wrapped(command))
        self.look()

    def refused(self, what: str, content: bytes) -> None:
        """Sends one that must. A session that has come to its end meanwhile hears no more of it."""
        self.is_over = True
        self.said[what] += 1
        assert self.stream.write(content)
        self.stream.half_close()
        if (code := self.rest()) not in REFUSALS:
            assert self.is_open, "an opening was taken that must not be"
            assert self.ends_by_itself, code
        else:
            self.heard[what] += 1

    def rest(self) -> grpc.StatusCode:
        """The session's status or, if it has none, the stream's, once all that came before it is checked."""
        code, messages = self.stream.rest()
        self.check(messages)
        return self.failed or code

    def look(self) -> None:
        """Checks what has come."""
        self.check(self.stream.take())
        assert self.failed is None

    def check(self, messages: Sequence[bytes]) -> None:
        """Checks messages of the session."""
        for content in messages:
            message: Any = self.kind.events_type.FromString(content)
            assert {each.session for each in (*message.events, *message.failed)} <= {0}
            for event in message.events:
                self.on_event(event)
            for failed in message.failed:
                assert self.failed is None
                self.failed = CODES[failed.code]

    def wrapped(self, command: Message) -> bytes:
        """A message with one command."""
        return self.kind.commands_type(commands=[command]).SerializeToString()

    def empty(self) -> bytes:
        """A message with a command that says nothing."""
        message: Any = self.kind.commands_type()
        message.commands.add()
        return message.SerializeToString()

    def opening(self, data: st.DataObject) -> verify_pb2.VerifyCommand | draft_pb2.DraftCommand:
        """A legal one, of which the model then is."""
        raise NotImplementedError

    def breach(self, kind: str, data: st.DataObject) -> verify_pb2.VerifyCommand | draft_pb2.DraftCommand:
        """An illegal command of one of BREACHES."""
        raise NotImplementedError

    def on_event(self, event: Any) -> None:
        """Checks it."""
        raise NotImplementedError

    def teardown(self) -> None:
        self.stream.cancel()
        self.workers.check_nothing_is_left()


class VerifyMachine(Machine):
    kind = VERIFY
    method = "Verify"
    ends_by_itself = True
    BREACHES = ("gap", "parent", "token", "log_prob", "lengths", "base")

    def opening(self, data: st.DataObject) -> verify_pb2.VerifyCommand:
        line = [*PROMPT, *self.workers.expected[: data.draw(st.integers(0, 20))]]
        self.end = len(line) + data.draw(st.sampled_from([3, 30, 90]))
        self.num_line_tokens = self.position = len(line)
        self.num_opened = self.num_nodes = 0
        self.is_finished = False
        opening = verify_pb2.VerifyOpen(
            token_ids=line,
            num_prompt_tokens=len(PROMPT),
            max_length=self.end,
            ignore_eos=True,
            max_draft_tokens=8,
            expect_drafts=True,
        )
        command = verify_pb2.VerifyCommand(open=opening)
        self.opened_with = self.wrapped(command)
        return command

    @precondition(lambda self: self.takes_commands)
    @rule(data=st.data(), again=st.booleans())
    def drafted(self, data: st.DataObject, again: bool) -> None:
        window = self.window(data)
        self.legal(verify_pb2.VerifyCommand(drafted=window))
        self.num_nodes += len(window.token_ids)
        if again:
            self.legal(verify_pb2.VerifyCommand(drafted=window))

    def breach(self, kind: str, data: st.DataObject) -> verify_pb2.VerifyCommand:
        window = self.window(data)
        match kind:
            case "gap":
                window.first_id += 5
            case "parent":
                window.parent_ids[-1] = window.first_id + NODES_MAX
            case "token":
                window.token_ids[-1] = VOCAB_SIZE
            case "log_prob":
                window.log_probs[-1] = 0.5
            case "lengths":
                window.token_ids.append(1)
            case _:
                window.base = self.end + 1000
        return verify_pb2.VerifyCommand(drafted=window)

    @precondition(lambda self: self.takes_commands)
    @rule()
    def drafts_end(self) -> None:
        self.legal(verify_pb2.VerifyCommand(drafts_ended=verify_pb2.DraftsEnded()))

    def window(self, data: st.DataObject) -> common_pb2.Drafted:
        first_id = self.num_nodes + 1
        count = data.draw(st.integers(1, NODES_MAX))
        right = self.workers.expected[self.num_line_tokens - len(PROMPT)]
        return common_pb2.Drafted(
            base=data.draw(st.integers(len(PROMPT) - 1, self.num_line_tokens - 1)),
            first_id=first_id,
            parent_ids=[data.draw(st.integers(0, node_id - 1)) for node_id in range(first_id, first_id + count)],
            token_ids=[data.draw(st.one_of(st.just(right), token_ids)) for _ in range(count)],
            log_probs=[-0.5] * count,
        )

    def on_event(self, event: Any) -> None:
        assert not self.is_finished, "an event after the last one"
        match event.WhichOneof("event"):
            case "opened":
                assert self.num_opened == 0
                assert event.opened.num_line_tokens == self.position
                self.num_opened += 1
            case "verdict":
                assert self.num_opened == 1
                assert event.verdict.position == self.position
                end = self.position + len(event.verdict.token_ids)
                expected = self.workers.expected[self.position - len(PROMPT) : end - len(PROMPT)]
                assert list(event.verdict.token_ids) == expected
                self.position = end
            case "finished":
                assert self.position == self.end
                self.is_finished = True
            case _:
                raise AssertionError("an event that says nothing")


class DraftMachine(Machine):
    kind = DRAFT
    method = "Draft"
    ends_by_itself = False
    BREACHES = ("gap", "contradiction")

    def opening(self, data: st.DataObject) -> draft_pb2.DraftCommand:
        credit = data.draw(st.integers(8, 24))
        self.line = list(PROMPT)
        self.tree = SpeculationTree(len(self.line) - 1, self.line[-1])
        self.inbound = Inbound(vocab_size=VOCAB_SIZE, max_live_nodes=credit)
        self.max_length = len(self.line) + 80
        self.num_opened = self.num_commits = 0
        opening = draft_pb2.DraftOpen(
            token_ids=self.line,
            num_prompt_tokens=len(self.line),
            max_run_ahead=credit,
            tree_width=data.draw(st.integers(1, 3)),
            max_length=self.max_length,
            vocab_size=VOCAB_SIZE,
        )
        command = draft_pb2.DraftCommand(open=opening)
        self.opened_with = self.wrapped(command)
        return command

    @precondition(lambda self: self.takes_commands and self.num_commits < COMMITS_MAX)
    @rule(
        path=st.one_of(st.none(), st.integers(0, 100)),
        beside=st.lists(token_ids, min_size=1, max_size=2),
        again=st.booleans(),
    )
    def commit(self, path: int | None, beside: list[int], again: bool) -> None:
        """Along a path that came, or beside all of them."""
        self.num_commits += 1
        live = list(self.tree.live_nodes())
        tokens = beside if path is None or not live else path_tokens(self.tree.root, live[path % len(live)])[:5]
        position = len(self.line)
        followed = self.tree.commit(tokens).followed
        self.line += tokens
        if followed:
            command = draft_pb2.DraftCommand(commit=draft_pb2.Commit(position=position, token_ids=tokens))
        else:
            command = draft_pb2.DraftCommand(rollback=draft_pb2.Rollback(position=position, token_ids=tokens))
        self.legal(command)
        if again:
            self.legal(command)

    def breach(self, kind: str, data: st.DataObject) -> draft_pb2.DraftCommand:
        position, token_id = len(self.line) + 1, data.draw(token_ids)
        if kind == "contradiction":
            position, token_id = len(self.line) - 1, (self.line[-1] + 1) % VOCAB_SIZE
        return draft_pb2.DraftCommand(commit=draft_pb2.Commit(position=position, token_ids=[token_id]))

    def on_event(self, event: Any) -> None:
        match wire.decode_draft_event(event):
            case DraftWindow() as window:
                assert self.num_opened == 1
                self.inbound.graft(self.tree, window)  # raises if the window breaks the protocol or the credit
                assert all(node.position < self.max_length for node in self.tree.live_nodes())
            case _:
                assert self.num_opened == 0
                self.num_opened += 1


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    running = Workers()
    yield running
    running.close()


@pytest.mark.parametrize("machine", [VerifyMachine, DraftMachine])
def test_any_commands_in_any_order(machine: type[Machine], workers: Workers) -> None:
    machine.workers, machine.said, machine.heard = workers, Counter(), Counter()
    run_state_machine_as_test(machine, settings=QUICK)
    # One kind at a time is tests/e2e/test_refusals.py; here a session may have come to its end before it hears of one.
    assert machine.heard.total() > machine.said.total() / 2
