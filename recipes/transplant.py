"""A draft model of another family, in the target's vocabulary.

`python -m recipes.transplant DRAFT TARGET OUT` writes OUT, a folder that a drafter of TARGET loads like any other.

A draft model meets a vocabulary in two matrices: token ids become rows of its embedding, and its last hidden state
becomes logits by the rows of its head. Both are written anew, a row for each token of the target:

- A token that both vocabularies spell alike keeps its rows, so its logits keep their bits.
- Another one is read as the mean of the rows of those draft tokens that together spell it, and is as likely a guess as
  the draft's average token is: hardly ever. So drafts consist of the tokens that both spell alike, which is token-level
  intersection (TLI, arXiv 2502.05202, algorithm 4), without a translation between two lines at each step.

Nothing else of Outrider needs to know: noise, tree and messages are of the target's ids, and the verifier decides as
ever, so no token of an answer changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import transformers
import typer
from rich.console import Console
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel

from outrider.core.protocol.errors import OutriderError, UnsupportedModelError
from outrider.engine.load.folder import end_token_ids, eos_token_ids, load_model, resolve_folder
from outrider.engine.load.tokenizer import portable_tokenizer
from outrider.grammar.vocabulary import Vocabulary
from recipes import proof
from recipes.model_folder import copy_companions, new_folder, save

app = typer.Typer(add_completion=False)

_CPU = torch.device("cpu")


class Transplanted(NamedTuple):
    """What was written."""

    num_tokens: int
    """Tokens that the target's tokenizer has."""
    num_shared: int
    """Those of them that both vocabularies spell alike."""


class Spelling(NamedTuple):
    """A target's tokens in a draft's vocabulary."""

    shared: Mapping[int, int]
    """The draft's id of each target token that both spell alike."""
    pieces: Mapping[int, Sequence[int]]
    """Draft ids that together spell each other token of the target; not for bytes that the draft cannot spell."""


class FolderVocabulary:
    """A model folder's tokens, as bytes."""

    def __init__(self, folder: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        """Raises UnsupportedModelError if the folder has no tokenizer, or one whose tokens are not bytes."""
        tokenizer_json = portable_tokenizer(folder).json.decode()
        tokenizer = self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self.vocabulary = Vocabulary(tokenizer_json, vocab_size, eos_token_ids)
        self.eos_token_ids = eos_token_ids
        special = {token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        contents = self.vocabulary.token_bytes
        self.tokens = {
            token_id: (contents[token_id], token_id in special)
            for token_id in range(vocab_size)
            if tokenizer.id_to_token(token_id) is not None and contents[token_id]
        }
        """The bytes of each token that the tokenizer knows, and whether it is a special one."""

    def spelled(self, content: bytes) -> Sequence[int]:
        """The tokens that the tokenizer makes of these bytes, or some that spell them if it makes others; empty if none
        do."""
        with suppress(UnicodeDecodeError):
            token_ids = self._tokenizer.encode(content.decode(), add_special_tokens=False).ids
            if b"".join(self.tokens.get(token_id, (b"", False))[0] for token_id in token_ids) == content:
                return token_ids
        return self.vocabulary.spelled(content) or ()


def spelling(target: FolderVocabulary, draft: FolderVocabulary) -> Spelling:
    """How a draft's vocabulary spells each token of a target.

    Special tokens are alike by their names. An end of text is what ends a text, whatever it is called.
    """
    ids = {token: token_id for token_id, token in reversed(draft.tokens.items())}
    shared = {token_id: ids[token] for token_id, token in target.tokens.items() if token in ids}
    shared |= {token_id: draft.eos_token_ids[0] for token_id in target.eos_token_ids if token_id not in shared}
    pieces = {
        token_id: spelled
        for token_id, (content, _) in target.tokens.items()
        if token_id not in shared and (spelled := draft.spelled(content))
    }
    return Spelling(shared, pieces)


def transplant(draft: Path, target: Path, out: Path) -> Transplanted:
    """Writes the model of the folder `draft` in the vocabulary of the folder `target` to the new or empty folder `out`.

    Weights keep their types; of `target` only configuration and tokenizer are read. Raises UnsupportedModelError, and
    leaves no `out`, if a folder cannot be served, if a vocabulary is not one of bytes, if no token is shared, or if
    the logits of what was written are not the original's.
    """
    config, end_ids = _read_target(target)
    model = load_model(draft, device=_CPU, dtype="auto")
    size = config.get_text_config(decoder=True).vocab_size
    target_vocabulary = FolderVocabulary(target, size, end_ids)
    draft_vocabulary = FolderVocabulary(draft, _head(model).weight.shape[0], eos_token_ids(model))
    found = spelling(target_vocabulary, draft_vocabulary)
    if not found.shared:
        raise UnsupportedModelError(f"{draft} and {target} spell no token alike; take another draft model")
    with new_folder(out) as written:
        _give(model, found, size)
        _end_as(model, config, target_vocabulary.eos_token_ids)
        save(model, written)
        copy_companions(target, written)
        _prove(draft, written, found.shared)
    return Transplanted(len(target_vocabulary.tokens), len(found.shared))


def _read_target(folder: Path) -> tuple[PreTrainedConfig, Sequence[int]]:
    """The configuration, and the ids that end a text."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        has_generation = (folder / "generation_config.json").is_file()
        generation = GenerationConfig.from_pretrained(folder) if has_generation else None
    except Exception as error:  # transformers raises whatever it meets
        raise UnsupportedModelError(f"transformers cannot read the configuration of {folder}: {error}") from error
    return config, end_token_ids(config, generation)


def _head(model: PreTrainedModel) -> nn.Linear:
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise UnsupportedModelError(f"the head of {model.config.model_type} is no linear layer; take another draft")
    return head


def _matrix(module: nn.Module) -> Tensor:
    """[V, E]: an embedding's rows."""
    return module.get_parameter("weight").data


def _give(model: PreTrainedModel, spelling: Spelling, size: int) -> None:
    """Gives the model embedding and head of `size` tokens."""
    embedding, head = model.get_input_embeddings(), _head(model)
    # save_pretrained writes one matrix for two names only where both are one object
    rows, head_rows = _rows(_matrix(embedding), spelling, size), _head_rows(head.weight.data, spelling, size)
    embedding.weight, head.weight = nn.Parameter(rows), nn.Parameter(head_rows)
    if head.bias is not None:
        head.bias = nn.Parameter(_head_rows(head.bias.data[:, None], spelling, size)[:, 0])
    for config in {id(each): each for each in (model.config, model.config.get_text_config(decoder=True))}.values():
        config.vocab_size, config.tie_word_embeddings = size, False


def _rows(embedding: Tensor, spelling: Spelling, size: int) -> Tensor:
    """[V, E]: the embedding of each target token: its row, the mean of its pieces' rows, or the mean of all."""
    mean = embedding.float().mean(dim=0, keepdim=True)
    table = torch.cat([embedding.float(), mean])  # [V_draft + 1, E]
    unspelled = (len(embedding),)
    parts = [_parts(spelling, token_id) or unspelled for token_id in range(size)]
    offsets = torch.tensor([0, *accumulate(map(len, parts[:-1]))])
    flat = torch.tensor([piece for part in parts for piece in part])
    return functional.embedding_bag(flat, table, offsets, mode="mean").to(embedding.dtype)


def _parts(spelling: Spelling, token_id: int) -> Sequence[int]:
    return (spelling.shared[token_id],) if token_id in spelling.shared else spelling.pieces.get(token_id, ())


def _head_rows(head: Tensor, spelling: Spelling, size: int) -> Tensor:
    """[V, E]: the head's row of each target token, the mean of all rows where the draft has none."""
    mean = head.float().mean(dim=0, keepdim=True).to(head.dtype)
    return torch.cat([head, mean])[[spelling.shared.get(token_id, len(head)) for token_id in range(size)]]


def _end_as(model: PreTrainedModel, target: PreTrainedConfig, eos_token_ids: Sequence[int]) -> None:
    """Lets texts of the model begin and end with the target's tokens."""
    begin = target.get_text_config(decoder=True).bos_token_id
    for config in (model.config, model.generation_config):
        if config is not None:
            config.bos_token_id, config.eos_token_id, config.pad_token_id = begin, list(eos_token_ids), None


def _prove(draft: Path, written: Path, shared: Mapping[int, int]) -> None:
    """On a text that both spell alike."""
    target_ids, draft_ids = (torch.tensor(list(ids)) for ids in (shared.keys(), shared.values()))
    text = proof.text(len(shared))
    expected = proof.logits(proof.loaded(draft), draft_ids[text])[:, draft_ids]
    found = proof.logits(proof.loaded(written), target_ids[text])[:, target_ids]
    difference = proof.difference(found, expected)
    if not difference <= proof.TOLERANCE:
        raise UnsupportedModelError(
            f"{draft} cannot be written in another vocabulary: its logits would change by {difference:.1e} of the "
            "largest, so it meets its vocabulary elsewhere than in its embedding and its head; take another draft model"
        )


@app.command()
def main(
    draft: Annotated[str, typer.Argument(help="Draft model: a folder, or a hub name such as org/name.")],
    target: Annotated[
        Path, typer.Argument(help="Folder of the target model: its config.json and tokenizer; weights are not read.")
    ],
    out: Annotated[Path, typer.Argument(help="New or empty folder to write.")],
) -> None:
    """Write the model DRAFT in the vocabulary of the model TARGET, so that it can draft for it."""
    transformers.logging.disable_progress_bar()
    try:
        written = transplant(resolve_folder(draft), target, out)
    except OutriderError as error:
        Console(stderr=True).print(str(error), style="red", markup=False)
        raise typer.Exit(1) from error
    print(
        f"{out}: {written.num_shared:,} of the target's {written.num_tokens:,} tokens are spelled alike and can be "
        "drafted"
    )


if __name__ == "__main__":
    app()
