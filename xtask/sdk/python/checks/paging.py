"""Lists: pages, and the iterators over them."""

import asyncio

from openai import BadRequestError

from .items import made
from .runner import check, check_async, check_sync, done, each_page, equal, every, refused
from .samples import numbered, said, text_of


@check
async def every_item_comes_once_whatever_the_page_and_the_order(ai):
    for count, limits in ((0, (None, 1, 100)), (1, (None, 1, 100)), (20, (None, 1)), (21, (None, 1)), (100, (None, 100))):
        conversation_id = await made(ai, numbered(count))
        for order in ("asc", "desc"):
            for limit in limits:
                size = {} if limit is None else {"limit": limit}
                pages = await each_page(ai.conversations.items.list(conversation_id, order=order, **size))
                texts = [text_of(item) for page in pages for item in page.data]
                expected = [f"number {n}" for n in range(count)]
                equal(texts, expected if order == "asc" else expected[::-1])
                size = limit or 20
                equal(len(pages), max(1, -(-count // size)))
                equal([page.has_more for page in pages], [True] * (len(pages) - 1) + [False])
                for page in pages:
                    ids = [item.id for item in page.data]
                    equal(page.last_id, ids[-1] if ids else None)
                    equal(page.model_extra.get("first_id"), ids[0] if ids else None)


@check_sync
async def a_thousand_come_in_ten_pages(ai):
    conversation_id = await made(ai, numbered(1000))
    for order in ("asc", "desc"):
        pages = await each_page(ai.conversations.items.list(conversation_id, order=order, limit=100))
        numbers = [int(text_of(item).split()[1]) for page in pages for item in page.data]
        equal(numbers, list(range(1000)) if order == "asc" else list(range(999, -1, -1)))
        equal(len(pages), 10)


@check_async
async def ten_thousand_are_iterated_over(ai):
    conversation_id = await made(ai)
    for start in range(0, 10_000, 1000):
        await done(ai.conversations.items.create(conversation_id, items=numbered(1000, start)))
    found = await every(ai.conversations.items.list(conversation_id, order="asc", limit=100))
    equal([text_of(item) for item in found] == [f"number {n}" for n in range(10_000)], True)
    equal(len({item.id for item in found}), 10_000)


@check
async def a_page_begins_after_an_item_or_ends_before_one(ai):
    conversation_id = await made(ai, numbered(5))
    ids = [item.id for item in await every(ai.conversations.items.list(conversation_id, order="asc"))]

    async def listed(**query):
        page = await done(ai.conversations.items.list(conversation_id, **query))
        return [ids.index(item.id) for item in page.data], page.has_more

    equal(await listed(order="asc", after=ids[1]), ([2, 3, 4], False))
    equal(await listed(order="desc", after=ids[1]), ([0], False))
    equal(await listed(order="asc", after=ids[1], limit=2), ([2, 3], True))
    equal(await listed(order="asc", after=ids[4]), ([], False))
    equal(await listed(order="asc", extra_query={"before": ids[2]}), ([0, 1], False))
    equal(await listed(order="desc", extra_query={"before": ids[2]}), ([4, 3], False))


@check
async def what_no_page_can_be_is_refused(ai):
    conversation_id = await made(ai, numbered(2))
    for query, param in (
        ({"limit": 0}, "limit"),
        ({"limit": 101}, "limit"),
        ({"limit": -1}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"order": "random"}, "order"),
        ({"after": "msg_" + "0" * 32}, "after"),
        ({"after": "nonsense/"}, "after"),
    ):
        error = await refused(BadRequestError, lambda: ai.conversations.items.list(conversation_id, **query))
        equal((error.type, error.code, error.param), ("invalid_request_error", "invalid_value", param))


@check
async def what_is_added_meanwhile_disturbs_no_iterator(ai):
    conversation_id = await made(ai, numbered(30))
    first = await done(ai.conversations.items.list(conversation_id, order="desc", limit=10))
    await done(ai.conversations.items.create(conversation_id, items=numbered(5, 30)))
    await done(ai.conversations.items.delete(first.data[0].id, conversation_id=conversation_id))
    rest = await every(ai.conversations.items.list(conversation_id, order="desc", limit=10, after=first.last_id))
    numbers = [text_of(item) for item in [*first.data, *rest]]
    equal(numbers, [f"number {n}" for n in range(29, -1, -1)])


@check_async
async def those_who_append_at_once_lose_nothing(ai):
    conversation_id = await made(ai)

    async def append(name):
        for n in range(10):
            await ai.conversations.items.create(conversation_id, items=[said(f"{name} {n} {part}") for part in range(3)])

    await asyncio.gather(*(append(name) for name in "abcdefgh"))
    texts = [text_of(item) for item in await every(ai.conversations.items.list(conversation_id, order="asc", limit=100))]
    equal(len(texts), 8 * 10 * 3)
    for name in "abcdefgh":
        equal([text for text in texts if text[0] == name], [f"{name} {n} {part}" for n in range(10) for part in range(3)])
    # A request's items stand together.
    equal(all(texts[n][:-1] == texts[n + 1][:-1] == texts[n + 2][:-1] for n in range(0, len(texts), 3)), True)
