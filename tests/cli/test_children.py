"""Services as sub-processes: readiness, logs, a clean stop, a death in words, and no orphan ever."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from outrider.cli.child import Child, Observer, Phase, ServiceDiedError
from outrider.cli.children import Children, children_of
from outrider.cli.ports import HOST, PortTakenError
from outrider.cli.up import Running, services
from outrider.cli.up_options import UpOptions, choose_models
from tests.cli.stub_service import NAME


class Record(Observer):
    """Remembers everything."""

    def __init__(self) -> None:
        self.phases: list[Phase] = []
        self.lines: list[str] = []
        self.notices: asyncio.Queue[str] = asyncio.Queue()
        self.deaf = asyncio.Event()
        self.compilers: asyncio.Queue[int] = asyncio.Queue()
        """The processes that stubs have started."""
        self.stopping = asyncio.Event()

    def phase(self, name: str, phase: Phase) -> None:
        if not self.phases or self.phases[-1] is not phase:
            self.phases.append(phase)
        if phase is Phase.STOPPING:
            self.stopping.set()

    def log(self, name: str, line: str) -> None:
        self.lines.append(line)
        if line == "stub is deaf":
            self.deaf.set()
        elif line.startswith("stub has started "):
            self.compilers.put_nowait(int(line.split()[-1]))

    def notice(self, text: str) -> None:
        self.notices.put_nowait(text)


def stub(record: Record, manner: str = "obey", name: str = "draft") -> Child:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        address = f"{HOST}:{probe.getsockname()[1]}"
    command = ["tests.cli.stub_service", address, manner]
    return Child(name, command, address=address, health_service=NAME, observer=record)


@contextlib.asynccontextmanager
async def started(*children: Child) -> AsyncIterator[None]:
    try:
        for child in children:
            await child.start()
        yield
    finally:
        for child in children:
            await child.kill()


async def test_a_service_becomes_ready_and_stops_cleanly() -> None:
    record = Record()
    child = stub(record)
    async with started(child):
        await child.ready()
        await child.stop()
        assert child.end.result() == 0
    assert record.lines[:2] == ["stub starts", "stub loads"]
    assert record.lines[-1] == "stub drained"
    assert record.phases[0] is Phase.STARTING
    assert record.phases[-3:] == [Phase.READY, Phase.STOPPING, Phase.ENDED]


async def test_files_in_the_present_folder_are_not_taken_for_ours_or_for_pythons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("asyncio", "grpc", "outrider", "runpy", "signal", "tests", "threading"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the user has a {name}.py')")
    monkeypatch.chdir(tmp_path)
    child = stub(Record())
    async with started(child):
        await child.ready()
        await child.stop()
        assert child.end.result() == 0


async def test_a_service_that_dies_at_start_says_why() -> None:
    child = stub(Record(), "refuse")
    async with started(child):
        with pytest.raises(ServiceDiedError, match=r"exit code 3.*\n.*\n.*\n  stub cannot serve: no such model"):
            await child.ready()


async def test_a_cancelled_stop_kills() -> None:
    """The second Ctrl-C."""
    record = Record()
    child = stub(record, "deaf")
    async with started(child):
        await child.ready()
        await record.deaf.wait()
        stopping = asyncio.create_task(child.stop())
        await record.stopping.wait()
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        assert not child.end.done()
        await child.kill()
        assert child.end.result() == -signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs a way to wait for a process that is not a child")
async def test_what_a_service_has_started_is_killed_with_it() -> None:
    """A compiler holds the pipe of its log open, too."""
    record = Record()
    child = stub(record, "compile")
    async with started(child):
        compiler = os.pidfd_open(await record.compilers.get())
        try:
            await child.kill()
            assert child.end.result() == -signal.SIGKILL
            assert await asyncio.to_thread(select.select, [compiler], [], [])
        finally:
            os.close(compiler)


async def test_the_drafter_can_be_missed_and_the_verifier_cannot() -> None:
    record = Record()
    coordinator, verify, draft = (stub(record, name=name) for name in ("coordinator", "verify", "draft"))
    async with started(coordinator, verify, draft):
        await asyncio.gather(coordinator.ready(), verify.ready(), draft.ready())
        failure = asyncio.create_task(Running(Children([coordinator], [verify], [draft]), record).fail())
        await draft.kill()
        assert "The others go on" in await record.notices.get()
        assert not failure.done()
        await verify.kill()
        with pytest.raises(
            ServiceDiedError, match="the verify service was killed by signal 9, as systems do that run out of memory"
        ):
            await failure


async def test_of_several_verifiers_and_coordinators_the_last_cannot_be_missed() -> None:
    record = Record()
    names = ("coordinator-1", "coordinator-2", "verify-1", "verify-2")
    children = [stub(record, name=name) for name in names]
    async with started(*children):
        await asyncio.gather(*(child.ready() for child in children))
        failure = asyncio.create_task(Running(Children(children[:2], children[2:], []), record).fail())
        for child in (children[2], children[0]):
            await child.kill()
            assert (await record.notices.get()).endswith("The others go on.")
        assert not failure.done()
        await children[1].kill()
        with pytest.raises(ServiceDiedError, match="the coordinator-2 service was killed by signal 9"):
            await failure


def commands_of(**changes: Any) -> dict[str, list[str]]:
    """The command line of each service by its name, for a target and a draft on the CPU."""
    options = UpOptions(
        **{"target": "target", "draft": "draft", "port": 0, "draft_port": 0, "verify_port": 0, **changes}
    )
    children = [child for kind in children_of(options, Observer()) for child in kind]
    assert sorted(child.name for child in children) == sorted(options.names)
    return {child.name: list(child._command) for child in children}


def test_one_service_of_each_kind_is_started_by_default() -> None:
    assert set(commands_of()) == {"coordinator", "draft", "verify"}
    assert set(commands_of(draft=None)) == {"coordinator", "verify"}
    assert "--draft=" in commands_of(draft=None)["coordinator"]
    assert not any("num-threads" in flag for command in commands_of().values() for flag in command)


def test_workers_compile_while_they_serve_and_for_a_comparison_before_it() -> None:
    def choices(**changes: Any) -> set[str]:
        commands = commands_of(**changes)
        return {flag for name in ("verify", "draft") for flag in commands[name] if flag.startswith("--compile=")}

    assert choices() == {"--compile=auto"}
    assert choices(compile_first=True) == {"--compile=first"}, "and not on: where nothing can be compiled it serves"
    assert choices(compile_first=True, target_device="cuda", draft_device="cuda:1") == {"--compile=auto"}
    assert choices(compile_first=True, compiled="on") == {"--compile=on"}


def test_drafters_alone_are_told_how_far_a_pass_guesses_and_only_if_somebody_says_so() -> None:
    def told(**changes: Any) -> dict[str, list[str]]:
        found = {
            name: [flag for flag in command if "parallel" in flag] for name, command in commands_of(**changes).items()
        }
        return {name: flags for name, flags in found.items() if flags}

    assert told() == {}
    assert told(parallel="off") == {"draft": ["--parallel=off"]}
    assert told(parallel="4", num_drafters=2) == {"draft-1": ["--parallel=4"], "draft-2": ["--parallel=4"]}


def test_workers_on_the_cpu_divide_its_memory() -> None:
    def shares(**changes: Any) -> dict[str, list[str]]:
        flags = {
            name: [flag for flag in command if "memory-share" in flag]
            for name, command in commands_of(**changes).items()
        }
        return {name: found for name, found in flags.items() if found}

    assert shares() == {"verify": ["--memory-share=0.500"], "draft": ["--memory-share=0.500"]}
    assert shares(draft=None) == {}
    assert shares(draft="draft,ngram", num_drafters=2, num_verifiers=2)["verify-1"] == ["--memory-share=0.250"]
    assert shares(target_device="cuda") == {}
    assert shares(target_device="cuda", num_drafters=2) == {
        "draft-1": ["--memory-share=0.500"],
        "draft-2": ["--memory-share=0.500"],
    }


def test_workers_on_one_gpu_divide_its_memory() -> None:
    def shares(target_device: str, draft_device: str) -> set[str]:
        commands = commands_of(target_device=target_device, draft_device=draft_device)
        return {flag for command in commands.values() for flag in command if "memory-share" in flag}

    assert shares("cuda", "cuda:0") == shares("cuda:1", "cuda:1") == {"--memory-share=0.500"}
    assert shares("cuda:0", "cuda:1") == set()


def test_counted_ngrams_are_for_verifiers_and_for_drafters_without_a_model() -> None:
    commands = commands_of(ngram_table="counted", draft="draft,ngram")
    assert "--ngram-table=counted" in commands["verify"]
    assert "--ngram-table=" in commands["draft-1"]
    assert "--ngram-table=counted" in commands["draft-2"]


def test_the_bundled_ngrams_belong_to_the_bundled_target() -> None:
    target, draft, table = choose_models(None, None, None, no_draft=False)
    assert [Path(each or "").name for each in (target, draft, table)] == ["target", "draft", "ngrams.safetensors"]
    assert choose_models(None, "mine", "", no_draft=False)[1:] == ("mine", "")
    assert choose_models("mine", None, None, no_draft=False) == ("mine", None, "")
    assert choose_models("mine", "draft", "counted", no_draft=True) == ("mine", None, "counted")


def test_a_pool_has_an_address_for_each_and_every_coordinator_knows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    commands = commands_of(num_verifiers=2, num_drafters=2, num_coordinators=2, draft="draft,ngram")
    assert len(commands) == 8
    models = {name: command[1] for name, command in commands.items() if name.startswith("draft")}
    assert list(models.values()) == ["--model=draft", "--model=draft", "--model=ngram", "--model=ngram"]
    listen = {name: flag[9:] for name, command in commands.items() for flag in command if flag.startswith("--listen=")}
    assert len(set(listen.values())) == 8
    for name in ("coordinator-1", "coordinator-2"):
        assert f"--verify={listen['verify-1']},{listen['verify-2']}" in commands[name]
        assert f"--draft={','.join(listen[f'draft-{number}'] for number in range(1, 5))}" in commands[name]
    for name, cores in {"verify-1": "0,1", "verify-2": "2,3", "draft-1": "4,5", "draft-2": "6,7"}.items():
        assert {f"--cores={cores}", "--num-threads=2"} <= set(commands[name])
    assert "--cores-batch=4,5,6,7" in commands["verify-1"]
    assert not [flag for flag in commands["draft-1"] if flag.startswith("--cores-batch")]
    assert "--cores=4,5,6,7" in commands["draft-3"]
    assert "--cores=4,5,6,7" in commands["coordinator-1"]


def test_in_turn_a_verify_service_has_both_models_and_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    commands = commands_of(in_turn=True, num_coordinators=2)
    assert set(commands) == {"coordinator-1", "coordinator-2", "verify"}
    assert {"--model=target", "--draft-model=draft", "--cores=", "--cores-batch="} <= set(commands["verify"])
    assert not [flag for flag in commands["verify"] if flag.startswith(("--num-threads", "--memory-share"))]
    assert {"--draft=", "--cores="} <= set(commands["coordinator-1"])
    assert not [flag for command in commands_of().values() for flag in command if flag.startswith("--draft-model")]


def test_several_that_draft_in_turn_divide_cores_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    commands = commands_of(in_turn=True, num_verifiers=2)
    for name, cores in {"verify-1": "0,1,2,3", "verify-2": "4,5,6,7"}.items():
        assert {"--draft-model=draft", f"--cores={cores}", "--num-threads=4", "--memory-share=0.500"} <= set(
            commands[name]
        )
    assert {"--draft=", "--cores="} <= set(commands["coordinator"])


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs a way to wait for a process that is not a child")
async def test_a_service_ends_with_a_starter_that_is_killed() -> None:
    starter = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import asyncio\n"
        "from tests.cli.test_children import Record, stub\n"
        "async def main():\n"
        "    child = stub(Record(), 'deaf')\n"
        "    await child.start()\n"
        "    await child.ready()\n"
        "    print(child._process.pid, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())",
        stdout=asyncio.subprocess.PIPE,
    )
    assert starter.stdout is not None
    pid = int(await starter.stdout.readline())
    handle = os.pidfd_open(pid)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(handle, ended.set)
    try:
        assert not ended.is_set()
        starter.kill()
        await starter.wait()
        await ended.wait()
    finally:
        asyncio.get_running_loop().remove_reader(handle)
        os.close(handle)


async def test_a_port_that_is_taken_is_said_before_anything_starts() -> None:
    record = Record()
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        options = UpOptions(target="nowhere", draft=None, port=0, draft_port=0, verify_port=port)
        with pytest.raises(PortTakenError, match=rf"{port}.*--verify-port"):
            async with services(options, record):
                pass
    assert record.phases == []


async def test_a_model_that_is_missing_ends_everything_with_the_reason() -> None:
    record = Record()
    options = UpOptions(target="/nowhere/at/all", draft=None, port=0, draft_port=0, verify_port=0)
    with pytest.raises(ServiceDiedError, match="/nowhere/at/all"):
        async with services(options, record):
            pass
    assert Phase.READY not in record.phases
