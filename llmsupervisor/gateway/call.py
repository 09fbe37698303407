"""What a request says: model, lengths, the text of its prompt. And its body as the engine gets it. Pure."""

from __future__ import annotations

import hashlib
import hmac
import json
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmsupervisor.gateway.route import Refusal
from llmsupervisor.gateway.view import Policy

Json = Any

STREAMED = frozenset({"api.chat", "api.generate"})
"""Apis that stream unless they are told not to."""
DEPTH = 200
"""Objects and lists in one another; deeper ones could be read, but not written again."""
BLOCK = 2048
"""Bytes of prompt text that have a hash of their own: about 512 tokens."""
SESSION = 128
"""Characters that are kept of a session's name."""

_LENGTHS = ("n_predict", "max_completion_tokens", "max_output_tokens", "max_tokens")
"""The first one counts, as in llama-server; vLLM does not know `n_predict`."""
_BEFORE = ("system", "instructions", "tools", "functions", "chat_template_kwargs", "query")
_AFTER = ("response_format", "text", "suffix")
"""Keys outside of the conversation that a template may print."""
_SCHEMAS = frozenset({"tools", "functions", "chat_template_kwargs"})
_FILL = ("input_extra", "input_prefix", "prompt", "input_suffix")
"""Parts of one prompt, where there is a prefix or a suffix."""
_ELSEWHERE = (
    "previous_response_id",
    "conversation",
    "prompt_embeds",
    "chat_template",
    "image_data",
    "images",
    "context",
)
"""Keys that bring into the prompt what is not in the body, or is no text."""
_FRAME = frozenset({"role", "content", "type", "id", "status"})
_TEXT = frozenset({"text", "input_text", "output_text"})
"""Types of parts whose `text` is all that they say."""
_RESULTS = {"tool_result": "content", "function_call_output": "output", "custom_tool_call_output": "output"}
"""Types whose content stands under another key."""
_WORDS = frozenset(
    {"refusal", "thinking", "redacted_thinking", "reasoning", "reasoning_text", "summary_text", "tool_use"}
    | {"function_call", "custom_tool_call", "search_result"}
)
"""Types that bring words only, under keys of their own."""

Piece = str | bytes | list[int]
"""Text, or token ids. Bytes stand for what is neither: a role, an image."""


@dataclass(slots=True)
class Call:
    """Unknown is None."""

    api: str
    model: str
    """As the client says it."""
    stream: bool
    max_tokens: int | None
    prompt_bytes: int | None
    """UTF-8 bytes of all text that goes into prompts, tools and schemas too. None: there is more than text."""
    token_ids: int
    """Prompt tokens that were given as such."""
    prompts: int
    """Prompts that are computed each for itself: of a list of texts, of documents."""
    longest: int | None
    """Bytes and token ids of the longest prompt: it has no more tokens, but for those of the template."""
    messages: int
    tools: bool
    n: int
    """Answers wanted of each prompt."""
    usage_asked: bool
    """Its stream shall end with a usage event."""
    session_id: str | None
    own_context: int | None = None
    """Of a native request: the context that it asks the engine for."""
    cuts: bool = False
    """It wants its prompt cut where that is too long."""
    other_case: str | None = None
    """A key that is not in small letters: some engines take it for the one that is."""


def read(api: str, said: Json, body: bytes) -> Call | Refusal:
    """`said`: what `body` says, as JSON. A prompt of no known form counts as long as the body: the engine refuses it."""
    model = said.get("model") if isinstance(said, dict) else None
    if not isinstance(model, str) or not model:
        return Refusal(400, 'the body must be a JSON object with the name of a model in "model"', "model_required")
    if body.count(b"{") + body.count(b"[") > DEPTH and _deep(said):
        return Refusal(400, f"the body has more than {DEPTH} objects and lists in one another", "bad_request")
    prompt = _Prompt(said)
    around = _size(prompt.before) + sum(utf8(_dump(said[key])) for key in _AFTER if said.get(key))
    sizes = [(_size(each), _ids(each)) for each in prompt.prompts] or [(0, 0)]
    token_ids = sum(ids for _, ids in sizes)
    prompt_bytes: int | None = around + sum(size for size, _ in sizes)
    longest: int | None = around + max(size + ids for size, ids in sizes)
    if prompt.more:
        prompt_bytes = longest = None
    elif prompt.odd:
        prompt_bytes = longest = len(body)
    options = said.get("stream_options")
    return Call(
        api=api,
        model=model,
        stream=said.get("stream", api in STREAMED) is True,
        max_tokens=_num_predict(said) if api.startswith("api.") else _max_tokens(said),
        prompt_bytes=prompt_bytes,
        token_ids=token_ids,
        prompts=len(sizes),
        longest=longest,
        messages=prompt.messages,
        tools=bool(said.get("tools") or said.get("functions")),
        n=n if type(n := said.get("n")) is int and n > 0 else 1,
        usage_asked=isinstance(options, dict) and options.get("include_usage") is True,
        session_id=_session(said),
        own_context=_option(said, "num_ctx") if api.startswith("api.") else None,
        cuts=said.get("truncate") is True,
        other_case=next((key for key in said if key != key.casefold()), None),
    )


def change(said: dict[str, Json], model: str, policy: Policy | None, more: Mapping[str, Json]) -> dict[str, Json]:
    """`said` as the engine gets it; the same object where nothing changes. What the policy strips is gone, what it sets
    stands, `more` comes into objects of the same name, and the model is `model`."""
    if policy is None and not more and said["model"] == model:
        return said
    new = {key: value for key, value in said.items() if policy is None or key not in policy.strip}
    if policy is not None:
        for outer, _, inner in (key.partition(".") for key in policy.strip if "." in key):
            if isinstance(old := new.get(outer), dict) and inner in old:
                new[outer] = {key: value for key, value in old.items() if key != inner}
        new = {**policy.unsaid, **new, **policy.set}
    for key, value in more.items():
        old = new.get(key)
        new[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, Mapping) else value
    new["model"] = model
    return said if new.keys() == said.keys() and all(_same(new[key], said[key]) for key in new) else new


def rewrite(said: dict[str, Json], body: bytes, model: str, policy: Policy | None, more: Mapping[str, Json]) -> bytes:
    """`body` itself where nothing changes."""
    new = change(said, model, policy, more)
    return body if new is said else written(new)


def written(said: Json) -> bytes:
    """Half a surrogate pair has no UTF-8: where there is one, all that is not ASCII is escaped."""
    try:
        return json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(said, separators=(",", ":")).encode()


def utf8(text: str) -> int:
    """Bytes."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def blocks(said: Json, salt: bytes) -> list[str]:
    """A hash of each `BLOCK` bytes of the prompt and all before them: equal beginnings, equal hashes. The last block may
    be short. Templates are not known here: roles and texts stand for what they make of them."""
    text = b"".join(_stream(_Prompt(said))) if isinstance(said, dict) else b""
    found, above = [], b""
    for start in range(0, len(text), BLOCK):
        above = hmac.digest(salt, above + text[start : start + BLOCK], "sha256")
        found.append(above[:8].hex())
    return found


class _Prompt:
    """The texts of a request in the order of its prompt, whichever API it is for."""

    __slots__ = ("before", "messages", "more", "odd", "prompts")

    def __init__(self, said: dict[str, Json]) -> None:
        self.before: list[Piece] = []
        """Of all prompts."""
        self.prompts: list[list[Piece]] = []
        self.messages = 0
        self.more = any(said.get(key) for key in _ELSEWHERE)
        """There is what is no text."""
        self.odd = False
        """There is what has no known form."""
        for key in _BEFORE:
            if value := said.get(key):
                self._around(key, value)
        self._conversation(said.get("messages"))
        if "input_prefix" in said or "input_suffix" in said:
            fill = [said[key] for key in _FILL if said.get(key)]
            self.prompts.append([each if isinstance(each, str) else _dump(each) for each in fill])
        else:
            self._texts(said.get("prompt"))
        self._texts(said.get("input"))
        self._documents(said)

    def _around(self, key: str, value: Json) -> None:
        if key in _SCHEMAS:
            self.before.append(_dump(value))
        else:
            self._content(self.before, value)
        self.before.append(b"\n")

    def _conversation(self, items: Json) -> None:
        if items is None:
            return
        if not isinstance(items, list):
            self.odd = True
            return
        prompt: list[Piece] = []
        self.prompts.append(prompt)
        self.messages += len(items)
        for item in items:
            if not isinstance(item, dict):
                self.odd = True
            elif "role" in item or "content" in item:
                self._message(prompt, item)
            else:
                self._part(prompt, item)

    def _message(self, prompt: list[Piece], message: dict[str, Json]) -> None:
        role = message.get("role")
        if isinstance(role, str):
            prompt.append(b"\n" + role.encode("utf-8", "surrogatepass") + b"\n")
        self._content(prompt, message.get("content"))
        for key, value in message.items():
            if key == "audio":
                self.more |= bool(value)
            elif key == "images":
                self.more |= bool(value)
                prompt.append(hashlib.sha256(_dump(value).encode("utf-8", "surrogatepass")).digest())
            elif value and key not in _FRAME:
                prompt.append(_dump(value))

    def _content(self, prompt: list[Piece], content: Json) -> None:
        if isinstance(content, str):
            prompt.append(content)
        elif isinstance(content, dict):
            self._part(prompt, content)
        elif isinstance(content, list):
            for part in content:
                if isinstance(part, str):
                    prompt.append(part)
                elif isinstance(part, dict):
                    self._part(prompt, part)
                else:
                    self.odd = True
        elif content is not None:
            self.odd = True

    def _part(self, prompt: list[Piece], part: dict[str, Json]) -> None:
        kind = part.get("type", "text")
        if not isinstance(kind, str):
            self.odd = True
        elif kind in _TEXT and isinstance(part.get("text"), str):
            prompt.append(part["text"])
        elif kind in _RESULTS:
            self._content(prompt, part.get(_RESULTS[kind]))
        elif kind in _WORDS:
            prompt.append(_dump(part))
        elif "type" not in part and "content" in part:
            self._content(prompt, part["content"])
        else:
            self.more = True
            prompt.append(hashlib.sha256(_dump(part).encode("utf-8", "surrogatepass")).digest())

    def _texts(self, value: Json) -> None:
        """A text, token ids, a list of both, a list of such, or items of a conversation."""
        if value is None:
            return
        if isinstance(value, str):
            self.prompts.append([value])
        elif isinstance(value, list) and value:
            kinds = set(map(type, value))
            if kinds == {int}:
                self.prompts.append([value])
            elif kinds == {int, str}:
                self.prompts.append([each if isinstance(each, str) else [each] for each in value])
            elif kinds == {dict}:
                self._conversation(value)
            else:
                for each in value:
                    self._texts(each)
        else:
            self.more |= isinstance(value, dict)
            self.odd |= not isinstance(value, dict)

    def _documents(self, said: dict[str, Json]) -> None:
        for key in ("documents", "texts"):
            if not (found := said.get(key)):
                continue
            if "query" not in said:
                self.before.append(_dump(found))
            elif isinstance(found, list):
                for each in found:
                    self.prompts.append([])
                    self._content(self.prompts[-1], each)
            else:
                self.odd = True


def _stream(prompt: _Prompt) -> Iterator[bytes]:
    for pieces in (prompt.before, *prompt.prompts):
        for piece in pieces:
            if isinstance(piece, str):
                yield piece.encode("utf-8", "surrogatepass")
            elif isinstance(piece, bytes):
                yield piece
            else:
                yield array("I", [each & 0xFFFFFFFF for each in piece]).tobytes()
        yield b"\n"


def _size(pieces: list[Piece]) -> int:
    """UTF-8 bytes of the texts."""
    return sum(utf8(piece) for piece in pieces if isinstance(piece, str))


def _ids(pieces: list[Piece]) -> int:
    return sum(len(piece) for piece in pieces if isinstance(piece, list))


def _dump(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False)


def _deep(value: Json) -> bool:
    level = [value]
    for _ in range(DEPTH):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [each for part in inner for each in part if isinstance(each, (dict, list))]
        if not level:
            return False
    return True


def _max_tokens(said: dict[str, Json]) -> int | None:
    """None: none was said, or no limit."""
    for key in _LENGTHS:
        value = said.get(key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is int:
            return value if value >= 0 else None
    return None


def _num_predict(said: dict[str, Json]) -> int | None:
    value = _option(said, "num_predict")
    return value if value is not None and value >= 0 else None


def _option(said: dict[str, Json], name: str) -> int | None:
    options = said.get("options")
    value = options.get(name) if isinstance(options, dict) else None
    return value if type(value) is int else None


def _session(said: dict[str, Json]) -> str | None:
    """The narrowest that is said."""
    metadata = said.get("metadata")
    user = metadata.get("user_id") if isinstance(metadata, dict) else None
    for value in (said.get("session_id"), said.get("prompt_cache_key"), said.get("user"), user):
        if isinstance(value, str) and value:
            return value[:SESSION]
    return None


def _same(one: Json, other: Json) -> bool:
    """As JSON: 1 is not true."""
    if one is other:
        return True
    if isinstance(one, (dict, list)):
        return json.dumps(one) == json.dumps(other)
    return type(one) is type(other) and bool(one == other)
