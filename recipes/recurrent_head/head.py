"""Heads, and what they make of a draft model's hidden states."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel


class MlpHead(nn.Module):
    """A state that an MLP of one hidden layer adds to. It is what logits are made of."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(2 * width, width, bias=False)
        self.down = nn.Linear(width, width, bias=False)

    def forward(self, state: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """The next state and what logits are made of, [..., width] both, of a state and a guessed token's embedding."""
        state = state + self.down(functional.silu(self.up(torch.cat((state, embedded), -1))))
        return state, state


class GruHead(nn.Module):
    """A gated recurrent unit, whose state a matrix brings back to where hidden states are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(width, width)
        self.out = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.out.weight)

    def forward(self, state: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """See `MlpHead.forward`."""
        state = self.cell(embedded.flatten(0, -2), state.flatten(0, -2)).view_as(state)
        return state, self.out(state)


KINDS: Mapping[str, type[MlpHead | GruHead]] = {"mlp": MlpHead, "gru": GruHead}

Heads = Mapping[str, MlpHead | GruHead]


def unrolled(head: nn.Module, hidden: Tensor, embedded: Tensor) -> Tensor:
    """What logits are made of at each level, [N, D, width], of the draft model's hidden states [N, width] and the
    embeddings of the D tokens that follow, [N, D, width]."""
    found: list[Tensor] = []
    for each in embedded.unbind(1):
        hidden, out = head(hidden, each)
        found.append(out)
    return torch.stack(found, 1)


def embeddings(draft: PreTrainedModel, token_ids: Tensor) -> Tensor:
    """Of tokens, all of the same length: a table that serving would keep."""
    found = draft.get_input_embeddings()(token_ids)
    return functional.rms_norm(found, found.shape[-1:])
