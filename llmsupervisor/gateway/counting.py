"""How many tokens a prompt has, asked of the engine that will get it, or of the process behind it that has the model."""

from __future__ import annotations

from llmsupervisor.gateway import fit
from llmsupervisor.gateway.bodies import Body
from llmsupervisor.gateway.call import Call
from llmsupervisor.gateway.fetch import Fetch, FetchError
from llmsupervisor.gateway.view import Count, Target, at_runner


async def count(fetch: Fetch, said: Body, target: Target, asked: Call) -> tuple[int | None, int | None]:
    """Its tokens, or what they are at most where its template cannot be applied. None: it cannot be asked, or does not
    say."""
    how = target.traits.count.get(asked.api)
    if how is None:
        return None, None
    who = at_runner(target) if how.runner else target
    if not who.port:
        return None, None
    question = await said.question(how, asked, target.model)
    try:
        if how.template is None:
            return fit.read_answer(how, await fetch.post(who, how.path, question)), None
        try:
            body = fit.tokens_of(how, await fetch.post(who, how.template, question))
        except FetchError as error:
            if error.status is None or not fit.cut_unseen(target, asked):
                raise
            return None, await _most(fetch, who, how, question)
        return None if body is None else fit.read_answer(how, await fetch.post(who, how.path, body)), None
    except FetchError:
        return None, None


async def _most(fetch: Fetch, who: Target, how: Count, question: bytes) -> int | None:
    """Tokens of a conversation that its template does not take: as it takes one message, or else the texts alone."""
    try:
        asked, more = fit.in_one(question)
        body = fit.tokens_of(how, await fetch.post(who, str(how.template), asked))
    except FetchError as error:
        if error.status is None:
            raise
        body = None
    if body is None:
        body, more = fit.untemplated(how, question)
    tokens = fit.read_answer(how, await fetch.post(who, how.path, body))
    return None if tokens is None else tokens + more
