"""Service discovery: configured addresses."""

from __future__ import annotations

import pytest

from coordinator.resolution import Endpoint, address_of, parse_endpoints, resolve


def test_a_list_has_addresses_and_names_in_either_spelling() -> None:
    assert parse_endpoints(" 10.0.0.1:50052, dns:///verify.svc:50052 ,[::1]:7,,verify:80") == [
        Endpoint("10.0.0.1", 50052),
        Endpoint("verify.svc", 50052),
        Endpoint("::1", 7),
        Endpoint("verify", 80),
    ]
    assert parse_endpoints("") == []


@pytest.mark.parametrize(
    "part",
    ["verify", "verify:", ":50052", "verify:0", "verify:65536", "verify:-1", "verify:http", "verify:²", "::1:50052",
     "http://verify:80", "dns:///", "dns://server/verify:80"],
)  # fmt: skip
def test_what_is_no_address_is_named(part: str) -> None:
    with pytest.raises(ValueError, match="is no address; write host:port or dns:///name:port") as caught:
        parse_endpoints(f"127.0.0.1:1,{part}")
    assert repr(part) in str(caught.value)


def test_numbers_need_no_resolver() -> None:
    assert Endpoint("10.0.0.1", 1).is_literal
    assert Endpoint("::1", 1).is_literal
    assert not Endpoint("localhost", 1).is_literal


def test_an_ipv6_host_gets_brackets() -> None:
    assert address_of("::1", 7) == str(Endpoint("::1", 7)) == "[::1]:7"
    assert address_of("10.0.0.1", 7) == "10.0.0.1:7"


async def test_a_name_of_this_machine_resolves_and_an_unknown_one_does_not() -> None:
    assert set(await resolve(Endpoint("localhost", 7))) <= {"127.0.0.1:7", "[::1]:7"}
    with pytest.raises(OSError, match=r"."):
        await resolve(Endpoint("unknown.invalid", 7))
