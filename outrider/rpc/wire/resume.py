"""What a client has received, told to the coordinator that is to go on."""

from __future__ import annotations

from outrider.core.protocol.resume import ReceivedCompletion, Resume
from outrider.v1 import generation_pb2 as pb


def encode_resume(resume: Resume) -> pb.Resume:
    """To the message."""
    return pb.Resume(
        completions=[
            pb.ReceivedCompletion(
                token_ids=each.token_ids,
                finished=each.finished,
                num_cached_prompt_tokens=each.num_cached_prompt_tokens,
            )
            for each in resume.completions
        ],
        target_identity_sha256=resume.target_identity_sha256,
    )


def decode_resume(message: pb.Resume) -> Resume:
    """From the message; nothing is checked."""
    return Resume(
        completions=tuple(
            ReceivedCompletion(
                token_ids=each.token_ids[:],
                finished=each.finished,
                num_cached_prompt_tokens=each.num_cached_prompt_tokens
                if each.HasField("num_cached_prompt_tokens")
                else None,
            )
            for each in message.completions
        ),
        target_identity_sha256=message.target_identity_sha256,
    )
