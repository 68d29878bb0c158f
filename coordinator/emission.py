"""What a completion gives out: committed tokens with the text that became certain with each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.text import TextDecoder
from outrider.core.coordinate.events import Token, Tokens
from outrider.core.coordinate.round import Round
from outrider.core.coordinate.session import Emit
from outrider.core.propose.alignment import Alignment


@dataclass(frozen=True, slots=True)
class EmittedTokens:
    """One round's tokens. A stop string may have ended the text before the last of them; `texts` is then shorter."""

    emit: Emit
    texts: Sequence[str]
    num_cached_prompt_tokens: int = 0
    """See `Tokens`."""
    round: Round | None = None
    """What became of the guesses, if the caller wants to know."""

    def tokens(self, completion: int) -> Tokens:
        """What the client is told of them."""
        emit = self.emit
        logprobs = emit.logprobs or [None] * len(emit.token_ids)
        return Tokens(
            position=emit.position,
            text="".join(self.texts),
            tokens=tuple(map(Token, emit.token_ids[: len(self.texts)], self.texts, emit.origins, logprobs)),
            rolled_back=emit.rolled_back,
            num_draft_tokens=emit.num_draft_tokens,
            completion=completion,
            num_cached_prompt_tokens=self.num_cached_prompt_tokens,
        )


class Emission:
    """Turns rounds into what is given out, up to a stop string."""

    def __init__(self, decoder: TextDecoder, received: Sequence[int] = (), prediction: Sequence[int] = ()) -> None:
        """The `decoder` has been given the tokens that were `received` already; `prediction` is what all of them were
        expected to be."""
        self.num_emitted = len(received)
        """Tokens given out, by whichever coordinator. A stop string may end the text before the round's last token."""
        self.final_text = ""
        """Text that was held back to the end; empty before."""
        self._decoder = decoder
        self._prediction = Alignment(prediction) if prediction else None
        if self._prediction is not None:
            for token_id in received:
                self._prediction.follow(token_id)

    @property
    def num_predicted(self) -> int:
        """Tokens of the prediction that were given out in their place."""
        return 0 if self._prediction is None else self._prediction.num_appeared

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been met."""
        return self._decoder.stopped

    def on_emit(self, emit: Emit, num_cached_prompt_tokens: int = 0) -> EmittedTokens:
        """The tokens of a round with their texts; the first one tells of cached tokens."""
        texts: list[str] = []
        for token_id in emit.token_ids:
            texts.append(self._decoder.push(token_id))
            if self._prediction is not None:
                self._prediction.follow(token_id)
            if self._decoder.stopped:
                break
        self.num_emitted += len(texts)
        return EmittedTokens(emit, texts, num_cached_prompt_tokens)

    def finish(self) -> None:
        """No more rounds will come."""
        self.final_text = self._decoder.finish()
