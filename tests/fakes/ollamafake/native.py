"""`/api/generate`, `/api/chat` and `/api/embed`. Each gives one answer, or the chunks of a stream."""

from __future__ import annotations

import json
import math
import time
from collections.abc import AsyncIterator
from typing import Any

from ollamafake.env import Config, rfc3339
from ollamafake.http1 import ApiError, call
from ollamafake.log import slog
from ollamafake.options import Want, want
from ollamafake.runner import Runner
from ollamafake.sched import Scheduler
from ollamafake.store import Model, Store, parse
from ollamafake.template import render

Body = dict[str, Any]
Result = Body | AsyncIterator[Body]
REPEATS = 30


class Native:
    def __init__(self, config: Config, store: Store, scheduler: Scheduler) -> None:
        self.config, self.store, self.scheduler = config, store, scheduler

    def model(self, request: Body, missing: str = "model '{}' not found", empty: int = 400) -> Model:
        text = str(request.get("model") or request.get("name") or "")
        if not text:
            raise ApiError(empty, missing.format("") if empty == 404 else "model is required")
        name = parse(text)
        if name is None:
            raise ApiError(400, "invalid model name")
        found = self.store.get(name)
        if found is None:
            raise ApiError(404, missing.format(text))
        return found

    def wanted(self, model: Model, request: Body, capability: str, word: str) -> Want:
        if capability not in model.capabilities:
            raise ApiError(400, f'"{request["model"]}" does not support {word}')
        if request.get("think"):
            raise ApiError(400, f'"{request["model"]}" does not support thinking')
        if request.get("tools"):
            raise ApiError(400, f"{model.name.full} does not support tools")
        return want(model, request, self.config)

    def single(self, model: Model, request: Body, empty: Body, reason: str) -> Body:
        return {
            "model": request["model"],
            "created_at": rfc3339(time.time_ns()),
            **empty,
            "done": True,
            "done_reason": reason,
        }

    async def shortcut(self, model: Model, wish: Want, request: Body, empty: Body) -> Body:
        """Nothing to answer: a load, or the order to unload."""
        if wish.keep == 0:
            self.scheduler.expire(model.weights)
            return self.single(model, request, empty, "unload")
        async with self.scheduler.use(wish):
            return self.single(model, request, empty, "load")

    # --- generate ---

    async def generate(self, request: Body) -> Result:
        began = time.monotonic_ns()
        model = self.model(request, empty=404)
        wish = self.wanted(model, request, "completion", "generate")
        if not request.get("prompt"):
            return await self.shortcut(model, wish, request, {"response": ""})
        return self._generate(began, model, wish, request)

    async def _generate(self, began: int, model: Model, wish: Want, request: Body) -> AsyncIterator[Body]:
        async with self.scheduler.use(wish) as loaded:
            loads = time.monotonic_ns() - began
            prompt = str(request["prompt"])
            if not request.get("raw"):
                system = request.get("system") or model.system
                messages = [{"role": "system", "content": system}] if system else []
                messages.append({"role": "user", "content": prompt})
                prompt = render(request.get("template") or model.template or "{{ .Prompt }}", messages)
                if request.get("context"):
                    prompt = await loaded.runner.detokenize(request["context"]) + prompt
            text = ""
            async for chunk in completion(loaded.runner, prompt, wish.options, request):
                text += chunk["content"]
                shown = self._chunk(request, {"response": chunk.pop("content")}, chunk)
                if chunk["done"]:
                    context = {} if request.get("raw") else {"context": await loaded.runner.tokenize(prompt + text)}
                    shown = _finished(shown, context, began, loads)
                yield shown

    def _chunk(self, request: Body, answer: Body, chunk: Body) -> Body:
        return {"model": request["model"], "created_at": rfc3339(time.time_ns()), **answer, **chunk}

    # --- chat ---

    async def chat(self, request: Body) -> Result:
        began = time.monotonic_ns()
        model = self.model(request)
        wish = self.wanted(model, request, "completion", "chat")
        if not request.get("messages"):
            return await self.shortcut(model, wish, request, {"message": {"role": "assistant", "content": ""}})
        return self._chat(began, model, wish, request)

    async def _chat(self, began: int, model: Model, wish: Want, request: Body) -> AsyncIterator[Body]:
        messages = list(request["messages"])
        if model.system and messages[0].get("role") != "system":
            messages.insert(0, {"role": "system", "content": model.system})
        async with self.scheduler.use(wish) as loaded:
            loads = time.monotonic_ns() - began
            runner = loaded.runner
            messages = await self._kept(runner, model, messages, request)
            if runner.go_rendered:
                chunks = completion(runner, render(model.template, messages), wish.options, request)
            else:
                chunks = chat_completion(runner, messages, wish.options, request)
            async for chunk in chunks:
                message = {"role": "assistant", "content": chunk.pop("content")}
                shown = self._chunk(request, {"message": message}, chunk)
                yield _finished(shown, {}, began, loads) if chunk["done"] else shown

    async def _kept(self, runner: Runner, model: Model, messages: list[Body], request: Body) -> list[Body]:
        """Without the oldest that do not fit; system messages and the last one stay."""
        if request.get("truncate") is False:
            return messages
        last = len(messages) - 1
        for first in range(last + 1):
            kept = [m for m in messages[:first] if m["role"] == "system"] + messages[first:]
            if runner.go_rendered:
                text = render(model.template, kept)
            else:
                status, data = await call(runner.port, "POST", "/apply-template", {"messages": kept})
                text = json.loads(data)["prompt"] if status == 200 else ""
            if first == last or len(await runner.tokenize(text)) <= runner.options["num_ctx"]:
                if first:
                    slog(
                        "DEBUG",
                        "prompt.go:70",
                        "truncating input messages which exceed context length",
                        truncated=len(kept),
                    )
                return kept
        return messages

    # --- embed ---

    async def embed(self, request: Body) -> Body:
        began = time.monotonic_ns()
        model = self.model(request, 'model "{}" not found, try pulling it first')
        given = request.get("input")
        texts = [given] if isinstance(given, str) else list(given or [])
        wish = want(model, request, self.config)
        if wish.keep == 0 and not texts:
            self.scheduler.expire(model.weights)
            return {"model": request["model"], "embeddings": []}
        async with self.scheduler.use(wish) as loaded:
            loads = time.monotonic_ns() - began
            vectors, tokens = [], 0
            for text in filter(None, texts):
                vector, count = await embedding(loaded.runner, str(text), request.get("truncate") is not False)
                vectors.append(_normal(vector[: request["dimensions"]] if request.get("dimensions") else vector))
                tokens += count
        answer = {"model": request["model"], "embeddings": vectors}
        if texts:
            spent = time.monotonic_ns() - began
            answer |= {"total_duration": spent, "load_duration": loads, "prompt_eval_count": tokens}
        return answer


def _finished(shown: Body, context: Body, began: int, loads: int) -> Body:
    """The last chunk, in Ollama's order."""
    counts = {key: shown.pop(key) for key in list(shown) if "eval" in key}
    total = time.monotonic_ns() - began
    return {**shown, **context, "total_duration": total, "load_duration": loads, **counts}


def _normal(vector: list[float]) -> list[float]:
    size = math.sqrt(sum(value * value for value in vector))
    return [value / size for value in vector] if size else vector


async def completion(runner: Runner, prompt: str, options: Body, request: Body) -> AsyncIterator[Body]:
    async with runner.free:
        await runner.ready()
        fitted = await runner.fitted(prompt, options, request.get("truncate") is not False)
        body = runner.sampling(options, request.get("format")) | {"prompt": fitted}
        last, repeats = "", 0
        async for event in runner.stream("/completion", body):
            content = str(event.get("content", ""))
            repeats, last = (repeats + 1 if content.strip() == last else 0), content.strip()
            if repeats > REPEATS:
                slog("DEBUG", "llama_server.go:1640", "prediction aborted, token repeat limit reached")
                return
            if event.get("stop"):
                yield _final(content, "length" if event.get("stop_type") == "limit" else "stop", event["timings"])
            elif content:
                yield {"content": content, "done": False}


async def chat_completion(runner: Runner, messages: list[Body], options: Body, request: Body) -> AsyncIterator[Body]:
    async with runner.free:
        await runner.ready()
        body = runner.sampling(options, None) | {"messages": messages}
        if request.get("format"):
            form = request["format"]
            body["response_format"] = {"type": "json_object"} | ({"schema": form} if isinstance(form, dict) else {})
        async for event in runner.stream("/v1/chat/completions", body):
            for choice in event.get("choices") or []:
                content = str(choice["delta"].get("content") or "")
                if choice.get("finish_reason"):
                    reason = "length" if choice["finish_reason"] == "length" else "stop"
                    yield _final(content, reason, event["timings"])
                elif content:
                    yield {"content": content, "done": False}


def _final(content: str, reason: str, timings: Body) -> Body:
    counts = {
        "prompt_eval_count": timings.get("cache_n", 0) + timings["prompt_n"],
        "prompt_eval_duration": int(timings["prompt_ms"] * 1e6),
        "eval_count": timings["predicted_n"],
        "eval_duration": int(timings["predicted_ms"] * 1e6),
    }
    shown = {key: value for key, value in counts.items() if value}
    return {"content": content, "done": True, "done_reason": reason, **shown}


async def embedding(runner: Runner, text: str, truncate: bool) -> tuple[list[float], int]:
    async with runner.free:
        await runner.ready()
        try:
            status, data = await call(runner.port, "POST", "/v1/embeddings", {"input": text})
        except (OSError, EOFError) as error:
            raise ApiError(400, f"do embedding request: {error}") from None
        if status < 400:
            found = json.loads(data)
            return found["data"][0]["embedding"], found["usage"]["prompt_tokens"]
        said = str(json.loads(data)["error"]["message"])
        if not any(sign in said.lower() for sign in ("too large", "context size", "context length", "physical batch")):
            raise ApiError(status, said)
        if not truncate:
            raise ApiError(400, "the input length exceeds the context length")
        most = min(runner.options["num_ctx"], runner.options["num_batch"]) - 2
        shorter = await runner.detokenize((await runner.tokenize(text))[:most])
    return await embedding(runner, shorter, False)
