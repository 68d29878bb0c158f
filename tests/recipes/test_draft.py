"""A draft for a given target: what the target writes, what the draft learns from it, and how the two are compared."""

from __future__ import annotations

import shutil
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from outrider.core.protocol.sampling import SamplingParams
from outrider.engine.compile.just_in_time import compiler_problem
from outrider.engine.sample.sampler import Row, Sampler
from recipes.demo_pair import pair, training
from recipes.demo_pair.__main__ import app
from recipes.demo_pair.evaluation import agreements, judged_texts
from recipes.demo_pair.pair import PairRun, llama_config
from recipes.demo_pair.recipe import Precision, Recipe, RecipeError, Shape
from recipes.demo_pair.text import Batch, Turns, Windows
from recipes.demo_pair.training import adopt_embedding, distillation_loss
from recipes.demo_pair.writing import MAX_PROMPT_TOKENS, MIN_PROMPT_TOKENS, Written, write
from recipes.widen import widen

SOURCE = Path(sysconfig.get_path("stdlib")) / "json"
BUNDLED_TARGET = Path(__file__).parents[2] / "models/target"
CPU = torch.device("cpu")
SMALL = Shape(num_layers=1, width=32, num_heads=2, mlp_width=64, learning_rate=1e-2)
NUM_STEPS = 4
RECIPE = Recipe(
    draft=SMALL,
    draft_tokens=NUM_STEPS * 64,
    window_tokens=16,
    batch_tokens=64,
    written_batches=2,
    written_batch_windows=3,
    written_window_tokens=16,
    num_held_out_files=1,
    checkpoint_steps=1,
    precision=Precision.FLOAT32,
)


@pytest.fixture(scope="module")
def models() -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """Two untrained models of the same vocabulary, sure enough of themselves to differ."""
    torch.manual_seed(0)
    target, draft = (LlamaForCausalLM(llama_config(SMALL, 320)).eval() for _ in range(2))
    for model in (target, draft):
        model.lm_head.weight.data.mul_(20)
    return target, draft


@pytest.fixture(scope="module")
def source() -> torch.Tensor:
    return torch.randint(1, 320, (1000,), dtype=torch.int32, generator=torch.Generator().manual_seed(0))


def test_greedy_text_is_the_targets_own_after_true_beginnings(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM], source: torch.Tensor
) -> None:
    target, _ = models
    text = write(target, source, temperature=0.0, num_windows=5, num_tokens=160, seed=3)
    assert text.token_ids.shape == (5, 160)
    assert text.token_ids.dtype is torch.int32
    assert MIN_PROMPT_TOKENS <= text.num_given <= MAX_PROMPT_TOKENS
    assert torch.equal(text.token_ids[:, 0], torch.zeros(5, dtype=torch.int32))
    pieces = source.unfold(0, text.num_given - 1, 1)
    for window in text.token_ids:
        assert (pieces == window[1 : text.num_given]).all(-1).any()
        logits = target(input_ids=window[None].long()).logits[0]
        assert torch.equal(logits[text.num_given - 1 : -1].argmax(-1).int(), window[text.num_given :])


def test_sampled_text_follows_the_targets_distribution(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM], source: torch.Tensor
) -> None:
    target, _ = models
    num_windows = 2000
    prompt = source[:2]
    text = write(target, prompt, temperature=0.8, num_windows=num_windows, num_tokens=2, seed=0)
    assert text.num_given == 1
    probs = (target(input_ids=torch.tensor([[0]])).logits[0, 0] / 0.8).softmax(-1)
    counts = text.token_ids[:, 1].bincount(minlength=320)
    spread = (num_windows * probs * (1 - probs)).sqrt()
    assert ((counts - num_windows * probs).abs() <= 5 * spread + 1).all()
    assert counts.count_nonzero() > 1


def test_text_is_a_function_of_its_seed(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM], source: torch.Tensor
) -> None:
    texts = [write(models[0], source, 1.0, 4, 40, seed).token_ids for seed in (1, 1, 2)]
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])


def test_turns_go_round_and_each_text_keeps_its_own_length() -> None:
    long, short = torch.arange(40).view(4, 10), torch.arange(40, 70).view(6, 5)
    turns = Turns([Windows(long, (1.0,), 1, seed=0), Windows(short, (0.5,), 2, seed=1)])
    batches = [turns.batch(step) for step in range(6)]
    assert [tuple(batch.windows.shape) for batch in batches] == [(1, 10), (2, 5)] * 3
    assert [batch.temperatures.tolist() for batch in batches] == [[1.0], [0.5, 0.5]] * 3
    seen = torch.cat([batch.windows for batch in batches[1::2]])
    assert torch.equal(seen.sort(dim=0).values, short)


def test_a_text_that_stands_twice_has_two_turns() -> None:
    once, twice = (Windows(torch.arange(12).view(6, 2) + first, (1.0,), 1, seed=0) for first in (0, 12))
    turns = Turns([twice, once, twice])
    seen = [turns.batch(step).windows for step in range(9)]
    assert torch.equal(torch.cat(seen[1::3]), torch.cat([once.batch(step).windows for step in range(3)]))
    del seen[1::3]
    assert torch.equal(torch.cat(seen), torch.cat([twice.batch(step).windows for step in range(6)]))


def test_distillation_loss_is_divergence_and_misses_however_it_is_pieced(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, draft = models
    windows = torch.randint(320, (3, 12), generator=torch.Generator().manual_seed(1))
    batch = Batch(windows, torch.tensor([0.0, 0.8, 1.0]))
    sharpness = 1 / torch.tensor([training.SHARPEST, 0.8, 1.0]).double()[:, None, None]
    wanted, given = (
        (model(input_ids=windows[:, :-1]).logits.double() * sharpness).softmax(-1) for model in (target, draft)
    )
    divergence = (wanted * (wanted / given).log()).sum(-1).mean().item()
    misses = (wanted - given).abs().sum(-1).mean().item() / 2
    expected = divergence + training.MISS_WEIGHT * misses
    for piece_tokens in (5, 11, 512):
        monkeypatch.setattr(training, "PIECE_TOKENS", piece_tokens)
        assert distillation_loss(target)(draft, batch).item() == pytest.approx(expected, rel=1e-4)
        assert distillation_loss(draft)(draft, batch).item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("width", [8, 32, 64])
def test_draft_begins_with_what_the_targets_embedding_says_most_of(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM], width: int
) -> None:
    draft = LlamaForCausalLM(llama_config(replace(SMALL, width=width), 320))
    spread = draft.model.embed_tokens.weight.std().item()
    adopt_embedding(draft, models[0])
    given = draft.model.embed_tokens.weight.double()[:, : min(width, SMALL.width)]
    wanted = models[0].model.embed_tokens.weight.double()
    assert given.std().item() == pytest.approx(spread, rel=1e-4)
    _, strengths, _ = torch.linalg.svd(wanted)
    directions = torch.linalg.lstsq(given, wanted)
    left = (wanted - given @ directions.solution).square().sum().item()
    assert left == pytest.approx(strengths[width:].square().sum().item(), rel=1e-4, abs=1e-6)


def test_agreement_is_that_of_the_projects_sampler(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM], source: torch.Tensor
) -> None:
    target, draft = models
    text = Written(source[:60].view(3, 20), num_given=4)
    measured = agreements(target, draft, text, (0.0, 0.8))
    sampler = Sampler(320, 1, CPU)
    for temperature, agreement in measured.items():
        first, top3, optimum = [], [], []
        for seed, window in enumerate(text.token_ids.long()):
            sampler.open(0, SamplingParams(temperature=temperature, seed=seed), (), ())
            for position in range(4, 20):
                by_target = target(input_ids=window[None, :position]).logits[0, -1:]
                by_draft = draft(input_ids=window[None, :position]).logits[0, -1:]
                choice = sampler.choose(by_target, [Row(0, position)])[0]
                guesses = sampler.propose(by_draft, [Row(0, position)], width=3)[0][0]
                first.append(choice == guesses[0])
                top3.append(choice in guesses)
                variation = functional.l1_loss(
                    (by_target / 0.8).softmax(-1), (by_draft / 0.8).softmax(-1), reduction="sum"
                )
                optimum.append(1 - variation.item() / 2 if temperature else choice == guesses[0])
        expected = [sum(values) / len(values) for values in (first, top3, optimum)]
        assert list(agreement) == pytest.approx(expected, rel=1e-4)
    itself = agreements(target, target, text, (0.0, 1.0))
    for agreement in itself.values():
        assert list(agreement) == pytest.approx([1.0, 1.0, 1.0], rel=1e-5)


def test_judged_texts_are_source_and_what_the_target_writes(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM], source: torch.Tensor
) -> None:
    texts = dict(judged_texts(models[0], source, num_windows=3, num_tokens=30))
    assert list(texts) == ["source", "written at 0", "written at 0.8", "written at 1"]
    pieces = source.unfold(0, 29, 1)
    for window in texts["source"].token_ids:
        assert (pieces == window[1:]).all(-1).any()
    for text in texts.values():
        assert text.token_ids.shape == (3, 30)
        assert torch.equal(text.token_ids[:, 0], torch.zeros(3, dtype=torch.int32))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained target with the bundled one's tokenizer, sure enough of itself to be learned from."""
    folder = tmp_path_factory.mktemp("target")
    shutil.copytree(BUNDLED_TARGET, folder, ignore=shutil.ignore_patterns("model.safetensors"), dirs_exist_ok=True)
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(SMALL, RECIPE.vocab_size))
    model.lm_head.weight.data.mul_(20)
    model.to(torch.bfloat16).save_pretrained(folder)  # pyright: ignore[reportArgumentType]
    return folder


def make_draft(out: Path, target: Path, *, draft: Path | None = None, compiled: bool = False) -> list[float]:
    """Makes a draft for `target` in `out`, out of `draft` if it is named, and returns its losses."""
    losses: list[float] = []

    def hear(step: int, num_steps: int, loss: float | None) -> None:
        assert loss is not None
        losses.append(loss)
        assert (step, num_steps) == (len(losses), NUM_STEPS)

    run = PairRun(out, RECIPE, CPU, given_target=target, given_draft=draft, compiled=compiled)
    run.prepare_text(SOURCE)
    run.train_target(lambda *_: pytest.fail("the target was given"))
    written: list[tuple[int, int, float | None]] = []
    run.write_text(lambda *progress: written.append(progress))
    assert written == [(1, 2, None), (2, 2, None)]
    run.train_draft(hear)
    run.finish()
    return losses


@pytest.fixture(scope="module")
def made(target: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A draft made for the target, and its losses."""
    out = tmp_path_factory.mktemp("draft")
    return out, make_draft(out, target)


def test_draft_for_a_given_target_shares_its_tokenizer(made: tuple[Path, list[float]], target: Path) -> None:
    out, losses = made
    assert losses[-1] < losses[0]
    assert {path.name for path in out.iterdir()} == {"README.md", "draft"}
    draft = LlamaForCausalLM.from_pretrained(out / "draft")
    assert draft.config.hidden_size == SMALL.width
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / "draft" / name).read_bytes() == (target / name).read_bytes()


def test_a_given_draft_goes_on(made: tuple[Path, list[float]], target: Path, tmp_path: Path) -> None:
    out, losses = made
    again = make_draft(tmp_path / "out", target, draft=out / "draft")
    # The text begins anew, so the first batch is the one that the draft learned first.
    assert again[0] < losses[0]
    assert again[-1] < losses[-1]
    assert str(out / "draft") in (tmp_path / "out/README.md").read_text(encoding="utf-8")


def test_draft_that_does_not_fit_is_refused(made: tuple[Path, list[float]], target: Path, tmp_path: Path) -> None:
    draft = made[0] / "draft"
    deeper = replace(RECIPE, draft=replace(SMALL, num_layers=2))
    with pytest.raises(RecipeError, match="num_hidden_layers 1 instead of 2"):
        PairRun(tmp_path / "out", deeper, CPU, given_target=target, given_draft=draft)
    with pytest.raises(RecipeError, match="no draft"):
        PairRun(tmp_path / "out", RECIPE, CPU, given_target=target, given_draft=tmp_path / "nowhere")
    with pytest.raises(RecipeError, match="--target"):
        PairRun(tmp_path / "out", RECIPE, CPU, given_draft=draft)
    assert not (tmp_path / "out").exists()
    widen(draft, tmp_path / "deeper", num_layers=2)
    PairRun(tmp_path / "out", deeper, CPU, given_target=target, given_draft=tmp_path / "deeper")


@pytest.mark.skipif(bool(compiler_problem(CPU)), reason="nothing can be compiled here")
def test_compiled_training_goes_the_same_way(made: tuple[Path, list[float]], target: Path, tmp_path: Path) -> None:
    assert make_draft(tmp_path, target, compiled=True) == pytest.approx(made[1], rel=1e-3)


def test_compiling_where_nothing_can_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair, "compiler_problem", lambda device: "there is no C++ compiler; install g++")
    with pytest.raises(RecipeError, match="without --compile"):
        PairRun(tmp_path / "out", RECIPE, CPU, compiled=True)
    assert not (tmp_path / "out").exists()


def test_target_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no target"):
        PairRun(tmp_path / "out", RECIPE, CPU, given_target=tmp_path / "nowhere")
    with pytest.raises(RecipeError, match="4096 tokens"):
        PairRun(tmp_path / "out", replace(RECIPE, vocab_size=320), CPU, given_target=BUNDLED_TARGET)
    result = CliRunner().invoke(app, [str(tmp_path / "out"), "--target", str(tmp_path / "nowhere")])
    assert result.exit_code == 1
    assert "no target" in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_run_for_another_target_is_another_run(target: Path, tmp_path: Path) -> None:
    PairRun(tmp_path, RECIPE, CPU, given_target=target)
    PairRun(tmp_path, RECIPE, CPU, given_target=target)
    with pytest.raises(RecipeError, match="other settings"):
        PairRun(tmp_path, RECIPE, CPU)
