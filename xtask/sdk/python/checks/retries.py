"""Connections that are cut: what the SDK tries again by itself is stored once."""

import asyncio
import json
import uuid

from openai import APIConnectionError, APIStatusError, NotFoundError, PermissionDeniedError

from . import server
from .items import made, shown
from .proxy import LOSE_ANSWER, LOSE_HALF, LOSE_REQUEST, PASS, proxy
from .runner import at_once, check, check_async, done, equal, every, refused
from .samples import ANSWER, TURN, numbered, said, text_of

CUTS = [[LOSE_REQUEST], [LOSE_ANSWER], [LOSE_HALF], [LOSE_ANSWER, LOSE_REQUEST], [LOSE_ANSWER, LOSE_ANSWER]]


def fresh_key():
    return f"check-{uuid.uuid4()}"


@check
async def items_are_stored_once_without_a_key(ai):
    async def stored_once(cuts):
        conversation_id = await made(ai)
        with proxy(*cuts) as it:
            stored = await done(ai.with_options(base_url=it.url).conversations.items.create(conversation_id, items=TURN))
            equal([count for _, count, _ in it.seen], [str(n) for n in range(len(cuts) + 1)])
        equal([item.model_dump(exclude_unset=True) for item in stored.data], await shown(ai, conversation_id))
        equal(len(stored.data), len(TURN))

    await at_once(ai, [stored_once(cuts) for cuts in CUTS])


@check
async def what_is_said_twice_is_stored_twice(ai):
    conversation_id = await made(ai)
    with proxy(PASS, LOSE_ANSWER) as it:
        client = ai.with_options(base_url=it.url)
        first = await done(client.conversations.items.create(conversation_id, items=numbered(1)))
        second = await done(client.conversations.items.create(conversation_id, items=numbered(1)))
    assert first.last_id != second.last_id
    found = await every(ai.conversations.items.list(conversation_id, order="asc"))
    equal([item.id for item in found], [first.last_id, second.last_id])


@check
async def what_is_said_again_after_a_deletion_is_stored(ai):
    conversation_id = await made(ai)
    with proxy(PASS, PASS, LOSE_REQUEST) as it:
        client = ai.with_options(base_url=it.url)
        first = await done(client.conversations.items.create(conversation_id, items=[said("yes")]))
        await done(client.conversations.items.delete(first.last_id, conversation_id=conversation_id))
        second = await done(client.conversations.items.create(conversation_id, items=[said("yes")]))
    equal([item["id"] for item in await shown(ai, conversation_id)], [second.last_id])
    assert first.last_id != second.last_id


@check
async def a_refusal_says_nothing_of_the_try_before_it(ai):
    conversation_id = await made(ai)
    # Each write is refused that comes within three seconds of the last one.
    key = server.made_key(limits={"writes": "20/minute burst 1"})
    with proxy(PASS, PASS, LOSE_ANSWER) as it:
        limited = ai.with_options(base_url=it.url, api_key=key, max_retries=4)
        for _ in range(2):
            await done(limited.conversations.items.create(conversation_id, items=[said("yes")]))
        # The second is refused, stored without an answer, refused, and answered.
        equal([count for _, count, _ in it.seen], ["0", "0", "1", "2", "3"])
    equal([item["content"][0]["text"] for item in await shown(ai, conversation_id)], ["yes", "yes"])


@check
async def what_fills_a_project_is_known_again(ai):
    project = server.native("POST", "/admin/projects", {"name": fresh_key(), "quotas": {"project_bytes": 20_000}})
    client = ai.with_options(api_key=server.made_key(project_id=project["project_id"]))
    conversation_id, items = await made(client), [said("x" * 30_000)]
    with proxy(LOSE_ANSWER) as it:
        stored = await done(client.with_options(base_url=it.url).conversations.items.create(conversation_id, items=items))
    error = await refused(
        PermissionDeniedError, lambda: client.conversations.items.create(conversation_id, items=numbered(1))
    )
    equal((error.type, error.code), ("permission_error", "quota_exceeded"))
    equal([item.model_dump(exclude_unset=True) for item in stored.data], await shown(client, conversation_id))


@check
async def forty_five_items_are_stored_once(ai):
    conversation_id = await made(ai)
    with proxy(LOSE_ANSWER, LOSE_HALF) as it:
        await done(ai.with_options(base_url=it.url).conversations.items.create(conversation_id, items=numbered(45)))
    found = await every(ai.conversations.items.list(conversation_id, order="asc"))
    equal([text_of(item) for item in found], [f"number {n}" for n in range(45)])


@check
async def items_are_stored_once_with_a_key(ai):
    async def stored_once(cuts):
        conversation_id, key = await made(ai), {"Idempotency-Key": fresh_key()}
        with proxy(*cuts) as it:
            client = ai.with_options(base_url=it.url, default_headers=key)
            raw = await done(client.conversations.items.with_raw_response.create(conversation_id, items=numbered(3)))
        was_done_before = LOSE_ANSWER in cuts or LOSE_HALF in cuts
        equal(raw.headers.get("idempotent-replayed"), "true" if was_done_before else None)
        equal([item.model_dump(exclude_unset=True) for item in raw.parse().data], await shown(ai, conversation_id))

    await at_once(ai, [stored_once(cuts) for cuts in CUTS])


@check
async def a_conversation_is_made_once_with_a_key(ai):
    async def made_once(cuts):
        key, user = {"Idempotency-Key": fresh_key()}, {"X-User-Id": fresh_key()}
        with proxy(*cuts) as it:
            client = ai.with_options(base_url=it.url, default_headers=user)
            one = await done(
                client.conversations.create(metadata={"a": "1"}, items=numbered(2), extra_headers=key)
            )
        listed = await done(ai.get("/conversations", cast_to=object, options={"headers": user}))
        equal(listed["data"], [one.to_dict()])
        equal(len(await shown(ai, one.id)), 2)

    await at_once(ai, [made_once(cuts) for cuts in CUTS])


@check
async def a_conversation_without_a_key_is_never_shared(ai):
    with proxy(LOSE_ANSWER) as it:
        user = {"X-User-Id": fresh_key()}
        client = ai.with_options(base_url=it.url, default_headers=user)
        one = await done(client.conversations.create())
        other = await done(client.conversations.create())
    assert one.id != other.id
    listed = await done(ai.get("/conversations", cast_to=object, options={"headers": user}))
    equal(len(listed["data"]), 3)


@check
async def a_replay_is_the_answer_byte_for_byte(ai):
    key = {"Idempotency-Key": fresh_key()}
    made_twice = [
        await done(ai.conversations.with_raw_response.create(metadata={"a": "1"}, items=numbered(2), extra_headers=key))
        for _ in range(2)
    ]
    conversation_id = made_twice[0].parse().id
    key = {"Idempotency-Key": fresh_key()}
    stored_twice = [
        await done(
            ai.conversations.items.with_raw_response.create(conversation_id, items=TURN, extra_headers=key)
        )
        for _ in range(2)
    ]
    for first, second in (made_twice, stored_twice):
        equal(second.http_response.content, first.http_response.content)
        equal((first.status_code, second.status_code), (200, 200))
        equal((first.headers.get("idempotent-replayed"), second.headers["idempotent-replayed"]), (None, "true"))
        assert first.request_id != second.request_id
    equal(len(await shown(ai, conversation_id)), 2 + len(TURN))
    quoted = {"Idempotency-Key": json.dumps(key["Idempotency-Key"])}
    third = await done(ai.conversations.items.with_raw_response.create(conversation_id, items=TURN, extra_headers=quoted))
    equal((third.http_response.content, third.headers["idempotent-replayed"]), (stored_twice[0].http_response.content, "true"))


@check
async def a_replay_is_the_answer_even_if_what_it_copied_has_changed(ai):
    source, other = await made(ai, numbered(1)), await made(ai)
    [item] = await shown(ai, source)
    keys = [{"Idempotency-Key": fresh_key()} for _ in range(2)]

    async def copied():
        items = [{"type": "item_reference", "id": item["id"]}, said("New.")]
        one = await done(ai.conversations.with_raw_response.create(items=items, extra_headers=keys[0]))
        two = await done(ai.conversations.items.with_raw_response.create(other, items=items, extra_headers=keys[1]))
        return [one.http_response.content, two.http_response.content]

    first = await copied()
    server.native("PATCH", f"/messages/{server.native_id(item['id'])}", {"content": "changed"})
    equal(await copied(), first)
    await done(ai.conversations.items.delete(item["id"], conversation_id=source))
    equal(await copied(), first)
    equal(len(await shown(ai, other)), 2)


@check
async def a_replay_shows_what_was_there_before_as_it_stands(ai):
    conversation_id, key = await made(ai, [ANSWER]), {"Idempotency-Key": fresh_key()}
    # The same item, written otherwise.
    items = [dict(reversed(ANSWER.items())), said("New.")]
    answers = [
        await done(ai.conversations.items.with_raw_response.create(conversation_id, items=items, extra_headers=key))
        for _ in range(2)
    ]
    equal(answers[1].headers.get("idempotent-replayed"), "true")
    equal(answers[1].http_response.content, answers[0].http_response.content)
    equal([item.model_dump(exclude_unset=True) for item in answers[1].parse().data], await shown(ai, conversation_id))


@check
async def a_deletion_that_was_done_is_not_found_when_tried_again(ai):
    conversation_id = await made(ai)
    with proxy(LOSE_ANSWER) as it:
        client = ai.with_options(base_url=it.url)
        await refused(NotFoundError, lambda: client.conversations.delete(conversation_id))


@check
async def reads_and_updates_are_simply_done_again(ai):
    conversation_id = await made(ai, numbered(3))
    with proxy(LOSE_ANSWER, PASS, LOSE_HALF, PASS, LOSE_REQUEST) as it:
        client = ai.with_options(base_url=it.url)
        equal((await done(client.conversations.update(conversation_id, metadata={"a": "1"}))).metadata, {"a": "1"})
        equal((await done(client.conversations.retrieve(conversation_id))).metadata, {"a": "1"})
        equal(len(await every(client.conversations.items.list(conversation_id))), 3)
        equal(len(it.seen), 6)


@check
async def who_gives_up_and_comes_back_with_the_key_finds_it_done(ai):
    conversation_id, key = await made(ai), {"Idempotency-Key": fresh_key()}
    with proxy(LOSE_ANSWER) as it:
        client = ai.with_options(base_url=it.url, max_retries=0)
        await refused(
            APIConnectionError,
            lambda: client.conversations.items.create(conversation_id, items=numbered(2), extra_headers=key),
        )
        again = await done(client.conversations.items.create(conversation_id, items=numbered(2), extra_headers=key))
    equal([item.model_dump(exclude_unset=True) for item in again.data], await shown(ai, conversation_id))


@check
async def what_was_deleted_is_not_made_again_by_its_key(ai):
    key = {"Idempotency-Key": fresh_key()}
    one = await done(ai.conversations.create(extra_headers=key))
    await done(ai.conversations.delete(one.id))
    error = await refused(APIStatusError, lambda: ai.conversations.create(extra_headers=key))
    equal((error.status_code, error.code), (410, "gone"))


@check_async
async def who_asks_at_once_with_one_key_gets_one_answer(ai):
    key = {"Idempotency-Key": fresh_key()}
    made_at_once = await asyncio.gather(
        *(ai.conversations.create(items=numbered(2), extra_headers=key) for _ in range(8))
    )
    [conversation_id] = {one.id for one in made_at_once}
    key = {"Idempotency-Key": fresh_key()}
    stored_at_once = await asyncio.gather(
        *(ai.conversations.items.create(conversation_id, items=numbered(3, 2), extra_headers=key) for _ in range(8))
    )
    equal(len({stored.last_id for stored in stored_at_once}), 1)
    equal(len(await shown(ai, conversation_id)), 5)
