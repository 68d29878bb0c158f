"""Other systems' servers, played by a script: how they are found, started, asked, and put to rest."""

from __future__ import annotations

import asyncio
import json
import os
import select
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.rivals.llama_cpp import converted, offer
from bench.rivals.options import RivalName, RivalOptions
from bench.rivals.rival import NoRivalError, Rival, rival_mode
from bench.rivals.running import rivals_of, running_rivals
from bench.rivals.server import RivalDiedError
from bench.stack.models import Models
from outrider.cli.child import Observer
from outrider.client import SamplingParams

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("scripted_server.py")
NUM_TOKENS = 40

CONVERTER = """
import sys
from pathlib import Path

class Model:
    def get_vocab_base_pre(self, tokenizer):
        raise NotImplementedError

def main():
    arguments = sys.argv[1:]
    pre_tokenizer = Model().get_vocab_base_pre(None)
    Path(arguments[arguments.index("--outfile") + 1]).write_text(" ".join([pre_tokenizer, *arguments]))
"""

KILLED = """
import sys, time
from pathlib import Path
from bench.rivals.server import RivalServer, server_process
with server_process(RivalServer, [sys.executable, sys.argv[1], "serve"], Path(sys.argv[2]), {}) as server:
    server.wait_until_ready()
    server.pause()
    print(server.process_id, flush=True)
    time.sleep(1000)
"""

GONE_SECONDS = 60.0
"""Far more than it takes the watcher to notice."""


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RivalOptions:
    """Names the script as both systems, and a converter that keeps what it was told."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("bench.rivals.server._PAUSE_SECONDS", 0.02)  # the script answers as soon as Python has started
    executable, converter = tmp_path / "executable", tmp_path / "convert.py"
    executable.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(SCRIPT))} "$@"\n')
    executable.chmod(0o755)
    converter.write_text(CONVERTER)
    return RivalOptions(
        names=(RivalName.LLAMA_CPP, RivalName.VLLM), python=executable, binary=str(executable), convert=converter
    )


@pytest.fixture
def models(tmp_path: Path) -> Models:
    """Folders with something like weights."""
    for name in ("target", "draft"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(name.encode())
    return Models(target=str(tmp_path / "target"), draft=str(tmp_path / "draft"))


def test_each_rival_has_its_arms_with_version_and_flags_but_no_folder(
    options: RivalOptions, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    modes = {rival.mode.name: rival.mode for rival in rivals_of(options, models, NUM_TOKENS)}
    assert list(modes) == [
        *("llama_cpp", "llama_cpp_draft_3", "llama_cpp_draft_3_drawn", "llama_cpp_draft_6", "llama_cpp_draft_6_drawn"),
        *("llama_cpp_ngram_simple", "llama_cpp_ngram_mod"),
        *("vllm", "vllm_draft_2", "vllm_draft_4", "vllm_ngram"),
    ]
    assert all(mode.external for mode in modes.values())
    assert modes["llama_cpp_draft_6"].family == modes["llama_cpp_draft_3"].family != modes["llama_cpp"].family
    assert modes["llama_cpp"].version.startswith("llama.cpp 4242 (abcdef), bf16: GOMP_SPINCOUNT=7 --ctx-size 104")
    assert modes["llama_cpp"].version.endswith("--cache-ram 0")
    assert modes["llama_cpp_draft_3_drawn"].version.endswith("--spec-draft-sampling probabilistic")
    assert "--model-draft draft --spec-draft-n-max 6 --spec-type draft-simple" in modes["llama_cpp_draft_6"].version
    assert modes["vllm"].version.startswith("vLLM 4.2.0: GOMP_SPINCOUNT=7 LD_PRELOAD=libiomp5.so --dtype=bfloat16")
    assert '"model": "draft"' in modes["vllm_draft_2"].version
    assert not any(str(tmp_path) in mode.version for mode in modes.values())


def test_a_python_that_is_named_from_here_is_found_from_elsewhere(
    options: RivalOptions, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert options.python is not None
    monkeypatch.chdir(options.python.parent)
    named = replace(options, names=("vllm",), python=Path(options.python.name))
    assert {rival.command[0] for rival in rivals_of(named, models, NUM_TOKENS)} == {str(options.python)}


async def until_stopped(process_id: int) -> None:
    """Returns when the child of this process is stopped."""
    await asyncio.to_thread(os.waitid, os.P_PID, process_id, os.WSTOPPED | os.WNOWAIT)


async def test_a_server_rests_but_for_its_questions(options: RivalOptions, models: Models) -> None:
    rivals = [rival for rival in rivals_of(options, models, NUM_TOKENS) if rival.mode.name in ("llama_cpp", "vllm")]
    told: dict[str, Any] = {}
    async with running_rivals(rivals, Observer()) as sources:
        for name, source in sources.items():
            for _ in range(2):
                sample = await source.ask([1, 2], SamplingParams(temperature=0.8, seed=4), 3)
                assert sample.num_tokens == 3
                told[name] = json.loads(sample.text.removesuffix(" word word"))
                await until_stopped(told[name]["pid"])
            assert told[name]["number"] == 4, "a question that wakes the server comes before each that counts"
    asked = told["llama_cpp"]["asked"]
    assert {name: asked[name] for name in ("prompt", "temperature", "samplers", "cache_prompt", "verbose")} == {
        "prompt": [1, 2],
        "temperature": 0.8,
        "samplers": ["temperature"],
        "cache_prompt": False,
        "verbose": True,
    }
    assert told["vllm"]["arguments"][:2] == ["-m", "vllm.entrypoints.openai.api_server"]
    for each in told.values():
        with pytest.raises(ProcessLookupError):
            os.kill(each["pid"], 0)


def test_a_stopped_server_does_not_outlive_a_benchmark_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(SCRIPT), str(tmp_path / "log")], stdout=subprocess.PIPE, cwd=ROOT
    ) as benchmark:
        assert benchmark.stdout is not None
        server = os.pidfd_open(int(benchmark.stdout.readline()))
        benchmark.kill()
    assert select.select([server], [], [], GONE_SECONDS)[0], "the server is still there"


async def test_a_server_that_dies_while_it_rests_is_told_of(options: RivalOptions, models: Models) -> None:
    rivals = [rival for rival in rivals_of(options, models, NUM_TOKENS) if rival.mode.name == "llama_cpp"]
    async with running_rivals(rivals, Observer()) as sources:
        sample = await sources["llama_cpp"].ask([1], SamplingParams(), 2)
        os.kill(json.loads(sample.text.removesuffix(" word"))["pid"], signal.SIGKILL)
        with pytest.raises(RivalDiedError, match="llama_cpp does not answer"):
            await sources["llama_cpp"].ask([1], SamplingParams(), 2)


async def test_a_server_that_dies_is_told_of_with_its_last_words() -> None:
    mode = rival_mode("some", "some server", "some 1.0", [])
    rival = Rival(mode=mode, command=[sys.executable, str(SCRIPT), "--dies"], model="m")
    with pytest.raises(RivalDiedError, match=r"(?s)some does not answer.*cannot load the model"):
        async with running_rivals([rival], Observer()):
            pass


def test_a_checkpoint_is_converted_once(options: RivalOptions, models: Models) -> None:
    file = converted(Path(models.target), "bfloat16", options)
    assert file.read_text().startswith(f"gpt-2 {models.target} --outtype bf16 --outfile ")
    assert converted(Path(models.target), "bfloat16", RivalOptions()) == file
    with pytest.raises(NoRivalError, match="--rival-convert"):
        converted(Path(models.target), "float32", RivalOptions())


def test_a_converter_that_fails_is_told_of(options: RivalOptions, models: Models) -> None:
    assert options.convert is not None
    options.convert.write_text("raise SystemExit('unknown architecture')")
    with pytest.raises(NoRivalError, match=r"(?s)--rival-python.*unknown architecture"):
        converted(Path(models.target), "bfloat16", options)


def test_what_is_not_there_is_told_with_what_to_do(models: Models, tmp_path: Path) -> None:
    for given, advice in (
        (RivalOptions(names=(RivalName.VLLM,), python=tmp_path / "none"), "--rival-python"),
        (RivalOptions(names=(RivalName.VLLM,), python=Path(sys.executable)), "--rival-python"),
        (RivalOptions(names=(RivalName.LLAMA_CPP,), binary=str(tmp_path / "none")), "--rival-binary"),
    ):
        with pytest.raises(NoRivalError, match=advice):
            rivals_of(given, models, NUM_TOKENS)


def test_older_and_newer_flags_of_llama_cpp() -> None:
    older = offer("--draft, --draft-n, --draft-max N  number\n--spec-type [none|ngram-cache|ngram-mod]\n  type")
    assert (older.draft_max, older.ngram_kinds) == ("--draft-max", ["ngram-cache", "ngram-mod"])
    oldest = offer("--draft-max N")
    assert (oldest.ngram_kinds, oldest.forget, oldest.drawn) == ([], (), ())
    with pytest.raises(NoRivalError, match="newer"):
        offer("--model FILE")
