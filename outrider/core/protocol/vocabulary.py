"""What a tokenizer.json says about token ids."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def vocabulary_sha256(tokenizer_json: bytes) -> str:
    """SHA-256 of what the content of a tokenizer.json says about ids: vocabulary and added tokens.

    Two tokenizers that agree on it give one meaning to every id, however else their files differ.
    """
    content: dict[str, Any] = json.loads(tokenizer_json)
    added = {token["content"]: token["id"] for token in content.get("added_tokens", ())}
    meaning = [content.get("model", {}).get("vocab"), added]
    return hashlib.sha256(json.dumps(meaning, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
