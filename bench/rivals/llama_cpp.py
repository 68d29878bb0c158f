"""llama.cpp as a rival: its server, plain, with the same draft model and with each of its n-gram kinds.

Flags have been renamed more than once, so its own `--help` is asked which there are.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.rivals.options import RivalOptions
from bench.rivals.rival import CONTEXT_SPARE, NoRivalError, Rival, output_of, rival_mode
from bench.stack.models import Models
from bench.stack.preparing import kept
from bench.stack.services import split_cores

LOOKAHEADS = (3, 6)
"""Most draft tokens of a step by the draft model; the best one counts."""

OUT_TYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
"""What the converter calls types of weights."""

_DRAFT_MAX = ("--spec-draft-n-max", "--draft-max")
"""Names of the flag for the most draft tokens, newest first."""

_SPEC_TYPE = re.compile(r"--spec-type\s+\[?([\w,|-]+)")
"""The kinds of speculation, as `--help` lists them behind the flag."""

_VERSION = re.compile(r"version: *(.+)")

_CONVERSION = Path(__file__).with_name("gguf_conversion.py")

QUESTION = {
    "samplers": ["temperature"],
    "top_k": 0,  # of a version that knows no order of samplers, these turn off what is on by default
    "top_p": 1.0,
    "min_p": 0.0,
    "cache_prompt": False,
    "verbose": True,
}
"""Plain temperature, as ours; as ours it finds nothing of what was read before; and each token comes with its id."""

_FORGET = ("--cache-ram", "0")
"""Keeps no prompt for later, which it would copy at the next question, while the clock runs."""

_DRAWN = ("--spec-draft-sampling", "probabilistic")
"""Drafts are drawn, and tested by rejection, rather than the likeliest and tested by what the target draws."""


class Offer(NamedTuple):
    """What the installed version can do."""

    draft_max: str
    """Flag of the most draft tokens."""
    kinds: Sequence[str]
    """Values of `--spec-type`."""
    forget: Sequence[str]
    """Flags by which it keeps nothing of a question."""
    drawn: Sequence[str]
    """Flags by which drafts are drawn; none: it cannot."""

    @property
    def ngram_kinds(self) -> list[str]:
        """Those without a model."""
        return [kind for kind in self.kinds if kind.startswith("ngram")]


def offer(help_text: str) -> Offer:
    """What `llama-server --help` says. Raises NoRivalError if it knows no draft model."""
    draft_max = next((flag for flag in _DRAFT_MAX if re.search(rf"{flag}\b", help_text)), None)
    if draft_max is None:
        raise NoRivalError("this llama-server has no flag for draft models that is known here; install a newer one")
    found = _SPEC_TYPE.search(help_text)
    forget, drawn = (flags if flags[0] in help_text else () for flags in (_FORGET, _DRAWN))
    return Offer(draft_max, re.split(r"[,|]", found[1]) if found else (), forget, drawn)


def llama_cpp_rivals(options: RivalOptions, models: Models, num_tokens: int) -> Iterable[Rival]:
    """All of them, with room for `num_tokens` of prompt and answer. Raises NoRivalError."""
    binary = options.binary
    advice = "name llama.cpp's server with --rival-binary FILE"
    found = _VERSION.search(output_of([binary, "--version"], advice))
    can = offer(output_of([binary, "--help"], advice))
    target, draft = (str(converted(Path(model), models.dtype, options)) for model in (models.target, models.draft))
    num_threads = sum(map(len, split_cores(models))) or 1
    flags = [
        *("--ctx-size", str(num_tokens + CONTEXT_SPARE), "--parallel", "1"),
        *("--threads", str(num_threads), "--threads-batch", str(num_threads), "--poll", "0"),
        *can.forget,
    ]
    version = f"llama.cpp {found[1] if found else '(unknown version)'}, {OUT_TYPES[models.dtype]}"

    def rival(name: str, about: str, more: Sequence[str] = (), shown: Sequence[str] = (), family: str = "") -> Rival:
        return Rival(
            mode=rival_mode(name, f"llama.cpp {about}, on all cores", version, [*flags, *(shown or more)], family),
            command=[binary, "--model", target, *flags, *more],
            model="target",
            question=QUESTION,
        )

    yield rival("llama_cpp", "alone")
    kind = ["--spec-type", "draft-simple"] if "draft-simple" in can.kinds else []
    ways = {"": (), **({"_drawn": can.drawn} if can.drawn else {})}
    for lookahead, (way, drawn) in itertools.product(LOOKAHEADS, ways.items()):
        bound = [can.draft_max, str(lookahead), *kind, *drawn]
        yield rival(
            f"llama_cpp_draft_{lookahead}{way}",
            f"with the same draft, up to {lookahead} tokens a step{', drawn and not the likeliest' if way else ''}",
            ["--model-draft", draft, *bound],
            ["--model-draft", Path(models.draft).name, *bound],
            "llama_cpp_draft",
        )
    for kind_name in can.ngram_kinds:
        name = kind_name.replace("-", "_")
        yield rival(f"llama_cpp_{name}", f"with {kind_name}", ["--spec-type", kind_name], family="llama_cpp_ngram")


def converted(folder: Path, dtype: str, options: RivalOptions) -> Path:
    """The checkpoint that llama.cpp's own script makes of the model in `folder`; made once and kept beside the widened
    ones. Raises NoRivalError."""
    if dtype not in OUT_TYPES:
        raise NoRivalError(f"llama.cpp has no checkpoints of {dtype}; use --dtype bfloat16")
    file = kept(folder, f"{OUT_TYPES[dtype]}.gguf")
    if file.is_file():
        return file
    if options.convert is None:
        raise NoRivalError(f"{folder.name} has to be converted: name convert_hf_to_gguf.py with --rival-convert FILE")
    file.parent.mkdir(parents=True, exist_ok=True)
    made = file.with_suffix(".part")
    output_of(
        [
            *(str(options.python or sys.executable), str(_CONVERSION), str(options.convert), str(folder.resolve())),
            *("--outtype", OUT_TYPES[dtype], "--outfile", str(made)),
        ],
        "llama.cpp's script wants its gguf-py beside it, and a --rival-python that has what it imports (sentencepiece)",
    )
    made.rename(file)
    return file
