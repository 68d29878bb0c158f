"""Loads a model folder: safetensors only, no code from the folder, refusals in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.core.protocol.model_name import is_hub_name
from outrider.engine.load.checkpoint import named, read_checkpoint
from outrider.engine.load.streaming import load_streaming
from outrider.engine.quantized.layout import layout_of
from outrider.engine.quantized.part import Part
from outrider.engine.quantized.scheme import Scheme, scheme_of

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Floating-point types by the names that flags and ModelInfo use."""

Weights = Literal["auto", "full", "fp8", "int4", "int8"]
"""In what linear layers shall keep their weights; fp8 and int4 want a checkpoint that is quantized so, int8 is made of
any once it is loaded."""

_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja"]
_MISFITS = {
    "missing_keys": "missing tensors",
    "unexpected_keys": "tensors too many",
    "mismatched_keys": "tensors of another shape",
}
"""What transformers says of a checkpoint that is not the model's, and would make up or leave out."""
_ERROR_CHARACTERS_MAX = 300
"""As much of a library's error as is shown: the beginning says what is wrong."""
_LAYER_TYPES = {"full_attention", "sliding_attention"}
_BATCH_ROPE_TYPES = {"dynamic", "longrope"}
"""Rotary positions that are scaled by the longest text of a batch: one session would change another's logits."""


def resolve_folder(model: str) -> Path:
    """The local folder of `model`: a path, or a hub name such as "org/name", downloaded or found in the cache.

    Raises UnsupportedModelError if there is no such folder, or if it holds no safetensors weights.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if not is_hub_name(model):
            raise UnsupportedModelError(
                f"there is no model folder {model!r}; pass --model the path of a folder with config.json and "
                "*.safetensors, or a hub name such as org/name"
            )
        try:
            folder = Path(snapshot_download(model, allow_patterns=_FILES))
        except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
            raise UnsupportedModelError(
                f"{model!r} is no local folder and could not be fetched from the hub ({type(error).__name__}); "
                "download it where there is a network and pass the folder's path"
            ) from error
    if not (folder / "config.json").is_file():
        raise UnsupportedModelError(f"{folder} has no config.json; pass the folder that save_pretrained wrote")
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth"))
        raise UnsupportedModelError(
            f"{folder} holds {'pickled weights only' if pickled else 'no weights'}; Outrider loads *.safetensors "
            "alone, because loading a pickle runs code: convert it once with model.save_pretrained(folder)"
        )
    return folder


def load_model(folder: Path, *, device: torch.device, dtype: str) -> PreTrainedModel:
    """The folder's model: `check_folder`, then `load_weights`."""
    check_folder(folder)
    return load_weights(folder, device=device, dtype=dtype)


def load_weights(
    folder: Path, *, device: torch.device, dtype: str, weights: Weights = "auto", part: Part | None = None
) -> PreTrainedModel:
    """The model of a folder that was checked, in evaluation mode, with transformers' eager attention until the engine
    sets its own.

    `dtype` is a name of DTYPES, or "auto" for the type that the weights are stored in. Where `weights` are not "full",
    linear layers of quantized checkpoints keep theirs as they are on a GPU; on a CPU they are de-quantised, since its
    native products, which are batch invariant, are of whole numbers. If `part` is given, the model is going to be
    divided over devices: it is on the CPU then, and what it keeps quantized is that part. Raises UnsupportedModelError
    if the tensors are not exactly those of the model.
    """
    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    scheme = quantization(config)
    _check_asked(folder, scheme, weights)
    keeps = scheme is not None and _keeps(weights, device)
    host = device if part is None else torch.device("cpu")
    wanted = None if dtype == "auto" else DTYPES[dtype]
    loaded: Any
    try:
        if scheme is None and host.type == "cpu":  # its weights are pages of their files
            loaded = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=wanted or "auto",
                attn_implementation="eager",
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are named below
            )
        else:
            loaded = load_streaming(folder, config, device=host, dtype=wanted, scheme=scheme, keeps=keeps, part=part)
    except UnsupportedModelError:
        raise
    except Exception as error:  # transformers and safetensors raise whatever they meet
        raise _cannot(f"load {folder} as a causal language model", error) from error
    model: PreTrainedModel
    model, found = loaded
    problems = [
        f"{len(names)} {words} ({named(names)})"
        for kind, words in _MISFITS.items()
        if (names := sorted(each if isinstance(each, str) else each[0] for each in found[kind]))
    ]
    if problems:
        raise UnsupportedModelError(
            f"{folder} is not the weights that its config.json describes: {'; '.join(problems)}; download it again, or "
            "take the config.json that belongs to it"
        )
    if model.dtype not in DTYPES.values():
        raise UnsupportedModelError(
            f"the weights of {folder} are in {str(model.dtype).removeprefix('torch.')}; choose --dtype among "
            f"{', '.join(DTYPES)}"
        )
    return model.eval()


def check_folder(folder: Path, weights: Weights = "auto") -> None:
    """Raises UnsupportedModelError for what can be told of a folder without reading its weights: files that are missing
    or cut off, an architecture that is not a decoder with plain or sliding attention, weights that are quantized in an
    unknown way, or not as `weights` says.
    """
    tensors = read_checkpoint(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise UnsupportedModelError(
            f"transformers cannot read {folder / 'config.json'} ({_said(error)}): it is damaged, or the architecture "
            "is unknown to the installed version or needs code from the folder, which is never run"
        ) from error
    _check_architecture(config, folder)
    num_layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(num_layers, int) and num_layers > len(tensors):  # to make them would take all memory
        raise UnsupportedModelError(
            f"{folder} is not the weights that its config.json describes: {len(tensors)} tensors are too few for "
            f"{num_layers} layers; download it again, or take the config.json that belongs to it"
        )
    try:
        scheme = quantization(config)
        if scheme is not None:
            layout_of({tensor.name: tensor for tensor in tensors}, scheme)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            f"cannot make the model that {folder / 'config.json'} describes: {error}"
        ) from error
    _check_asked(folder, scheme, weights)
    try:
        has_generation = (folder / "generation_config.json").is_file()
        generation = GenerationConfig.from_pretrained(folder) if has_generation else None
        with torch.device("meta"):  # shapes alone
            AutoModelForCausalLM.from_config(config, attn_implementation="eager", trust_remote_code=False)
    except Exception as error:
        raise _cannot(f"make the model that {folder / 'config.json'} describes", error) from error
    end_token_ids(config, generation)


def quantization(config: PreTrainedConfig) -> Scheme | None:
    """How the checkpoint of `config` is quantized, if it is. From now on `config` says nothing of it, so that
    transformers looks for no quantizer. Raises UnsupportedModelError as `scheme_of` does."""
    found: Any = None
    parts: tuple[Any, ...] = (config.get_text_config(), config)
    for part in parts:
        if hasattr(part, "quantization_config"):
            found = part.quantization_config or found
            del part.quantization_config
    return None if found is None else scheme_of(found if isinstance(found, dict) else found.to_dict())


def _keeps(weights: Weights, device: torch.device) -> bool:
    """Whether linear layers keep quantized weights as they are on `device`."""
    return weights != "full" and device.type != "cpu"


def _check_asked(folder: Path, scheme: Scheme | None, weights: Weights) -> None:
    if weights in ("fp8", "int4") and (scheme is None or scheme.kind != weights):
        found = "not quantized" if scheme is None else f"in {scheme.kind}"
        raise UnsupportedModelError(
            f"--weights {weights}: those of {folder} are {found}; take a folder in {weights}, or --weights auto"
        )


def eos_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """Token ids that end a text, from the generation configuration or else the model's."""
    return end_token_ids(model.config, model.generation_config)


def end_token_ids(config: PreTrainedConfig, generation: GenerationConfig | None) -> tuple[int, ...]:
    """The same without a model. Raises UnsupportedModelError for what cannot be a token id."""
    text = config.get_text_config()
    found = generation.eos_token_id if generation is not None else None
    if found is None:
        found = text.eos_token_id
    if found is None:
        return ()
    ids: list[object] = list(found) if isinstance(found, list) else [found]
    if not all(type(token_id) is int and 0 <= token_id < text.vocab_size for token_id in ids):
        raise UnsupportedModelError(
            f"eos_token_id is {found!r} in generation_config.json or config.json; it must be one or several token ids "
            f"below the vocabulary's size of {text.vocab_size}"
        )
    return tuple(found) if isinstance(found, list) else (found,)


def _cannot(what: str, error: Exception) -> UnsupportedModelError:
    return UnsupportedModelError(f"transformers cannot {what}: {_said(error)}")


def _said(error: Exception) -> str:
    """An error's kind and first words: what follows is a library's advice about its own calls."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:_ERROR_CHARACTERS_MAX]}"


def tokenizer_file(folder: Path) -> Path:
    """The folder's tokenizer.json. Raises UnsupportedModelError if there is none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UnsupportedModelError(
            f"{folder} has no tokenizer.json; write one with "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    return path


def _check_architecture(config: PreTrainedConfig, folder: Path) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{folder} is an encoder-decoder ({config.model_type}); Outrider serves decoders only"
        )
    try:
        text = config.get_text_config()
        layer_types = {*(getattr(text, "layer_types", None) or ()), *(getattr(text, "layers_block_type", None) or ())}
    except Exception as error:  # several models of text, entries that are no lists
        raise UnsupportedModelError(
            f"{folder / 'config.json'} does not describe one decoder of text ({_said(error)}); take the config.json "
            "that belongs to its weights"
        ) from error
    if unknown := layer_types - _LAYER_TYPES - {"attention"}:
        raise UnsupportedModelError(
            f"{folder} ({config.model_type}) has layers of the kinds {sorted(unknown)}; only full and sliding "
            "attention can be rolled back token by token, a recurrent state cannot"
        )
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]
    if found := {str(kind.get("rope_type")) for kind in kinds} & _BATCH_ROPE_TYPES:
        raise UnsupportedModelError(
            f"{folder} ({config.model_type}) scales its positions by the longest text of a batch (rope_type "
            f"{sorted(found)}), so that sessions would not be independent; serve it with a fixed rope_type"
        )
    if getattr(text, "use_bidirectional_attention", None):
        raise UnsupportedModelError(
            f"{folder} ({config.model_type}) attends to later tokens; Outrider serves causal models"
        )
