"""The kernels that choose tokens on a GPU, in Triton's interpreter: same words, same choices, to the bit."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from outrider.core.protocol.sampling import SamplingParams
from outrider.engine import native
from outrider.engine.sample import fused
from outrider.engine.sample.candidates import candidates, shaping_of
from outrider.engine.sample.noise import as_int64, gumbel, hashed_words
from outrider.engine.sample.sampler import Row, Sampler
from tests.engine import test_native_sampling, test_nucleus
from tests.engine.samplers import ALL_KINDS, EVERYTHING, WARM, opened, random_logits
from tests.engine.test_sampling import GOLDEN_CHOICES, GOLDEN_WARM_CHOICES, VOCAB_SIZE

triton: Any = pytest.importorskip("triton", reason="the package triton is not installed")
import triton.language as tl  # noqa: E402

from outrider.engine.gpu import choice  # noqa: E402
from tests.engine.gpu import interpreter  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def in_interpreter() -> Iterator[None]:
    """Kernels run on the CPU, those of this file too."""
    with interpreter.interpreted(choice, sys.modules[__name__]):
        yield


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Samplers of a CPU choose by the kernels, in two tiles; the list has the rows of each call."""
    num_rows: list[int] = []
    best_tokens = partial(choice.best_tokens, tile=256)

    def counted(logits: Tensor, *arguments: Any) -> Tensor:
        num_rows.append(len(logits))
        return best_tokens(logits, *arguments)

    monkeypatch.setattr(native, "available", lambda device: False)
    monkeypatch.setattr(fused, "problem", lambda device: "")
    monkeypatch.setattr(choice, "best_tokens", counted)
    yield num_rows
    assert num_rows, "the kernels were not asked"


@triton.jit
def noise_of(streams, exact, quick, words, SIZE: tl.constexpr):
    """Of token 0 of each stream the word, the noise, and the noise in float32."""
    places = tl.arange(0, SIZE)
    stream = tl.load(streams + places).to(tl.uint64, bitcast=True)
    first = places * 0
    tl.store(words + places, choice._words(stream, first).to(tl.int64, bitcast=True))
    tl.store(exact + places, choice._noise(stream, first))
    one = tl.full([], 1.0, tl.float64)
    tl.store(quick + places, choice._scores(first.to(tl.float32), first, stream, one.to(tl.float32), one))


def unmixed(word: int) -> int:
    """The word that noise.py's hash makes `word` of."""
    for shift, multiplier in ((31, 0x94D049BB133111EB), (27, 0xBF58476D1CE4E5B9), (30, 1)):
        whole = word
        for _ in range(64 // shift + 1):
            word = whole ^ (word >> shift)
        word = word * pow(multiplier, -1, 2**64) % 2**64
    return word


def test_noise_near_both_ends_and_where_the_series_begins() -> None:
    """The largest uniforms are so near to 1 that no float32 tells them from it."""
    begin = int((1 - 1 / 32) * 2**64)
    wanted = [0, 1 << 12, 1 << 30, 2**63, begin - (1 << 12), begin, begin + (1 << 12), 2**64 - 1]
    wanted += [2**64 - 1 - (1 << bit) for bit in range(12, 60)]
    wanted += [random.Random(1).getrandbits(64) for _ in range(128 - len(wanted))]
    streams = torch.tensor([as_int64(unmixed(word) - 0x9E3779B97F4A7C15) for word in wanted])
    exact, quick = torch.empty(128, dtype=torch.float64), torch.empty(128)
    words = torch.empty(128, dtype=torch.int64)
    noise_of[1,](streams, exact, quick, words, SIZE=128)
    assert [word % 2**64 for word in words.tolist()] == wanted
    expected = [-math.log(-math.log(((word >> 12) + 0.5) * 2.0**-52)) for word in wanted]
    assert exact.tolist() == pytest.approx(expected, abs=1e-12)
    assert quick.tolist() == pytest.approx(expected, abs=choice.ROUNDING.value / 20, rel=0)


@triton.jit
def words_of(seeds, rows, shaping, words, VOCAB: tl.constexpr, SIZE: tl.constexpr):
    row = tl.program_id(0)
    *_, stream = choice._shape(shaping, seeds, rows, rows + tl.num_programs(0), row, 2)
    token_ids = tl.arange(0, SIZE)
    found = choice._words(stream, token_ids).to(tl.int64, bitcast=True)
    tl.store(words + row * VOCAB + token_ids, found, mask=token_ids < VOCAB)


def test_words_are_those_of_the_noise() -> None:
    seeds, slots, positions = torch.tensor([as_int64(2**64 - 5), 3]), [0, 1, 0, 1], [0, 77, 2**20, 5]
    words = torch.empty(4, 300, dtype=torch.int64)
    words_of[4,](seeds, torch.tensor([slots, positions]), torch.zeros(5, 2).double(), words, VOCAB=300, SIZE=512)
    assert torch.equal(words, hashed_words(seeds[slots], torch.tensor(positions), 300))


@pytest.mark.usefixtures("interpreted")
def test_golden_choices() -> None:
    rows = [Row(0, position, (5, position)) for position in range(100, 112)]
    logits = (torch.arange(VOCAB_SIZE) * 7919 % 1009 / 128).expand(len(rows), -1)
    assert opened(EVERYTHING).choose(logits, rows) == GOLDEN_CHOICES
    assert opened(WARM).choose(logits, rows) == GOLDEN_WARM_CHOICES


@pytest.mark.parametrize(
    ("vocab_size", "tile", "dtype"),
    [(5, 64, torch.float32), (64, 64, torch.bfloat16), (300, 128, torch.float16), (300, 4096, torch.float32)],
)
def test_it_chooses_and_proposes_by_the_definition(vocab_size: int, tile: int, dtype: torch.dtype) -> None:
    kinds = [*test_native_sampling.KINDS, SamplingParams(temperature=50.0, top_k=2, top_p=0.5, seed=9)]
    shaping = torch.tensor([shaping_of(each, vocab_size) for each in kinds]).double().T.contiguous()
    seeds = torch.tensor([each.seed for each in kinds])
    slots = [slot for slot in range(len(kinds)) for _ in range(2)]
    positions = list(range(len(slots)))
    logits = (torch.randn(len(slots), vocab_size, generator=torch.Generator().manual_seed(vocab_size)) * 3).to(dtype)
    logits[5, 1:] = -math.inf
    logits[:, ::7] = -0.0
    rows = torch.tensor([slots, positions])
    params = [kinds[slot] for slot in slots]
    width = 3
    expected = candidates(
        logits.float(), params, shaping[:, slots], seeds[slots], torch.tensor(positions), min(width, vocab_size)
    ).best(width)
    token_ids, scores = choice.best_tokens(logits, shaping, seeds, rows, width, tile=tile).tolist()
    for row, best in enumerate(expected):
        num = len(best.token_ids)
        assert token_ids[row][:num] == best.token_ids
        assert scores[row][:num] == pytest.approx(best.scores, abs=1e-9)
        assert scores[row][num:] == [-math.inf] * (width - num)


def test_near_ties_are_decided_in_float64() -> None:
    """Two tokens whose scores float32 does not tell apart, each way."""
    vocab_size, num_rows = 200, 20
    seeds, positions = torch.tensor([5]), torch.arange(num_rows)
    noise = gumbel(seeds.expand(num_rows), positions, vocab_size)
    logits = torch.full((num_rows, vocab_size), -30.0)
    logits[:, 3] = 17.0
    apart = torch.linspace(-2e-5, 2e-5, num_rows, dtype=torch.float64)
    logits[:, 190] = (17.0 + noise[:, 3] - noise[:, 190] + apart).float()
    expected = (logits.double() + noise).argmax(-1).tolist()
    assert set(expected) == {3, 190}
    shaping = torch.tensor([shaping_of(SamplingParams(temperature=1.0, seed=5), vocab_size)]).double().T.contiguous()
    rows = torch.stack((torch.zeros(num_rows, dtype=torch.int64), positions))
    token_ids, _ = choice.best_tokens(logits, shaping, seeds, rows, 1, tile=128).tolist()
    assert [row[0] for row in token_ids] == expected


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (test_nucleus.tied, torch.bfloat16),
        (test_nucleus.few_equals, torch.float32),
        (test_nucleus.halves, torch.float32),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_top_p_keeps_what_the_definition_keeps(make: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where sums equal top_p: the kernel leaves such a row to the definition."""
    kinds = test_nucleus.KINDS[::5]
    sampler = opened(*kinds)
    rows = [Row(slot, 40 + slot) for slot in range(len(kinds))]
    logits = make(len(rows)).to(dtype)
    found = sampler.propose(logits, rows, 2)[0]
    monkeypatch.setattr(fused, "problem", lambda device: "none here")
    assert found == sampler.propose(logits, rows, 2)[0]


@pytest.mark.usefixtures("interpreted")
def test_a_mixed_batch_equals_its_rows_one_by_one() -> None:
    rows = [Row(slot, 50 + 3 * slot, (8,)) for slot in range(len(ALL_KINDS))]
    sampler, logits = opened(*ALL_KINDS), random_logits(len(rows)).bfloat16()
    choices = sampler.choose(logits, rows)
    assert choices == [sampler.choose(logits[at : at + 1], rows[at : at + 1])[0] for at in range(len(rows))]


@pytest.mark.usefixtures("interpreted")
@pytest.mark.filterwarnings("ignore:invalid value")  # of numpy, which the interpreter computes with
def test_a_row_of_nan_harms_no_other() -> None:
    sampler = opened(WARM, WARM, WARM)
    rows = [Row(slot, 10) for slot in range(3)]
    logits = random_logits(3)
    whole = sampler.choose(logits, rows)
    for value in (math.nan, math.inf, -math.inf):
        broken = logits.clone()
        broken[1] = value
        choices = sampler.choose(broken, rows)
        assert [choices[0], choices[2]] == [whole[0], whole[2]]
        assert 0 <= choices[1] < VOCAB_SIZE


def test_where_it_cannot_choose_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = fused.problem.__wrapped__
    monkeypatch.setattr(fused, "_TRIED_POSITIONS", 1)
    assert "use --device cuda" in tried(CPU)
    monkeypatch.setattr(fused, "triton_problem", lambda device: "")
    assert tried(CPU) == ""
    chosen = fused.best_of
    monkeypatch.setattr(fused, "best_of", lambda *rows: lambda: [*chosen(*rows)()[1:], None])
    assert tried(CPU) == "the kernels compute something else than torch does here, by 50.0%"
    monkeypatch.setattr(fused, "_in_step", lambda *rows: [None] * len(fused._TRIED))
    assert tried(CPU) == "the kernels compute something else than torch does here, by 100.0%"
    monkeypatch.setattr(native, "available", lambda device: False)
    assert Sampler(5, 1, CPU)._one_pass([], 1) is None
