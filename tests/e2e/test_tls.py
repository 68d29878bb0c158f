"""`outrider up --tls` with tokens: the real processes, each with its own certificate, and a client's way to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from outrider.cli.certificates import AUTHORITY, make_certificates
from outrider.cli.generate import generate
from outrider.cli.request import Request
from outrider.cli.up import services
from outrider.cli.up_options import UpOptions
from outrider.client import Credentials, GenerationOptions, TlsFiles, Transport
from outrider.core.protocol.errors import UnauthenticatedError, WorkerUnavailableError
from outrider.token_file import TokenEntry, new_token, sha256_of, write_tokens
from tests.openai.dictated import save_dictated

pytestmark = pytest.mark.usefixtures("forked")


async def test_it_serves_those_with_a_token_by_tls_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = new_token()
    write_tokens(tmp_path / "tokens.json", [TokenEntry(name="ann", sha256=sha256_of(token))])
    monkeypatch.setenv("OUTRIDER_TOKENS", str(tmp_path / "tokens.json"))
    make_certificates(tmp_path / "certificates")
    options = UpOptions(
        target=str(save_dictated(tmp_path / "target")),
        draft="ngram",
        compiled="off",
        port=0,
        draft_port=0,
        verify_port=0,
        tls=tmp_path / "certificates",
    )
    transport = Transport(TlsFiles(authority=str(tmp_path / "certificates" / AUTHORITY)))
    request = Request([3] * 9, GenerationOptions(max_tokens=4, ignore_eos=True))
    async with services(options) as running:
        answer = await generate(request, running.coordinator, None, Credentials(transport, token))
        assert len(answer.completions[0].token_ids) == 4
        with pytest.raises(UnauthenticatedError):
            await generate(request, running.coordinator, None, Credentials(transport))
        with pytest.raises(WorkerUnavailableError):
            await generate(request, running.coordinator)
        for worker in (running.verify, running.draft or ""):
            with pytest.raises(WorkerUnavailableError):
                await generate(request, worker, None, Credentials(transport, token))
