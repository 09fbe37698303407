"""The target and the Host of a request: what RFC 9112, section 3.2, lets pass, and what comes of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsupervisor.gateway.request import Request


def read(target: bytes, host: str | None = "localhost", method: str = "POST", version: str = "1.1") -> Request:
    return Request(0.0, method, target, {} if host is None else {"host": host}, version=version)


@pytest.mark.parametrize(
    ("target", "path", "host"),
    [
        (b"/v1/models", "/v1/models", "localhost"),
        (b"/v1/models?a=http://x/", "/v1/models", "localhost"),
        (b"//other/v1/models", "//other/v1/models", "localhost"),
        (b"/a/../b%2F;c", "/a/../b%2F;c", "localhost"),
        (b"http://box:8088/v1/models", "/v1/models", "box:8088"),
        (b"HTTPS://box.example/v1/models?x=/", "/v1/models", "box.example"),
        (b"http://[::1]:8088/", "/", "[::1]:8088"),
        (b"http://box", "/", "box"),
        (b"http://box?a", "/", "box"),
        (b"http://box//x", "//x", "box"),
        (b"http://box/http://other/", "/http://other/", "box"),
    ],
)
def test_a_target_is_a_path_and_may_name_the_host(target: bytes, path: str, host: str) -> None:
    request = read(target)
    assert request.settle() == "" and request.path == path and request.headers["host"] == host


WRONG = [
    b"", b"*", b"v1/models", b"box:443", b"?a", b"/v1#a", b"/v1?a#b", b"http://box/#a", b"/a b", b"/a\0", b"/\x7f", b"/\xff",
    b"http:///v1", b"http://:80/v1", b"http://?v1", b"http://me@box/", b"http://me:secret@box/", b"http://a b/", b"/v1\n",
    b"http:/box/", b"http:box", b"ftp://box/", b"file:///etc/passwd", b"xhttp://box/", b"http://box:port/", b"http://[::1/",
    b"http://box\\@other/", b"http://box\r\nX: y/", b"http://box/\n",
]  # fmt: skip


@pytest.mark.parametrize("target", WRONG)
def test_what_is_no_target(target: bytes) -> None:
    assert "target" in read(target).settle()


@pytest.mark.parametrize(
    "host",
    ["a b", "a,b c", "me@box", "http://box", "box/", "box:port", "box:1:2", "::1", "[::1", "é", "a\x00", "%zz", "x\n"],
)
def test_what_is_no_host(host: str) -> None:
    assert "Host" in read(b"/", host).settle()
    assert "Host" in read(b"http://box/", host).settle()


@pytest.mark.parametrize(
    "host", ["", "box", "box:", "box:8088", "1.2.3.4:80", "[::1]:80", "[fe80::1%25eth0]", "a_b.example.", "%41"]
)
def test_what_is_one(host: str) -> None:
    assert read(b"/", host).settle() == ""


def test_who_has_to_say_it() -> None:
    """HTTP/1.0 knew none; whoever names it in the target has to say it all the same."""
    assert "Host" in read(b"/", None).settle() and "Host" in read(b"http://box/", None).settle()
    assert read(b"/", None, version="1.0").settle() == ""
    request = read(b"http://box/x", None, version="1.0")
    assert request.settle() == "" and request.headers["host"] == "box"


def test_it_is_said_once() -> None:
    request = read(b"/", None)
    request.add("host", "localhost")
    assert request.settle() == ""
    request.add("host", "localhost")
    assert "Host" in request.settle() and request.fields == 2


def test_where_it_came_from_is_one_list() -> None:
    """Of all else the last one counts."""
    request = Request(0.0)
    for value in ("192.0.2.7", "198.51.100.1, 203.0.113.5", "127.0.0.1"):
        request.add("x-forwarded-for", value)
        request.add("accept", value)
    assert request.headers["x-forwarded-for"] == "192.0.2.7, 198.51.100.1, 203.0.113.5, 127.0.0.1"
    assert request.headers["accept"] == "127.0.0.1"


def test_a_question_about_the_server_itself() -> None:
    assert read(b"*", method="OPTIONS").settle() == ""


@given(st.binary(max_size=40) | st.from_regex(rb"(?i:http)s?:/{1,3}[!-~]{0,10}", fullmatch=True))
def test_whatever_comes_is_refused_or_has_a_path(target: bytes) -> None:
    request = read(target)
    if request.settle() == "":
        assert request.path.startswith("/") and request.path.isascii() and request.path.isprintable()
        assert not {"#", " ", "?"} & set(request.path) and target.endswith(request.url.removeprefix(b"/"))


def test_white_space_around_a_value_is_none_of_it() -> None:
    """RFC 9112, section 5; the parser takes it from the front only."""
    request = Request(0.0, "GET", b"/healthz", version="1.1")
    request.add("host", "localhost \t")
    assert request.settle() == "" and request.headers["host"] == "localhost"
