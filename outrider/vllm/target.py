"""What vLLM serves, in the words that drafters are told and compared with."""

from __future__ import annotations

import uuid
from typing import Any, Protocol

from outrider import PROTOCOL_VERSION
from outrider.core.protocol.errors import UnsupportedModelError
from outrider.core.protocol.messages import ModelInfo
from outrider.core.protocol.vocabulary import vocabulary_sha256


class ModelConfig(Protocol):
    """What is read of vLLM's `ModelConfig`."""

    model: str
    tokenizer: str
    tokenizer_revision: str | None
    max_model_len: int
    dtype: Any

    def get_vocab_size(self) -> int:
        """Ids that the model knows."""
        ...


def target_info(config: ModelConfig) -> ModelInfo:
    """The target. Raises UnsupportedModelError if nothing says what its token ids mean."""
    return ModelInfo(
        name=config.model,
        model_type="",
        vocab_size=config.get_vocab_size(),
        tokenizer_sha256=vocabulary_sha256(_tokenizer_json(config.tokenizer, config.tokenizer_revision)),
        eos_token_ids=(),
        max_context=config.max_model_len,
        max_sessions=0,
        num_parameters=0,
        dtype=str(config.dtype).removeprefix("torch."),
        device="",
        protocol_version=PROTOCOL_VERSION,
        instance_id=uuid.uuid4().hex,
    )


def _tokenizer_json(name: str, revision: str | None) -> bytes:
    """The tokenizer as a draft service reads its own. transformers comes with vLLM, and so does what it has loaded."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
        return tokenizer.backend_tokenizer.to_str().encode()
    except (AttributeError, OSError, ValueError) as error:
        raise UnsupportedModelError(
            f"the tokenizer {name!r} has no tokenizer.json ({type(error).__name__}), so no drafter can be compared "
            "with it; give vLLM --tokenizer with a folder of a fast tokenizer"
        ) from error
