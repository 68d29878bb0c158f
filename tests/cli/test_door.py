"""What the user typed is checked before anything starts, by the services' own settings; the flag is named once."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from outrider.cli import __main__ as command
from outrider.cli import up_options
from outrider.cli.__main__ import app
from outrider.core.protocol.errors import WorkerUnavailableError
from outrider.core.protocol.validation import PROMPT_BYTES_MAX
from outrider.settings import Settings
from tests.house.generated import CONFIGS

MODELS = Path(__file__).parents[2] / "models"


class Ended(NamedTuple):
    exit_code: int
    said: str
    """What was printed, without the frame around errors."""


def outrider(*arguments: str, input: str | bytes | None = None) -> Ended:
    result = CliRunner().invoke(app, arguments, input=input, env={"COLUMNS": "1000", "TERM": "dumb"})
    return Ended(result.exit_code, result.output)


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> None:
        raise AssertionError("the value was not found")

    for name in ("serve", "run_services", "generate_at"):
        monkeypatch.setattr(command, name, start)


@pytest.mark.parametrize("of", ["up", "run"])
@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--target", "/nope"),
        ("--target", "nope"),
        ("--target", "ngram"),
        ("--target", ""),
        ("--target", "a/b/c"),
        ("--target", "models/a--b"),
        ("--target", "models/a b"),
        ("--target", "~nobody-of-this-name"),
        ("--target", "x" * 5000),
        ("--target", str(MODELS / "ngrams.safetensors")),
        ("--draft", "./nope"),
        ("--ngram-table", "/nope"),
        ("--ngram-table", str(MODELS)),
        ("--dtype", "int8"),
        ("--dtype", ""),
        ("--compile", "yes"),
        ("--target-device", "gpu"),
        ("--target-device", "cuda:"),
        ("--draft-device", "cpu:x"),
        ("--parallel", "1"),
        ("--parallel", "17"),
    ],
)
def test_what_a_service_would_refuse_is_found_at_the_door(of: str, flag: str, value: str) -> None:
    code, said = outrider(of, *(["x"] if of == "run" else []), flag, value)
    assert code == 2
    assert said.count(f"'{flag}'") == 1
    assert "--model" not in said


@pytest.mark.parametrize(
    ("flags", "advice"),
    [
        (("--no-draft",), "name one with --draft MODEL, without --no-draft"),
        (("--target", str(MODELS / "target")), "name one with --draft MODEL"),
        (("--draft", "ngram"), "name a draft model with --draft"),
        (("--draft", "ngram,nope"), "name one with --draft"),
        (("--drafters", "2"), "leave --drafters out"),
        (("--draft-device", "cuda"), "leave --draft-device out"),
        (("--target-device", "cuda:1", "--draft-device", "cuda"), "leave --draft-device out"),
        (("--parallel", "off"), "leave --parallel out"),
    ],
)
def test_what_does_not_go_with_drafting_in_turn_is_said_with_what_to_do(flags: tuple[str, ...], advice: str) -> None:
    code, said = outrider("up", "--in-turn", *flags)
    assert code == 2
    assert said.count("'--in-turn'") == 1
    assert advice in said


@pytest.mark.parametrize("of", ["up", "run", "doctor"])
def test_the_draft_model_of_a_verify_service_is_checked(of: str) -> None:
    code, said = outrider(of, *(["x"] if of == "run" else []), "--in-turn", "--draft", "/nope")
    assert code == 2
    assert said.count("'--draft'") == 1


@pytest.mark.parametrize("value", ["nope", "ngram,nope", "ngram,/nope"])
def test_each_of_several_drafts_is_checked(value: str) -> None:
    code, said = outrider("up", "--draft", value)
    assert code == 2
    assert "'--draft'" in said
    assert "nope" in said


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OUTRIDER_MAX_SESSIONS", "0"),
        ("OUTRIDER_MAX_QUEUE", "many"),
        ("OUTRIDER_KV_MEMORY", "5 parsecs"),
        ("OUTRIDER_TREE_WIDTH", "99"),
        ("OUTRIDER_DRAIN_SECONDS", "inf"),
    ],
)
def test_a_variable_that_the_services_inherit_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    code, said = outrider("up")
    assert code == 2
    assert said.count(variable) == 1


def test_a_variable_that_a_flag_overrides_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LISTEN": "nowhere", "VERIFY": "nowhere", "MODEL": "/nope", "DTYPE": "int8"}.items():
        monkeypatch.setenv(f"OUTRIDER_{name}", value)
    assert isinstance(CliRunner().invoke(app, ["up"]).exception, AssertionError)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--port", "65536"),
        ("--draft-port", "-1"),
        ("--verify-port", "http"),
        ("--verifiers", "0"),
        ("--drafters", "100000"),
        ("--coordinators", "1.5"),
    ],
)
def test_ports_and_numbers_of_services(flag: str, value: str) -> None:
    code, said = outrider("up", flag, value)
    assert code == 2
    assert said.count(f"'{flag}'") == 1


@pytest.mark.parametrize("of", ["generate", "run"])
@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--max-tokens", "0"),
        ("--max-tokens", "4294967296"),
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--temperature", "1e9"),
        ("--top-p", "0"),
        ("--top-p", "1.5"),
        ("--top-k", "-1"),
        ("--top-k", "4294967296"),
        ("--min-p", "inf"),
        ("--repetition-penalty", "0"),
        ("--presence-penalty", "101"),
        ("--frequency-penalty", "-101"),
        ("--seed", "18446744073709551616"),
        ("--stop", ""),
        ("--stop", "x" * 257),
        ("--max-draft-tokens", "257"),
        ("--tree-width", "9"),
        ("--completions", "17"),
    ],
)
def test_a_request_that_no_coordinator_would_take(of: str, flag: str, value: str) -> None:
    code, said = outrider(of, "x", flag, value)
    assert code == 2
    assert said.count(f"'{flag}'") == 1


@pytest.mark.parametrize("ids", ["", "1,,2", "1,x", "-1", "4294967296"])
def test_token_ids_that_are_none(ids: str) -> None:
    code, said = outrider("generate", "--token-ids", ids)
    assert code == 2
    assert "--token-ids" in said


@pytest.mark.parametrize(
    "address",
    [
        "nonsense",
        "",
        ":1",
        "here:",
        "here:http",
        "here:0",
        "here:65536",
        "::1:7",
        "http://here:1",
        "a b:1",
        "here:1,",
        "here:1,there",
    ],
)
def test_an_address_that_is_none(address: str) -> None:
    code, said = outrider("generate", "x", "--address", address)
    assert code == 2
    assert said.count("'--address'") == 1


def test_a_number_of_alternatives_that_no_coordinator_gives() -> None:
    assert "'--logprobs'" in outrider("generate", "x", "--logprobs", "21").said


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "empty"), (b"\xff", "UTF-8"), (b"x" * (PROMPT_BYTES_MAX + 1), "bytes")],
    ids=["empty", "no text", "endless"],
)
def test_standard_input_that_is_no_prompt(content: bytes, words: str) -> None:
    code, said = outrider("generate", "-", input=content)
    assert code == 2
    assert "PROMPT" in said
    assert words in said


def test_standard_input_is_the_prompt_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async def generate(request: command.Request, *_: object) -> None:
        asked.append(request.prompt)
        raise KeyboardInterrupt

    asked: list[object] = []
    monkeypatch.setattr(command, "generate_at", generate)
    outrider("generate", "-", "--json", input="def main(\n é\n".encode())
    assert asked == ["def main(\n é\n"]


@pytest.mark.parametrize("flag", [["--help"], *([name, "--help"] for name in ("up", "generate", "run", "bench"))])
def test_help_shows_no_type_for_what_takes_no_value(flag: list[str]) -> None:
    code, said = outrider(*flag)
    assert code == 0
    assert "--help" in said
    assert "<bool>" not in said


@pytest.mark.parametrize("module", CONFIGS)
def test_help_of_a_service_is_for_people(
    module: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config: type[Settings] = CONFIGS[module]
    monkeypatch.setattr("sys.argv", [module, "--help"])
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.FileIO(1, "w", closefd=False)))
    with pytest.raises(SystemExit) as ended:
        config.from_command_line(f"python -m {module}")
    said = capfd.readouterr().out
    assert ended.value.code == 0
    assert "--drain-seconds" in said
    assert "default: 20.0" in said
    assert not any(word in said for word in ("lambda", "factory", "<", "(default: )"))


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        (["--listen=nonsense"], ["--listen"]),
        (["--listen=here:65536"], ["--listen"]),
        (["--listen="], ["--listen"]),
        (["--cores=x", "--drain-seconds=nan"], ["--cores", "--drain-seconds"]),
        (["--verify=", "--draft=nonsense", "--tree-width=9"], ["--verify", "--draft", "--tree-width"]),
        (["--max-requests=1e9"], ["--max-requests"]),
    ],
)
def test_a_service_names_each_bad_setting_once(
    flags: list[str], settings: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["coordinator", *flags])
    monkeypatch.setattr("sys.stdout", None)  # as where it is closed: a service has no need of it
    with pytest.raises(SystemExit) as ended:
        CONFIGS["coordinator"].from_command_line("python -m coordinator")
    said = capsys.readouterr().err.splitlines()[:-1]
    assert ended.value.code == 2
    assert sorted(line.split()[3] for line in said) == sorted(settings)


def test_the_version_is_told() -> None:
    assert outrider("--version") == (0, "outrider 0.1.0\n")


@pytest.mark.parametrize("host", ["münchen.example", "", "a b", "here:1", "a..b"])
def test_a_host_that_no_certificate_can_name(host: str, tmp_path: Path) -> None:
    code, said = outrider("certs", str(tmp_path / "certificates"), "--host", host)
    assert code == 2
    assert "'--host'" in said
    assert not (tmp_path / "certificates").exists()


def test_the_services_that_doctor_looks_at_have_an_address() -> None:
    code, said = outrider("doctor", "--address", "nonsense")
    assert code == 2
    assert said.count("'--address'") == 1


def test_doctor_needs_no_model_to_look_at_services_that_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a coordinator's image, or after `pip install .`."""
    monkeypatch.setattr(up_options, "_BUNDLED_MODELS", tmp_path)
    elsewhere = CliRunner().invoke(app, ["doctor", "--address", "127.0.0.1:1"])
    assert isinstance(elsewhere.exception, WorkerUnavailableError)
    here = CliRunner().invoke(app, ["doctor"])
    assert isinstance(here.exception, up_options.NoModelError)


@pytest.mark.parametrize(("flag", "value"), [("--temperature", "nan"), ("--temperature", "-1"), ("--max-tokens", "0")])
def test_what_no_answer_of_a_chat_can_have(flag: str, value: str) -> None:
    code, said = outrider("chat", flag, value)
    assert code == 2
    assert said.count(f"'{flag}'") == 1
