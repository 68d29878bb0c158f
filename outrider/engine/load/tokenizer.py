"""The tokenizer and chat templates of a model folder, as transformers loads them, for whoever has no model folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.core.protocol.messages import DEFAULT_TEMPLATE, PortableTokenizer
from outrider.core.protocol.validation import CHAT_TEMPLATE_BYTES_MAX
from outrider.engine.load.checkpoint import LFS_POINTER
from outrider.engine.load.folder import tokenizer_file

_SAMPLES = (
    "Hello world",
    "  def f(x):\n\treturn x**2  # 1234567890\n\n",
    "é ß 中文 日本 😀👩‍👩‍👧 e\u0301 \u00a0\u200b",
    "I'll don't",
)
"""Spaces, digits, composed and decomposed letters, scripts, emoji, contractions: what tokenizers treat differently."""


def portable_tokenizer(folder: Path) -> PortableTokenizer:
    """The folder's tokenizer with what other files of the folder add to tokenizer.json.

    Raises UnsupportedModelError if there is none, or if what comes with it is too large.
    """
    tokenizer_file(folder)
    with _refusing(
        f"transformers cannot load the tokenizer of {folder}",
        "download it again, or upgrade tokenizers and transformers",
    ):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    described = f"the tokenizer of {folder} ({type(tokenizer).__name__})"
    portable = _without_transformers(tokenizer, described)
    _check(portable, tokenizer, described)
    templates = _chat_templates(tokenizer.chat_template)
    if any(template.startswith(LFS_POINTER.decode()) for template in templates.values()):
        raise UnsupportedModelError(
            f"a chat template of {folder} is a Git LFS pointer, not the template; fetch it with git lfs pull"
        )
    handed = PortableTokenizer(portable.to_str().encode(), templates, tokenizer.special_tokens_map)
    if handed.num_template_bytes > CHAT_TEMPLATE_BYTES_MAX:
        raise UnsupportedModelError(
            f"the chat templates of {folder} have {handed.num_template_bytes} bytes with its special tokens; at most "
            f"{CHAT_TEMPLATE_BYTES_MAX} are allowed: take the templates that the model was published with"
        )
    return handed


def _without_transformers(tokenizer: PreTrainedTokenizerBase, described: str) -> Tokenizer:
    """What transformers' tokenizer works with. Raises UnsupportedModelError if that is not all there is to it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise UnsupportedModelError(
            f"{described} is written in Python, which cannot be handed to the coordinator; convert it to a fast one "
            "and save_pretrained it into the folder"
        )
    with _refusing(
        f"{described} has parts that are written in Python, which cannot be handed to the coordinator",
        "name a tokenizer_class in tokenizer_config.json that has none",
    ):
        portable = Tokenizer.from_str(backend.to_str())
    portable.no_truncation()
    portable.no_padding()
    return portable


def _check(portable: Tokenizer, tokenizer: PreTrainedTokenizerBase, described: str) -> None:
    """Raises UnsupportedModelError if the portable one spells otherwise than the one that it comes from, or fails."""
    if getattr(portable.model, "dropout", None):
        raise UnsupportedModelError(
            f"{described} drops merges at random, as for training, so that one text has many spellings; set dropout to "
            "null in tokenizer.json"
        )
    for text in _probes(portable):
        with _refusing(
            f"{described} fails on {text[:40]!r}",
            "name the tokenizer_class in tokenizer_config.json that its tokenizer.json was made for",
        ):
            expected, found = tokenizer(text).input_ids, portable.encode(text).ids
        if expected != found:
            raise UnsupportedModelError(
                f"{described} makes other ids of {text[:40]!r} in transformers than its tokenizer.json says, so the "
                "coordinator could not make them"
            )
    with _refusing(
        f"the decoder of {described} fails on tokens of its vocabulary",
        "download it again, or take the decoder that the model was published with",
    ):
        portable.decode_batch([[], *([token_id] for token_id in range(portable.get_vocab_size()))])


def _chat_templates(found: object) -> Mapping[str, str]:
    """By name; a model's only one is its default."""
    named = found if isinstance(found, dict) else {DEFAULT_TEMPLATE: found}
    return {str(name): template for name, template in named.items() if isinstance(template, str)}


def _probes(tokenizer: Tokenizer) -> Iterator[str]:
    yield from _SAMPLES
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    yield " a ".join(added)
    yield "".join(added)


@contextmanager
def _refusing(what: str, advice: str) -> Iterator[None]:
    """Raises UnsupportedModelError for whatever is raised within: tokenizers, written in Rust, also panics, with an
    error that is no Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # they end the process, and say nothing about a tokenizer
        raise
    except BaseException as error:
        line = next(iter(str(error).strip().splitlines()), "")[:200]
        raise UnsupportedModelError(f"{what} ({type(error).__name__}: {line}); {advice}") from error
