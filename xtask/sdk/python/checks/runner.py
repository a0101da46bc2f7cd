"""Runs every check, with the synchronous client and with the asynchronous one, and prints a line for each."""

import asyncio
import inspect
import time
import traceback

from openai import AsyncOpenAI

from . import server

CHECKS = []


def check(function):
    """A check that holds for both clients."""
    CHECKS.append((function, ("sync", "async")))
    return function


def check_sync(function):
    """A check that would say nothing new of the asynchronous client."""
    CHECKS.append((function, ("sync",)))
    return function


def check_async(function):
    """A check of what exists for the asynchronous client alone, or would say nothing new of the other."""
    CHECKS.append((function, ("async",)))
    return function


async def done(answer):
    """The answer of either client."""
    return await answer if inspect.isawaitable(answer) else answer


async def at_once(ai, calls):
    """Waits for all of these together, whichever client they use."""
    if not isinstance(ai, AsyncOpenAI):
        calls = [asyncio.to_thread(asyncio.run, call) for call in calls]
    await asyncio.gather(*calls)


async def every(pages):
    """All that the iterator of either client gives."""
    if hasattr(pages, "__aiter__"):
        return [item async for item in pages]
    return list(pages)


async def each_page(first):
    """All pages from the first one on."""
    pages = (await done(first)).iter_pages()
    return [page async for page in pages] if hasattr(pages, "__aiter__") else list(pages)


async def refused(kind, call):
    """The error that a call ends with, which is exactly of this class."""
    try:
        answer = await done(call())
    except Exception as error:
        assert type(error) is kind, f"{kind.__name__} was expected, not {error!r}"
        return error
    raise AssertionError(f"{kind.__name__} was expected, not the answer {answer!r:.500}")


def equal(found, expected):
    """Says what differs, which `assert` does not."""
    assert found == expected, f"\n   found {shortened(found)}\nexpected {shortened(expected)}"


def shortened(value):
    text = repr(value)
    return text if len(text) < 4000 else f"{text[:2000]} … {text[-2000:]} ({len(text)} characters)"


async def run_all():
    """Runs all, those of each client in a thread of their own; returns how many passed and how many failed."""
    lanes = await asyncio.gather(*(asyncio.to_thread(asyncio.run, run_lane(kind)) for kind in ("sync", "async")))
    outcomes = [is_ok for lane in lanes for is_ok in lane]
    return outcomes.count(True), outcomes.count(False)


async def run_lane(kind):
    client = server.sync_client() if kind == "sync" else server.async_client()
    outcomes = [await is_ok(function, kind, client) for function, kinds in CHECKS if kind in kinds]
    await done(client.close())
    return outcomes


async def is_ok(function, kind, client):
    """Runs one check and says how it went."""
    name = f"{kind:5}  {function.__module__.rpartition('.')[2]}: {function.__name__.replace('_', ' ')}"
    started = time.monotonic()
    try:
        await function(client)
    except Exception:
        print(f"FAILED  {name}\n{traceback.format_exc()}", flush=True)
        return False
    print(f"    ok  {name} ({time.monotonic() - started:.2f} s)", flush=True)
    return True
