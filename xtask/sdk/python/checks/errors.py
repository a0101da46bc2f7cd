"""Errors: the class the SDK makes of an answer, and what it says."""

import json
import time

from openai import (
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    UnprocessableEntityError,
)

from . import server
from .items import made, shown
from .proxy import proxy
from .runner import check, done, equal, refused
from .samples import numbered, said


def checked(error, status, kind, code, param=None):
    """Whether an error says all it should."""
    equal((error.status_code, error.type, error.code, error.param), (status, kind, code, param))
    assert error.request_id and error.request_id == error.response.headers["x-request-id"], error.request_id
    equal(set(error.body), {"message", "type", "code", "param"})
    assert error.body["message"], error.body
    equal(error.response.headers["content-type"], "application/json")


@check
async def a_bad_request_names_its_parameter(ai):
    conversation_id = await made(ai)
    error = await refused(BadRequestError, lambda: ai.conversations.items.list(conversation_id, limit=0))
    checked(error, 400, "invalid_request_error", "invalid_value", "limit")
    error = await refused(BadRequestError, lambda: ai.post("/conversations", cast_to=object, body={"items": 7}))
    checked(error, 400, "invalid_request_error", "invalid_value", "items")
    error = await refused(BadRequestError, lambda: ai.post(f"/conversations/{conversation_id}/items", cast_to=object, body={}))
    checked(error, 400, "invalid_request_error", "invalid_value", "items")


@check
async def broken_json_is_a_bad_request(ai):
    status, headers, text = server.request("POST", "/v1/conversations", b'{"items": [')
    equal((status, headers["content-type"]), (400, "application/json"))
    error = json.loads(text)["error"]
    assert error.pop("message"), text
    equal(error, {"type": "invalid_request_error", "code": "invalid_json", "param": None})


@check
async def a_wrong_key_is_an_authentication_error(ai):
    wrong = ai.with_options(api_key="sk-wrong")
    error = await refused(AuthenticationError, lambda: wrong.conversations.create())
    checked(error, 401, "invalid_request_error", "invalid_api_key")
    none = await refused(AuthenticationError, lambda: ai.conversations.create(extra_headers={"Authorization": ""}))
    checked(none, 401, "invalid_request_error", "invalid_api_key")


@check
async def a_key_that_may_only_read_is_denied_the_rest(ai):
    conversation_id = await made(ai, numbered(1))
    reader = ai.with_options(api_key=server.made_key(scopes=["read"]))
    equal((await done(reader.conversations.retrieve(conversation_id))).id, conversation_id)
    [item] = await shown(reader, conversation_id)
    for call in (
        lambda: reader.conversations.create(),
        lambda: reader.conversations.update(conversation_id, metadata={}),
        lambda: reader.conversations.delete(conversation_id),
        lambda: reader.conversations.items.create(conversation_id, items=numbered(1)),
        lambda: reader.conversations.items.delete(item["id"], conversation_id=conversation_id),
    ):
        error = await refused(PermissionDeniedError, call)
        checked(error, 403, "permission_error", "missing_scope")
    equal(await shown(ai, conversation_id), [item])


@check
async def a_key_of_another_project_finds_nothing(ai):
    project = server.native("POST", "/admin/projects", {"name": f"other-{time.time_ns()}"})
    foreign = ai.with_options(api_key=server.made_key(project_id=project["project_id"]))
    conversation_id = await made(ai, numbered(1))
    error = await refused(NotFoundError, lambda: foreign.conversations.retrieve(conversation_id))
    checked(error, 404, "invalid_request_error", None)


@check
async def what_does_not_exist_is_not_found(ai):
    error = await refused(NotFoundError, lambda: ai.conversations.retrieve("conv_" + "0" * 32))
    checked(error, 404, "invalid_request_error", None)
    error = await refused(BadRequestError, lambda: ai.conversations.retrieve("thread_1"))
    checked(error, 400, "invalid_request_error", "invalid_value", "conversation_id")
    for path in ("/nothing", "/conversations/a/b/c/d"):
        error = await refused(NotFoundError, lambda: ai.get(path, cast_to=object))
        checked(error, 404, "invalid_request_error", None)
    conversation_id = await made(ai)
    error = await refused(APIStatusError, lambda: ai.put(f"/conversations/{conversation_id}", cast_to=object, body={}))
    checked(error, 405, "invalid_request_error", "method_not_allowed")


@check
async def a_conflict_is_not_tried_again(ai):
    # Nothing on `/v1` answers 409 but a request in flight; the same SDK speaks to the native API.
    session = server.native("POST", "/sessions", {"session_name": "one"})["session_id"]
    with proxy() as it:
        native = ai.with_options(base_url=it.url.replace("/v1", "/api/v1"), max_retries=2)
        path = f"/sessions/{session}/messages"
        await done(native.post(path, cast_to=object, body={"content": "a", "external_id": "one"}))
        error = await refused(
            ConflictError, lambda: native.post(path, cast_to=object, body={"content": "b", "external_id": "one"})
        )
        equal((error.status_code, error.response.headers["x-should-retry"]), (409, "false"))
        equal(len(it.seen), 2)


@check
async def a_key_that_was_used_for_another_body_is_unprocessable(ai):
    conversation_id = await made(ai)
    key = {"Idempotency-Key": f"check-{time.time_ns()}"}
    await done(ai.conversations.items.create(conversation_id, items=[said("One.")], extra_headers=key))
    error = await refused(
        UnprocessableEntityError,
        lambda: ai.conversations.items.create(conversation_id, items=[said("Two.")], extra_headers=key),
    )
    checked(error, 422, "invalid_request_error", "idempotency_key_reused")
    equal(len(await shown(ai, conversation_id)), 1)


@check
async def a_bad_idempotency_key_is_a_bad_request(ai):
    for key in ("k" * 300, '"unfinished'):
        error = await refused(BadRequestError, lambda: ai.conversations.create(extra_headers={"Idempotency-Key": key}))
        checked(error, 400, "invalid_request_error", "invalid_header")


@check
async def too_many_requests_are_told_when_to_come_back(ai):
    conversation_id = await made(ai)
    limited = ai.with_options(api_key=server.made_key(limits={"writes": "2/hour"}), max_retries=0)
    for _ in range(2):
        await done(limited.conversations.items.create(conversation_id, items=numbered(1)))
    error = await refused(RateLimitError, lambda: limited.conversations.items.create(conversation_id, items=numbered(1)))
    checked(error, 429, "rate_limit_error", "rate_limit_exceeded")
    assert int(error.response.headers["retry-after"]) >= 1, error.response.headers
    equal(len(await shown(limited, conversation_id)), 2)


@check
async def who_waits_as_told_gets_through_and_means_each_message(ai):
    conversation_id, sent = await made(ai), 0
    with proxy() as it:
        limited = ai.with_options(base_url=it.url, api_key=server.made_key(limits={"writes": "1/second"}), max_retries=4)
        # Of three that were refused, at least one comes after an equal one that was stored. A slow machine refuses fewer.
        while len(it.seen) < sent + 3:
            await done(limited.conversations.items.create(conversation_id, items=[said("yes")]))
            sent += 1
    texts = [item["content"][0]["text"] for item in await shown(ai, conversation_id)]
    equal(texts, ["yes"] * sent)
