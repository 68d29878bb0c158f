"""A light recurrent head over a draft model's last hidden state: a trial, told in docs/experiments/recurrent-head.md.

`python -m recipes.recurrent_head RUN` trains one of each kind on the texts of the folder RUN of an `outrider distill`,
whose target and draft model are the bundled ones, and tells what they accept of its held-out texts, beside the draft
model's own chain and, if RUN was made with --parallel, beside its mask tokens; and what a level costs.

The draft model guesses a round's first tokens by passes of its own. From the last of these passes a head goes on: its
state begins as the hidden state there, takes in the embedding of each token guessed since, and the draft model's own
output matrix makes logits of it (recurrent drafting, Zhang et al., arXiv 2403.09919). It attends to
nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from outrider.core.protocol.sampling import SamplingParams
from outrider.engine import native
from outrider.engine.compile.linear import PackedLinear
from outrider.engine.sample.sampler import Row, Sampler
from outrider.worker.config import default_compile_cache
from recipes.demo_pair.training import BETAS, MAX_GRADIENT_NORM, SHARPEST, rate_factor
from recipes.distill import draft as drafts
from recipes.distill import written
from recipes.distill.acceptance import CHAIN, MASKS, Acceptance, Drafter, added, chained, rounds
from recipes.distill.draft import logits, states
from recipes.distill.loss import costs
from recipes.distill.options import Loss
from recipes.distill.training import Batch, Reader, batch_of
from recipes.distill.written import Text
from recipes.progress import Report, progress_bars, reporter

MODELS = Path(__file__).parents[1] / "models"

LEARNING_RATE = 2e-3

NUM_TEXTS = 8
"""Texts of a step."""

NUM_STARTS = 96
"""Places of these texts from which a step's heads go on: with four levels each, about as many rows as PIECE_TOKENS."""

DRAFT_STEPS = (0.05, 0.3, 0.74)
"""A draft step in target steps: of the wide pair, of the bundled pair's bare passes, and of these in place (issue of
drafters that cost nothing)."""

NUM_TIMED = 200
"""Timed levels of each kind; the kinds take turns."""


class MlpHead(nn.Module):
    """A state that an MLP of one hidden layer adds to. It is what logits are made of."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(2 * width, width, bias=False)
        self.down = nn.Linear(width, width, bias=False)

    def forward(self, state: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """The next state and what logits are made of, [..., width] both, of a state and a guessed token's embedding."""
        state = state + self.down(functional.silu(self.up(torch.cat((state, embedded), -1))))
        return state, state


class GruHead(nn.Module):
    """A gated recurrent unit, whose state a matrix brings back to where hidden states are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(width, width)
        self.out = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.out.weight)

    def forward(self, state: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """See `MlpHead.forward`."""
        state = self.cell(embedded.flatten(0, -2), state.flatten(0, -2)).view_as(state)
        return state, self.out(state)


KINDS: Mapping[str, type[MlpHead | GruHead]] = {"mlp": MlpHead, "gru": GruHead}

Heads = Mapping[str, MlpHead | GruHead]


def unrolled(head: nn.Module, hidden: Tensor, embedded: Tensor) -> Tensor:
    """What logits are made of at each level, [N, D, width], of the draft model's hidden states [N, width] and the
    embeddings of the D tokens that follow, [N, D, width]."""
    found: list[Tensor] = []
    for each in embedded.unbind(1):
        hidden, out = head(hidden, each)
        found.append(out)
    return torch.stack(found, 1)


def embeddings(draft: PreTrainedModel, token_ids: Tensor) -> Tensor:
    """Of tokens, all of the same length: a table that serving would keep."""
    found = draft.get_input_embeddings()(token_ids)
    return functional.rms_norm(found, found.shape[-1:])


class Lesson(NamedTuple):
    """What heads learn in one step, from N places over D levels."""

    hidden: Tensor
    """[N, width of the draft model]"""
    embedded: Tensor
    """[N, D, width of the draft model]"""
    wanted: Tensor
    """[N, D, width of the target]: the target's hidden states where each level guesses."""
    warmth: Tensor
    """[N, 1, 1], the temperatures at which it is learned."""


class Lessons:
    """The lessons of texts that the target wrote."""

    def __init__(self, draft: PreTrainedModel, target: PreTrainedModel, texts: Sequence[Text], num_levels: int) -> None:
        self._draft, self._texts = draft, texts
        self._readers = Reader(draft), Reader(target)
        self._num_levels = num_levels

    @torch.no_grad()
    def at(self, step: int) -> Lesson:
        """Of that step. What it is made of follows from the step alone."""
        batch = batch_of(self._texts, NUM_TEXTS, step, seed=0)
        hidden, wanted = (reader.read(batch) for reader in self._readers)  # [B, T, width] each
        texts, places = starts(batch, self._num_levels, step)
        ahead = places[:, None] + torch.arange(1, self._num_levels + 1)  # [N, D]
        return Lesson(
            hidden[texts, places],
            embeddings(self._draft, batch.token_ids[texts[:, None], ahead]),
            wanted[texts[:, None], ahead],
            batch.temperatures[texts, None, None].clamp(min=SHARPEST),
        )


def starts(batch: Batch, num_levels: int, step: int) -> tuple[Tensor, Tensor]:
    """Texts and places, [N] each, behind which the text has a token for each level to guess."""
    places = torch.arange(batch.token_ids.shape[1])
    texts, found = (places + num_levels + 1 < batch.lengths[:, None]).nonzero().unbind(-1)
    some = torch.randperm(len(texts), generator=torch.Generator().manual_seed(step))[:NUM_STARTS]
    return texts[some], found[some]


def train(
    heads: Heads, draft: PreTrainedModel, target: PreTrainedModel, lessons: Lessons, num_steps: int, report: Report
) -> None:
    """Trains the heads side by side, each by itself; the draft model stays as it is. Reports the last one's loss."""
    optimizer = torch.optim.AdamW([each for head in heads.values() for each in head.parameters()], betas=BETAS)
    vocab_size = target.config.get_text_config().vocab_size
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate_factor(step, num_steps)
        lesson, cost = lessons.at(step), 0.0
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            aim = (logits(target, lesson.wanted, vocab_size).float() / lesson.warmth).log_softmax(-1).flatten(0, 1)
        for head in heads.values():
            with torch.autocast("cpu", torch.bfloat16):
                found = logits(draft, unrolled(head, lesson.hidden, lesson.embedded), vocab_size)
            guess = (found.float() / lesson.warmth).log_softmax(-1).flatten(0, 1)
            loss = costs(Loss.FORWARD_KL_AND_MISSES, aim, guess).divergence.mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), MAX_GRADIENT_NORM)
            cost = loss.item()
        optimizer.step()
        optimizer.zero_grad()
        report(step + 1, num_steps, cost)


@torch.inference_mode()
def right(head: nn.Module, draft: PreTrainedModel, text: Text, num_levels: int) -> Tensor:
    """Whether the head's guesses at each place of a text of T tokens are the tokens that stand there, [T - 1, D].

    At depth j, from 0, it has been given the j + 1 tokens behind the place, with the noise of the text. Beyond the text
    none is right.
    """
    vocab_size = draft.config.get_text_config().vocab_size
    sampler = Sampler(vocab_size, 1, draft.device)
    sampler.open(0, SamplingParams(temperature=text.temperature, seed=text.seed), (), ())
    token_ids = torch.tensor(text.token_ids)
    num_places = len(token_ids) - 1
    hidden = states(draft, token_ids[None, :-1])[0]
    given = functional.pad(token_ids[1:], (0, num_levels)).unfold(0, num_levels, 1)[:num_places]  # [P, D]
    guessed = functional.pad(token_ids[2:], (0, num_levels), value=-1).unfold(0, num_levels, 1)[:num_places]
    found = logits(draft, unrolled(head, hidden, embeddings(draft, given)), vocab_size)  # [P, D, V]
    rows = [Row(0, place + depth + 2) for place in range(num_places) for depth in range(num_levels)]
    return torch.tensor(sampler.choose(found.flatten(0, 1), rows)).view_as(guessed) == guessed


def mixed(first: Tensor, table: Tensor, num_passes: int) -> Tensor:
    """Whether guesses are right, [P, K + D], of K passes of the draft model and then all levels of a head: `first` [P]
    tells it of a pass at each place, `table` [P, D] of the levels behind it."""
    from_last = functional.pad(table[num_passes - 1 :], (0, 0, 0, min(num_passes - 1, len(table))))
    return torch.cat((chained(first, num_passes), from_last), -1)


Shape = tuple[int, int]
"""Of a round: passes of the draft model, and levels of a head, or mask tokens, behind the last one."""

Accepted = dict[str, dict[Shape, dict[float, Acceptance]]]
"""By the way of drafting, shape and temperature."""

TRAINED_CHAIN = "chain of the run"
"""The chain of the run's own draft model, whose mask tokens are MASKS."""


def drafted(
    text: Text, heads: Heads, draft: PreTrainedModel, parallel: PreTrainedModel, num_depths: int
) -> Iterator[tuple[str, Shape, Tensor]]:
    """All ways of drafting a text in rounds of up to `num_depths` guesses, and whether these are right."""
    vocab_size = draft.config.get_text_config().vocab_size
    first = Drafter(draft, vocab_size).right(text, 1)[:, 0]
    at_once = Drafter(parallel, vocab_size).right(text, num_depths)
    for num in range(1, num_depths + 1):
        yield CHAIN, (num, 0), chained(first, num)
        yield TRAINED_CHAIN, (num, 0), chained(at_once[:, 0], num)
        yield MASKS, (1, num - 1), at_once[:, :num]
    for kind, head in heads.items():
        table = right(head, draft, text, num_depths - 1)
        for passes in range(1, num_depths):
            for levels in range(1, num_depths - passes + 1):
                yield kind, (passes, levels), mixed(first, table[:, :levels], passes)


def accepted(
    texts: Sequence[Text], drafted: Callable[[Text], Iterable[tuple[str, Shape, Tensor]]], report: Report
) -> Accepted:
    """What rounds accept of the texts."""
    parts: dict[str, dict[Shape, dict[float, list[Acceptance]]]] = {}
    for number, text in enumerate(texts, 1):
        for way, shape, hits in drafted(text):
            of = parts.setdefault(way, {}).setdefault(shape, {})
            of.setdefault(text.temperature, []).append(rounds(hits, text.num_given))
        report(number, len(texts), None)
    return {
        way: {shape: {at: added(each) for at, each in sorted(of.items())} for shape, of in shapes.items()}
        for way, shapes in parts.items()
    }


def products(modules: Sequence[nn.Module]) -> list[nn.Linear]:
    """The matrices by which a row is multiplied."""
    linears = [each for module in modules for each in module.modules() if isinstance(each, nn.Linear)]
    for cell in (each for module in modules for each in module.modules() if isinstance(each, nn.GRUCell)):
        for weight in (cell.weight_ih, cell.weight_hh):
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight.data = weight.data
            linears.append(linear)
    return linears


@torch.inference_mode()
def level_seconds(matrices: Mapping[str, tuple[Sequence[nn.Linear], int]]) -> dict[str, float]:
    """Processor time of the products of a level, the median, by name: of these matrices over that many rows.

    In bfloat16 by our own operators, where there are some. Attention, norms and activations are left out, which the
    draft model has more of.
    """
    native.load(default_compile_cache())
    dtype = torch.bfloat16 if native.has_linear(torch.bfloat16) else torch.float32
    ready: dict[str, list[Callable[[], Tensor]]] = {}
    for name, (linears, num_rows) in matrices.items():
        ready[name] = []
        for linear in linears:
            own = nn.Linear(linear.in_features, linear.out_features, bias=False, dtype=dtype)
            own.weight.data = linear.weight.data.to(dtype)
            product = PackedLinear(own) if native.has_linear(dtype) else own
            row = torch.randn(num_rows, linear.in_features).to(dtype)
            ready[name].append(lambda product=product, row=row: product(row))
    taken: dict[str, list[float]] = {name: [] for name in matrices}
    for _ in range(NUM_TIMED):
        for name, work in ready.items():
            _run(work)  # fetches what other kinds have displaced
            taken[name].append(_run(work))
    return {name: statistics.median(each) for name, each in taken.items()}


def _run(work: Sequence[Callable[[], Tensor]]) -> float:
    started = time.thread_time()
    for each in work:
        each()
    return time.thread_time() - started


class Price(NamedTuple):
    """What a level costs."""

    num_products: int
    """Multiplications of its matrices for each row, and numbers of weights that it reads."""
    level: float
    """Processor time in passes of the draft model over one row; of MASKS what each mask adds to one."""


def prices(draft: PreTrainedModel, heads: Heads, num_depths: int) -> dict[str, Price]:
    """By way of drafting; of CHAIN that of a pass."""
    output = draft.get_output_embeddings()
    assert output is not None
    whole = products([draft.get_decoder(), output])
    matrices = {CHAIN: (whole, 1), MASKS: (whole, num_depths)}
    matrices |= {kind: (products([head, output]), 1) for kind, head in heads.items()}
    seconds = level_seconds(matrices)
    levels = {name: each / seconds[CHAIN] for name, each in seconds.items()}
    levels[MASKS] = (levels[MASKS] - 1) / (num_depths - 1)
    return {
        name: Price(sum(each.weight.numel() for each in linears), levels[name])
        for name, (linears, _) in matrices.items()
    }


class Best(NamedTuple):
    """The shape of rounds that is fastest in turn with the target."""

    speed_up: float
    """Over the target alone: tokens of a round over its time in target steps, of which verifying takes one."""
    shape: Shape
    length: float
    """Tokens of a round."""


def best(lengths: Mapping[Shape, float], draft_step: float, level: float) -> Best:
    """Of shapes with their accepted lengths, where a level costs `level` passes, and a pass `draft_step` target
    steps."""
    return max(
        Best(length / (1 + draft_step * (passes + level * levels)), (passes, levels), length)
        for (passes, levels), length in lengths.items()
    )


def by_depth(found: Accepted, num_depths: int) -> Table:
    """The longest rounds of each way: accepted length, and the part that accepted as many guesses."""
    table = Table("drafting", "temperature", "accepted length", *(f"depth {each}" for each in range(1, num_depths + 1)))
    for way, shapes in found.items():
        shape = next(shape for shape in ((1, num_depths - 1), (num_depths, 0)) if shape in shapes)
        for temperature, of in shapes[shape].items():
            table.add_row(way, f"{temperature:g}", f"{of.length:.3f}", *(f"{share:.3f}" for share in of.by_depth))
    return table


def price_table(found: Mapping[str, Price]) -> Table:
    """What levels cost."""
    table = Table("a level of", "multiplications", "of a pass", "processor time of a pass")
    whole = found[CHAIN].num_products
    for way, price in found.items():
        table.add_row(way, f"{price.num_products:,}", f"{price.num_products / whole:.2f}", f"{price.level:.2f}")
    return table


def worth(found: Accepted, found_prices: Mapping[str, Price], temperature: float) -> Table:
    """The best shape of each way, by what a draft step costs."""
    table = Table(f"temperature {temperature:g}", *(f"draft step {each:g}" for each in DRAFT_STEPS))
    for way, shapes in found.items():
        lengths = {shape: of[temperature].length for shape, of in shapes.items()}
        level = found_prices[way].level if way in found_prices else 0.0
        bests = [best(lengths, draft_step, level) for draft_step in DRAFT_STEPS]
        table.add_row(
            way, *(f"{each.speed_up:.3f}: {each.shape[0]} + {each.shape[1]}, {each.length:.2f}" for each in bests)
        )
    return table


def main(
    run: Annotated[Path, typer.Argument(help="Folder of an `outrider distill --parallel` of the bundled pair.")],
    steps: Annotated[int, typer.Option(help="Training steps.", min=1)] = 1000,
    depths: Annotated[int, typer.Option(help="Guesses of a round at most.", min=2)] = 6,
) -> None:
    """Trains heads, measures what they accept, and says what a level costs and what is best."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    console, cpu = Console(), torch.device("cpu")
    folders = (MODELS / "draft", MODELS / "target")
    draft, target = (drafts.load(folder, "float32", cpu).eval().requires_grad_(False) for folder in folders)
    training, held_out = (
        [text for file in sorted((run / "work").glob(f"{name}-*.safetensors")) for text in written.load(file)]
        for name in ("training", "held_out")
    )
    heads = {kind: make(draft.config.get_text_config().hidden_size) for kind, make in KINDS.items()}
    with progress_bars(console) as bars:
        started = time.process_time()
        train(heads, draft, target, Lessons(draft, target, training, depths - 1), steps, reporter(bars, "heads"))
        trained = time.process_time() - started
        parallel = drafts.load(run, "float32", cpu).eval()
        found = accepted(held_out, lambda text: drafted(text, heads, draft, parallel, depths), reporter(bars, "after"))
    console.print(f"{trained:.0f} s of processor time in {steps} steps of {NUM_STARTS} places and {depths - 1} levels.")
    console.print(by_depth(found, depths))
    cost = prices(draft, heads, depths)
    console.print(price_table(cost))
    for temperature in sorted({text.temperature for text in held_out}):
        console.print(worth(found, cost, temperature))


if __name__ == "__main__":
    typer.run(main)
