"""What engines answer that is odd, and passes as it is: W13–W15 of the catalogue."""

from __future__ import annotations

import gzip
import socket

from gateway.standalone import CHUNKED, LAST, Answer, Standalone, chunk, post, whole

STREAM = {"model": "chat", "messages": [], "stream": True}

FOX = 'data: {"choices":[{"delta":{"content":"né🦊日本"}}]}\n\n'.encode()
ODD = {
    "split characters": FOX + b"data: [DONE]\n\n",
    "CRLF": FOX.replace(b"\n", b"\r\n") + b"data: [DONE]\r\n\r\n",
    "carriage returns": FOX.replace(b"\n", b"\r") + b"data: [DONE]\r\r",
    "several lines of data": b'data: {"choices":\ndata: [{"delta":{"content":"a"}}]}\n\ndata: [DONE]\n\n',
    "no end": FOX,
    "half an event": FOX + b'data: {"choices":[{"del',
    "no JSON": b"data: {nothing\n\ndata: nothing\n\n" + FOX,
    "comments": b": one\n\n: two\n\n" + FOX + b": three\n\ndata: [DONE]\n\n",
    "fields nobody knows": b"id: 7\nretry: 10\nevent: x\n" + FOX + b"data\n\ndata:\n\n",
    "invalid UTF-8": b'data: {"choices":[{"delta":{"content":"\xff\xfe\xc3"}}]}\n\ndata: [DONE]\n\n',
    "a byte order mark": b"\xef\xbb\xbf" + FOX,
    "no space": b"data:" + FOX[6:] + b"data:[DONE]\n\n",
    "NUL": b"data: a\0b\n\n",
    "numbers for everything": b'data: 1\n\ndata: null\n\ndata: []\n\ndata: {"choices":7,"usage":"x","timings":[]}\n\n',
}


def test_W13_odd_streams_pass_unchanged(gateway: Standalone) -> None:
    """In every split of their bytes that a network may make: here one byte after the other, and all at once."""
    for name, body in ODD.items():

        def piecewise(sock: socket.socket, request: bytes, body: bytes = body) -> None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(CHUNKED)
            for i in range(len(body)):
                sock.sendall(chunk(body[i : i + 1]))
            sock.sendall(LAST)

        for act in (piecewise, lambda sock, request, body=body: sock.sendall(CHUNKED + chunk(body) + LAST)):
            gateway.engine.act = act
            answer = gateway.ask(STREAM)
            assert answer.body == body and answer.complete, name
    for record in gateway.records(2 * len(ODD)):
        assert record["prompt_tokens"] is None and record["cached_tokens"] is None, "unknown is not a number"
        assert "engine" not in record["sources"].values()


USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}\n\n'
DONE = b"data: [DONE]\n\n"


def test_W14_usage_that_only_we_asked_for_is_taken_out(gateway: Standalone) -> None:
    """Of an engine whose definition says that its streams always end with it; who asked gets it."""
    gateway.apply(traits={"usage_forced": True, "remove": ["metrics"]})
    gateway.engine.act = lambda sock, request: sock.sendall(CHUNKED + chunk(FOX) + chunk(USAGE + DONE) + LAST)
    assert gateway.ask(STREAM).body == FOX + DONE
    assert gateway.ask({**STREAM, "stream_options": {"include_usage": False}}).body == FOX + DONE
    assert gateway.ask({**STREAM, "stream_options": {"include_usage": True}}).body == FOX + USAGE + DONE


def test_W14_nothing_is_injected_where_nothing_is_forced(gateway: Standalone) -> None:
    """And an answer without figures is an answer."""
    gateway.engine.act = lambda sock, request: sock.sendall(CHUNKED + chunk(FOX + DONE) + LAST)
    assert gateway.ask(STREAM).body == FOX + DONE
    assert gateway.engine.said() == [STREAM]


def test_W15_an_answer_framed_by_its_end(gateway: Standalone) -> None:
    answer = b"HTTP/1.0 200 OK\r\n\r\nall of it"

    def act(sock: socket.socket, request: bytes) -> None:
        sock.sendall(answer)
        sock.shutdown(socket.SHUT_WR)

    gateway.engine.act = act
    assert gateway.say(post()) == answer


def test_W15_a_compressed_answer_passes_as_it_is(gateway: Standalone) -> None:
    """We ask for none; who compresses all the same is not understood, and not broken."""
    body = gzip.compress(b'{"usage": {}}')
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip"
    gateway.engine.act = lambda sock, request: sock.sendall(whole(body, head))
    for model in ("chat", "smollm2"):
        answer = gateway.ask({"model": model})
        assert answer.body == body and answer.headers["Content-Encoding"] == "gzip"
    assert all(b"accept-encoding: identity" in request.lower() for request in gateway.engine.requests)


def test_W15_interim_answers(gateway: Standalone) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    gateway.engine.act = lambda sock, request: sock.sendall(early + whole(b"{}"))
    answer = gateway.say(post(headers="Connection: close\r\n"))
    assert Answer(answer.removeprefix(early)).body == b"{}"
