"""The conversations session of the Agents SDK."""

from agents import Agent, OpenAIConversationsSession, Runner, function_tool, set_tracing_disabled
from agents.items import ModelResponse
from agents.models.interface import Model
from agents.usage import Usage
from openai import NotFoundError
from openai.types.responses import (
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseReasoningItem,
)

from .items import shown
from .proxy import LOSE_ANSWER, proxy
from .runner import check_async, equal, refused
from .samples import KINDS, TURN, numbered

set_tracing_disabled(True)


def texts(items):
    return [item["content"][0]["text"] for item in items]


@check_async
async def a_new_session_is_empty(ai):
    session = OpenAIConversationsSession(openai_client=ai)
    equal(await session.get_items(), [])
    equal(await session.pop_item(), None)
    assert session.session_id.startswith("conv_")


@check_async
async def forty_five_items_are_added_and_got(ai):
    session = OpenAIConversationsSession(openai_client=ai)
    await session.add_items(numbered(45))
    equal(texts(await session.get_items()), [f"number {n}" for n in range(45)])
    for limit in (0, 1, 20, 21, 45, 100):
        equal(texts(await session.get_items(limit=limit)), [f"number {n}" for n in range(max(0, 45 - limit), 45)])


@check_async
async def the_newest_item_is_popped(ai):
    session = OpenAIConversationsSession(openai_client=ai)
    await session.add_items(TURN)
    stored = await session.get_items()
    equal(len(stored), len(TURN))
    for expected in reversed(stored):
        equal(await session.pop_item(), expected)
    equal((await session.pop_item(), await session.get_items()), (None, []))


@check_async
async def a_cleared_session_begins_anew(ai):
    session = OpenAIConversationsSession(openai_client=ai)
    await session.add_items(numbered(2))
    before = session.session_id
    await session.clear_session()
    await refused(NotFoundError, lambda: ai.conversations.retrieve(before))
    await session.add_items(numbered(1, 7))
    assert session.session_id != before
    equal(texts(await session.get_items()), ["number 7"])


@check_async
async def a_session_that_is_dumped_and_loaded_is_the_same(ai):
    first = OpenAIConversationsSession(openai_client=ai)
    items = TURN + [item for item in KINDS if item not in TURN]
    await first.add_items(items)
    dump = await first.get_items()
    equal(len(dump), len(items))
    second = OpenAIConversationsSession(openai_client=ai)
    await second.add_items(dump)
    equal(await second.get_items(), dump)
    third = OpenAIConversationsSession(openai_client=ai, conversation_id=first.session_id)
    equal(await third.get_items(), dump)


@check_async
async def items_are_added_once_though_the_answer_is_lost(ai):
    session = OpenAIConversationsSession(openai_client=ai)
    await session.get_items()
    with proxy(LOSE_ANSWER, LOSE_ANSWER) as it:
        cut = OpenAIConversationsSession(
            openai_client=ai.with_options(base_url=it.url), conversation_id=session.session_id
        )
        await cut.add_items(TURN)
    equal(len(await session.get_items()), len(TURN))


class ScriptedModel(Model):
    """A model that calls the tool, then answers; it keeps what it was asked."""

    def __init__(self):
        self.asked = []

    async def get_response(self, system_instructions, input, *_, **__):
        self.asked.append(list(input))
        has_result = input[-1].get("type") == "function_call_output"
        return ModelResponse(output=self.answer() if has_result else self.call(), usage=Usage(), response_id=None)

    def stream_response(self, *_, **__):
        raise AssertionError("nothing is streamed here")

    @staticmethod
    def call():
        return [
            ResponseReasoningItem(id="rs_1", type="reasoning", summary=[], encrypted_content="gAAAAABo"),
            ResponseFunctionToolCall(
                id="fc_1",
                type="function_call",
                call_id="call_1",
                name="weather",
                arguments='{"town":"Lisbon"}',
                status="completed",
            ),
        ]

    @staticmethod
    def answer():
        text = ResponseOutputText(type="output_text", text="It is clear in Lisbon.", annotations=[], logprobs=[])
        return [ResponseOutputMessage(id="msg_1", type="message", role="assistant", status="completed", content=[text])]


@function_tool
def weather(town: str) -> str:
    """Tells the weather of a town."""
    return f"clear in {town}"


@check_async
async def a_turn_with_a_tool_is_kept_and_goes_into_the_next(ai):
    session, model = OpenAIConversationsSession(openai_client=ai), ScriptedModel()
    agent = Agent(name="weather man", instructions="Be brief.", model=model, tools=[weather])
    result = await Runner.run(agent, "How is the weather in Lisbon?", session=session)
    equal(result.final_output, "It is clear in Lisbon.")
    stored = await session.get_items()
    equal(stored, await shown(ai, session.session_id))
    equal(
        [item["type"] for item in stored], ["message", "reasoning", "function_call", "function_call_output", "message"]
    )
    equal(stored[0]["content"], [{"type": "input_text", "text": "How is the weather in Lisbon?"}])
    # The Agents SDK leaves out the ids of all but reasoning.
    equal([item["id"][:4] for item in stored], ["msg_", "rs_1", "fc_0", "fco_", "msg_"])
    equal((stored[2]["call_id"], stored[3]["call_id"], stored[3]["output"]), ("call_1", "call_1", "clear in Lisbon"))
    equal(stored[1]["encrypted_content"], "gAAAAABo")
    equal(stored[4]["content"][0]["text"], "It is clear in Lisbon.")
    # The next turn hands the model what is stored, in its order.
    second = ScriptedModel()
    second.call = second.answer
    await Runner.run(agent.clone(model=second), "And now?", session=session)
    sent_types = [item.get("type", "message") for item in second.asked[0]]
    equal(sent_types, ["message", "reasoning", "function_call", "function_call_output", "message", "message"])
