"""Conversations: made, read, changed, deleted, listed."""

import re
import time

from openai import BadRequestError, NotFoundError
from openai.types.conversations import Conversation, ConversationDeletedResource

from . import server
from .samples import numbered, said, text_of
from .runner import check, done, equal, every, refused

ABSENT = "conv_" + "0" * 32


@check
async def one_is_made_without_arguments(ai):
    made = await done(ai.conversations.create())
    assert isinstance(made, Conversation)
    assert re.fullmatch("conv_[0-9a-f]{32}", made.id), made.id
    equal((made.object, made.metadata, type(made.created_at)), ("conversation", {}, int))
    assert abs(made.created_at - time.time()) < 60, made.created_at
    equal(set(made.model_fields_set), {"id", "object", "metadata", "created_at"})


@check
async def two_made_alike_are_two(ai):
    assert (await done(ai.conversations.create())).id != (await done(ai.conversations.create())).id


@check
async def one_is_made_with_metadata_and_items(ai):
    items = [said("Hello."), said("Good day.", "assistant")]
    made = await done(ai.conversations.create(metadata={"topic": "demo", "clé": "valeur"}, items=items))
    equal(made.metadata, {"topic": "demo", "clé": "valeur"})
    found = await every(ai.conversations.items.list(made.id, order="asc"))
    equal([(item.role, text_of(item)) for item in found], [("user", "Hello."), ("assistant", "Good day.")])


@check
async def nulls_and_empty_lists_are_as_good_as_nothing(ai):
    for arguments in ({"metadata": None, "items": None}, {"metadata": {}, "items": []}):
        made = await done(ai.conversations.create(**arguments))
        equal(made.metadata, {})
        equal(await every(ai.conversations.items.list(made.id)), [])


@check
async def one_is_read_as_it_was_made(ai):
    made = await done(ai.conversations.create(metadata={"a": "1"}))
    equal(await done(ai.conversations.retrieve(made.id)), made)


@check
async def an_update_replaces_the_metadata_and_nothing_else(ai):
    made = await done(ai.conversations.create(metadata={"a": "1", "b": "2"}, items=numbered(2)))
    changed = await done(ai.conversations.update(made.id, metadata={"b": "3", "c": "4"}))
    equal(changed, made.model_copy(update={"metadata": {"b": "3", "c": "4"}}))
    equal(await done(ai.conversations.retrieve(made.id)), changed)
    equal(len(await every(ai.conversations.items.list(made.id))), 2)
    equal((await done(ai.conversations.update(made.id, metadata=None))).metadata, {})
    equal((await done(ai.conversations.retrieve(made.id))).metadata, {})


@check
async def a_deleted_one_is_gone_with_its_items(ai):
    made = await done(ai.conversations.create(items=[said("Forget me.")]))
    [item] = await every(ai.conversations.items.list(made.id))
    deleted = await done(ai.conversations.delete(made.id))
    assert isinstance(deleted, ConversationDeletedResource)
    equal(deleted.to_dict(), {"id": made.id, "object": "conversation.deleted", "deleted": True})
    for call in (
        lambda: ai.conversations.retrieve(made.id),
        lambda: ai.conversations.update(made.id, metadata={}),
        lambda: ai.conversations.delete(made.id),
        lambda: ai.conversations.items.list(made.id),
        lambda: ai.conversations.items.create(made.id, items=[said("Too late.")]),
        lambda: ai.conversations.items.retrieve(item.id, conversation_id=made.id),
        lambda: ai.conversations.items.delete(item.id, conversation_id=made.id),
    ):
        error = await refused(NotFoundError, call)
        equal((error.status_code, error.type, error.code, error.param), (404, "invalid_request_error", None, None))
        assert error.message and error.request_id, error


@check
async def an_absent_one_answers_like_a_deleted_one(ai):
    made = await done(ai.conversations.create())
    await done(ai.conversations.delete(made.id))
    deleted = await refused(NotFoundError, lambda: ai.conversations.retrieve(made.id))
    absent = await refused(NotFoundError, lambda: ai.conversations.retrieve(ABSENT))
    equal(absent.body, {**deleted.body, "message": deleted.body["message"].replace(made.id, ABSENT)})


@check
async def metadata_at_its_limits_is_taken(ai):
    metadata = {f"{n:02}" + "é" * 62: "🚋" * 512 for n in range(16)}
    made = await done(ai.conversations.create(metadata=metadata))
    equal((await done(ai.conversations.retrieve(made.id))).metadata, metadata)
    strange = {"": "", "a.b[c]/d~e": 'quotes " and \\ and \u2028', "emoji 👩‍👩‍👧": "עברית"}
    equal((await done(ai.conversations.update(made.id, metadata=strange))).metadata, strange)


@check
async def metadata_past_its_limits_is_refused(ai):
    made = await done(ai.conversations.create(metadata={"a": "1"}))
    for metadata, param in (
        ({str(n): "" for n in range(17)}, "metadata"),
        ({"k" * 65: "v"}, "metadata." + "k" * 65),
        ({"k": "v" * 513}, "metadata.k"),
        ({"k": 1}, "metadata.k"),
        ({"k": None}, "metadata.k"),
        ({"k": ["v"]}, "metadata.k"),
        ("text", "metadata"),
        ([], "metadata"),
    ):
        for call in (
            lambda: ai.conversations.create(metadata=metadata),
            lambda: ai.conversations.update(made.id, metadata=metadata),
        ):
            error = await refused(BadRequestError, call)
            equal((error.type, error.code, error.param), ("invalid_request_error", "invalid_value", param))
    equal((await done(ai.conversations.retrieve(made.id))).metadata, {"a": "1"})


@check
async def an_update_must_say_something(ai):
    made = await done(ai.conversations.create())
    error = await refused(BadRequestError, lambda: ai.post(f"/conversations/{made.id}", cast_to=object, body={}))
    equal((error.code, error.param), ("invalid_value", "metadata"))


@check
async def a_raw_answer_shows_its_headers(ai):
    raw = await done(ai.conversations.with_raw_response.create())
    equal((raw.status_code, raw.headers["content-type"]), (200, "application/json"))
    assert raw.request_id and raw.request_id == raw.headers["x-request-id"]
    assert (await done(ai.conversations.retrieve(raw.parse().id)))._request_id


@check
async def a_body_is_not_needed(ai):
    status, _, text = server.request("POST", "/v1/conversations", b"", {"Content-Length": "0"})
    equal((status, '"object":"conversation"' in text.replace(" ", "")), (200, True))


@check
async def those_of_a_user_are_listed(ai):
    user = {"X-User-Id": f"lister-{time.time_ns()}"}
    made = [
        await done(ai.conversations.create(metadata={"parity": str(n % 2)}, extra_headers=user)) for n in range(5)
    ]
    newest_first = [conversation.id for conversation in reversed(made)]

    async def listed(**params):
        return await done(ai.get("/conversations", cast_to=object, options={"params": params, "headers": user}))

    whole = await listed()
    equal(whole["data"], [conversation.to_dict() for conversation in reversed(made)])
    equal(
        {key: value for key, value in whole.items() if key != "data"},
        {"object": "list", "first_id": newest_first[0], "last_id": newest_first[-1], "has_more": False},
    )
    first = await listed(limit=2)
    equal(([one["id"] for one in first["data"]], first["has_more"]), (newest_first[:2], True))
    rest = await listed(limit=3, after=first["last_id"])
    equal(([one["id"] for one in rest["data"]], rest["has_more"]), (newest_first[2:], False))
    oldest_first = await listed(order="asc", limit=100)
    equal([one["id"] for one in oldest_first["data"]], newest_first[::-1])
    odd = await listed(**{"metadata[parity]": "1"})
    equal([one["id"] for one in odd["data"]], [newest_first[1], newest_first[3]])
    before = await listed(before=newest_first[2])
    equal([one["id"] for one in before["data"]], newest_first[:2])


@check
async def another_user_finds_nothing(ai):
    made = await done(ai.conversations.create(items=[said("Mine.")], extra_headers={"X-User-Id": "ada"}))
    other = {"X-User-Id": "bob"}
    await refused(NotFoundError, lambda: ai.conversations.retrieve(made.id, extra_headers=other))
    await refused(NotFoundError, lambda: ai.conversations.items.list(made.id, extra_headers=other))
    await refused(NotFoundError, lambda: ai.conversations.delete(made.id, extra_headers=other))
    equal((await done(ai.conversations.retrieve(made.id, extra_headers={"X-User-Id": "ada"}))).id, made.id)
