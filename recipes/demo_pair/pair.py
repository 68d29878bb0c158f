"""The stages of a run and the folder that they fill.

OUT/target/  OUT/draft/  OUT/README.md    the result
OUT/work/                                 settings, tokenizer, token ids and checkpoints until the README is written
"""

from __future__ import annotations

import json
import platform
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.demo_pair.evaluation import Figures, evaluate
from recipes.demo_pair.recipe import Recipe, RecipeError, Shape
from recipes.demo_pair.text import END_OF_TEXT, Windows, encode, read_documents, train_tokenizer
from recipes.demo_pair.training import LossFunction, Report, distillation_loss, next_token_loss, train

MAX_CONTEXT = 2048
"""Positions that the saved models accept."""


class PairRun:
    """One run of a recipe. Its stages are called in the order they stand in; one that is done returns at once."""

    def __init__(self, out: Path, recipe: Recipe, device: torch.device) -> None:
        """Claims the folder `out`, or takes up the run that was stopped there.

        Raises RecipeError if `out` holds anything else, or a run with other settings.
        """
        self._out = out
        self._work = out / "work"
        self._recipe = recipe
        self._device = device
        self._claim()

    def prepare_text(self, source: Path) -> None:
        """Trains the tokenizer on the Python files below `source` and encodes them.

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
        """Trains the target by next-token loss."""
        self._train("target", self._recipe.target, self._recipe.target_tokens, next_token_loss, report)

    def train_draft(self, report: Report) -> None:
        """Distils the draft from the target as it was saved."""
        loss_of = distillation_loss(self._load("target"))
        self._train("draft", self._recipe.draft, self._recipe.draft_tokens, loss_of, report)

    def finish(self) -> Figures:
        """Measures the pair on the held-out files, writes the README and removes what was only needed on the way."""
        target, draft = self._load("target"), self._load("draft")
        figures = evaluate(target, draft, load_file(self._corpus_file)["held_out"], self._recipe.window_tokens)
        text = _readme(self._recipe, figures, target.num_parameters(), draft.num_parameters())
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

    def _claim(self) -> None:
        settings = asdict(self._recipe)
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

    def _train(self, name: str, shape: Shape, num_tokens: int, loss_of: LossFunction, report: Report) -> None:
        if (self._out / name).exists():
            return
        torch.manual_seed(self._recipe.seed)
        model = LlamaForCausalLM(llama_config(shape, self._recipe.vocab_size))
        model.to(self._device)  # pyright: ignore[reportArgumentType]
        training: Tensor = load_file(self._corpus_file)["training"]
        checkpoint = self._work / f"{name}.safetensors"
        train(
            model,
            loss_of,
            Windows(training, self._recipe.window_tokens, self._recipe.seed),
            self._recipe,
            num_tokens=num_tokens,
            learning_rate=shape.learning_rate,
            checkpoint=checkpoint,
            report=report,
        )
        self._save(name, model)

    def _save(self, name: str, model: LlamaForCausalLM) -> None:
        unfinished = self._work / name
        model.to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
        model.save_pretrained(unfinished)
        tokenizer = Tokenizer.from_file(str(self._tokenizer_file))
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
        ).save_pretrained(unfinished)
        # safetensors makes files that only their owner can read; a service often runs as somebody else.
        (unfinished / "model.safetensors").chmod(0o644)
        unfinished.replace(self._out / name)

    def _load(self, name: str) -> LlamaForCausalLM:
        model = LlamaForCausalLM.from_pretrained(self._out / name, dtype=torch.float32).eval()
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


def _readme(recipe: Recipe, figures: Figures, num_target_parameters: int, num_draft_parameters: int) -> str:
    return f"""# A demonstration pair

Trained by `recipes/demo_pair` on the source of the standard library of {platform.python_implementation()} \
{platform.python_version()}. That text is under the Python Software Foundation licence.
The models write text that looks like Python and know nothing.

| | target | draft |
|---|---|---|
| parameters | {num_target_parameters:,} | {num_draft_parameters:,} |
| trained | next token, {recipe.target_tokens:,} tokens | distilled from the target, {recipe.draft_tokens:,} tokens |
| loss on held-out files, nats per token | {figures.target_loss:.3f} | {figures.draft_loss:.3f} |

Over the {figures.num_tokens:,} tokens of {recipe.num_held_out_files} held-out files, the target's most likely \
token is the draft's in {figures.greedy_agreement:.1%} of the places, and among the draft's three most likely in \
{figures.top3_agreement:.1%}.

Settings:

```json
{json.dumps(asdict(recipe), indent=2)}
```
"""
