"""Divides a model over several devices, by transformers' own plan for its architecture (tensor parallelism)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.quantized.linear import QuantizedLinear
from outrider.engine.quantized.part import Part, inputs_of, outputs_of
from outrider.engine.quantized.weight import QuantizedWeight

_BY_OUTPUTS = {"colwise", "colwise_gather_output", "colwise_rep"}
_BY_INPUTS = {"rowwise", "rowwise_split_input", "rowwise_rep"}
_WHOLE = {None, "replicate", "replicated_with_grad_allreduce", "mla_kv_a_proj"}
"""How transformers' plans name what becomes of a linear layer."""

_DIVIDED = {"num_attention_heads": "attention heads", "num_key_value_heads": "key-value heads"}


def check_division(folder: Path, num_ranks: int) -> None:
    """Raises UnsupportedModelError if the model of a folder that was checked cannot be divided over `num_ranks`
    devices: transformers has no plan for it, or there are not as many heads for each."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    if not config.base_model_tp_plan:
        raise UnsupportedModelError(
            f"transformers has no plan for dividing models of type {config.model_type!r} over several devices; leave "
            "--tensor-parallel out"
        )
    for name, words in _DIVIDED.items():
        num_heads = getattr(config, name, None)
        if num_heads is not None and num_heads % num_ranks:
            divisors = [str(number) for number in range(2, num_heads + 1) if num_heads % number == 0]
            raise UnsupportedModelError(
                f"{num_heads} {words} do not divide into {num_ranks} parts; --tensor-parallel may be one of "
                f"{', '.join(divisors) or '1'}"
            )


def part_of(
    model: PreTrainedModel, name: str, weight: QuantizedWeight, bias: Tensor | None, part: Part
) -> QuantizedLinear:
    """The part that a rank has of the linear layer `name` of `model`, whose whole weight and bias those are.

    transformers' plan says how it is divided, and `divide` has the ranks exchange what they have to. Raises
    UnsupportedModelError if it cannot be divided so.
    """
    plan: dict[str, Any] = model.tp_plan
    style = plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", name))
    whole = weight.num_outputs, weight.num_inputs
    if style in _WHOLE:
        return QuantizedLinear(weight, bias)
    if style in _BY_OUTPUTS:
        own = None if bias is None else bias[part.of(weight.num_outputs, "outputs")].clone()
        return QuantizedLinear(outputs_of(weight, part), own, whole)
    if style in _BY_INPUTS:  # what the ranks find is added up
        return QuantizedLinear(inputs_of(weight, part), bias if part.rank == 0 else None, whole)
    raise part.refusal(f"transformers divides {name} by the rule {style}, which is not known of quantized weights")


def divide(model: PreTrainedModel, device: torch.device, num_ranks: int) -> PreTrainedModel:
    """This rank's part of `model`, which is on the CPU, and whole but for what `part_of` has made, on `device`; the
    ranks have met.

    Not by from_pretrained, which needs the accelerate package for it. Raises UnsupportedModelError if a plan does not
    fit its model.
    """
    kind = type(model)
    try:
        from transformers.distributed.configuration_utils import DistributedConfig  # older releases have none

        for name in model.all_tied_weights_keys:  # the plan cuts each by itself; they are tied again below
            holder, _, parameter = name.rpartition(".")
            module = model.get_submodule(holder)
            setattr(module, parameter, nn.Parameter(getattr(module, parameter).detach()))
        config, _, mesh = kind.prepare_distribute_model(DistributedConfig(tp_size=num_ranks))
        kind.maybe_distribute_model(model, config, mesh)  # in its place
        model.tie_weights()
        model.to(device)  # pyright: ignore[reportArgumentType]
    except Exception as error:  # transformers and torch raise whatever they meet
        raise UnsupportedModelError(
            f"transformers cannot divide this {model.config.model_type!r} model over {num_ranks} devices "
            f"({type(error).__name__}: {error}); leave --tensor-parallel out"
        ) from error
    return model.eval()
