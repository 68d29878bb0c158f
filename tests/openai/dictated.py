"""A model that writes what is written into its weights: a tool's calls where it is offered one, an answer elsewhere."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

CALLS = (
    *('<tool_call>\n{"name": ', '"add"', ', "arguments": {"a": ', "1", ', "b": ', "2", "}}\n</tool_call>"),
    *('\n<tool_call>\n{"name": "weather"', ', "arguments": {"city": "', "Zürich 🙂", '"}}', "\n</tool_call>\n"),
)
"""Two calls, a token each piece."""

ANSWER = ("The", " sum", " is", " 3", ".")

TEMPLATE = """{% for message in messages %}[{{ message.role }}] {{ message.content }}
{% endfor %}
{%- if tools and messages[-1].role == 'user' %}<{% else %}>{% endif %}{# <tool_call> #}"""
"""A prompt that ends with "<" begins the calls, one with ">" the answer."""

_UNKNOWN, _END, _CALL, _TELL = "?", "<end>", "<", ">"
_WIDTH = 32


def save_dictated(folder: Path) -> Path:
    """Saves the model with its tokenizer and chat template.

    Each token is an axis of the residual stream, which attention and MLP leave alone; the head maps it to the token
    that comes next. Whatever came before the last token makes no difference.
    """
    vocabulary = [_UNKNOWN, _END, _CALL, *CALLS, _TELL, *ANSWER]
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=_WIDTH,
        intermediate_size=_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=vocabulary.index(_END),
    )
    model = LlamaForCausalLM(config)
    following = {_UNKNOWN: _END, _END: _END}
    for chain in ((_CALL, *CALLS, _END), (_TELL, *ANSWER, _END)):
        following |= dict(pairwise(chain))
    with torch.no_grad():
        layer = model.model.layers[0]
        for weights in (layer.self_attn.o_proj, layer.mlp.down_proj, model.model.embed_tokens, model.lm_head):
            weights.weight.zero_()
        for token_id, token in enumerate(vocabulary):
            model.model.embed_tokens.weight[token_id, token_id] = 1
            model.lm_head.weight[vocabulary.index(following[token]), token_id] = 20
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({token: each for each, token in enumerate(vocabulary)}, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(_END, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder
