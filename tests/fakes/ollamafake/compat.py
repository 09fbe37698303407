"""`/v1`: requests of OpenAI's and Anthropic's kind turned into native ones, and answers turned back."""

from __future__ import annotations

import json
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from ollamafake.http1 import BARE, Answer, ApiError, dumps
from ollamafake.native import Body, Result

SSE = "text/event-stream"


def error(failed: ApiError) -> Body:
    kind = {400: "invalid_request_error", 404: "not_found_error"}.get(failed.status, "api_error")
    return {"error": {"message": failed.text, "type": kind, "param": None, "code": None}}


def anthropic_error(failed: ApiError) -> Body:
    kind = {400: "invalid_request_error", 404: "not_found_error"}.get(failed.status, "api_error")
    return {
        "type": "error",
        "error": {"type": kind, "message": failed.text},
        "request_id": f"req_{secrets.token_hex(12)}",
    }


def text_of(content: Any) -> str:
    if isinstance(content, list):
        return "".join(
            str(part.get("text", "")) for part in content if part.get("type") in ("text", "input_text", "output_text")
        )
    return str(content or "")


def _options(request: Body, most: str) -> Body:
    """OpenAI's defaults, which are not Ollama's. `options` and `num_ctx` of the body are not looked at."""
    found: Body = {"temperature": 1.0, "top_p": 1.0}
    for name in ("temperature", "top_p", "seed", "frequency_penalty", "presence_penalty"):
        if request.get(name) is not None:
            found[name] = request[name]
    if request.get(most) is not None:
        found["num_predict"] = request[most]
    stop = request.get("stop") or request.get("stop_sequences")
    return found | ({"stop": [stop] if isinstance(stop, str) else stop} if stop else {})


def native_chat(request: Body) -> Body:
    if not request.get("messages"):
        raise ApiError(400, "[] is too short - 'messages'")
    messages = [{"role": m.get("role", "user"), "content": text_of(m.get("content"))} for m in request["messages"]]
    made: Body = {"model": request.get("model", ""), "messages": messages, "tools": request.get("tools")}
    form = request.get("response_format") or {}
    if form.get("type") == "json_object":
        made["format"] = "json"
    elif form.get("type") == "json_schema":
        made["format"] = form["json_schema"]["schema"]
    most = "max_completion_tokens" if request.get("max_completion_tokens") is not None else "max_tokens"
    return made | {"options": _options(request, most)}


def native_completion(request: Body) -> Body:
    prompt = request.get("prompt") or ""
    prompt = prompt[0] if isinstance(prompt, list) else prompt
    return {"model": request.get("model", ""), "prompt": str(prompt), "options": _options(request, "max_tokens")}


def native_messages(request: Body) -> Body:
    if not request.get("max_tokens"):
        raise ApiError(400, "max_tokens is required and must be positive")
    system = text_of(request.get("system"))
    made = native_chat(request)
    made["messages"] = ([{"role": "system", "content": system}] if system else []) + made["messages"]
    return made


def native_responses(request: Body) -> Body:
    given = request.get("input") or []
    turns = [{"role": "user", "content": given}] if isinstance(given, str) else given
    lead = [{"role": "system", "content": request["instructions"]}] if request.get("instructions") else []
    made = native_chat({"model": request.get("model"), "messages": lead + turns})
    return made | {"options": _options(request, "max_output_tokens")}


async def whole(result: Result) -> tuple[str, Body]:
    """All text of an answer and its last chunk."""
    if isinstance(result, dict):
        return _text(result), result
    text, last = "", dict[str, Any]()
    async for chunk in result:
        text, last = text + _text(chunk), chunk
    return text, last


async def chunks(result: Result) -> AsyncIterator[Body]:
    if isinstance(result, dict):
        yield result
        return
    async for chunk in result:
        yield chunk


def _text(chunk: Body) -> str:
    return str(chunk["message"]["content"] if "message" in chunk else chunk.get("response", ""))


def _usage(last: Body, first: str = "prompt_tokens", second: str = "completion_tokens", total: bool = True) -> Body:
    sent, made = last.get("prompt_eval_count", 0), last.get("eval_count", 0)
    return {first: sent, second: made} | ({"total_tokens": sent + made} if total else {})


def _reason(chunk: Body) -> str | None:
    return chunk.get("done_reason") if chunk.get("done_reason") in ("stop", "length") else None


async def openai(answer: Answer, request: Body, result: Result, chat: bool) -> None:
    kind, object_, of = ("chatcmpl", "chat.completion", "message") if chat else ("cmpl", "text_completion", "text")
    base = {"id": f"{kind}-{random.randrange(999)}", "object": object_, "created": int(time.time())}
    base |= {"model": request["model"], "system_fingerprint": "fp_ollama"}
    if not request.get("stream"):
        text, last = await whole(result)
        said = {"role": "assistant", "content": text} if chat else text
        choice = {"index": 0, of: said} if chat else {of: said, "index": 0}
        made = base | {"choices": [choice | {"finish_reason": _reason(last)}], "usage": _usage(last)}
        await answer.json(made, kind=BARE, end="\n")
        return
    base |= {"object": "chat.completion.chunk"} if chat else {}

    def event(choices: list[Body], **more: Any) -> bytes:
        return f"data: {dumps(base | {'choices': choices} | more)}\n\n".encode()

    def choice_of(text: str | None, reason: str | None, first: bool = False) -> Body:
        if not chat:
            return {"text": text or "", "index": 0, "finish_reason": reason}
        delta = ({"role": "assistant"} if first else {}) | ({"content": text} if text is not None else {})
        return {"index": 0, "delta": delta, "finish_reason": reason}

    first, done = True, False
    try:
        async for chunk in chunks(result):
            text = _text(chunk)
            if text or not chunk["done"]:
                await answer.send(event([choice_of(text, None, first)]), SSE)
                first = False
            if chunk["done"]:
                done = True
                await answer.send(event([choice_of(None, _reason(chunk))]), SSE)
                if (request.get("stream_options") or {}).get("include_usage"):
                    await answer.send(event([], usage=_usage(chunk)), SSE)
    except ApiError:
        if not answer.started:
            raise
        base["model"] = ""
        await answer.send(event([choice_of("", None)]), SSE)
    if done:
        await answer.send(b"data: [DONE]\n\n", SSE)
    await answer.end()


async def anthropic(answer: Answer, request: Body, result: Result) -> None:
    stops = {"stop": "end_turn", "length": "max_tokens"}
    message = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": request["model"]}
    if not request.get("stream"):
        text, last = await whole(result)
        message |= {"content": [{"type": "text", "text": text}], "stop_reason": stops.get(last.get("done_reason", ""))}
        await answer.json(
            message | {"usage": _usage(last, "input_tokens", "output_tokens", False)}, kind=BARE, end="\n"
        )
        return

    async def event(kind: str, **fields: Any) -> None:
        await answer.send(f"event: {kind}\ndata: {dumps({'type': kind, **fields})}\n\n".encode(), SSE)

    size = sum(len(text_of(m.get("content"))) for m in request["messages"]) + len(text_of(request.get("system")))
    opened = False
    try:
        async for chunk in chunks(result):
            if not opened:
                opened = True
                usage = {"input_tokens": max(size // 4, 1), "output_tokens": 0}
                await event("message_start", message=message | {"content": [], "usage": usage})
                await event("content_block_start", index=0, content_block={"type": "text", "text": ""})
            if text := _text(chunk):
                await event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})
            if chunk["done"]:
                await event("content_block_stop", index=0)
                usage = _usage(chunk, "input_tokens", "output_tokens", False)
                await event("message_delta", delta={"stop_reason": stops.get(chunk["done_reason"])}, usage=usage)
                await event("message_stop")
    except ApiError:
        if not answer.started:
            raise
    await answer.end()


async def responses(answer: Answer, request: Body, result: Result) -> None:
    made = {"id": f"resp_{random.randrange(10**6)}", "object": "response", "created_at": int(time.time())}
    made |= {"status": "in_progress", "model": request["model"], "output": []}
    item = {"id": f"msg_{random.randrange(10**6)}", "type": "message", "status": "completed", "role": "assistant"}

    def finished(text: str, last: Body) -> Body:
        output = [item | {"content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]}]
        return made | {"status": "completed", "output": output, "usage": _usage(last, "input_tokens", "output_tokens")}

    if not request.get("stream"):
        await answer.json(finished(*await whole(result)), kind=BARE, end="\n")
        return
    number, text = 0, ""

    async def event(kind: str, **fields: Any) -> None:
        nonlocal number
        body = {"type": kind, "sequence_number": number, **fields}
        number += 1
        await answer.send(f"event: {kind}\ndata: {dumps(body)}\n\n".encode(), SSE)

    at = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    try:
        async for chunk in chunks(result):
            if not number:
                await event("response.created", response=made)
                await event("response.in_progress", response=made)
                await event(
                    "response.output_item.added", output_index=0, item=item | {"status": "in_progress", "content": []}
                )
                await event(
                    "response.content_part.added", **at, part={"type": "output_text", "text": "", "annotations": []}
                )
            if piece := _text(chunk):
                text += piece
                await event("response.output_text.delta", **at, delta=piece, logprobs=[])
            if chunk["done"]:
                done = finished(text, chunk)
                await event("response.output_text.done", **at, text=text, logprobs=[])
                await event("response.content_part.done", **at, part=done["output"][0]["content"][0])
                await event("response.output_item.done", output_index=0, item=done["output"][0])
                await event("response.completed", response=done)
    except ApiError:
        if not answer.started:
            raise
    await answer.end()


def embeddings(answer: Body) -> Body:
    rows = [{"object": "embedding", "embedding": row, "index": i} for i, row in enumerate(answer["embeddings"])]
    used = answer.get("prompt_eval_count", 0)
    return {
        "object": "list",
        "data": rows,
        "model": answer["model"],
        "usage": {"prompt_tokens": used, "total_tokens": used},
    }


Convert = Callable[[Body], Body]
ROUTES: dict[str, Convert] = {
    "/v1/chat/completions": native_chat,
    "/v1/completions": native_completion,
    "/v1/messages": native_messages,
    "/v1/responses": native_responses,
}


def decode(text: str) -> Body:
    """The body of a request; Go reads one value and leaves what follows."""
    if not text.strip():
        raise ApiError(400, "missing request body")
    try:
        found, _ = json.JSONDecoder().raw_decode(text.lstrip())
    except json.JSONDecodeError as failed:
        raise ApiError(400, _go(failed)) from None
    if not isinstance(found, dict):
        kind = {list: "array", str: "string", bool: "bool"}.get(type(found), "number")
        raise ApiError(400, f"json: cannot unmarshal {kind} into Go value of type api.Request")
    return found


def _go(failed: json.JSONDecodeError) -> str:
    rest = failed.doc[failed.pos :].lstrip()
    if not rest or "Unterminated" in failed.msg:
        return "unexpected EOF"
    where = {
        "Expecting property": "looking for beginning of object key string",
        "Expecting value": "looking for beginning of value",
    }
    found = next((text for sign, text in where.items() if failed.msg.startswith(sign)), "after object key:value pair")
    return f"invalid character '{rest[0]}' {found}"
