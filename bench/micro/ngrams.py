"""How often n-gram guesses are right, and what they cost: the target continues held-out prompts, and the table guesses.

    python -m bench.micro.ngrams --table build/ngrams.safetensors --json bench/results/ngrams.json

What is counted depends on the text alone. Microseconds per round are those of a verify session's rounds over the same
text, of the table in Python and the one in machine code by turns.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from bench import machine
from bench.micro import lookup_rounds
from bench.prompts import load_prompts
from outrider.core.propose.ngram import ORDERS, GuessTree, NgramTable
from outrider.core.propose.ngram_static import StaticNgrams
from outrider.engine.load.folder import load_model
from outrider.engine.sample.noise import gumbel
from outrider.worker.ngram_file import load_ngrams

TEMPERATURES = (0.0, 0.8)
NUM_GUESSES = 3
TREES = ((4, 1), (8, 1), (8, 3), (16, 3))
"""Nodes and width of the trees whose acceptance length is measured; width 1 is a chain."""

_MODELS = Path(__file__).parents[2] / "models"


class Continuation(NamedTuple):
    """What the target made of a prompt."""

    prompt: list[int]
    output: list[int]


class Hits:
    """Places in which something was guessed, and how often that was right."""

    def __init__(self) -> None:
        self.num_places = self.num_first = self.num_any = 0
        self.promised = 0.0

    def add(self, table: NgramTable, token_id: int) -> None:
        """What `table` guesses next, now that `token_id` turns out to come."""
        guesses = table.guesses(table.context, NUM_GUESSES)
        self.num_places += 1
        if guesses:
            self.num_first += guesses[0].token_id == token_id
            self.num_any += any(guess.token_id == token_id for guess in guesses)
            self.promised += guesses[0].probability

    def figures(self) -> dict[str, float]:
        """Shares of the places."""
        count = max(self.num_places, 1)
        return {
            "num_places": self.num_places,
            "first_right": round(self.num_first / count, 3),
            f"one_of_{NUM_GUESSES}_right": round(self.num_any / count, 3),
            "first_promised": round(self.promised / count, 3),
        }


def main(
    table: Annotated[Path | None, typer.Option(help="A static table; see python -m recipes.ngram_table.")] = None,
    target: Annotated[Path, typer.Option(help="Folder of the target.")] = _MODELS / "target",
    num_prompts: Annotated[int, typer.Option(min=1, help="Prompts: beginnings of held-out source files.")] = 24,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each continuation.")] = 192,
    out: Annotated[Path | None, typer.Option("--json", help="Where to write the figures as JSON, too.")] = None,
) -> None:
    """Count how often n-gram guesses are right."""
    static = load_ngrams(table).table if table is not None else None
    prompts = load_prompts(None, num_prompts, Tokenizer.from_file(str(target / "tokenizer.json")))
    model = load_model(target, device=torch.device("cpu"), dtype="float32")
    figures: dict[str, object] = {"num_prompts": num_prompts, "max_tokens": max_tokens, "machine": machine.facts()}
    for temperature in TEMPERATURES:
        texts = _continued(model, prompts, temperature, max_tokens)
        figures[f"temperature {temperature}"] = {"line": _measure(texts, None)} | (
            {"line and table": _measure(texts, static)} if static is not None else {}
        )
        figures[f"microseconds per round, temperature {temperature}"] = lookup_rounds.measure(texts, static)
    text = json.dumps(figures, indent=1)
    print(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")


@torch.inference_mode()
def _continued(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], temperature: float, max_tokens: int
) -> list[Continuation]:
    """By the target alone, as `Sampler.choose` would. Prompts are cut to the shortest one, which makes a batch."""
    length = min(map(len, prompts))
    fed, cache = torch.tensor([list(prompt[:length]) for prompt in prompts]), None
    line, seeds = fed, torch.arange(len(prompts))
    for position in range(length, length + max_tokens):
        result = model(fed, past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        logits: Tensor = result.logits[:, -1].double()
        if temperature:
            logits = logits / temperature + gumbel(seeds, torch.full_like(seeds, position), logits.shape[-1])
        fed = logits.argmax(-1, keepdim=True)
        line = torch.cat((line, fed), -1)
    return [Continuation(token_ids[:length], token_ids[length:]) for token_ids in line.tolist()]


def _measure(texts: Sequence[Continuation], static: StaticNgrams | None) -> dict[str, object]:
    everywhere = Hits()
    by_match = {num_tokens: Hits() for num_tokens in (0, *reversed(ORDERS))}
    for prompt, output in texts:
        table = NgramTable(prompt, static)
        line = [*prompt, *output]
        contexts: set[tuple[int, ...]] = set()
        for position, token_id in enumerate(line):
            tails = [tuple(line[position - num_tokens : position]) for num_tokens in ORDERS if num_tokens <= position]
            if position >= len(prompt):
                everywhere.add(table, token_id)
                by_match[next((len(tail) for tail in tails if tail in contexts), 0)].add(table, token_id)
                table.commit([token_id])
            contexts.update(tails)
    return {
        "all": everywhere.figures(),
        "by longest match": {num_tokens: hits.figures() for num_tokens, hits in by_match.items()},
        "tokens per round": {
            f"{limit} nodes of width {width}": round(_acceptance_length(texts, static, limit, width), 2)
            for limit, width in TREES
        },
    }


def _acceptance_length(texts: Sequence[Continuation], static: StaticNgrams | None, limit: int, width: int) -> float:
    """Tokens committed per round if each round scores a fresh tree of the likeliest guesses."""
    num_rounds = num_tokens = 0
    for prompt, output in texts:
        table = NgramTable(prompt, static)
        done = 0
        while done < len(output):
            tree = table.tree(table.context, limit=limit, width=width)
            committed = _committed(tree, output[done:])
            table.commit(committed)
            done += len(committed)
            num_rounds += 1
        num_tokens += done
    return num_tokens / num_rounds


def _committed(tree: GuessTree, output: Sequence[int]) -> Sequence[int]:
    """What the round commits of the coming `output`: the tokens that lie on a path of the tree, and the next one."""
    place = {key: node for node, key in enumerate(zip(tree.parents, tree.token_ids, strict=True))}
    node: int | None = -1
    for count, token_id in enumerate(output, 1):
        node = place.get((node, token_id))
        if node is None:
            return output[:count]
    return output


if __name__ == "__main__":
    typer.run(main)
