"""A stretched model takes longer texts, and is the same model otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.load.folder import load_model
from recipes.stretch import stretch
from tests.e2e.stack import load_tiny, save_tiny
from tests.engine.tiny_models import MAX_CONTEXT, VOCAB_SIZE, build

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
def test_a_stretched_model_computes_the_same_and_takes_more(family: str, tmp_path: Path) -> None:
    folder = save_tiny(build(family), tmp_path / "model")
    longer = stretch(str(folder), tmp_path / "stretched", 2 * MAX_CONTEXT)
    assert longer.name == folder.name, "a worker is called after its folder"
    token_ids = torch.randint(VOCAB_SIZE, (1, MAX_CONTEXT), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        old, new = (
            load_model(each, device=CPU, dtype="float32")(input_ids=token_ids, use_cache=False).logits
            for each in (folder, longer)
        )
    assert torch.equal(old, new)
    infos = [load_tiny(each).info for each in (folder, longer)]
    assert [info.max_context for info in infos] == [MAX_CONTEXT, 2 * MAX_CONTEXT]
    assert infos[0].tokenizer_sha256 == infos[1].tokenizer_sha256


def test_a_model_with_positions_enough_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = save_tiny(build("llama"), tmp_path / "model")
    assert stretch(str(folder), tmp_path / "stretched", MAX_CONTEXT) == folder.resolve()
    assert not (tmp_path / "stretched").exists()


def test_positions_with_weights_are_refused(tmp_path: Path) -> None:
    folder = save_tiny(build("gpt2"), tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match="ask for shorter prompts"):
        stretch(str(folder), tmp_path / "stretched", 2 * MAX_CONTEXT)
