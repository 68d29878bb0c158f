"""The tokenizer and chat templates of a model folder, as transformers loads them, for whoever has no model folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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

_ENDS = KeyboardInterrupt, SystemExit
"""What ends the process, and says nothing about a tokenizer."""


def portable_tokenizer(folder: Path) -> PortableTokenizer:
    """The folder's tokenizer with what other files of the folder add to tokenizer.json.

    Raises UnsupportedModelError if there is none, or if what comes with it is too large.
    """
    tokenizer_file(folder)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except _ENDS:
        raise
    except BaseException as error:  # tokenizers, written in Rust, also panics, with an error that is no Exception
        raise UnsupportedModelError(
            f"transformers cannot load the tokenizer of {folder} ({type(error).__name__}: {_line(error)}); download it "
            "again, or upgrade tokenizers and transformers"
        ) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise UnsupportedModelError(
            f"the tokenizer of {folder} ({type(tokenizer).__name__}) is written in Python, which cannot be handed to "
            "the coordinator; convert it to a fast one and save_pretrained it into the folder"
        )
    portable = Tokenizer.from_str(backend.to_str())
    portable.no_truncation()
    portable.no_padding()
    for text in _probes(portable):
        try:
            expected, found = tokenizer(text).input_ids, portable.encode(text).ids
        except _ENDS:
            raise
        except BaseException as error:  # as above
            raise UnsupportedModelError(
                f"the tokenizer of {folder} ({type(tokenizer).__name__}) fails on {text[:40]!r} ({_line(error)}); name "
                "the tokenizer_class in tokenizer_config.json that its tokenizer.json was made for"
            ) from error
        if expected != found:
            raise UnsupportedModelError(
                f"the tokenizer of {folder} ({type(tokenizer).__name__}) makes other ids of {text[:40]!r} in "
                "transformers than its tokenizer.json says, so the coordinator could not make them"
            )
    try:
        portable.decode_batch([[], *([token_id] for token_id in range(portable.get_vocab_size()))])
    except _ENDS:
        raise
    except BaseException as error:  # as above
        raise UnsupportedModelError(
            f"the decoder in the tokenizer.json of {folder} fails on tokens of its vocabulary ({_line(error)}); "
            "download it again, or take the decoder that the model was published with"
        ) from error
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


def _chat_templates(found: object) -> Mapping[str, str]:
    """By name; a model's only one is its default."""
    named = found if isinstance(found, dict) else {DEFAULT_TEMPLATE: found}
    return {str(name): template for name, template in named.items() if isinstance(template, str)}


def _probes(tokenizer: Tokenizer) -> Iterator[str]:
    yield from _SAMPLES
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    yield " a ".join(added)
    yield "".join(added)


def _line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:200]
