"""A model's function at a larger model's cost: wider MLPs and more layers, with the same logits.

`python -m recipes.widen models/target OUT --mlp-width 16384` writes OUT, a folder that a worker loads like any other.

Widening: each new neuron has the gate and up weights of an old one and an output weight of zero, so it is computed and
adds nothing; being a copy it is finite wherever the model is, and zero times it is zero. Deepening: each new layer is a
copy of the one below it whose attention and MLP outputs are zero, so the residual stream passes unchanged. Both are
known from network growing (Net2Net, arXiv 1511.05641; stacking with zero outputs, LLaMA Pro, arXiv 2401.02415).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import transformers
import typer
from rich.console import Console
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.load.folder import load_model, resolve_folder
from recipes import proof
from recipes.model_folder import copy_companions, new_folder, save

app = typer.Typer(add_completion=False)

_CPU = torch.device("cpu")
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_GATE, _UP, _DOWN = (f"mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
_ATTENTION = "self_attn.o_proj.weight"
_MLP_INPUTS = re.compile(r"mlp\.(gate|up)_proj\..+")
_OUTPUTS = re.compile(r"(mlp\.down|self_attn\.o)_proj\..+")


class Widened(NamedTuple):
    """What was written."""

    num_parameters: int
    logit_difference: float
    """Largest difference to the original's logits in float32, relative to the largest logit."""


def widen(
    folder: Path, out: Path, *, mlp_width: int | None = None, num_layers: int | None = None, seed: int = 0
) -> Widened:
    """Writes the model of `folder` to the new or empty folder `out`, with MLPs of `mlp_width` and `num_layers` layers.

    None keeps a size. `seed` picks the neurons that are copied: the same seed writes the same weights. Weights keep
    their types. Raises UnsupportedModelError, and leaves no `out`, if the layers are of another type than Llama's, if a
    size would shrink, or if the logits of what was written are not the original's.
    """
    with new_folder(out) as written:
        _write(folder, written, mlp_width, num_layers, torch.Generator().manual_seed(seed))
        return _proved(folder, written)


def _write(folder: Path, out: Path, mlp_width: int | None, num_layers: int | None, generator: torch.Generator) -> None:
    model = load_model(folder, device=_CPU, dtype="auto")
    config, layers = model.config, _gated_layers(model, folder)
    old_width, old_layers = config.intermediate_size, len(layers)
    mlp_width, num_layers = mlp_width or old_width, num_layers or old_layers
    if mlp_width < old_width or num_layers < old_layers:
        raise UnsupportedModelError(
            f"{folder} has {old_layers} layers with MLPs of {old_width}; ask for no fewer layers and no smaller width"
        )
    sources = [index * old_layers // num_layers for index in range(num_layers)]
    state = {name: tensor for name, tensor in model.state_dict().items() if not _LAYER.fullmatch(name)}
    for index, source in enumerate(sources):
        copies = torch.randint(old_width, (mlp_width - old_width,), generator=generator)
        layer = _widened(layers[source], torch.cat([torch.arange(old_width), copies]))
        layer = _silent(layer) if source in sources[:index] else layer
        state |= {f"model.layers.{index}.{part}": tensor for part, tensor in layer.items()}
    for name, value in config.to_dict().items():
        if "layer" in name and isinstance(value, list) and len(value) == old_layers:
            setattr(config, name, [value[source] for source in sources])
    config.num_hidden_layers, config.intermediate_size = num_layers, mlp_width
    save(model, out, state)
    copy_companions(folder, out)


def _gated_layers(model: PreTrainedModel, folder: Path) -> Mapping[int, Mapping[str, Tensor]]:
    """The weights of each layer by their names within it."""
    layers: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in model.state_dict().items():
        if match := _LAYER.fullmatch(name):
            layers[int(match[1])][match[2]] = tensor
    width, hidden = (getattr(model.config, name, None) for name in ("intermediate_size", "hidden_size"))
    wanted = {_GATE: (width, hidden), _UP: (width, hidden), _DOWN: (hidden, width)}
    if not layers or any(_mlp_shapes(layer) != wanted or _ATTENTION not in layer for layer in layers.values()):
        raise UnsupportedModelError(
            f"{folder} ({model.config.model_type}) cannot be widened: its layers do not all consist of self_attn with "
            "o_proj and of an mlp with gate_proj, up_proj and down_proj alone, as in Llama, Qwen3, Mistral and Gemma; "
            "take a dense model of that type"
        )
    return layers


def _mlp_shapes(layer: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {part: tuple(tensor.shape) for part, tensor in layer.items() if re.match(r"mlp\..*weight", part)}


def _widened(layer: Mapping[str, Tensor], neurons: Tensor) -> dict[str, Tensor]:
    """The layer with the given neurons [width]: first all of its own, then copies, whose output weights are zero."""
    widened = {part: tensor[neurons] if _MLP_INPUTS.fullmatch(part) else tensor for part, tensor in layer.items()}
    widened[_DOWN] = functional.pad(layer[_DOWN], (0, len(neurons) - layer[_DOWN].shape[1]))
    return widened


def _silent(layer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of the layer that adds nothing to the residual stream."""
    return {
        part: torch.zeros_like(tensor) if _OUTPUTS.fullmatch(part) else tensor.clone() for part, tensor in layer.items()
    }


def _proved(folder: Path, written: Path) -> Widened:
    original = proof.loaded(folder)
    token_ids = proof.text(original.config.vocab_size)
    expected = proof.logits(original, token_ids)
    del original
    model = proof.loaded(written)
    difference = proof.difference(proof.logits(model, token_ids), expected)
    if not difference <= proof.TOLERANCE:
        raise UnsupportedModelError(
            f"{folder} ({model.config.model_type}) cannot be widened: its logits would change by {difference:.1e} of "
            "the largest, so its layers depend on their number or do more than add to the residual stream; "
            "leave the number of layers as it is, or take a model of the Llama type"
        )
    return Widened(model.num_parameters(), difference)


@app.command()
def main(
    model: Annotated[str, typer.Argument(help="Model folder, or a hub name such as org/name.")],
    out: Annotated[Path, typer.Argument(help="New or empty folder to write.")],
    mlp_width: Annotated[int | None, typer.Option(min=1, help="Neurons of each MLP; default: the model's.")] = None,
    num_layers: Annotated[int | None, typer.Option(min=1, help="Layers in all; default: the model's.")] = None,
    seed: Annotated[int, typer.Option(help="Picks the neurons that are copied.")] = 0,
) -> None:
    """Write a model that computes what MODEL computes, at the cost of a larger one."""
    transformers.logging.disable_progress_bar()
    try:
        written = widen(resolve_folder(model), out, mlp_width=mlp_width, num_layers=num_layers, seed=seed)
    except UnsupportedModelError as error:
        Console(stderr=True).print(str(error), style="red", markup=False)
        raise typer.Exit(1) from error
    print(
        f"{out}: {written.num_parameters:,} parameters; float32 logits differ from the original's by "
        f"{written.logit_difference:.1e} of the largest"
    )


if __name__ == "__main__":
    app()
