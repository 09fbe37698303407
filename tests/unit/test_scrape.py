"""What an engine is asked, and how often: its slots only while work is in flight, once after it, and never faster than each 2 s."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

from unit.test_adapters import DEFINITIONS

from llmsupervisor.daemon.scrape import SLOTS_EVERY, Scraper


class Engine:
    """Of one slot; `running` requests."""

    def __init__(self) -> None:
        self.running, self.tokens, self.asked, self.ok = 0, 0, list[str](), True

    async def get_text(self, path: str, ask: float) -> Any:
        self.asked.append(path)
        return SimpleNamespace(
            ok=self.ok, text=f"llamacpp:requests_processing {self.running}\nllamacpp:requests_deferred 0\n"
        )

    async def get_json(self, path: str, ask: float) -> Any:
        self.asked.append(path)
        slot = {
            "id": 0,
            "n_ctx": 100,
            "is_processing": bool(self.running),
            "id_task": 1,
            "n_prompt_tokens": self.tokens,
        }
        return SimpleNamespace(json=json.loads(json.dumps([slot | {"next_token": [{"n_decoded": self.tokens}]}])))


class Clock:
    at = 50.0

    def monotonic(self) -> float:
        return self.at

    def wall(self) -> float:
        return self.at


def test_slots_are_asked_while_work_is_in_flight_and_once_after_it() -> None:
    engine, clock = Engine(), Clock()
    scraper = Scraper(clock)
    process: Any = SimpleNamespace(plan=SimpleNamespace(definition=DEFINITIONS["llama-server"]), engine=engine)

    def look(seconds: float) -> tuple[int, Any]:
        clock.at += seconds
        engine.asked.clear()
        asyncio.run(scraper.look(process, 1.0))
        return engine.asked.count("/slots"), scraper.figures

    assert look(0)[0] == 1, "the first look"
    assert [look(5)[0] for _ in range(3)] == [0, 0, 0], "at rest"
    engine.running, engine.tokens = 1, 10
    asked, figures = look(1)
    assert asked == 1 and (figures.kv_tokens_used, figures.kv_tokens_cached, figures.kv_tokens_capacity) == (10, 0, 100)
    engine.tokens = 30
    asked, figures = look(1)
    assert asked == 0 and figures.kv_tokens_used == 10, f"not within {SLOTS_EVERY:g} s"
    asked, figures = look(1)
    assert asked == 1 and figures.kv_tokens_used == 30 and scraper.rates.tokens_per_s == 20
    engine.running = 0
    asked, figures = look(1)
    assert asked == 0 and (figures.kv_tokens_used, figures.kv_cache_usage) == (0, 0.0)
    asked, figures = look(1)
    assert asked == 1 and (figures.kv_tokens_used, figures.kv_tokens_cached) == (0, 30), "what stays"
    assert [look(5)[0] for _ in range(3)] == [0, 0, 0]
    assert scraper.figures is not None and scraper.figures.kv_tokens_cached == 30
    engine.ok, told = False, scraper.time
    assert look(5)[0] == 0 and scraper.time == told, "the last ones stay, with their time"
