"""The stages of a run and the folder that they fill.

OUT/                the draft: config, weights, tokenizer, README.md, acceptance.png
OUT/work/           settings, prompts, what the target wrote, and the checkpoint: what a stopped run goes on from
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from outrider.engine.load.folder import load_model, resolve_folder, tokenizer_file
from recipes.demo_pair.recipe import RecipeError
from recipes.distill import draft as drafts
from recipes.distill import prompts, written
from recipes.distill.acceptance import CHAIN, MASKS, Drafter, Measured, as_json, from_json, measure
from recipes.distill.options import Options
from recipes.distill.plot import plot
from recipes.distill.report import PLOT, README, Reached, readme
from recipes.distill.training import Objective, train
from recipes.progress import Report

LEARNING_RATE, LEARNING_RATE_GIVEN = 1e-3, 3e-4
"""Peaks of the learning rate from nothing, and from a given draft, which shall not forget."""

HELD_OUT_SEED = 1 << 32
"""Added to the seed of held-out texts: the noise that they are written with is no other text's."""


class Distillation:
    """One run. Its stages are called in the order they stand in; what is done is not done again."""

    def __init__(self, out: Path, options: Options, device: torch.device, cache: Path | None = None) -> None:
        """Claims the folder `out`, or takes up the run that was stopped there, and loads the target.

        It writes with the native operators of the folder `cache`; see `Writer`.
        Raises RecipeError if `out` holds anything else, or a run with other settings, and UnsupportedModelError if a
        model cannot be served.
        """
        self._out = out
        self._work = out / "work"
        self._options = options
        self._device = device
        self._cache = cache
        self._target_folder = resolve_folder(str(options.target))
        self._tokenizer = Tokenizer.from_file(str(tokenizer_file(self._target_folder)))
        self._target = drafts.load(self._target_folder, options.precision.value, device).eval()
        self._draft, self._had_masks = self._beginning()
        self._claim()

    @property
    def is_done(self) -> bool:
        """Whether the folder holds the result."""
        return (self._out / README).exists()

    def write(self, report: Report) -> None:
        """Has the target write all texts; a step is one file of them."""
        options = self._options
        kinds = (
            ("training", options.num_texts, options.seed),
            ("held_out", options.held_out_texts, options.seed + HELD_OUT_SEED),
        )
        files = [file for name, count, _ in kinds for file in self._files(name, count)]
        if all(file.exists() for file in files):
            return
        wanted = prompts.Wanted(options.num_texts, options.held_out_texts, options.prompt_tokens)
        found = prompts.cut(prompts.read(options.text, self._target_folder), self._tokenizer, wanted, options.seed)
        target = load_model(self._target_folder, device=self._device, dtype="auto")
        max_context = options.prompt_tokens + options.answer_tokens
        writer = written.Writer(target, max_context=max_context, cache=self._cache)
        for name, count, seed in kinds:
            some: Sequence[Sequence[int]] = getattr(found, name)
            for first, file in zip(range(0, count, written.AT_ONCE), self._files(name, count), strict=True):
                if not file.exists():
                    texts = writer.write(some[first : first + written.AT_ONCE], options.answer_tokens, seed + first)
                    written.save(texts, file)
                report(files.index(file) + 1, len(files), None)

    def measure_before(self, report: Report) -> Measured:
        """The acceptance of the draft as it begins; what it is by masks is told if it knew them."""
        file = self._work / "before.json"
        if not file.exists():
            has_masks = self._options.parallel and self._had_masks
            measured = self._measured((CHAIN, MASKS) if has_masks else (CHAIN,), report)
            unfinished = file.with_suffix(".unfinished")
            unfinished.write_text(as_json(measured), encoding="utf-8")
            unfinished.replace(file)
        return from_json(file.read_text(encoding="utf-8"))

    def train(self, report: Report) -> None:
        """Trains the draft on what the target has written."""
        options = self._options
        objective = Objective(self._target, options, self._vocab_size)
        rate = options.learning_rate
        if rate is None:
            rate = LEARNING_RATE_GIVEN if options.draft else LEARNING_RATE
        train(self._draft, objective, self._texts("training"), options, rate, self._checkpoint, report)

    def finish(self, before: Measured, command: Sequence[str], report: Report) -> Reached:
        """Measures the draft as it is saved, and writes the folder; the checkpoint is no more needed then."""
        drafts.save(self._draft, self._target_folder, self._out)
        reached = Reached(before, self._measured((CHAIN, MASKS) if self._options.parallel else (CHAIN,), report))
        plot(before, reached.after, self._out / PLOT)
        text = readme(reached, self._options, command, self._draft.num_parameters())
        (self._out / README).write_text(text, encoding="utf-8")
        self._checkpoint.unlink(missing_ok=True)
        return reached

    @property
    def _checkpoint(self) -> Path:
        return self._work / "checkpoint.safetensors"

    @property
    def _vocab_size(self) -> int:
        """Tokens that both models have; either may be padded."""
        return min(model.config.get_text_config().vocab_size for model in (self._target, self._draft))

    def _beginning(self) -> tuple[PreTrainedModel, bool]:
        """The draft to begin with, and whether it knew a mask token."""
        options = self._options
        if options.draft:
            folder = resolve_folder(str(options.draft))
            drafts.check_vocabulary(folder, self._target_folder)
            model = drafts.load(folder, "float32", self._device)
        else:
            model = drafts.from_nothing(self._target, options.layers, options.width, options.seed)
        had_masks = drafts.mask_token(model) is not None
        if options.parallel:
            drafts.check_reach(model, options.prompt_tokens + options.answer_tokens)
            drafts.give_mask_token(model, self._tokenizer.get_vocab_size())
        model.to(self._device)  # pyright: ignore[reportArgumentType]
        return model, had_masks

    def _claim(self) -> None:
        file = self._work / "settings.json"
        settings = json.loads(json.dumps(asdict(self._options), default=str))
        if file.exists():
            if json.loads(file.read_text(encoding="utf-8")) != settings:
                raise RecipeError(
                    f"{self._out} holds a run with other settings: repeat its flags or choose a new folder."
                )
        elif self._out.exists() and any(self._out.iterdir()):
            raise RecipeError(f"{self._out} is not empty and holds no run: choose a new folder.")
        else:
            self._work.mkdir(parents=True)
            file.write_text(json.dumps(settings, indent=2), encoding="utf-8")

    def _files(self, name: str, count: int) -> list[Path]:
        return [self._work / f"{name}-{first:06}.safetensors" for first in range(0, count, written.AT_ONCE)]

    def _texts(self, name: str) -> list[written.Text]:
        return [text for file in sorted(self._work.glob(f"{name}-*.safetensors")) for text in written.load(file)]

    def _measured(self, ways: Sequence[str], report: Report) -> Measured:
        self._draft.eval()
        drafter = Drafter(self._draft, self._vocab_size)
        return measure(drafter, self._texts("held_out"), ways, self._options.depths, report)
