"""A whole run of `outrider distill` on tiny models: its folder, going on where it was stopped, and refusals."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, MistralConfig, MistralForCausalLM
from typer.testing import CliRunner

from draft_service.config import DraftConfig
from outrider.cli.__main__ import app
from outrider.core.protocol.errors import UnsupportedModelError
from outrider.worker import config as worker_config
from outrider.worker.startup import load
from recipes.demo_pair.pair import llama_config
from recipes.demo_pair.recipe import Precision, RecipeError, Shape
from recipes.distill import draft as drafts
from recipes.distill import prompts, training
from recipes.distill.acceptance import CHAIN, MASKS
from recipes.distill.options import BUNDLED_TARGET, Options
from recipes.distill.prompts import Kind, Passage, Wanted
from recipes.distill.run import Distillation
from verify_service.config import VerifyConfig

CPU = torch.device("cpu")
VOCAB_SIZE = 4096
"""Of the bundled tokenizer, which the tiny target has."""

STEPS = 5


def silent(*_: object) -> None:
    """A report that nobody reads."""


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Of a run that takes a second."""
    folder = tmp_path_factory.mktemp("given")
    torch.manual_seed(0)
    shape = Shape(num_layers=1, width=32, num_heads=2, mlp_width=64, learning_rate=1e-2)
    model = LlamaForCausalLM(llama_config(shape, VOCAB_SIZE))
    model.save_pretrained(folder / "target")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "target" / name).write_bytes((BUNDLED_TARGET / name).read_bytes())
    lines = [f'{{"prompt": "def function_{number}(a, b):"}}' for number in range(8)]
    (folder / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return Options(
        target=folder / "target",
        text=folder / "prompts.jsonl",
        parallel=True,
        depths=3,
        by_length=True,
        steps=STEPS,
        batch=2,
        num_texts=6,
        held_out_texts=4,
        prompt_tokens=8,
        answer_tokens=8,
        layers=1,
        width=64,
        precision=Precision.FLOAT32,
    )


def run(out: Path, options: Options, stop_at: int | None = None) -> None:
    """Runs all stages; Ctrl-C comes at a step of training, if one is named."""

    def report(step: int, *_: object) -> None:
        if step == stop_at:
            raise KeyboardInterrupt

    distillation = Distillation(out, options, CPU)
    distillation.write(silent)
    before = distillation.measure_before(silent)
    distillation.train(report)
    distillation.finish(before, ["outrider", "distill"], silent)


@pytest.fixture(scope="module")
def finished(options: Options, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "draft"
    run(out, options)
    return out


def test_a_run_makes_a_folder_that_a_drafter_serves(finished: Path, options: Options) -> None:
    config = json.loads((finished / "config.json").read_text(encoding="utf-8"))
    assert config["pard_token"] == VOCAB_SIZE < config["vocab_size"]
    drafts.check_vocabulary(finished, options.target)
    settings = {"num_threads": 1, "compile": "off"}
    loaded, target = (
        load(kind.model_validate(settings | {"model": str(folder)})).info
        for kind, folder in ((DraftConfig, finished), (VerifyConfig, options.target))
    )
    assert loaded.vocab_size == config["vocab_size"]
    assert loaded.tokenizer_sha256 == target.tokenizer_sha256
    assert (finished / "acceptance.png").read_bytes().startswith(b"\x89PNG")
    text = (finished / "README.md").read_text(encoding="utf-8")
    assert "outrider distill" in text
    for way, when in ((CHAIN, "before"), (CHAIN, "after"), (MASKS, "after")):
        assert f"| {way} | 0.8 | {when} |" in text
    assert f"| {MASKS} | 0.8 | before |" not in text


def test_a_run_that_was_stopped_goes_on_to_the_same_result(
    finished: Path, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_STEPS", 2)
    for stop_at in (3, 4):  # one that loses a step, and one that loses none
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", options, stop_at)
    texts = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "work").glob("*-*.safetensors")}
    assert len(texts) == 2
    run(tmp_path / "out", options)
    assert {path: path.stat().st_mtime_ns for path in texts} == texts
    assert (tmp_path / "out/model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    assert (tmp_path / "out/README.md").read_bytes() == (finished / "README.md").read_bytes()


def test_a_draft_that_was_made_can_begin_another_run(finished: Path, options: Options, tmp_path: Path) -> None:
    further = Distillation(tmp_path / "out", replace(options, draft=finished), CPU)
    further.write(silent)
    assert set(further.measure_before(silent)) == {CHAIN, MASKS}
    assert drafts.mask_token(drafts.load(finished, "float32", CPU)) == VOCAB_SIZE


def test_training_moves_the_draft_towards_its_target(options: Options, tmp_path: Path) -> None:
    longer = replace(options, steps=30, by_length=False, learning_rate=1e-2)
    distillation = Distillation(tmp_path / "out", longer, CPU)
    distillation.write(silent)
    losses: list[float] = []
    distillation.train(lambda _, __, loss: losses.append(loss or 0.0))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def command(out: Path, options: Options) -> str:
    """What `outrider distill` prints with those options, as flags."""
    arguments = ["distill", str(out), "--target", str(options.target), "--text", str(options.text)]
    flags = "--parallel --by-length --depths 3 --steps 5 --batch 2 --texts 6 --held-out-texts 4 --prompt-tokens 8"
    flags += " --answer-tokens 8 --layers 1 --width 64 --precision float32"
    result = CliRunner(env={"COLUMNS": "300"}).invoke(app, [*arguments, *flags.split()])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_shows_how_far_it_is_and_what_was_reached(
    options: Options, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_config, "default_compile_cache", lambda: None)
    said = command(tmp_path / "out", options)
    for bar in (r"text\W+2/2 steps", r"before\W+4/4 steps", r"draft\W+5/5 steps, loss \d", r"after\W+4/4 steps"):
        assert re.search(bar, said), said
    made = [(folder / "model.safetensors").read_bytes() for folder in (tmp_path / "out", finished)]
    assert made[0] == made[1]
    assert "Drafting by masks, a round commits" in said
    assert f"outrider up --target {options.target} --draft {tmp_path / 'out'}" in said


def test_the_command_says_what_is_finished(options: Options, finished: Path) -> None:
    assert f"{finished} is finished; see {finished}/README.md" in command(finished, options)


# Prompts.


def test_prompts_of_all_kinds_become_tokens(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('"import os"\n\n{"prompt": "def f("}\n{"text": "class A:"}\n', encoding="utf-8")
    passages = prompts.read(tmp_path / "p.jsonl", BUNDLED_TARGET)
    assert set(passages) == {Passage(text, Kind.PROMPT) for text in ("import os", "def f(", "class A:")}
    tokenizer = Tokenizer.from_file(str(BUNDLED_TARGET / "tokenizer.json"))
    found = prompts.cut(passages, tokenizer, Wanted(40, 5, 3), seed=0)
    assert {tuple(each) for each in found.held_out} == {tuple(tokenizer.encode(passages[0].text).ids[:3])}
    assert {tuple(each) for each in found.training} == {
        tuple(tokenizer.encode(each.text).ids[:3]) for each in passages[1:]
    }
    assert prompts.cut(passages, tokenizer, Wanted(40, 5, 3), seed=0) == found


def test_messages_are_put_into_words_by_the_targets_template(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((BUNDLED_TARGET / name).read_bytes())
    template = "<|endoftext|>{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
    line = {"messages": [{"role": "user", "content": "sort it"}]}
    (tmp_path / "p.jsonl").write_text(f"{json.dumps(line)}\n" + '"other"', encoding="utf-8")
    passages = prompts.read(tmp_path / "p.jsonl", tmp_path)
    assert Passage("<|endoftext|>user: sort it\n", Kind.TEMPLATED) in passages
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    found = prompts.cut(passages, tokenizer, Wanted(1, 1, 99), seed=0)
    assert sorted(each.count(0) for each in (*found.training, *found.held_out)) == [1, 1]  # not begun twice


def test_running_text_is_cut_and_some_of_it_held_out(tmp_path: Path) -> None:
    lines = [f"value_{number} = {number}\n" for number in range(2000)]
    (tmp_path / "a.py").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "b.bin").write_bytes(b"\xff\xfe")
    passages = prompts.read(tmp_path, BUNDLED_TARGET)
    assert sorted("".join(each.text for each in passages)) == sorted("".join(lines))
    assert all(len(each.text) <= prompts.PIECE_CHARACTERS for each in passages)
    tokenizer = Tokenizer.from_file(str(BUNDLED_TARGET / "tokenizer.json"))
    found = prompts.cut(passages, tokenizer, Wanted(30, 10, 12), seed=1)
    kept = passages[0].text
    for each in found.held_out:
        assert each[0] == 0
        assert len(each) <= 12
        assert tokenizer.decode(each[1:]) in kept
    assert not any(tokenizer.decode(each[1:]) in kept for each in found.training if len(each) == 12)


# Refusals.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{broken", "line 1 is no JSON .* one prompt a line"),
        ('"a"\n{"question": "b"}', 'line 2 is no prompt: write a string, {"prompt": "..."}'),
        ('{"messages": [{"role": "user", "content": "a"}]}', "line 1: the target's chat template does not take"),
    ],
)
def test_a_file_that_holds_no_prompts_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        prompts.read(tmp_path / "p.jsonl", BUNDLED_TARGET)
    with pytest.raises(RecipeError, match="cannot be read"):
        prompts.read(tmp_path / "gone.jsonl", BUNDLED_TARGET)


def test_text_of_which_nothing_can_be_held_out_is_refused() -> None:
    tokenizer = Tokenizer.from_file(str(BUNDLED_TARGET / "tokenizer.json"))
    with pytest.raises(RecipeError, match="There are 1 pieces of text, and one must be held out"):
        prompts.cut([Passage("a", Kind.PROMPT)], tokenizer, Wanted(1, 1, 1), seed=0)


def test_a_folder_of_something_else_or_of_other_settings_is_refused(
    finished: Path, options: Options, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RecipeError, match="is not empty and holds no run: choose a new folder"):
        Distillation(tmp_path, options, CPU)
    with pytest.raises(RecipeError, match="other settings: repeat its flags or choose a new folder"):
        Distillation(finished, replace(options, steps=STEPS + 1), CPU)


def test_a_draft_that_cannot_be_trained_is_refused_before_anything_is_written(options: Options, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--width 96 is no multiple of 64"):
        Distillation(tmp_path / "out", replace(options, width=96), CPU)
    with pytest.raises(UnsupportedModelError):
        Distillation(tmp_path / "out", replace(options, draft=tmp_path), CPU)
    sliding = MistralConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        sliding_window=8,
    )
    folder = tmp_path / "sliding"
    MistralForCausalLM(sliding).save_pretrained(folder)
    tokenizer = (BUNDLED_TARGET / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(tokenizer.replace(b"<|endoftext|>", b"<|otherend|>"))
    with pytest.raises(RecipeError, match="have different vocabularies"):
        Distillation(tmp_path / "out", replace(options, draft=folder), CPU)
    (folder / "tokenizer.json").write_bytes(tokenizer)
    with pytest.raises(RecipeError, match="layers that see 8 tokens, fewer than the 16 of a text"):
        Distillation(tmp_path / "out", replace(options, draft=folder), CPU)
    assert not (tmp_path / "out").exists()
