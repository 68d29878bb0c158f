"""The tokenizer that a worker hands over makes AutoTokenizer's ids."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import PreTokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.core.protocol.validation import CHAT_TEMPLATE_BYTES_MAX
from outrider.core.protocol.vocabulary import vocabulary_sha256
from outrider.engine.load.tokenizer import portable_tokenizer
from tests.engine.folders import BUNDLED, copied, edit

TEXT = "import os\n\n\ndef walk(path):\n    <|im_start|>return path<|endoftext|>  <extra> é"
TRUNCATION = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 32},
    "direction": "Left",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<|endoftext|>",
}


def spells_alike(folder: Path) -> Tokenizer:
    handed = Tokenizer.from_str(portable_tokenizer(folder).json.decode())
    expected = AutoTokenizer.from_pretrained(folder)(TEXT).input_ids
    assert handed.encode(TEXT).ids == expected
    return handed


def special_tokens_map(folder: Path) -> None:
    (folder / "special_tokens_map.json").write_text('{"additional_special_tokens": ["<|im_start|>"]}')


def added_in_config(folder: Path) -> None:
    added = {"content": "<|im_start|>", "special": True, "lstrip": False, "rstrip": False, "normalized": False}
    edit(folder / "tokenizer_config.json", added_tokens_decoder={"4096": {**added, "single_word": False}})


FOLDERS: dict[str, Callable[[Path], None]] = {
    "as it is": lambda folder: None,
    "truncation": lambda folder: edit(folder / "tokenizer.json", truncation=TRUNCATION),
    "padding": lambda folder: edit(folder / "tokenizer.json", padding=PADDING),
    "tokens of special_tokens_map.json": special_tokens_map,
    "tokens of tokenizer_config.json": added_in_config,
    "extra special tokens": lambda folder: edit(
        folder / "tokenizer_config.json", additional_special_tokens=["<extra>"], bos_token="<|endoftext|>"
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_prompt_ids_are_those_of_autotokenizer(name: str, tmp_path: Path) -> None:
    folder = copied(tmp_path)
    FOLDERS[name](folder)
    spells_alike(folder)


def test_an_added_token_is_handed_over(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    added_in_config(folder)
    assert spells_alike(folder).token_to_id("<|im_start|>") == 4096
    assert vocabulary_sha256(portable_tokenizer(folder).json) != vocabulary_sha256(portable_tokenizer(BUNDLED).json)


def test_truncation_leaves_no_trace(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    edit(folder / "tokenizer.json", truncation=TRUNCATION, padding=PADDING)
    assert portable_tokenizer(folder) == portable_tokenizer(BUNDLED)


@pytest.mark.parametrize("name", ["qwen3", "deepseek_v3"])
def test_so_it_is_with_real_ones(name: str, tmp_path: Path) -> None:
    real = Path(__file__).parents[3] / "shared" / "tokenizers" / name
    if not real.is_dir():
        pytest.skip(f"{real} is not there")
    folder = Path(shutil.copytree(real, tmp_path / name))
    shutil.copy(BUNDLED / "config.json", folder)
    handed = spells_alike(folder)
    assert vocabulary_sha256((folder / "tokenizer.json").read_bytes()) == vocabulary_sha256(handed.to_str().encode())


@pytest.mark.parametrize(
    "content", ["", "version https://git-lfs.github.com/spec/v1\n", '\ufeff{"version": "1.0"}', "unknown model"]
)
def test_one_that_cannot_be_read_is_refused(content: str, tmp_path: Path) -> None:
    folder = copied(tmp_path)
    if content == "unknown model":
        spoilt = json.loads((folder / "tokenizer.json").read_text())
        spoilt["model"]["type"] = "NotYetInvented"
        content = json.dumps(spoilt)
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(UnsupportedModelError, match="cannot load the tokenizer"):
        portable_tokenizer(folder)


def test_one_that_transformers_uses_otherwise_is_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    edit(folder / "tokenizer_config.json", split_special_tokens=True)
    with pytest.raises(UnsupportedModelError, match="makes other ids"):
        portable_tokenizer(folder)


def test_one_that_drops_merges_at_random_is_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    spoilt = json.loads((folder / "tokenizer.json").read_text())
    spoilt["model"]["dropout"] = 1e-6
    (folder / "tokenizer.json").write_text(json.dumps(spoilt))
    with pytest.raises(UnsupportedModelError, match="set dropout to null"):
        portable_tokenizer(folder)


def test_one_with_parts_in_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers gives RoFormer one that cuts Chinese words."""

    class Whole:
        def pre_tokenize(self, text: object) -> None:
            pass

    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    tokenizer.backend_tokenizer.pre_tokenizer = PreTokenizer.custom(Whole())
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: tokenizer)
    with pytest.raises(UnsupportedModelError, match="has parts that are written in Python"):
        portable_tokenizer(BUNDLED)


def test_one_that_fails_on_ordinary_text_is_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    spoilt = json.loads((folder / "tokenizer.json").read_text())
    spoilt["model"] = {"type": "WordLevel", "vocab": {"Hello": 0}, "unk_token": "<none>"}
    (folder / "tokenizer.json").write_text(json.dumps(spoilt))
    edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    with pytest.raises(UnsupportedModelError, match="name the tokenizer_class"):
        portable_tokenizer(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "YWJj"}}, "cannot load the tokenizer"),
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "fails on"),
    ],
    ids=["parsing", "encoding"],
)
def test_one_in_which_rust_panics_is_refused(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    """A panic is no Exception."""
    folder = copied(tmp_path)
    edit(folder / "tokenizer.json", **changes)
    edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    with pytest.raises(UnsupportedModelError, match=words):
        portable_tokenizer(folder)


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("method", ["from_pretrained", "__call__"])
def test_the_end_of_the_process_is_no_fault_of_a_tokenizer(
    end: type[BaseException], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ending(*args: object, **kwargs: object) -> None:
        raise end

    owner = AutoTokenizer if method == "from_pretrained" else PreTrainedTokenizerBase
    monkeypatch.setattr(owner, method, ending)
    with pytest.raises(end):
        portable_tokenizer(BUNDLED)


def as_jinja_files(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("plain")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")


def as_named(folder: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    edit(folder / "tokenizer_config.json", chat_template=named)


TEMPLATES: dict[str, tuple[Callable[[Path], object], dict[str, str]]] = {
    "none": (lambda folder: None, {}),
    "one": (lambda folder: edit(folder / "tokenizer_config.json", chat_template="plain"), {"default": "plain"}),
    "one as a file": (
        lambda folder: (folder / "chat_template.jinja").write_text("plain é", encoding="utf-8"),
        {"default": "plain é"},
    ),
    "several": (as_named, {"default": "plain", "tool_use": "tools"}),
    "several as files": (as_jinja_files, {"default": "plain", "tool_use": "tools"}),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_templates_are_handed_over_by_name(name: str, tmp_path: Path) -> None:
    folder = copied(tmp_path)
    write, expected = TEMPLATES[name]
    write(folder)
    assert portable_tokenizer(folder).chat_templates == expected


def test_special_tokens_are_handed_over_as_templates_know_them(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    edit(folder / "tokenizer_config.json", bos_token={"content": "<|endoftext|>", "__type": "AddedToken"})
    handed = portable_tokenizer(folder).special_tokens
    assert handed["bos_token"] == "<|endoftext|>"
    assert handed == AutoTokenizer.from_pretrained(folder).special_tokens_map


def test_a_chat_template_too_large_for_a_message_is_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    edit(folder / "tokenizer_config.json", chat_template="é" * (CHAT_TEMPLATE_BYTES_MAX // 2))
    with pytest.raises(UnsupportedModelError, match="take the templates that the model was published with"):
        portable_tokenizer(folder)


def test_a_chat_template_that_git_lfs_has_not_fetched_is_refused(tmp_path: Path) -> None:
    """Else each conversation's prompt would be the pointer."""
    folder = copied(tmp_path)
    (folder / "chat_template.jinja").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n")
    with pytest.raises(UnsupportedModelError, match="is a Git LFS pointer, not the template; fetch it with git lfs"):
        portable_tokenizer(folder)


def test_one_whose_decoder_fails_is_refused(tmp_path: Path) -> None:
    """This one panics on a text that is shorter than what it strips."""
    folder = copied(tmp_path)
    edit(folder / "tokenizer.json", decoder={"type": "Strip", "content": "Ġ", "start": 1, "stop": 1})
    with pytest.raises(UnsupportedModelError, match=r"the decoder of the tokenizer of .* fails on tokens"):
        portable_tokenizer(folder)
