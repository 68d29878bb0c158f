"""The recipe makes a pair from source text, and the bundled pair is what its README says."""

from __future__ import annotations

import hashlib
import json
import re
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from typer.testing import CliRunner

from recipes.demo_pair.__main__ import app
from recipes.demo_pair.evaluation import Figures, evaluate
from recipes.demo_pair.pair import PairRun, llama_config
from recipes.demo_pair.recipe import Precision, Recipe, RecipeError, Shape
from recipes.demo_pair.text import Batch, Windows, cut, read_documents, train_tokenizer
from recipes.demo_pair.training import FINAL_RATE_FRACTION, Optimizers, adamw, muon, next_token_loss, rate_factor, train

SOURCE = Path(sysconfig.get_path("stdlib")) / "json"
BUNDLED = Path(__file__).parents[2] / "models"
CPU = torch.device("cpu")
NUM_STEPS = 12
EVERY_STEP = list(range(1, NUM_STEPS + 1))
TINY = Recipe(
    target=Shape(num_layers=2, width=32, num_heads=2, mlp_width=64, learning_rate=1e-2),
    draft=Shape(num_layers=1, width=16, num_heads=1, mlp_width=32, learning_rate=1e-2),
    target_tokens=NUM_STEPS * 4 * 32,
    draft_tokens=NUM_STEPS * 4 * 32,
    vocab_size=320,
    window_tokens=32,
    batch_tokens=4 * 32,
    written_batches=3,
    written_batch_windows=4,
    written_window_tokens=16,
    num_held_out_files=1,
    checkpoint_steps=5,
    precision=Precision.FLOAT32,
)


class InterruptionError(Exception):
    """Stands for the death of the process."""


class Log:
    """Records what a training loop reports and, if told so, stops it after a step."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.steps: list[int] = []
        self.losses: list[float] = []
        self._stop_after = stop_after

    def __call__(self, step: int, num_steps: int, loss: float | None) -> None:
        assert num_steps == NUM_STEPS
        assert loss is not None
        self.steps.append(step)
        self.losses.append(loss)
        if step == self._stop_after:
            raise InterruptionError


def no_report(step: int, num_steps: int, loss: float | None) -> None:
    """Hears what nobody wants to know."""


def make_pair(out: Path, target_log: Log, draft_log: Log) -> Figures:
    run = PairRun(out, TINY, CPU)
    run.prepare_text(SOURCE)
    run.train_target(target_log)
    run.write_text(no_report)
    run.train_draft(draft_log)
    return run.finish()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Log, Log, Figures]:
    """A run that nothing interrupted: its folder, its logs and its figures."""
    out = tmp_path_factory.mktemp("whole")
    target_log, draft_log = Log(), Log()
    return out, target_log, draft_log, make_pair(out, target_log, draft_log)


def test_tokenizer_gives_source_back_byte_for_byte(whole: tuple[Path, Log, Log, Figures]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(whole[0] / "target")
    contents = [path.read_bytes() for path in sorted(SOURCE.glob("*.py"))]
    contents.append("\ufeff\tx = 'Gr\u00fc\u00dfe \U0001f40d'  \r\n\r\n \n    y=1__0\x00".encode())
    for content in contents:
        token_ids = tokenizer(content.decode()).input_ids
        assert token_ids[0] == tokenizer.bos_token_id == tokenizer.eos_token_id == 0
        assert 0 not in token_ids[1:]
        assert tokenizer.decode(token_ids[1:]).encode() == content


def test_losses_fall(whole: tuple[Path, Log, Log, Figures]) -> None:
    _, target_log, draft_log, _ = whole
    for log in (target_log, draft_log):
        assert log.steps == EVERY_STEP
        assert max(log.losses[-3:]) < log.losses[0]


def test_saved_pair_loads_and_continues_text(whole: tuple[Path, Log, Log, Figures]) -> None:
    out = whole[0]
    assert {path.name for path in out.iterdir()} == {"README.md", "target", "draft"}
    for name in ("target", "draft"):
        model = AutoModelForCausalLM.from_pretrained(out / name, use_safetensors=True)
        prompt = AutoTokenizer.from_pretrained(out / name)("import json\n", return_tensors="pt").input_ids
        assert model.dtype is torch.bfloat16
        continued = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
            prompt, max_new_tokens=4, do_sample=False, eos_token_id=None
        )
        assert continued.shape[1] == prompt.shape[1] + 4


def test_readme_holds_the_figures(whole: tuple[Path, Log, Log, Figures]) -> None:
    out, _, _, figures = whole
    readme = (out / "README.md").read_text(encoding="utf-8")
    assert f"| {figures.target_loss:.3f} | {figures.draft_loss:.3f} |" in readme
    assert f"{figures.greedy_agreement:.1%}" in readme
    assert f"{figures.top3_agreement:.1%}" in readme
    assert figures.greedy_agreement <= figures.top3_agreement


@pytest.mark.parametrize(
    ("stop_target", "stop_draft", "target_steps", "draft_steps"),
    [(3, None, EVERY_STEP, EVERY_STEP), (7, None, EVERY_STEP[5:], EVERY_STEP), (None, 11, [], EVERY_STEP[10:])],
)
def test_interrupted_run_makes_the_same_pair(
    whole: tuple[Path, Log, Log, Figures],
    tmp_path: Path,
    stop_target: int | None,
    stop_draft: int | None,
    target_steps: list[int],
    draft_steps: list[int],
) -> None:
    with pytest.raises(InterruptionError):
        make_pair(tmp_path, Log(stop_target), Log(stop_draft))
    target_log, draft_log = Log(), Log()
    assert make_pair(tmp_path, target_log, draft_log) == whole[3]
    assert (target_log.steps, draft_log.steps) == (target_steps, draft_steps)
    for name in ("target/model.safetensors", "draft/model.safetensors", "target/tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (whole[0] / name).read_bytes()


@pytest.mark.parametrize("optimizers_of", [adamw, muon])
def test_resumed_training_is_bitwise_the_uninterrupted_one(
    tmp_path: Path, optimizers_of: Callable[[LlamaForCausalLM], Optimizers]
) -> None:
    text = torch.randint(TINY.vocab_size, (2000,), dtype=torch.int32, generator=torch.Generator().manual_seed(1))
    seen: list[torch.Tensor] = []

    def loss_of(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
        seen.append(batch.windows)
        return next_token_loss(model, batch)

    def trained(checkpoint: Path, log: Log) -> LlamaForCausalLM:
        torch.manual_seed(7)
        model = LlamaForCausalLM(llama_config(TINY.draft, TINY.vocab_size))
        windows = Windows(cut(text, TINY.window_tokens), (1.0,), 4, TINY.seed)
        options = {"num_tokens": TINY.draft_tokens, "learning_rate": 1e-2, "checkpoint": checkpoint}
        train(model, loss_of, optimizers_of(model), windows, TINY, **options, report=log)
        return model

    uninterrupted = trained(tmp_path / "whole.safetensors", Log())
    windows = Windows(cut(text, TINY.window_tokens), (1.0,), 4, TINY.seed)
    assert torch.equal(torch.stack(seen), torch.stack([windows.batch(step).windows for step in range(NUM_STEPS)]))
    for stop in (6, 10):
        with pytest.raises(InterruptionError):
            trained(tmp_path / "parts.safetensors", Log(stop_after=stop))
    resumed = trained(tmp_path / "parts.safetensors", Log())
    assert len(seen) == NUM_STEPS + 6 + 5 + 2
    for name, parameter in uninterrupted.named_parameters():
        assert parameter.dtype is torch.float32
        assert torch.equal(parameter, resumed.get_parameter(name)), name


def test_learning_rate_rises_to_its_peak_and_falls() -> None:
    factors = [rate_factor(step, 1000) for step in range(1000)]
    assert factors[:30] == [(step + 1) / 30 for step in range(30)]
    assert factors[30] == 1.0
    assert factors[30:] == sorted(factors[30:], reverse=True)
    assert factors[-1] == pytest.approx(FINAL_RATE_FRACTION, abs=1e-4)
    assert rate_factor(0, 1) == 1.0


def test_run_claims_only_what_is_its_own(whole: tuple[Path, Log, Log, Figures], tmp_path: Path) -> None:
    PairRun(tmp_path / "new", TINY, CPU)
    PairRun(tmp_path / "new", TINY, CPU)
    with pytest.raises(RecipeError, match="other settings"):
        PairRun(tmp_path / "new", replace(TINY, seed=1), CPU)
    with pytest.raises(RecipeError, match="choose a new folder"):
        PairRun(whole[0], TINY, CPU)


def test_too_little_text_is_said(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    run = PairRun(tmp_path / "out", TINY, CPU)
    with pytest.raises(RecipeError, match="0 files of Python"):
        run.prepare_text(source)
    (source / "a.py").write_text("pass\n", encoding="utf-8")
    (source / "b.py").write_text("None\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="different tokens"):
        run.prepare_text(source)
    with pytest.raises(RecipeError, match="add text"):
        cut(torch.zeros(TINY.window_tokens, dtype=torch.int32), TINY.window_tokens)


def test_documents_are_code_once_each_in_an_order_of_their_own(tmp_path: Path) -> None:
    for place in ("first/deep", "second", "second/site-packages", "second/encodings"):
        (tmp_path / place).mkdir(parents=True)
    for number in range(8):
        (tmp_path / f"first/deep/{number}.py").write_text(f"x = {number}\r\n", encoding="utf-8", newline="")
        (tmp_path / f"second/{9 - number}.py").write_text(f"x = {number}\r\n", encoding="utf-8", newline="")
    (tmp_path / "second/twin.py").write_text("x = 1\r\n", encoding="utf-8", newline="")
    (tmp_path / "second/empty.py").touch()
    (tmp_path / "second/latin.py").write_bytes(b"# \xe9\n")
    (tmp_path / "second/notes.txt").write_text("no code", encoding="utf-8")
    (tmp_path / "second/site-packages/other.py").write_text("other = 1\n", encoding="utf-8")
    (tmp_path / "second/encodings/table.py").write_text("table = 1\n", encoding="utf-8")
    documents = read_documents(tmp_path / "first")
    assert sorted(documents) == [f"x = {number}\r\n" for number in range(8)]
    assert documents != sorted(documents)
    assert read_documents(tmp_path / "second") == documents


def test_each_pass_shows_every_window_once_in_a_new_order() -> None:
    windows = Windows(cut(torch.arange(10 * 4 + 3, dtype=torch.int32), 4), (0.0, 0.5, 1.0), 2, seed=3)
    batches = [[windows.batch(step) for step in range(first, first + 5)] for first in (0, 5)]
    passes = [[batch.windows for batch in each] for each in batches]
    orders = [torch.cat(batches) for batches in passes]
    for order in orders:
        assert torch.equal(order.sort(dim=0).values, torch.arange(10)[:, None] * 4 + torch.arange(5))
    assert not torch.equal(*orders)
    assert torch.equal(windows.batch(3).windows, passes[0][3])
    for batch in batches[0] + batches[1]:
        assert torch.equal(batch.temperatures, batch.windows[:, 0] // 4 % 3 / 2)


def test_evaluation_agrees_with_the_loss_and_with_itself() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(TINY.draft, TINY.vocab_size)).eval()
    token_ids = torch.randint(TINY.vocab_size, (41,), dtype=torch.int32)
    figures = evaluate(model, model, token_ids, window_tokens=20)
    windows = torch.stack([token_ids[:21], token_ids[20:]]).long()
    assert figures.num_tokens == 40
    assert figures.target_loss == figures.draft_loss
    assert figures.target_loss == pytest.approx(next_token_loss(model, Batch(windows, torch.ones(2))).item(), rel=1e-5)
    assert figures.greedy_agreement == figures.top3_agreement == 1.0


def test_command_line_explains_itself_and_refuses_a_device_that_is_not_there(tmp_path: Path) -> None:
    runner = CliRunner(env={"COLUMNS": "200"})
    shown = re.sub(r"\x1b\[[0-9;]*m", "", runner.invoke(app, ["--help"]).output)
    for flag in ("--device", "--target-tokens", "--draft-tokens", "--precision", "--seed"):
        assert flag in shown
    for device in ("nonsense", "meta", "cuda:99"):
        result = runner.invoke(app, [str(tmp_path / "out"), "--device", device])
        assert result.exit_code == 1
        assert f"--device {device}: this PyTorch sees no such device" in result.output
    assert not (tmp_path / "out").exists()


def test_bundled_pair_shares_one_tokenizer_of_the_recipes_kind() -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (BUNDLED / "target" / name).read_bytes() == (BUNDLED / "draft" / name).read_bytes()
    bundled = json.loads((BUNDLED / "target/tokenizer.json").read_text(encoding="utf-8"))
    made = json.loads(train_tokenizer(read_documents(SOURCE), TINY.vocab_size).to_str())
    assert len(bundled["model"].pop("vocab")) == Recipe().vocab_size
    made["model"].pop("vocab")
    assert bundled["model"].pop("merges")
    made["model"].pop("merges")
    assert made == bundled


@pytest.mark.parametrize("name", ["target", "draft"])
def test_bundled_configuration_is_the_recipes(name: str) -> None:
    recipe = Recipe()
    bundled = AutoConfig.from_pretrained(BUNDLED / name).to_dict()
    made = llama_config(getattr(recipe, name), recipe.vocab_size).to_dict()
    written_when_saved = {"architectures", "dtype", "transformers_version", "_name_or_path"}
    assert {key: value for key, value in bundled.items() if key not in written_when_saved} == {
        key: value for key, value in made.items() if key not in written_when_saved
    }
    assert bundled["dtype"] in ("bfloat16", torch.bfloat16)


def test_bundled_files_have_the_checksums_of_their_readme() -> None:
    readme = (BUNDLED / "README.md").read_text(encoding="utf-8")
    listed = {name: digest for digest, name in re.findall(r"^([0-9a-f]{64})  (\S+)$", readme, re.MULTILINE)}
    present = {
        path.relative_to(BUNDLED).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (*BUNDLED.glob("*/*"), *BUNDLED.glob("*.safetensors"))
    }
    assert listed == present
