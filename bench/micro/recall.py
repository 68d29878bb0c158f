"""What recent answers are worth to a verifier: texts that come back edited, and texts that do not.

    python -m bench.micro.recall

The sources of the product are written again and again, each time with some tokens replaced, inserted and left out; the
target is the text itself. `whole`: the prompt holds the version before, as an agent's does that was shown the file.
`part`: it holds the beginning of it. `never`: held-out files, each once. With and without the index the same texts are
written by turns, with no drafter, beside the look-ups of the line and of the static table. How many tokens a round
commits follows from the texts; its time is that of the bundled target's steps, and what the round took in Python here.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from tokenizers import Tokenizer

from bench import machine
from bench.micro.lookup_rounds import STEP_SECONDS, Round, estimates_of_steps, write
from bench.prompts import load_prompts
from outrider.core.estimate.step_curve import StepCurve
from outrider.core.propose.lookup import Ngrams
from outrider.core.propose.recent_answers import RecentAnswers
from outrider.worker.config import default_compile_cache
from outrider.worker.lookups import native_lookups, ngram_tables
from outrider.worker.ngram_file import load_ngrams

FILE_TOKENS = 384
"""Tokens of each file, from its beginning."""
NUM_VERSIONS = 5
"""How often each file is written."""
CHANGED = 0.01
"""Share of the tokens that another version replaces by others; it leaves out as many, and inserts as many."""
PART_TOKENS = 32
"""Tokens of a prompt that shows the beginning."""

_ROOT = Path(__file__).parents[2]


class Written(NamedTuple):
    """One answer."""

    prompt: Sequence[int]
    output: Sequence[int]


def main(
    table: Annotated[Path, typer.Option(help="The static table.")] = _ROOT / "models" / "ngrams.safetensors",
    tokenizer: Annotated[Path, typer.Option(help="Its tokenizer.")] = _ROOT / "models" / "target" / "tokenizer.json",
    num_files: Annotated[int, typer.Option(min=1, help="How many files.")] = 16,
    out: Annotated[Path | None, typer.Option("--json", help="Where to write the figures as JSON, too.")] = None,
) -> None:
    """Tell what recent answers bring, and what they cost where nothing comes back."""
    encoder = Tokenizer.from_file(str(tokenizer))
    paths = sorted((_ROOT / "outrider").rglob("*.py"))
    files = [encoder.encode(path.read_text(encoding="utf-8")).ids[:FILE_TOKENS] for path in paths]
    files = [file for file in files if len(file) == FILE_TOKENS][:num_files]
    held_out = load_prompts(None, None, encoder)
    works = {
        "whole": _edited(files, encoder.get_vocab_size(), lambda before: before),
        "part": _edited(files, encoder.get_vocab_size(), lambda before: before[:PART_TOKENS]),
        "never": [Written(file[:PART_TOKENS], file[PART_TOKENS:]) for file in held_out],
    }
    maker = ngram_tables(native_lookups(default_compile_cache()), load_ngrams(table).table)
    figures: dict[str, object] = {"num_files": len(files), "changed": CHANGED, "machine": machine.facts()}
    figures |= {name: _measure(texts, maker) for name, texts in works.items()}
    text = json.dumps(figures, indent=1)
    print(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")


def _edited(
    files: Sequence[Sequence[int]], vocab_size: int, shown: Callable[[Sequence[int]], Sequence[int]]
) -> list[Written]:
    """Version after version of all files: a file comes back when all others were written."""
    chance = random.Random(1)
    versions = list(files)
    found: list[Written] = []
    for _ in range(NUM_VERSIONS):
        for index, before in enumerate(versions):
            after: list[int] = []
            for token_id in before:
                fate = chance.random() / CHANGED
                after += [chance.randrange(vocab_size)] if fate < 1 else [] if fate < 2 else [token_id]
                after += [chance.randrange(vocab_size)] if 2 <= fate < 3 else []
            found.append(Written(shown(before), after))
            versions[index] = after
    return found


def _measure(texts: Sequence[Written], maker: Callable[[], Ngrams]) -> dict[str, object]:
    arms = {
        "without": partial(write, maker=maker, estimates=estimates_of_steps()),
        "with": partial(write, maker=maker, estimates=estimates_of_steps(), recent=RecentAnswers()),
    }
    rounds: dict[str, list[Round]] = {name: [] for name in arms}
    for prompt, output in texts:
        for name, arm in arms.items():
            rounds[name] += arm(prompt, output)
    figures = {name: _figures(each) for name, each in rounds.items()}
    ratio = figures["without"]["ms_per_token"] / figures["with"]["ms_per_token"]
    return {**figures, "times_faster": round(ratio, 3)}


def _figures(rounds: Sequence[Round]) -> dict[str, float]:
    curve = StepCurve()
    curve.restart(STEP_SECONDS)
    num_tokens = sum(each.num_tokens for each in rounds)
    in_python = statistics.median(each.in_all for each in rounds)
    ms = sum(curve.seconds(1 + each.num_nodes) * 1e3 + in_python / 1e3 for each in rounds)
    return {
        "tokens_per_round": round(num_tokens / len(rounds), 3),
        "nodes_per_round": round(sum(each.num_nodes for each in rounds) / len(rounds), 2),
        "python_us_per_round": round(in_python, 1),
        "ms_per_token": round(ms / num_tokens, 4),
    }


if __name__ == "__main__":
    typer.run(main)
