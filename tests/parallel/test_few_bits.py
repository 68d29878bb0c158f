"""A quantized model over two ranks, each of which keeps its part of the weights as a GPU does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from outrider.engine.jobs import LINE_END, Job
from outrider.engine.quantized.linear import QuantizedLinear, kept_as, num_parameters
from outrider.worker.building import build
from tests.engine.histories import TOLERANCE, random_line
from tests.engine.quantized import store
from tests.engine.tiny_models import VOCAB_SIZE
from tests.parallel.divided import CPU, NUM_RANKS, divided, keep_as_on_a_gpu, pair

LAYOUTS = {"fp8 in blocks": "fp8", "awq": "int4"}


def wide() -> PreTrainedModel:
    """Whose layers have whole groups of 32 inputs for each rank, and biases."""
    shape: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 128}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**shape, **heads, num_hidden_layers=1, initializer_range=0.3)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return model


def test_both_parts_together_compute_what_the_dense_twin_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_as_on_a_gpu(monkeypatch)
    twins = {layout: store(wide(), tmp_path / layout, layout) for layout in LAYOUTS}
    line = random_line(9, seed=1)
    with pair([tmp_path / layout for layout in LAYOUTS]) as (ranks, other):
        for layout, twin in twins.items():
            engine, model, *_ = build(divided(tmp_path / layout), tmp_path / layout, CPU, ranks=ranks)
            assert kept_as(model) == LAYOUTS[layout]
            assert num_parameters(model) == sum(each.numel() for each in twin.parameters())
            for name, layer in model.named_modules():
                if isinstance(layer, QuantizedLinear):
                    own, whole = layer.weight_in_few_bits, dict(twin.named_parameters())[f"{name}.weight"]
                    assert own.num_outputs * own.num_inputs * NUM_RANKS == whole.numel()
            logits = engine.step([Job(engine.acquire(), line, [LINE_END, 0], [1, 2], range(LINE_END, 2))]).logits
            with torch.inference_mode():
                expected = twin(input_ids=torch.tensor([[*line, 1, 2]]), use_cache=False).logits[0, -3:]
            torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=TOLERANCE)
            ranks.dismiss()
        assert other.wait() == 0
