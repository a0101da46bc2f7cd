"""Items: stored, shown, read, deleted."""

import json
import time

from openai import BadRequestError, NotFoundError
from openai.types.conversations import Conversation, ConversationItemList, Message

from . import server
from .samples import ANSWER, KINDS, REASONING, TURN, numbered, said, text_of
from .runner import check, done, equal, every, refused

INCLUDABLE = [
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]


async def made(ai, items=()):
    """The id of a new conversation with these items."""
    conversation = await done(ai.conversations.create())
    if items:
        await done(ai.conversations.items.create(conversation.id, items=items))
    return conversation.id


async def shown(ai, conversation_id, order="asc"):
    """All items, as a client that feeds them back has them."""
    items = await every(ai.conversations.items.list(conversation_id, order=order, limit=100))
    return [item.model_dump(exclude_unset=True) for item in items]


def without_minted_ids(items, sent):
    """The items without those ids that were not sent."""
    return [
        {key: value for key, value in item.items() if key != "id" or "id" in brought}
        for item, brought in zip(items, sent, strict=True)
    ]


@check
async def they_come_back_in_the_order_of_the_request(ai):
    conversation_id = await made(ai)
    stored = await done(ai.conversations.items.create(conversation_id, items=numbered(20)))
    assert isinstance(stored, ConversationItemList)
    equal([text_of(item) for item in stored.data], [f"number {n}" for n in range(20)])
    equal(
        (stored.object, stored.has_more, stored.first_id, stored.last_id),
        ("list", False, stored.data[0].id, stored.data[-1].id),
    )
    equal(await every(ai.conversations.items.list(conversation_id, order="asc")), stored.data)


@check
async def the_newest_come_first_unless_asked_otherwise(ai):
    conversation_id = await made(ai, numbered(3))
    found = await every(ai.conversations.items.list(conversation_id))
    equal([text_of(item) for item in found], ["number 2", "number 1", "number 0"])


@check
async def a_text_becomes_the_parts_of_its_role(ai):
    said_by = ["user", "assistant", "system", "developer"]
    conversation_id = await made(ai, [said(role, role) for role in said_by])
    for item, role in zip(await shown(ai, conversation_id), said_by, strict=True):
        part = {"type": "input_text", "text": role}
        if role == "assistant":
            part = {"type": "output_text", "text": role, "annotations": [], "logprobs": []}
        identifier = item.pop("id")
        assert identifier.startswith("msg_"), identifier
        equal(item, {"type": "message", "status": "completed", "role": role, "content": [part]})


@check
async def one_is_read_by_its_id(ai):
    conversation_id = await made(ai, TURN)
    stored = await every(ai.conversations.items.list(conversation_id))
    equal(len(stored), len(TURN))
    for item in stored:
        found = await done(ai.conversations.items.retrieve(item.id, conversation_id=conversation_id))
        equal((type(found), found.to_dict()), (type(item), item.to_dict()))


@check
async def a_deleted_one_is_gone_and_its_conversation_is_the_answer(ai):
    conversation_id = await made(ai, numbered(3))
    middle = (await every(ai.conversations.items.list(conversation_id)))[1]
    answer = await done(ai.conversations.items.delete(middle.id, conversation_id=conversation_id))
    assert isinstance(answer, Conversation)
    equal(answer, await done(ai.conversations.retrieve(conversation_id)))
    await refused(NotFoundError, lambda: ai.conversations.items.delete(middle.id, conversation_id=conversation_id))
    await refused(NotFoundError, lambda: ai.conversations.items.retrieve(middle.id, conversation_id=conversation_id))
    found = await every(ai.conversations.items.list(conversation_id))
    equal([text_of(item) for item in found], ["number 2", "number 0"])


@check
async def one_of_another_conversation_is_not_found(ai):
    one, other = await made(ai, numbered(1)), await made(ai)
    [item] = await every(ai.conversations.items.list(one))
    await refused(NotFoundError, lambda: ai.conversations.items.retrieve(item.id, conversation_id=other))
    await refused(NotFoundError, lambda: ai.conversations.items.delete(item.id, conversation_id=other))
    equal(len(await every(ai.conversations.items.list(one))), 1)


@check
async def every_type_is_shown_as_it_was_sent(ai):
    conversation_id = await made(ai, KINDS)
    found = await shown(ai, conversation_id)
    equal(without_minted_ids(found, KINDS), KINDS)
    minted = {item["type"]: item["id"] for item, sent in zip(found, KINDS, strict=True) if "id" not in sent}
    for kind, prefix in (
        ("message", "msg_"),
        ("function_call_output", "fco_"),
        ("custom_tool_call", "ctc_"),
        ("mcp_approval_response", "mcpa_"),
        ("compaction", "cmp_"),
    ):
        assert minted[kind].startswith(prefix), minted[kind]


@check
async def one_of_a_type_that_does_not_exist_yet_is_read_and_deleted(ai):
    future = {"type": "telepathy_call", "id": f"tp_{time.time_ns()}", "thoughts": [{"of": None}]}
    conversation_id = await made(ai, [future])
    found = await done(ai.conversations.items.retrieve(future["id"], conversation_id=conversation_id))
    equal(found.model_dump(exclude_unset=True), future)
    await done(ai.conversations.items.delete(future["id"], conversation_id=conversation_id))
    equal(await shown(ai, conversation_id), [])


@check
async def no_byte_is_changed(ai):
    conversation_id = await made(ai)
    item = (
        '{"type":"number_call", "id":"nc_1","exact":12345678901234567890.10 ,"wide":1e400,\n"twice":{"b":1,"a":2,"b":3},'
        '"escaped":"\\u00e9\\ud83d\\ude00\\/"}'
    )
    path = f"/v1/conversations/{conversation_id}/items"
    status, _, text = server.request("POST", path, ('{"items":[' + item + "]}").encode())
    equal((status, item in text), (200, True))
    for path in (path, f"{path}/nc_1"):
        _, _, text = server.request("GET", path)
        assert item in text, text


@check
async def reasoning_stands_before_what_follows_from_it(ai):
    conversation_id = await made(ai, TURN + numbered(30) + [{**REASONING, "id": "rs_2"}, {**ANSWER, "id": "msg_2"}])
    ids = [item["id"] for item in await shown(ai, conversation_id)]
    equal(ids.index("fc_0a1b2c3d4e5f") - ids.index("rs_0a1b2c3d4e5f"), 1)
    equal(ids[-2:], ["rs_2", "msg_2"])
    # Across the border of two pages, too.
    for limit in (1, 2, 3):
        paged = await every(ai.conversations.items.list(conversation_id, order="asc", limit=limit))
        equal([item.id for item in paged], ids)
        paged = await every(ai.conversations.items.list(conversation_id, limit=limit))
        equal([item.id for item in paged], ids[::-1])


@check
async def what_was_returned_can_be_stored_again_unchanged(ai):
    items = TURN + [item for item in KINDS if item not in TURN] + numbered(3)
    first = await made(ai, items)
    returned = await shown(ai, first)
    equal(len(returned), len(items))
    second = await made(ai, returned)
    equal(await shown(ai, second), returned)
    raw = [
        server.request("GET", f"/v1/conversations/{conversation_id}/items?limit=100")[2] for conversation_id in (first, second)
    ]
    equal(json.loads(raw[1])["data"], json.loads(raw[0])["data"])


@check
async def what_is_stored_already_is_not_stored_again(ai):
    conversation_id = await made(ai, TURN)
    returned = await shown(ai, conversation_id)
    again = await done(ai.conversations.items.create(conversation_id, items=returned[1:3]))
    equal([item.id for item in again.data], [item["id"] for item in returned[1:3]])
    equal(await shown(ai, conversation_id), returned)


@check
async def a_reference_stands_for_what_is_stored(ai):
    conversation_id = await made(ai, numbered(2))
    first, second = await shown(ai, conversation_id)
    reference = {"type": "item_reference", "id": first["id"]}
    stored = await done(ai.conversations.items.create(conversation_id, items=[reference, said("New.")]))
    equal([text_of(item) for item in stored.data], ["number 0", "New."])
    equal((await shown(ai, conversation_id))[:2], [first, second])
    equal(len(await shown(ai, conversation_id)), 3)
    # From another conversation it is copied.
    other = await made(ai, [reference])
    equal(await shown(ai, other), [first])
    absent = {"type": "item_reference", "id": "msg_" + "0" * 32}
    error = await refused(BadRequestError, lambda: ai.conversations.items.create(other, items=[absent]))
    equal((error.code, error.param), ("invalid_value", "items[0].id"))
    equal(await shown(ai, other), [first])


@check
async def another_item_under_an_id_that_is_taken_is_refused(ai):
    conversation_id = await made(ai, TURN)
    other = {**ANSWER, "content": [{"type": "output_text", "text": "Rain.", "annotations": []}]}
    error = await refused(
        BadRequestError, lambda: ai.conversations.items.create(conversation_id, items=[said("New."), other])
    )
    equal((error.code, error.param), ("item_already_in_conversation", "items"))
    equal(len(await shown(ai, conversation_id)), len(TURN))


@check
async def batches_of_every_size_are_stored_whole(ai):
    for count in (1, 20, 21, 45):
        conversation_id = await made(ai)
        stored = await done(ai.conversations.items.create(conversation_id, items=numbered(count)))
        equal([text_of(item) for item in stored.data], [f"number {n}" for n in range(count)])
        equal(stored.has_more, False)
        found = await every(ai.conversations.items.list(conversation_id, order="asc", limit=100))
        equal([text_of(item) for item in found], [f"number {n}" for n in range(count)])
    error = await refused(
        BadRequestError, lambda: ai.conversations.items.create(conversation_id, items=numbered(1001))
    )
    equal((error.code, error.param), ("invalid_value", "items"))


@check
async def one_bad_item_stores_none_of_its_batch(ai):
    conversation_id = await made(ai)
    for bad, param in (
        ({"role": "narrator", "content": "x"}, "items[1].role"),
        ({"role": "user"}, "items[1].type"),
        ({"type": "message", "role": "user"}, "items[1].content"),
        ({"type": 7}, "items[1].type"),
        ("text", "items[1]"),
        ({"type": "x", "id": "a/b"}, "items[1].id"),
    ):
        error = await refused(
            BadRequestError, lambda: ai.conversations.items.create(conversation_id, items=[said("Good."), bad])
        )
        equal((error.type, error.code, error.param), ("invalid_request_error", "invalid_value", param))
    error = await refused(
        BadRequestError,
        lambda: ai.conversations.items.create(conversation_id, items=[{"type": "reasoning", "summary": []}]),
    )
    equal((error.code, error.param), ("invalid_item", "item"))
    equal(await shown(ai, conversation_id), [])


@check
async def all_that_can_be_included_may_be_asked_for(ai):
    conversation_id = await made(ai, KINDS)
    plain = await shown(ai, conversation_id)
    included = await every(
        ai.conversations.items.list(conversation_id, order="asc", limit=100, include=INCLUDABLE)
    )
    equal([item.model_dump(exclude_unset=True) for item in included], plain)
    one = await done(
        ai.conversations.items.retrieve("rs_0a1b2c3d4e5f", conversation_id=conversation_id, include=INCLUDABLE)
    )
    equal(one.encrypted_content, REASONING["encrypted_content"])
    await done(ai.conversations.items.create(conversation_id, items=[said("More.")], include=INCLUDABLE[:1]))
    for encoding in ("include=%s", "include[]=%s", "include%%5B%%5D=%s", "include[0]=%s"):
        path = f"/v1/conversations/{conversation_id}/items?" + encoding % INCLUDABLE[0]
        equal(server.request("GET", path)[0], 200)
        equal(server.request("GET", path + "s")[0], 400)
    error = await refused(
        BadRequestError, lambda: ai.conversations.items.list(conversation_id, include=["message.everything"])
    )
    equal((error.code, error.param), ("invalid_value", "include"))


@check
async def texts_of_a_mebibyte_are_kept(ai):
    text = "Ein Tag in Lissabon – 里斯本 🚋 " * 30000
    text = text.encode()[: 1 << 20].decode(errors="ignore")
    conversation_id = await made(ai, [said(text), said(text, "assistant")])
    equal([text_of(item) == text for item in await every(ai.conversations.items.list(conversation_id))], [True, True])


@check
async def every_letter_there_is_comes_back(ai):
    texts = [
        "👩‍👩‍👧‍👦 🏳️‍🌈 🇵🇹",
        "e\u0301 is not \u00e9, and \u212b is not \u00c5",
        "שלום, مرحبا, \u202eback\u202c",
        "line\u2028paragraph\u2029end",
        "\u0001\u001f\u007f\u0085 \t\r\n",
        "\ufeffmark, \ufffd, \uffff, \U0010ffff",
        '"\\ / \\u0000 </script> \' `',
        "  spaces  ",
        "\u200b",
    ]
    conversation_id = await made(ai, [said(text) for text in texts])
    found = await every(ai.conversations.items.list(conversation_id, order="asc"))
    equal([text_of(item) for item in found], texts)


@check
async def a_pair_of_escapes_is_one_letter_and_half_a_pair_is_none(ai):
    conversation_id = await made(ai)
    path = f"/v1/conversations/{conversation_id}/items"
    whole = b'{"items":[{"role":"user","content":"\\ud83d\\ude00"}]}'
    equal(server.request("POST", path, whole)[0], 200)
    [item] = await every(ai.conversations.items.list(conversation_id))
    equal(text_of(item), "😀")
    half = b'{"items":[{"role":"user","content":"\\ud83d"}]}'
    status, _, text = server.request("POST", path, half)
    error = json.loads(text)["error"]
    equal((status, error["type"], error["code"]), (400, "invalid_request_error", "invalid_value"))
    equal(error["param"], "items[0].content")


@check
async def a_nul_is_refused(ai):
    conversation_id = await made(ai)
    for item, at in (
        (said("a\0b"), "content"),
        ({"type": "telepathy_call", "thought": "a\0b"}, "thought"),
        ({"type": "function_call_output", "call_id": "a", "output": "\0"}, "output"),
    ):
        error = await refused(BadRequestError, lambda: ai.conversations.items.create(conversation_id, items=[item]))
        equal((error.type, error.code, error.param), ("invalid_request_error", "invalid_value", f"items[0].{at}"))
    equal(await shown(ai, conversation_id), [])


@check
async def messages_are_messages_to_the_sdk(ai):
    conversation_id = await made(ai, TURN)
    types = [type(item).__name__ for item in await every(ai.conversations.items.list(conversation_id, order="asc"))]
    equal(types[0], Message.__name__)
    equal(types[1:4], ["ResponseReasoningItem", "ResponseFunctionToolCallItem", "ResponseFunctionToolCallOutputItem"])
