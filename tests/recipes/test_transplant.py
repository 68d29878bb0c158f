"""A draft model of another family, in the target's vocabulary: what it says of shared tokens keeps its bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from typer.testing import CliRunner

from outrider.client import GenerationMode, SamplingParams
from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.load.folder import load_model
from recipes.transplant import app, transplant
from tests.e2e.answers import ask
from tests.e2e.stack import coordinator, load_tiny, worker

CPU = torch.device("cpu")
TEXT = "the cat sat on the mat, the dog dug the log; "
NEVER = {"ÿ"}
"""Names of tokens that no text has: the byte 255, which is not of UTF-8."""
KINDS = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}


def family(folder: Path, texts: list[str], size: int, end: str, kind: str = "llama", *, tied: bool = False) -> Path:
    """A tiny random model with logits for three ids more than its tokenizer has, which learned from `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[end, "<|user|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end).save_pretrained(folder)
    config, model = KINDS[kind]
    torch.manual_seed(len(end))
    model(
        config(
            vocab_size=tokenizer.get_vocab_size() + 3,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=None,
            tie_word_embeddings=tied,
        )
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return family(tmp_path / "target", [TEXT * 9, "über naïve façade " * 9], 330, "<|end|>")


@pytest.fixture(params=["llama", "tied", "qwen3"])
def draft(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tied = request.param == "tied"
    kind = "llama" if tied else request.param
    return family(tmp_path / "draft", [TEXT * 9, "quick brown foxes " * 99], 300, "</s>", kind, tied=tied)


def vocabulary(folder: Path) -> dict[str, int]:
    return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()


def logits(folder: Path, token_ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        model = load_model(folder, device=CPU, dtype="float32")
        return model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0]


def test_shared_tokens_keep_their_logits(target: Path, draft: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    written = transplant(draft, target, out)
    theirs, ours = vocabulary(target), vocabulary(draft)
    shared = sorted((theirs.keys() & ours.keys()) - NEVER)
    assert theirs["Ġthe"] != ours["Ġthe"]
    assert theirs.keys() - ours.keys() - {"<|end|>"}
    assert written == (len(theirs.keys() - NEVER), len(shared) + 1)  # and the end of a text
    text = [name for _ in range(3) for name in shared]
    expected = logits(draft, [ours[name] for name in text])[:, [ours[name] for name in shared]]
    found = logits(out, [theirs[name] for name in text])[:, [theirs[name] for name in shared]]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert vocabulary(out) == theirs
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == [0]


def test_an_end_is_an_end_whatever_its_name(target: Path, draft: Path, tmp_path: Path) -> None:
    transplant(draft, target, tmp_path / "out")
    theirs, ours = vocabulary(target), vocabulary(draft)
    found = logits(tmp_path / "out", [theirs["Ġthe"]])[0, theirs["<|end|>"]]
    expected = logits(draft, [ours["Ġthe"]])[0, ours["</s>"]]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_other_tokens_are_read_by_their_pieces_and_guessed_like_the_average(
    target: Path, draft: Path, tmp_path: Path
) -> None:
    transplant(draft, target, tmp_path / "out")
    theirs, ours = vocabulary(target), vocabulary(draft)
    tokenizer = Tokenizer.from_file(str(draft / "tokenizer.json"))
    before, after = (load_model(folder, device=CPU, dtype="float32") for folder in (draft, tmp_path / "out"))
    old, new = (model.get_input_embeddings().get_parameter("weight") for model in (before, after))
    foreign = max(theirs.keys() - ours.keys() - {"<|end|>"}, key=lambda name: (len(name), name))
    text = tokenizer.decoder.decode([foreign])
    pieces = tokenizer.encode(text, add_special_tokens=False).ids
    assert len(pieces) > 1
    torch.testing.assert_close(new[theirs[foreign]], old[pieces].mean(dim=0))
    heads = [model.get_output_embeddings().get_parameter("weight") for model in (before, after)]
    torch.testing.assert_close(heads[1][theirs[foreign]], heads[0].mean(dim=0))
    unknown = len(theirs) + 2  # an id that no tokenizer knows
    torch.testing.assert_close(new[unknown], old.mean(dim=0))


def test_into_its_own_vocabulary_it_is_the_same_model(draft: Path, tmp_path: Path) -> None:
    written = transplant(draft, draft, tmp_path / "out")
    assert written.num_shared == written.num_tokens
    text = list(range(5, 45))
    known = [token_id for name, token_id in vocabulary(draft).items() if name not in NEVER]
    found, expected = (logits(folder, text)[:, known] for folder in (tmp_path / "out", draft))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("draft", ["llama"], indirect=True)
async def test_it_drafts_for_the_target(target: Path, draft: Path, tmp_path: Path) -> None:
    transplant(draft, target, tmp_path / "out")
    async with (
        worker(load_tiny(target)) as verify,
        worker(load_tiny(tmp_path / "out"), draft=True) as drafting,
        coordinator(verify.address, drafting.address) as stack,
    ):
        for temperature in (0.0, 0.8):
            sampling = SamplingParams(temperature=temperature, seed=5)
            alone, together = [
                await ask(
                    stack.client, "the cat", max_tokens=48, ignore_eos=True, sampling=sampling, speculate=speculate
                )
                for speculate in (False, True)
            ]
            assert together.token_ids == alone.token_ids
            assert together.finished.mode is GenerationMode.SPECULATIVE
            assert together.finished.speculation.num_drafted_nodes > 0


def test_what_cannot_be_is_refused(target: Path, draft: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UnsupportedModelError, match="is not an empty folder"):
        transplant(draft, target, tmp_path / "full")
    (draft / "tokenizer.json").unlink()
    result = CliRunner().invoke(app, [str(draft), str(target), str(tmp_path / "out")])
    assert result.exit_code == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(UnsupportedModelError, match="cannot read the configuration"):
        transplant(target, tmp_path / "nothing", tmp_path / "out")
