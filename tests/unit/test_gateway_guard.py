"""Who may ask the gateway: keys, names under which it is reached, pages, proxies, and metrics."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest

from llmsupervisor.gateway.guard import Client, Guard
from llmsupervisor.gateway.route import Refusal
from llmsupervisor.gateway.view import Key, Limits, Table

ALICE, BOB = "alice-0123456789", "bob-0123456789abc"
KEYS = (
    Key("alice", sha256(ALICE.encode()).hexdigest(), None, 2.0),
    Key("bob", sha256(BOB.encode()).hexdigest(), frozenset({"chat", "llama"}), 1.0),
)
LOCAL = "127.0.0.1"


def guard(*keys: Key, **limits: Any) -> Guard:
    return Guard(Table(1, (), keys, Limits(**limits)))


def refusal(found: object) -> Refusal:
    assert isinstance(found, Refusal)
    return found


# --- keys -------------------------------------------------------------------------------------------------------------


def test_without_keys_everybody_is_nobody() -> None:
    said = {"authorization": "Bearer anything", "x-api-key": "else"}
    assert guard().admit(said, LOCAL, "any") == Client("", None, 1.0, LOCAL)


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {ALICE}"},
        {"authorization": f"bearer   {ALICE} "},
        {"x-api-key": ALICE},
        {"x-api-key": f" {ALICE}"},
        {"authorization": "Bearer wrong", "x-api-key": ALICE},
        {"authorization": "Basic eDp5", "x-api-key": ALICE},
        {"authorization": f"Bearer {ALICE}", "x-api-key": BOB},
    ],
)
def test_a_key_names_its_client(headers: dict[str, str]) -> None:
    assert guard(*KEYS).admit(headers, "10.0.0.7", "any") == Client("alice", None, 2.0, "10.0.0.7")


@pytest.mark.parametrize(
    ("headers", "text"),
    [
        ({}, "a key is needed: "),
        ({"authorization": "Bearer "}, "a key is needed: "),
        ({"authorization": f"Basic {ALICE}"}, "a key is needed: "),
        ({"authorization": ALICE}, "a key is needed: "),
        ({"x-api-key": ""}, "a key is needed: "),
        ({"authorization": f"Bearer {ALICE}x"}, "this key is not known: "),
        ({"x-api-key": "sk-\xff"}, "this key is not known: "),
        ({"x-api-key": KEYS[0].sha256}, "this key is not known: "),
    ],
)
def test_no_key_and_a_wrong_key(headers: dict[str, str], text: str) -> None:
    found = refusal(guard(*KEYS).admit(headers, LOCAL))
    assert (found.status, found.code) == (401, "invalid_api_key") and found.message.startswith(text)
    assert dict(found.headers)["WWW-Authenticate"].startswith("Bearer ")
    assert ALICE not in found.message and "sk-" not in found.message


def test_a_key_that_cannot_be_read_opens_nothing() -> None:
    gone = Key("alice", "", None, 1.0)
    for headers in ({}, {"x-api-key": ""}, {"authorization": "Bearer "}, {"x-api-key": ALICE}):
        assert refusal(guard(gone).admit(headers, LOCAL)).status == 401
    assert isinstance(guard(gone, KEYS[1]).admit({"x-api-key": BOB}, LOCAL), Client)


def test_models_of_a_key() -> None:
    asked, own = {"x-api-key": BOB}, guard(*KEYS)
    client = own.admit(asked, LOCAL, "llama")
    assert isinstance(client, Client) and client.may("chat") and not client.may("other")
    for model in ("other", "unknown"):
        found = refusal(own.admit(asked, LOCAL, model))
        assert (found.status, found.code) == (403, "model_not_allowed")
        assert found.message == f"this key may not use {model!r}; it may use: chat, llama"
    assert own.allows(client, "chat") is None and own.allows(client, "x") is not None


# --- browsers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8088", "LOCALHOST.:8088", "127.0.0.1:8088", "127.9.9.9", "[::1]:8088", "::1", "", None],
)
def test_names_of_this_machine(host: str | None) -> None:
    headers = {} if host is None else {"host": host}
    assert isinstance(guard(hosts=()).admit(headers, LOCAL), Client)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example:8088",
        "127.0.0.1.evil.example",
        "192.168.0.1",
        "0.0.0.0",
        "[::2]",
        "127.1",
    ],
)
def test_other_names_of_this_machine(host: str) -> None:
    found = refusal(guard(hosts=()).admit({"host": host}, LOCAL))
    assert (found.status, found.code) == (403, "host_not_allowed") and host in found.message
    assert isinstance(guard().admit({"host": host}, LOCAL), Client)


def test_names_that_the_spec_allows() -> None:
    own = guard(hosts=("LLM.example.org.", "10.0.0.1", "[fd00::1]"))
    for host in ("llm.example.org", "llm.Example.ORG:443", "10.0.0.1:8088", "[fd00::1]:80", "localhost"):
        assert own.reaches({"host": host}) is None
    assert refusal(own.reaches({"host": "example.org"})).code == "host_not_allowed"


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://localhost:8088", "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_pages_that_nobody_allowed(headers: dict[str, str]) -> None:
    own = guard(*KEYS, origins=("https://chat.example.org",))
    found = refusal(own.admit({"x-api-key": ALICE, **headers}, LOCAL))
    assert (found.status, found.code) == (403, "origin_not_allowed")
    assert own.cors(headers) == () and refusal(own.preflight(headers)).status == 403


def test_pages_that_may_call() -> None:
    page = {"origin": "https://chat.example.org", "sec-fetch-site": "cross-site"}
    own = guard(origins=("https://chat.example.org",))
    assert isinstance(own.admit(page, LOCAL), Client)
    assert dict(own.cors(page))["Access-Control-Allow-Origin"] == "https://chat.example.org"
    assert own.cors({}) == ()
    anybody = guard(KEYS[0], origins=("*",))
    assert dict(anybody.cors({"origin": "https://x"}))["Access-Control-Allow-Origin"] == "https://x"
    for typed in ("none", "same-origin"):
        assert guard().reaches({"sec-fetch-site": typed}) is None


def test_a_preflight_needs_no_key() -> None:
    own = guard(*KEYS, origins=("https://x",), hosts=())
    asked = {
        "host": "localhost:8088",
        "origin": "https://x",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, x-stainless-os",
        "access-control-request-private-network": "true",
    }
    assert own.preflight(asked) == (
        ("Access-Control-Allow-Origin", "https://x"),
        ("Access-Control-Expose-Headers", "Retry-After, X-Request-Id"),
        ("Vary", "Origin"),
        ("Access-Control-Allow-Methods", "GET, POST"),
        ("Access-Control-Allow-Headers", "authorization, x-stainless-os"),
        ("Access-Control-Allow-Private-Network", "true"),
        ("Access-Control-Max-Age", "600"),
    )
    bent = own.preflight(asked | {"access-control-request-headers": "a\r\nSet-Cookie: b"})
    assert not isinstance(bent, Refusal) and not any("Set-Cookie" in value for _, value in bent)
    assert refusal(own.preflight(asked | {"host": "evil.example"})).code == "host_not_allowed"
    assert refusal(own.preflight({"host": "localhost"})).status == 405


# --- proxies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.9", "1.1.1.1", "203.0.113.9"),
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "1.1.1.1, 198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "1.1.1.1, 198.51.100.7, 10.9.9.9", "198.51.100.7"),
        ("10.0.0.1", "10.2.2.2, 10.3.3.3", "10.2.2.2"),
        ("10.0.0.1", "1.1.1.1, rubbish, 10.3.3.3", "10.3.3.3"),
        ("10.0.0.1", "rubbish", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.7:4711", "198.51.100.7"),
        ("10.0.0.1", "[2001:db8::7]:4711", "2001:db8::7"),
        ("::ffff:10.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("fd00::1", "198.51.100.7", "198.51.100.7"),
    ],
)
def test_the_clients_address(peer: str, forwarded: str | None, address: str) -> None:
    own = guard(trusted_proxies=("10.0.0.0/8", "fd00::1"))
    headers = {} if forwarded is None else {"x-forwarded-for": forwarded}
    client = own.admit(headers, peer)
    assert isinstance(client, Client) and client.address == address


def test_without_proxies_nobody_says_where_he_is() -> None:
    client = guard().admit({"x-forwarded-for": "1.1.1.1"}, LOCAL)
    assert isinstance(client, Client) and client.address == LOCAL


# --- metrics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scrape", "headers", "peer", "status"),
    [
        ("loopback", {}, LOCAL, None),
        ("loopback", {}, "::1", None),
        ("loopback", {}, "::ffff:127.0.0.1", None),
        ("loopback", {}, "10.0.0.1", 401),
        ("loopback", {"x-api-key": BOB}, "10.0.0.1", None),
        ("loopback", {"x-forwarded-for": "127.0.0.1"}, LOCAL, 401),
        ("loopback", {"x-forwarded-for": "127.0.0.1"}, "10.0.0.1", 401),
        ("loopback", {"forwarded": "for=1.1.1.1"}, LOCAL, 401),
        ("loopback", {"x-forwarded-for": "127.0.0.1"}, "192.168.0.1", None),
        ("loopback", {"x-forwarded-for": "1.1.1.1"}, "192.168.0.1", 401),
        ("loopback", {"origin": "https://x"}, LOCAL, 403),
        ("keys", {}, LOCAL, 401),
        ("keys", {"x-api-key": ALICE}, "10.0.0.1", None),
        ("all", {}, "10.0.0.1", None),
        ("all", {"origin": "https://x"}, "10.0.0.1", 403),
    ],
)
def test_who_may_scrape(scrape: str, headers: dict[str, str], peer: str, status: int | None) -> None:
    found = guard(*KEYS, scrape=scrape, trusted_proxies=("192.168.0.1",)).may_scrape(headers, peer)
    assert (found.status if found else None) == status


def test_metrics_without_keys_stay_here() -> None:
    assert guard().may_scrape({}, LOCAL) is None
    assert refusal(guard().may_scrape({}, "10.0.0.1")).code == "scrape_not_allowed"


def test_headers_that_are_none_are_not_allowed_to_a_page() -> None:
    own = guard(origins=("https://x",), hosts=())
    asked = {"host": "localhost", "origin": "https://x", "access-control-request-method": "POST"}
    for said in ("a\x00b", "a\r\nb: c", "", "a" * 1001):
        found = own.preflight(asked | {"access-control-request-headers": said})
        assert not isinstance(found, Refusal) and "Access-Control-Allow-Headers" not in dict(found)
