"""Metrics as Prometheus reads them: by its own parser."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from outrider.core.coordinate.events import Usage
from outrider.core.coordinate.statistics import SpeculationStatistics
from outrider.core.protocol.messages import ModelInfo, WorkerLoad
from outrider.telemetry.exposition import VLLM_NAMES, Exposition
from outrider.telemetry.metrics import POSITIONS_MAX, StepTime
from outrider.telemetry.setup import set_up

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"

STATISTICS = SpeculationStatistics(
    num_rounds=4,
    num_draft_tokens=9,
    num_accepted_tokens=4,
    verify_ms=1500.0,
    drafted_by_round=[3, 3, 3, 0],
    accepted_by_round=[3, 0, 1, 0],
)


def scraped(exposition: Exposition) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Each sample's value by its name and labels."""
    families = text_string_to_metric_families(exposition.text().decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value for each in families for sample in each.samples
    }


def everything_told(*, vllm_names: bool) -> Exposition:
    """What a coordinator and a worker would say, in one place."""
    exposition = Exposition(vllm_names=vllm_names)
    instruments = set_up("all", environ={}, exposition=exposition).instruments
    instruments.observe_requests(lambda: 3)
    instruments.observe_load(lambda: WorkerLoad("me", 1, 2, 300, 4096, 1024, 5.0, 700, 60), model="target")
    instruments.observe_memory(
        ModelInfo("target", "llama", 512, "", (0,), 64, 4, 0, "float32", "cpu", 2, "", "", 8 << 30, 3 << 30)
    )
    running = ModelInfo("target", "llama", 512, "", (0,), 64, 4, 0, "float32", "cpu", 2, "")
    instruments.observe_execution(
        lambda: running._replace(attention="native", forward_pass="compiled", token_choice="native")
    )
    instruments.observe_gate(lambda: True)
    instruments.observe_steps(lambda: [StepTime("native", 4, 0.5), StepTime("eager", 1, 2.0)], model="target")
    instruments.add_sessions(1, service="outrider.v1.VerifyService", address="a:1")
    instruments.count_refusal("handshake")
    instruments.count_usage("ann", 7, 8)
    instruments.count_move(service="outrider.v1.VerifyService")
    instruments.count(STATISTICS, model="target", draft_model="draft")
    instruments.count_completion(Usage(num_prompt_tokens=7, num_generated_tokens=8), model="target", mode="SPECULATIVE")
    instruments.record_first_token(0.25, model="target")
    instruments.record_round(0.5, model="target")
    instruments.record_request(0.75, model="target")
    return exposition


def test_counts_gauges_and_histograms_are_told() -> None:
    found = scraped(everything_told(vllm_names=False))
    model = frozenset({("gen_ai_request_model", "target")})
    assert found["outrider_num_requests_running", frozenset()] == 3
    assert found["outrider_num_requests_waiting", model] == 2
    assert found["outrider_kv_cache_usage_perc", model] == 0.75
    assert found["outrider_prompt_tokens_total", model] == 7
    assert found["outrider_generation_tokens_total", model] == 8
    assert found["outrider_completions_total", model | {("outrider_mode", "SPECULATIVE")}] == 1
    both = model | {("outrider_draft_model", "draft")}
    assert found["outrider_spec_decode_num_drafts_total", both] == 3
    assert found["outrider_spec_decode_num_draft_tokens_total", both] == 9
    assert found["outrider_spec_decode_num_accepted_tokens_total", both] == 4
    assert found["outrider_verify_time_seconds_total", both] == 1.5
    assert found["outrider_inter_token_latency_seconds_bucket", model | {("le", "0.3")}] == 0
    assert found["outrider_inter_token_latency_seconds_bucket", model | {("le", "0.5")}] == 1
    assert not any(name.startswith("vllm:") for name, _ in found)


def test_steps_are_told_by_their_way_through_the_model() -> None:
    found = scraped(everything_told(vllm_names=False))
    native, eager = (
        frozenset({("gen_ai_request_model", "target"), ("outrider_path", path)}) for path in ("native", "eager")
    )
    assert (found["outrider_steps_total", native], found["outrider_step_time_seconds_total", native]) == (4, 0.5)
    assert (found["outrider_steps_total", eager], found["outrider_step_time_seconds_total", eager]) == (1, 2.0)


def test_a_completion_is_told_with_the_state_of_its_drafter() -> None:
    exposition = Exposition()
    instruments = set_up("all", environ={}, exposition=exposition).instruments
    instruments.count_completion(Usage(7, 8), model="target", mode="DEGRADED", drafter="lost")
    labels = {("gen_ai_request_model", "target"), ("outrider_mode", "DEGRADED"), ("outrider_drafter", "lost")}
    assert scraped(exposition)["outrider_completions_total", frozenset(labels)] == 1


def test_the_page_names_everything_that_is_told_and_nothing_else() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| .* \| (?:`(vllm:\w+)`|-) \|$", PAGE.read_text(), re.MULTILINE)
    families = [*text_string_to_metric_families(everything_told(vllm_names=False).text().decode())]
    assert {(name, kind) for name, kind, _ in rows} == {(each.name, each.type) for each in families} - {
        ("target_info", "gauge")
    }
    assert {name: vllm for name, _, vllm in rows if vllm} == VLLM_NAMES


def test_accepted_tokens_are_told_by_their_position() -> None:
    found = scraped(everything_told(vllm_names=False))
    name = "outrider_spec_decode_num_accepted_tokens_per_pos_total"
    by_position = {dict(labels)["position"]: value for (each, labels), value in found.items() if each == name}
    assert by_position == {"0": 2, "1": 1, "2": 1}


def test_positions_far_out_are_one() -> None:
    exposition = Exposition()
    instruments = set_up("all", environ={}, exposition=exposition).instruments
    instruments.count(SpeculationStatistics(accepted_by_round=[POSITIONS_MAX + 2]), model="target", draft_model="draft")
    name = "outrider_spec_decode_num_accepted_tokens_per_pos_total"
    by_position = {dict(labels)["position"]: each for (n, labels), each in scraped(exposition).items() if n == name}
    assert len(by_position) == POSITIONS_MAX
    assert by_position[str(POSITIONS_MAX - 1)] == 3


def test_vllms_names_tell_the_same() -> None:
    found = scraped(everything_told(vllm_names=True))
    ours = {name for name, _ in found if not name.startswith("vllm:")}
    for family, name in VLLM_NAMES.items():
        told = {each for each in ours if each.removeprefix(family) in ("", "_total", "_bucket", "_sum", "_count")}
        assert told, f"nothing is called {family} any more"
        for (each, labels), value in list(found.items()):
            if each in told:
                renamed = {("model_name" if label == "gen_ai_request_model" else label, text) for label, text in labels}
                assert found[name + each.removeprefix(family), frozenset(renamed)] == value
    both = frozenset({("model_name", "target"), ("outrider_draft_model", "draft")})
    assert found["vllm:spec_decode_num_draft_tokens_total", both] == 9
    assert found["vllm:num_requests_waiting", frozenset({("model_name", "target")})] == 2
