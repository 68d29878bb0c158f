"""Loads a model folder: safetensors only, no code from the folder, refusals in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from outrider.core.protocol.errors import UnsupportedModelError

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Floating-point types by the names that flags and ModelInfo use."""

_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja"]
_LAYER_TYPES = {"full_attention", "sliding_attention"}
_BATCH_ROPE_TYPES = {"dynamic", "longrope"}
"""Rotary positions that are scaled by the longest text of a batch: one session would change another's logits."""


def resolve_folder(model: str) -> Path:
    """The local folder of `model`: a path, or a hub name such as "org/name", downloaded or found in the cache.

    Raises UnsupportedModelError if there is no such folder, or if it holds no safetensors weights.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
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
    """The folder's model in evaluation mode, with transformers' eager attention until the engine sets its own.

    `dtype` is a name of DTYPES, or "auto" for the type that the weights are stored in. Raises UnsupportedModelError for
    an architecture that is not a decoder with plain or sliding attention.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise UnsupportedModelError(
            f"transformers cannot read {folder / 'config.json'}: the architecture is unknown to the installed version "
            "or needs code from the folder, which is never run"
        ) from error
    _check_architecture(config, folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype="auto" if dtype == "auto" else DTYPES[dtype],
            attn_implementation="eager",
            use_safetensors=True,
            trust_remote_code=False,
        )
        # Not from_pretrained's device_map, which needs the accelerate package.
        model.to(device)  # pyright: ignore[reportArgumentType]
    except (ValueError, OSError, RuntimeError) as error:
        raise UnsupportedModelError(f"transformers cannot load {folder} as a causal language model: {error}") from error
    return model.eval()


def eos_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """Token ids that end a text, from the generation configuration or else the model's."""
    generation: GenerationConfig | None = model.generation_config
    eos = generation.eos_token_id if generation is not None else None
    if eos is None:
        eos = model.config.get_text_config().eos_token_id
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list) else (int(eos),)


def tokenizer_file(folder: Path) -> Path:
    """The folder's tokenizer.json. Raises UnsupportedModelError if there is none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UnsupportedModelError(
            f"{folder} has no tokenizer.json; write one with "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    return path


def chat_template(folder: Path) -> str:
    """The model's chat template in Jinja, or the empty string."""
    template = folder / "chat_template.jinja"
    if template.is_file():
        return template.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    if config.is_file():
        found = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
        return found if isinstance(found, str) else ""
    return ""


def vocabulary_sha256(path: Path) -> str:
    """SHA-256 of what a tokenizer.json says about ids: the vocabulary and the added tokens.

    Two tokenizers that agree on it give one meaning to every id, however else their files differ.
    """
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    added = {token["content"]: token["id"] for token in content.get("added_tokens", ())}
    meaning = [content.get("model", {}).get("vocab"), added]
    return hashlib.sha256(json.dumps(meaning, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _check_architecture(config: PreTrainedConfig, folder: Path) -> None:
    text = config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{folder} is an encoder-decoder ({config.model_type}); Outrider serves decoders only"
        )
    layer_types = set(getattr(text, "layer_types", None) or ()) | set(getattr(text, "layers_block_type", None) or ())
    if unknown := layer_types - _LAYER_TYPES - {"attention"}:
        raise UnsupportedModelError(
            f"{folder} ({config.model_type}) has layers of the kinds {sorted(unknown)}; only full and sliding "
            "attention can be rolled back token by token, a recurrent state cannot"
        )
    rope = getattr(text, "rope_parameters", None) or {}
    rope_types = {rope.get("rope_type"), *(kind.get("rope_type") for kind in rope.values() if isinstance(kind, dict))}
    if found := rope_types & _BATCH_ROPE_TYPES:
        raise UnsupportedModelError(
            f"{folder} ({config.model_type}) scales its positions by the longest text of a batch (rope_type "
            f"{sorted(found)}), so that sessions would not be independent; serve it with a fixed rope_type"
        )
    if getattr(text, "use_bidirectional_attention", None):
        raise UnsupportedModelError(
            f"{folder} ({config.model_type}) attends to later tokens; Outrider serves causal models"
        )
