"""One store, two surfaces: what one says, the other shows."""

import time

from openai import NotFoundError

from . import server
from .items import made, shown
from .runner import check, done, equal, every, refused
from .samples import TURN, numbered, said, text_of


@check
async def a_conversation_is_a_session(ai):
    user = f"user-{time.time_ns()}"
    conversation = await done(
        ai.conversations.create(metadata={"app": "travel"}, items=[said("Hello.")], extra_headers={"X-User-Id": user})
    )
    path = f"/sessions/{server.native_id(conversation.id)}"
    session = server.native("GET", path)
    equal((session["user_id"], session["metadata"], session["message_count"]), (user, {"app": "travel"}, 1))
    equal((session["session_name"], session["is_favorite"]), ("", False))
    changed = server.native("PATCH", path, {"session_name": "Lisbon", "is_favorite": True, "metadata": {"app": "maps"}})
    equal((changed["session_name"], changed["is_favorite"]), ("Lisbon", True))
    equal((await done(ai.conversations.retrieve(conversation.id))).metadata, {"app": "maps"})
    await done(ai.conversations.update(conversation.id, metadata={}))
    session = server.native("GET", path)
    equal((session["session_name"], session["is_favorite"], session["user_id"], session["metadata"]), ("Lisbon", True, user, {}))
    [listed] = server.native("GET", f"/sessions?user_id={user}")
    equal(listed["session_id"], session["session_id"])
    server.native("DELETE", path)
    await refused(NotFoundError, lambda: ai.conversations.retrieve(conversation.id))


@check
async def a_session_is_a_conversation(ai):
    user = f"user-{time.time_ns()}"
    session = server.native("POST", "/sessions", {"session_name": "Trip", "user_id": user, "metadata": {"n": "1"}})
    server.native(
        "POST",
        f"/sessions/{session['session_id']}/messages",
        [
            {"content": "What should I see?"},
            {"role": "assistant", "content": "Begin in Alfama.", "metadata": {"model": "m"}, "token_count": 5},
            {"role": "system", "content": "Be brief."},
        ],
    )
    listed = await done(ai.get("/conversations", cast_to=object, options={"headers": {"X-User-Id": user}}))
    [found] = listed["data"]
    conversation_id = "conv_" + session["session_id"].replace("-", "")
    equal((found["id"], found["metadata"]), (conversation_id, {"n": "1"}))
    items = await shown(ai, conversation_id)
    output = {"type": "output_text", "text": "Begin in Alfama.", "annotations": [], "logprobs": []}
    messages = server.native("GET", f"/sessions/{session['session_id']}/messages?order=asc")
    for item, message, role, part in zip(
        items,
        messages,
        ("user", "assistant", "system"),
        ({"type": "input_text", "text": "What should I see?"}, output, {"type": "input_text", "text": "Be brief."}),
        strict=True,
    ):
        identifier = "msg_" + message["message_id"].replace("-", "")
        equal(item, {"id": identifier, "type": "message", "status": "completed", "role": role, "content": [part]})
    await done(ai.conversations.items.delete(items[0]["id"], conversation_id=conversation_id))
    equal(len(server.native("GET", f"/sessions/{session['session_id']}/messages")), 2)


@check
async def items_are_messages_with_their_kind_text_and_payload(ai):
    conversation_id = await made(ai, TURN)
    messages = server.native("GET", f"/sessions/{server.native_id(conversation_id)}/messages?order=asc")
    equal([message["kind"] for message in messages], ["message", "reasoning", "function_call", "function_call_output", "message"])
    equal([message["role"] for message in messages], ["user", "assistant", "assistant", "tool", "assistant"])
    equal([message["external_id"] for message in messages], [item.get("id") for item in TURN])
    equal([message["payload"] for message in messages], TURN)
    equal(messages[0]["content"], "What is the weather in Lisbon?")
    assert "a tool has to be called" in messages[1]["content"], messages[1]["content"]
    assert "Lisbon" in messages[2]["content"], messages[2]["content"]
    assert "clear" in messages[3]["content"], messages[3]["content"]
    assert "Clear, 21 degrees." in messages[4]["content"], messages[4]["content"]
    assert "gAAAAABo" not in messages[1]["content"], messages[1]["content"]


@check
async def what_an_item_says_is_found(ai):
    word = f"zirkumflex{time.time_ns()}"
    conversation_id = await made(ai, [said(f"Where is the {word}?")])
    [hit] = server.native("POST", "/search", {"query": word})["hits"]
    equal(hit["session_id"], server.native_id(conversation_id))


@check
async def a_message_that_was_changed_natively_is_shown_changed(ai):
    conversation_id = await made(ai)
    path = f"/sessions/{server.native_id(conversation_id)}/messages"
    message = server.native("POST", path, {"content": "before"})
    server.native("PATCH", f"/messages/{message['message_id']}", {"content": "after"})
    [item] = await every(ai.conversations.items.list(conversation_id))
    equal(text_of(item), "after")


@check
async def a_bound_key_speaks_for_its_user(ai):
    user = f"user-{time.time_ns()}"
    bound = ai.with_options(api_key=server.made_key(user_id=user))
    conversation = await done(bound.conversations.create(items=numbered(1)))
    equal(server.native("GET", f"/sessions/{server.native_id(conversation.id)}")["user_id"], user)
    foreign = await done(ai.conversations.create(extra_headers={"X-User-Id": "somebody else"}))
    await refused(NotFoundError, lambda: bound.conversations.retrieve(foreign.id))


@check
async def a_users_token_speaks_for_its_user(ai):
    user = f"user-{time.time_ns()}"
    token = server.native("POST", "/admin/tokens", {"user_id": user})["token"]
    holder = ai.with_options(api_key=token)
    conversation = await done(holder.conversations.create(items=numbered(1)))
    equal(server.native("GET", f"/sessions/{server.native_id(conversation.id)}")["user_id"], user)
    listed = await done(holder.get("/conversations", cast_to=object))
    equal([one["id"] for one in listed["data"]], [conversation.id])


@check
async def the_user_has_a_header_of_another_name_too(ai):
    user = f"user-{time.time_ns()}"
    conversation = await done(ai.conversations.create(extra_headers={"x-ms-user-isolation-key": user}))
    equal(server.native("GET", f"/sessions/{server.native_id(conversation.id)}")["user_id"], user)
