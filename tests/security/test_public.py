"""The public entries: who has no token of the file gets nothing, and who has one nothing of another's."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import grpc.aio
import httpx2
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from structlog.testing import capture_logs

from coordinator.authorization import UNKNOWN_TOKEN, Authorization
from coordinator.openai.app import make_app
from coordinator.openai.authorization import Authorization as HttpAuthorization
from coordinator.openai.body import BODY_BYTES_MAX
from coordinator.servicer import GenerationServicer
from coordinator.tokens import Tokens
from outrider.client import NO_RETRY, Answer, Credentials, GenerationClient, gather
from outrider.core.protocol.errors import (
    InvalidRequestError,
    RateLimitError,
    UnauthenticatedError,
)
from outrider.core.protocol.identity import COORDINATOR_NAME
from outrider.core.protocol.printable import PRINTABLE_CHARACTERS_MAX
from outrider.http.server import HttpServer
from outrider.rpc.channels import MESSAGE_BYTES_MAX, open_channel
from outrider.rpc.server import Server, Service
from outrider.rpc.tls_context import HANDSHAKE, server_context
from outrider.rpc.tls_files import TlsFiles
from outrider.rpc.transport import Transport
from outrider.token_file import TokenEntry, new_token, sha256_of, write_tokens
from outrider.v1.generation_pb2_grpc import add_GenerationServiceServicer_to_server
from tests.e2e.stack import Stack, coordinator, load_tiny, worker
from tests.openai.dictated import save_dictated
from tests.security.authority import ANSWERS, Authority
from tests.security.knock import answer, context, serial

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVICE = "outrider.v1.GenerationService"
PROMPT = [3] * 200
LIMITS: dict[str, dict[str, Any]] = {
    "ann": {},
    "ben": {},
    "one": {"max_completions": 1},
    "short": {"max_tokens": 3},
    "slow": {"tokens_per_minute": 10},
}


@dataclass
class Public:
    """A coordinator's doors with TLS and tokens, before a real worker."""

    port: int
    http: int
    ours: Authority
    identity: TlsFiles
    tokens: dict[str, str]
    stack: Stack
    refusals: list[str] = field(default_factory=list[str])

    @property
    def client_tls(self) -> ssl.SSLContext:
        return context(TlsFiles(authority=self.ours.file))

    def credentials(self, token: str) -> Credentials:
        return Credentials(Transport(TlsFiles(authority=self.ours.file), "localhost"), token)

    async def ask(self, token: str, **options: Any) -> Answer:
        async with GenerationClient(f"127.0.0.1:{self.port}", self.credentials(token), retry=NO_RETRY) as client:
            return await gather(client.generate(PROMPT, **{"max_tokens": 2, "ignore_eos": True, **options}))

    async def get(self, path: str, *headers: str, method: str = "GET", body: str = "") -> tuple[int, dict[str, Any]]:
        """Sent as it is: clients would tidy the path."""
        lines = [f"{method} {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", "connection: close", *headers]
        reader, writer = await asyncio.open_connection("127.0.0.1", self.http, ssl=self.client_tls)
        writer.write("\r\n".join([*lines, "", body]).encode())
        head, _, content = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return int(head.split()[1]), json.loads(content or b"{}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def public(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Public]:
    folder = tmp_path_factory.mktemp("public")
    ours = Authority(folder / "ours")
    identity = ours.issue(COORDINATOR_NAME, ANSWERS, trusting="")
    identity.authority = ""
    secrets = {name: new_token() for name in LIMITS}
    entries = [TokenEntry(name=name, sha256=sha256_of(secrets[name]), **limits) for name, limits in LIMITS.items()]
    write_tokens(folder / "tokens.json", entries)
    async with AsyncExitStack() as up:
        verify = await up.enter_async_context(worker(load_tiny(save_dictated(folder / "target"), max_context=512)))
        stack = await up.enter_async_context(coordinator(verify.address, ""))
        found = Public(0, 0, ours, identity, secrets, stack)
        tokens = Tokens(folder / "tokens.json")
        http = HttpServer(
            make_app(stack.service, partial(HttpAuthorization, tokens=tokens, on_refused=found.refusals.append)),
            "127.0.0.1:0",
            tls=partial(server_context, identity, found.refusals.append),
        )
        server = Server(
            Service(SERVICE, add_GenerationServiceServicer_to_server, GenerationServicer(stack.service)),
            transport=Transport(identity),
            doors=[http],
            guards=[Authorization(tokens, found.refusals.append)],
            reflection=False,
        )
        found.port = await server.start("127.0.0.1:0")
        found.http = http.port
        server.set_ready(True)
        yield found
        await server.stop(None)


@pytest.fixture(autouse=True)
def fresh(public: Public) -> None:
    public.refusals.clear()


# --- gRPC ---


@pytest.mark.parametrize("shown", ["", "x", "outrider-" + "A" * 43, "x" * 5000, "ann"])
async def test_without_a_token_of_the_file_nothing_is_answered(public: Public, shown: str) -> None:
    with pytest.raises(UnauthenticatedError):
        await public.ask(shown)
    assert public.refusals == [UNKNOWN_TOKEN]


@pytest.mark.parametrize(
    "method",
    [
        f"/{SERVICE}/GetServerInfo",
        f"/{SERVICE}/GetTrace",
        f"//{SERVICE}/GetServerInfo",
        f"/{SERVICE.lower()}/getserverinfo",
        f"/{SERVICE}%2fGetServerInfo",
        "/grpc.health.v1.Health/check",
        "/grpc.health.v1.Health/Check/",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/no.such.Service/Method",
    ],
)
async def test_every_method_needs_a_token_but_health(public: Public, method: str) -> None:
    transport = public.credentials("").transport
    async with open_channel(f"127.0.0.1:{public.port}", transport) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(method)(b"")
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert public.refusals == [UNKNOWN_TOKEN]
        await channel.unary_unary("/grpc.health.v1.Health/Check")(b"")
        assert len(public.refusals) == 1


async def test_what_is_served_is_told_to_whoever_has_a_token(public: Public) -> None:
    async with GenerationClient(f"127.0.0.1:{public.port}", public.credentials(public.tokens["ann"])) as client:
        assert (await client.server_info()).target.name == "target"


async def test_reflection_is_not_there_in_production_for_those_with_a_token_either(public: Public) -> None:
    metadata = public.credentials(public.tokens["ann"]).metadata
    transport = public.credentials("").transport
    async with open_channel(f"127.0.0.1:{public.port}", transport) as channel:
        for version in ("v1", "v1alpha"):
            method = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(method)(b"", metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_another_tenants_prompt_is_not_found_in_the_cache(public: Public) -> None:
    async def num_cached(name: str) -> int:
        (completion,) = (await public.ask(public.tokens[name])).completions
        return completion.finished.usage.num_cached_prompt_tokens

    assert await num_cached("ann") == 0
    assert await num_cached("ann") > 0
    assert await num_cached("ben") == 0
    assert await num_cached("ben") > 0


async def test_completions_at_a_time_are_bounded(public: Public) -> None:
    with pytest.raises(RateLimitError, match="0 completions of this token are running and 1 the most"):
        await public.ask(public.tokens["one"], num_completions=2)
    async with GenerationClient(
        f"127.0.0.1:{public.port}", public.credentials(public.tokens["one"]), retry=NO_RETRY
    ) as client:
        events = client.generate(PROMPT, max_tokens=300, ignore_eos=True)
        await anext(events)
        with pytest.raises(RateLimitError):
            await public.ask(public.tokens["one"])
        assert len((await public.ask(public.tokens["ann"])).completions) == 1
        await events.aclose()


async def test_an_answers_length_is_bounded(public: Public) -> None:
    with pytest.raises(InvalidRequestError, match="max_tokens: is 4; this token allows at most 3"):
        await public.ask(public.tokens["short"], max_tokens=4)
    (completion,) = (await public.ask(public.tokens["short"], max_tokens=None)).completions
    assert len(completion.token_ids) == 3


async def test_tokens_per_minute_are_bounded(public: Public) -> None:
    await public.ask(public.tokens["slow"])  # more than it may, which is not cut off
    with pytest.raises(RateLimitError, match="this token may use 10 tokens a minute"):
        await public.ask(public.tokens["slow"])


async def test_each_request_leaves_one_record(public: Public) -> None:
    with capture_logs() as records:
        await public.ask(public.tokens["ann"])
        with pytest.raises(UnauthenticatedError):
            await public.ask("wrong")
        with pytest.raises(InvalidRequestError):
            await public.ask(public.tokens["short"], max_tokens=4)
        await public.get("/v1/%1b[2J" + "x" * 1000, f"authorization: Bearer {public.tokens['ben']}")
    requests = [record for record in records if record["event"] == "request"]
    assert [(each["token"], each["outcome"]) for each in requests] == [
        ("ann", "OK"),
        ("", "UNAUTHENTICATED"),
        ("short", "INVALID_ARGUMENT"),
        ("ben", "404"),
    ]
    assert {each["method"] for each in requests[:3]} == {f"/{SERVICE}/Generate"}
    assert len(requests[3]["method"]) == PRINTABLE_CHARACTERS_MAX
    assert public.tokens["ann"] not in str(records)
    assert "wrong" not in str(records)


# --- HTTP ---


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/models", "//v1/models", "/v1/%6dodels", "/V1/MODELS", "/v1/models/", "/v1/../healthz", "/healthz/"),
        *("/healthz%2f", "/%68ealthz", "/HEALTHZ", "//healthz", "/healthz?x=/readyz/..", "/%2e/healthz", "/healthz;x"),
        *("/openapi.json", "/version", "/", "/no/such/path", "/healthz/%2e%2e/v1/models"),
    ],
)
async def test_every_path_needs_a_token_however_it_is_spelt(public: Public, path: str) -> None:
    status, body = await public.get(path)
    if path.startswith("/healthz?"):  # a query is no part of the path
        assert (status, body) == (200, {"status": "ok"})
        return
    assert (status, body["error"]["code"]) == (401, "invalid_api_key")
    assert public.refusals == [UNKNOWN_TOKEN]


@pytest.mark.parametrize(
    "path", ["//v1/models", "/V1/models", "/v1/../v1/models", "/v1/%2e/models", "/healthz/../version"]
)
async def test_a_token_opens_no_other_spelling_of_a_path(public: Public, path: str) -> None:
    assert (await public.get(path, f"authorization: Bearer {public.tokens['ann']}"))[0] == 404


@pytest.mark.parametrize(
    "header",
    [
        "authorization: Basic YTpi",
        "authorization: Bearer",
        "authorization: Bearer  ",
        "x-api-key: {ann}",
        "cookie: {ann}",
    ],
)
async def test_a_token_is_taken_from_its_own_header_alone(public: Public, header: str) -> None:
    assert (await public.get("/v1/models", header.format(**public.tokens)))[0] == 401


async def test_oversized_requests_are_refused_with_a_token_and_without(public: Public) -> None:
    ours = f"authorization: Bearer {public.tokens['ann']}"
    body, json_type = "x" * (BODY_BYTES_MAX + 1), "content-type: application/json"
    assert (await public.get("/v1/completions", ours, json_type, method="POST", body=body))[0] == 413
    assert (await public.get("/v1/completions", json_type, method="POST", body="x" * 70_000))[0] == 401
    assert (await public.get("/" + "x" * 60_000, ours))[0] == 404
    with pytest.raises(InvalidRequestError, match="are the most of a message"):
        await public.ask(public.tokens["ann"], stop=["x" * MESSAGE_BYTES_MAX])
    with pytest.raises(InvalidRequestError):
        await public.ask(public.tokens["ann"], stop=["x" * 1000])


async def test_openais_client_is_understood(public: Public) -> None:
    def client(token: str) -> AsyncOpenAI:
        http = httpx2.AsyncClient(verify=ssl.create_default_context(cafile=public.ours.file))
        return AsyncOpenAI(
            base_url=f"https://localhost:{public.http}/v1", api_key=token, max_retries=0, http_client=http
        )

    async with client(public.tokens["ann"]) as ann, client("wrong") as wrong, client(public.tokens["slow"]) as slow:
        assert [model.id async for model in ann.models.list()] == ["target"]
        with pytest.raises(openai.AuthenticationError):
            await wrong.models.list()
        asked: dict[str, Any] = {"model": "target", "prompt": PROMPT, "max_tokens": 1}
        assert (await ann.completions.create(**asked)).usage
        with pytest.raises(openai.RateLimitError) as caught:
            await slow.completions.create(**asked)
        assert int(caught.value.response.headers["retry-after"]) > 1


async def test_plain_text_and_old_tls_are_refused_counted_and_logged(
    public: Public, caplog: pytest.LogCaptureFixture
) -> None:
    asked = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    old = context(TlsFiles(authority=public.ours.file), ssl.TLSVersion.TLSv1_2)
    for tls in (None, old):
        public.refusals.clear()
        caplog.clear()
        assert not (await answer(public.http, tls, asked)).startswith(b"HTTP")
        assert public.refusals == [HANDSHAKE]
        assert len([record for record in caplog.records if "refused a connection" in record.getMessage()]) == 1
    assert (await answer(public.http, public.client_tls, asked)).startswith(b"HTTP/1.1 200")


async def test_certificates_of_both_doors_are_read_again(public: Public) -> None:
    tls = public.client_tls
    before = {await serial(public.port, tls), await serial(public.http, tls)}
    assert len(before) == 1
    public.ours.issue(COORDINATOR_NAME, ANSWERS)
    after = {await serial(public.port, tls), await serial(public.http, tls)}
    assert len(after) == 1
    assert after != before
