"""Tiny checkpoints in the layouts of quantizers, written as these define them, and their dense twins."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from outrider.engine.quantized.weight import QuantizedWeight, packed, unpacked
from tests.engine.tiny_models import build

GROUP = 32
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbouring outputs each nibble of a word belongs to, lowest first."""


_RANDOM = torch.Generator().manual_seed(5)


def fp8(num_outputs: int, num_inputs: int, rows: int, columns: int) -> QuantizedWeight:
    """A random weight in the engine's own order, of all numbers that there are."""
    codes = torch.randint(256, (num_outputs, num_inputs), generator=_RANDOM, dtype=torch.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0  # which is none
    scales = torch.rand(-(-num_outputs // rows), -(-num_inputs // columns), generator=_RANDOM) / 448
    return QuantizedWeight(codes.view(torch.float8_e4m3fn), scales, rows, columns)


def int4(num_outputs: int, num_inputs: int, columns: int, order: Tensor | None = None) -> QuantizedWeight:
    """Another one, whose inputs may stand in an order of their own."""
    numbers, zeros = (
        torch.randint(16, (num_outputs, size), generator=_RANDOM, dtype=torch.uint8)
        for size in (num_inputs, num_inputs // columns)
    )
    scales = (torch.rand(num_outputs, num_inputs // columns, generator=_RANDOM) / 15).half()
    assert torch.equal(unpacked(packed(numbers)), numbers)
    return QuantizedWeight(packed(numbers), scales, 1, columns, zeros, order)


class Quantized(NamedTuple):
    """One weight as it is stored, by the ends of the tensors' names; and what it stands for."""

    tensors: dict[str, Tensor]
    dense: Tensor


def fp8_per_tensor(weight: Tensor) -> Quantized:
    scale = (weight.abs().max() / 448).reshape(1)
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return Quantized({"weight": codes, "weight_scale": scale, "input_scale": torch.ones(1)}, codes.float() * scale)


def fp8_per_channel(weight: Tensor) -> Quantized:
    scale = (weight.abs().amax(1, keepdim=True) / 448).bfloat16()
    codes = (weight / scale.float()).to(torch.float8_e4m3fn)
    return Quantized({"weight": codes, "weight_scale": scale}, codes.float() * scale.float())


def fp8_in_blocks(rows: int, columns: int, scale_name: str) -> Callable[[Tensor], Quantized]:
    def quantized(weight: Tensor) -> Quantized:
        num_outputs, num_inputs = weight.shape
        scales = torch.zeros(-(-num_outputs // rows), -(-num_inputs // columns))
        dense, codes = torch.zeros_like(weight), torch.zeros(weight.shape, dtype=torch.float8_e4m3fn)
        for row in range(scales.shape[0]):
            for column in range(scales.shape[1]):
                block = slice(row * rows, (row + 1) * rows), slice(column * columns, (column + 1) * columns)
                scales[row, column] = weight[block].abs().max() / 448
                codes[block] = (weight[block] / scales[row, column]).to(torch.float8_e4m3fn)
                dense[block] = codes[block].float() * scales[row, column]
        return Quantized({"weight": codes, scale_name: scales}, dense)

    return quantized


class _Int4(NamedTuple):
    numbers: Tensor
    """[N, K]"""
    scales: Tensor
    """[N, G] float16"""
    zeros: Tensor
    """[N, G]"""
    dense: Tensor


def _int4(weight: Tensor, group_of: Tensor) -> _Int4:
    """Inputs of one group share scale and zero point."""
    num_groups = int(group_of.max()) + 1
    numbers, dense = torch.zeros(weight.shape, dtype=torch.int32), torch.zeros_like(weight)
    scales, zeros = torch.zeros(len(weight), num_groups), torch.zeros(len(weight), num_groups, dtype=torch.int32)
    for group in range(num_groups):
        part = weight[:, group_of == group]
        low, high = part.amin(1, keepdim=True), part.amax(1, keepdim=True)
        scale = ((high - low) / 15).half().float()
        zero = (-low / scale).round().clamp(1, 15).int()
        found = ((part / scale).round() + zero).clamp(0, 15).int()
        numbers[:, group_of == group] = found
        dense[:, group_of == group] = (found - zero) * scale
        scales[:, group : group + 1], zeros[:, group : group + 1] = scale, zero
    return _Int4(numbers, scales.half(), zeros, dense)


def _words(numbers: Tensor, columns: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """[A, B] to [A, B / 8] int32: nibble i of a word is its column `columns[i]`."""
    words = torch.zeros(numbers.shape[0], numbers.shape[1] // 8, dtype=torch.int64)
    for nibble, column in enumerate(columns):
        words |= numbers[:, column::8].long() << (4 * nibble)
    return words.to(torch.uint32).view(torch.int32)


def awq(weight: Tensor) -> Quantized:
    found = _int4(weight, torch.arange(weight.shape[1]) // GROUP)
    tensors = {
        "qweight": _words(found.numbers.T, AWQ_COLUMNS),
        "qzeros": _words(found.zeros.T, AWQ_COLUMNS),
        "scales": found.scales.T.contiguous(),
    }
    return Quantized(tensors, found.dense)


def gptq(*, shuffled: bool = False, less: int = 1, group: int = GROUP) -> Callable[[Tensor], Quantized]:
    def quantized(weight: Tensor) -> Quantized:
        group_of = torch.arange(weight.shape[1]) // min(group, weight.shape[1])
        if shuffled:
            group_of = group_of[torch.randperm(len(group_of), generator=torch.Generator().manual_seed(4))]
        found = _int4(weight, group_of)
        tensors = {
            "qweight": _words(found.numbers).T.contiguous(),
            "qzeros": _words(found.zeros.T - less),
            "scales": found.scales.T.contiguous(),
            "g_idx": group_of.int(),
            "bias": torch.zeros(len(weight), dtype=torch.float16),
        }
        return Quantized(tensors, found.dense)

    return quantized


def _compressed(strategy: str, **more: object) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, "strategy": strategy, **more}
    activations = {"num_bits": 8, "type": "float", "dynamic": True, "strategy": "token"}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def _fine_grained(block: list[int]) -> dict[str, Any]:
    return {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": block}


_AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}

LAYOUTS: Mapping[str, tuple[dict[str, Any], Callable[[Tensor], Quantized]]] = {
    "fp8 per tensor": (_compressed("tensor"), fp8_per_tensor),
    "fp8 per channel": (_compressed("channel"), fp8_per_channel),
    "fp8 in blocks, compressed": (
        _compressed("block", block_structure=[24, 32]),
        fp8_in_blocks(24, 32, "weight_scale"),
    ),
    "fp8 in blocks": (_fine_grained([24, 32]), fp8_in_blocks(24, 32, "weight_scale_inv")),
    "fp8 in large blocks": (_fine_grained([128, 128]), fp8_in_blocks(128, 128, "weight_scale_inv")),
    "awq": (_AWQ, awq),
    "gptq": (_GPTQ, gptq()),
    "gptq, inputs in another order": ({**_GPTQ, "desc_act": True}, gptq(shuffled=True)),
    "gptq_v2": ({**_GPTQ, "checkpoint_format": "gptq_v2"}, gptq(less=0)),
    "gptq, all inputs in one group": ({**_GPTQ, "group_size": -1}, gptq(group=10**6)),
}
"""By name: what config.json says, and how a weight is quantized."""


def stored(folder: Path, layout: str, family: str = "llama", layers: int = 1) -> PreTrainedModel:
    """Writes a tiny model of `family` into `folder` with all its linear layers but the head quantized; returns its
    twin with the weights that these stand for."""
    return store(build(family, layers=layers), folder, layout)


def store(model: PreTrainedModel, folder: Path, layout: str) -> PreTrainedModel:
    """The same with `model`, which becomes its twin."""
    says, quantize = LAYOUTS[layout]
    tensors = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            quantized = quantize(module.weight.detach())
            del tensors[f"{name}.weight"]
            tensors |= {f"{name}.{end}": tensor for end, tensor in quantized.tensors.items()}
            module.weight = nn.Parameter(quantized.dense)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32", "quantization_config": says}))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return model
