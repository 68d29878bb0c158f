"""Commands in any order, legal and illegal, on both kinds of worker streams: state machines against real services."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from outrider.core.protocol.messages import DraftWindow
from outrider.core.protocol.naming import Inbound
from outrider.core.protocol.tree import SpeculationTree, path_tokens
from outrider.core.protocol.validation import DRAFT_TOKENS_MAX
from outrider.rpc import wire
from outrider.v1 import common_pb2, draft_pb2, verify_pb2
from tests.engine.tiny_models import VOCAB_SIZE

from .by_hand import PROMPT, REFUSALS, Workers

NODES_MAX = 6
"""In one window: many windows stay below the credit."""

UNDECODABLE = b"\x0a\xff\xff\xff\xff\x7f"

QUICK = settings(
    max_examples=20, stateful_step_count=12, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip

token_ids = st.integers(0, VOCAB_SIZE - 1)


class Machine(RuleBasedStateMachine):
    """What both streams have in common: a command that is illegal ends the stream in words, and it alone."""

    method: str
    workers: Workers

    def __init__(self) -> None:
        super().__init__()
        self.stream = self.workers.stream(self.method)
        self.is_open = False
        self.is_over = False

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

    @precondition(lambda self: not self.is_over)
    @rule()
    def undecodable(self) -> None:
        self.refused(UNDECODABLE)

    @precondition(lambda self: not self.is_over)
    @rule()
    def no_command(self) -> None:
        self.refused(b"")

    @precondition(lambda self: not self.is_over)
    @rule()
    def leave(self) -> None:
        self.stream.cancel()
        self.is_over = True

    @precondition(lambda self: self.takes_commands)
    @rule()
    def half_close(self) -> None:
        self.stream.half_close()
        code, events = self.stream.rest()
        for event in events:
            self.on_event(event)
        assert code is grpc.StatusCode.OK
        self.is_over = True

    @precondition(lambda self: self.takes_commands)
    @rule()
    def read(self) -> None:
        if self.has_more():
            event = self.stream.read()
            assert event is not None
            self.on_event(event)

    def legal(self, command: verify_pb2.VerifyCommand | draft_pb2.DraftCommand) -> None:
        """Sends a command that must not end the stream: if it has ended, then because the session was at its end."""
        if not self.stream.write(command.SerializeToString()):
            self.is_over = True
            assert self.may_have_ended()

    def refused(self, content: bytes) -> None:
        """Sends one that must. A session that has come to its end meanwhile hears no more of it."""
        self.is_over = True
        was_open = self.is_open
        if self.stream.write(content):
            code, events = self.stream.rest()
            for event in events:
                self.on_event(event)
            assert code in REFUSALS or (was_open and self.may_have_ended()), code
        else:
            assert was_open
            assert self.may_have_ended()

    def on_event(self, event: bytes) -> None:
        """Checks it."""
        raise NotImplementedError

    def has_more(self) -> bool:
        """Whether another event is sure to come without another command."""
        raise NotImplementedError

    def may_have_ended(self) -> bool:
        """Whether the session may be at its end by its own rules."""
        return False

    def teardown(self) -> None:
        self.stream.cancel()
        self.workers.check_nothing_is_left()


class VerifyMachine(Machine):
    method = "Verify"

    @precondition(lambda self: self.takes_opening)
    @rule(num_known=st.integers(0, 20), num_tokens=st.integers(1, 60), illegal=st.sampled_from([False] * 5 + [True]))
    def open(self, num_known: int, num_tokens: int, illegal: bool) -> None:
        line = [*PROMPT, *self.workers.expected[:num_known]]
        self.end = len(line) + num_tokens
        self.position = len(line)
        self.num_opened = self.num_nodes = 0
        self.is_finished = False
        opening = verify_pb2.VerifyOpen(
            token_ids=[*line, VOCAB_SIZE] if illegal else line,
            num_prompt_tokens=len(PROMPT),
            max_length=self.end,
            ignore_eos=True,
            max_draft_tokens=8,
            expect_drafts=True,
        )
        self.opening = verify_pb2.VerifyCommand(open=opening)
        if illegal:
            self.refused(self.opening.SerializeToString())
        else:
            self.legal(self.opening)
            self.is_open = True

    @precondition(lambda self: self.takes_commands)
    @rule(data=st.data(), again=st.booleans())
    def drafted(self, data: st.DataObject, again: bool) -> None:
        window = self.window(data)
        self.legal(verify_pb2.VerifyCommand(drafted=window))
        self.num_nodes += len(window.token_ids)
        if again and not self.is_over:
            self.legal(verify_pb2.VerifyCommand(drafted=window))

    @precondition(lambda self: self.takes_commands)
    @rule(data=st.data(), breach=st.sampled_from(["gap", "parent", "token", "log_prob", "lengths", "base"]))
    def breach(self, data: st.DataObject, breach: str) -> None:
        window = self.window(data)
        match breach:
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
        self.refused(verify_pb2.VerifyCommand(drafted=window).SerializeToString())

    @precondition(lambda self: self.takes_commands)
    @rule()
    def drafts_end(self) -> None:
        self.legal(verify_pb2.VerifyCommand(drafts_ended=verify_pb2.DraftsEnded()))

    @precondition(lambda self: self.takes_commands)
    @rule(limit=st.integers(0, 20))
    def limit(self, limit: int) -> None:
        self.legal(verify_pb2.VerifyCommand(draft_limit=verify_pb2.DraftLimit(max_draft_tokens=limit)))

    @precondition(lambda self: self.takes_commands)
    @rule()
    def too_large_a_limit(self) -> None:
        limit = verify_pb2.DraftLimit(max_draft_tokens=DRAFT_TOKENS_MAX + 1)
        self.refused(verify_pb2.VerifyCommand(draft_limit=limit).SerializeToString())

    @precondition(lambda self: self.takes_commands)
    @rule()
    def open_again(self) -> None:
        self.refused(self.opening.SerializeToString())

    def window(self, data: st.DataObject) -> common_pb2.Drafted:
        first_id = self.num_nodes + 1
        count = data.draw(st.integers(1, NODES_MAX))
        right = self.workers.expected[self.position - len(PROMPT)]
        return common_pb2.Drafted(
            base=data.draw(st.integers(len(PROMPT) - 1, self.position - 1)),
            first_id=first_id,
            parent_ids=[data.draw(st.integers(0, node_id - 1)) for node_id in range(first_id, first_id + count)],
            token_ids=[data.draw(st.one_of(st.just(right), token_ids)) for _ in range(count)],
            log_probs=[-0.5] * count,
        )

    def on_event(self, event: bytes) -> None:
        message = verify_pb2.VerifyEvent.FromString(event)
        assert not self.is_finished, "an event after the last one"
        match message.WhichOneof("event"):
            case "opened":
                assert self.num_opened == 0
                assert message.opened.num_line_tokens == self.position
                self.num_opened += 1
            case "verdict":
                assert self.num_opened == 1
                assert message.verdict.position == self.position
                end = self.position + len(message.verdict.token_ids)
                expected = self.workers.expected[self.position - len(PROMPT) : end - len(PROMPT)]
                assert list(message.verdict.token_ids) == expected
                self.position = end
            case "finished":
                assert self.position == self.end
                self.is_finished = True
            case _:
                raise AssertionError("an event that says nothing")

    def has_more(self) -> bool:
        return not self.is_finished

    def may_have_ended(self) -> bool:
        return True


class DraftMachine(Machine):
    method = "Draft"

    @precondition(lambda self: self.takes_opening)
    @rule(credit=st.integers(8, 24), width=st.integers(1, 3), illegal=st.sampled_from([False] * 5 + [True]))
    def open(self, credit: int, width: int, illegal: bool) -> None:
        self.line = list(PROMPT)
        self.tree = SpeculationTree(len(self.line) - 1, self.line[-1])
        self.inbound = Inbound(vocab_size=VOCAB_SIZE, max_live_nodes=credit)
        self.max_length = len(self.line) + 80
        self.num_opened = 0
        opening = draft_pb2.DraftOpen(
            token_ids=self.line,
            num_prompt_tokens=0 if illegal else len(self.line),
            max_run_ahead=credit,
            tree_width=width,
            max_length=self.max_length,
            vocab_size=VOCAB_SIZE,
        )
        self.opening = draft_pb2.DraftCommand(open=opening)
        if illegal:
            self.refused(self.opening.SerializeToString())
        else:
            self.legal(self.opening)
            self.is_open = True

    @precondition(lambda self: self.takes_commands and len(self.line) < 70)
    @rule(data=st.data(), again=st.booleans())
    def commit(self, data: st.DataObject, again: bool) -> None:
        """Along a path that came, or beside all of them."""
        live = list(self.tree.live_nodes())
        along = path_tokens(self.tree.root, data.draw(st.sampled_from(live))) if live else []
        tokens = [*along, *data.draw(st.lists(token_ids, min_size=0 if along else 1, max_size=2))]
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

    @precondition(lambda self: self.takes_commands)
    @rule(token_id=token_ids)
    def gap(self, token_id: int) -> None:
        commit = draft_pb2.Commit(position=len(self.line) + 1, token_ids=[token_id])
        self.refused(draft_pb2.DraftCommand(commit=commit).SerializeToString())

    @precondition(lambda self: self.takes_commands)
    @rule()
    def contradiction(self) -> None:
        commit = draft_pb2.Commit(position=len(self.line) - 1, token_ids=[(self.line[-1] + 1) % VOCAB_SIZE])
        self.refused(draft_pb2.DraftCommand(commit=commit).SerializeToString())

    @precondition(lambda self: self.takes_commands)
    @rule()
    def open_again(self) -> None:
        self.refused(self.opening.SerializeToString())

    def on_event(self, event: bytes) -> None:
        match wire.decode_draft_event(draft_pb2.DraftEvent.FromString(event)):
            case DraftWindow() as window:
                assert self.num_opened == 1
                self.inbound.graft(self.tree, window)  # raises if the window breaks the protocol or the credit
                assert all(node.position < self.max_length for node in self.tree.live_nodes())
            case _:
                assert self.num_opened == 0
                self.num_opened += 1

    def has_more(self) -> bool:
        return self.num_opened == 0


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    running = Workers()
    yield running
    running.close()


@pytest.mark.parametrize("machine", [VerifyMachine, DraftMachine])
def test_any_commands_in_any_order(machine: type[Machine], workers: Workers) -> None:
    machine.workers = workers
    run_state_machine_as_test(machine, settings=QUICK)
