"""A model over two ranks computes what one process does, whatever its sessions go through."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from outrider.engine.engine import Engine
from outrider.engine.quantized.linear import kept_as, num_parameters, weight_tensors
from outrider.worker.building import build
from tests.e2e.stack import save_tiny
from tests.engine import histories, tiny_models
from tests.engine.histories import Rig
from tests.engine.quantized import store
from tests.parallel.divided import CPU, NUM_RANKS, divided, keep_as_on_a_gpu, pair

FAMILIES = ("llama", "qwen3", "gemma3")

FEW_BITS = ("fp8 per channel", "fp8 in blocks", "awq")

HISTORIES = (
    histories.a_tree_equals_its_branches_alone,
    histories.sessions_in_one_step_equal_each_alone,
    histories.any_history_equals_a_fresh_start,
)


class DividedRig(Rig):
    """An engine over two ranks, and the same model in one process under transformers' own attention."""

    def __init__(self, whole: PreTrainedModel, engine: Engine) -> None:
        self.engine = engine
        self._whole = whole
        self._tolerance = None

    def reference(self, token_ids: list[int]) -> Tensor:
        with torch.inference_mode():
            return self._whole(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0]


def wide() -> PreTrainedModel:
    """Whose layers have whole groups of 32 inputs for each rank, and biases."""
    shape = {"vocab_size": tiny_models.VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**shape, **heads, initializer_range=0.3)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


def test_every_history_has_the_logits_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_as_on_a_gpu(monkeypatch)
    models = {family: tiny_models.build(family) for family in FAMILIES}
    folders = [save_tiny(model, tmp_path / family) for family, model in models.items()]
    for layout in FEW_BITS:
        folders.append(tmp_path / layout)
        models[layout] = store(wide(), folders[-1], layout)
    with pair(folders) as (ranks, other):
        for (name, whole), folder in zip(models.items(), folders, strict=True):
            engine, model, *_ = build(divided(folder), folder, CPU, ranks=ranks)
            heads = [layer.num_kv_heads for layer in engine._model.facts.layers]
            assert heads == [whole.config.num_key_value_heads // NUM_RANKS] * len(heads)
            assert num_parameters(model) == sum(map(torch.numel, whole.parameters()))
            if name in FEW_BITS:
                assert kept_as(model) == ("int4" if name == "awq" else "fp8")
                assert codes_bytes(model) == sum(
                    each.weight.numel() for each in whole.model.layers.modules() if isinstance(each, torch.nn.Linear)
                ) // NUM_RANKS // (2 if name == "awq" else 1)
            for check in HISTORIES:
                check(DividedRig(whole, engine))
            ranks.dismiss()
        assert other.wait() == 0


def codes_bytes(model: PreTrainedModel) -> int:
    """What this rank keeps in few bits."""
    few = (torch.uint8, torch.float8_e4m3fn)
    zeros = {id(buffer) for name, buffer in model.named_buffers() if name.endswith("zeros")}
    return sum(each.nbytes for each in weight_tensors(model) if each.dtype in few and id(each) not in zeros)
