"""How many tokens a prompt has, asked of the engine that will get it, or of the process behind it that has the model."""

from __future__ import annotations

from llmsupervisor.gateway import fit
from llmsupervisor.gateway.bodies import Body
from llmsupervisor.gateway.call import Call
from llmsupervisor.gateway.fetch import Fetch, FetchError
from llmsupervisor.gateway.view import Target, at_runner


async def count(fetch: Fetch, said: Body, target: Target, asked: Call) -> int | None:
    """None: it cannot be asked, or does not say."""
    how = target.traits.count.get(asked.api)
    if how is None:
        return None
    who = at_runner(target) if how.runner else target
    if not who.port:
        return None
    body: bytes | None = await said.question(how, asked, target.model)
    try:
        if how.template is not None and body is not None:
            body = fit.tokens_of(how, await fetch.post(who, how.template, body))
        return None if body is None else fit.read_answer(how, await fetch.post(who, how.path, body))
    except FetchError:
        return None
