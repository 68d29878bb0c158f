"""Model compatibility: who may serve one line together, and what the others are told."""

from __future__ import annotations

from coordinator.fitting import alike_refusal, pair_refusal, version_refusal
from outrider import PROTOCOL_VERSION
from outrider.core.propose.ngram_static import VOCAB_SIZE_MAX
from tests.coordinator.scripted_worker import MODEL

DRAFT = MODEL._replace(name="draft", num_parameters=10, vocab_size=128)
WITHOUT_TOKENIZER = MODEL._replace(name="ngram", tokenizer_sha256="", vocab_size=VOCAB_SIZE_MAX)


def test_another_protocol_version_is_refused_with_both_numbers() -> None:
    assert version_refusal(MODEL) is None
    refusal = version_refusal(MODEL._replace(protocol_version=PROTOCOL_VERSION + 1))
    assert refusal is not None
    assert (
        f"speaks protocol version {PROTOCOL_VERSION + 1}, this coordinator version {PROTOCOL_VERSION}" in refusal.text
    )


def test_a_draft_model_needs_the_targets_vocabulary_and_may_pad_it() -> None:
    assert pair_refusal(MODEL, DRAFT) is None
    refusal = pair_refusal(MODEL, DRAFT._replace(tokenizer_sha256="b" * 64))
    assert "'draft' (128 ids) and the target 'target' (100 ids) have different vocabularies" in str(refusal)


def test_a_target_with_more_ids_than_a_drafter_without_tokenizer_can_count_is_refused() -> None:
    assert pair_refusal(MODEL, WITHOUT_TOKENIZER) is None
    assert pair_refusal(MODEL._replace(vocab_size=VOCAB_SIZE_MAX), WITHOUT_TOKENIZER) is None
    refusal = pair_refusal(MODEL._replace(vocab_size=VOCAB_SIZE_MAX + 1), WITHOUT_TOKENIZER)
    assert "takes 2097152 token ids" in str(refusal)


def test_verifiers_are_alike_if_they_give_the_same_tokens() -> None:
    same = MODEL._replace(name="other", max_context=64, max_sessions=1, device="cuda:0", instance_id="second")
    assert alike_refusal(MODEL, same) is None
    for other in (
        MODEL._replace(identity_sha256="b" * 64),
        MODEL._replace(vocab_size=101),
        MODEL._replace(tokenizer_sha256="b" * 64),
        MODEL._replace(eos_token_ids=(3,)),
        MODEL._replace(dtype="bfloat16"),
        MODEL._replace(weights="int4"),
        MODEL._replace(kv_cache_dtype="fp8"),
    ):
        assert "no session could move between them" in str(alike_refusal(MODEL, other))


def test_what_an_older_verifier_does_not_tell_is_what_it_does() -> None:
    assert alike_refusal(MODEL, MODEL._replace(weights="full", kv_cache_dtype="auto")) is None


def test_weights_and_cells_in_few_bits_are_named() -> None:
    other = MODEL._replace(weights="int4", kv_cache_dtype="fp8")
    assert "weights in int4, keys and values in fp8, identity" in str(alike_refusal(MODEL, other))
