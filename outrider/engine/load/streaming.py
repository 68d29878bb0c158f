"""Weights from a checkpoint's files to their device one by one: nowhere is there a second copy of all of them.

transformers' loader takes the tensors of a checkpoint, renames, fuses and ties them, and reads each when it comes to
it. It is handed tensors that read themselves: to the device at once, and de-quantised where they are not kept as they
are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.load.checkpoint import StoredTensor, named, read_checkpoint
from outrider.engine.load.division import part_of
from outrider.engine.quantized.layout import Layout, Parts, layout_of
from outrider.engine.quantized.linear import QuantizedLinear
from outrider.engine.quantized.part import Part
from outrider.engine.quantized.scheme import Scheme
from outrider.engine.quantized.unpacking import weight_of

_FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class Loaded(NamedTuple):
    """A model, and what transformers says of its checkpoint."""

    model: PreTrainedModel
    info: Mapping[str, Any]


class _Awaited:
    """A tensor of a checkpoint for transformers' loader, which slices it, as it does safetensors' own, and then asks
    for it on a device: that is settled here."""

    def __init__(self, read: Callable[[torch.dtype], Tensor]) -> None:
        self._read = read

    def __getitem__(self, _: object) -> Self:
        return self

    def to(self, device: object, dtype: torch.dtype) -> Tensor:
        return self._read(dtype)


class _Files:
    """The tensors of a checkpoint, mapped into memory, as far as they are asked for."""

    def __init__(self, tensors: Sequence[StoredTensor], device: torch.device) -> None:
        # Not closed, but left alone: the loader's threads may still read when it has failed.
        opened = {file: safe_open(file, framework="pt", device="cpu") for file in {each.file for each in tensors}}
        self._files = {tensor.name: opened[tensor.file] for tensor in tensors}
        self._device = device

    def read(self, name: str) -> Tensor:
        """One of them, on the device."""
        return self._files[name].get_tensor(name).to(self._device)


def load_streaming(
    folder: Path,
    config: PreTrainedConfig,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    scheme: Scheme | None,
    keeps: bool,
    part: Part | None = None,
) -> Loaded:
    """The model of `folder` on `device`, in `dtype`, or if None in the type that config.json or the weights have.

    If `keeps`, linear layers keep their weights as they are quantized, by `scheme`; if `part` is given, a rank's part
    of them. Raises UnsupportedModelError if something else is quantized then, or does not divide.
    """
    tensors = read_checkpoint(folder)
    layout = Layout({}, [tensor.name for tensor in tensors])
    if scheme is not None:
        layout = layout_of({tensor.name: tensor for tensor in tensors}, scheme)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, attn_implementation="eager", trust_remote_code=False)
    if keeps:
        _check_kept(skeleton, layout)
    files = _Files(tensors, device)
    awaited = {name: _plain(files, name) for name in layout.plain}
    known = skeleton.state_dict().keys()
    for name, parts in layout.weights.items():
        awaited[name] = _placeholder(parts) if keeps else _dense(files, parts)
        bias = f"{name.removesuffix('weight')}bias"
        if bias in awaited and bias not in known and not files.read(bias).any():
            del awaited[bias]  # some quantizers write one for every layer
    loaded: Any = type(skeleton).from_pretrained(
        None,
        config=skeleton.config,
        state_dict=awaited,
        dtype=dtype or _dtype(config, tensors),
        attn_implementation="eager",
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # the caller names them
    )
    model: PreTrainedModel = loaded[0]
    if keeps:
        _put_in(model, layout, files, part)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model.to(device)  # pyright: ignore[reportArgumentType]  what is computed, not stored
    return Loaded(model, loaded[1])


def _plain(files: _Files, name: str) -> _Awaited:
    return _Awaited(lambda dtype: files.read(name).to(dtype=dtype))


def _dense(files: _Files, parts: Parts) -> _Awaited:
    return _Awaited(lambda dtype: weight_of(parts, files.read).dequantized(dtype))


def _placeholder(parts: Parts) -> _Awaited:
    """Of a weight that is read later."""
    return _Awaited(lambda dtype: torch.empty(parts.num_outputs, parts.num_inputs, dtype=dtype, device="meta"))


def _check_kept(skeleton: PreTrainedModel, layout: Layout) -> None:
    linear = {f"{name}.weight" for name, module in skeleton.named_modules() if type(module) is nn.Linear}
    if others := sorted(set(layout.weights) - linear):
        raise UnsupportedModelError(
            f"{len(others)} quantized weights ({named(others)}) are not of linear layers, which alone compute with "
            "them, as those of experts are not; --weights full de-quantises all where there is room"
        )


def _put_in(model: PreTrainedModel, layout: Layout, files: _Files, part: Part | None) -> None:
    """Puts layers with quantized weights in the place of those with placeholders."""
    for tensor, parts in layout.weights.items():
        name = tensor.removesuffix(".weight")
        layer: Any = model.get_submodule(name)
        bias = None if layer.bias is None else layer.bias.detach()
        weight = weight_of(parts, files.read)
        own = QuantizedLinear(weight, bias) if part is None else part_of(model, name, weight, bias, part)
        model.set_submodule(name, own)


def _dtype(config: PreTrainedConfig, tensors: Sequence[StoredTensor]) -> torch.dtype:
    """What config.json says, or the first tensor in a type of its own."""
    said = config.dtype or config.get_text_config().dtype
    if said is not None:
        return getattr(torch, said) if isinstance(said, str) else said
    return next((_FLOATS[each.dtype] for each in tensors if each.dtype in _FLOATS), torch.float32)
