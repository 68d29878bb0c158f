"""The stages of a run and the folder that they fill.

OUT/target/  OUT/draft/  OUT/README.md    the result; no target if one was given
OUT/work/                                 settings, tokenizer, texts and checkpoints until the README is written
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from outrider.engine.compile.just_in_time import compiler_problem
from recipes import model_folder
from recipes.demo_pair.evaluation import Figures, evaluate
from recipes.demo_pair.recipe import Precision, Recipe, RecipeError, Shape
from recipes.demo_pair.text import END_OF_TEXT, Text, Turns, Windows, cut, encode, read_documents, train_tokenizer
from recipes.demo_pair.training import (
    LossFunction,
    Optimizers,
    adamw,
    adopt_embedding,
    distillation_loss,
    muon,
    next_token_loss,
    train,
)
from recipes.demo_pair.writing import SOURCE_LESSONS, lesson, write
from recipes.progress import Report

MAX_CONTEXT = 2048
"""Positions that the saved models accept."""

DTYPES = {Precision.BFLOAT16: torch.bfloat16, Precision.FLOAT32: torch.float32}
"""In what a target that only reads or writes is held: it was saved in bfloat16, which float32 holds exactly."""


class PairRun:
    """One run of a recipe. Its stages are called in the order they stand in; one that is done returns at once."""

    def __init__(
        self,
        out: Path,
        recipe: Recipe,
        device: torch.device,
        *,
        given_target: Path | None = None,
        given_draft: Path | None = None,
        compiled: bool = False,
    ) -> None:
        """Claims the folder `out`, or takes up the run that was stopped there.

        With the folder of a finished target of the recipe's kind, `given_target`, only a draft is made, for that one;
        it begins as the draft of the folder `given_draft`, if there is one. `compiled` trains faster where there is a
        compiler. Raises RecipeError if `out` holds anything else, or a run with other settings, or if no draft can be
        made for the given target or of the given draft, or if nothing can be compiled here.
        """
        self._out = out
        self._given_target = given_target
        self._given_draft = given_draft
        self._target = given_target or out / "target"
        self._work = out / "work"
        self._recipe = recipe
        self._device = device
        self._compiled = compiled
        if given_target:
            _check_target(given_target, recipe.vocab_size)
        if given_draft:
            if not given_target:
                raise RecipeError("A draft goes on learning from the target it was made for: name that with --target.")
            _check_draft(given_draft, llama_config(recipe.draft, recipe.vocab_size))
        if compiled and (problem := compiler_problem(device)):
            raise RecipeError(f"Nothing can be compiled here: {problem}. Or train without --compile.")
        self._claim()

    def prepare_text(self, source: Path) -> None:
        """Trains the tokenizer on the Python files below `source`, or takes the given target's, and encodes them.

        Raises RecipeError if there are too few.
        """
        if self._corpus_file.exists():
            return
        documents = read_documents(source)
        num_held_out = self._recipe.num_held_out_files
        held_out, training = documents[:num_held_out], documents[num_held_out:]
        if not held_out or not training:
            raise RecipeError(
                f"{source} holds {len(documents)} files of Python: use a Python that brings its library as source."
            )
        if self._given_target:
            tokenizer = Tokenizer.from_file(str(self._given_target / "tokenizer.json"))
        else:
            tokenizer = train_tokenizer(training, self._recipe.vocab_size)
        if tokenizer.get_vocab_size() != self._recipe.vocab_size:
            raise RecipeError(
                f"{source} yields only {tokenizer.get_vocab_size()} different tokens: use a Python with more library."
            )
        tokenizer.save(str(self._tokenizer_file))
        corpus = {"training": encode(tokenizer, training), "held_out": encode(tokenizer, held_out)}
        unfinished = self._corpus_file.with_suffix(".unfinished")
        save_file(corpus, unfinished)
        unfinished.replace(self._corpus_file)

    def train_target(self, report: Report) -> None:
        """Trains the target by next-token loss, unless it was given."""
        recipe = self._recipe
        if self._given_target or (self._out / "target").exists():
            return
        model = self._new(recipe.target)
        if self._compiled:
            model.model.compile(dynamic=False)
        source = self._source((1.0,))
        self._train("target", model, next_token_loss, adamw(model), source, recipe.target_tokens, report)

    def write_text(self, report: Report) -> None:
        """Has the target write what its draft learns from besides the source; a step is one batch."""
        recipe = self._recipe
        self._written.mkdir(exist_ok=True)
        target = self._load(self._target, DTYPES[recipe.precision])
        for index in range(recipe.written_batches):
            file = self._written / f"{index:05}.safetensors"
            if not file.exists():
                unfinished = file.with_suffix(".unfinished")
                save_file({"windows": self._write(target, index)}, unfinished)
                unfinished.replace(file)
            report(index + 1, recipe.written_batches, None)

    def train_draft(self, report: Report) -> None:
        """Distils the draft from the target as it was saved: one step on source, two on what the target wrote."""
        recipe = self._recipe
        if (self._out / "draft").exists():
            return
        target = self._load(self._target, DTYPES[recipe.precision])
        if self._given_draft:
            model = self._load(self._given_draft, torch.float32)
        else:
            model = self._new(recipe.draft)
            adopt_embedding(model, target)
        if self._compiled:
            for each in (model, target):
                each.model.compile(dynamic=False)
        batches = [load_file(file)["windows"] for file in sorted(self._written.glob("*.safetensors"))]
        temperatures = [lesson(index) for index, batch in enumerate(batches) for _ in batch]
        batch_windows = recipe.batch_tokens // recipe.written_window_tokens
        written = Windows(torch.cat(batches), temperatures, batch_windows, recipe.seed)
        text = Turns([self._source(SOURCE_LESSONS), written, written])
        self._train("draft", model, distillation_loss(target), muon(model), text, recipe.draft_tokens, report)

    def finish(self) -> Figures:
        """Measures the pair on the held-out files, writes the README and removes what was only needed on the way."""
        target, draft = self._load(self._target, torch.float32), self._load(self._out / "draft", torch.float32)
        figures = evaluate(target, draft, load_file(self._corpus_file)["held_out"], self._recipe.window_tokens)
        num_parameters = target.num_parameters(), draft.num_parameters()
        text = _readme(self._recipe, figures, *num_parameters, self._given_target, self._given_draft)
        (self._out / "README.md").write_text(text, encoding="utf-8")
        shutil.rmtree(self._work)
        return figures

    @property
    def _settings_file(self) -> Path:
        return self._work / "settings.json"

    @property
    def _tokenizer_file(self) -> Path:
        return self._work / "tokenizer.json"

    @property
    def _corpus_file(self) -> Path:
        return self._work / "corpus.safetensors"

    @property
    def _written(self) -> Path:
        return self._work / "written"

    def _claim(self) -> None:
        given = {"given_target": self._given_target, "given_draft": self._given_draft}
        settings = asdict(self._recipe) | {name: folder and str(folder) for name, folder in given.items()}
        if self._settings_file.exists():
            if json.loads(self._settings_file.read_text(encoding="utf-8")) != settings:
                raise RecipeError(
                    f"{self._out} holds a run with other settings: repeat its flags or choose a new folder."
                )
        elif self._out.exists() and any(self._out.iterdir()):
            raise RecipeError(f"{self._out} is not empty and no unfinished run: choose a new folder.")
        else:
            self._work.mkdir(parents=True)
            self._settings_file.write_text(json.dumps(settings, indent=2), encoding="utf-8")

    def _write(self, target: LlamaForCausalLM, index: int) -> Tensor:
        """The batch of that index: [B, T + 1] int32 token ids."""
        recipe = self._recipe
        source: Tensor = load_file(self._corpus_file)["training"]
        num_windows, num_tokens = recipe.written_batch_windows, recipe.written_window_tokens + 1
        return write(target, source, lesson(index), num_windows, num_tokens, recipe.seed + index).token_ids

    def _source(self, temperatures: Sequence[float]) -> Windows:
        recipe = self._recipe
        windows = cut(load_file(self._corpus_file)["training"], recipe.window_tokens)
        return Windows(windows, temperatures, recipe.batch_tokens // recipe.window_tokens, recipe.seed)

    def _new(self, shape: Shape) -> LlamaForCausalLM:
        torch.manual_seed(self._recipe.seed)
        model = LlamaForCausalLM(llama_config(shape, self._recipe.vocab_size))
        model.to(self._device)  # pyright: ignore[reportArgumentType]
        return model

    def _train(
        self,
        name: str,
        model: LlamaForCausalLM,
        loss_of: LossFunction,
        optimizers: Optimizers,
        text: Text,
        num_tokens: int,
        report: Report,
    ) -> None:
        shape: Shape = getattr(self._recipe, name)
        train(
            model,
            loss_of,
            optimizers,
            text,
            self._recipe,
            num_tokens=num_tokens,
            learning_rate=shape.learning_rate,
            checkpoint=self._work / f"{name}.safetensors",
            report=report,
        )
        self._save(name, model)

    def _save(self, name: str, model: LlamaForCausalLM) -> None:
        unfinished = self._work / name
        model.to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
        model_folder.save(model, unfinished)
        tokenizer = Tokenizer.from_file(str(self._tokenizer_file))
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
        ).save_pretrained(unfinished)
        unfinished.replace(self._out / name)

    def _load(self, folder: Path, dtype: torch.dtype) -> LlamaForCausalLM:
        model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        model.to(self._device)  # pyright: ignore[reportArgumentType]
        return model


def llama_config(shape: Shape, vocab_size: int) -> LlamaConfig:
    """A model's configuration as transformers wants it."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        max_position_embeddings=MAX_CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )


def _check_target(folder: Path, vocab_size: int) -> None:
    """Raises RecipeError unless the folder holds a target of the recipe's kind."""
    try:
        config = LlamaConfig.from_pretrained(folder)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:
        raise RecipeError(f"{folder} holds no target: name a folder with a model of this recipe.") from error
    found = config.vocab_size, tokenizer.get_vocab_size(), tokenizer.token_to_id(END_OF_TEXT)
    if found != (vocab_size, vocab_size, 0):
        raise RecipeError(
            f"{folder} is no target of this recipe: it has {config.vocab_size} tokens, the recipe {vocab_size}, and "
            f"{END_OF_TEXT} must be token 0."
        )


def _check_draft(folder: Path, wanted: LlamaConfig) -> None:
    """Raises RecipeError unless the folder holds a draft of the `wanted` shape."""
    try:
        config = LlamaConfig.from_pretrained(folder)
    except Exception as error:
        raise RecipeError(f"{folder} holds no draft: name a folder with a model of this recipe.") from error
    names = "vocab_size", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"
    differing = [name for name in names if getattr(config, name) != getattr(wanted, name)]
    if differing:
        shape = ", ".join(f"{name} {getattr(config, name)} instead of {getattr(wanted, name)}" for name in differing)
        raise RecipeError(
            f"{folder} holds no draft of the recipe's shape: {shape}. `python -m recipes.widen` adds layers and "
            "neurons without changing what a model computes."
        )


def _readme(
    recipe: Recipe,
    figures: Figures,
    num_target_parameters: int,
    num_draft_parameters: int,
    given_target: Path | None,
    given_draft: Path | None,
) -> str:
    begun = f"began as `{given_draft}`; " if given_draft else ""
    known = " The draft has not seen them; a given target may have." if given_target else ""
    target_training = f"given: `{given_target}`" if given_target else f"next token, {recipe.target_tokens:,} tokens"
    return f"""# A demonstration pair

Trained by `recipes/demo_pair` on the source of the standard library of {platform.python_implementation()} \
{platform.python_version()}. That text is under the Python Software Foundation licence.
The models write text that looks like Python and know nothing.

| | target | draft |
|---|---|---|
| parameters | {num_target_parameters:,} | {num_draft_parameters:,} |
| trained | {target_training} | {begun}distilled from the target, {recipe.draft_tokens:,} tokens |
| loss on held-out files, nats per token | {figures.target_loss:.3f} | {figures.draft_loss:.3f} |

Over the {figures.num_tokens:,} tokens of {recipe.num_held_out_files} held-out files, the target's most likely \
token is the draft's in {figures.greedy_agreement:.1%} of the places, and among the draft's three most likely in \
{figures.top3_agreement:.1%}.{known}

Settings:

```json
{json.dumps(asdict(recipe), indent=2)}
```
"""
