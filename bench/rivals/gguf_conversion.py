"""llama.cpp's own converter for a model of any tokenizer: `python gguf_conversion.py CONVERT_HF_TO_GGUF.PY ARGUMENT...`

The converter knows the pre-tokenizers of published models, by what they make of a text, and refuses all others. Here
one that it does not know counts as GPT-2's. That would change how text is read, but the benchmark asks with token ids.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_METHOD = "get_vocab_base_pre"


def main() -> None:
    """Runs the converter that is named first, with the arguments behind it."""
    del sys.argv[0]
    script = sys.argv[0]
    sys.path.insert(0, str(Path(script).parent))
    names = runpy.run_path(script)
    spaces = [names, *(vars(module) for name, module in sys.modules.items() if name.startswith("conversion"))]
    kinds: set[Any] = {each for space in spaces for each in space.values() if _METHOD in getattr(each, "__dict__", ())}
    for kind in kinds:
        if isinstance(kind, type):
            setattr(kind, _METHOD, _or_gpt2(getattr(kind, _METHOD)))
    names["main"]()


def _or_gpt2(known: Callable[[Any, Any], str]) -> Callable[[Any, Any], str]:
    def pre_tokenizer(model: Any, tokenizer: Any) -> str:
        try:
            return known(model, tokenizer)
        except NotImplementedError:
            return "gpt-2"

    return pre_tokenizer


if __name__ == "__main__":
    main()
