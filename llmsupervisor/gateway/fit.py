"""Whether prompt and output fit the context of a target, and how an engine is asked where bytes cannot tell. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llmsupervisor.gateway.call import Call, utf8, written
from llmsupervisor.gateway.route import Refusal
from llmsupervisor.gateway.view import Count, Target

Json = Any

UNTEMPLATED = frozenset({"completions", "embeddings", "infill", "api.embed"})
"""APIs whose text is the prompt."""
SILENT = frozenset({"embeddings", "rerank", "api.embed"})
"""APIs that make no tokens."""
PLAIN = 16
"""Tokens around a text: BOS, EOS, separators."""
MESSAGE = 16
"""Tokens of a chat template around one message: 4 to 10 in those that are common."""
TEMPLATE = 512
"""Tokens that a chat template adds of its own: a system prompt (20 to 400), and what it says about tools (100 to 300)."""
_SAID = ("tool_calls", "arguments", "output", "thinking")
"""Keys of a message that a template prints beside its content."""
CUT, CUT_SHARE = 32, 0.95
"""Tokens, and the share, by which a template of the engine's own may differ from the one that was counted with."""
BYTES_PER_TOKEN = 3
"""Of usual text and code; English has four."""
MOST_BYTES_PER_TOKEN = 8


def needs(call: Call) -> int | None:
    """No prompt of it has more tokens: each token of a text stands for a byte of it at least, in every tokenizer with
    byte pieces. Exact for token ids. None: there is more than text."""
    if (ids := exact(call)) is not None or call.longest is None:
        return ids
    return call.longest + (PLAIN if call.api in UNTEMPLATED else TEMPLATE + MESSAGE * call.messages)


def exact(call: Call) -> int | None:
    """Tokens of the longest prompt where all were given as token ids; engines add nothing to them."""
    return call.longest if call.token_ids and call.prompt_bytes == 0 else None


def estimate(call: Call, unknown: int) -> int:
    """Tokens of all its prompts together, for queues and sums: as a rule it is more. `unknown`: where there is more than
    text."""
    if call.prompt_bytes is None:
        return unknown
    return call.token_ids + -(-call.prompt_bytes // BYTES_PER_TOKEN) + PLAIN + 4 * call.messages


def fits(call: Call, prompt_tokens: int, context_length: int) -> bool:
    """One token of output is always made, but for embeddings and scores."""
    output = 0 if call.api in SILENT else max(1, call.max_tokens or 0)
    return prompt_tokens + output <= context_length


def length(target: Target, call: Call) -> int | None:
    """The client's own, where its options are passed to the engine."""
    pin = target.traits.pin
    passed = pin is not None and not pin.force and call.own_context is not None
    return call.own_context if passed else target.context_length


def may_be_cut(target: Target, call: Call) -> bool:
    """The client wants it so, and is asked what it wants."""
    pin = target.traits.pin
    return call.cuts and pin is not None and not pin.force


def cut_unseen(target: Target, call: Call) -> bool:
    """The engine throws away what is too long, and cannot be told to refuse it."""
    pin = target.traits.pin
    return pin is not None and call.api not in pin.apis


def certain(call: Call, context_length: int) -> bool:
    """It fits, and no tokenizer has to be asked."""
    most = needs(call)
    return most is not None and fits(call, most, context_length)


def request(count: Count, call: Call, said: Mapping[str, Json]) -> bytes:
    """`said`: the user's body as the engine gets it, with the model's name that it knows. Of several prompts the engine
    is asked about the one with the most bytes."""
    if count.template is not None:
        return written(conversation(said))
    if count.body is None:
        return written({**said, **count.set})
    asked = {key: said[of] for key, of in count.body.items() if of in said}
    if not call.messages:
        asked = {key: _longest(value) for key, value in asked.items()}
    return written({**asked, **count.set})


def conversation(said: Mapping[str, Json]) -> dict[str, Json]:
    """As a chat template takes it, whichever API said it: what is no text is left out."""
    messages = [
        {"role": "system", "content": text} for key in ("system", "instructions") if (text := _text(said.get(key)))
    ]
    items = said.get("messages") or said.get("input") or ()
    items = [{"role": "user", "content": items}] if isinstance(items, str) else items
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict):
            extra = [json.dumps(item[key], ensure_ascii=False) for key in _SAID if item.get(key)]
            text = "\n".join([_text(item.get("content")), *extra])
            messages.append({"role": str(item.get("role") or "user"), "content": text})
    tools = said.get("tools")
    return {"messages": messages, **({"tools": tools} if isinstance(tools, list) and tools else {})}


def _text(content: Json) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(str(p.get("text") or p.get("content") or "") if isinstance(p, dict) else str(p) for p in parts)


def tokens_of(count: Count, rendered: Json) -> bytes | None:
    """The second question, after the template was applied."""
    prompt = rendered.get("prompt") if isinstance(rendered, dict) else None
    return written({"content": prompt, **count.set}) if isinstance(prompt, str) else None


def in_one(conversation: bytes) -> tuple[bytes, int]:
    """The first question again where it failed: all the texts as one message of a user, which every template takes, and the
    tokens that it adds at most for the rest: what stands around one message is in the answer."""
    said = json.loads(conversation)
    more = MESSAGE * max(0, len(said["messages"]) - 1) + (TEMPLATE if "tools" in said else 0)
    return written({"messages": [{"role": "user", "content": _texts(said)}]}), more


def untemplated(count: Count, conversation: bytes) -> tuple[bytes, int]:
    """The second question where the first one failed twice: all the texts, and the tokens that a template adds at most."""
    said = json.loads(conversation)
    return written({"content": _texts(said), **count.set}), TEMPLATE + MESSAGE * len(said["messages"])


def _texts(said: Mapping[str, Json]) -> str:
    texts = [message["content"] for message in said["messages"]]
    if "tools" in said:
        texts.append(json.dumps(said["tools"], ensure_ascii=False))
    return "\n".join(texts)


def was_cut(counted: int | None, engine: int | None) -> bool:
    """The engine worked on clearly fewer tokens than the prompt has: it threw the others away."""
    return counted is not None and engine is not None and engine < min(counted - CUT, CUT_SHARE * counted)


def surely_cut(call: Call, engine: int | None) -> bool:
    """The same of a prompt that nobody counted: usual text has four bytes for a token, and code with its indents hardly
    ever eight."""
    if engine is None or call.prompt_bytes is None:
        return False
    return was_cut(call.token_ids + call.prompt_bytes // MOST_BYTES_PER_TOKEN, engine)


def read_answer(count: Count, data: Json) -> int | None:
    """None: not the answer that was expected."""
    for key in count.answer.split("."):
        if not isinstance(data, dict):
            return None
        data = data.get(key)
    if isinstance(data, list):
        return len(data)
    return data if type(data) is int and data >= 0 else None


def refusal(prompt_tokens: int, max_tokens: int | None, context_length: int, model: str) -> Refusal:
    """In the words that clients of OpenAI look for."""
    asked = f"{prompt_tokens} in the prompt"
    advice = "shorten the prompt"
    if max_tokens:
        asked = f"{prompt_tokens + max_tokens} ({asked}, {max_tokens} in max_tokens)"
        advice += " or lower max_tokens"
    else:
        asked += ", and at least 1 is needed for the answer"
    text = f"This model's maximum context length is {context_length} tokens. You requested {asked}: {advice} ({model[:200]})."
    return Refusal(400, text, "context_length_exceeded")


def _longest(value: Json) -> Json:
    """Of a list of prompts; a list that has token ids in it is one prompt."""
    if not isinstance(value, list) or not value or not all(isinstance(each, (str, list)) for each in value):
        return value
    return max(value, key=lambda each: len(each) if isinstance(each, list) else utf8(each))
