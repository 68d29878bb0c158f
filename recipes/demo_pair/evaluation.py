"""What a pair reaches on text that it was not trained on.

python -m recipes.demo_pair.evaluation --target models/target --draft models/draft
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import transformers
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from outrider.core.protocol.sampling import SamplingParams
from outrider.engine.sample.sampler import Row, Sampler
from recipes.demo_pair.recipe import Recipe
from recipes.demo_pair.text import encode, read_documents
from recipes.demo_pair.writing import TEMPERATURES, Written, write

WINDOWS_AT_ONCE = 64
"""Windows that the target writes in one batch."""


class Figures(NamedTuple):
    """A pair on held-out text, teacher-forced: each token is predicted from the true ones before it."""

    num_tokens: int
    target_loss: float
    """Nats per token."""
    draft_loss: float
    """Nats per token."""
    greedy_agreement: float
    """Part of the positions at which both models find the same token most likely."""
    top3_agreement: float
    """Part of the positions at which the target's most likely token is among the draft's three."""


class Agreement(NamedTuple):
    """How often a draft guesses the token that the target chooses at one temperature, both with the same noise."""

    first: float
    """Part of the positions at which the draft's first proposal is the target's choice."""
    top3: float
    """Part of the positions at which the target's choice is among the draft's first three proposals."""
    optimum: float
    """What `first` cannot exceed on average under any coupling: 1 - total variation of the two distributions. At
    temperature 0 they are point masses, and it is `first`."""


@torch.inference_mode()
def evaluate(target: LlamaForCausalLM, draft: LlamaForCausalLM, token_ids: Tensor, window_tokens: int) -> Figures:
    """Runs both models over `token_ids` ([N], at least two), cut into windows of `window_tokens`."""
    totals = torch.zeros(4, dtype=torch.float64)
    num_tokens = len(token_ids) - 1
    for start in range(0, num_tokens, window_tokens):
        window = token_ids[start : start + window_tokens + 1]
        true = window[1:].long()  # [T]
        by_target, by_draft = _logits(target, window), _logits(draft, window)
        best = by_target.argmax(-1)[:, None]  # [T, 1]
        guesses = by_draft.topk(3).indices  # [T, 3]
        totals += torch.stack(
            [
                functional.cross_entropy(by_target, true, reduction="sum"),
                functional.cross_entropy(by_draft, true, reduction="sum"),
                (guesses[:, :1] == best).sum(),
                (guesses == best).sum(),
            ]
        )
    return Figures(num_tokens, *(totals / num_tokens).tolist())


@torch.inference_mode()
def agreements(
    target: LlamaForCausalLM, draft: LlamaForCausalLM, text: Written, temperatures: Sequence[float]
) -> dict[float, Agreement]:
    """At each temperature, the agreement over the tokens of `text` after the beginnings that were given.

    Both models predict each token from the window's own tokens before it, whatever either would have chosen. The
    choice and the proposals are those of the project's sampler, with a seed of its own for each window.
    """
    vocab_size: int = target.config.vocab_size
    positions = range(text.num_given, text.token_ids.shape[1])
    rows = [Row(0, position) for position in positions]
    sampler = Sampler(vocab_size, 1, torch.device("cpu"))
    totals = {temperature: torch.zeros(3, dtype=torch.float64) for temperature in temperatures}
    for seed, window in enumerate(text.token_ids):
        by_target = _logits(target, window)[text.num_given - 1 :]  # [P, V]
        by_draft = _logits(draft, window)[text.num_given - 1 :]  # [P, V]
        for temperature, total in totals.items():
            sampler.open(0, SamplingParams(temperature=temperature, seed=seed), (), ())
            choices = sampler.choose(by_target, rows)
            proposals, _ = sampler.propose(by_draft, rows, width=3)
            first = sum(choice == proposal[0] for choice, proposal in zip(choices, proposals, strict=True))
            top3 = sum(choice in proposal for choice, proposal in zip(choices, proposals, strict=True))
            if temperature:
                shares = (by_target / temperature).softmax(-1).minimum((by_draft / temperature).softmax(-1))
                optimum = shares.sum().item()
            else:
                optimum = first
            total += torch.tensor([first, top3, optimum], dtype=torch.float64)
    num_choices = len(text.token_ids) * len(positions)
    return {temperature: Agreement(*(total / num_choices).tolist()) for temperature, total in totals.items()}


def judged_texts(
    target: LlamaForCausalLM, token_ids: Tensor, num_windows: int, num_tokens: int
) -> Iterator[tuple[str, Written]]:
    """Names and windows: source as it stands in `token_ids`, and what the target writes after beginnings of it."""
    starts = torch.linspace(0, len(token_ids) - num_tokens, num_windows).long()[:, None]
    source = token_ids[starts + torch.arange(num_tokens)]
    source[:, 0] = 0
    yield "source", Written(source, 1)
    for temperature in TEMPERATURES:
        yield f"written at {temperature:g}", write(target, token_ids, temperature, num_windows, num_tokens, seed=0)


def _logits(model: LlamaForCausalLM, window: Tensor) -> Tensor:
    """Logits for all but the first token of a window [T + 1], [T, V] float32, on the CPU."""
    return model(input_ids=window[None, :-1].long().to(model.device), use_cache=False).logits[0].float().cpu()


def main(
    target: Annotated[Path, typer.Option(help="Folder of the target.")] = Path("models/target"),
    draft: Annotated[Path, typer.Option(help="Folder of the draft.")] = Path("models/draft"),
    num_windows: Annotated[int, typer.Option(min=1, help="Windows of each text.")] = WINDOWS_AT_ONCE,
) -> None:
    """Show how often a draft guesses what its target chooses: on held-out source and on what the target writes.

    Held out are the files that the recipe holds out of this Python's library.
    """
    transformers.utils.logging.disable_progress_bar()
    recipe = Recipe()
    held_out = read_documents(Path(sysconfig.get_path("stdlib")))[: recipe.num_held_out_files]
    token_ids = encode(Tokenizer.from_file(str(target / "tokenizer.json")), held_out)
    by_target, by_draft = (
        LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval() for folder in (target, draft)
    )
    table = Table("text", "temperature", "first", "top 3", "optimum")
    texts = judged_texts(by_target, token_ids, num_windows, recipe.written_window_tokens)
    for name, text in track(texts, "Measuring", total=1 + len(TEMPERATURES)):
        for temperature, agreement in agreements(by_target, by_draft, text, TEMPERATURES).items():
            table.add_row(name, f"{temperature:g}", *(f"{figure:.3f}" for figure in agreement))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
